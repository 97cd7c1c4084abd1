"""Second-order meta-updates per second and peak memory: ours against a plain loop over tasks, and torchopt if installed.

How it is measured. Every engine makes the same meta-update (same network, tasks, inner steps) in a process of its own,
on one thread; rounds are interleaved and medians are shown. Rates are per second of CPU time. Memory is the growth of the
process's peak resident size over one warm update. The second table shows how memory grows with the number of inner steps
for MAML, which keeps the path, and for iMAML, which does not; --out draws it. torchopt is measured where it is installed
(`pip install torchopt`).

Run: `python main.py bench maml [--only rates|memory] [--out FOLDER] [--quick] [--json]`.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.func import functional_call

from core.config import FrozenConfig
from experiments.bench.registered import register_bench
from meta_rl.meta_maml import MAMLConfig, MetaMAML, Task
from meta_rl.sinusoid import sinusoid_network, sinusoid_tasks

INNER_LR, OUTER_LR = 0.01, 1e-3
TARGET = 2.0  # ours against the plain loop, at 8 tasks
Engine = Literal["ours", "plain-loop", "torchopt"]


class MAMLRate(FrozenConfig):
    """One engine's speed and memory."""

    engine: str
    """ours, plain-loop or torchopt."""
    num_tasks: int
    """Tasks in a meta-batch."""
    inner_steps: int
    """Inner steps."""
    updates_per_s: float
    """Second-order meta-updates per second of CPU time, median over rounds."""
    peak_mb: float
    """Growth of the peak resident size over the updates, in MB."""


class MAMLMemory(FrozenConfig):
    """Peak memory of one meta-update by number of inner steps."""

    variant: str
    """maml or imaml."""
    inner_steps: int
    """Inner steps."""
    peak_mb: float
    """Growth of the peak resident size, in MB."""


class MAMLBenchmark(FrozenConfig):
    """The whole measurement."""

    rates: tuple[MAMLRate, ...]
    """A row an engine and number of tasks."""
    ratios: dict[str, float]
    """Ours divided by each other engine, by number of tasks."""
    memory: tuple[MAMLMemory, ...]
    """How memory grows with inner steps."""
    skipped: tuple[str, ...]
    """Engines that were not measured and why."""


def plain_loop(network: nn.Module, tasks: list[Task], steps: int, optimizer: torch.optim.Optimizer) -> None:
    """What one writes first: for each task, `functional_call` and `autograd.grad(create_graph=True)`."""
    optimizer.zero_grad()
    names, start = zip(*network.named_parameters(), strict=True)
    total = torch.zeros(())
    for support_x, support_y, query_x, query_y in tasks:
        weights = start
        for _ in range(steps):
            output = functional_call(network, dict(zip(names, weights, strict=True)), (support_x,))
            loss = nn.functional.mse_loss(output, support_y)
            gradients = torch.autograd.grad(loss, weights, create_graph=True)
            weights = tuple(w - INNER_LR * g for w, g in zip(weights, gradients, strict=True))
        output = functional_call(network, dict(zip(names, weights, strict=True)), (query_x,))
        total = total + nn.functional.mse_loss(output, query_y)
    (total / len(tasks)).backward()
    optimizer.step()


def _torchopt_update(network: nn.Module, tasks: list[Task], steps: int, optimizer: torch.optim.Optimizer) -> None:
    torchopt = importlib.import_module("torchopt")
    inner = torchopt.MetaSGD(network, lr=INNER_LR)
    optimizer.zero_grad()
    net_state = torchopt.extract_state_dict(network, by="reference", detach_buffers=True)
    optim_state = torchopt.extract_state_dict(inner, by="reference")
    total = torch.zeros(())
    for support_x, support_y, query_x, query_y in tasks:
        for _ in range(steps):
            inner.step(nn.functional.mse_loss(network(support_x), support_y))
        total = total + nn.functional.mse_loss(network(query_x), query_y)
        torchopt.recover_state_dict(network, net_state)
        torchopt.recover_state_dict(inner, optim_state)
    (total / len(tasks)).backward()
    optimizer.step()


def _updater(engine: str, num_tasks: int, steps: int, variant: str, width: int, shots: int) -> Callable[[], Any]:
    network = sinusoid_network(torch.Generator().manual_seed(0), width=width)
    tasks = sinusoid_tasks(torch.Generator().manual_seed(1), num_tasks, shots)
    if engine == "ours":
        config = MAMLConfig.model_validate({"variant": variant, "inner_steps": steps})
        # A wide network explodes at the usual rate; the rate changes neither time nor memory.
        maml = MetaMAML(network, INNER_LR if width <= 40 else 1e-5, OUTER_LR, config=config)
        return lambda: maml.meta_update(tasks)
    optimizer = torch.optim.Adam(network.parameters(), lr=OUTER_LR)
    update = plain_loop if engine == "plain-loop" else _torchopt_update
    return lambda: update(network, tasks, steps, optimizer)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _child(pipe: Any, arguments: tuple, seconds: float, rounds: int) -> None:
    """Measure one engine in this process: send (rates, MB)."""
    torch.set_num_threads(1)
    update = _updater(*arguments)
    before = _peak_mb()
    update()
    grown = _peak_mb() - before
    rates = []
    for _ in range(rounds):
        count, start = 0, time.process_time()
        while count < 2 or time.process_time() - start < seconds:
            update()
            count += 1
        rates.append(count / (time.process_time() - start))
    pipe.send((rates, grown))
    pipe.close()


