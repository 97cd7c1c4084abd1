"""What a tool is: typed arguments in, a typed result out, and `execute`, from which no exception of a tool escapes.

Whatever a model sends, it gets data back: the result, or `{"error": ...}` that names the argument, the value, what is
allowed and the nearest valid choice. No tool takes a measured value, and none reaches selection, confirmation or the
judge: `ToolContext` carries the lab, and the functions in this folder call only its search side.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, Field, ValidationError

from core.config import FrozenConfig
from core.errors import InputError, nearest
from core.words.text import storable
from experiments.runs.runner import Paused
from experiments.vocabulary import Arm
from multi_agent.communication.honesty import mark_unknown
from multi_agent.llm.choose import redact

if TYPE_CHECKING:
    from experiments.campaign.lab import Lab
    from multi_agent.communication.message_broker import MessageBroker
    from multi_agent.communication.shared_memory import SharedMemory

MAX_RESULT_CHARS = 12_000
FIRST = ("run", "score", "noise floors", "trend", "forecast")  # columns that a one-line summary begins with
RoundOwner = Literal["default", "agents", "optimizer"]
"""Whose configuration a search round runs."""

RowId = Annotated[str, Field(pattern=r"^[a-z]+-\d+$", max_length=40)]


class Param(FrozenConfig):
    """One hyperparameter by name."""

    name: str = Field(max_length=120)
    """Such as model.state_dim."""
    value: bool | int | float | Annotated[str, Field(max_length=120)]
    """The value to set."""


Values = Annotated[list[Param], Field(max_length=60)]


class NoArguments(FrozenConfig):
    """A tool that takes nothing."""


class ArmArguments(FrozenConfig):
    """One side of the comparison."""

    arm: Arm
    """Side of the comparison."""


@dataclass
class ToolContext:
    """What the tools of one agent may reach during its turn."""

    lab: Lab
    actor: str  # "State-Modeling"
    role: str | None  # its slice of the configuration, "state-modeling"; None proposes nothing
    emit: Callable[..., object]  # (kind, actor, text, **payload) -> event
    broker: MessageBroker
    memory: SharedMemory
    owner: RoundOwner = "optimizer"  # whose configuration the present round runs
    interrupt: BaseException | None = None  # a pause that has to pass through the agent framework
    proposed: dict[str, str] = field(default_factory=dict[str, str])  # arm -> reason of what this turn proposed
    heard: list[str] = field(default_factory=list[str])  # what this turn's measuring tools gave
    client: str = ""  # the MCP client that takes this turn
    given: str = ""  # this turn's prompt, and what its agent predicts; empty for a fixed procedure, which says nothing of its own

    def begin_turn(self, owner: RoundOwner) -> None:
        """Forget the last turn."""
        self.owner, self.interrupt, self.proposed, self.heard = owner, None, {}, []
        self.client = self.given = ""

    def checked(self, words: str) -> str:
        """Words of the agent in which a measured number that neither the rows nor its turn hold is marked."""
        if not self.given:
            return words
        trials = (trial for arm in self.lab.arms for trial in self.lab.trials.finished(arm))
        return mark_unknown(words, " ".join([self.given, *self.heard, *(str(trial.score) for trial in trials)]))


@dataclass(frozen=True)
class Tool:
    """A named function with its argument model. The function's docstring is what a model reads about it."""

    name: str
    arguments: type[BaseModel]
    run: Callable[[ToolContext, Any], BaseModel]
    measures: bool = False
    """Whether its results are rows or measurements, whose numbers a narrative may tell; never what a model put in."""
    writes: Literal["nothing", "once", "more"] = "more"
    """What a call leaves behind: nothing, the same however often it is repeated, or more each time."""

    @property
    def result(self) -> type[BaseModel]:
        """The type of its result."""
        return get_type_hints(self.run).get("return", BaseModel)

    @property
    def description(self) -> str:
        return " ".join((self.run.__doc__ or "").split())


def execute(tool: Tool, context: ToolContext, raw: Mapping[str, Any]) -> str:
    """Run `tool` on a model's raw arguments and give the JSON text for the model. Records call and result.

    A pause (Paused, KeyboardInterrupt) is kept in `context.interrupt` for the workflow to raise.
    """
    raw = json.loads(redact(json.dumps(clean(dict(raw)))))  # a key that a model repeats is written nowhere
    shown = ", ".join(f"{k[:40]}={_short(v)}" for k, v in raw.items())
    context.emit("tool_call", context.actor, f"{tool.name}({shown})", tool=tool.name, arguments=raw)
    result = _attempt(tool, context, raw)
    failed = isinstance(result, str)
    text = json.dumps({"error": result[:2_000]}) if isinstance(result, str) else result.model_dump_json()
    if len(text) > MAX_RESULT_CHARS:
        text = shortened(
            text,
            f"{tool.name} with other arguments ({', '.join(tool.arguments.model_fields) or 'none'})",
            MAX_RESULT_CHARS,
        )
    if tool.measures and not failed:
        context.heard.append(text)
    shown = result if isinstance(result, str) else summary(result)
    context.emit("tool_result", context.actor, shown[:300], tool=tool.name, failed=failed, result=text)
    return text


