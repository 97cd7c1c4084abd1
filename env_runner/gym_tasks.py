"""Any Gymnasium environment id as a family of one task: CartPole-v1 and Pendulum-v1 for a first look."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Float64
from numpy import ndarray

from core.errors import InputError
from env_runner.batched_mujoco import silence_mujoco
from env_runner.drawing import Disc, Line, Lived, Picture, Track, box
from env_runner.task_family import (
    ActionInfo,
    EnvOptions,
    Pool,
    TaskFamily,
    TaskVectorEnv,
    check_count,
    check_pool,
    make_box,
    register_family,
    register_resolver,
)

LISTED = ("CartPole-v1", "Pendulum-v1")
DEFAULT_HORIZON = 1000
EVAL_STARTS = 20


DRAWINGS: dict[str, tuple[Callable[[Lived, int], Picture], Callable[[Lived], Track]]] = {}
"""Picture and track of the environments that have one, by id; of any other the reward is drawn."""


def draws(env_id: str, track: Callable[[Lived], Track]) -> Callable[[Callable], Callable]:
    """Decorator for the function that draws a step of one of Gymnasium's environments."""

    def add(picture: Callable[[Lived, int], Picture]) -> Callable:
        DRAWINGS[env_id] = picture, track
        return picture

    return add


@draws("CartPole-v1", lambda lived: Track("angle", np.degrees(lived.states[:, 2]), np.zeros(len(lived.states)), "°"))
def draw_cart_pole(lived: Lived, step: int) -> Picture:
    """States are (x in m, velocity, angle in rad from upright, its velocity); the pole's half is 0.5 m, the track's 2.4 m."""
    x, angle = float(lived.states[step, 0]), float(lived.states[step, 2])
    pole = Line(((x, 0.2), (x + float(np.sin(angle)), 0.2 + float(np.cos(angle)))), "target", 5.0)
    push = 0.45 if lived.actions[step] == 1 else -0.45
    pushed = Line(((x, 0.0), (x + push, 0.0)), "soft", 4.0)
    rail = Line(((-2.4, -0.15), (2.4, -0.15)), "line", 2.0)
    return Picture((-2.5, -0.4, 2.5, 1.4), (rail, pushed, box(x - 0.2, -0.12, x + 0.2, 0.2, "agent"), pole))


@draws("Pendulum-v1", lambda lived: Track("height of the tip", lived.states[:, 0], np.ones(len(lived.states)), "m"))
def draw_pendulum(lived: Lived, step: int) -> Picture:
    """States are (cos, sin, velocity) of the angle from upright, counted against the clock."""
    up, left = float(lived.states[step, 0]), float(lived.states[step, 1])
    ring = Disc(0.0, 1.0, 0.08, "target", hollow=True)
    return Picture((-1.8, -1.2, 1.8, 1.2), (ring, Line(((0.0, 0.0), (-left, up)), "agent", 7.0), Disc(0.0, 0.0, 0.06, "ink")))  # fmt: skip


class GymnasiumVectorEnv(TaskVectorEnv):
    """N single Gymnasium environments, stepped one after another; observations flattened to (N, D) float64."""

    def __init__(self, family: GymnasiumTask, num_envs: int) -> None:
        check_count("num_envs", num_envs, 1)
        self.envs = [family.make_single() for _ in range(num_envs)]
        self._single_obs_space = self.envs[0].observation_space
        space = self.envs[0].action_space
        self._offset = int(space.start) if isinstance(space, spaces.Discrete) else 0
        if isinstance(space, spaces.Discrete):
            action_space: spaces.Box | spaces.Discrete = spaces.Discrete(int(space.n))
        else:
            assert isinstance(space, spaces.Box)
            action_space = spaces.Box(space.low.ravel(), space.high.ravel(), dtype=np.float32)
        super().__init__(family, num_envs, make_box(family.obs_dim), action_space)
        self._shape, self._dtype = space.shape, space.dtype
        self._obs = np.zeros((num_envs, family.obs_dim))

    def _flat(self, obs: Any) -> ndarray:
        return np.asarray(spaces.flatten(self._single_obs_space, obs), dtype=np.float64)

    def _start(self, worlds: ndarray) -> None:
        for world in worlds.tolist():
            obs, _ = self.envs[world].reset(seed=int(self.world_rngs[world].integers(2**31)))
            self._obs[world] = self._flat(obs)

    def _advance(self, actions: ndarray) -> tuple[ndarray, ndarray, dict[str, Any]]:
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, dtype=bool), np.zeros(self.num_envs, dtype=bool)
        for world, env in enumerate(self.envs):
            if isinstance(self.single_action_space, spaces.Discrete):
                action: Any = int(actions[world]) + self._offset
            else:
                action = actions[world].reshape(self._shape).astype(self._dtype)
            obs, reward, terminated[world], truncated[world], _ = env.step(action)
            rewards[world] = float(reward)
            self._obs[world] = self._flat(obs)
        return rewards, terminated, {"truncated": truncated}

    def _observe(self) -> ndarray:
        return self._obs.copy()

    def close_extras(self, **kwargs: Any) -> None:
        for env in self.envs:
            env.close()


