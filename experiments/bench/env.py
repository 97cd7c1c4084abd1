"""Control steps per second: our batched worlds against Gymnasium's vector environments, EnvPool and the bare native call.

How it is measured. All engines get uniform random actions and reset themselves. One round measures every engine once,
one after another, and rounds are repeated, so that whatever else the machine does hits all of them alike; medians over
rounds are shown. One-core rates are steps per second of CPU time, which on an idle machine is the wall clock and on a busy
one leaves other programs out; a ratio of two of them is the median of the rounds' ratios. Several-core rates are wall
clock, which other programs can only slow, so a ratio with one of them compares the fastest rounds.

The limit replays, from recorded states and controls of the very steps that our environment makes, only MuJoCo's own
work on Gymnasium's unchanged model: the `mujoco.rollout` call, or for Ant and Humanoid, whose observations need MuJoCo's
inner arrays, the `mj_step(nstep=frame_skip)` calls.

Run: `python -m experiments.bench.env [--quick]`.
"""

# mujoco is compiled and ships no type stubs.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import gymnasium
import mujoco
import mujoco.rollout
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from numpy import ndarray

from core.config import FrozenConfig
from core.errors import bad_value
from env_runner.batched_mujoco import (
    FULL_PHYSICS,
    RolloutPhysics,
    available_cores,
    silence_mujoco,
)
from env_runner.locomotion import FiniteLocomotion, MujocoTaskEnv
from env_runner.robots import Ant, HalfCheetah, Humanoid, Robot, Walker2d
from experiments.bench.registered import register_bench
from experiments.runs.provenance import processor


class Throughput(FrozenConfig):
    """How fast one engine steps one robot."""

    robot: str
    """HalfCheetah, Ant, Walker2d or Humanoid."""
    engine: str
    """limit (MuJoCo alone), ours, gymnasium-sync, gymnasium-async, envpool; `-all-cores` where several are used.

    ours-256 is ours with as many worlds as ours-all-cores, on one core and by the wall clock, to compare it with.
    """
    num_envs: int
    """Worlds stepped together."""
    cores: int
    """Threads or processes that step them."""
    clock: Literal["cpu", "wall"]
    """What the rate is per second of: CPU time (one core) or wall clock."""
    steps_per_s: float
    """Control steps of all worlds per second: median over rounds."""
    lowest: float
    """The slowest round."""
    highest: float
    """The fastest round."""


class Ratio(FrozenConfig):
    """One rate divided by another, of the same robot: by rounds for one core, of the fastest rounds for several."""

    robot: str
    """Which robot."""
    name: str
    """What is divided by what."""
    value: float
    """The ratio."""
    target: float | None
    """What HalfCheetah is to reach, where there is a target."""

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None without one."""
        return None if self.target is None else self.value >= self.target


class EnvBenchmark(FrozenConfig):
    """The whole measurement."""

    rows: tuple[Throughput, ...]
    """A rate an engine and robot."""
    ratios: tuple[Ratio, ...]
    """Ours against the others."""
    rounds: int
    """Rounds measured."""
    machine: str
    """Processor and number of cores."""
    load: float
    """Programs that wanted a core in the minute before (the load average); above 0, wall-clock rates are too low."""
    versions: str
    """Versions of the packages measured."""
    skipped: tuple[str, ...]
    """Engines that were not measured and why."""


class StockFamily(FiniteLocomotion):
    """Gymnasium's own task of a robot: stock reward, 1,000 steps."""

    horizon = 1000
    param_names = ("task",)
    tasks = ((0.0,),)

    def __init__(self, robot: Robot) -> None:
        self.id, self.robot = robot.gymnasium_id, robot
        super().__init__()


ROBOTS: dict[str, Robot] = {robot.name: robot for robot in (HalfCheetah(), Ant(), Walker2d(), Humanoid())}
PER_CORE_ENVS, ALL_CORES_ENVS, GYMNASIUM_ENVS = 64, 256, 16
SEED = 0
SHARE = "time in MuJoCo / whole step"
"""What is left to one is reward, observation, autoreset and checks."""
TARGETS = {
    SHARE: 0.9,
    "ours / limit": 0.85,
    "ours / envpool": 1.5,
    "ours / gymnasium-sync": 3.0,
    "ours-all-cores / ours": 1.6,
}


