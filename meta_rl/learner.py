"""The contract of every learner: a generator of frozen reports that can be stopped, saved, loaded and continued.

Where it sits: the lab (`experiments/`) builds a learner from a run's specification, draws reports from `train()`, saves
where it likes and asks `evaluate()` for raw returns. A learner prints nothing, opens no database and holds no clock but
the one for `time/fps`. A new learner is one file with a config class, a `Learner` subclass and `@register_learner`.
What a plan has to know before anything is trained (env steps of an iteration, what an evaluation shows) is said by the config.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import numpy as np
import torch
from pydantic import ValidationError

from adaptation.policy_adaptation import PolicyAdaptation
from core.checkpoint import load_checkpoint, save_checkpoint
from core.config import FrozenConfig, explain_validation
from core.errors import InputError, bad_value
from core.policy import PolicyConfig
from core.registry import ConfigOf, Registry
from env_runner.task_distributions import get_family
from env_runner.task_family import TaskFamily


class DivergedError(RuntimeError):
    """Raised by `train()` when a loss or a parameter is no longer finite.

    The learner's state is put back to the last iteration's border before this is raised, so `save()` still works.
    """


DEFAULT_LEARNER = "rl2"
"""What trains where nobody names a learner: presets and goals without one."""


class LearnerConfig(FrozenConfig):
    """The base of a learner's settings; the subclass stands beside its learner.

    A subclass implements `iteration_steps`, names the fields behind it in `size_fields`, says in `shot` and
    `evaluation_episodes` what an evaluation of the learner shows, and in `scored_by` what it is judged by.
    """

    size_fields: ClassVar[tuple[str, ...]] = ()
    """Whole-numbered fields that an iteration's env steps grow with. Fewer of them make a run shorter and need less memory;
    one that is searched has choices, so that run lengths can be found that fit all of them."""
    shot: ClassVar[str] = "episode lived on the task"
    """What lies between two columns of an evaluation: column k is what the learner earns after k of these."""
    learning_episodes: ClassVar[int] = 3_000
    """Training episodes from which on a run has learned enough to be compared: a plan makes its design smaller before a run
    is shorter. Measured for RL2 on locomotion families; a learner that needs more, or less, says so."""

    models: ClassVar[tuple[str, ...]] = ("lstm", "s5", "gru", "lru", "mlp")
    """Sequence models among which a side that names this learner, but no model, is searched; the usual one first."""

    kind: str
    """Which learner: a name in the registry, such as "rl2"."""

    def iteration_steps(self, horizon: int) -> int:
        """Env steps of one training iteration on a family whose episodes last `horizon` steps: the least budget."""
        raise NotImplementedError

    @property
    def evaluation_episodes(self) -> int:
        """Columns of an evaluation that show all that these settings train for."""
        return 1

    def column_in_words(self, column: int) -> str:
        """What the policy has had of a task in a column of an evaluation, such as "the task is new"."""
        return "the task is new" if column == 0 else f"after {column} episode{'s' * (column > 1)} on the task"

    @property
    def why_no_adaptation(self) -> str | None:
        """Why a policy that these settings train cannot go on learning while it is evaluated (`PolicyAdaptation`); None where
        it can, as `Learner.adapt_and_evaluate` then does."""
        return "its evaluation has no test-time adaptation"

    @property
    def predicts(self) -> str | None:
        """What an auxiliary head predicts, whose `prediction_error` an evaluation then has; None where there is none."""
        return None

    @property
    def scored_by(self) -> str:
        """What a run of these settings is scored by where nobody asks for another metric (see `experiments/metrics.py`)."""
        return "return_first_episode"

    def unit_steps(self, horizon: int, choices: Mapping[str, Sequence[int]]) -> int:
        """The least env steps that are whole iterations whichever of `choices` (by name of a size field) is taken."""
        options = {name: choices.get(name, (getattr(self, name),)) for name in self.size_fields}
        sizes = [
            self.model_copy(update=dict(zip(options, values, strict=True))).iteration_steps(horizon)
            for values in itertools.product(*options.values())
        ]
        return math.lcm(*sizes)


@dataclass(frozen=True)
class LearnerEntry:
    """What the registry knows about a learner."""

    learner: type[Learner]
    config_type: type[LearnerConfig]


LEARNERS: Registry[LearnerEntry] = Registry("learner", "learners", package="meta_rl")

LearnerT = TypeVar("LearnerT", bound="type[Learner]")


def register_learner(kind: str, config_type: type[LearnerConfig]) -> Callable[[LearnerT], LearnerT]:
    """Class decorator: makes a learner available under `kind` with its config class."""
    if config_type.iteration_steps is LearnerConfig.iteration_steps:
        raise TypeError(
            f"{config_type.__name__} must implement iteration_steps(horizon): no plan can be made without it"
        )

    def add(learner: LearnerT) -> LearnerT:
        learner.kind = kind
        learner.config_type = config_type
        LEARNERS.register(kind)(LearnerEntry(learner, config_type))
        return learner

    return add


_ANY = ConfigOf(LEARNERS, LearnerConfig)
AnyLearnerConfig = Annotated[LearnerConfig, _ANY]
"""Pydantic field type: any registered learner's configuration, validated through the registry, JSON round trip."""


