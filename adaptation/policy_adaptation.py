"""How a policy goes on learning while it is evaluated: a part of a run's specification. `meta_rl/adapting.py` does it."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from core.config import FrozenConfig, search

NOTHING = "nothing"
Moving = Literal["nothing", "head", "norm", "low-rank", "all"]
ON = ("adapts", tuple(choice for choice in get_args(Moving) if choice != NOTHING))


class PolicyAdaptation(FrozenConfig):
    """What of a policy moves in the worlds that it is evaluated in, how fast, how often, and when it is undone.

    Every world has its own copy of what moves. It learns from what it lived itself and from nothing else, costs no env step of
    its own, and goes back to the trained weights at the end.
    """

    adapts: Moving = Field(
        default=NOTHING,
        json_schema_extra=search(choices=("nothing", "head", "low-rank", "all"), role="adaptation", since=2),
    )
    """What moves: nothing; everything after the memory; one-dimensional gains and norms; a low-rank part of every matrix; all
    weights."""
    learning_rate: float = Field(
        default=0.003,
        ge=0,
        le=10,
        json_schema_extra=search(low=3e-4, high=0.1, log=True, role="adaptation", since=2, only_if=ON),
    )
    """Step size of plain gradient descent."""
    steps: int = Field(
        default=1,
        ge=1,
        le=100,
        json_schema_extra=search(choices=(1, 3, 10), role="adaptation", since=2, only_if=ON),
    )
    """Gradient steps each time."""
    every: int = Field(
        default=10,
        ge=1,
        le=100_000,
        json_schema_extra=search(choices=(5, 10, 25), role="adaptation", since=2, only_if=ON),
    )
    """Control steps from one time to the next."""
    window: int = Field(
        default=50,
        ge=1,
        le=100_000,
        json_schema_extra=search(choices=(10, 25, 50), role="adaptation", since=2, only_if=ON),
    )
    """How many of the last control steps are learned from."""
    exploration: float = Field(
        default=0.1,
        ge=0,
        le=2,
        json_schema_extra=search(choices=(0.0, 0.1, 0.3), role="adaptation", since=2, only_if=ON),
    )
    """Noise of the actions while it adapts, in parts of the noise that the policy was trained with: without any, a Gaussian
    policy's actions say nothing of which others would be better. 0 acts as where nothing adapts."""
    guard: bool = Field(
        default=True,
        json_schema_extra=search(choices=(True, False), role="adaptation", since=2, only_if=ON),
    )
    """Undo, for each world by itself, steps after which the loss on the window is larger than before."""
    rank: int = Field(default=2, ge=1, le=64)
    """For "low-rank": rank of the change of every matrix."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Norm above which a world's gradient is scaled down."""

    @property
    def is_on(self) -> bool:
        """Whether anything may move."""
        return self.adapts != NOTHING

    @property
    def in_words(self) -> str:
        """A sentence for people."""
        if not self.is_on:
            return "Nothing adapts at test time."
        return (
            f"At test time {self.adapts} adapts: {self.steps} gradient step{'s' if self.steps > 1 else ''} of "
            f"{self.learning_rate:g} every {self.every} control steps on the last {self.window}."
        )
