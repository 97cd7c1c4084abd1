"""Runs as TensorBoard event files, a folder a run, under the names that everybody's training curves have.

The step is the env steps. Times are the run's start and its own training seconds since; evaluations stand at its last step as
`eval/return_episode_1` (the first episode on a task), means over the tasks. What may not be shown yet is left out.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select

from core.errors import InputError
from experiments.ledger.filters import parse_where
from experiments.ledger.models import Run
from experiments.ledger.store import Ledger, join_value, readable_id
from experiments.metrics import WATCHED
from experiments.tables import flatten
from experiments.vocabulary import FINISHED

INSTALL = 'pip install -e ".[tensorboard]"'
TRAINING_S = "time/train_s"
FIRST = "eval/return_episode_1"


def write_event_files(ledger: Ledger, out: Path, *, campaign: int | None = None, where: str | None = None) -> int:
    """Write `out/r-0001/events.out.tfevents...` for every run asked for, and return how many runs there are.

    A run's earlier event files are replaced; other files stay. InputError where tensorboardX is not installed or `out` cannot be written.
    """
    try:
        import tensorboardX  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError(f"--format tensorboard needs tensorboardX: {INSTALL}") from None
    query = select(Run).where(*(parse_where(where, ledger.resolve) if where else [])).order_by(Run.id)
    if campaign is not None:
        query = query.where(Run.campaign_id == campaign)
    with ledger.session() as session:
        runs = list(session.scalars(query))
    try:
        for run in runs:
            _write(ledger, run, out / readable_id("r", run.id))
    except OSError as error:
        raise InputError(f"--out: cannot write {out} ({error.strerror})") from None
    return len(runs)


def scalars(ledger: Ledger, run: Run, *, since: int = 0) -> Iterator[tuple[str, int, float]]:
    """(tag, env steps, value) of everything of a run, from so many env steps on, that may be shown."""
    hidden = ledger.score_is_hidden(run)
    for metric in ledger.metrics(run.id, since=since):
        if not (hidden and metric.name == WATCHED):
            yield metric.name, metric.env_steps, join_value(metric.value, metric.kind)
    if hidden or run.status not in FINISHED:  # whose last step is not known yet
        return
    by_tag: dict[str, list[float]] = {}
    for row in ledger.evals([run.id], name=None):
        by_tag.setdefault(f"eval/{row.name}_episode_{row.episode + 1}", []).append(join_value(row.value, row.kind))
    for tag, values in by_tag.items():
        yield tag, run.env_steps, statistics.fmean(values)


def hyperparameters(run: Run) -> dict[str, Any]:
    """What a run was trained with, one value a field, as TensorBoard takes them."""
    fields = {"purpose": run.purpose, "arm": run.arm or "", "parameters": run.parameters} | flatten(run.spec)
    kept = {name: value for name, value in fields.items() if value is not None}
    return {name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in kept.items()}


def _write(ledger: Ledger, run: Run, folder: Path) -> None:
    from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    from tensorboardX.summary import hparams  # pyright: ignore[reportMissingImports]

    rows = list(scalars(ledger, run))
    began = (run.started_at or run.created_at).timestamp()
    times, end = _times(rows, began), began if run.ended_at is None else run.ended_at.timestamp()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as partial:
        writer = SummaryWriter(logdir=partial)
        for tag, step, value in rows:
            writer.add_scalar(tag, value, step, walltime=end if tag.startswith("eval/") else times.get(step, began))
        shown = {tag: value for tag, _, value in rows if tag == FIRST}
        assert writer.file_writer is not None
        for summary in hparams(hyperparameters(run), shown):
            writer.file_writer.add_summary(summary)  # in the run's own file: add_hparams would begin another folder
        writer.close()
        (written,) = Path(partial).iterdir()
        for file in folder.glob("events.out.tfevents.*"):
            file.unlink()
        os.replace(written, folder / written.name)


def _times(rows: Sequence[tuple[str, int, float]], began: float) -> dict[int, float]:
    """Env steps -> when a run had come to them, by its own clock of training."""
    times: dict[int, float] = {}
    spent = 0.0
    for tag, step, value in rows:
        if tag == TRAINING_S:
            spent += value
            times[step] = began + spent
    return times