def parse_learner_config(value: object) -> LearnerConfig:
    """A configuration from a configuration, a kind's name, or a dict with a "kind". Raises InputError."""
    return _ANY.read(value)


@dataclass(frozen=True)
class TrainReport:
    """What one training iteration was like.

    iteration counts from 1; env_steps counts all control steps since the start of training, over resumes;
    wall_s is this iteration's duration; metrics bear Stable-Baselines3's names where one exists.
    """

    iteration: int
    env_steps: int
    wall_s: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class EvalResult:
    """Raw results on given tasks, from which every statistic can be computed again.

    returns: (M, E) float64; row = task, column = index of the episode on that task. For a learner with memory column e
        comes after e episodes lived; for a gradient learner after e adaptation steps. Column 0 is zero-shot.
    extras: further quantities of the same shape, such as `final_velocity_error`.
    """

    returns: np.ndarray
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)


class Learner(ABC):
    """Learns a policy for a family of tasks; deterministic in its arguments.

    family_id: a registered task family. policy: the policy's config. config: the learner's own settings.
    env_steps: the whole training budget in control steps, never exceeded. seed: the one source of randomness.
    Raises InputError for a budget below one iteration and for settings that the family does not fit.
    """

    kind: ClassVar[str]
    config_type: ClassVar[type[LearnerConfig]]
    family: TaskFamily
    """What it lives in, in training and in evaluation; whoever puts a copy with mid-episode changes here decides on them."""

    def __init__(
        self, family_id: str, policy: PolicyConfig, config: LearnerConfig, *, env_steps: int, seed: int
    ) -> None:
        expected = type(self).config_type
        if not isinstance(config, expected):
            raise bad_value("config", type(config).__name__, f"{expected.__name__} for the learner {self.kind!r}")
        if env_steps < 1:
            raise bad_value("env_steps", env_steps, "at least the steps of one iteration")
        if seed < 0:
            raise bad_value("seed", seed, "an integer of 0 or more")
        self.family_id, self.family = family_id, get_family(family_id)
        self.policy_config = policy
        self.config = config
        self.env_steps = int(env_steps)
        self.seed = int(seed)

    @abstractmethod
    def train(self) -> Generator[TrainReport, None, None]:
        """Train up to the budget, one report an iteration; continues where a loaded state stopped.

        Raises DivergedError when the loss or a parameter is not finite.
        """

    @abstractmethod
    def evaluate(self, tasks: np.ndarray, *, episodes: int, seed: int, deterministic: bool = True) -> EvalResult:
        """Live `episodes` episodes on each of the tasks (M, P); changes nothing in the learner."""

    def adapt_and_evaluate(
        self, tasks: np.ndarray, adaptation: PolicyAdaptation, *, episodes: int, seed: int, deterministic: bool = True
    ) -> EvalResult:
        """The same with a policy that goes on learning from what it lives, and is as it was afterwards.

        Raises InputError where the learner's settings say `why_no_adaptation`.
        """
        raise InputError(f"adaptation.adapts: {adaptation.adapts} with {self.kind}: {self.config.why_no_adaptation}")

    @abstractmethod
    def _state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """All that `_restore` needs to continue bit for bit: tensors, and plain JSON values."""

    @abstractmethod
    def _restore(self, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
        """Put back what `_state` gave."""

    def save(self, path: str | Path) -> str:
        """Write the whole training state beside its arguments; returns the hash of the tensors' file."""
        tensors, meta = self._state()
        arguments = {
            "kind": self.kind,
            "family_id": self.family_id,
            "policy": self.policy_config.model_dump(mode="json"),
            "config": self.config.model_dump(mode="json"),
            "env_steps": self.env_steps,
            "seed": self.seed,
        }
        return save_checkpoint(path, tensors, {"learner": arguments, "state": meta})

    @classmethod
    def load(cls, path: str | Path) -> Learner:
        """Build the learner that `save` wrote, of whichever kind, ready to `train()` on or to `evaluate()`."""
        tensors, meta = load_checkpoint(path)
        arguments = meta.get("learner")
        if arguments is None:
            raise InputError(f"checkpoint: {path} does not hold a learner")
        entry = LEARNERS[arguments["kind"]]
        try:
            policy = PolicyConfig.model_validate(arguments["policy"])
            config = entry.config_type.model_validate(arguments["config"])
        except ValidationError as error:
            raise InputError(
                f"checkpoint: {path} is of another version of the code: {explain_validation(error)}"
            ) from None
        learner = entry.learner(
            arguments["family_id"], policy, config, env_steps=arguments["env_steps"], seed=arguments["seed"]
        )
        try:
            learner._restore(tensors, meta["state"])
        except (KeyError, RuntimeError) as error:  # a tensor that is missing, or of another shape
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"checkpoint: {path} is of another version of the code: {reason}") from None
        return learner


def build_learner(family_id: str, policy: PolicyConfig, config: LearnerConfig, *, env_steps: int, seed: int) -> Learner:
    """The learner that `config.kind` names."""
    return LEARNERS[config.kind].learner(family_id, policy, config, env_steps=env_steps, seed=seed)
