"""What a task family and its batched environment are: the two contracts every other file here fulfils.

A new family is one new file of this folder that registers it (`register_family`); ids that cannot be listed, such as those
of another library's environments, are made by a function (`register_resolver`).

Glossary: N worlds stepped together, D observation size, A action size, P task parameters, H horizon (control steps).
A family is a distribution of tasks; a task is one row of P numbers; a world lives on one task until it is given another.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray
from pydantic import Field

from core.config import FrozenConfig
from core.errors import InputError, bad_value
from core.pools import POOLS, Pool
from core.registry import Registry
from core.seeding import numpy_stream
from env_runner.drawing import Lived, Picture, Track

TRAIN_MARGIN = 1e-3
"""A training task is never within this distance (largest coordinate) of a fixed task of a continuous family."""


class ActionInfo(NamedTuple):
    """What a policy must emit: `gaussian` actions of `size` real numbers, or `categorical` over `size` choices."""

    kind: Literal["gaussian", "categorical"]
    size: int


class EnvOptions(FrozenConfig):
    """Changes in the middle of an episode, for test-time adaptation. The default changes nothing."""

    switch_step: int | None = Field(default=None, ge=1)
    """Control step of every episode at which the task changes to another one of the family (goal families only)."""
    switch_task: tuple[float, ...] | None = None
    """The task (P numbers) that holds after `switch_step`; drawn from the training stream for each episode if absent."""
    failure_step: int | None = Field(default=None, ge=0)
    """Control step of every episode from which one joint's motor fails (families with motors only)."""
    failed_actuator: int | None = Field(default=None, ge=0)
    """Index of the motor that fails; drawn for each episode if absent."""
    failure_scale: float = Field(default=0.0, ge=-1.0, le=1.0)
    """The failed motor's torque is multiplied by this: 0 is a dead motor, -1 a reversed one."""

    @property
    def changes_anything(self) -> bool:
        """Whether any change is asked for."""
        return self.switch_step is not None or self.failure_step is not None

    @property
    def in_words(self) -> str:
        """What happens in every episode, to follow "in every episode"; empty where nothing does."""
        words = []
        if self.failure_step is not None:
            which = "the motor of one joint" if self.failed_actuator is None else f"motor {self.failed_actuator}"
            how = "fails" if self.failure_scale == 0 else f"has {self.failure_scale:g} of its torque"
            words.append(f"{which} {how} from step {self.failure_step} on")
        if self.switch_step is not None:
            to = "" if self.switch_task is None else f" to {', '.join(f'{x:g}' for x in self.switch_task)}"
            words.append(f"the target switches at step {self.switch_step}{to}")
        return " and ".join(words)


