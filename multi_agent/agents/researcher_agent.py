"""Researcher: one agent with everything. The crew "single"."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.search.space import ALL_SLICES
from multi_agent.agents.agent import AGENTS, AgentSpec
from multi_agent.tools.ledger_tool import DESCRIBE_SEARCH_SPACE, PROPOSING, READING
from multi_agent.tools.tool import Tool


@dataclass(frozen=True)
class ResearcherAgent(AgentSpec):
    """Owns every slice and works alone."""

    name: str = "Researcher"
    slice: str | None = ALL_SLICES
    tools: tuple[Tool, ...] = (*READING, DESCRIBE_SEARCH_SPACE, *PROPOSING)
    prompt: str = "researcher.md"
    turn: int = 10
    crew: str = "single"


AGENTS.register("Researcher")(ResearcherAgent())
