"""The whole recurrent-PPO training loop in env steps per second: ours against sb3-contrib's RecurrentPPO.

How it is measured. HalfCheetah, 200 steps an episode, equal width, worlds, steps an update, epochs and minibatches, one
torch thread; each engine trains for a few updates in a process of its own after one update that is not counted, and rates
are per second of CPU time. sb3-contrib steps Gymnasium's environments (its own way of running many) with an LSTM, which is
the only memory that it has.

Run: `python -m experiments.bench.train [--quick] [--json] [model ...]`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.config import FrozenConfig
from experiments.bench.registered import register_bench

FAMILY, WORLDS, HORIZON, EPOCHS, MINIBATCHES, WIDTH = "halfcheetah-vel", 32, 200, 8, 8, 64
TARGET = 8.0


class TrainRate(FrozenConfig):
    """One engine's speed."""

    engine: str
    """`ours:<model>` or sb3-contrib."""
    steps_per_s: float
    """Env steps per second of CPU time: median over updates."""
    lowest: float
    """The slowest update."""
    highest: float
    """The fastest update."""
    parameters: int
    """Trainable numbers."""


class TrainBenchmark(FrozenConfig):
    """The whole measurement."""

    rates: tuple[TrainRate, ...]
    """A row an engine."""
    ratios: dict[str, float]
    """Each of ours divided by sb3-contrib's."""
    skipped: tuple[str, ...]
    """What was not measured and why."""


def _ours(model: str, updates: int) -> tuple[list[float], int]:
    from core.policy import PolicyConfig
    from meta_rl.learner import build_learner, parse_learner_config

    policy = PolicyConfig.model_validate({"model": {"kind": model, "hidden_dim": WIDTH}})
    config = parse_learner_config(
        {"kind": "rl2", "num_worlds": WORLDS, "epochs": EPOCHS, "minibatches": MINIBATCHES, "episodes_per_trial": 1}
    )
    steps = WORLDS * HORIZON
    learner: Any = build_learner(FAMILY, policy, config, env_steps=steps * (updates + 1), seed=0)
    reports, rates = learner.train(), []
    next(reports)  # compiles what is compiled
    for _ in range(updates):
        start = time.process_time()
        next(reports)
        rates.append(steps / (time.process_time() - start))
    return rates, sum(p.numel() for p in learner.policy.parameters())


def _sb3(updates: int) -> tuple[list[float], int]:
    import gymnasium

    from env_runner.batched_mujoco import silence_mujoco

    silence_mujoco()
    sb3 = importlib.import_module("sb3_contrib")
    vec_env = importlib.import_module("stable_baselines3.common.vec_env")
    callbacks = importlib.import_module("stable_baselines3.common.callbacks")

    class Clock(callbacks.BaseCallback):
        """Notes the CPU time at the start of every rollout."""

        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []

        def _on_rollout_start(self) -> None:
            self.times.append(time.process_time())

        def _on_step(self) -> bool:
            return True

    def make() -> gymnasium.Env:
        return gymnasium.make("HalfCheetah-v5", max_episode_steps=HORIZON)

    worlds = vec_env.VecNormalize(vec_env.DummyVecEnv([make] * WORLDS))
    model = sb3.RecurrentPPO(
        "MlpLstmPolicy",
        worlds,
        n_steps=HORIZON,
        batch_size=WORLDS * HORIZON // MINIBATCHES,
        n_epochs=EPOCHS,
        policy_kwargs={
            "lstm_hidden_size": WIDTH,
            "net_arch": [WIDTH],
            "enable_critic_lstm": False,
            "shared_lstm": True,
        },
        seed=0,
        device="cpu",
    )
    clock = Clock()
    model.learn(WORLDS * HORIZON * (updates + 1), callback=clock)
    clock.times.append(time.process_time())
    spans = np.diff(np.array(clock.times))[1:]
    return [WORLDS * HORIZON / float(s) for s in spans], sum(p.numel() for p in model.policy.parameters())


def _child(pipe: Any, engine: str, updates: int) -> None:
    import torch

    torch.set_num_threads(1)
    pipe.send(_sb3(updates) if engine == "sb3-contrib" else _ours(engine, updates))
    pipe.close()


def _measure(engine: str, updates: int) -> tuple[list[float], int]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, engine, updates))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()


def bench_train(models: Sequence[str] = ("s5", "lru", "lstm"), *, quick: bool = False) -> TrainBenchmark:
    """Measure our loop with each model, and sb3-contrib's where it is installed."""
    updates = 2 if quick else 6
    rows, skipped = [], []
    engines = list(models)
    if importlib.util.find_spec("sb3_contrib"):
        engines.append("sb3-contrib")
    else:
        skipped.append("sb3-contrib: not installed (pip install sb3-contrib)")
    for engine in engines:
        rates, parameters = _measure(engine, updates)
        rows.append(
            TrainRate(
                engine=engine if engine == "sb3-contrib" else f"ours:{engine}",
                steps_per_s=statistics.median(rates),
                lowest=min(rates),
                highest=max(rates),
                parameters=parameters,
            )
        )
    theirs = next((row.steps_per_s for row in rows if row.engine == "sb3-contrib"), None)
    ratios = {} if theirs is None else {f"{row.engine} / sb3-contrib": row.steps_per_s / theirs for row in rows[:-1]}
    return TrainBenchmark(rates=tuple(rows), ratios=ratios, skipped=tuple(skipped))


def as_text(benchmark: TrainBenchmark) -> str:
    """The measurement as plain lines."""
    lines = [f"{FAMILY}, {WORLDS} worlds, {EPOCHS} epochs x {MINIBATCHES} minibatches, width {WIDTH}, one thread", ""]
    lines.append(f"{'engine':16s} {'parameters':>10s} {'steps/s':>9s}   range")
    for row in benchmark.rates:
        lines.append(
            f"{row.engine:16s} {row.parameters:10,d} {row.steps_per_s:9,.0f}   {row.lowest:,.0f} to {row.highest:,.0f}"
        )
    lines.append("")
    for name, value in benchmark.ratios.items():
        lines.append(f"{name:32s} {value:6.2f}   target {TARGET:g}: {'reached' if value >= TARGET else 'missed'}")
    return "\n".join([*lines, *(f"skipped {text}" for text in benchmark.skipped)])


@register_bench("train")
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench train", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=["s5", "lru", "lstm"], help="models to measure")
    parser.add_argument("--quick", action="store_true", help="two updates each, for a first look")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    benchmark = bench_train(options.models, quick=options.quick)
    print(benchmark.model_dump_json(indent=1) if options.json else as_text(benchmark))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
