"""The filter language of `runs --where`: `task=halfcheetah-vel and status=done,failed and score>=-50`.

Conditions are joined with `and`; a value list with commas means any of them; `~` is "contains"; `none` is an empty
value; ids are written as anywhere (`campaign=@last`). Every word becomes a bound parameter of a fixed column, so nothing that is typed can be SQL.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, and_, or_

from core.errors import InputError, bad_value, unknown_name
from experiments.ledger.ids import Kind, parse_id
from experiments.ledger.models import Run
from experiments.ledger.scores import SCORE

Find = Callable[[str, Kind], int]
COLUMNS: dict[str, Any] = {
    "run": Run.id,
    "campaign": Run.campaign_id,
    "claim": Run.claim_id,
    "rerun_of": Run.rerun_of,
    "purpose": Run.purpose,
    "pool": Run.pool,
    "arm": Run.arm,
    "trial": Run.trial,
    "proposer": Run.proposer,
    "task": Run.task,
    "task_version": Run.task_version,
    "model": Run.model,
    "variant": Run.variant_hash,
    "config": Run.config_hash,
    "seed": Run.seed,
    "parameters": Run.parameters,
    "status": Run.status,
    "cause": Run.cause,
    "env_steps": Run.env_steps,
    "score": SCORE,
    "train_s": Run.train_s,
    "wall_s": Run.wall_s,
}
IDS: dict[str, Kind] = {"run": "run", "rerun_of": "run", "campaign": "campaign", "claim": "claim"}
INTEGERS = ("trial", "seed", "parameters", "env_steps")
NUMBERS = ("score", "train_s", "wall_s")
HASHES = ("variant", "config")
CONDITION = re.compile(r"""\s*([\w.]+)\s*(!=|<=|>=|=|<|>|~)\s*("[^"]*"|'[^']*'|[^\s"']+)""")


def parse_where(words: str, find: Find = parse_id) -> list[ColumnElement[bool]]:
    """The conditions of a `--where`. InputError names the part that is wrong and what is allowed.

    find: a ledger's `resolve`, where ids such as `campaign=@last` are allowed too.
    """
    conditions, position = [], 0
    while True:
        match = CONDITION.match(words, position)
        if match is None:
            rest = words[position:].strip() or "nothing"
            raise bad_value(
                "--where",
                rest,
                "conditions such as task=halfcheetah-vel, joined with 'and' (operators = != < <= > >= ~)",
                hint=f"Columns: {', '.join(COLUMNS)}.",
            )
        name, operator, raw = match.groups()
        conditions.append(_condition(name, operator, raw, find))
        position = match.end()
        if not words[position:].strip():
            return conditions
        joint = re.compile(r"\s+and(?=\s)", re.IGNORECASE).match(words, position)
        if joint is None:
            raise bad_value(
                "--where",
                words[position:].strip(),
                "'and' between conditions; several values of one column go in a list, such as status=done,failed",
            )
        position = joint.end()


def parse_columns(argument: str, words: str) -> list[str]:
    """The column names of a comma-separated list."""
    names = [name.strip() for name in words.split(",") if name.strip()]
    for name in names:
        if name not in COLUMNS:
            raise unknown_name(f"column in {argument}", name, COLUMNS)
    if not names:
        raise bad_value(argument, words, f"columns: {', '.join(COLUMNS)}")
    return names


def _condition(name: str, operator: str, raw: str, find: Find) -> ColumnElement[bool]:
    if name not in COLUMNS:
        raise unknown_name("column in --where", name, COLUMNS)
    column = COLUMNS[name]
    quoted = raw[0] in "\"'"
    values = [raw[1:-1]] if quoted else [part for part in raw.split(",") if part]
    if not values:
        raise bad_value(f"--where {name}", raw, "a value after the operator")
    if operator == "~":
        if name in IDS or name in INTEGERS or name in NUMBERS:
            raise bad_value(f"--where {name}", f"~{raw}", "= != < <= > >= for a number")
        return or_(*(column.icontains(value, autoescape=True) for value in values))
    if operator in ("=", "!="):
        equal = or_(*(_equal(name, column, value, quoted, find) for value in values))
        return equal if operator == "=" else ~equal
    if len(values) > 1:
        raise bad_value(f"--where {name}", raw, f"one value after {operator}")
    value = _value(name, values[0], find)
    if isinstance(value, str):
        raise bad_value(f"--where {name}", f"{operator}{raw}", "= != ~ for words")
    return {"<": column < value, "<=": column <= value, ">": column > value, ">=": column >= value}[operator]


def _equal(name: str, column: Any, text: str, quoted: bool, find: Find) -> ColumnElement[bool]:
    if text.lower() == "none" and not quoted:
        return column.is_(None)
    if name in HASHES:
        return column.startswith(text, autoescape=True)
    return and_(column.is_not(None), column == _value(name, text, find))


def _value(name: str, text: str, find: Find) -> int | float | str:
    if name in IDS:
        number = find(text, IDS[name]) if text.startswith("@") else parse_id(text, IDS[name])
        return min(number, 2**63 - 1)  # larger ones fit no row, and no database
    if name not in INTEGERS and name not in NUMBERS:
        return text
    try:
        number = float(text.replace("_", ""))
    except ValueError:
        number = float("nan")
    if number != number or abs(number) >= 2**63:
        raise bad_value(f"--where {name}", text, "a number") from None
    return int(number) if number.is_integer() else number


def parse_sort(words: str, allowed: dict[str, Any] | list[str]) -> tuple[str, bool]:
    """(column, descending) of `score` or `-score`."""
    name = words.strip()
    descending = name.startswith("-")
    name = name.lstrip("+-")
    if name not in allowed:
        error: InputError = unknown_name("column in --sort", name, allowed)
        raise error
    return name, descending
