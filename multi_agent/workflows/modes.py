"""Two choices of a search round: who shapes its configuration, and how the specialists work together on it. Who they are is a third one,
the crew (`multi_agent/agents/agent.py`).

Three ways to work together, each a function of the specialists, their messages and a way to ask one of them:
- sequential: one after another; each reads what those before it said in this round.
- debate: all propose without hearing each other; then each reads everybody's words and may revise once.
- emergent: nobody's words are passed on unasked; an agent speaks again when a colleague wrote to it, until nobody did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Literal

from core.errors import unknown_name
from multi_agent.agents.agent import COORDINATOR_NAME, AgentSpec
from multi_agent.communication.message_broker import EVERYONE, MessageBroker
from multi_agent.tools.tool import RoundOwner

Collaboration = Literal["sequential", "debate", "emergent"]
Ask = Callable[[AgentSpec, str, int], "str | None"]  # (agent, prompt file, pass) -> its closing words
WorkTogether = Callable[[Sequence[AgentSpec], MessageBroker, Ask], None]
MAX_PASSES = 3
MAX_WORDS = 600  # characters of an agent's closing words that are passed on
REVISE, CRITICISE = "turn_revise.md", "turn_criticise.md"

OWNER_NAMES: dict[RoundOwner, str] = {
    "default": "the default configuration",
    "agents": "the agents' configuration",
    "optimizer": "the optimizer's configuration",
}
OWNER_RULES: dict[RoundOwner, str] = {
    "default": "It runs the default configuration: propose base suggestion without changes.",
    "agents": "It is yours to shape.",
    "optimizer": "It runs the optimizer's suggestion: propose base suggestion without changes.",
}


def whose_round(number: int, rounds: int, agent_rounds: Set[int], *, plateau: bool, allowed: int) -> RoundOwner:
    """Who shapes round `number` (from 0) of `rounds`: the default first, then the agents, then the optimizer.

    Agents have at most `allowed` rounds (`Plan.rounds_of_agents`): half of them early, where the
    optimizer has too few rows to beat a guess, the others when no trial has become better for some rounds (`plateau`).
    The lab refuses more. agent_rounds: the rounds they had so far.
    """
    if number == 0:
        return "default"
    if allowed >= rounds:
        return "agents"
    if number in agent_rounds or number <= math.ceil(allowed / 2) or (plateau and len(agent_rounds) < allowed):
        return "agents"
    return "optimizer"


def sequential(specialists: Sequence[AgentSpec], broker: MessageBroker, ask: Ask) -> None:
    """One after another; each reads what those before it said in this round."""
    for member in specialists:
        _pass_on(broker, member, EVERYONE, ask(member, member.asked, 0))


def debate(specialists: Sequence[AgentSpec], broker: MessageBroker, ask: Ask) -> None:
    """All propose without hearing each other; then each reads everybody's words and may revise once."""
    said = [(member, ask(member, member.asked, 0)) for member in specialists]
    for member, words in said:
        _pass_on(broker, member, EVERYONE, words)
    for member in specialists:
        ask(member, REVISE, 1)


def emergent(specialists: Sequence[AgentSpec], broker: MessageBroker, ask: Ask) -> None:
    """All speak once; then only those whom a colleague wrote to, until nobody was or three passes are over."""
    speakers = specialists
    for pass_number in range(MAX_PASSES):
        for member in speakers:
            _pass_on(
                broker, member, COORDINATOR_NAME, ask(member, REVISE if pass_number else member.asked, pass_number)
            )
        speakers = [member for member in specialists if broker.has_mail(member.name)]


def _pass_on(broker: MessageBroker, member: AgentSpec, recipient: str, words: str | None) -> None:
    if words:
        broker.post(member.name, recipient, words[:MAX_WORDS])


COLLABORATION: Mapping[str, WorkTogether] = {"sequential": sequential, "debate": debate, "emergent": emergent}


def way_to_work(collaboration: str) -> WorkTogether:
    """The function of a `Collaboration`; InputError for another name."""
    if collaboration not in COLLABORATION:
        raise unknown_name("collaboration_mode", collaboration, COLLABORATION)
    return COLLABORATION[collaboration]
