"""Architect: proposes over all slices at once, looking through one role's lens after another. Of the crew "architect+critic"."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.search.space import ALL_SLICES
from multi_agent.agents.agent import AGENTS, AgentSpec
from multi_agent.tools.ledger_tool import DESCRIBE_SEARCH_SPACE, PROPOSING, READING
from multi_agent.tools.tool import Tool


@dataclass(frozen=True)
class ArchitectAgent(AgentSpec):
    """Proposes over all slices at once; its prompt holds the lenses of the five roles."""

    name: str = "Architect"
    slice: str | None = ALL_SLICES
    tools: tuple[Tool, ...] = (*READING, DESCRIBE_SEARCH_SPACE, *PROPOSING)
    prompt: str = "architect.md"
    turn: int = 10
    crew: str = "architect+critic"


AGENTS.register("Architect")(ArchitectAgent())
