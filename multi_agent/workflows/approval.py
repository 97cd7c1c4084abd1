"""`--approve-each stage|run`: the campaign waits for a person, and goes on, or not, by their word from a second terminal.

What it waits for and what the person says are events, so that a wait survives a kill, a pause and a resume, and an
answer that was given meanwhile counts. Waiting time is not charged to the budget.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from experiments.campaign.lab import Paused

if TYPE_CHECKING:
    from experiments.campaign.lab import Lab

ApproveEach = Literal["none", "stage", "run"]
POLL_S = 0.5


class Approvals:
    """Asks a person before what `each` names: every stage, or every group of runs that is trained together.

    emit: (kind, actor, text, **payload) records an event. show: the same for what is recorded already.
    """

    def __init__(self, lab: Lab, each: ApproveEach, emit: Callable[..., int], show: Callable[[str], None]) -> None:
        self.lab, self.each, self._emit, self._show = lab, each, emit, show

    def wait(self, key: str, text: str) -> str | None:
        """None once a person has approved `key`, else their reason against it. Raises Paused when asked to stop.

        key: names the same thing in every sitting, such as "stage:selection". text: what it is, for the person.
        """
        answers = [e for e in self.lab.events(["approve"]) if e.payload["key"] == key]
        if answers and answers[-1].payload["granted"]:
            return None
        since = answers[-1].id if answers else 0
        words = (
            f"Waits for approval of {text} Answer from a second terminal: python main.py approve {self.lab.campaign_id}"
        )
        if any(e.payload["key"] == key for e in self.lab.events(["waiting"], after=since)):
            self._show(words)
        else:
            self._emit("waiting", "workflow", words, key=key, what=text)
        while True:
            for event in self.lab.events(["approve"], after=since):
                if event.payload["key"] == key:
                    granted, reason = event.payload["granted"], str(event.payload.get("text", ""))
                    self._show(f"Approved: {text}" if granted else f"Denied: {text} {reason}")
                    return None if granted else reason
            began = time.monotonic()
            stopped = self.lab.stop_event.wait(POLL_S)
            self.lab.rest(time.monotonic() - began)
            if stopped:
                raise Paused("stopped while waiting for approval")
