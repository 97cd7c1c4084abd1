"""The base of every configuration value: frozen, strict about unknown fields, documented by its attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from core.errors import nearest


class FrozenConfig(BaseModel):
    """A typed value that may cross folders. Attribute docstrings become CLI help, tool schema and report text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def search(
    *,
    low: float | None = None,
    high: float | None = None,
    log: bool = False,
    choices: tuple[Any, ...] | None = None,
    role: str | None = None,
    family: str | None = None,
    only_if: tuple[str, tuple[Any, ...]] | None = None,
    since: int = 1,
    slots: int = 0,
) -> dict[str, Any]:
    """Marks a field as tunable: `Field(default=64, json_schema_extra=search(choices=(32, 64, 128)))`.

    Either a range (`low`, `high`, optionally logarithmic) or `choices`. role: which of the crew's roles proposes it,
    where it is not the usual one of the configuration it stands in. family: what it is about, where that is not the
    whole subject of the role; a search that has stopped gaining changes one family at a time. only_if: another field of the
    configuration and the values of it with which this one has an effect. since: the generation of marks that it came with;
    a search that began with an earlier one goes on without it, so that what it suggests does not change. slots: of a field that is a
    list of choices the most that are searched; each place is a choice of its own, which may stay empty but for the first.
    """
    own = {"low": low, "high": high, "log": log, "choices": choices, "role": role, "family": family, "slots": slots}
    return {"search": {**own, "only_if": only_if, "since": since}}


def explain_validation(
    error: ValidationError, fields_at: Callable[[tuple[str, ...]], Iterable[str]] | None = None
) -> str:
    """Every complaint of pydantic in one line each: path, value, what is allowed.

    fields_at: the names of the fields of the configuration at a path.
    """
    lines = []
    for item in error.errors(include_url=False):
        place = tuple(str(part) for part in item["loc"])
        value = "" if item["type"] in ("missing", "json_invalid") else f", got {item['input']!r:.80}"
        words = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            names = sorted(fields_at(place[:-1])) if fields_at is not None else []
            close = nearest(place[-1], names)
            words = "no such field." + (f" Did you mean {close!r}?" if close else "") + (f" Allowed: {', '.join(names)}" if names else "")  # fmt: skip
        lines.append(f"{'.'.join(place) or '(whole)'}{value}: {words}")
    return "; ".join(lines)
