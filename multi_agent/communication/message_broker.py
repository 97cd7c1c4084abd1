"""Typed messages between the agents of a campaign, and from people to the Coordinator. Every one becomes an event."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from core.errors import unknown_name

EVERYONE = "all"


@dataclass(frozen=True)
class Message:
    """One message and the ledger rows it rests on."""

    sender: str
    recipient: str
    text: str
    evidence: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.sender}: {self.text}" + (f" [{', '.join(self.evidence)}]" if self.evidence else "")


class MessageBroker:
    """Delivers each message once, at its recipient's next turn."""

    def __init__(self, names: Iterable[str], emit: Callable[..., None]) -> None:
        self._inboxes: dict[str, list[Message]] = {name: [] for name in names}
        self._emit = emit

    def post(self, sender: str, recipient: str, text: str, evidence: tuple[str, ...] = (), **details: Any) -> Message:
        """Send to one agent or to "all". InputError for a name that nobody has. `details` go into the event."""
        if recipient != EVERYONE and recipient not in self._inboxes:
            raise unknown_name("agent", recipient, [*self._inboxes, EVERYONE])
        message = Message(sender, recipient, text, evidence)
        for name, inbox in self._inboxes.items():
            if name != sender and recipient in (name, EVERYONE):
                inbox.append(message)
        self._emit("message", sender, text, to=recipient, evidence=list(evidence), **details)
        return message

    def has_mail(self, name: str) -> bool:
        """Whether messages wait for `name`."""
        return bool(self._inboxes[name])

    def collect(self, name: str) -> list[Message]:
        """The messages `name` has not read yet, oldest first."""
        messages, self._inboxes[name] = self._inboxes[name], []
        return messages
