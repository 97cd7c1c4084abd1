"""State-Modeling: designs the sequence model and defends it from the ledger's rows. Its slice is the sequence model."""

from __future__ import annotations

from multi_agent.agents.agent import AGENTS, AgentSpec
from multi_agent.tools.ledger_tool import PROPOSING, READING, TALKING
from multi_agent.tools.ssm_tool import MEMORY_LENGTH

STATE_MODELING = AGENTS.register("State-Modeling")(
    AgentSpec(
        name="State-Modeling",
        slice="state-modeling",
        tools=(*READING, *PROPOSING, MEMORY_LENGTH, *TALKING),
        prompt="state_modeling.md",
        turn=10,
    )
)