def _measure(arguments: tuple, seconds: float, rounds: int) -> tuple[list[float], float]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, arguments, seconds, rounds))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()


def bench_maml(
    *, num_tasks: Sequence[int] = (1, 8, 25), quick: bool = False, only: Literal["rates", "memory"] | None = None
) -> MAMLBenchmark:
    """Measure the engines that are installed; `only` one of the two tables where asked for."""
    seconds, rounds, steps = (0.3, 2, 1) if quick else (1.0, 5, 1)
    skipped = []
    engines = ["ours", "plain-loop"]
    if importlib.util.find_spec("torchopt"):
        engines.append("torchopt")
    else:
        skipped.append("torchopt: not installed (pip install torchopt)")
    rates, ratios = [], {}
    for count in num_tasks if only != "memory" else ():
        medians = {}
        for engine in engines:
            measured, grown = _measure((engine, count, steps, "maml", 40, 10), seconds, rounds)
            medians[engine] = statistics.median(measured)
            rates.append(
                MAMLRate(
                    engine=engine,
                    num_tasks=count,
                    inner_steps=steps,
                    updates_per_s=medians[engine],
                    peak_mb=grown,
                )
            )
        for engine in engines[1:]:
            ratios[f"ours / {engine}, {count} tasks"] = medians["ours"] / medians[engine]
    memory = []
    # A wide network and many points, so that the graph of the inner loop outweighs the interpreter's own growth.
    for variant in ("maml", "imaml"):
        for inner in () if only == "rates" else (1, 16) if quick else (1, 8, 16, 32):
            _, grown = _measure(("ours", 1, inner, variant, 512, 2000), 0.0, 1)
            memory.append(MAMLMemory(variant=variant, inner_steps=inner, peak_mb=grown))
    return MAMLBenchmark(rates=tuple(rates), ratios=ratios, memory=tuple(memory), skipped=tuple(skipped))


def as_text(benchmark: MAMLBenchmark) -> str:
    """The measurement as plain lines."""
    lines = [f"{'engine':12s} {'tasks':>5s} {'updates/s':>10s} {'peak MB':>8s}"]
    for row in benchmark.rates:
        lines.append(f"{row.engine:12s} {row.num_tasks:5d} {row.updates_per_s:10,.1f} {row.peak_mb:8.1f}")
    lines.append("")
    for name, value in benchmark.ratios.items():
        goal = name == "ours / plain-loop, 8 tasks"
        verdict = f"   target {TARGET:g}: {'reached' if value >= TARGET else 'missed'}" if goal else ""
        lines.append(f"{name:32s} {value:6.2f}{verdict}")
    lines += ["", f"{'variant':12s} {'inner steps':>11s} {'peak MB':>8s}"]
    lines += [f"{row.variant:12s} {row.inner_steps:11d} {row.peak_mb:8.1f}" for row in benchmark.memory]
    return "\n".join([*lines, *(f"skipped {text}" for text in benchmark.skipped)])


def draw_memory(rows: Sequence[MAMLMemory], path: Path) -> None:
    """Peak memory by inner steps, one line a variant, as an SVG."""
    figure = Figure(figsize=(5.0, 3.2), layout="constrained")
    axes = figure.subplots()
    for variant, label in (("maml", "MAML"), ("imaml", "iMAML")):
        own = [row for row in rows if row.variant == variant]
        axes.plot([row.inner_steps for row in own], [row.peak_mb for row in own], marker="o", markersize=4, label=label)
    axes.set(xlabel="inner steps", ylabel="growth of the peak, MB", ylim=(0, None))
    axes.grid(alpha=0.25)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "maml"}):  # the same numbers give the same file
        figure.savefig(path, metadata={"Date": None, "Creator": None})


@register_bench("maml")
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench maml", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short rounds, for a first look")
    parser.add_argument("--only", choices=("rates", "memory"), help="one of the two tables")
    parser.add_argument("--out", type=Path, help="draw maml_memory.svg in this folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    benchmark = bench_maml(quick=options.quick, only=options.only)
    if options.out is not None and benchmark.memory:
        draw_memory(benchmark.memory, options.out / "maml_memory.svg")
    print(benchmark.model_dump_json(indent=1) if options.json else as_text(benchmark))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
