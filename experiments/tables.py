"""Tables of facts and how a person sees them. Imports little, so that commands which only read start fast."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict

from core.config import FrozenConfig

if TYPE_CHECKING:
    from rich.table import Table

Cell = bool | str | float | int | None


class TableView(FrozenConfig):
    """A small table of ledger facts."""

    model_config = ConfigDict(allow_inf_nan=True)

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def records(self) -> list[dict[str, Cell]]:
        """The rows as dictionaries."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


_ESCAPES = re.compile(
    r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)"
)  # CSI, OSC and two-character ones


def plain(text: str) -> str:
    """Words of anybody on one line, without what a terminal would obey: escapes, other controls, direction marks."""
    return " ".join("".join(c if c.isprintable() else " " for c in _ESCAPES.sub(" ", text)).split())


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None) -> Table:
    """A plain table; numbers to the right."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        values = [row[index] for row in rows]
        numeric = bool(rows) and all(isinstance(value, int | float) or value is None for value in values)
        short = all(len(cell(value)) <= 16 for value in values)
        shown.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=short)
    for row in rows:
        shown.add_row(*(Text(_named(name, value)) for name, value in zip(columns, row, strict=True)))
    return shown


def _named(name: str, value: Any) -> str:
    """A seed is a name and no amount, so it has no thousands separators."""
    return str(value) if name.rpartition(".")[2] in ("seed", "seeds") and isinstance(value, int) else cell(value)


def narrowed(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> tuple[list[str], list[list[Any]], str]:
    """The table without columns that say the same in every row, and those in words."""
    kept, common = [], []
    for index, name in enumerate(columns):
        values = {str(row[index]) for row in rows}
        if index and len(rows) > 1 and len(values) == 1:
            if rows[0][index] is not None:
                common.append(f"{name} {cell(rows[0][index])}")
        else:
            kept.append(index)
    words = "in all rows: " + ", ".join(common) if common else ""
    names = [str(columns[i]) for i in kept]
    return names, [[row[i] for i in kept] for row in rows], words


def rounded(value: float | None, digits: int = 5) -> float | None:
    """To so many significant digits; None for what is not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")


def cell(value: Any) -> str:
    """A value as a person reads it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def described_parts(described: dict[str, Any]) -> Iterator[Table | str]:
    """One row of the ledger as a person reads it: its fields, then a table for every part of it."""
    single = {k: v for k, v in described.items() if not isinstance(v, dict | list)}
    yield table(
        ("", ""), [(name.replace("_", " "), _plain(value)) for name, value in single.items() if value is not None]
    )
    for name, value in described.items():
        if isinstance(value, dict) and value:
            yield f"\n{name.replace('_', ' ')}"
            yield _pairs((f"  {key}", key, item) for key, item in flatten(value).items())
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            yield f"\n{name.replace('_', ' ')}"
            columns = list(dict.fromkeys(key for item in value for key in item))
            rows = [[_plain(item.get(key)) for key in columns] for item in value]
            yield table(["  " + columns[0], *columns[1:]], [["  " + cell(row[0]), *row[1:]] for row in rows])
        elif isinstance(value, list) and value:
            yield f"\n{name.replace('_', ' ')}: {', '.join(_named(name, item) for item in value)}"


def _pairs(entries: Iterable[tuple[str, str, Any]]) -> Table:
    """A table of two columns without a header: (shown name, name, value)."""
    shown = table(("name", "value"), [(words, _named(name, _plain(value))) for words, name, value in entries])
    shown.show_header = False
    return shown


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S UTC")
    if isinstance(value, list | tuple):
        return ", ".join(cell(_plain(item)) for item in value)
    return str(value) if isinstance(value, dict) else value


def flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` is `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
