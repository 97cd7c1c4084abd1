"""Coordinator: assigns the work, launches each round, and writes the narrative. It proposes no configuration."""

from __future__ import annotations

from multi_agent.agents.agent import AGENTS, COORDINATOR_NAME, AgentSpec
from multi_agent.tools.ledger_tool import CHECK_FEASIBILITY, LAUNCH, PEEK, READING, TALKING

COORDINATOR = AGENTS.register(COORDINATOR_NAME)(
    AgentSpec(
        name=COORDINATOR_NAME,
        slice=None,
        tools=(*READING, CHECK_FEASIBILITY, LAUNCH, PEEK, *TALKING),
        prompt="coordinator.md",
        turn=100,  # after every specialist
    )
)
