"""What a campaign and an MCP client say to each other: events of the ledger, and nothing else.

The campaign's process opens a turn ("turn"), the server writes down what its client does in it ("mcp": it is there, takes the turn, calls
a tool, ends the turn or leaves it), the campaign runs the tool and answers ("answer"). A turn has one client at most: who took it first, until it
leaves, its server ends or the turn is over. Tools run in the campaign's process alone, which holds the
campaign, so nothing races with a launch; and either side may be killed and begin again, for nothing is kept anywhere else.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.config import FrozenConfig
from core.errors import InputError
from core.words.text import storable
from experiments.campaign.holder import TOKEN, is_alive, process_here, standing_of
from experiments.ledger.models import Campaign, Event
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


class Holder(FrozenConfig):
    """The client that has a turn."""

    session: str
    client: str
    process: dict[str, Any]
    """The server's, as `experiments/campaign/holder.py` tells processes apart: with it, all its sessions end."""


class OpenTurn(FrozenConfig):
    """A turn that waits for a client, or for the rest of what its client does."""

    number: int
    """Of its event."""
    campaign: int
    agent: str
    prompt: str
    turn: dict[str, Any]
    tools: tuple[str, ...]
    seconds_left: float
    """Until it is over, where its client stays silent."""
    holder: Holder | None
    """Who has it; None while it is anybody's."""


def open_turn(ledger: Ledger, campaign: int) -> OpenTurn | None:
    """The turn of a campaign that is worked on, if one waits for a client now."""
    with ledger.session() as session:
        return _open_turn(session, campaign)


def _open_turn(session: Session, campaign: int) -> OpenTurn | None:
    query = select(Event).where(Event.campaign_id == campaign, Event.kind.in_((TURN, *ENDS)))
    event = session.scalar(query.order_by(Event.id.desc()).limit(1))
    row = session.get_one(Campaign, campaign)
    if event is None or event.kind != TURN or standing_of(row) != "running":
        return None
    if event.payload["holder"] != (row.holder or {}).get("token"):
        return None  # asked by a process that ended; the one that holds the campaign now asks again
    said = select(Event).where(Event.campaign_id == campaign, Event.kind.in_((WORD, ANSWER)), Event.id > event.id)
    words = list(session.scalars(said.order_by(Event.id)))
    own = [word for word in words if word.kind == WORD and word.payload["turn"] == event.id]
    if any("words" in word.payload for word in own):
        return None  # it is finished, and over once its last tool has answered
    heard = [word for word in words if word.kind == ANSWER or word in own]  # not of others, who keep no turn open
    silent_s = (now() - (heard[-1] if heard else event).created_at).total_seconds()
    told = event.payload
    return OpenTurn(
        number=event.id,
        campaign=campaign,
        agent=event.actor,
        prompt=told["prompt"],
        turn=told["turn"],
        tools=tuple(told["tools"]),
        seconds_left=round(max(TURN_S - silent_s, 0.0), 1),
        holder=_holder(own),
    )


def _holder(words: Sequence[Event]) -> Holder | None:
    """Who took a turn last, and has neither left it nor lost its server since."""
    holder: Holder | None = None
    for word in words:
        if "takes" in word.payload:
            holder = Holder(client=word.actor.removeprefix("mcp:"), **word.payload["takes"])
        elif holder is not None and word.payload.get("leaves") == holder.session:
            holder = None
    return holder if holder is not None and is_alive(holder.process) else None


def is_worked_on(ledger: Ledger, campaign: int) -> bool:
    """Whether a process that lives holds a campaign."""
    return standing_of(ledger.get_campaign(campaign)) == "running"


