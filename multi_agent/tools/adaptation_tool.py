"""Probe of the Adaptation agent: how the return changes from episode to episode on one task."""

from __future__ import annotations

from pydantic import BaseModel

from multi_agent.tools.maml_tool import RunArguments
from multi_agent.tools.tool import Tool, ToolContext


def adaptation_curve(context: ToolContext, arguments: RunArguments) -> BaseModel:
    """Return of a search run's first, second, ... episode on the same task: mean and worst over the search tasks."""
    return context.lab.episode_returns(arguments.run)


ADAPTATION_CURVE = Tool("adaptation_curve", RunArguments, adaptation_curve, measures=True)
