"""Findings that every agent of a campaign sees, each with the ids of the rows that show it. No embedder: it is short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from core.words.text import plain


@dataclass(frozen=True)
class Fact:
    """One finding."""

    author: str
    text: str
    evidence: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.author}: {plain(self.text)} [{', '.join(self.evidence)}]"


class SharedMemory:
    """Keeps what was found; `recall` gives the last few."""

    def __init__(self, emit: Callable[..., object]) -> None:
        self._facts: list[Fact] = []
        self._emit = emit

    def add(self, author: str, text: str, evidence: tuple[str, ...]) -> None:
        """Share a finding; the same text twice is kept once."""
        if self.restore(author, text, evidence):
            self._emit("message", author, f"finding: {text}", finding=text, evidence=list(evidence))

    def restore(self, author: str, text: str, evidence: tuple[str, ...]) -> bool:
        """Take up a finding that is recorded already. Whether it was new."""
        if any(fact.text == text for fact in self._facts):
            return False
        self._facts.append(Fact(author, text, evidence))
        return True

    def recall(self, limit: int = 8) -> list[Fact]:
        """The last `limit` findings, oldest first."""
        return self._facts[-limit:]
