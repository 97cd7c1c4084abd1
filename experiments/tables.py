"""Tables of facts and how a person sees them. Imports little, so that commands which only read start fast."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict

from core.config import FrozenConfig
from core.words.text import harmless

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

    shown = Table(
        title=None if title is None else Text(harmless(title)),
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for index, name in enumerate(columns):
        values = [row[index] for row in rows]
        numeric = bool(rows) and all(isinstance(value, int | float) or value is None for value in values)
        short = all(len(cell(value)) <= 16 for value in values)
        shown.add_column(Text(harmless(name)), justify="right" if numeric else "left", overflow="fold", no_wrap=short)
    for row in rows:
        shown.add_row(*(Text(named_cell(name, value)) for name, value in zip(columns, row, strict=True)))
    return shown


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
    return harmless(str(value), lines=True)


def named_cell(name: str, value: Any) -> str:
    """A seed is a name and no amount, so it has no thousands separators."""
    return str(value) if name.rpartition(".")[2] in ("seed", "seeds") and isinstance(value, int) else cell(value)


def plain_data(value: Any) -> Any:
    """The value with pydantic models in it, at any depth, as plain data: what `--json` prints."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {name: plain_data(item) for name, item in value.items()}
    return [plain_data(item) for item in value] if isinstance(value, list | tuple) else value


def flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` is `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
