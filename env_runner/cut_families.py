"""A person's own cut of a family, as a family of its own: which tasks are trained on and tested on, and how long an episode lasts.

`imujoco-halfcheetah@train=0,1,2@test=3,4@steps=100`: the numbers name tasks of the family, always the same ones, so that the id,
which a run's specification records, says everything. The family's own fixed tasks are never among those of a continuous one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from core.errors import InputError, bad_value
from core.seeding import numpy_stream
from env_runner.drawing import Lived, Picture, Track
from env_runner.task_distributions import get_family
from env_runner.task_family import (
    EnvOptions,
    FiniteTasks,
    Pool,
    TaskFamily,
    TaskVectorEnv,
    check_count,
    check_pool,
    register_resolver,
)

EXAMPLE = "imujoco-halfcheetah@train=0,1,2@test=3,4@steps=100"
MOST = 10_000
LONGEST_ID = 80  # characters of the ledger's column
_LIST = r"\d+(?:,\d+)*"
_CUT = re.compile(rf"(?P<base>[^@]+)(?:@train=(?P<train>{_LIST})@test=(?P<test>{_LIST}))?(?:@steps=(?P<steps>\d+))?")


def cut_id(base: str, *, train: Sequence[int] = (), test: Sequence[int] = (), steps: int | None = None) -> str:
    """The id of a cut of the family `base`, which is made once to see that there is one.

    InputError for one side without the other, a number on both or out of range, and episodes longer than the family's.
    """
    if train or test:
        for side, numbers in (("train tasks", train), ("test tasks", test)):
            if not numbers or min(numbers) < 0 or max(numbers) > MOST:
                raise bad_value(side, list(numbers), f"one or more numbers of tasks from 0 to {MOST}")
        if both := sorted(set(train) & set(test)):
            raise bad_value("test tasks", ", ".join(map(str, both)), "tasks that are not trained on")
    cuts = [("train", sorted(set(train))), ("test", sorted(set(test))), ("steps", [] if steps is None else [steps])]
    name = "".join([base, *(f"@{word}={','.join(map(str, numbers))}" for word, numbers in cuts if numbers)])
    if len(name) > LONGEST_ID:
        raise bad_value("task", name, f"an id of {LONGEST_ID} characters at most: fewer tasks")
    return get_family(name).id


class CutFamily(TaskFamily):
    """Its training tasks are those with the numbers behind `train=`, each as likely as another; they are the search and selection
    pools too, so that nothing is chosen by the test tasks. The confirmation pool holds those behind `test=`. Task number n of a family
    with a list of tasks is its row n; of any other it is the training draw of a stream named by n. An episode ends after the control
    steps behind `steps=`. All that is not named is the family's."""

    def __init__(
        self, family_id: str, base: TaskFamily, *, train: Sequence[int], test: Sequence[int], steps: int
    ) -> None:
        self.id, self.base, self.horizon = family_id, base, steps
        self.obs_dim, self.action, self.param_names = base.obs_dim, base.action, base.param_names
        for fact in (
            "reports_success",
            "engine_packages",
            "target_can_switch",
            "motor_can_fail",
            "seconds_per_step",
        ):  # a class's, elsewhere
            setattr(self, fact, getattr(base, fact))
        self.pools_are_disjoint = base.pools_are_disjoint and not train
        self._train, self._test = (
            np.stack([self._numbered(n) for n in numbers]) if numbers else None for numbers in (train, test)
        )

    def _numbered(self, number: int) -> Float64[ndarray, " P"]:
        if isinstance(self.base, FiniteTasks):
            most = len(self.base.tasks) - 1
            if number > most:
                raise bad_value("task number", number, f"from 0 to {most}, the tasks of {self.base.id}")
            return np.array(self.base.tasks[number], dtype=np.float64)
        return self.base.sample_tasks(numpy_stream(0, "numbered task", self.base.id, number), 1)[0]

    def check(self) -> None:
        self.base.check()

    @property
    def version(self) -> str:
        return self.base.version

    @property
    def docstring(self) -> str:
        """The family's own page under what the cut is."""
        note = " ".join((CutFamily.__doc__ or "").split())
        return f"# {self.id}\n\n{note}\n\n{self.base.docstring}"

    def sample_tasks(self, rng: np.random.Generator, n: int) -> Float64[ndarray, "n P"]:
        if self._train is None:
            return self.base.sample_tasks(rng, n)
        return self._train[rng.integers(len(self._train), size=check_count("n", n, 0))]

    def eval_tasks(self, pool: Pool) -> Float64[ndarray, "M P"]:
        tasks = self._test if check_pool(pool) == "confirmation" else self._train
        return self.base.eval_tasks(pool) if tasks is None else tasks.copy()

    def track(self, lived: Lived) -> Track:
        return self.base.track(lived)

    def picture(self, lived: Lived, step: int) -> Picture | None:
        return self.base.picture(lived, step)

    def body(self, task: Float64[ndarray, " P"]) -> Any:
        return self.base.body(task)

    def heading(self, lived: Lived) -> Float64[ndarray, "T 2"] | None:
        return self.base.heading(lived)

    def make(self, num_envs: int, *, num_threads: int = 0, options: EnvOptions | None = None) -> TaskVectorEnv:
        worlds = self.base.make(num_envs, num_threads=num_threads, options=options)
        worlds.family, worlds.horizon = self, self.horizon  # where tasks are drawn from, and when an episode ends
        return worlds


@register_resolver(EXAMPLE)
def cut_family(family_id: str) -> CutFamily | None:
    """The family of `FAMILY@train=0,1@test=2`, `FAMILY@steps=100` or both."""
    match = _CUT.fullmatch(family_id)
    if match is None or "@" not in family_id:
        return None
    base = get_family(match["base"])
    train, test = ([int(n) for n in match[side].split(",")] if match[side] else [] for side in ("train", "test"))
    if any(sorted(set(side)) != side for side in (train, test)) or set(train) & set(test):
        raise bad_value("task", family_id, "rising numbers of tasks, none on both sides")
    if train and len(np.unique(base.sample_tasks(np.random.default_rng(0), 20), axis=0)) < 2:
        raise InputError(f"{family_id}: {base.id} has one task, so there is nothing to split")
    steps = base.horizon if match["steps"] is None else int(match["steps"])
    if not 1 <= steps <= base.horizon:
        raise bad_value("steps", steps, f"from 1 to {base.horizon}, the episode of {base.id}")
    return CutFamily(family_id, base, train=train, test=test, steps=steps)
