"""`Environment`: the simplest way to step a task family, for a first look and for people who bring their own agent."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from env_runner.task_distributions import get_family
from env_runner.task_family import EnvOptions, check_count


class RunningNorm:
    """Mean and variance of all observations seen, updated a batch at a time (Chan et al. 1979, eq. 2.1)."""

    CLIP = 10.0

    def __init__(self, size: int) -> None:
        self.count = 0
        self.mean: Float64[ndarray, " D"] = np.zeros(size)
        self._squares: Float64[ndarray, " D"] = np.zeros(size)

    def update(self, batch: Float64[ndarray, "N D"]) -> None:
        """Take a batch into account."""
        count, mean = len(batch), batch.mean(axis=0)
        total, delta = self.count + count, mean - self.mean
        self._squares += ((batch - mean) ** 2).sum(axis=0) + delta**2 * self.count * count / total
        self.mean = self.mean + delta * count / total
        self.count = total

    def __call__(self, batch: Float64[ndarray, "N D"]) -> Float64[ndarray, "N D"]:
        """The batch in standard deviations from the mean, clipped to +-10."""
        deviation = np.sqrt(self._squares / max(1, self.count) + 1e-8)
        return np.clip((batch - self.mean) / deviation, -self.CLIP, self.CLIP)


class Environment:
    """Worlds of one family: `obs = env.reset()`, then `obs, reward, done, info = env.step(action)`.

    One world (`batch_size` 1): obs (D,), action (A,) or an int, reward a float, done a bool. At `done` the observation
    is the last one of the episode; call `reset()` before the next step or go on, into the next episode.
    More worlds: obs (N, D), actions (N, A) or (N,), reward and done (N,). A world that is done starts again at once:
    `obs` is then its new first observation and `info["final_obs"]` holds the last ones.
    `info` always has "terminated" and "truncated": bootstrap values at a truncation, never at a termination.

    env_name: a family (`halfcheetah-vel`), `metaworld-ml1:<task>` or any Gymnasium id (`CartPole-v1`).
    batch_size: N. num_threads: native threads for MuJoCo worlds, 0 for the caller's.
    seed: of tasks and start states; drawn if absent. options: mid-episode changes.
    normalize: show observations in running standard deviations (info and final observations included).
    Raises InputError for a name that is unknown, with the nearest match.
    """

    def __init__(
        self,
        env_name: str,
        batch_size: int = 1,
        *,
        num_threads: int = 0,
        seed: int | None = None,
        options: EnvOptions | None = None,
        normalize: bool = False,
    ) -> None:
        self.family = get_family(env_name)
        self.batch_size = check_count("batch_size", batch_size, 1)
        self.worlds = self.family.make(batch_size, num_threads=num_threads, options=options)
        self.observation_space = self.worlds.single_observation_space
        self.action_space = self.worlds.single_action_space
        self.norm = RunningNorm(self.family.obs_dim) if normalize else None
        self._seed = seed

    @property
    def tasks(self) -> Float64[ndarray, "N P"]:
        """The tasks that the worlds live on."""
        return self.worlds.tasks

    def reset(self, *, tasks: Any = None, new_tasks: bool = False) -> ndarray:
        """Start a new episode in every world and return the observation alone.

        tasks: (N, P) tasks to live on from now; new_tasks: draw new ones. With neither, the present tasks stay.
        """
        options: dict[str, Any] = {"resample_tasks": new_tasks}
        if tasks is not None:
            options["tasks"] = np.asarray(tasks, dtype=np.float64).reshape(self.batch_size, -1)
        obs, _ = self.worlds.reset(seed=self._seed, options=options)
        self._seed = None  # a seed counts once: the next reset goes on with the same streams
        return self._show(obs)

    def step(self, action: Any) -> tuple[ndarray, Any, Any, dict[str, Any]]:
        """One control step: obs, reward, done, info. Raises InputError for a wrong shape or NaN."""
        action = np.asarray(action)
        if self.batch_size == 1 and action.shape == self.action_space.shape:
            action = action[None]
        obs, rewards, terminated, truncated, info = self.worlds.step(action)
        info = {"terminated": terminated, "truncated": truncated, **info}
        done = terminated | truncated
        if self.batch_size > 1:
            shown = self._show(obs)
            if "final_obs" in info:
                info["final_obs"] = self._normalized(info["final_obs"])
            return shown, rewards, done, info
        shown = self._show(info.get("final_obs", obs))
        info = {key: value[0] for key, value in info.items() if key not in ("final_obs", "_final_obs")}
        return shown, float(rewards[0]), bool(done[0]), info

    def _normalized(self, obs: ndarray) -> ndarray:
        return obs if self.norm is None else self.norm(obs)

    def _show(self, obs: ndarray) -> ndarray:
        if self.norm is not None:
            self.norm.update(obs)
        obs = self._normalized(obs)
        return obs[0] if self.batch_size == 1 else obs

    def close(self) -> None:
        """Release threads and processes."""
        self.worlds.close()

    def __enter__(self) -> Environment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
