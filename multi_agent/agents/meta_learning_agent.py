"""Meta-Learning: chooses learner, rates and schedules. Its slice is the learner."""

from __future__ import annotations

from dataclasses import dataclass

from multi_agent.agents.agent import AGENTS, AgentSpec
from multi_agent.tools.ledger_tool import PROPOSING, READING, TALKING
from multi_agent.tools.maml_tool import INNER_RATE_SENSITIVITY
from multi_agent.tools.tool import Tool


@dataclass(frozen=True)
class MetaLearningAgent(AgentSpec):
    """Chooses learner, rates and schedules; its slice is the learner."""

    name: str = "Meta-Learning"
    slice: str | None = "meta-learning"
    tools: tuple[Tool, ...] = (*READING, *PROPOSING, INNER_RATE_SENSITIVITY, *TALKING)
    prompt: str = "meta_learning.md"
    turn: int = 20


AGENTS.register("Meta-Learning")(MetaLearningAgent())
