"""Train in one family and be scored on another: `FAMILY@on=OTHER`, such as `t-maze@on=t-maze:100`.

What is asked is whether what was learned holds elsewhere: in a longer corridor, another body of the same shape, another range of targets.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from core.errors import InputError, bad_value
from env_runner.drawing import Lived, Picture, Track
from env_runner.task_distributions import get_family
from env_runner.task_family import EnvOptions, Pool, TaskFamily, TaskVectorEnv, register_resolver

MARK = "@on="
LONGEST_ID = 64  # characters: with both revisions and the versions of three packages it fits the ledger's column


class ExaminedFamily(TaskFamily):
    """The worlds and training tasks are those of the family before `@on=`; the fixed tasks of all three pools, the episodes in which a
    score is measured, and the anchors are those of the family behind it. So the search is by the other family too."""

    def __init__(self, base: TaskFamily, other: TaskFamily) -> None:
        self.id, self.base, self.other = f"{base.id}{MARK}{other.id}", base, other
        self.horizon, self.obs_dim, self.action = base.horizon, base.obs_dim, base.action
        self.param_names, self.anchors = base.param_names, other.anchors
        for fact in ("target_can_switch", "motor_can_fail"):  # a class's, elsewhere
            setattr(self, fact, getattr(base, fact) and getattr(other, fact))
        engines = tuple(dict.fromkeys((*base.engine_packages, *other.engine_packages)))
        for fact, value in (("reports_success", other.reports_success), ("engine_packages", engines)):
            setattr(self, fact, value)
        self.seconds_per_step = other.seconds_per_step
        self.pools_are_disjoint = other.pools_are_disjoint

    def check(self) -> None:
        self.base.check()
        self.other.check()

    @property
    def examined(self) -> TaskFamily:
        return self.other

    @property
    def version(self) -> str:
        engines = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in self.engine_packages)
        return f"{self.base.id} v{self.base.revision}{MARK}{self.other.id} v{self.other.revision} ({engines})"

    @property
    def docstring(self) -> str:
        """Both families' pages under what is made of them."""
        note = " ".join((ExaminedFamily.__doc__ or "").split())
        return f"# {self.id}\n\n{note}\n\n{self.base.docstring}\n{self.other.docstring}"

    def sample_tasks(self, rng: np.random.Generator, n: int) -> Float64[ndarray, "n P"]:
        return self.base.sample_tasks(rng, n)

    def eval_tasks(self, pool: Pool) -> Float64[ndarray, "M P"]:
        return self.other.eval_tasks(pool)

    def make(self, num_envs: int, *, num_threads: int = 0, options: EnvOptions | None = None) -> TaskVectorEnv:
        worlds = self.base.make(num_envs, num_threads=num_threads, options=options)
        worlds.family = self
        return worlds

    def track(self, lived: Lived) -> Track:
        return self.other.track(lived)

    def picture(self, lived: Lived, step: int) -> Picture | None:
        return self.other.picture(lived, step)

    def body(self, task: Float64[ndarray, " P"]) -> Any:
        return self.other.body(task)

    def heading(self, lived: Lived) -> Float64[ndarray, "T 2"] | None:
        return self.other.heading(lived)


@register_resolver("t-maze@on=t-maze:30")
def examined_family(family_id: str) -> ExaminedFamily | None:
    """The family of `FAMILY@on=OTHER`. InputError for two of different shapes, for one on itself, and for more than one `@on=`."""
    name, mark, on = family_id.partition(MARK)
    if not mark:
        return None
    if len(family_id) > LONGEST_ID:
        raise bad_value("task", family_id, f"an id of {LONGEST_ID} characters at most")
    if MARK in on:
        raise InputError(f"{family_id}: one family after {MARK}, got {on}")
    base, other = get_family(name), get_family(on)
    if base.id == other.id:
        raise InputError(f"{family_id}: {base.id} is scored on itself already; write {base.id}")
    shapes = [_shape(family) for family in (base, other)]
    if shapes[0] != shapes[1]:
        differs = "; ".join(
            f"{what} {shapes[0][what]} and {shapes[1][what]}"
            for what in shapes[0]
            if shapes[0][what] != shapes[1][what]
        )
        raise InputError(f"{family_id}: a policy of {base.id} does not fit {other.id}: {differs}")
    return ExaminedFamily(base, other)


def examined_tasks(family_id: str) -> str:
    """A name of the fixed tasks that a family's scores are measured on, equal for two families with the same ones: the family behind `@on=`,
    whatever its episodes' length. By the id alone, so that a family of a plugin that is not loaded has one too."""
    return re.sub(r"@steps=\d+", "", family_id.rpartition(MARK)[2])


def _shape(family: TaskFamily) -> Mapping[str, Any]:
    return {
        "observations": family.obs_dim,
        "actions": f"{family.action.size} {family.action.kind}",
        "task parameters": family.num_params,
    }