def shortened(text: str, rest: str, most: int) -> str:
    """A result's JSON text in at most `most` characters, valid again: its longest lists, and where none is left its longest words, lose
    their ends, and `left_out` says of what how much is there.

    rest: what gives the rest, such as "ledger_query with other arguments (limit)".
    """
    data = json.loads(text)
    cut: dict[str, tuple[Any, Any, int]] = {}  # place -> what holds the part, under what, and its length before
    while len(short := json.dumps({"left_out": _left_out(cut, rest)} | data, ensure_ascii=False)) > most:
        parts = list(_parts(data))
        if not parts:
            return json.dumps({"error": f"the result is too long ({len(text):,} characters): call {rest}"})
        holder, key, place = max(parts, key=lambda part: _weight(part[0][part[1]]))
        cut.setdefault(place, (holder, key, len(holder[key])))
        holder[key] = holder[key][: len(holder[key]) * 3 // 4]
    return short


def _left_out(cut: Mapping[str, tuple[Any, Any, int]], rest: str) -> str:
    told = ", ".join(
        f"{len(holder[key])} of {many} {'characters' if isinstance(holder[key], str) else 'entries'} of {place}"
        for place, (holder, key, many) in cut.items()
    )
    return f"The result was too long. Here are {told}. For the rest call {rest}."


def _parts(value: Any, place: str = "") -> Iterator[tuple[Any, Any, str]]:
    """Every list of two or more entries and every long text below a value: what holds it, under what, and its place in words."""
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        here = f"{place}.{key}".removeprefix(".")
        if (isinstance(part, list) and len(part) > 1) or (isinstance(part, str) and len(part) > 80):
            yield value, key, here
        yield from _parts(part, here)


def _weight(part: Any) -> tuple[bool, int]:
    return isinstance(part, list), len(json.dumps(part))


def _attempt(tool: Tool, context: ToolContext, raw: Mapping[str, Any]) -> BaseModel | str:
    """The tool's result, or what was wrong in words."""
    if context.interrupt is not None:
        return "the campaign is paused"
    try:
        return tool.run(context, tool.arguments.model_validate(raw))
    except ValidationError as problem:
        return explain(problem, tool.arguments)
    except InputError as problem:
        return str(problem)
    except (Paused, KeyboardInterrupt) as pause:
        context.interrupt = pause
        return "the campaign is paused"
    except Exception as problem:  # a fault of ours: the model is told, the workflow goes on
        return f"{tool.name} failed: {type(problem).__name__}: {problem}"


def clean(value: Any, longest: int = 4_000) -> Any:
    """`value` as data that every database can store: no lone surrogates, NUL or NaN, nothing endless or unknown."""
    if isinstance(value, str):
        return storable(value[:longest])
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {clean(str(k), 200): clean(v, longest) for k, v in list(value.items())[:200]}
    if isinstance(value, list | tuple):
        return [clean(v, longest) for v in value[:200]]
    if isinstance(value, int) and abs(value) > 2**63:
        return str(value)[:80]
    return value if isinstance(value, bool | int | float) or value is None else clean(str(value), longest)


def explain(problem: ValidationError, arguments: type[BaseModel]) -> str:
    """Every complaint: path, what came, what is allowed, and the nearest name for an unknown argument."""
    lines = []
    for item in problem.errors(include_url=False)[:6]:
        path = ".".join(str(part) for part in item["loc"]) or "arguments"
        if item["type"] == "extra_forbidden" and len(item["loc"]) == 1:
            close = nearest(path[:80], arguments.model_fields)
            line = f"{path[:80]!r}: no such argument; allowed: {', '.join(arguments.model_fields) or 'none'}"
            lines.append(line + (f"; did you mean {close!r}?" if close else ""))
        elif item["type"] == "missing":
            lines.append(f"{path}: missing")
        else:
            lines.append(f"{path[:120]}: got {_short(item['input'])}: {item['msg']}")
    return "; ".join(lines)


def values_dict(values: list[Param]) -> dict[str, bool | int | float | str]:
    """The flat list that models can fill as a mapping. InputError where a name comes twice."""
    names = [p.name for p in values]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"values: {', '.join(twice)} given more than once, allowed: each name once")
    return {p.name: p.value for p in values}


def summary(result: BaseModel) -> str:
    """One line for the screen: the rows of a table, or the result as JSON."""
    data = result.model_dump(mode="json")
    if "columns" in data and "rows" in data:
        rows = data["rows"]
        cells = dict(zip(data["columns"], rows[0], strict=False)) if rows else {}
        order = sorted(cells, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
        first = (
            ", ".join(f"{name} {_short(cells[name])}" for name in order if cells[name] is not None)
            if rows
            else str(data.get("note") or "")
        )
        return f"{len(rows)} row{'s' * (len(rows) != 1)}" + (f": {first}" if first else "")
    return ", ".join(f"{k} {_short(v)}" for k, v in data.items() if v not in (None, "", [], {})) or "nothing"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list) and all(isinstance(v, Mapping) and set(v) == {"name", "value"} for v in value):
        return "[" + ", ".join(f"{v['name']}={_short(v['value'])}" for v in value[:12]) + "]"
    if isinstance(value, list) and value and all(isinstance(v, Mapping) and "name" in v for v in value):
        return "[" + ", ".join(str(v["name"]) for v in value[:12]) + "]"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
