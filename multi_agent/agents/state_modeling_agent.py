"""State-Modeling: designs the sequence model and defends it from the ledger's rows. Its slice is the sequence model."""

from __future__ import annotations

from dataclasses import dataclass

from multi_agent.agents.agent import AGENTS, AgentSpec
from multi_agent.tools.ledger_tool import DESCRIBE_SEARCH_SPACE, LEDGER_QUERY, PROPOSING, TALKING
from multi_agent.tools.ssm_tool import MEMORY_LENGTH
from multi_agent.tools.tool import Tool


@dataclass(frozen=True)
class StateModelingAgent(AgentSpec):
    """Designs the sequence model; its slice is the sequence model."""

    name: str = "State-Modeling"
    slice: str | None = "state-modeling"
    tools: tuple[Tool, ...] = (LEDGER_QUERY, DESCRIBE_SEARCH_SPACE, *PROPOSING, MEMORY_LENGTH, *TALKING)
    prompt: str = "state_modeling.md"
    turn: int = 10


AGENTS.register("State-Modeling")(StateModelingAgent())
