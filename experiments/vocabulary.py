"""The words that rows, plans, tools and commands share, each written once: pools, arms, stages, purposes, statuses, outcomes."""

from __future__ import annotations

from typing import Literal, get_args, overload

from core.pools import POOLS, Pool

__all__ = ["ARMS", "FINISHED", "OUTCOMES", "PARAMETER_TOLERANCE", "POOLS", "POOL_OFFSET", "PURPOSES", "STAGES", "STATUSES", "Arm", "Outcome", "Pool", "Purpose", "RunStatus", "Stage", "readable_id"]  # fmt: skip

POOL_OFFSET: dict[Pool, int] = {"search": 0, "selection": 100_000_000, "confirmation": 200_000_000}
"""Where the range of training seeds of each pool begins; the ranges are disjoint."""

Arm = str
"""A side of a comparison: `challenger`, the one that is hoped to be better; `baseline`, the one it is held against; and where there are
more of them `rival-2`, `rival-3`, ..."""
ARMS: tuple[Arm, ...] = ("challenger", "baseline")

Stage = Literal["question", "plan", "baseline", "search", "selection", "claim", "confirmation", "verdict", "done"]
"""What a campaign is at."""
STAGES: tuple[Stage, ...] = get_args(Stage)

Purpose = Literal["baseline", "search", "selection", "confirmation", "manual", "rerun"]
"""Why a run was started."""
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)

RunStatus = Literal["queued", "running", "done", "pruned", "diverged", "failed", "timeout", "crashed", "cancelled"]
STATUSES: tuple[RunStatus, ...] = get_args(RunStatus)
FINISHED: tuple[RunStatus, ...] = STATUSES[2:]
"""Statuses of runs that never change again."""

PARAMETER_TOLERANCE = 0.10
"""Two sides are of one size where their parameter counts differ by at most this share of the larger one."""

Outcome = Literal["confirmed", "refuted", "equivalent", "inconclusive", "invalid"]
"""Of a claim."""
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@overload
def readable_id(prefix: str, number: int) -> str: ...
@overload
def readable_id(prefix: str, number: None) -> None: ...
def readable_id(prefix: str, number: int | None) -> str | None:
    """`readable_id("r", 42)` is `r-0042`."""
    return None if number is None else f"{prefix}-{number:04d}"
