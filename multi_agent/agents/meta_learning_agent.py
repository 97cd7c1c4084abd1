"""Meta-Learning: chooses learner, rates and schedules. Its slice is the learner."""

from __future__ import annotations

from multi_agent.agents.agent import AGENTS, AgentSpec
from multi_agent.tools.ledger_tool import PROPOSING, READING, TALKING
from multi_agent.tools.maml_tool import INNER_RATE_SENSITIVITY

META_LEARNING = AGENTS.register("Meta-Learning")(
    AgentSpec(
        name="Meta-Learning",
        slice="meta-learning",
        tools=(*READING, *PROPOSING, INNER_RATE_SENSITIVITY, *TALKING),
        prompt="meta_learning.md",
        turn=20,
    )
)