def bench_env(
    *,
    robots: Sequence[str] = tuple(ROBOTS),
    rounds: int = 5,
    seconds: float = 1.0,
    quick: bool = False,
    progress: Callable[[str], None] | None = None,
) -> EnvBenchmark:
    """Measure the engines that are installed.

    rounds: how often each is measured. seconds: about how long one measurement of our engine lasts; all engines make
    about as long a run. quick: two rounds of 0.2 s and no processes of Gymnasium's. progress: told what comes next.
    Raises InputError for an unknown robot or fewer than one round.
    """
    if unknown := set(robots) - set(ROBOTS):
        raise bad_value("robots", sorted(unknown), ", ".join(ROBOTS))
    if rounds < 1:
        raise bad_value("rounds", rounds, "at least 1")
    if quick:
        rounds, seconds = min(rounds, 2), 0.2
    silence_mujoco()
    rows: list[Throughput] = []
    ratios: list[Ratio] = []
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    skipped = [] if importlib.util.find_spec("envpool") else ['envpool: not installed (pip install -e ".[bench]")']
    if quick:
        skipped.append("gymnasium-async: left out of a quick run")
    for name in robots:
        got, num_envs, cores, shares = _bench_robot(name, rounds, seconds, quick, progress or (lambda text: None))
        for engine, rates in got.items():
            rows.append(
                Throughput(
                    robot=name,
                    engine=engine,
                    num_envs=num_envs[engine],
                    cores=cores[engine],
                    clock=clock_of(engine),
                    steps_per_s=statistics.median(rates),
                    lowest=min(rates),
                    highest=max(rates),
                )
            )
        for text in (
            "ours / limit",
            "ours / envpool",
            "ours / gymnasium-sync",
            "ours-all-cores / ours",
            "ours-all-cores / gymnasium-async",
            "ours-all-cores / envpool-all-cores",
        ):
            above, below = text.split(" / ")
            below_key = "ours-256" if text == "ours-all-cores / ours" else below
            if above in got and below_key in got:
                if clock_of(above) == "wall":
                    value = max(got[above]) / max(got[below_key])
                else:
                    value = statistics.median(a / b for a, b in zip(got[above], got[below_key], strict=True))
                target = TARGETS.get(text) if name == "HalfCheetah" else None
                ratios.append(Ratio(robot=name, name=text, value=value, target=target))
        target = TARGETS[SHARE] if name == "HalfCheetah" else None
        ratios.append(Ratio(robot=name, name=SHARE, value=statistics.median(shares), target=target))
    packages = ["mujoco", "gymnasium", "numpy", *(["envpool"] if importlib.util.find_spec("envpool") else [])]
    return EnvBenchmark(
        rows=tuple(rows),
        ratios=tuple(ratios),
        rounds=rounds,
        load=load,
        machine=f"{processor()}, {available_cores()} cores",
        versions=", ".join(f"{package} {_version(package)}" for package in packages),
        skipped=tuple(skipped),
    )


def clock_of(engine: str) -> Literal["cpu", "wall"]:
    """Which clock an engine is measured by: wall where several cores work, and for what is compared with that."""
    return "wall" if engine in ("ours-256", "ours-all-cores", "envpool-all-cores", "gymnasium-async") else "cpu"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(unknown version)"


