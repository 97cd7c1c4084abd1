"""Zero-shot and few-shot returns of a kept model on fixed tasks: one row a task, one column a number of shots.

The protocol is `meta_rl.evaluate`'s, the same for every learner: shot k is what it earns after k episodes lived on the task
(a memory) or k gradient steps, each on episodes of its own (a gradient learner).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from scipy import stats

from core.checkpoint import load_checkpoint
from core.errors import InputError, bad_value, nearest
from core.words.commands import command
from env_runner.task_distributions import get_family
from env_runner.task_family import Pool, check_pool
from experiments.ledger.ids import is_written_as_id, readable_id
from experiments.ledger.store import Ledger
from experiments.runs.paths import Paths
from experiments.spec import RunSpec, recorded_spec
from experiments.tables import Cell, TableView
from meta_rl.evaluate import few_shot
from meta_rl.learner import Learner

SHOTS = (0, 1, 5, 10)


def must_show_model(ledger: Ledger, paths: Paths, files: Path) -> None:
    """InputError where these files, given by their place, are the model of a run whose score is not shown before its verdict."""
    name = files.with_suffix("").name.removesuffix("-best")
    if files.resolve().parent == paths.model(0).resolve().parent and is_written_as_id(name):
        ledger.must_show(ledger.get_run(ledger.resolve(name, "run")))


def model_of_run(ledger: Ledger, paths: Paths, name: str) -> str | Path:
    """The kept model of a run that `name` means, or `name` itself where it is written as no id.

    InputError for an id of no run, for a run without a model, and for one whose score is not shown before its verdict.
    """
    if not is_written_as_id(name):
        return name
    run = ledger.resolve(name, "run")
    ledger.must_show(ledger.get_run(run))
    path = paths.model(run)
    if not path.with_suffix(".safetensors").is_file():
        raise InputError(
            f"model: {readable_id('r', run)} has no kept model. Train it again with: {command('rerun', readable_id('r', run))}"
        )
    return path


def spec_of_run(ledger: Ledger, name: str) -> RunSpec | None:
    """The specification that a run was evaluated by, where `name` is written as a run's id; else None."""
    if not is_written_as_id(name):
        return None
    run = ledger.resolve(name, "run")
    row = ledger.get_run(run)
    return recorded_spec(row.spec, readable_id("r", run), row.provenance)


def kept_model(model: str | Path) -> Path:
    """The files, without suffix, of a folder of `saved_models/` or of a checkpoint; InputError where there are none."""
    path = Path(model)
    if path.is_dir():
        path = path / "model"
    if not path.with_suffix(".safetensors").is_file():
        beside = Path(model).parent
        close = nearest(Path(model).name, [p.name for p in beside.iterdir()] if beside.is_dir() else [])
        hint = f" Did you mean {str(beside / close)!r}?" if close else ""
        raise InputError(f"model: {model} is no folder of saved_models/ and no checkpoint.{hint} See: ls saved_models")
    return path


def family_of(files: Path) -> str:
    """Id of the task family that a kept model was trained in."""
    return str(load_checkpoint(files)[1].get("learner", {}).get("family_id", ""))


def few_shot_table(
    model: str | Path,
    *,
    spec: RunSpec | None = None,
    shots: Sequence[int] = SHOTS,
    pool: Pool = "search",
    seed: int = 0,
    deterministic: bool = True,
) -> TableView:
    """Raw returns of the model in a folder of `saved_models/`, or of any checkpoint, by task and number of shots.

    spec: the run's, whose mid-episode changes and adaptation hold here too; without one, worlds stay as they are and nothing adapts.
    Below the tasks: their mean, and half of its 95 % t interval. Raises InputError for a model that is not there.
    """
    check = check_pool(pool)
    if seed < 0:
        raise bad_value("seed", seed, "0 or more")
    learner = Learner.load(kept_model(model))
    family = get_family(learner.family_id)
    tasks = family.eval_tasks(check)
    given = {} if spec is None else {"changes": spec.changes, "adaptation": spec.adaptation}
    result = few_shot(learner, tasks, shots=shots, seed=seed, deterministic=deterministic, **given)
    counts, returns = list(result.returns), np.stack(list(result.returns.values()), 1)
    rows: list[tuple[Cell, ...]] = [
        (", ".join(f"{value:.3g}" for value in task[:4]) + (", ..." if len(task) > 4 else ""), *_cells(row))
        for task, row in zip(tasks, returns, strict=True)
    ]
    rows.append(("mean", *_cells(returns.mean(0))))
    if len(tasks) > 1:
        half = stats.t.ppf(0.975, len(tasks) - 1) * returns.std(0, ddof=1) / np.sqrt(len(tasks))
        rows.append(("95 % interval, half", *_cells(half)))
    names = ", ".join(family.param_names[:4]) + (", ..." if family.num_params > 4 else "")
    note = (
        f"{learner.kind} on {family.id}, {check} pool, {len(tasks)} tasks, one episode a task and shot. A shot: one "
        f"{learner.config.shot}."
    ) + ("" if spec is None else spec.conditions)
    return TableView(columns=(names, *(f"{k} shots" for k in counts)), rows=tuple(rows), note=note)


def _cells(values: np.ndarray) -> tuple[Cell, ...]:
    return tuple(cast(float, round(value, 2)) for value in values.tolist())
