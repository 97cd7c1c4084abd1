"""The base of every configuration value: frozen, strict about unknown fields, documented by its attributes."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


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
) -> dict[str, Any]:
    """Marks a field as tunable: `Field(default=64, json_schema_extra=search(choices=(32, 64, 128)))`.

    Either a range (`low`, `high`, optionally logarithmic) or `choices`. role: which of the crew's roles proposes it,
    where it is not the usual one of the configuration it stands in. family: what it is about, where that is not the
    whole subject of the role; a search that has stopped gaining changes one family at a time.
    """
    return {"search": {"low": low, "high": high, "log": log, "choices": choices, "role": role, "family": family}}
