"""A side of a question: a partial specification. What it names is fixed, what it leaves open is searched."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from core.config import FrozenConfig

Value = bool | int | float | str
CAPITALS = ("ssm", "lstm", "gru", "mlp", "lru", "s5", "s4d", "rl2", "maml-ppo")


class Recorded(FrozenConfig):
    """A run of the ledger whose configuration a side is: nothing about it is searched or sized."""

    run: str
    """Its id, such as r-0042."""
    spec: dict[str, Any]
    """The specification that it was trained by."""


class Side(FrozenConfig):
    """What a goal says of one side. Left out of the JSON is what it leaves open."""

    name: str
    """What it is called in the goal."""
    kinds: tuple[str, ...]
    """The sequence models among which the search chooses, the default first."""
    learners: tuple[str, ...] = Field(default=(), exclude_if=lambda names: not names)
    """The learners among which the search chooses, the default first; empty: the question's."""
    fixed: dict[str, Value] = Field(default_factory=dict, exclude_if=lambda fields: not fields)
    """Dotted name -> value of the fields that it names, such as learner.first_order."""
    recorded: Recorded | None = Field(default=None, exclude_if=lambda run: run is None)
    """The run that it is, where it is one."""

    @property
    def label(self) -> str:
        """How it is written for people: `SSM (s5, lru, s4d)`, `LSTM`, `first-order maml`, `learner (rl2, maml-ppo)`."""
        if self.recorded is not None:
            return f"{self.name} as it is"
        several = self.learners if self.learners else self.kinds
        return f"{self.short} ({', '.join(several)})" if len(several) > 1 else self.short

    @property
    def short(self) -> str:
        """The same without what a side of several holds, where that has been said: `SSM`."""
        if self.recorded is not None:
            return self.label
        return " ".join(word.upper() if word in CAPITALS else word for word in self.name.split(" "))
