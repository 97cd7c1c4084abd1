"""Environment: task options, worlds and episodes, and what the results say per task."""

from __future__ import annotations

from multi_agent.agents.agent import AGENTS, AgentSpec
from multi_agent.tools.environment_tool import DESCRIBE_TASK, MEASURE_THROUGHPUT
from multi_agent.tools.ledger_tool import PROPOSING, READING, TALKING

ENVIRONMENT = AGENTS.register("Environment")(
    AgentSpec(
        name="Environment",
        slice="environment",
        tools=(*READING, *PROPOSING, DESCRIBE_TASK, MEASURE_THROUGHPUT, *TALKING),
        prompt="environment.md",
        turn=40,
    )
)
