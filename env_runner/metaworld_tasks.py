"""Meta-World (an extra) as task families: ML1, ML10, ML45 for meta-learning, MT10 and MT50 for many tasks at once.

Built from Meta-World's benchmark classes, never from its Gymnasium ids, whose `ML1-train` serves test tasks
(Farama-Foundation/Metaworld, pull request 573). Meta-World 3.1.1 pins mujoco 3.3.0; everything else here runs on it too.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
from functools import cached_property, lru_cache
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Float64
from numpy import ndarray

from core.errors import InputError, unknown_name
from env_runner.batched_mujoco import check_threads, silence_mujoco
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

INSTALL = 'pip install -e ".[metaworld]"'
LISTED = ("metaworld-ml10", "metaworld-ml45", "metaworld-mt10", "metaworld-mt50")
BENCHMARK_SEED = 0
"""Seed of Meta-World's own goal draws, fixed so that a family's tasks are the same everywhere."""
GOALS = 50
"""Goals that Meta-World draws for each environment of a benchmark."""
STATE_SIZE = 39


def load_metaworld() -> Any:
    """The metaworld module. Raises InputError with the pip command where it is not installed."""
    if importlib.util.find_spec("metaworld") is None:
        raise InputError(
            f"Meta-World is not installed. Run: {INSTALL} (it brings mujoco 3.3.0, so best in an environment of its own)"
        )
    return importlib.import_module("metaworld")


@lru_cache(maxsize=4)
def _benchmark(kind: str, env_name: str) -> Any:
    """Meta-World's benchmark object. ML10 takes about half a minute to draw its goals, ML45 and MT50 two minutes."""
    metaworld = load_metaworld()
    silence_mujoco()
    if kind == "ml1":
        if env_name not in metaworld.ML1.ENV_NAMES:
            raise unknown_name("Meta-World task", env_name, metaworld.ML1.ENV_NAMES)
        return metaworld.ML1(env_name, seed=BENCHMARK_SEED)
    return getattr(metaworld, kind.upper())(seed=BENCHMARK_SEED)


