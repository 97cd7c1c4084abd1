"""Sinusoid regression with MAML, FOMAML, ANIL and Reptile: error by inner steps, with intervals, a table and a curve.

How it is measured. Three seeds of 5-shot and three of 10-shot are trained side by side (`meta_rl.sinusoid`, copies), with
the settings of Finn et al. 2017, section 5.1: 25 tasks an update, Adam 1e-3, inner rate 0.01, one inner step. Theirs are 70,000
updates; with --decay the outer rate falls to zero, which takes the last updates' noise out. Reptile trains on the support points alone, with 5 inner steps, and with 0.005, since 0.01 explodes on some of its tasks. Errors are of 600 fresh
tasks a seed, 100 query points each; the interval is the normal one over all of them. On a few tasks gradient steps beyond the one of
training run away; they are counted beside the mean of the others. The zero predictor always answers 0.

Run: `python main.py bench sinusoid [--algorithms NAME ...] [--updates N] [--decay] [--out FOLDER] [--quick] [--json]`.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import TypeAdapter

from core.config import FrozenConfig
from core.seeding import torch_stream
from experiments.bench.registered import register_bench
from meta_rl.meta_maml import MAMLConfig, MetaMAML
from meta_rl.sinusoid import CopiedNetworks, score_on_sinusoids, sinusoid_network, train_on_sinusoids

SEEDS, STEPS, TASKS = 3, 10, 600
EXPLODED = 100.0  # mean squared error; a constant 0 is never above 25
SHOTS = (5, 10)
PUBLISHED = {5: ((0.5, 0.7), (0.3, 0.4)), 10: ((0.3, 0.5), (0.1, 0.2))}
"""By shots: the range printed for MAML after one step, and after more (read off published curves)."""
ALGORITHMS: dict[str, tuple[float, MAMLConfig]] = {
    "MAML": (0.01, MAMLConfig()),
    "FOMAML": (0.01, MAMLConfig(variant="fomaml")),
    "ANIL": (0.01, MAMLConfig(variant="anil")),
    "Reptile": (0.005, MAMLConfig(variant="reptile", inner_steps=5)),
}


class SinusoidRow(FrozenConfig):
    """One algorithm at one number of shots, over seeds and fresh tasks."""

    algorithm: str
    """A key of ALGORITHMS."""
    shots: int
    """Support points."""
    updates: int
    """Meta-updates of training."""
    decay: bool = False
    """Whether the outer rate fell to zero."""
    error: tuple[float | None, ...]
    """Mean squared error after 0, 1, ... inner steps over the tasks that have not exploded; None where all have."""
    half_width: tuple[float | None, ...]
    """Half of the 95 % interval of each, over the same tasks."""
    exploded: tuple[int, ...]
    """Tasks of all seeds whose error is above 100 or not finite after so many steps."""
    tasks: int
    """Tasks of all seeds."""
    by_seed: tuple[tuple[float | None, ...], ...]
    """The same errors seed by seed."""
    zero_predictor: float
    """Error of answering 0."""
    cpu_s: float
    """CPU seconds of training, both numbers of shots and all seeds together."""


def bench_sinusoid(
    *, updates: int, algorithms: Sequence[str] = tuple(ALGORITHMS), decay: bool = False
) -> Iterator[SinusoidRow]:
    """Train and score one algorithm after the other."""
    shots = [count for count in SHOTS for _ in range(SEEDS)]
    for name in algorithms:
        inner_lr, config = ALGORITHMS[name]
        networks = [sinusoid_network(torch_stream(seed, "sinusoid", "init")) for _ in SHOTS for seed in range(SEEDS)]
        maml = MetaMAML(CopiedNetworks(networks), inner_lr=inner_lr, outer_lr=1e-3, config=config)
        start = time.process_time()
        train_on_sinusoids(maml, updates=updates, shots=shots, decay=decay)
        cpu_s = time.process_time() - start
        result = score_on_sinusoids(maml, shots=shots, steps=STEPS, num_tasks=TASKS)
        for index, count in enumerate(SHOTS):
            own = slice(index * SEEDS, (index + 1) * SEEDS)
            errors = result.errors[:, :, own]
            errors = np.where(errors < EXPLODED, errors, np.nan)
            pooled = errors.transpose(0, 2, 1).reshape(-1, STEPS + 1)
            exploded = np.isnan(pooled).sum(0)
            mean, half = _mean_and_half_width(pooled)
            yield SinusoidRow(
                algorithm=name,
                shots=count,
                updates=updates,
                decay=decay,
                error=mean,
                half_width=half,
                exploded=tuple(exploded.tolist()),
                tasks=len(pooled),
                by_seed=tuple(_mean_and_half_width(errors[:, :, seed])[0] for seed in range(SEEDS)),
                zero_predictor=float(result.zero_predictor[:, own].mean()),
                cpu_s=cpu_s,
            )


def _mean_and_half_width(errors: np.ndarray) -> tuple[tuple[float | None, ...], tuple[float | None, ...]]:
    """Mean and half of the normal 95 % interval of each column of errors (tasks, steps + 1), NaN left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column of NaN
        mean = np.nanmean(errors, 0)
        half = 1.96 * np.nanstd(errors, 0, ddof=1) / np.sqrt((~np.isnan(errors)).sum(0))
    return _finite(mean), _finite(half)


