"""The ends of what a configuration allows, read from its fields, so that a new kind or field is tried with no edit."""

from __future__ import annotations

import math
import random
import sys
import typing
from collections.abc import Iterator
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

LARGEST_SIZE = 32  # whole numbers are sizes and counts; what is larger costs minutes and no new arithmetic
LISTS = {"blocks": (("s5",), ("mamba",), ("lru", "mamba"), ("s5", "attention", "lru", "mamba", "s4d", "mlp"))}


def ends(name: str, field: FieldInfo, *, largest: float = LARGEST_SIZE) -> tuple[Any, ...]:
    """The values of a field at which it is most likely to fail, its default first where it has one."""
    kind, default = field.annotation, () if field.is_required() else (field.get_default(call_default_factory=True),)
    if name in LISTS:
        return default + LISTS[name]
    if kind is bool:
        return (False, True)
    if typing.get_origin(kind) is typing.Literal:
        return typing.get_args(kind)
    numbers = {t for t in (kind, *typing.get_args(kind)) if t in (int, float)}
    if not numbers:
        return default
    low, high = -1e300, 1e300
    for bound in field.metadata:
        if isinstance(bound, Ge):
            low = bound.ge
        elif isinstance(bound, Gt):
            low = sys.float_info.min if bound.gt == 0 else math.nextafter(bound.gt, math.inf)  # pyright: ignore
        elif isinstance(bound, Le):
            high = bound.le
        elif isinstance(bound, Lt):
            high = math.nextafter(bound.lt, -math.inf)  # pyright: ignore
    if int in numbers:
        return tuple(dict.fromkeys([int(low), int(low) + 1, int(min(high, largest))]))
    return *default, low, high


def alone_and_mixed(
    config_type: type[BaseModel], mixtures: int, seed: int = 0, **fixed: Any
) -> Iterator[dict[str, Any]]:
    """Fields with every end alone, the rest as `fixed` or by default; then `mixtures` draws of all fields at once."""
    fields = {name: ends(name, field) for name, field in config_type.model_fields.items() if name != "kind"}
    for name, values in fields.items():
        for value in values:
            yield {**fixed, name: value}
    draw = random.Random(seed)
    for _ in range(mixtures):
        yield {name: draw.choice(values) for name, values in fields.items()}
