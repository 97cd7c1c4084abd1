"""Probe of the Adaptation agent: how the return changes from episode to episode on one task."""

from __future__ import annotations

from core.config import FrozenConfig
from experiments.tables import TableView
from multi_agent.tools.tool import RowId, Tool, ToolContext


class RunArguments(FrozenConfig):
    """One run of the search."""

    run: RowId
    """Run id, such as r-0042."""


def adaptation_curve(context: ToolContext, arguments: RunArguments) -> TableView:
    """Return of a search run's first, second, ... episode on the same task: mean and worst over the search tasks, and
    the gain over the first episode with its 95 % interval."""
    return context.lab.episode_returns(arguments.run)


ADAPTATION_CURVE = Tool("adaptation_curve", RunArguments, adaptation_curve, measures=True, writes="nothing")
