"""Typed messages between the agents of a campaign, and from people to all of them. Every one becomes an event.

The event's number is the message's: the end of a turn records the number up to which its agent had read, so inboxes can
be filled again from the ledger after a kill. A message may then be read twice, and is never lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import unknown_name
from core.words.text import plain

EVERYONE = "all"
HUMAN = "human"
WORKFLOW = "workflow"
NOT_AGENTS = (EVERYONE, HUMAN, WORKFLOW, "lab")
"""Whom messages and events name that is no agent; no agent may have such a name."""


@dataclass(frozen=True)
class Message:
    """One message and the ledger rows it rests on."""

    sender: str
    recipient: str
    text: str
    evidence: tuple[str, ...] = ()
    number: int = 0
    """Of its event."""

    def __str__(self) -> str:
        """On one line, whatever was written into it: a second line could name another sender, such as a person."""
        return f"{self.sender}: {plain(self.text)}" + (f" [{', '.join(self.evidence)}]" if self.evidence else "")


class MessageBroker:
    """Delivers each message at its recipient's next turn.

    names: the agents. emit: records an event and gives its number.
    """

    def __init__(self, names: Iterable[str], emit: Callable[..., int]) -> None:
        self._inboxes: dict[str, list[Message]] = {name: [] for name in names}
        self._read: dict[str, int] = dict.fromkeys(self._inboxes, 0)
        self._emit = emit

    def post(self, sender: str, recipient: str, text: str, evidence: tuple[str, ...] = (), **details: Any) -> Message:
        """Send to one agent or to "all". InputError for a name that nobody has. `details` go into the event."""
        if recipient != EVERYONE and recipient not in self._inboxes:
            raise unknown_name("agent", recipient, [*self._inboxes, EVERYONE])
        number = self._emit("message", sender, text, to=recipient, evidence=list(evidence), **details)
        message = Message(sender, recipient, text, evidence, number)
        self._deliver(message)
        return message

    def _deliver(self, message: Message) -> None:
        for name, inbox in self._inboxes.items():
            if name != message.sender and message.recipient in (name, EVERYONE) and message.number >= self._read[name]:
                inbox.append(message)

    def restore(self, messages: Iterable[Message], read: Mapping[str, int]) -> None:
        """Take up what is recorded already: messages, oldest first, and for each agent how far it had read."""
        self._read |= {name: number + 1 for name, number in read.items() if name in self._read}
        for message in messages:
            self._deliver(message)

    def has_mail(self, name: str) -> bool:
        """Whether messages wait for `name`."""
        return bool(self._inboxes[name])

    def collect(self, name: str) -> list[Message]:
        """The messages `name` has not read yet, oldest first."""
        messages, self._inboxes[name] = self._inboxes[name], []
        return messages

    def put_back(self, name: str, messages: list[Message]) -> None:
        """Messages of a turn that failed wait for the next one."""
        self._inboxes[name] = [*messages, *self._inboxes[name]]
