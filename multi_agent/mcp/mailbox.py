"""What a campaign and an MCP client say to each other: events of the ledger, and nothing else.

The campaign's process opens a turn ("turn"), the server writes down what its client does in it ("mcp": it is there, calls a tool, or
ends the turn), the campaign runs the tool and answers ("answer"). Tools run in the campaign's process alone, which holds the
campaign, so nothing races with a launch; and either side may be killed and begin again, for nothing is kept anywhere else.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from core.config import FrozenConfig
from core.words.text import storable
from experiments.campaign.holder import TOKEN, is_alive
from experiments.ledger.models import Event
from experiments.ledger.store import Ledger, now
from experiments.runs.runner import Paused
from multi_agent.agents.agent import AGENTS
from multi_agent.llm.calls import NoAnswerError
from multi_agent.llm.choose import LLMChoice, redact
from multi_agent.tools.tool import Tool, ToolContext, clean, execute

if TYPE_CHECKING:
    from experiments.campaign.lab import Lab
    from experiments.campaign.views import EventView

TURN_S = 300.0
"""Seconds without a word of the client after which a turn is over; what was proposed by then stands."""
POLL_S = 0.1
MAX_CLIENT = 24  # letters of a client's name that are kept
TURN, WORD, ANSWER = "turn", "mcp", "answer"
ENDS = ("agent", "stage")  # what the campaign writes once a turn is over


def served(choice: LLMChoice) -> tuple[str, ...]:
    """The agents whom MCP clients are asked to be: those that `mcp:A,B` names, else all. InputError for an unknown one."""
    named = [name.strip() for name in choice.name.partition(":")[2].split(",") if name.strip()]
    return tuple(AGENTS[name].name for name in named) or tuple(AGENTS)


def client_name(said: str) -> str:
    """A client's own name as it stands in rows."""
    return re.sub(r"[^\w.-]+", "-", storable(said)).strip("-").lower()[:MAX_CLIENT] or "unknown"


# ---- the campaign's side ------------------------------------------------------------------


class Mailbox:
    """Asks MCP clients for the turns of a campaign's agents.

    emit: (kind, actor, text, **payload) records an event and shows it; its number. names: whom clients are asked to be.
    """

    def __init__(self, lab: Lab, emit: Callable[..., int], names: Sequence[str]) -> None:
        self._lab, self._emit, self._names = lab, emit, names
        self._missed: dict[str, int] = {}  # agent -> the turn that nobody took, after which nobody was there for it

    def asks(self, name: str) -> bool:
        """Whether a turn of this agent is a client's. After a turn that nobody took none is asked for until its client is back, so
        that one who went away costs one deadline."""
        if name in self._missed and any(_is_for(e, name) for e in self._lab.events([WORD], after=self._missed[name])):
            del self._missed[name]
        return name in self._names and name not in self._missed

    def take_turn(self, context: ToolContext, tools: Sequence[Tool], prompt: str, turn: Mapping[str, Any]) -> str:
        """The closing words of the client that takes a turn, "" where it ended without any.

        Raises NoAnswerError where no client takes it, Paused where the campaign is to stop. The time is not the budget's.
        """
        began = time.monotonic()
        words = f"Waits for an MCP client to be {context.actor}."
        number = self._emit(
            TURN, context.actor, words, prompt=prompt, turn=dict(turn), tools=[t.name for t in tools], holder=TOKEN
        )
        try:
            return self._listen(context, {tool.name: tool for tool in tools}, number)
        finally:
            self._lab.rest(time.monotonic() - began)

    def _listen(self, context: ToolContext, tools: Mapping[str, Tool], number: int) -> str:
        seen, last = number, time.monotonic()
        while time.monotonic() - last < TURN_S:
            for event in self._lab.events([WORD], after=seen):
                seen = event.id
                if event.payload.get("turn") != number:
                    continue
                context.client = event.actor.removeprefix("mcp:")
                if "words" in event.payload:
                    return str(event.payload["words"])
                if "tool" in event.payload:
                    result = execute(tools[event.payload["tool"]], context, event.payload["arguments"])
                    self._lab.record_event(ANSWER, context.actor, {"call": event.id, "result": redact(result)})
                last = time.monotonic()
            if self._lab.stop_event.wait(POLL_S):
                raise Paused("stopped while an MCP client had the turn")
        if not context.client:
            self._missed = dict.fromkeys(self._names, number)
            raise NoAnswerError(f"no MCP client took the turn within {TURN_S:.0f} s")
        return ""


