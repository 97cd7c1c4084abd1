"""Tune several sequence models on one task with equal effort: the same trials, env steps, seed and start for each.

Every trial is a run of the ledger, evaluated on the search pool alone, and what to try next is a pure function of the
trials before it (`experiments.search.optimizer`). So nothing else is saved: a command given again walks the same trials, takes
the recorded ones from the ledger and trains only what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy import select

from core.config import FrozenConfig
from core.errors import bad_value, unknown_name
from core.files import write_atomic
from core.sequence_model import MODELS, default_config
from env_runner.task_distributions import get_family
from experiments.ledger.models import Run
from experiments.ledger.store import Ledger, readable_id
from experiments.presets import preset
from experiments.runs.runner import queue_run
from experiments.search.optimizer import Tried, best_trial, suggest
from experiments.search.side import Side, Value
from experiments.search.space import MARKS, SearchSpace
from experiments.spec import RunSpec
from experiments.tables import TableView
from meta_rl.learner import DEFAULT_LEARNER

Execute = Callable[[Sequence[int]], None]
"""Trains queued runs, given by their ids; raises where it is stopped."""


class TunedModel(FrozenConfig):
    """What the search found for one model."""

    model: str
    runs: tuple[str, ...]
    """Every trial's run, in order."""
    scores: tuple[float | None, ...]
    """Mean first-episode return on the search pool; None where a run failed."""
    best: int | None
    """Number of the best trial; None where all failed."""
    spec: RunSpec
    """The best trial's specification, or the default's where all failed."""
    changes: dict[str, Value]
    """Searched fields in which it differs from the default."""
    failures: tuple[str, ...]
    """Why runs have no score."""


def tuning_spaces(
    task: str, models: Sequence[str], *, like: RunSpec | None = None, only: Sequence[str] | None = None
) -> dict[str, SearchSpace]:
    """A search space for each model.

    like: a specification whose learner, heads and depth every model starts from, its other fields at their class's
    defaults; without it each starts from its preset. only: the fields to search, where not all; a model leaves out
    those that it lacks.
    InputError for a model, or a field that none of them has.
    """
    get_family(task).check()
    marks = (
        MARKS if only else 1
    )  # without names the fields of before, so that the same command goes on with what it began
    spaces = {}
    for model in models:
        if model not in MODELS:
            raise unknown_name("model", model, MODELS)
        start = preset(task, model, DEFAULT_LEARNER)
        if like is not None:
            memory = default_config(model).model_copy(update={"num_layers": like.policy.model.num_layers})
            policy = like.policy.model_copy(update={"model": memory})
            start = like.model_copy(update={"task": task, "policy": policy})
        side = Side(name=model, kinds=(model,))
        space = SearchSpace(side, task, learner=start.learner.kind, defaults={model: start}, marks=marks)
        spaces[model] = space
    if only:
        known = sorted({p.name for space in spaces.values() for p in space.parameters})
        for name in only:
            if name not in known:
                raise unknown_name("field", name, known)
        for space in spaces.values():
            space.parameters = tuple(p for p in space.parameters if p.name in only)
    return spaces


def tune(
    ledger: Ledger, spaces: dict[str, SearchSpace], execute: Execute, *, trials: int, env_steps: int, seed: int
) -> list[TunedModel]:
    """Walk all trials; `execute` gets one round of missing runs at a time, one a model.

    seed: of the search and of every trial's training, so that two trials differ in their settings alone.
    """
    if trials < 1:
        raise bad_value("--trials", trials, "1 or more")
    history: dict[str, list[Tried]] = {model: [] for model in spaces}
    runs: dict[str, list[Run]] = {model: [] for model in spaces}
    for number in range(trials):
        proposer = "optimizer" if number else "default"
        values, ids, missing = {}, {}, []
        for model, space in spaces.items():
            values[model] = suggest(space, history[model], seed=seed, arm=model).values
            spec = space.spec(values[model], env_steps=env_steps, seed=seed, parameters=None)
            ids[model] = _recorded(ledger, spec)
            if ids[model] is None:
                ids[model] = queue_run(ledger, spec, purpose="manual", pool="search", proposer=proposer, trial=number)
                missing.append(ids[model])
        if missing:
            execute(missing)
        for model, run_id in ids.items():
            run = ledger.get_run(run_id)
            runs[model].append(run)
            history[model].append(Tried(values[model], run.score))
    return [_tuned(spaces[model], history[model], runs[model]) for model in spaces]