class GymnasiumTask(TaskFamily):
    """One Gymnasium environment as a family of one task (the parameter `task` is 0), in every pool.

    A pool holds the task twenty times, so that an evaluation averages twenty independent start states. The environment
    keeps its own start states, rewards, end and time limit (1,000 steps where it has none).
    """

    param_names = ("task",)
    pools_are_disjoint = False

    def __init__(self, env_id: str) -> None:
        self.id = env_id

    def make_single(self) -> gymnasium.Env:
        """One environment. Raises InputError, with Gymnasium's own advice, where a package is missing."""
        try:
            silence_mujoco()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*is out of date")  # who names HalfCheetah-v4 means that one
                env = gymnasium.make(self.id, disable_env_checker=True)
        except gymnasium.error.Error as error:
            raise InputError(f"task family {self.id!r}: Gymnasium says: {error}") from error
        if not isinstance(env.action_space, spaces.Box | spaces.Discrete):
            raise InputError(f"task family {self.id!r}: its action space is {env.action_space}, allowed: Box, Discrete")
        return env

    @cached_property
    def _sample(self) -> gymnasium.Env:
        env = self.make_single()
        env.close()
        return env

    @cached_property
    def horizon(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        spec = self._sample.spec
        return int(spec.max_episode_steps) if spec is not None and spec.max_episode_steps else DEFAULT_HORIZON

    @cached_property
    def obs_dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return int(spaces.flatdim(self._sample.observation_space))

    @cached_property
    def action(self) -> ActionInfo:  # pyright: ignore[reportIncompatibleVariableOverride]
        space = self._sample.action_space
        if isinstance(space, spaces.Discrete):
            return ActionInfo("categorical", int(space.n))
        return ActionInfo("gaussian", int(np.prod(space.shape or ())))

    @property
    def docstring(self) -> str:
        """Gymnasium's own page of the environment, under a note on the family."""
        note = (GymnasiumTask.__doc__ or "").strip()
        return f"# {self.id}\n\n{note}\n\n{self._sample.unwrapped.__doc__ or ''}\n\n## Version\n{self.version}\n"

    def track(self, lived: Lived) -> Track:
        return DRAWINGS[self.id][1](lived) if self.id in DRAWINGS else super().track(lived)

    def picture(self, lived: Lived, step: int) -> Picture | None:
        return DRAWINGS[self.id][0](lived, step) if self.id in DRAWINGS else None

    def sample_tasks(self, rng: np.random.Generator, n: int) -> Float64[ndarray, "n P"]:
        return np.zeros((check_count("n", n, 0), 1))

    def eval_tasks(self, pool: Pool) -> Float64[ndarray, "M P"]:
        check_pool(pool)
        return np.zeros((EVAL_STARTS, 1))

    def make(self, num_envs: int, *, num_threads: int = 0, options: EnvOptions | None = None) -> TaskVectorEnv:
        self.refuse_changes(options)
        check_count("num_threads", num_threads, 0)
        return GymnasiumVectorEnv(self, num_envs)


for _id in LISTED:
    register_family(GymnasiumTask(_id))


@register_resolver("MountainCarContinuous-v0")
def gymnasium_task(family_id: str) -> GymnasiumTask | None:
    """The family of any id that Gymnasium knows. Ids of the form module:id are not looked up: they would import the module."""
    return GymnasiumTask(family_id) if family_id in gymnasium.registry else None
