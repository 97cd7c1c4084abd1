"""ReplayChat: a chat model that gives a recorded campaign's answers again, with no model and no connection.

Answers are found by agent, kind of turn and round, and by their place in the turn, so that a campaign that was paused
or went another way in between does not shift them. Row ids differ from campaign to campaign: those of the recording
are translated by where they stood in the recorded prompts and stand in the present ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from pydantic import Field

from core.errors import InputError
from core.words.commands import command
from multi_agent.llm.offline import find_turn, parse_turn

if TYPE_CHECKING:
    from experiments.campaign.views import EventView

TurnKey = tuple[str, str, int, int]  # agent, kind of turn, round, pass
ROW_ID = re.compile(r"\b[a-z]+-\d{4,}\b")


class Recording:
    """The model calls of one campaign.

    events: its "llm_call" and "stage" events. Raises InputError where no model call is among them.
    """

    def __init__(self, campaign: str, events: Iterable[EventView]) -> None:
        self.turns: dict[TurnKey, list[dict[str, Any]]] = {}
        self.row_ids: dict[str, str] = {}  # recorded id -> present id
        self.by_procedure = False
        key: dict[str, TurnKey] = {}
        for event in events:
            if event.kind == "stage":
                self.by_procedure |= event.payload.get("llm") == "offline"
                continue
            opening = [m for m in event.payload["messages"] if m["role"] == "user" and parse_turn(m["content"])]
            if opening:
                turn = parse_turn(opening[-1]["content"]) or {}
                key[event.actor] = _key(event.actor, turn)
                self.turns[key[event.actor]] = []  # a turn begun again after a pause replaces the unfinished one
            if event.actor in key:
                self.turns[key[event.actor]].append(event.payload)
        if not self.turns:
            raise InputError(f"--llm replay:{campaign}: no model call is recorded there. See: {command('campaigns')}")

    def translate(self, text: str) -> str:
        """`text` with the recording's row ids as those of the present campaign."""
        return ROW_ID.sub(lambda found: self.row_ids.get(found[0], found[0]), text)

    def learn_ids(self, recorded: Sequence[str], present: Sequence[str]) -> None:
        """Match row ids by their place in the same messages."""
        for old, new in zip(recorded, present, strict=True):
            before, now = ROW_ID.findall(old), ROW_ID.findall(new)
            if len(before) == len(now):
                self.row_ids.update(zip(before, now, strict=True))


def _key(agent: str, turn: Mapping[str, Any]) -> TurnKey:
    return (agent, turn["kind"], turn.get("round", 0), turn.get("pass", 0))


class ReplayChat(BaseChatModel):
    """Answers as `agent` did in `recording`."""

    recording: Any = Field(exclude=True, repr=False)
    agent: str

    @property
    def _llm_type(self) -> str:
        return "replay"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.bind(tools=tools)

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        recording: Recording = self.recording
        start, turn = find_turn(messages)
        place = sum(isinstance(m, AIMessage) for m in messages[start:])
        calls = recording.turns.get(_key(self.agent, turn), [])
        if place >= len(calls):
            raise LookupError(f"{self.agent} has no recorded answer at this point")
        recorded = calls[place]
        then = [str(m.get("content") or "") for m in recorded["messages"]]
        now = [m.text for m in messages][-len(then) :] if then else []
        if len(then) == len(now):
            recording.learn_ids(then, now)
        if recorded["error"]:
            raise RuntimeError(f"recorded: {recorded['error']}")
        return ChatResult(generations=[ChatGeneration(message=self._message(recorded, place))])

    def _message(self, recorded: dict[str, Any], place: int) -> AIMessage:
        good, bad = [], []
        for number, call in enumerate(recorded["tool_calls"]):
            arguments, id = self.recording.translate(call["arguments"]), f"call_{place}_{number}"
            try:
                good.append({"name": call["name"], "args": json.loads(arguments), "id": id})
            except ValueError:
                bad.append(
                    {"name": call["name"], "args": arguments, "id": id, "error": None, "type": "invalid_tool_call"}
                )
        return AIMessage(self.recording.translate(recorded["answer"]), tool_calls=good, invalid_tool_calls=bad)