@dataclass(frozen=True)
class Hand:
    """Who writes into the mailbox: one session of a client by the client's name, and the agents that it is, none for all.

    ledger: for reading alone, so that a look waits for nobody. writable: the same to write in. What a turn's client writes is written in the
    transaction that has seen the turn to be its own, so that of two sessions, or two calls of one, each turn has one.
    """

    ledger: Ledger
    writable: Ledger
    client: str
    session: str
    agents: tuple[str, ...] = ()

    def come(self, campaign: int) -> None:
        """Say once that the client is there, while the newest turn is another agent's or nobody's."""
        newest = self.ledger.events(campaign, [TURN, WORD])[-1:]
        if newest and newest[0].kind == TURN:
            with self._alone(campaign) as write:
                self._write(write, campaign, {"turn": None})

    def take(self, campaign: int, number: int) -> OpenTurn | None:
        """Take a turn that is anybody's; None where it is over, or where another session was first."""
        with self._alone(campaign) as write:
            turn = _open_turn(write, campaign)
            if turn is None or turn.number != number:
                return None
            if turn.holder is None:
                taken = {"session": self.session, "process": process_here(os.getpid())}
                self._write(write, campaign, {"turn": number, "takes": taken})
                turn = turn.model_copy(update={"holder": Holder(client=self.client, **taken)})
            return turn if self.has(turn) else None

    def has(self, turn: OpenTurn) -> bool:
        """Whether a turn is this session's."""
        return turn.holder is not None and turn.holder.session == self.session

    def leave(self, campaign: int) -> None:
        """Give back a turn that the session has: its client is gone."""
        turn = open_turn(self.ledger, campaign)
        if turn is not None and self.has(turn):
            with self._alone(campaign) as write:
                self._write(write, campaign, {"turn": turn.number, "leaves": self.session})

    def call(self, turn: OpenTurn, tool: str, arguments: Mapping[str, Any]) -> int:
        """Ask for a tool's result; the number under which it is answered, that of the last call where it was the same. InputError
        where the turn is no more the session's."""
        said = {"tool": tool, "arguments": clean(dict(arguments))}
        with self._alone(turn.campaign) as write:
            self._must_have(write, turn)
            query = select(Event).where(Event.campaign_id == turn.campaign, Event.kind == WORD, Event.id > turn.number)
            calls = [e for e in write.scalars(query.order_by(Event.id)) if "tool" in e.payload]
            if calls and said.items() <= calls[-1].payload.items():
                return calls[-1].id
            return self._write(write, turn.campaign, {"turn": turn.number} | said)

    def finish(self, turn: OpenTurn, words: str) -> None:
        """Leave the closing words of a turn. InputError where it is no more the session's."""
        with self._alone(turn.campaign) as write:
            self._must_have(write, turn)
            self._write(write, turn.campaign, {"turn": turn.number, "words": clean(words, 2_000)})

    def _must_have(self, write: Session, turn: OpenTurn) -> None:
        found = _open_turn(write, turn.campaign)
        if found is None or found.number != turn.number:
            raise InputError(f"the turn of {turn.agent} is over: ask next_turn")
        if not self.has(found):
            raise InputError(f"the turn of {turn.agent} is not yours any more: ask next_turn")

    @contextmanager
    def _alone(self, campaign: int) -> Iterator[Session]:
        """A transaction beside which nobody else writes into the mailbox of a campaign."""
        with self.writable.session() as session:  # SQLite's has the whole ledger to itself
            session.get_one(Campaign, campaign, with_for_update=True)
            yield session

    def _write(self, write: Session, campaign: int, payload: dict[str, Any]) -> int:
        payload |= {"agents": list(self.agents)}
        event = Event(campaign_id=campaign, kind=WORD, actor=f"mcp:{self.client}", payload=payload, created_at=now())
        write.add(event)
        write.flush()
        return event.id


def answer_to(ledger: Ledger, campaign: int, call: int) -> str | None:
    """The result of a tool, None while there is none."""
    found = (e.payload["result"] for e in ledger.events(campaign, [ANSWER], after=call) if e.payload["call"] == call)
    return next(found, None)