class TaskFamily(ABC):
    """A distribution of tasks with a name, a version and fixed held-out tasks.

    Training tasks come from the generator that the caller passes; the three pools of fixed tasks do not depend on any
    seed and are disjoint from one another and from the training stream wherever tasks are continuous. A family with a
    finite number of tasks cannot keep them apart: `pools_are_disjoint` is False there and `provenance` says so.
    """

    id: str
    horizon: int
    obs_dim: int
    action: ActionInfo
    param_names: tuple[str, ...]
    revision: ClassVar[int] = 1
    """Raised when the definition of the family changes, so that old and new numbers are never mixed."""
    engine_packages: ClassVar[tuple[str, ...]] = ("gymnasium",)
    anchors: Mapping[str, float] = {}
    """Mean return of one episode where it is known: stand_still, random, task_blind, ceiling."""
    pools_are_disjoint: bool = True
    reports_success: ClassVar[bool] = False
    """Whether `infos["success"]` says in every step whether the goal is reached."""
    target_can_switch: ClassVar[bool] = False
    """Whether its worlds know `EnvOptions.switch_step`."""
    motor_can_fail: ClassVar[bool] = False
    """Whether its worlds know `EnvOptions.failure_step`."""

    @property
    def examined(self) -> TaskFamily:
        """The family that a learner which was trained in this one is scored on; itself, but for `env_runner.transfer`."""
        return self

    @property
    def num_params(self) -> int:
        """P, the number of task parameters."""
        return len(self.param_names)

    @property
    def version(self) -> str:
        """The family's revision and the versions of the packages that its numbers depend on."""
        engines = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in self.engine_packages)
        return f"{self.id} v{self.revision} ({engines})"

    def check(self) -> None:
        """Raise InputError, with the way out, where this machine cannot run the family; asked before anything is spent."""
        for name in self.engine_packages:
            if importlib.util.find_spec(name) is None:
                raise InputError(f"{self.id} needs the package {name}, which is not installed. Run: pip install {name}")

    @property
    def docstring(self) -> str:
        """The family's description in Gymnasium's form: spaces with units, reward, start, end, arguments, source."""
        return f"# {self.id}\n\n{inspect.getdoc(type(self)) or ''}\n\n## Version\n{self.version}\n"

    @abstractmethod
    def sample_tasks(self, rng: np.random.Generator, n: int) -> Float64[ndarray, "n P"]:
        """Draw `n` training tasks from `rng`; never one of the fixed tasks where `pools_are_disjoint`.

        Each has the family's distribution; those of one call may be spread more evenly than independent ones.
        """

    @abstractmethod
    def eval_tasks(self, pool: Pool) -> Float64[ndarray, "M P"]:
        """The fixed tasks of one pool, always the same and in the same order. Raises InputError for another name."""

    @abstractmethod
    def make(self, num_envs: int, *, num_threads: int = 0, options: EnvOptions | None = None) -> TaskVectorEnv:
        """`num_envs` worlds of this family. `num_threads` 0 steps them on the caller's thread."""

    # How it looks -----------------------------------------------------------------------------------------------------
    seconds_per_step: float | None = None
    """Of a control step; None where steps have no time."""

    def track(self, lived: Lived) -> Track:
        """The quantity that is drawn by step. Without another one: the reward."""
        return Track("reward", lived.rewards)

    def picture(self, lived: Lived, step: int) -> Picture | None:
        """What is seen in one step of an episode; None where the track alone is drawn."""
        return None

    def body(self, task: Float64[ndarray, " P"]) -> Any:
        """The MuJoCo model in which a drawn state is a `qpos`, to be rendered; None where there is none."""
        return None

    def heading(self, lived: Lived) -> Float64[ndarray, "T 2"] | None:
        """The direction (x, y), of length 1, that each step should have gone to; None where tasks are no directions."""
        return None

    def check_tasks(self, tasks: Any, num_envs: int) -> Float64[ndarray, "N P"]:
        """`tasks` as a fresh (N, P) float64 array. Raises InputError where shape or values do not fit."""
        try:
            array = np.array(tasks, dtype=np.float64)
        except (TypeError, ValueError):
            raise bad_value("tasks", tasks, f"an array of shape ({num_envs}, {self.num_params})") from None
        if array.shape != (num_envs, self.num_params):
            raise bad_value("tasks", f"shape {array.shape}", f"shape ({num_envs}, {self.num_params}) for {self.id}")
        if not np.isfinite(array).all():
            raise bad_value("tasks", "NaN or infinity", "finite numbers")
        return array

    def refuse_changes(self, options: EnvOptions | None) -> None:
        """Raise InputError where the worlds of this family cannot have these mid-episode changes."""
        if options is None or not options.changes_anything:
            return
        if not self.target_can_switch and not self.motor_can_fail:
            raise InputError(
                f"options: {self.id} has no mid-episode changes; locomotion families, point-robot and bandit do"
            )
        if options.switch_step is not None and not self.target_can_switch:
            raise InputError(f"switch_step: {self.id} changes the model, not the goal; allowed for goal families only")
        if options.failure_step is not None and not self.motor_can_fail:
            raise InputError(f"failure_step: {self.id} has no motors that fail; locomotion families do")
        for name, step in (("switch_step", options.switch_step), ("failure_step", options.failure_step)):
            if step is not None and step >= self.horizon:
                raise bad_value(name, step, f"below the horizon of {self.id}, {self.horizon}")
        if options.switch_task is not None and len(options.switch_task) != self.num_params:
            raise bad_value("switch_task", options.switch_task, f"{self.num_params} numbers for {self.id}")
        if options.failed_actuator is not None and options.failed_actuator >= self.action.size:
            raise bad_value("failed_actuator", options.failed_actuator, f"0 to {self.action.size - 1}")


# Which families there are --------------------------------------------------------------------------------------------
Resolver = Callable[[str], TaskFamily | None]
"""The family of an id, or None for an id that is not of its kind."""


def with_changes(family: TaskFamily, options: EnvOptions) -> TaskFamily:
    """A copy of the family whose worlds all have the given mid-episode changes; all else is as it was.

    But for the anchors: of a switch to a target that is drawn as the first one was, what is blind to the task reaches the same;
    no other is known. The family itself where nothing changes. InputError where its worlds cannot have these changes.
    """
    family.refuse_changes(options)
    if not options.changes_anything:
        return family
    changed = copy.copy(family)
    vars(changed).update(make=partial(family.make, options=options))
    drawn_alike = options.failure_step is None and options.switch_task is None
    changed.anchors = {name: value for name, value in family.anchors.items() if drawn_alike and name != "ceiling"}
    return changed


