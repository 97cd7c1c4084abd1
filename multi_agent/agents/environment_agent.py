"""Environment: task options, worlds and episodes, and what the results say per task."""

from __future__ import annotations

from dataclasses import dataclass

from multi_agent.agents.agent import AGENTS, AgentSpec
from multi_agent.tools.environment_tool import DESCRIBE_TASK, MEASURE_THROUGHPUT
from multi_agent.tools.ledger_tool import LEDGER_QUERY, PROPOSING, TALKING
from multi_agent.tools.tool import Tool


@dataclass(frozen=True)
class EnvironmentAgent(AgentSpec):
    """Chooses task options, worlds and episodes, and reads the results per task; its slice is the environment."""

    name: str = "Environment"
    slice: str | None = "environment"
    tools: tuple[Tool, ...] = (LEDGER_QUERY, *PROPOSING, DESCRIBE_TASK, MEASURE_THROUGHPUT, *TALKING)
    prompt: str = "environment.md"
    turn: int = 40


AGENTS.register("Environment")(EnvironmentAgent())
