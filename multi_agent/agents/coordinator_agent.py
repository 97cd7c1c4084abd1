"""Coordinator: assigns the work, reviews what is proposed, and writes the narrative. It proposes no configuration."""

from __future__ import annotations

from dataclasses import dataclass

from multi_agent.agents.agent import AGENTS, COORDINATOR_NAME, AgentSpec
from multi_agent.tools.ledger_tool import (
    COMPARE_VARIANTS,
    LEDGER_QUERY,
    REMEMBER,
    REQUEST_CONFIRMATION,
    TELL,
    WRITE_NOTE,
)
from multi_agent.tools.tool import Tool


@dataclass(frozen=True)
class CoordinatorAgent(AgentSpec):
    """Assigns the work, reviews what is proposed and writes the narrative; it proposes no configuration."""

    name: str = COORDINATOR_NAME
    slice: str | None = None
    tools: tuple[Tool, ...] = (LEDGER_QUERY, COMPARE_VARIANTS, TELL, REMEMBER, WRITE_NOTE, REQUEST_CONFIRMATION)
    prompt: str = "coordinator.md"
    turn: int = 100  # after every specialist


AGENTS.register(COORDINATOR_NAME)(CoordinatorAgent())
