"""Tables of facts and how a person sees them. Imports little, so that commands which only read start fast."""

from __future__ import annotations

from collections.abc import Sequence
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
        shown.add_row(*(Text(cell(value)) for value in row))
    return shown


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


def cell(value: Any) -> str:
    """A value as a person reads it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}" if value < 50_000_000 else str(value)  # seeds are names, not amounts
    return str(value)


def flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` is `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
