"""What commands print: tables, records and lines, or one JSON value; words about the work; and how Ctrl-C stops it."""

from __future__ import annotations

import re
import signal
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cli.terminal import emit, emit_json, make_console
from core.words.commands import program
from core.words.text import harmless

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from rich.console import Console, RenderableType
    from rich.table import Table

    from experiments.tables import TableView

    Part = str | TableView | RenderableType


@dataclass(frozen=True)
class Output:
    """Where a command's result goes.

    json: one JSON value instead of tables and lines; words about the work then go to standard error.
    quiet: the result alone.
    """

    json: bool = False
    quiet: bool = False

    @cached_property
    def console(self) -> Console:
        return make_console(to_error=self.json)

    def say(self, words: str, *, always: bool = False) -> None:
        """Plain words about the work; with `quiet` only those of `always`, to standard error."""
        if self.quiet and not self.json:
            if always:
                emit(words, to_error=True)
            return
        self._print_words(harmless(words, lines=True))

    def result(self, value: Any, *parts: Part) -> None:
        """The result: `value` as JSON where asked, else its parts one after another."""
        if self.json:
            self._print_json(value)
            return
        for part in parts:
            self._print(part)

    def table(self, view: TableView, *, header: bool = False) -> None:
        """One table; where it is empty, only what it says about that, unless its `header` is wanted all the same."""
        if self.json:
            self._print_json(view.records())
        elif header:
            self._print_table(view)
        else:
            self._print(view)

    def record(self, described: Mapping[str, Any], *parts: Part) -> None:
        """One row of the ledger with everything about it, and what else there is to say."""
        self.result(described, *(() if self.json else described_parts(described)), *parts)

    def done(self, changed: Mapping[str, Any], words: str | None = None) -> None:
        """What a command changed, in one line."""
        if self.json:
            self._print_json(changed)
        elif not self.quiet:
            emit(words or ", ".join(f"{name}: {value}" for name, value in changed.items()))

    def _print(self, part: Part) -> None:
        from rich.text import Text

        from experiments.tables import TableView

        if isinstance(part, str):
            emit(part)
        elif isinstance(part, TableView) and part.rows:
            self._print_table(part)
        elif isinstance(part, TableView):
            emit(part.note or "No rows.")
        elif isinstance(part, Text):
            self._print_words(part.plain)
        else:
            self.console.print(part)

    def _print_words(self, words: str) -> None:
        """Words in lines that a terminal's width holds. A line with a command stays one, so that it is one when it is copied; so does
        every line where no terminal is."""
        from rich.text import Text

        lines = words.splitlines()
        if self.console.is_terminal:
            lines = [part for line in lines for part in broken(line, self.console.width)]
        self.console.print(Text("\n".join(lines)), soft_wrap=True)

    def _print_table(self, view: TableView) -> None:
        from experiments.tables import table

        columns, rows, note = view.columns, view.rows, view.note
        if self.console.width < 110:  # what is the same in all rows is said once
            columns, rows, common = narrowed(columns, rows)
            note = "; ".join(part for part in (common, note) if part)
        self.console.print(table(columns, rows))
        if note:
            self._print_words(note)

    def _print_json(self, value: Any) -> None:
        from experiments.ledger.store import write_json
        from experiments.tables import plain_data

        emit_json(write_json(plain_data(value), indent=2, default=str))


def broken(line: str, width: int) -> list[str]:
    """A line cut between words where it is wider than that; what follows is indented like the words behind its label.

    A line that names a command of this program is not cut.
    """
    if len(line) <= width or program() in line:
        return [line]
    label = re.match(r" *\S+ {2,}", line)
    indent = " " * (len(label[0]) if label else len(line) - len(line.lstrip()))
    return textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def narrowed(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> tuple[list[str], list[list[Any]], str]:
    """The table without columns that say the same in every row, and those in words; nor those that a row's name TASK.MODEL has said."""
    from experiments.tables import cell

    kept, common = [], []
    for index, name in enumerate(columns):
        values = {str(row[index]) for row in rows}
        if index and rows and all(isinstance(row[index], str) and row[index] in str(row[0]).split(".") for row in rows):
            continue
        if index and len(rows) > 1 and len(values) == 1:
            if rows[0][index] is not None:
                common.append(f"{name} {cell(rows[0][index])}")
        else:
            kept.append(index)
    words = "in all rows: " + ", ".join(common) if common else ""
    names = [str(columns[i]) for i in kept]
    return names, [[row[i] for i in kept] for row in rows], words


def described_parts(described: Mapping[str, Any]) -> Iterator[Table | str]:
    """One row of the ledger as a person reads it: its fields, then a table for every part of it."""
    from experiments.tables import cell, flatten, named_cell, table

    single = {name: value for name, value in described.items() if not isinstance(value, dict | list)}
    fields = [(name.replace("_", " "), named_cell(name, _shown(v))) for name, v in single.items() if v is not None]
    yield table(("", ""), fields)
    for name, value in described.items():
        if isinstance(value, dict) and value:
            yield f"\n{name.replace('_', ' ')}"
            yield _pairs((f"  {key}", named_cell(key, _shown(item))) for key, item in flatten(value).items())
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            yield f"\n{name.replace('_', ' ')}"
            columns = list(dict.fromkeys(key for item in value for key in item))
            rows = [[_shown(item.get(key)) for key in columns] for item in value]
            yield table(["  " + columns[0], *columns[1:]], [["  " + cell(row[0]), *row[1:]] for row in rows])
        elif isinstance(value, list) and value:
            yield f"\n{name.replace('_', ' ')}: {', '.join(named_cell(name, item) for item in value)}"


def _pairs(entries: Iterable[tuple[str, str]]) -> Table:
    """A table of two columns without a header."""
    from experiments.tables import table

    shown = table(("name", "value"), list(entries))
    shown.show_header = False
    return shown


def _shown(value: Any) -> Any:
    """A value of a table's cell: a time, a list or a mapping as text."""
    from datetime import datetime

    from experiments.tables import cell

    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S UTC")
    if isinstance(value, list | tuple):
        return ", ".join(cell(_shown(item)) for item in value)
    return str(value) if isinstance(value, dict) else value


@contextmanager
def stopping(stop: threading.Event, say: Callable[[str], None]) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks for a clean pause, the second ends at once."""

    def ask(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        say("Stopping: saving checkpoints (once more to stop at once) ...")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
