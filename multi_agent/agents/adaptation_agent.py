"""Adaptation: chooses test-time adaptation and reads adaptation curves."""

from __future__ import annotations

from multi_agent.agents.agent import AGENTS, AgentSpec
from multi_agent.tools.adaptation_tool import ADAPTATION_CURVE
from multi_agent.tools.ledger_tool import PROPOSING, READING, TALKING

ADAPTATION = AGENTS.register("Adaptation")(
    AgentSpec(
        name="Adaptation",
        slice="adaptation",
        tools=(*READING, *PROPOSING, ADAPTATION_CURVE, *TALKING),
        prompt="adaptation.md",
        turn=30,
    )
)