class MetaWorldFamily(TaskFamily):
    """## Description
    A Sawyer arm manipulates objects on a table. `metaworld-ml1:<task>` hides the goal of one manipulation;
    `metaworld-ml10` and `-ml45` hide which of many manipulations it is and test on five unseen ones; `metaworld-mt10`
    and `-mt50` show both.

    ## Action Space
    `Box(-1, 1, (4,), float32)`, clipped: displacement of the hand in x, y, z (units of 0.01 m) and gripper effort.

    ## Observation Space
    39 numbers: hand position (3, m), gripper opening (1, 0 to 1), positions (m) and quaternions of up to two objects
    (14), the same 18 of the step before, goal position (3, m; zeros in ML). MT adds a one-hot of the manipulation.

    ## Tasks
    `split` (0 train, 1 test), `environment` and `goal` as indices into Meta-World's classes and their 50 goals each,
    drawn with seed 0. Training: goals 0 to 39 of each training environment. Pools: search 40 to 42, selection 43 to 45
    of each; confirmation: for ML tasks of the benchmark's own test set (every fifth goal in ML1, every tenth of the five
    test environments in ML10 and ML45), for MT, which has no test set, goals 46 to 49.

    ## Rewards
    Meta-World's V2 reward, 0 to 10 a step. `infos["success"]` (N,) is 1 while the goal is reached; an episode is a success
    if it was so at any step.

    ## Starting State
    That of the task, always the same: start and goal are one draw.

    ## Episode End
    Never terminates; truncated after 500 steps.

    ## Arguments
    `make(num_envs, num_threads=n)`: n > 1 steps the worlds in n processes. Protocol of the benchmark:
    `adaptation_episodes` 10, `evaluation_episodes` 3.

    ## Anchors
    None exact.

    ## Provenance
    Meta-World+ (McLean et al. 2025), package metaworld 3.1.1, after Yu et al. 2019.
    """

    horizon = 500
    action = ActionInfo("gaussian", 4)
    param_names = ("split", "environment", "goal")
    reports_success = True
    engine_packages = ("metaworld", "gymnasium", "mujoco")
    adaptation_episodes = 10
    evaluation_episodes = 3

    def __init__(self, family_id: str) -> None:
        self.id = family_id
        self._kind, _, self._env_name = family_id.removeprefix("metaworld-").partition(":")
        if self._kind not in ("ml1", "ml10", "ml45", "mt10", "mt50"):
            raise unknown_name("task family", family_id, (*LISTED, "metaworld-ml1:<task>"))

    def check(self) -> None:
        metaworld = load_metaworld()
        if self._kind == "ml1" and self._env_name not in metaworld.ML1.ENV_NAMES:
            raise unknown_name("Meta-World task", self._env_name, metaworld.ML1.ENV_NAMES)

    @property
    def version(self) -> str:
        if importlib.util.find_spec("metaworld") is None:
            return f"{self.id} v{self.revision} (not installed: {INSTALL})"
        return super().version

    @property
    def docstring(self) -> str:
        lines = (MetaWorldFamily.__doc__ or "").splitlines()
        text = "\n".join(line.removeprefix("    ") for line in lines)
        return f"# {self.id}\n\n{text}\n\n## Version\n{self.version}\n"

    @property
    def num_train_environments(self) -> int:
        """How many manipulations the benchmark trains on; known without loading Meta-World."""
        return {"ml1": 1, "ml10": 10, "ml45": 45, "mt10": 10, "mt50": 50}[self._kind]

    @property
    def obs_dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return STATE_SIZE + (self.num_train_environments if self._kind.startswith("mt") else 0)

    @cached_property
    def _benchmark(self) -> Any:
        return _benchmark(self._kind, self._env_name)

    def world(self, task: Float64[ndarray, " P"]) -> tuple[type, Any]:
        """Meta-World's class and Task object of one task."""
        split, environment, goal = (int(number) for number in task)
        benchmark = self._benchmark
        classes = benchmark.test_classes if split else benchmark.train_classes
        tasks = benchmark.test_tasks if split else benchmark.train_tasks
        name = list(classes)[environment]
        # Meta-World lists the tasks environment by environment, GOALS each.
        chosen = tasks[environment * GOALS + goal]
        assert chosen.env_name == name
        return classes[name], chosen

    def check_tasks(self, tasks: Any, num_envs: int) -> Float64[ndarray, "N P"]:
        array = super().check_tasks(tasks, num_envs)
        most = np.array([1, max(self.num_train_environments, 5) - 1, GOALS - 1])
        if (array < 0).any() or (array > most).any() or (array != np.round(array)).any():
            raise InputError(f"tasks: allowed are whole numbers (split, environment, goal) from 0 to {most.tolist()}")
        return array

    def _grid(self, split: int, environments: int, goals: Any) -> Float64[ndarray, "M P"]:
        return np.array([(split, env, goal) for env in range(environments) for goal in goals], dtype=np.float64)

    def sample_tasks(self, rng: np.random.Generator, n: int) -> Float64[ndarray, "n P"]:
        check_count("n", n, 0)
        environments = rng.integers(self.num_train_environments, size=n)
        return np.stack((np.zeros(n), environments, rng.integers(40, size=n)), axis=1).astype(np.float64)

    def eval_tasks(self, pool: Pool) -> Float64[ndarray, "M P"]:
        check_pool(pool)
        if pool != "confirmation":
            return self._grid(0, self.num_train_environments, range(40, 43) if pool == "search" else range(43, 46))
        if self._kind.startswith("mt"):
            return self._grid(0, self.num_train_environments, range(46, 50))
        return self._grid(1, 1, range(0, GOALS, 5)) if self._kind == "ml1" else self._grid(1, 5, range(0, GOALS, 10))

    def make(self, num_envs: int, *, num_threads: int = 0, options: EnvOptions | None = None) -> TaskVectorEnv:
        self.refuse_changes(options)
        load_metaworld()
        return MetaWorldVectorEnv(self, num_envs, check_threads(num_threads))


class _Worlds:
    """Some worlds of Meta-World in this process. Environments are reused by class: making one takes 0.3 s."""

    def __init__(self, count: int) -> None:
        silence_mujoco()
        self._envs: list[Any] = [None] * count
        self._idle: dict[type, list[Any]] = {}

    def set_tasks(self, worlds: list[tuple[type, Any]]) -> None:
        for env in self._envs:
            if env is not None:
                self._idle.setdefault(type(env), []).append(env)
        for row, (env_class, task) in enumerate(worlds):
            idle = self._idle.get(env_class)
            self._envs[row] = idle.pop() if idle else env_class(reward_function_version="v2")
            self._envs[row].set_task(task)

    def start(self, rows: list[int]) -> list[ndarray]:
        return [self._envs[row].reset()[0] for row in rows]

    def step(self, actions: ndarray) -> list[tuple[ndarray, float, float]]:
        results = []
        for env, action in zip(self._envs, actions, strict=True):
            obs, reward, _, _, info = env.step(action)
            results.append((obs, float(reward), float(info["success"])))
        return results


