"""Asynchronous successive halving on the search pool: which search runs end early, decided from ledger rows alone.

Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning" (arXiv 1810.05934), the variant that stops runs
instead of promoting paused ones: a run that comes to a rung is compared at once with what is recorded there, waits for
nobody, and goes on only among the best 1/reduction. Differences from the paper, with their reasons:

- What counts is the same arm's trials of earlier rounds. A round's runs end before the next round begins, so this set
  does not depend on which of two concurrent runs is faster, and a resumed campaign decides as an uninterrupted one.
- The number that goes on is rounded up, not down: with few trials the paper's floor would keep only the best so far,
  on one noisy look. Below `reduction` trials nothing is pruned.
- An arm whose pruning has saved more than the other's does not prune until the other has caught up. So the env steps
  that the two sides really spend on tuning differ by less than one search run, which the claim's parity check asks for.

What is saved buys further rounds, for all arms alike. Selection and confirmation runs have no rungs at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field, model_validator

from core.config import FrozenConfig

REDUCTION = 3
SHARES = (1 / 27, 1 / 9, 1 / 3, 1 / 2)
"""Of a search run: where it may be looked at."""
MIN_RUNG_ITERATIONS = 10  # training iterations before a score says anything about the end of a run
MAX_RUNGS = 3
MIN_TRIALS = 4  # fewer trials leave nothing to halve


class Pruning(FrozenConfig):
    """The rule of one campaign, fixed in its plan."""

    reduction: int = Field(default=REDUCTION, ge=2)
    """One in so many goes on beyond a rung."""
    rungs: tuple[int, ...] = Field(min_length=1)
    """Env steps after which a search run is looked at, rising."""
    env_steps: int = Field(ge=1)
    """Env steps of a search run that is not pruned."""

    @model_validator(mode="after")
    def _rises(self) -> Pruning:
        if list(self.rungs) != sorted(set(self.rungs)) or self.rungs[-1] >= self.env_steps or self.rungs[0] < 1:
            raise ValueError(f"rungs: got {self.rungs}, allowed: rising, below the {self.env_steps} env steps of a run")
        return self

    def why_prune(self, rung: int, score: float, earlier: Sequence[float]) -> str | None:
        """Why a run ends at rung number `rung` (from 1) with `score`, or None where it goes on.

        earlier: the scores at this rung of the same arm's trials of earlier rounds. A tie goes on.
        """
        count = len(earlier) + 1
        keep = math.ceil(count / self.reduction)
        if count < self.reduction or keep > len(earlier):
            return None
        cut = sorted(earlier, reverse=True)[keep - 1]
        if score >= cut:
            return None
        return (
            f"rung {rung} of {len(self.rungs)} ({self.rungs[rung - 1]:,} of {self.env_steps:,} env steps): score {score:.4g} is "
            f"below the cut {cut:.4g}, number {keep} of {len(earlier)} earlier trials there"
        )


def make_pruning(
    env_steps: int, *, iteration_steps: int, trials: int, shares: Sequence[float] | None = None
) -> Pruning | None:
    """Rungs at 1/3, 1/9, ... of a search run, as long as one is at least `MIN_RUNG_ITERATIONS` iterations long.

    None where it cannot pay: runs too short for a first look that says anything, or fewer trials of a side than `MIN_TRIALS`.
    iteration_steps: env steps of the longest training iteration; rungs are whole multiples of it. shares: those of `SHARES` that
    tell something on this task, where that is known.
    """
    rungs: list[int] = []
    chosen = [share for share in SHARES if share in shares] if shares is not None else list(SHARES[:-1])
    for share in chosen[::-1]:
        iterations = math.ceil(env_steps * share / iteration_steps)
        if iterations < MIN_RUNG_ITERATIONS or iterations * iteration_steps >= env_steps:
            break
        rungs.insert(0, iterations * iteration_steps)
    if not rungs or trials < MIN_TRIALS:
        return None
    return Pruning(rungs=tuple(rungs[-MAX_RUNGS:]), env_steps=env_steps)
