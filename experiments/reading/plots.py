"""The figures of reports and of the command `plot`. Each function takes arrays and draws one figure; no ledger in here.

Arms are keyed by `challenger` and `baseline`, which have colours of their own, or by any other name.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from scipy import stats

from experiments.numbers import format_count

logging.getLogger("matplotlib").setLevel(logging.ERROR)
COLOURS = {
    "challenger": "#1f6f8b",
    "baseline": "#c8553d",
    "rival-2": "#6a994e",
    "rival-3": "#7b5ea7",
    "rival-4": "#b8860b",
}
PALETTE = ("#1f6f8b", "#c8553d", "#6a994e", "#7b5ea7", "#b8860b", "#3d5a80", "#9b2226", "#52796f")
MIN_BAND = 3  # seeds; the t interval of two spans everything
Curve = tuple[np.ndarray, np.ndarray]


def svg(figure: Figure) -> str:
    """The figure as text that is the same for the same data: no date, fixed ids."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "report"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def png(figure: Figure) -> bytes:
    """The figure as a picture for slides and letters."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=200, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def inscribe(figure: Figure, title: str, source: str) -> None:
    """A title above and where the numbers come from below, for a figure that stands alone."""
    FigureCanvasAgg(figure)  # measures text
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    columns = int((box.x1 - box.x0) * 20)
    left = box.x0 / width
    figure.text(left, (box.y1 + 0.12) / height, "\n".join(wrap(title, int(columns * 0.6))), fontsize=10, fontweight="bold", va="bottom", parse_math=False)  # fmt: skip
    figure.text(left, (box.y0 - 0.1) / height, "\n".join(wrap(source, columns)), fontsize=7, color="#5d6a73", va="top")


def _colours(arms: Iterable[str]) -> dict[str, str]:
    return {arm: COLOURS.get(arm, PALETTE[i % len(PALETTE)]) for i, arm in enumerate(arms)}


def _axes(width: float = 6.4, height: float = 3.4) -> tuple[Figure, Axes]:
    figure, (axes,) = _rows(1, width, height)
    return figure, axes


def _rows(count: int, width: float = 6.4, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """So many plots below each other over one x axis."""
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(width, height * count))
        rows = figure.subplots(count, sharex=True, squeeze=False)[:, 0]
    for axes in rows:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure, list(rows)


def _count(count: int, unit: str) -> str:
    return f"{count} {unit}{'s' if count > 1 else ''}"


def learning_curves(
    arms: Mapping[str, Sequence[Curve]],
    labels: Mapping[str, str],
    anchors: Mapping[str, float],
    unit: str = "seed",
    successes: Mapping[str, Sequence[Curve]] | None = None,
    looks: Mapping[str, Sequence[Curve]] | None = None,
) -> Figure:
    """Mean training return by env steps with a 95 % t interval over three seeds or more; thin lines are single seeds.

    arms: arm -> curves (env_steps, return), one a seed, or one a `unit`; of configurations no interval is drawn. successes: the same
    of the success rate, below it where there are any; looks: the success rate at looks on the way, as points.
    """
    colours = _colours(arms)
    with_success = bool(successes and any(successes.values()))
    figure, rows = _rows(2, height=2.8) if with_success else _rows(1)
    axes = rows[0]
    values = [y for curves in arms.values() for _, y in curves]
    _mean_lines(axes, arms, labels, colours, unit)
    if with_success:
        _mean_lines(rows[1], successes or {}, labels, colours, unit)
        for arm, curves in (looks or {}).items():
            for x, y in curves:
                rows[1].plot(x, y, color=colours[arm], linestyle="none", marker="o", markersize=4, alpha=0.8)
        rows[1].set_ylabel("success rate")
        rows[1].set_ylim(-0.03, 1.03)
    if values:
        low, high = min(v.min() for v in values), max(v.max() for v in values)
        room = 0.15 * (high - low or 1.0)
        for name, value in anchors.items():
            if low - room <= value <= high + room:
                axes.axhline(value, color="grey", linestyle=":", linewidth=1)
                axes.annotate(name.replace("_", " "), (0.01, value), xycoords=("axes fraction", "data"), ha="left", va="bottom", color="grey", fontsize=8)  # fmt: skip
    rows[-1].set_xlabel("env steps")
    rows[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(round(value)) if value >= 0 else ""))
    axes.set_ylabel("training return an episode")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _mean_lines(
    axes: Axes, arms: Mapping[str, Sequence[Curve]], labels: Mapping[str, str], colours: Mapping[str, str], unit: str
) -> None:
    for arm, curves in arms.items():
        if not curves:
            continue
        grid = np.linspace(max(c[0][0] for c in curves), min(c[0][-1] for c in curves), 60)
        lines = np.array([np.interp(grid, x, y) for x, y in curves])
        for line in lines:
            axes.plot(grid, line, color=colours[arm], alpha=0.2, linewidth=0.8)
        mean = lines.mean(axis=0)
        axes.plot(grid, mean, color=colours[arm], linewidth=2, label=f"{labels[arm]} ({_count(len(curves), unit)})")
        if len(curves) >= MIN_BAND and unit == "seed":
            half = stats.t.ppf(0.975, len(curves) - 1) * lines.std(axis=0, ddof=1) / np.sqrt(len(curves))
            axes.fill_between(grid, mean - half, mean + half, color=colours[arm], alpha=0.15, linewidth=0)


def paired_differences(differences: np.ndarray, interval: tuple[float, float], between: str) -> Figure:
    """Each seed's difference, and their mean with its 95 % interval."""
    figure, axes = _axes(height=1.9)
    axes.scatter(differences, np.full(len(differences), 0.4), color="#444444", s=22, zorder=3, label="one seed")
    mean = float(np.mean(differences))
    axes.plot(interval, [0, 0], color="#1f6f8b", linewidth=3, solid_capstyle="round")
    axes.scatter([mean], [0], color="#1f6f8b", s=50, zorder=3, label="mean, 95 % interval")
    axes.axvline(0, color="#c8553d", linestyle="--", linewidth=1)
    axes.set_ylim(-0.5, 0.9)
    axes.set_yticks([])
    axes.set_xlabel(f"difference in mean return, {between}")
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.35), ncols=2)
    return figure


