"""OfflineResearcher: a chat model that is a fixed procedure. It drives the same crew, tools and workflow with no key.

For each kind of turn there is one procedure: a generator that yields tool calls and receives their results. The
conversation so far is the only state: each answer replays the procedure over the results that came back and gives the
next call, or the closing words. Every value it proposes comes out of a tool result; it invents none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from pydantic import Field

Procedure = Generator[tuple[str, dict[str, Any]], Any, str]  # yields (tool, arguments), gets its result, returns words


class OfflineResearcher(BaseChatModel):
    """Follows `PROCEDURES` for the turn named in the `Turn:` line of the prompt."""

    profile: Any = Field(default={"max_input_tokens": 1_000_000})  # it reads everything at once

    @property
    def _llm_type(self) -> str:
        return "offline-researcher"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.bind(tools=tools)

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        offered = {tool["function"]["name"] for tool in kwargs.get("tools") or ()}
        start, turn = find_turn(messages)
        results = [_parse(m.text) for m in messages[start + 1 :] if isinstance(m, ToolMessage)]
        call, words = _advance(PROCEDURES[turn["kind"]](turn), results, offered)
        if call is None:
            message = AIMessage(words)
        else:
            name, arguments = call
            message = AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": f"call_{len(results)}"}])
        return ChatResult(generations=[ChatGeneration(message=message)])


def find_turn(messages: Sequence[BaseMessage]) -> tuple[int, dict[str, Any]]:
    """Position and content of the newest `Turn: {...}` line in a prompt."""
    for position in range(len(messages) - 1, -1, -1):
        turn = parse_turn(messages[position].text) if isinstance(messages[position], HumanMessage) else None
        if turn is not None:
            return position, turn
    raise ValueError("this model only answers prompts of the research workflow")


def parse_turn(text: str) -> dict[str, Any] | None:
    """The content of the first `Turn: {...}` line, or None."""
    found = re.search(r"\bTurn: (\{.*\})$", text, re.MULTILINE)
    return json.loads(found[1]) if found else None


def _advance(
    procedure: Procedure, results: Sequence[Any], offered: set[str]
) -> tuple[tuple[str, dict[str, Any]] | None, str]:
    """The next call after `results`, or the closing words. A call to a tool that is not offered yields None at once."""
    remaining = iter(results)
    try:
        call = next(procedure)
        while True:
            if call[0] not in offered:
                call = procedure.send(None)
                continue
            try:
                result = next(remaining)
            except StopIteration:
                return call, ""
            call = procedure.send(result)
    except StopIteration as end:
        return None, end.value


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"error": text}


def _get(result: Any, key: str, default: Any) -> Any:
    return result.get(key, default) if isinstance(result, dict) else default


def _row_ids(table: Any) -> list[str]:
    """Ids such as r-0042 in the rows of a table, in order and once each."""
    cells = [cell for row in _get(table, "rows", []) for cell in row if isinstance(cell, str)]
    return list(dict.fromkeys(cell for cell in cells if re.fullmatch(r"[a-z]+-\d+", cell)))


def _plan(turn: dict[str, Any]) -> Procedure:
    text = "Propose your slice of every arm from the optimizer's suggestion of the round."
    yield "tell", {"to": "all", "text": text, "evidence": []}
    return "Every arm gets the same optimizer, the same number of trials and the same environment steps."


def _suggested(turn: dict[str, Any], arm: str, evidence: Sequence[str]) -> dict[str, Any]:
    """The arguments that take what code suggests, of which nothing else is expected."""
    reason = f"What code suggests for round {turn['round'] + 1}: the default first, then the optimizer's choice from the rows so far."
    return {
        "arm": arm,
        "base": "suggestion",
        "changes": [],
        "prior_or_rows": "rows",
        "expected_delta": 0.0,
        "low": 0.0,
        "high": 0.0,
        "reason": reason,
        "evidence": list(evidence),
    }


def _propose(turn: dict[str, Any]) -> Procedure:
    """Take the optimizer's suggestion for the own slice of every arm."""
    said = []
    rows: list[str] = []
    if turn["round"] == 0:  # the probes of the Environment agent
        yield "describe_task", {}
        yield "measure_throughput", {"num_envs": 32}
    for arm in turn["arms"]:
        seen = yield "ledger_query", {"view": "top" if turn["round"] else "baseline", "arm": arm, "limit": 3}
        if turn["round"] == 0:  # the probe of the State-Modeling agent
            yield "memory_length", {"arm": arm, "values": []}
        rows += _row_ids(seen)
        for run in _row_ids(seen)[:1]:
            yield "analyse_curves", {"arm": arm, "run": run, "limit": 1}
            yield "adaptation_curve", {"run": run}
        arguments = _suggested(turn, arm, _row_ids(seen))
        check = yield "check_feasibility", arguments
        if problems := _get(check, "problems", []):
            arguments["reason"] += f" Feasibility: {'; '.join(map(str, problems))}."
        proposal = yield "propose", arguments
        error = _get(proposal, "error", None)
        said.append(f"{arm}: {error}" if error else f"{arm}: took the {_get(proposal, 'source', 'default')}'s.")
    if turn.get("spoken"):  # who spoke before knows nothing of this slice, and looks at the whole again
        text = f"{' '.join(said)} Does your slice still fit the whole configuration?"
        yield "tell", {"to": turn["spoken"][-1], "text": text[:800], "evidence": list(dict.fromkeys(rows))[:3]}
    return " ".join(said)


def _revise(turn: dict[str, Any]) -> Procedure:
    """Keep the suggestion; where a colleague asked, look first whether the whole configuration can still be trained."""
    said = []
    for arm in turn["arms"] if "spoken" in turn else ():
        check = yield "check_feasibility", _suggested(turn, arm, [])
        problems = _get(check, "problems", [])
        said.append(f"{arm}: {'; '.join(map(str, problems)) if problems else 'my slice fits the whole configuration'}.")
    return " ".join([*said, "The optimizer's suggestion stands."])


def _criticise(turn: dict[str, Any]) -> Procedure:
    """Every configuration is the optimizer's, so there is nothing to veto."""
    return "Nothing is vetoed: the optimizer's suggestion stands."
    yield  # a procedure without a call


def _report(turn: dict[str, Any]) -> Procedure:
    said = [f"The verdict is {turn['outcome']}."]
    for arm in turn["arms"]:
        best = yield "ledger_query", {"view": "incumbent", "arm": arm, "limit": 1}
        ids = _row_ids(best)
        if ids:
            said.append(f"The best configuration of {arm} in the search is {ids[0]}.")
    failed = yield "ledger_query", {"view": "failures", "arm": None, "limit": 5}
    ids = _row_ids(failed)
    said.append(f"Runs that failed: {', '.join(ids)}." if ids else "No run failed.")
    return " ".join(said)


PROCEDURES: dict[str, Callable[[dict[str, Any]], Procedure]] = {
    "plan": _plan,
    "propose": _propose,
    "revise": _revise,
    "criticise": _criticise,
    "report": _report,
}
