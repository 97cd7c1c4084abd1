"""What a run is scored by: one named number from the raw results of its evaluation, higher is better.

A name says the quantity, the column of the evaluation and, where it is not all of them, the tasks that count:
`return_first_episode`, `return_after_3` (after three shots, whatever a shot is to the learner: an episode lived or a
gradient step), `success_after_1`, `worst_tenth_return_first_episode` (the mean of the worst tenth of the tasks).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import AfterValidator

from core.errors import bad_value

FIRST_EPISODE = "return_first_episode"
"""The return before any shot: the score of a learner that adapts while it acts, and of every run recorded without a metric."""
QUANTITIES = {"return": "return", "success": "success rate"}
"""What may be scored, in words; a success rate is only known of families whose worlds say when a goal is reached."""
WORST = "worst_tenth_"
AS_TRAINED = "as_trained"
MAX_SHOT = 19
_NAME = re.compile(rf"({WORST})?({'|'.join(QUANTITIES)})_(?:first_episode|after_([1-9]\d?)|({AS_TRAINED}))")
ALLOWED = (
    f"[{WORST}]QUANTITY_first_episode or [{WORST}]QUANTITY_after_K, where QUANTITY is {' or '.join(QUANTITIES)} and K from 1 to "
    f"{MAX_SHOT}"
)


class Metric(NamedTuple):
    """A name taken apart."""

    quantity: str
    """Which raw result."""
    shot: int | None
    """Column of the evaluation: the result after so many shots; None: after those that the learner trains for."""
    worst: bool
    """Whether the worst tenth of the tasks counts alone."""

    @property
    def name(self) -> str:
        when = AS_TRAINED if self.shot is None else f"after_{self.shot}" if self.shot else "first_episode"
        return f"{WORST if self.worst else ''}{self.quantity}_{when}"

    @property
    def column(self) -> int:
        """The column of the evaluation; ValueError where it is the learner's to say."""
        if self.shot is None:
            raise ValueError(f"{self.name} has no column of its own")
        return self.shot

    def of_learner(self, own: str) -> Metric:
        """The same after the shots that a learner trains for, where no number is named. own: what the learner is scored by."""
        return self if self.shot is not None else self._replace(shot=parse_metric(own).shot)

    def of_tasks(self, values: Sequence[float] | np.ndarray) -> float:
        """The score from one column's values, one a task; NaN where one of them is not finite."""
        found = np.asarray(values, dtype=np.float64)
        if not found.size or not np.isfinite(found).all():
            return math.nan
        return float(np.sort(found)[: worst_tenth(found.size)].mean() if self.worst else found.mean())

    def of_evaluation(self, values: Mapping[str, Sequence[Sequence[float]] | np.ndarray]) -> float | None:
        """The score from raw results, (M, E) by quantity; None where one of them is not finite.

        Raises KeyError for a quantity and IndexError for a column that was not evaluated.
        """
        score = self.of_tasks(np.asarray(values[self.quantity], dtype=np.float64)[:, self.column])
        return score if math.isfinite(score) else None

    def words(self, shot: str) -> str:
        """As it is read by people. shot: what a shot is to the learner, such as "gradient step"."""
        if self.shot is None:
            when = "after the shots that each is trained for"
        elif self.shot == 0:
            when = "in the first episode"
        else:
            noun, _, rest = shot.partition(" ") if not shot.startswith("gradient step") else (shot[:13], "", shot[13:])
            when = f"after {self.shot} {noun}{'s' if self.shot > 1 else ''}{f' {rest.strip()}' if rest else ''}"
        return f"{QUANTITIES[self.quantity]} {when}{' (worst tenth of the tasks)' if self.worst else ''}"


def worst_tenth(tasks: int) -> int:
    """How many of `tasks` are the worst tenth, at least one."""
    return max(1, math.ceil(tasks / 10))


def parse_metric(name: str) -> Metric:
    """The metric of a name; InputError for another one."""
    match = _NAME.fullmatch(name)
    if match is None or int(match[3] or 0) > MAX_SHOT:
        raise bad_value("metric", name, ALLOWED)
    return Metric(match[2], None if match[4] else int(match[3] or 0), match[1] is not None)


def _of_a_run(name: str) -> str:
    metric = parse_metric(name)
    if metric.shot is None:
        raise bad_value("metric", name, ALLOWED)
    return metric.name


MetricName = Annotated[str, AfterValidator(_of_a_run)]
"""Pydantic field type: the name of a metric that a run can be scored by."""
QuestionMetric = Annotated[str, AfterValidator(lambda name: parse_metric(name).name)]
"""The same, or `return_as_trained`: after the shots that each side's learner trains for."""
