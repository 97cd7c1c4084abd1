"""What figures show of the ledger: rows gathered by side, drawn by `plots.py`, each with the rows it came from.

Used by the report and by `python main.py plot`. A side is what one line of a figure stands for: an arm of a campaign, or
the runs of one configuration over their seeds. What cannot be derived from rows is an InputError with the reason.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from sqlalchemy import select

from core.errors import InputError, unknown_name
from core.words.commands import command
from env_runner.task_distributions import get_family
from experiments.campaign.question import Question
from experiments.judging.judge import VerdictContent
from experiments.judging.statistics import mean_interval
from experiments.ledger.ids import readable_id
from experiments.ledger.models import Claim, Run, Verdict
from experiments.ledger.store import Ledger, join_value
from experiments.metrics import LOOKED_AT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

What = Literal["curves", "differences", "tasks", "profile", "shots"]
KINDS: tuple[What, ...] = get_args(What)
RETURN = "rollout/ep_rew_mean"
SUCCESS_RATE = "rollout/success_rate"


@dataclass(frozen=True)
class Side:
    """One line of a figure with its runs, one a seed."""

    key: str
    label: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Search:
    """How the search of a campaign went: its finished runs in order, and the baseline's default with its noise."""

    runs: tuple[Run, ...]
    """Those with a score: the default on its seeds, then every trial."""
    default: float | None
    """Mean score of the baseline's default configuration."""
    noise_floor: float | None
    """Standard deviation of that score over seeds."""


@dataclass(frozen=True)
class Drawn:
    """A figure with its words and the rows it shows."""

    what: What
    title: str
    caption: str
    rows: str
    figure: Figure


def campaign_sides(ledger: Ledger, number: int) -> tuple[Side, ...]:
    """Both arms of a campaign: the confirmation runs that its verdict counts, before the verdict its selection or its search runs.

    Where equal env steps and equal training time are both judged, these are the runs at equal env steps.
    """
    campaign = ledger.get_campaign(number)
    question = Question.model_validate(campaign.question)
    counted = counted_runs(ledger, number)
    stages = [("confirmation",)] * bool(counted) + [("selection",), ("baseline", "search")]
    for purposes in stages:
        runs = [run for run in ledger.runs(number, purpose=purposes) if run.status == "done"]
        if purposes == ("confirmation",):
            runs = [run for run in runs if run.id in counted]
        arms = {arm: [run for run in runs if run.arm == arm] for arm in question.arms}
        if all(arms.values()):
            break
    else:
        raise InputError(
            f"{readable_id('c', number)} has no finished runs of both sides to plot yet (stage {campaign.stage}). "
            f"See: {command('runs', '--campaign', readable_id('c', number))}"
        )
    names = {arm: question.side(arm).label for arm in question.arms}
    for arm, family in zip(question.arms, question.sides, strict=True):
        chosen = {run.model for run in arms[arm]}
        if len(family.kinds) > 1 and len(chosen) == 1:
            names[arm] = f"{family.name.upper()} ({chosen.pop()})"
    if not question.baseline_is_tuned:
        names["baseline"] += ", default"
    return tuple(Side(arm, names[arm], tuple(sorted(own, key=lambda r: (r.seed, r.id)))) for arm, own in arms.items())


def counted_runs(ledger: Ledger, campaign_id: int) -> frozenset[int]:
    """The runs that a campaign's last verdict rests on, without those of a second parity; none before it."""
    query = select(Verdict.content).join(Claim, Claim.id == Verdict.claim_id).where(Claim.campaign_id == campaign_id)
    with ledger.session() as session:
        content = session.scalar(query.order_by(Verdict.id.desc()).limit(1))
    return frozenset() if content is None else frozenset(VerdictContent.model_validate(content).run_ids)


def run_sides(ledger: Ledger, numbers: Sequence[int]) -> tuple[Side, ...]:
    """Runs that a person named; those of one configuration and length make one side."""
    groups: dict[tuple[str, int], list[Run]] = {}
    for number in dict.fromkeys(numbers):
        run = ledger.get_run(number)
        groups.setdefault((run.variant_hash, run.spec.get("env_steps", 0)), []).append(run)
    return tuple(
        Side(
            key=readable_id("r", runs[0].id),
            label=f"{runs[0].model} {span([run.id for run in runs])}",
            runs=tuple(sorted(runs, key=lambda r: (r.seed, r.id))),
        )
        for runs in groups.values()
    )