def _is_for(word: EventView, agent: str) -> bool:
    agents = word.payload["agents"]
    return not agents or agent in agents


# ---- the server's side --------------------------------------------------------------------


class OpenTurn(FrozenConfig):
    """A turn that waits for a client."""

    number: int
    """Of its event."""
    campaign: int
    agent: str
    prompt: str
    turn: dict[str, Any]
    tools: tuple[str, ...]
    seconds_left: float
    """Until it is over, where its client stays silent."""


def open_turn(ledger: Ledger, campaign: int) -> OpenTurn | None:
    """The turn of a campaign that is worked on, if one waits for a client now."""
    with ledger.session() as session:
        query = select(Event).where(Event.campaign_id == campaign, Event.kind.in_((TURN, *ENDS)))
        event = session.scalar(query.order_by(Event.id.desc()).limit(1))
    if event is None or event.kind != TURN or not is_worked_on(ledger, campaign):
        return None
    if event.payload["holder"] != (ledger.get_campaign(campaign).holder or {}).get("token"):
        return None  # asked by a process that ended; the one that holds the campaign now asks again
    words = ledger.events(campaign, [WORD, ANSWER], after=event.id)
    if any("words" in word.payload and word.payload["turn"] == event.id for word in words):
        return None  # it is finished, and over once its last tool has answered
    silent_s = (now() - (words[-1] if words else event).created_at).total_seconds()
    told = event.payload
    return OpenTurn(
        number=event.id,
        campaign=campaign,
        agent=event.actor,
        prompt=told["prompt"],
        turn=told["turn"],
        tools=tuple(told["tools"]),
        seconds_left=round(max(TURN_S - silent_s, 0.0), 1),
    )


def is_worked_on(ledger: Ledger, campaign: int) -> bool:
    """Whether a process that lives holds a campaign."""
    row = ledger.get_campaign(campaign)
    return row.status == "running" and is_alive(row.holder)


@dataclass(frozen=True)
class Hand:
    """Who writes into the mailbox: a client by its name, and the agents that it is, none for all.

    ledger: for reading alone, so that a look waits for nobody. writable: the same to write in.
    """

    ledger: Ledger
    writable: Ledger
    client: str
    agents: tuple[str, ...] = ()

    def come(self, campaign: int, turn: OpenTurn | None) -> None:
        """Say once that the client is there: for the turn that it takes, or while the newest is nobody's or another's."""
        newest = self.ledger.events(campaign, [TURN, WORD])[-1:]
        if newest and newest[0].kind == TURN:
            self._write(campaign, {"turn": None if turn is None else turn.number})

    def call(self, turn: OpenTurn, tool: str, arguments: Mapping[str, Any]) -> int:
        """Ask for a tool's result; the number under which it is answered, that of the last call where it was the same."""
        said = {"tool": tool, "arguments": clean(dict(arguments))}
        calls = [e for e in self.ledger.events(turn.campaign, [WORD], after=turn.number) if "tool" in e.payload]
        if calls and said.items() <= calls[-1].payload.items():
            return calls[-1].id
        return self._write(turn.campaign, {"turn": turn.number} | said)

    def finish(self, turn: OpenTurn, words: str) -> None:
        """Leave the closing words of a turn."""
        self._write(turn.campaign, {"turn": turn.number, "words": clean(words, 2_000)})

    def _write(self, campaign: int, payload: dict[str, Any]) -> int:
        payload |= {"agents": list(self.agents)}
        return self.writable.record_event(campaign, WORD, f"mcp:{self.client}", payload)


def answer_to(ledger: Ledger, campaign: int, call: int) -> str | None:
    """The result of a tool, None while there is none."""
    found = (e.payload["result"] for e in ledger.events(campaign, [ANSWER], after=call) if e.payload["call"] == call)
    return next(found, None)
