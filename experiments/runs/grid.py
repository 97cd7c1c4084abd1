"""Models and learners side by side on one task: equal parameters, equal env steps, the same seeds, every run a row.

Nothing is tuned or claimed here: each pair of a model and a learner trains its preset, and the intervals say how far apart they
are. A claim that one is better is what a campaign is for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sqlalchemy import select

from core.errors import bad_value
from core.sequence_model import MODELS
from env_runner.task_distributions import get_family
from experiments.ledger.ids import readable_id
from experiments.ledger.models import Run
from experiments.ledger.store import Ledger
from experiments.metrics import parse_metric
from experiments.presets import preset
from experiments.runs.by_hand import MAX_SEEDS, seed_scores
from experiments.runs.runner import queue_run
from experiments.search.sizing import count_parameters, size_policy
from experiments.search.space import iteration_steps
from experiments.spec import RunSpec
from experiments.tables import Cell, TableView
from meta_rl.learner import DEFAULT_LEARNER, LEARNERS

SIZED_LIKE = "lstm"
"""The model whose preset's parameter count all others are sized to."""


def grid_specs(
    task: str,
    models: Sequence[str],
    learners: Sequence[str],
    *,
    epochs: int | None = None,
    env_steps: int | None = None,
) -> list[RunSpec]:
    """One specification a pair of model and learner, at equal parameters and env steps; their seed is a placeholder.

    env_steps: training budget of each; or epochs: so many iterations of the learner with the largest one. Both are the same
    number for all. InputError for an unknown name and for a budget below one iteration.
    """
    get_family(task).check()
    for kind in models:
        MODELS[kind]
    for name in learners:
        LEARNERS[name]
    size = count_parameters(preset(task, SIZED_LIKE, DEFAULT_LEARNER))
    specs = [size_policy(preset(task, kind, name), size) for name in learners for kind in models]
    if not specs:
        raise bad_value("models, learners", "none", f"one or more; models: {', '.join(MODELS)}")
    unit = math.lcm(*(iteration_steps(spec) for spec in specs))
    steps = (epochs or 0) * unit if env_steps is None else env_steps
    if steps < unit:
        raise bad_value("--env-steps", steps, f"{unit} or more: one iteration of each of these")
    return [spec.model_copy(update={"env_steps": steps}) for spec in specs]


def planned_grid(specs: Sequence[RunSpec], seeds: int) -> TableView:
    """What would be trained."""
    rows = tuple((s.policy.model.kind, s.learner.kind, count_parameters(s), s.env_steps, seeds) for s in specs)
    return TableView(
        columns=("model", "learner", "parameters", "env steps", "seeds"),
        rows=rows,
        note=f"{len(specs) * seeds} runs. Dry run: nothing was started.",
    )


def queue_grid(ledger: Ledger, specs: Sequence[RunSpec], seeds: int, first_seed: int = 0) -> list[list[int]]:
    """The runs of every specification, one a seed; those that are finished in this ledger already are not queued again."""
    if not 1 <= seeds <= MAX_SEEDS:
        raise bad_value("--seeds", seeds, f"from 1 to {MAX_SEEDS}")
    return [
        [_run_of(ledger, spec.model_copy(update={"seed": seed})) for seed in range(first_seed, first_seed + seeds)]
        for spec in specs
    ]


def _run_of(ledger: Ledger, spec: RunSpec) -> int:
    query = select(Run.id).where(
        Run.config_hash == spec.config_hash, Run.pool == "search", Run.status == "done", Run.campaign_id.is_(None)
    )
    with ledger.session() as session:
        found = session.scalar(query.order_by(Run.id))
    return queue_run(ledger, spec, purpose="manual", pool="search", proposer="human") if found is None else found


def grid_table(ledger: Ledger, groups: Sequence[Sequence[int]]) -> TableView:
    """A line a pair: the mean over seeds and search tasks with its 95 % interval, the IQM with its own, and its rows."""
    rows: list[tuple[Cell, ...]] = []
    for run_ids in groups:
        runs, scores = [ledger.get_run(number) for number in run_ids], seed_scores(ledger, run_ids)
        result, learner = scores.result, runs[0].spec["learner"]["kind"]
        alone = scores.rows[0].score if len(scores.rows) == 1 else None
        rows.append(
            (
                runs[0].model,
                learner,
                runs[0].parameters,
                sum(row.score is not None for row in scores.rows),
                alone if result is None else round(result.mean, 2),
                None if result is None else f"{result.interval[0]:.2f} to {result.interval[1]:.2f}",
                None if result is None else round(result.iqm, 2),
                None if result is None else f"{result.iqm_interval[0]:.2f} to {result.iqm_interval[1]:.2f}",
                parse_metric(runs[0].spec.get("scored_by", "return_first_episode")).words(
                    LEARNERS[learner].config_type.shot
                ),
                " to ".join(dict.fromkeys(readable_id("r", end) for end in (min(run_ids), max(run_ids)))),
            )
        )
    first = ledger.get_run(groups[0][0])
    return TableView(
        columns=("model", "learner", "parameters", "seeds", "mean", "95 %", "IQM", "IQM 95 %", "scored by", "rows"),
        rows=tuple(rows),
        note=f"{first.task}, {first.spec['env_steps']:,} env steps each, search pool. Presets, not tuned for this: no verdict.",
    )
