"""Adaptation: chooses test-time adaptation and reads adaptation curves."""

from __future__ import annotations

from dataclasses import dataclass

from multi_agent.agents.agent import AGENTS, AgentSpec
from multi_agent.tools.adaptation_tool import ADAPTATION_CURVE
from multi_agent.tools.ledger_tool import PROPOSING, READING, TALKING
from multi_agent.tools.tool import Tool


@dataclass(frozen=True)
class AdaptationAgent(AgentSpec):
    """Chooses test-time adaptation and reads adaptation curves; its slice is the adaptation."""

    name: str = "Adaptation"
    slice: str | None = "adaptation"
    tools: tuple[Tool, ...] = (*READING, *PROPOSING, ADAPTATION_CURVE, *TALKING)
    prompt: str = "adaptation.md"
    turn: int = 30


AGENTS.register("Adaptation")(AdaptationAgent())
