"""Ledger tables as files for other programs: CSV, JSON lines or Parquet, written whole or not at all."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import inspect, select

from core.errors import InputError, unknown_name
from core.files import replacing
from core.words.text import escape_json, harmless, no_formula
from experiments.ledger.filters import parse_where
from experiments.ledger.models import (
    Artifact,
    Base,
    Campaign,
    Claim,
    Eval,
    Event,
    Metric,
    Note,
    Proposal,
    Run,
    Tag,
    Verdict,
)
from experiments.ledger.scores import UNJUDGED
from experiments.ledger.store import Ledger, join_value, readable_id, write_json
from experiments.metrics import WATCHED
from experiments.tables import flatten

TABLES: dict[str, type[Base]] = {
    "runs": Run,
    "metrics": Metric,
    "evals": Eval,
    "campaigns": Campaign,
    "proposals": Proposal,
    "claims": Claim,
    "verdicts": Verdict,
    "events": Event,
    "artifacts": Artifact,
    "notes": Note,
    "tags": Tag,
}
FORMATS = ("csv", "jsonl", "parquet")
OF_OTHERS = ("optuna", "tensorboard")  # no tables; they are written by `experiments/serving/`
LONG = ("metrics", "evals", "events")  # written row by row; the others are small and get one column a field
OF_RUNS = ("metrics", "evals", "artifacts")
PREFIX = {"campaign_id": "c", "claim_id": "k", "run_id": "r", "rerun_of": "r"}
BATCH = 20_000


def export(
    ledger: Ledger, out: Path, *, what: str = "runs", format: str = "csv", campaign: int | None = None, where: str | None = None
) -> int:  # fmt: skip
    """Write one table to `out` and return the number of rows.

    campaign, where: only what belongs to that campaign, and only those runs (or what belongs to them).
    Scores and evaluations of confirmation runs come with their verdict, not before.
    """
    if what not in TABLES:
        raise unknown_name("table", what, TABLES)
    if format not in FORMATS:
        raise unknown_name("format", format, (*FORMATS, *OF_OTHERS))
    if format == "parquet":
        _need_pyarrow()
    table, conditions = TABLES[what], []
    if campaign is not None or where is not None:
        runs = select(Run.id).where(*(parse_where(where, ledger.resolve) if where else []))
        if campaign is not None:
            runs = runs.where(Run.campaign_id == campaign)
        if what == "runs":
            conditions.append(Run.id.in_(runs))
        elif what in OF_RUNS:
            conditions.append(table.run_id.in_(runs))  # type: ignore[attr-defined]
        elif where is None and hasattr(table, "campaign_id"):
            conditions.append(table.campaign_id == campaign)  # type: ignore[attr-defined]
        else:
            allowed = ("runs", *OF_RUNS) if where is not None else ("runs", *OF_RUNS, "proposals", "claims", "events")
            option = "--where" if where is not None else "--campaign"
            raise InputError(f"{option}: {what} cannot be filtered so, allowed for: {', '.join(allowed)}")
    unjudged = select(Run.id).where(UNJUDGED)
    if what == "evals":
        conditions.append(Eval.run_id.not_in(unjudged))
    if what == "metrics":
        conditions.append((Metric.name != WATCHED) | Metric.run_id.not_in(unjudged))
    try:
        with replacing(out) as partial, ledger.session() as session:
            hidden = set(session.scalars(unjudged)) if what == "runs" else set()
            keys = inspect(table).primary_key
            found = session.scalars(select(table).where(*conditions).order_by(*keys).execution_options(yield_per=BATCH))
            rows: Iterable[dict[str, Any]] = (_flat(row, hidden) for row in found)
            if what not in LONG:
                rows = _square(list(rows))
            return WRITERS[format](partial, rows)
    except OSError as error:
        raise InputError(f"--out: cannot write {out} ({error.strerror})") from None


def _flat(row: Any, hidden: Collection[int]) -> dict[str, Any]:
    """One value a column: readable ids, times as ISO text, configurations as dotted fields, numbers as they were.

    hidden: numbers of the runs whose score is left out.
    """
    flat: dict[str, Any] = {}
    for column in type(row).__mapper__.column_attrs:
        name, value = column.columns[0].name, getattr(row, column.key)
        if name == "score" and getattr(row, "id", None) in hidden:  # runs alone have both
            value = None
        if name == "id":
            letter = {"runs": "r", "campaigns": "c", "claims": "k", "verdicts": "v", "proposals": "p"}.get(row.__tablename__)  # fmt: skip
            value = readable_id(letter, value) if letter else value
        elif name in PREFIX and value is not None:
            value = readable_id(PREFIX[name], value)
        elif isinstance(value, datetime):
            value = value.isoformat()
        elif name == "kind" and isinstance(row, Metric | Eval):
            continue
        elif name == "value" and isinstance(row, Metric | Eval):
            value = join_value(value, row.kind)
        if isinstance(value, dict) and row.__tablename__ not in LONG:
            flat |= {k: _scalar(v) for k, v in flatten(value, f"{name}.").items()}
        else:
            flat[name] = _scalar(value)
    return flat


def _scalar(value: Any) -> Any:
    return write_json(value) if isinstance(value, dict | list) else value


def _shown(value: Any) -> Any:
    """Text that no program obeys which shows the file; JSON lines keep it as it was, in JSON's escapes."""
    return harmless(value, lines=True) if isinstance(value, str) else value


def _cell(value: Any) -> Any:
    return no_formula(_shown(value)) if isinstance(value, str) else value


def _square(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same columns in every row, None where a row has no such field."""
    columns = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in columns} for row in rows]


def _write_csv(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    count = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for row in rows:
            if count == 0:
                writer.writerow(map(_cell, row))
            writer.writerow(map(_cell, row.values()))
            count += 1
    return count


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(escape_json(write_json(row)) + "\n")
            count += 1
    return count


def _write_parquet(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    import pyarrow
    import pyarrow.parquet

    count, writer = 0, None
    for batch in _batches(rows):
        columns = {name: _one_type([_shown(row[name]) for row in batch]) for name in batch[0]}
        table = pyarrow.table(columns) if writer is None else pyarrow.table(columns, schema=writer.schema)
        if writer is None:
            writer = pyarrow.parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
        count += len(batch)
    if writer is None:
        writer = pyarrow.parquet.ParquetWriter(path, pyarrow.schema([]))
    writer.close()
    return count


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _one_type(values: list[Any]) -> list[Any]:
    """A Parquet column has one type: whole numbers among fractions become fractions, any other mixture text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and len(kinds) == 2:
        return [None if value is None else float(value) for value in values]
    if len(kinds) > 1:
        return [None if value is None else value if isinstance(value, str) else json.dumps(value) for value in values]
    return values


def _need_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise InputError(
            '--format parquet needs pyarrow: pip install -e ".[analysis]", or choose csv or jsonl'
        ) from None


WRITERS: dict[str, Callable[[Path, Iterable[dict[str, Any]]], int]] = {
    "csv": _write_csv,
    "jsonl": _write_jsonl,
    "parquet": _write_parquet,
}
