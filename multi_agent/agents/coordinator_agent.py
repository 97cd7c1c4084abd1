"""Coordinator: assigns the work, reviews what is proposed, and writes the narrative. It proposes no configuration."""

from __future__ import annotations

from dataclasses import dataclass

from multi_agent.agents.agent import AGENTS, COORDINATOR_NAME, AgentSpec
from multi_agent.tools.ledger_tool import CHECK_FEASIBILITY, READING, TALKING
from multi_agent.tools.tool import Tool


@dataclass(frozen=True)
class CoordinatorAgent(AgentSpec):
    """Assigns the work, reviews what is proposed and writes the narrative; it proposes no configuration."""

    name: str = COORDINATOR_NAME
    slice: str | None = None
    tools: tuple[Tool, ...] = (*READING, CHECK_FEASIBILITY, *TALKING)
    prompt: str = "coordinator.md"
    turn: int = 100  # after every specialist


AGENTS.register(COORDINATOR_NAME)(CoordinatorAgent())
