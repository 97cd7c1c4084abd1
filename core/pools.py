"""The three pools that keep evidence apart: what is searched on, what is selected on, and what a verdict rests on."""

from __future__ import annotations

from typing import Literal, get_args

Pool = Literal["search", "selection", "confirmation"]
"""Seeds and evaluation tasks of the three pools are disjoint."""
POOLS: tuple[Pool, ...] = get_args(Pool)
