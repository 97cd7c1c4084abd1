"""Examiner: reads what was predicted against what was measured, and vetoes what was tried before. The critic of the crew "architect+critic"."""

from __future__ import annotations

from dataclasses import dataclass

from multi_agent.agents.agent import AGENTS, AgentSpec
from multi_agent.tools.ledger_tool import COMPARE_VARIANTS, LEDGER_QUERY, REMEMBER, REQUEST_CONFIRMATION, VETO
from multi_agent.tools.tool import Tool


@dataclass(frozen=True)
class ExaminerAgent(AgentSpec):
    """Reads predictions against results and vetoes duplicates; it proposes no configuration."""

    name: str = "Examiner"
    slice: str | None = None
    tools: tuple[Tool, ...] = (LEDGER_QUERY, COMPARE_VARIANTS, VETO, REMEMBER, REQUEST_CONFIRMATION)
    prompt: str = "examiner.md"
    turn: int = 50  # after the Architect
    crew: str = "architect+critic"
    asked: str = "turn_criticise.md"


AGENTS.register("Examiner")(ExaminerAgent())