def _recorded(ledger: Ledger, spec: RunSpec) -> int | None:
    """The first run of exactly this specification that came to its end on the search pool; one that failed is tried again."""
    query = (
        select(Run.id)
        .where(Run.config_hash == spec.config_hash, Run.pool == "search", Run.status.in_(("done", "diverged")))
        .order_by(Run.id)
        .limit(1)
    )
    with ledger.session() as session:
        return session.scalars(query).first()


def _tuned(space: SearchSpace, history: Sequence[Tried], runs: Sequence[Run]) -> TunedModel:
    best = best_trial(history)
    place = None if best is None else history.index(best)
    default = space.default_values()
    chosen = history[place or 0].values
    return TunedModel(
        model=runs[0].model,
        runs=tuple(readable_id("r", run.id) for run in runs),
        scores=tuple(tried.score for tried in history),
        best=place,
        spec=RunSpec.model_validate(runs[place or 0].spec),
        changes={name: value for name, value in chosen.items() if value != default[name]},
        failures=tuple(f"{readable_id('r', run.id)}: {run.status} ({run.cause})" for run in runs if run.score is None),
    )


def tuning_table(found: Sequence[TunedModel]) -> TableView:
    """A line a model: the default's score, the best one's, and what makes the difference."""
    rows = []
    for one in found:
        best = None if one.best is None else one.scores[one.best]
        changes = ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in one.changes.items())  # fmt: skip
        rows.append(
            (one.model, len(one.runs), one.scores[0], best, one.runs[one.best or 0], changes or "the default itself")
        )
    return TableView(
        columns=("model", "trials", "default", "best", "run", "changes"),
        rows=tuple(rows),
        note="\n".join(
            (
                "Mean first-episode return on the search pool, one training seed: choosing the best of several is optimistic.",
                *(failure for one in found for failure in one.failures),
            )
        ),
    )


def effort_text(one: TunedModel, *, like: str | None, models: Sequence[str], only: Sequence[str] | None) -> str:
    """The effort behind a preset, in words."""
    score = "all trials failed"
    if one.best is not None:
        default = "failed" if one.scores[0] is None else f"{one.scores[0]:.1f}"
        score = f"best {one.scores[one.best]:.1f} (trial {one.best}, default {default})"
    start = f"the settings of {like}" if like else "its earlier preset"
    fields = ", ".join(only) if only else "every searched field"
    return (
        f"Tuned by `python main.py tune` on the search pool of {one.spec.task} alone: {len(one.runs)} trials of "
        f"{one.spec.env_steps:,} env steps with one training seed, from {start}, searching {fields}; the same effort for "
        f"{', '.join(models)}. Score on the search pool: {score}."
    )


def keep_preset(one: TunedModel, effort: str, folder: Path) -> Path:
    """Write the best specification as the preset TASK.MODEL.json, fields at their class's default left out."""
    file = folder / f"{one.spec.task}.{one.model}.json"
    policy = one.spec.policy.model_dump(mode="json", exclude_defaults=True)
    policy["model"] = {"kind": one.model} | one.spec.policy.model.model_dump(mode="json", exclude_defaults=True)
    learner = {"kind": one.spec.learner.kind} | one.spec.learner.model_dump(mode="json", exclude_defaults=True)
    content = {"effort": effort, "policy": policy, "learner": learner}
    write_atomic(file, f"{json.dumps(content, indent=1)}\n".encode())
    return file