def _serve(pipe: Connection, count: int) -> None:
    """The loop of a worker process: (method, argument) in, result out, None ends it."""
    worlds = _Worlds(count)
    while (message := pipe.recv()) is not None:
        method, argument = message
        pipe.send(getattr(worlds, method)(argument))


class _Remote:
    """`_Worlds` in a process of its own; `ask` and `answer` are apart so that all processes work at once."""

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, count), daemon=True)
        self._process.start()

    def ask(self, method: str, argument: Any) -> None:
        self._pipe.send((method, argument))

    def answer(self) -> Any:
        return self._pipe.recv()

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join()


class _Local:
    """`_Worlds` in this process, with the same two calls."""

    def __init__(self, count: int) -> None:
        self._worlds = _Worlds(count)
        self._result: Any = None

    def ask(self, method: str, argument: Any) -> None:
        self._result = getattr(self._worlds, method)(argument)

    def answer(self) -> Any:
        return self._result

    def close(self) -> None:
        pass


class MetaWorldVectorEnv(TaskVectorEnv):
    """N worlds of Meta-World, in this process or in `num_processes` others."""

    def __init__(self, family: MetaWorldFamily, num_envs: int, num_processes: int) -> None:
        super().__init__(family, num_envs, make_box(family.obs_dim), spaces.Box(-1.0, 1.0, (4,), np.float32))
        self.metaworld = family
        share = -(-num_envs // max(1, num_processes))
        self._shares = [range(first, min(first + share, num_envs)) for first in range(0, num_envs, share)]
        worker = _Remote if num_processes > 1 else _Local
        self._workers: list[_Remote | _Local] = [worker(len(share)) for share in self._shares]
        self._obs = np.zeros((num_envs, family.obs_dim))

    def _apply_tasks(self) -> None:
        worlds = [self.metaworld.world(task) for task in self.tasks]
        self._ask_all("set_tasks", [[worlds[row] for row in share] for share in self._shares])
        self._obs[:, STATE_SIZE:] = 0.0
        if self.family.obs_dim > STATE_SIZE:
            self._obs[np.arange(self.num_envs), STATE_SIZE + self.tasks[:, 1].astype(int)] = 1.0

    def _ask_all(self, method: str, arguments: list[Any]) -> list[Any]:
        for worker, argument in zip(self._workers, arguments, strict=True):
            worker.ask(method, argument)
        return [worker.answer() for worker in self._workers]

    def _start(self, worlds: ndarray) -> None:
        chosen = set(worlds.tolist())
        rows = [[row for row, world in enumerate(share) if world in chosen] for share in self._shares]
        for share, picked, started in zip(self._shares, rows, self._ask_all("start", rows), strict=True):
            for row, obs in zip(picked, started, strict=True):
                self._obs[share[row], :STATE_SIZE] = obs

    def _advance(self, actions: ndarray) -> tuple[ndarray, ndarray, dict[str, Any]]:
        results = self._ask_all("step", [actions[share.start : share.stop] for share in self._shares])
        rows = [row for part in results for row in part]
        self._obs[:, :STATE_SIZE] = np.array([obs for obs, _, _ in rows])
        rewards = np.array([reward for _, reward, _ in rows])
        success = np.array([success for _, _, success in rows])
        return rewards, np.zeros(self.num_envs, dtype=bool), {"success": success}

    def _observe(self) -> ndarray:
        return self._obs.copy()

    def close_extras(self, **kwargs: Any) -> None:
        for worker in self._workers:
            worker.close()


for _id in LISTED:
    register_family(MetaWorldFamily(_id))


@register_resolver("metaworld-ml1:reach-v3")
def one_manipulation(family_id: str) -> MetaWorldFamily | None:
    """The family of `metaworld-ml1:<task>`."""
    one = family_id.startswith("metaworld-ml1:") and "@" not in family_id  # with it: a cut of the family
    return MetaWorldFamily(family_id) if one else None