def search_so_far(ledger: Ledger, number: int) -> Search:
    """What the search of a campaign has found until now. No held-out score is among it."""
    runs = [run for run in ledger.runs(number, purpose=("baseline", "search")) if run.score is not None]
    default = [run.score or 0.0 for run in runs if (run.purpose, run.arm) == ("baseline", "baseline")]
    return Search(
        runs=tuple(sorted(runs, key=lambda run: (run.ended_at or run.created_at, run.id))),
        default=statistics.fmean(default) if default else None,
        noise_floor=statistics.stdev(default) if len(default) > 1 else None,
    )


def draw(ledger: Ledger, sides: Sequence[Side], what: str) -> Drawn:
    """One figure of the sides. InputError where their rows do not hold what it shows."""
    if what not in KINDS:
        raise unknown_name("figure", what, KINDS)
    if len({run.task for side in sides for run in side.runs}) > 1:
        raise InputError("plot: these runs are of different tasks, so their returns are in different units")
    if what == "curves":
        return _curves(ledger, sides)
    runs = [run for side in sides for run in side.runs]
    for run in runs:
        name = readable_id("r", run.id)
        ledger.must_show(run)
        if run.score is None:
            raise InputError(f"{name} has no finite evaluation to plot ({run.status}); its training: --what curves")
    if len({(run.pool, run.task_version) for run in runs}) > 1:
        raise InputError(
            "plot: these runs were evaluated on different tasks; compare their training with --what curves"
        )
    returns = {side.key: _stacked([task_returns(ledger, run.id) for run in side.runs]) for side in sides}
    make = {"differences": _differences, "tasks": _tasks, "profile": _profile, "shots": _shots}[what]
    return make(sides, returns, f"evals of {span([run.id for run in runs])}")


def draw_all(ledger: Ledger, sides: Sequence[Side]) -> tuple[Drawn, ...]:
    """Every figure that the rows hold."""
    drawn = []
    for what in KINDS:
        try:
            drawn.append(draw(ledger, sides, what))
        except InputError:
            continue
    return tuple(drawn)


def curve(ledger: Ledger, run_id: int, metric: str = RETURN) -> tuple[np.ndarray, np.ndarray] | None:
    """Env steps and a metric of a run, its mean training return; None below two finite points."""
    rows = [(m.env_steps, m.value) for m in ledger.metrics(run_id, metric) if m.kind == "finite"]
    if len(rows) < 2:
        return None
    table = np.array(rows, dtype=np.float64)
    return table[:, 0], table[:, 1]


def task_returns(ledger: Ledger, run_id: int) -> np.ndarray:
    """(M, E) raw evaluation returns of a run by task and episode."""
    rows = ledger.evals([run_id])
    shape = (max(r.task_index for r in rows) + 1, max(r.episode for r in rows) + 1)
    table = np.full(shape, np.nan)
    for row in rows:
        table[row.task_index, row.episode] = join_value(row.value, row.kind)
    return table


# ---- one function a figure --------------------------------------------------------------


def _curves(ledger: Ledger, sides: Sequence[Side]) -> Drawn:
    from experiments.reading import plots

    shown = [(side, [(run, curve(ledger, run.id)) for run in side.runs]) for side in sides]
    curves = {side.key: [c for _, c in own if c is not None] for side, own in shown}
    if not all(curves.values()):
        missing = next(side for side in sides if not curves[side.key])
        raise InputError(f"{missing.label} has no learning curve of two finite points or more")
    ids = [run.id for _, own in shown for run, c in own if c is not None]
    configurations = {run.variant_hash for run in sides[0].runs}
    words = "Mean return of training episodes (stochastic actions, training tasks)"
    words += "; bands are 95 % intervals over seeds." if max(map(len, curves.values())) >= plots.MIN_BAND else "."
    if len(configurations) > 1:
        words += " Each thin line is another configuration of the search, not a seed."
    anchors = get_family(sides[0].runs[0].task).anchors
    found = {
        metric: {
            side.key: [c for run in side.runs if (c := curve(ledger, run.id, metric)) is not None] for side in sides
        }
        for metric in (SUCCESS_RATE, LOOKED_AT["success"])
    }
    if any(found[SUCCESS_RATE].values()):
        words += " Below, the share of those episodes in which the goal was reached at any step"
        words += "; points: of the search pool's, without noise." if any(found[LOOKED_AT["success"]].values()) else "."
    figure = plots.learning_curves(
        curves,
        {side.key: side.label for side in sides},
        anchors,
        unit="configuration" if len(configurations) > 1 else "seed",
        successes=found[SUCCESS_RATE],
        looks=found[LOOKED_AT["success"]],
    )
    return Drawn("curves", "Learning curves", words, f"metrics of {span(ids)}", figure)