def _bench_robot(
    name: str, rounds: int, seconds: float, quick: bool, progress: Callable[[str], None]
) -> tuple[dict[str, list[float]], dict[str, int], dict[str, int], list[float]]:
    """Rates of every engine (a list over rounds), its number of worlds and of cores; shares of time in MuJoCo."""
    robot = ROBOTS[name]
    family = StockFamily(robot)
    threads = min(2, available_cores())
    # A first short run says how many steps make `seconds`.
    env = _ours(family, PER_CORE_ENVS, 0)
    trial = _run(env, _actions(env, 10), time.perf_counter)
    env.close()
    steps = max(5, int(trial * seconds / PER_CORE_ENVS))
    engines: dict[str, tuple[Callable[[], float], int, int]] = {}

    def add(engine: str, num_envs: int, cores: int, measure: Callable[[], float]) -> None:
        engines[engine] = (measure, num_envs, cores)

    recorded = _record(family, PER_CORE_ENVS, steps)
    add("limit", PER_CORE_ENVS, 1, lambda: _limit(family, recorded))
    add("ours", PER_CORE_ENVS, 1, lambda: _measure_ours(family, PER_CORE_ENVS, 0, steps, time.process_time))
    long = max(3, steps * PER_CORE_ENVS // ALL_CORES_ENVS)
    if threads > 1:
        add("ours-256", ALL_CORES_ENVS, 1, lambda: _measure_ours(family, ALL_CORES_ENVS, 0, long, time.perf_counter))
        add(
            "ours-all-cores",
            ALL_CORES_ENVS,
            threads,
            lambda: _measure_ours(family, ALL_CORES_ENVS, threads, 2 * long, time.perf_counter),
        )
    slow = max(5, steps * PER_CORE_ENVS // (4 * GYMNASIUM_ENVS))
    add("gymnasium-sync", GYMNASIUM_ENVS, 1, lambda: _gymnasium(robot, SyncVectorEnv, slow, time.process_time))
    if not quick:
        add(
            "gymnasium-async",
            GYMNASIUM_ENVS,
            threads,
            lambda: _gymnasium(robot, AsyncVectorEnv, slow, time.perf_counter),
        )
    if importlib.util.find_spec("envpool"):
        add("envpool", PER_CORE_ENVS, 1, lambda: _envpool(robot, PER_CORE_ENVS, 1, steps // 2 + 1, time.process_time))
        add(
            "envpool-all-cores",
            ALL_CORES_ENVS,
            threads,
            lambda: _envpool(robot, ALL_CORES_ENVS, threads, long, time.perf_counter),
        )
    rates: dict[str, list[float]] = {engine: [] for engine in engines}
    shares = []
    for number in range(rounds):
        shares.append(_share_of_mujoco(family, PER_CORE_ENVS, steps))
        for engine, (measure, _, _) in engines.items():
            progress(f"{name}: round {number + 1} of {rounds}, {engine}")
            rates[engine].append(measure())
    num_envs = {engine: entry[1] for engine, entry in engines.items()}
    return rates, num_envs, {engine: entry[2] for engine, entry in engines.items()}, shares


def _ours(family: StockFamily, num_envs: int, num_threads: int) -> MujocoTaskEnv:
    env = MujocoTaskEnv(family, num_envs, num_threads, None)
    env.reset(seed=SEED)
    return env


def _actions(env: Any, steps: int) -> ndarray:
    space = env.single_action_space
    shape = (steps, env.num_envs, *space.shape)
    return np.random.default_rng(SEED).uniform(space.low, space.high, shape)


def _run(env: Any, actions: ndarray, clock: Callable[[], float]) -> float:
    """Control steps per second of `clock`."""
    begin = clock()
    for action in actions:
        env.step(action)
    return actions.shape[0] * env.num_envs / (clock() - begin)


def _measure_ours(
    family: StockFamily, num_envs: int, num_threads: int, steps: int, clock: Callable[[], float]
) -> float:
    env = _ours(family, num_envs, num_threads)
    rate = _run(env, _actions(env, steps), clock)
    env.close()
    return rate


def _share_of_mujoco(family: StockFamily, num_envs: int, steps: int) -> float:
    """CPU time inside the physics (controls in, MuJoCo, states out) divided by that of whole steps."""
    env = _ours(family, num_envs, 0)
    inside, physics_step = [0.0], env.physics.step

    def timed(ctrl: ndarray) -> Any:
        begin = time.process_time()
        unstable = physics_step(ctrl)
        inside[0] += time.process_time() - begin
        return unstable

    env.physics.step = timed
    rate = _run(env, _actions(env, steps), time.process_time)
    env.close()
    return inside[0] * rate / (steps * num_envs)


def _record(family: StockFamily, num_envs: int, steps: int) -> list[tuple[Any, ...]]:
    """What MuJoCo is asked to do in `steps` steps of ours: states and controls, or restarts and controls."""
    env = _ours(family, num_envs, 0)
    physics, calls = env.physics, []
    started: list[tuple[ndarray, ndarray, ndarray]] = [(np.arange(num_envs), physics.qpos.copy(), physics.qvel.copy())]
    start = physics.start

    def note(worlds: ndarray, qpos: ndarray, qvel: ndarray) -> None:
        started.append((worlds.copy(), qpos.copy(), qvel.copy()))
        start(worlds, qpos, qvel)

    physics.start = note
    for action in _actions(env, steps):
        if isinstance(physics, RolloutPhysics):
            calls.append((physics.full_state.copy(), np.repeat(action[:, None], family.robot.frame_skip, axis=1)))
        else:
            calls.append((list(started), action))
            started.clear()
        env.step(action)
    env.close()
    return calls


def _limit(family: StockFamily, calls: list[tuple[Any, ...]]) -> float:
    """MuJoCo's own work of the recorded steps, per second of CPU time."""
    model, skip = copy.copy(family.base_model), family.robot.frame_skip
    model.opt.disableflags = 0  # as Gymnasium loads it: ours leaves out a search that changes no number
    num_envs = len(calls[0][1])
    if family.robot.derived_fields:
        return _limit_of_loop(model, skip, num_envs, calls)
    pool, data, models = mujoco.rollout.Rollout(nthread=0), [mujoco.MjData(model)], [model] * num_envs
    path = np.zeros((num_envs, skip, mujoco.mj_stateSize(model, FULL_PHYSICS)))
    begin = time.process_time()
    for state, ctrl in calls:
        pool.rollout(models, data, state, ctrl, skip_checks=True, nstep=skip, state=path)
    rate = len(calls) * num_envs / (time.process_time() - begin)
    pool.close()
    return rate


def _limit_of_loop(model: mujoco.MjModel, skip: int, num_envs: int, calls: list[tuple[Any, ...]]) -> float:
    worlds = [mujoco.MjData(model) for _ in range(num_envs)]
    begin = time.process_time()
    for started, action in calls:
        for rows, qpos, qvel in started:
            for row, world in enumerate(rows.tolist()):
                mujoco.mj_resetData(model, worlds[world])
                worlds[world].qpos[:], worlds[world].qvel[:] = qpos[row], qvel[row]
        for data, ctrl in zip(worlds, action, strict=True):
            data.ctrl[:] = ctrl
            mujoco.mj_step(model, data, nstep=skip)
    return len(calls) * num_envs / (time.process_time() - begin)


class _MakeSilently:
    """Makes one Gymnasium environment, in a process of its own if need be, without MuJoCo's chatter."""

    def __init__(self, env_id: str) -> None:
        self.env_id = env_id

    def __call__(self) -> gymnasium.Env:
        silence_mujoco()
        return gymnasium.make(self.env_id)


def _gymnasium(robot: Robot, kind: type, steps: int, clock: Callable[[], float]) -> float:
    env = kind([_MakeSilently(robot.gymnasium_id)] * GYMNASIUM_ENVS)
    env.reset(seed=SEED)
    actions = _actions(env, steps).astype(np.float32)
    _run(env, actions[:3], clock)
    rate = _run(env, actions, clock)
    env.close()
    return rate


def _envpool(robot: Robot, num_envs: int, num_threads: int, steps: int, clock: Callable[[], float]) -> float:
    envpool = importlib.import_module("envpool")
    env = envpool.make_gymnasium(robot.gymnasium_id, num_envs=num_envs, num_threads=num_threads, seed=SEED)
    env.reset()
    low, high = env.action_space.low, env.action_space.high
    actions = np.random.default_rng(SEED).uniform(low, high, (steps, num_envs, *low.shape))
    for action in actions[:3]:
        env.step(action)
    begin = clock()
    for action in actions:
        env.step(action)
    rate = steps * num_envs / (clock() - begin)
    env.close()
    return rate


def as_text(benchmark: EnvBenchmark) -> str:
    """The measurement as plain lines."""
    lines = [
        f"{benchmark.machine}, load {benchmark.load:.1f}; {benchmark.versions}; median of {benchmark.rounds} rounds",
        "",
    ]
    lines.append(f"{'robot':12s} {'engine':20s} {'worlds':>6s} {'cores':>5s} {'steps/s':>10s}   range")
    for row in benchmark.rows:
        lines.append(
            f"{row.robot:12s} {row.engine:20s} {row.num_envs:6d} {row.cores:5d} {row.steps_per_s:10,.0f}   "
            f"{row.lowest:,.0f} to {row.highest:,.0f} ({row.clock})"
        )
    lines.append("")
    for ratio in benchmark.ratios:
        target = (
            "" if ratio.target is None else f"   target {ratio.target:g}: {'reached' if ratio.reached else 'missed'}"
        )
        lines.append(f"{ratio.robot:12s} {ratio.name:36s} {ratio.value:6.2f}{target}")
    return "\n".join([*lines, *(f"skipped {text}" for text in benchmark.skipped)])


@register_bench("env")
def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m experiments.bench.env [--quick] [--json] [robot ...]`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    robots = [word for word in words if not word.startswith("--")] or list(ROBOTS)
    benchmark = bench_env(
        robots=robots, quick="--quick" in words, progress=lambda text: print(text, file=sys.stderr, flush=True)
    )
    print(benchmark.model_dump_json(indent=1) if "--json" in words else as_text(benchmark))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
