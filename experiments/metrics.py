"""What a run is scored by: one named number from the raw results of its evaluation, higher is better.

A name says the quantity, the column of the evaluation and, where it is not all of them, the tasks that count:
`return_first_episode`, `return_after_3` (after three shots, whatever a shot is to the learner: an episode lived or a
gradient step), `success_after_1`, `worst_tenth_return_first_episode` (the mean of the worst tenth of the tasks),
`prediction_error_first_episode` (of an auxiliary head, see `meta_rl/auxiliary.py`), `steps_to_-50_first_episode` (the env
steps that training needs until the mean return of the pool's tasks is -50). What is better low is scored with a minus.
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
PREDICTION_ERROR = "prediction_error"
QUANTITIES = {"return": "return", "success": "success rate", PREDICTION_ERROR: "prediction error"}
"""What may be scored, in words; a success rate is only known of families whose worlds say when a goal is reached, a prediction error
of learners with an auxiliary head."""
LOOKED_AT = {"return": "rung/return", "success": "rung/success"}
"""What a look at a run that a person started records beside its score, each where it is known -> the metric that holds its mean."""
STEPS_TO = "steps_to_"
LOOKS = 16
"""How often, at least, a run that is scored by the env steps to a return is looked at, evenly over its iterations."""
WATCHED = "eval/return"
"""The training metric that holds the mean return at each look."""
WORST = "worst_tenth_"
AS_TRAINED = "as_trained"
MAX_SHOT = 19
_NAME = re.compile(
    rf"(?:({WORST})?({'|'.join(QUANTITIES)})|{STEPS_TO}(-?\d{{1,9}}(?:\.\d{{1,6}})?))"
    rf"_(?:first_episode|after_([1-9]\d?)|({AS_TRAINED}))"
)
ALLOWED = (
    f"[{WORST}]QUANTITY_first_episode or [{WORST}]QUANTITY_after_K, where QUANTITY is {', '.join(QUANTITIES)} or (of all tasks) "
    f"{STEPS_TO}R with a return R, and K from 1 to {MAX_SHOT}"
)


class Metric(NamedTuple):
    """A name taken apart."""

    quantity: str
    """Which raw result: one of `QUANTITIES`, or `steps_to_R`."""
    shot: int | None
    """Column of the evaluation: the result after so many shots; None: after those that the learner trains for."""
    worst: bool
    """Whether the worst tenth of the tasks counts alone."""
    level: float | None = None
    """The return R that training has to come to, where its env steps are the score."""

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

    @property
    def sign(self) -> int:
        """-1 where less is better."""
        return -1 if self.level is not None or self.quantity == PREDICTION_ERROR else 1

    @property
    def place(self) -> int:
        """The column of the raw result: the env steps to a return are one number a run."""
        return self.column if self.level is None else 0

    @property
    def on_the_way(self) -> Metric:
        """What a run is scored by before its end: itself, or the return that it is on its way to."""
        return self if self.level is None else Metric("return", self.shot, False)

    def env_steps_to(self, curve: Sequence[tuple[int, float]], planned: int) -> float:
        """The env steps to the return `level`, linear between the looks (env steps, return) of `curve`, which rise in env steps; all
        of the `planned` ones where no look shows it, so that a run that never gets there counts as one that gets there last."""
        assert self.level is not None
        before: tuple[int, float] | None = None
        for steps, value in curve:
            if value >= self.level:
                if before is None or not math.isfinite(before[1]):
                    return float(steps)
                share = (self.level - before[1]) / (value - before[1])
                return before[0] + share * (steps - before[0])
            before = steps, value
        return float(planned)

    def of_learner(self, own: str) -> Metric:
        """The same after the shots that a learner trains for, where no number is named. own: what the learner is scored by."""
        return self if self.shot is not None else self._replace(shot=parse_metric(own).shot)

    def of_tasks(self, values: Sequence[float] | np.ndarray) -> float:
        """The score from one column's values, one a task; NaN where one of them is not finite."""
        found = self.sign * np.asarray(values, dtype=np.float64)
        if not found.size or not np.isfinite(found).all():
            return math.nan
        return float(np.sort(found)[: worst_tenth(found.size)].mean() if self.worst else found.mean())

    def of_evaluation(self, values: Mapping[str, Sequence[Sequence[float]] | np.ndarray]) -> float | None:
        """The score from raw results, (M, E) by quantity; None where one of them is not finite.

        Raises KeyError for a quantity and IndexError for a column that was not evaluated.
        """
        score = self.of_tasks(np.asarray(values[self.quantity], dtype=np.float64)[:, self.place])
        return score if math.isfinite(score) else None

    @property
    def unit(self) -> str:
        """Of a difference of scores, behind a number; empty where the number says enough."""
        return "" if self.level is None else " env steps"

    def shown(self, score: float) -> str:
        """A score with what it is, in one phrase: what is better low as it was measured, without its minus."""
        if self.level is not None:
            return f"{-score:,.0f} env steps to a return of {self.level:g}"
        digits = ".1f" if self.quantity == "return" else ".3g"
        return f"{QUANTITIES[self.quantity]} {self.sign * score:{digits}}"

    def words(self, shot: str) -> str:
        """As it is read by people. shot: what a shot is to the learner, such as "gradient step"."""
        return f"{'minus the ' if self.sign < 0 else ''}{self.asked(shot)}"

    def asked(self, shot: str) -> str:
        """The same before its sign is turned where less is better."""
        if self.shot is None:
            when = "after the shots that each is trained for"
        elif self.shot == 0:
            when = "in the first episode"
        else:
            noun, _, rest = shot.partition(" ") if not shot.startswith("gradient step") else (shot[:13], "", shot[13:])
            when = f"after {self.shot} {noun}{'s' if self.shot > 1 else ''}{f' {rest.strip()}' if rest else ''}"
        if self.level is not None:
            return f"number of env steps to a return of {self.level:g} {when}"
        return f"{QUANTITIES[self.quantity]} {when}{' (worst tenth of the tasks)' if self.worst else ''}"


def worst_tenth(tasks: int) -> int:
    """How many of `tasks` are the worst tenth, at least one."""
    return max(1, math.ceil(tasks / 10))


def parse_metric(name: str) -> Metric:
    """The metric of a name; InputError for another one."""
    match = _NAME.fullmatch(name)
    if match is None or int(match[4] or 0) > MAX_SHOT:
        raise bad_value("metric", name, ALLOWED)
    shot = None if match[5] else int(match[4] or 0)
    if match[3] is not None:
        return steps_to(float(match[3]), shot)
    return Metric(match[2], shot, match[1] is not None)


def steps_to(level: float, shot: int | None) -> Metric:
    """The env steps until the return after `shot` shots is `level`."""
    return Metric(STEPS_TO + np.format_float_positional(level, trim="-"), shot, False, level)


def _of_a_run(name: str) -> str:
    metric = parse_metric(name)
    if metric.shot is None:
        raise bad_value("metric", name, ALLOWED)
    return metric.name


MetricName = Annotated[str, AfterValidator(_of_a_run)]
"""Pydantic field type: the name of a metric that a run can be scored by."""
QuestionMetric = Annotated[str, AfterValidator(lambda name: parse_metric(name).name)]
"""The same, or `return_as_trained`: after the shots that each side's learner trains for."""