def _differences(sides: Sequence[Side], returns: dict[str, np.ndarray], rows: str) -> Drawn:
    from experiments.reading import plots

    if len(sides) != 2:
        raise InputError(f"plot: differences are between two sides, here are {len(sides)}")
    means = [{run.seed: returns[side.key][i, :, 0].mean() for i, run in enumerate(side.runs)} for side in sides]
    differences = np.array([means[0][seed] - means[1][seed] for seed in means[0] if seed in means[1]])
    if len(differences) < 2:
        raise InputError(f"plot: the two sides share {len(differences)} seeds; differences need two")
    words = f"Mean return on the {_pool(sides)} tasks, {sides[0].label} minus {sides[1].label}, seed by seed."
    figure = plots.paired_differences(
        differences, mean_interval(differences), f"{sides[0].label} minus {sides[1].label}"
    )
    return Drawn("differences", "Paired differences", words, rows, figure)


def _tasks(sides: Sequence[Side], returns: dict[str, np.ndarray], rows: str) -> Drawn:
    from experiments.reading import plots

    family = get_family(sides[0].runs[0].task)
    first = {key: table[:, :, 0] for key, table in returns.items()}
    tasks = np.asarray(family.eval_tasks(sides[0].runs[0].pool))  # type: ignore[arg-type]
    count = next(iter(first.values())).shape[1]
    if count < 3 or len(tasks) != count:
        raise InputError(f"plot: {family.id} has {count} {_pool(sides)} tasks; a line over tasks needs three")
    if tasks.shape[1] == 1:
        values, name = tasks[:, 0], family.param_names[0].replace("_", " ")
    else:  # no natural order: from the hardest task to the easiest
        values = np.argsort(np.argsort(np.mean([table.mean(axis=0) for table in first.values()], axis=0))) + 1
        name = f"{_pool(sides)} task, from the lowest mean return to the highest"
    several = max(len(side.runs) for side in sides) > 1
    words = (
        "Line: mean over seeds; band: from the worst seed to the best." if several else "First episode on each task."
    )
    figure = plots.returns_by_task(values, name, first, {s.key: s.label for s in sides})
    return Drawn("tasks", f"Return by {_pool(sides)} task", words, rows, figure)


def _profile(sides: Sequence[Side], returns: dict[str, np.ndarray], rows: str) -> Drawn:
    from experiments.reading import plots

    first = {key: table[:, :, 0] for key, table in returns.items()}
    words = f"Share of all seeds and {_pool(sides)} tasks above a return."
    return Drawn("profile", "Performance profile", words, rows, plots.performance_profile(first, {s.key: s.label for s in sides}))  # fmt: skip


def _shots(sides: Sequence[Side], returns: dict[str, np.ndarray], rows: str) -> Drawn:
    from experiments.reading import plots

    shots = min(table.shape[2] for table in returns.values())
    if shots < 2:
        raise InputError("plot: these runs lived one episode on each task, so there is no adaptation to show")
    by_shot = {key: table[:, :, :shots].mean(axis=1) for key, table in returns.items()}
    words = f"Return of successive episodes on one {_pool(sides)} task with memory kept"
    words += "; whiskers are 95 % intervals over seeds." if max(len(s.runs) for s in sides) >= plots.MIN_BAND else "."
    return Drawn("shots", "Adaptation by episode", words, rows, plots.adaptation_curves(by_shot, {s.key: s.label for s in sides}))  # fmt: skip


def _stacked(tables: Sequence[np.ndarray]) -> np.ndarray:
    """(seeds, M, E), of as many episodes as every run lived."""
    episodes = min(table.shape[1] for table in tables)
    return np.stack([table[:, :episodes] for table in tables])


def _pool(sides: Sequence[Side]) -> str:
    return {"confirmation": "held-out"}.get(sides[0].runs[0].pool, sides[0].runs[0].pool)


def span(ids: Sequence[int]) -> str:
    """`r-0003 to r-0012`, or a list where there are gaps."""
    ordered = sorted(ids)
    if not ordered:
        return ""
    if len(ordered) > 2 and ordered[-1] - ordered[0] == len(ordered) - 1:
        return f"{readable_id('r', ordered[0])} to {readable_id('r', ordered[-1])}"
    return ", ".join(readable_id("r", i) for i in ordered)