def returns_by_task(tasks: np.ndarray, name: str, arms: Mapping[str, np.ndarray], labels: Mapping[str, str]) -> Figure:
    """Mean first-episode return on each held-out task with the range over seeds.

    tasks: (M,) values for the x axis. arms: arm -> (seeds, M).
    """
    figure, axes = _axes()
    colours = _colours(arms)
    order = np.argsort(tasks)
    for arm, scores in arms.items():
        axes.plot(tasks[order], scores.mean(axis=0)[order], color=colours[arm], linewidth=1.8, marker="o", markersize=3, label=labels[arm])  # fmt: skip
        axes.fill_between(tasks[order], scores.min(axis=0)[order], scores.max(axis=0)[order], color=colours[arm], alpha=0.12, linewidth=0)  # fmt: skip
    axes.set_xlabel(name)
    axes.set_ylabel("return of the first episode")
    axes.legend(frameon=False, fontsize=8)
    return figure


def performance_profile(arms: Mapping[str, np.ndarray], labels: Mapping[str, str]) -> Figure:
    """Fraction of (seed, task) scores above each return. Agarwal et al. 2021, section 4.2. arms: arm -> (seeds, M)."""
    figure, axes = _axes()
    colours = _colours(arms)
    everything = np.concatenate([scores.ravel() for scores in arms.values()])
    grid = np.linspace(everything.min(), everything.max(), 200)
    for arm, scores in arms.items():
        axes.plot(grid, [(scores > g).mean() for g in grid], color=colours[arm], linewidth=1.8, label=labels[arm])
    axes.set_xlabel("return")
    axes.set_ylabel("fraction of seeds and tasks above it")
    axes.set_ylim(-0.02, 1.02)
    axes.legend(frameon=False, fontsize=8)
    return figure


def adaptation_curves(arms: Mapping[str, np.ndarray], labels: Mapping[str, str]) -> Figure:
    """Mean held-out return by episode on the task, memory kept, with a 95 % interval over seeds. arms: (seeds, E)."""
    figure, axes = _axes(height=2.8)
    colours = _colours(arms)
    for place, (arm, scores) in enumerate(arms.items()):
        shots = np.arange(1, scores.shape[1] + 1)
        beside = shots + 0.03 * (place - (len(arms) - 1) / 2)  # so that whiskers do not hide each other
        half = None
        if len(scores) >= MIN_BAND:
            half = stats.t.ppf(0.975, len(scores) - 1) * scores.std(axis=0, ddof=1) / np.sqrt(len(scores))
        axes.errorbar(
            beside, scores.mean(axis=0), yerr=half, color=colours[arm], marker="o", capsize=3, label=labels[arm]
        )
        axes.set_xticks(shots)
    axes.set_xlabel("episode on the task")
    axes.set_ylabel("return")
    axes.legend(frameon=False, fontsize=8)
    return figure
