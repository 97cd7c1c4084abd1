"""`sql "select ..."`: any question to the ledger, on a connection that the database itself keeps from writing."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

from core.errors import InputError, bad_value
from core.words.text import storable
from experiments.ledger.store import Ledger
from experiments.tables import TableView

READS = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)
NOT_ALLOWED = "sql only reads, with one select statement; what changes the ledger has commands of its own"


def read_sql(ledger: Ledger, statement: str, *, limit: int = 1000) -> TableView:
    """The first `limit` rows of one select statement. InputError where it is wrong or tries to write."""
    if limit < 1:
        raise bad_value("--limit", limit, "1 or more")
    if not ledger.read_only:
        raise ValueError("ledger: got a writable one, allowed: one opened with read_only=True")
    columns, found = (_sqlite if ledger.path is not None else _postgres)(ledger, storable(statement), limit + 1)
    note = f"the first {limit} rows; see more with --limit" if len(found) > limit else ""
    rows = tuple(tuple(_plain(value) for value in row) for row in found[:limit])
    return TableView(columns=_distinct(columns), rows=rows, note=note)


def _sqlite(ledger: Ledger, statement: str, limit: int) -> tuple[list[str], list[tuple[Any, ...]]]:
    with closing(ledger.open_file()) as connection:
        connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in READS else sqlite3.SQLITE_DENY)
        connection.set_progress_handler(lambda: 0, 100_000)  # lets Ctrl-C through while a long query runs
        try:
            cursor = connection.execute(statement)
            if cursor.description is None:
                raise InputError(NOT_ALLOWED)
            return [column[0] for column in cursor.description], cursor.fetchmany(limit)
        except (sqlite3.Error, sqlite3.Warning) as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:  # what the handler raised is lost
                raise KeyboardInterrupt from None
            raise _explained(str(error)) from None


def _postgres(ledger: Ledger, statement: str, limit: int) -> tuple[list[str], list[tuple[Any, ...]]]:
    with ledger.engine.connect() as connection:
        raw: Any = connection.connection.driver_connection  # begun READ ONLY by the ledger's engine
        with raw.cursor() as cursor:
            try:
                cursor.execute(statement, prepare=True)  # a prepared statement is one statement
                if cursor.description is None:
                    raise InputError(NOT_ALLOWED)
                return [column.name for column in cursor.description], cursor.fetchmany(limit)
            except Exception as error:
                if type(error).__module__.startswith("psycopg"):
                    raise _explained(str(error)) from None
                raise


def _explained(cause: str) -> InputError:
    cause = " ".join(cause.split())
    refused = (
        "not authorized",
        "authorization denied",
        "prohibited",
        "cannot run inside",
        "readonly",
        "read-only",
        "one statement",
        "multiple commands",
    )
    if any(words in cause for words in refused):
        return InputError(f"{NOT_ALLOWED} ({cause})")
    return InputError(f"sql: {cause}. Tables: runs, metrics, evals, campaigns, proposals, claims, verdicts, events, notes, tags, artifacts")  # fmt: skip


def _plain(value: Any) -> str | float | int | None:
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _distinct(names: list[str]) -> tuple[str, ...]:
    """Column names with a number where two are the same, so that JSON keeps both."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return tuple(found)
