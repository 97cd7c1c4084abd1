"""Two runs or two campaigns side by side: what differs, and how much the scores differ, paired by task and by seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select

from core.config import FrozenConfig
from core.errors import bad_value
from experiments.ledger.ids import archived, readable_id
from experiments.ledger.models import Claim, Run, Verdict
from experiments.ledger.store import Ledger
from experiments.tables import Cell, TableView, flatten

RUN_FIELDS = ("purpose", "pool", "arm", "trial", "proposer", "task", "task_version", "model", "seed", "parameters", "status", "cause", "env_steps", "score", "train_s")  # fmt: skip
CAMPAIGN_FIELDS = ("goal", "seed", "stage", "status", "llm", "spent_s")


class Paired(FrozenConfig):
    """First minus second over pairs of one kind."""

    pairs: int
    difference: float
    interval: tuple[float, float] | None
    """95 % interval of the mean difference (Student's t over the pairs); None with a single pair."""
    first_better: int
    """Pairs in which the first is better."""


class Comparison(FrozenConfig):
    """What `compare` found out about two runs."""

    first: str
    second: str
    differences: TableView
    """Fields of the two rows and their specifications, those that differ."""
    tasks: TableView | None
    """Per-task first-episode returns; None where the two runs were not evaluated on the same tasks."""
    by_task: Paired | None
    """Pairs are the evaluation tasks of these two runs: holds for these two trainings alone."""
    by_seed: Paired | None
    """Pairs are training seeds that both configurations were trained with: holds for the configurations."""
    seeds: tuple[int, ...]
    notes: tuple[str, ...]


def diff(ledger: Ledger, first: str, second: str, *, everything: bool = False) -> TableView:
    """Field by field what differs between two runs or two campaigns, or every field."""
    (kind, one), (other_kind, other) = (ledger.locate(v, ("run", "campaign")) for v in (first, second))
    if kind != other_kind:
        raise bad_value("diff", f"{first} {second}", "two runs (r-0001 r-0002) or two campaigns (c-0001 c-0002)")
    if kind == "run":
        rows = [ledger.get_run(number) for number in (one, other)]
        fields = [_run_fields(ledger, run) for run in rows]
        names = [readable_id("r", run.id) for run in rows]
    else:
        fields = [_campaign_fields(ledger, number) for number in (one, other)]
        names = [readable_id("c", number) for number in (one, other)]
    return _table(names, fields, everything)


def compare(ledger: Ledger, first: str, second: str, *, everything: bool = False) -> Comparison:
    """Two runs: what differs, and their scores paired by task and, where seeds are shared, by seed."""
    a, b = (ledger.get_run(ledger.resolve(v, "run")) for v in (first, second))
    for run in (a, b):
        ledger.must_show(run)
    names = [readable_id("r", a.id), readable_id("r", b.id)]
    differences = _table(names, [_run_fields(ledger, a), _run_fields(ledger, b)], everything)
    notes: list[str] = []
    left, right = ledger.scored_values([a.id]).get(a.id, {}), ledger.scored_values([b.id]).get(b.id, {})
    places = [(run.task, run.task_version, run.pool) for run in (a, b)]
    same_place = places[0] == places[1] and a.spec.get("scored_by") == b.spec.get("scored_by")
    if not same_place:
        notes.append(
            "The two were not evaluated on the same tasks by the same metric, so their scores cannot be compared."
        )
    elif not left or not right:
        notes.append(f"{names[0] if not left else names[1]} has no evaluation to compare.")
    if a.env_steps != b.env_steps:
        notes.append(f"They trained {a.env_steps:,} and {b.env_steps:,} env steps.")
    tasks = by_task = by_seed = None
    seeds: tuple[int, ...] = ()
    shared = sorted(left.keys() & right.keys())
    if same_place and shared:
        rows = tuple((t, _finite(left[t]), _finite(right[t]), _finite(left[t] - right[t])) for t in shared)
        tasks = TableView(columns=("task", *names, "difference"), rows=rows)
        by_task = _paired([left[t] - right[t] for t in shared])
        if by_task is None:
            notes.append("Not every return is finite, so no difference is given.")
        if a.variant_hash == b.variant_hash:
            notes.append("Both are the same configuration with another seed or length.")
        else:
            seeds, by_seed = _by_seed(ledger, a, b)
            if by_seed is None:
                notes.append("The two configurations share no finished seed at this length, so nothing is said about them.")  # fmt: skip
            elif by_seed.interval is None:
                notes.append("One seed is shared: other seeds may well turn the difference around.")
    return Comparison(
        first=names[0],
        second=names[1],
        differences=differences,
        tasks=tasks,
        by_task=by_task,
        by_seed=by_seed,
        seeds=seeds,
        notes=tuple(notes),
    )


def sentence(paired: Paired, comparison: Comparison, unit: str) -> str:
    """A paired difference on one line."""
    words = f"{comparison.first} minus {comparison.second} over {paired.pairs} {unit}: {paired.difference:+.2f}"
    if paired.interval is not None:
        words += f", 95 % interval [{paired.interval[0]:+.2f}, {paired.interval[1]:+.2f}]"
    return f"{words}, better on {paired.first_better} of {paired.pairs}"


def _run_fields(ledger: Ledger, run: Run) -> dict[str, Any]:
    fields: dict[str, Any] = {"campaign": readable_id("c", run.campaign_id)}
    fields |= {name: getattr(run, name) for name in RUN_FIELDS}
    if ledger.score_is_hidden(run):
        fields["score"] = None
    return fields | flatten(run.spec, "spec.") | flatten(run.provenance, "provenance.")


def _campaign_fields(ledger: Ledger, number: int) -> dict[str, Any]:
    row = ledger.get_campaign(number)
    with ledger.session() as session:
        query = select(Verdict.outcome).join(Claim, Claim.id == Verdict.claim_id).where(Claim.campaign_id == number)
        outcome = session.scalar(query)
    fields: dict[str, Any] = {name: getattr(row, name) for name in CAMPAIGN_FIELDS}
    fields["verdict"] = outcome
    return fields | flatten(row.question, "question.") | flatten(row.plan, "plan.") | flatten(row.provenance, "provenance.")  # fmt: skip


def _table(names: Sequence[str], fields: Sequence[dict[str, Any]], everything: bool) -> TableView:
    left, right = fields
    missing = object()
    rows = [
        (name, _shown(name, left.get(name)), _shown(name, right.get(name)))
        for name in dict.fromkeys([*left, *right])
        if everything or left.get(name, missing) != right.get(name, missing)
    ]
    note = "" if rows else "Nothing differs."
    return TableView(columns=("field", *names), rows=tuple(rows), note=note)


def _shown(name: str, value: Any) -> Cell:
    if name.rpartition(".")[2] == "seed" and isinstance(value, int):
        return str(value)  # a name and no amount
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _by_seed(ledger: Ledger, a: Run, b: Run) -> tuple[tuple[int, ...], Paired | None]:
    """Mean returns of the two configurations on every seed that both were trained with, at these runs' length."""
    means: list[dict[int, float]] = []
    with ledger.session() as session:
        runs_away, campaigns_away = archived(session)
        for run in (a, b):
            query = select(Run.id, Run.seed, Run.campaign_id).where(
                Run.variant_hash == run.variant_hash,
                Run.env_steps == run.env_steps,
                Run.pool == run.pool,
                Run.task_version == run.task_version,
                Run.status == "done",
            )
            first: dict[int, int] = {}  # of reruns with the same seed the original counts
            for number, seed, campaign in session.execute(query.order_by(Run.id)):
                if number not in runs_away and campaign not in campaigns_away:
                    first.setdefault(seed, number)
            means.append({seed: float(number) for seed, number in first.items()})
    seeds = tuple(sorted(means[0].keys() & means[1].keys()))
    ids = [[int(side[seed]) for seed in seeds] for side in means]
    returns = ledger.scored_values([*ids[0], *ids[1]]) if seeds else {}
    differences = []
    for one, other in zip(*ids, strict=True):
        left, right = returns.get(one, {}), returns.get(other, {})
        shared = left.keys() & right.keys()
        if shared:
            differences.append(sum(left[t] - right[t] for t in shared) / len(shared))
    return seeds, _paired(differences)


def _paired(differences: Sequence[float]) -> Paired | None:
    """None where there is no pair or one is not finite."""
    if not differences or any(_finite(d) is None for d in differences):
        return None
    interval = None
    if len(differences) > 1:
        import numpy as np

        from experiments.judging.statistics import mean_interval

        interval = mean_interval(np.array(differences))
    return Paired(
        pairs=len(differences),
        difference=sum(differences) / len(differences),
        interval=interval,
        first_better=sum(d > 0 for d in differences),
    )


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
