"""Probe of the Meta-Learning agent: how fast a recorded search run was still learning when it ended."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel

from core.config import FrozenConfig
from core.errors import InputError
from multi_agent.tools.tool import RowId, Tool, ToolContext


class RunArguments(FrozenConfig):
    """One run of the search."""

    run: RowId
    """Run id, such as r-0042."""


class LearningProgress(FrozenConfig):
    """Slopes of the training return, least squares over the recorded points."""

    run: str
    points: int
    first_half_slope: float
    """Change of the mean training return per million env steps in the first half of the run."""
    second_half_slope: float
    """The same in the second half: near zero means a longer run would not help, still steep means it would."""
    last_return: float
    """Mean training return at the last point."""


def learning_progress(context: ToolContext, arguments: RunArguments) -> BaseModel:
    """How steeply a search run's training return rose in its first and in its second half, from its recorded curve."""
    table = context.lab.learning_curve(arguments.run)
    points = np.array([row[:2] for row in table.rows if None not in row[:2]], dtype=float)
    if len(points) < 4:
        raise InputError(f"run: {arguments.run} has {len(points)} recorded points, allowed: runs with 4 or more")
    half = len(points) // 2
    slopes = [float(np.polyfit(part[:, 0] / 1e6, part[:, 1], 1)[0]) for part in (points[:half], points[half:])]
    return LearningProgress(
        run=arguments.run,
        points=len(points),
        first_half_slope=round(slopes[0], 3),
        second_half_slope=round(slopes[1], 3),
        last_return=round(float(points[-1, 1]), 3),
    )


LEARNING_PROGRESS = Tool("learning_progress", RunArguments, learning_progress, measures=True)
