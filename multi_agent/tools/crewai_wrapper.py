"""The one place where a tool becomes a CrewAI tool. Importing it imports crewai (about 5 s)."""

from __future__ import annotations

from typing import Any

from crewai.tools import BaseTool
from pydantic import PrivateAttr

from multi_agent.tools.tool import Tool, ToolContext, execute


class CrewTool(BaseTool):
    """A `Tool` bound to the context of one agent."""

    _tool: Tool = PrivateAttr()
    _context: ToolContext = PrivateAttr()

    def run(self, *args: Any, **kwargs: Any) -> str:
        # CrewAI would check the arguments first and answer in its own words; `execute` checks, answers and records.
        return self._run(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> str:
        return execute(self._tool, self._context, kwargs)


def to_crewai(tool: Tool, context: ToolContext) -> BaseTool:
    """`tool` for one CrewAI agent. The usage limit is far away; setting it makes CrewAI run parallel calls in order."""
    wrapped = CrewTool(
        name=tool.name, description=tool.description, args_schema=tool.arguments, max_usage_count=1_000_000
    )
    wrapped._tool, wrapped._context = tool, context
    return wrapped