FAMILIES: Registry[TaskFamily] = Registry("task family", "tasks", package="env_runner")
"""The families that are listed, by id: all that the files of this folder register."""
RESOLVERS: Registry[Resolver] = Registry("kind of task family ids", package="env_runner")
"""How families that are not listed are made, each under one id of its kind, which the contract tests try."""

F = TypeVar("F", bound="TaskFamily | type[TaskFamily]")


def register_family(family: F) -> F:
    """List a family: a decorator for a class that is made without arguments, or a call with an instance."""
    listed = family() if isinstance(family, type) else family
    FAMILIES.register(listed.id)(listed)
    return family


def register_resolver(example: str) -> Callable[[Resolver], Resolver]:
    """Decorator for a function that makes the families of a whole kind of ids, such as `metaworld-ml1:<task>`.

    It is asked for every id that is not listed, so it must be quick to say None; no id may be of two kinds.
    example: one id of its kind, such as `metaworld-ml1:reach-v3`.
    """
    return RESOLVERS.register(example)


def check_pool(pool: str) -> Pool:
    """`pool` if it is one of the three, else InputError."""
    if pool not in POOLS:
        raise bad_value("pool", pool, "search, selection or confirmation")
    return pool


def check_count(argument: str, value: Any, least: int) -> int:
    """`value` as an int of at least `least`, else InputError."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise bad_value(argument, value, f"a whole number of at least {least}")
    return int(value)


class ContinuousTasks(TaskFamily):
    """A family whose tasks fill a box: U[low, high] a coordinate, or log-uniform where `log_scale` is set.

    One parameter: the confirmation pool is the grid `low + (high - low) * k / 40`, k = 1..40 (the published held-out
    tasks of halfcheetah-vel), and search and selection take the even and odd midpoints of that grid, 20 each.
    More parameters: 20, 20 and 40 draws of three named streams. Training draws within `TRAIN_MARGIN` of any fixed
    task are drawn again.
    """

    low: Sequence[float]
    high: Sequence[float]
    log_scale: bool = False
    grid_offset: float = 1.0
    """Where in its cell a confirmation task lies: 1 is the upper end; 0.75 for angles, whose two ends are one task."""

    def from_unit(self, unit: Float64[ndarray, "n P"]) -> Float64[ndarray, "n P"]:
        """Map [0, 1]^P to the box, so that uniform numbers become tasks."""
        low, high = np.asarray(self.low, float), np.asarray(self.high, float)
        if self.log_scale:
            return np.exp(np.log(low) + (np.log(high) - np.log(low)) * unit)
        return low + (high - low) * unit

    def eval_tasks(self, pool: Pool) -> Float64[ndarray, "M P"]:
        check_pool(pool)
        if self.num_params > 1:
            count = 40 if pool == "confirmation" else 20
            return self.from_unit(numpy_stream(0, "pool", self.id, pool).random((count, self.num_params)))
        cells = np.arange(40) if pool == "confirmation" else np.arange(0 if pool == "search" else 1, 40, 2) - 0.5
        return self.from_unit((cells[:, None] + self.grid_offset) / 40)

    def sample_tasks(self, rng: np.random.Generator, n: int) -> Float64[ndarray, "n P"]:
        check_count("n", n, 0)
        fixed = np.concatenate([self.eval_tasks(pool) for pool in POOLS])
        # A Latin hypercube: each n-th of every parameter's range is drawn once, so no batch of worlds misses a corner.
        cells = rng.permuted(np.tile(np.arange(n), (self.num_params, 1)), axis=1).T
        tasks = self.from_unit((cells + rng.random((n, self.num_params))) / max(n, 1))
        while True:
            distance = np.abs(tasks[:, None] - fixed[None]).max(axis=2).min(axis=1)
            (close,) = np.nonzero(distance < TRAIN_MARGIN)
            if close.size == 0:
                return tasks
            tasks[close] = self.from_unit(rng.random((close.size, self.num_params)))


class FiniteTasks(TaskFamily):
    """A family with a handful of tasks, all of them in every pool: they cannot be kept apart."""

    tasks: Sequence[Sequence[float]]
    pools_are_disjoint = False

    def eval_tasks(self, pool: Pool) -> Float64[ndarray, "M P"]:
        check_pool(pool)
        return np.array(self.tasks, dtype=np.float64)

    def sample_tasks(self, rng: np.random.Generator, n: int) -> Float64[ndarray, "n P"]:
        tasks = np.array(self.tasks, dtype=np.float64)
        return tasks[rng.integers(len(tasks), size=check_count("n", n, 0))]


class TaskVectorEnv(VectorEnv, ABC):
    """N worlds of one family behind Gymnasium's vector interface, with SAME_STEP autoreset.

    A world whose episode ends is reset inside the same `step`: `obs` is then the first observation of its next episode,
    `infos["final_obs"]` (N, D) holds the last one of the episode that ended and `infos["_final_obs"]` (N,) says for
    which worlds. The task of a world stays through autoresets. Step quantities in `infos` belong to the step made.

    Every world has its own random stream, made from the seed of `reset` and the world's index: its start states
    depend on neither the other worlds nor the number of threads.

    A subclass gives `_start`, `_advance` and `_observe`; this class does checks, time limit, autoreset and tasks. It keeps what it needs of
    its own family when it is made: `family` becomes another one where the worlds are those of a cut, or are scored on another family.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        family: TaskFamily,
        num_envs: int,
        obs_space: spaces.Box,
        action_space: spaces.Box | spaces.Discrete,
        options: EnvOptions | None = None,
    ) -> None:
        family.refuse_changes(options)
        self.family, self.options = family, options or EnvOptions()
        self.num_envs = check_count("num_envs", num_envs, 1)
        self.single_observation_space, self.single_action_space = obs_space, action_space
        self.observation_space = batch_space(obs_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self.horizon = family.horizon
        self.tasks: Float64[ndarray, "N P"] = np.zeros((num_envs, family.num_params))
        self._switched: Float64[ndarray, "N P"] = np.zeros_like(self.tasks)
        self.elapsed: Int64[ndarray, " N"] = np.zeros(num_envs, dtype=np.int64)
        self.unstable_count: int = 0
        """Worlds that the simulator gave up on since this object was made; each was reset and the run went on."""
        self.world_rngs: list[np.random.Generator] = []
        self._tasks_were_given = False
        if isinstance(action_space, spaces.Box):
            self._action_low = action_space.low.astype(np.float64)
            self._action_high = action_space.high.astype(np.float64)

    # What a subclass gives -------------------------------------------------------------------------------------------
    @abstractmethod
    def _start(self, worlds: Int64[ndarray, " K"]) -> None:
        """Put these worlds into fresh start states drawn from `self.world_rngs`."""

    @abstractmethod
    def _advance(self, actions: ndarray) -> tuple[Float64[ndarray, " N"], Bool[ndarray, " N"], dict[str, Any]]:
        """One control step of all worlds with checked actions: rewards, terminated, step quantities.

        The quantity "unstable" (N,) bool, where present, marks worlds that are to be truncated and counted, and
        "truncated" (N,) bool those whose own time limit is over.
        """

    @abstractmethod
    def _observe(self) -> Float64[ndarray, "N D"]:
        """A fresh array with the observation of every world."""

    def drawn_state(self) -> Float64[ndarray, "N S"]:
        """What the family's `picture` or `body` has to know of every world now: the observation, where that is enough."""
        return self._observe()

    def _apply_tasks(self) -> None:
        """Called when `self.tasks` has changed, before the worlds start. Most families read them as they go."""

    # For subclasses whose target can switch --------------------------------------------------------------------------
    def draw_switches(self, worlds: Int64[ndarray, " K"]) -> None:
        """Where a switch is asked for: the tasks that these worlds, which now start, will be switched to."""
        if self.options.switch_step is not None:
            for world in worlds.tolist():
                drawn = self.family.sample_tasks(self.world_rngs[world], 1)[0]
                self._switched[world] = drawn if self.options.switch_task is None else self.options.switch_task

    def tasks_in_force(self) -> Float64[ndarray, "N P"]:
        """The tasks of the step that is now made; where a switch is asked for, its `infos` have them as "tasks"."""
        if self.options.switch_step is None:
            return self.tasks
        return np.where((self.elapsed >= self.options.switch_step)[:, None], self._switched, self.tasks)

    # Gymnasium's interface -------------------------------------------------------------------------------------------
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float64[ndarray, "N D"], dict[str, Any]]:
        """Start a new episode in every world.

        seed: makes the worlds' random streams anew; without one they go on (a first reset draws a seed).
        options: {"tasks": (N, P) array} sets the tasks; {"resample_tasks": True} draws new training tasks. With neither,
            the present tasks stay, unless they were drawn and a seed is given: then they are drawn anew from that seed.
        Raises InputError for tasks of another shape, NaN, or an unknown option.
        """
        options = dict(options or {})
        tasks, resample = options.pop("tasks", None), options.pop("resample_tasks", False)
        if options:
            raise bad_value("options", sorted(options), 'the keys "tasks" and "resample_tasks"')
        if tasks is not None:
            self.tasks = self.family.check_tasks(tasks, self.num_envs)
            self._tasks_were_given = True
        fresh = seed is not None or not self.world_rngs
        if fresh:
            self._reseed(seed)
        if tasks is None and (resample or (fresh and not self._tasks_were_given)):
            self.tasks = self.family.sample_tasks(self.np_random, self.num_envs)
        if tasks is not None or resample or fresh:
            self._apply_tasks()
        self.elapsed[:] = 0
        self._start(np.arange(self.num_envs))
        return self._observe(), {}

    def _reseed(self, seed: int | None) -> None:
        drawn = np.random.SeedSequence().generate_state(1)[0] if seed is None else seed
        seed = check_count("seed", drawn, 0)
        # Gymnasium's `np_random`: here the stream that training tasks are drawn from when `reset` is given none.
        self._np_random, self._np_random_seed = numpy_stream(seed, "tasks"), seed
        self.world_rngs = [numpy_stream(seed, "world", world) for world in range(self.num_envs)]

    def step(
        self, actions: Any
    ) -> tuple[
        Float64[ndarray, "N D"], Float64[ndarray, " N"], Bool[ndarray, " N"], Bool[ndarray, " N"], dict[str, Any]
    ]:
        """One control step in every world: obs, rewards, terminated, truncated, infos.

        actions: (N, A) real numbers, clipped to the action space, or (N,) whole numbers for a discrete one.
        Raises InputError for another shape or NaN, naming the world.
        """
        if not self.world_rngs:
            raise InputError("step: call reset first")
        rewards, terminated, infos = self._advance(self._check_actions(actions))
        self.elapsed += 1
        truncated = self.elapsed >= self.horizon
        if "truncated" in infos:  # an environment with a time limit of its own
            truncated |= infos.pop("truncated")
        unstable = infos.get("unstable")
        if unstable is not None and unstable.any():
            self.unstable_count += int(unstable.sum())
            truncated |= unstable
        obs = self._observe()
        done = terminated | truncated
        if done.any():
            infos["final_obs"], infos["_final_obs"] = obs, done
            (ended,) = np.nonzero(done)
            self.elapsed[ended] = 0
            self._start(ended)
            obs = self._observe()
        return obs, rewards, terminated, truncated, infos

    def _check_actions(self, actions: Any) -> ndarray:
        space = self.single_action_space
        if isinstance(space, spaces.Discrete):
            array = np.asarray(actions)
            if array.shape != (self.num_envs,):
                raise bad_value("actions", f"shape {array.shape}", f"shape ({self.num_envs},)")
            if not np.issubdtype(array.dtype, np.integer):
                raise bad_value("actions", f"dtype {array.dtype}", f"whole numbers from 0 to {int(space.n) - 1}")
            if array.min() < 0 or array.max() >= space.n:
                raise bad_value("actions", array.tolist(), f"whole numbers from 0 to {int(space.n) - 1}")
            return array.astype(np.int64)
        try:
            array = np.asarray(actions, dtype=np.float64)
        except (TypeError, ValueError):
            raise bad_value("actions", type(actions).__name__, "an array of numbers") from None
        if array.shape != self.action_space.shape:
            raise bad_value("actions", f"shape {array.shape}", f"shape {self.action_space.shape}")
        clipped = np.minimum(np.maximum(array, self._action_low), self._action_high)
        # A sum is NaN exactly where an entry is (clipping leaves no infinity): cheaper than isfinite().all().
        if np.isnan(clipped.sum()):
            worlds = np.nonzero(np.isnan(clipped).any(axis=1))[0]
            raise bad_value("actions", f"NaN in world {int(worlds[0])} ({worlds.size} in all)", "finite numbers")
        return clipped

    def close_extras(self, **kwargs: Any) -> None:
        """Nothing to release unless a subclass holds processes or threads."""


def make_box(size: int) -> spaces.Box:
    """An unbounded observation space of `size` float64 numbers."""
    return spaces.Box(-np.inf, np.inf, (size,), np.float64)