def _finite(values: np.ndarray) -> tuple[float | None, ...]:
    return tuple(value if np.isfinite(value) else None for value in values.tolist())


def as_text(rows: Sequence[SinusoidRow]) -> str:
    """The measurement as a Markdown table."""
    lines = [
        "| | updates | shots | before | 1 step | 5 steps | 10 steps | seeds, 10 steps | exploded | zero predictor |",
        "|---" * 10 + "|",
    ]
    for row in rows:
        cells = []
        for error, half in ((row.error[k], row.half_width[k]) for k in (0, 1, 5, STEPS)):
            cells.append("explodes" if error is None or half is None else f"{error:.2f} ± {half:.2f}")
        ends = sorted(np.inf if end is None else end for end in (seed[STEPS] for seed in row.by_seed))
        seeds = f"{ends[0]:.2f} to {ends[-1]:.2f}"
        lost = f"{row.exploded[STEPS]} of {row.tasks:,}"
        lines.append(
            f"| {row.algorithm} | {row.updates:,}{' (decay)' if row.decay else ''} | {row.shots} | {' | '.join(cells)} | {seeds} | {lost} | {row.zero_predictor:.2f} |"
        )
    for shots, ((low, high), (low_more, high_more)) in PUBLISHED.items():
        published = f"{low} to {high} | {low_more} to {high_more}, after more than one"
        lines.append(f"| published, MAML | 70,000 | {shots} | | {published} | | | | 4.25 |")
    return "\n".join(lines)


def draw(rows: Sequence[SinusoidRow], path: Path) -> None:
    """Error by inner steps, a panel for each number of shots, as an SVG."""
    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    panels = figure.subplots(1, len(SHOTS), sharey=True)
    steps = np.arange(STEPS + 1)
    for panel, shots in zip(panels, SHOTS, strict=True):
        for row in (row for row in rows if row.shots == shots):
            error, half = np.array(row.error, dtype=float), np.array(row.half_width, dtype=float)
            (line,) = panel.plot(steps, error, marker="o", markersize=3, label=row.algorithm)
            panel.fill_between(steps, error - half, error + half, color=line.get_color(), alpha=0.2, linewidth=0)
        zero = np.mean([row.zero_predictor for row in rows])
        panel.axhline(zero, color="grey", linestyle=":", label="zero predictor")
        after_one, after_more = PUBLISHED[shots]
        panel.fill_between([0.7, 1.3], *after_one, color="black", alpha=0.18, linewidth=0, label="published, MAML")
        panel.fill_between([4.5, STEPS + 0.3], *after_more, color="black", alpha=0.18, linewidth=0)
        panel.set(title=f"{shots} shots", xlabel="inner gradient steps", yscale="log", ylim=(0.05, 20))
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("mean squared error on fresh tasks")
    panels[-1].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "sinusoid"}):  # the same numbers give the same file
        figure.savefig(path, metadata={"Date": None, "Creator": None})


@register_bench("sinusoid")
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and draw where asked."""
    parser = argparse.ArgumentParser(prog="bench sinusoid", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--updates", type=int, default=20_000, help="meta-updates of training (default 20000)")
    parser.add_argument("--decay", action="store_true", help="let the outer rate fall to zero; the paper's is constant")
    parser.add_argument("--quick", action="store_true", help="200 updates, for a first look")
    parser.add_argument("--algorithms", nargs="+", choices=tuple(ALGORITHMS), default=tuple(ALGORITHMS))
    parser.add_argument(
        "--out", type=Path, help="write sinusoid.svg and sinusoid.json there; rows of other algorithms in it stay"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows: list[SinusoidRow] = []
    updates = 200 if options.quick else options.updates
    for row in bench_sinusoid(updates=updates, algorithms=options.algorithms, decay=options.decay):
        rows.append(row)
        if options.out is not None:  # after every row: a long run that is stopped leaves what it has
            rows = _merged(options.out / "sinusoid.json", rows)
            draw(rows, options.out / "sinusoid.svg")
            (options.out / "sinusoid.json").write_text(_json(rows))
    print(_json(rows) if options.json else as_text(rows))
    return 0


def _merged(path: Path, rows: Sequence[SinusoidRow]) -> list[SinusoidRow]:
    """The rows of a file, with `rows` in place of those that they measure again, in the order of ALGORITHMS."""
    kept = TypeAdapter(list[SinusoidRow]).validate_json(path.read_text()) if path.is_file() else []
    latest = {(row.algorithm, row.shots): row for row in [*kept, *rows]}
    return [latest[key] for key in ((name, shots) for name in ALGORITHMS for shots in SHOTS) if key in latest]


def _json(rows: Sequence[SinusoidRow]) -> str:
    return "[\n" + ",\n".join(row.model_dump_json() for row in rows) + "\n]\n"


if __name__ == "__main__":
    raise SystemExit(main())
