"""`--approve-each stage|run`: the campaign waits for a person, and goes on, or not, by their word from a second terminal.

What it waits for and what the person says are events, so that a wait survives a kill, a pause and a resume, and an
answer that was given meanwhile counts. Waiting time is not charged to the budget.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from core.words.commands import command
from experiments.runs.runner import Denied, Paused
from multi_agent.communication.message_broker import EVERYONE, HUMAN, WORKFLOW, MessageBroker

if TYPE_CHECKING:
    from experiments.campaign.lab import Lab

ApproveEach = Literal["none", "stage", "run"]
POLL_S = 0.5
ASKED_STAGES = {
    "baseline": "the baseline's default configuration is trained on several seeds, for the noise floor",
    "search": "both arms are tuned, round by round",
    "selection": "the best configurations of the search are trained again on fresh seeds",
    "claim": "the hypothesis, both configurations, the seeds and the test are fixed",
    "confirmation": "both configurations are trained on fresh seeds and evaluated on the held-out tasks",
}
NO_RUNS = ("search", "claim")
"""Stages that train nothing by themselves: the search is asked about round by round."""


class Approvals:
    """Asks a person before what `each` names: every stage, or every group of runs that is trained together.

    broker: tells the agents why something was denied. emit: (kind, actor, text, **payload) records an event.
    show: the same for what is recorded already.
    """

    def __init__(
        self,
        lab: Lab,
        each: ApproveEach,
        broker: MessageBroker,
        emit: Callable[..., int],
        show: Callable[[str], None],
    ) -> None:
        self.lab, self.each, self.broker, self._emit, self._show = lab, each, broker, emit, show

    def before_stage(self, stage: str) -> None:
        """Wait for a person's approval where it is wanted before a stage. Raises Denied where they say no."""
        if self.each == "none" or stage not in ASKED_STAGES or (self.each == "run" and stage in NO_RUNS):
            return
        what = f"the stage {stage}: {ASKED_STAGES[stage]}."
        if stage == "confirmation":
            what += f" The claim: {self.lab.write_claim().content.hypothesis}."
        reason = self.wait(f"stage:{stage}", what)
        if reason is not None:
            self._deny(f"the stage {stage}", reason)

    def before_round(self, number: int, *, can_propose: bool) -> bool:
        """Wait for a person's approval of search round `number` (from 0).

        False where it was denied and the agents shall propose it again. Raises Denied where they say no and nobody
        `can_propose` another.
        """
        if self.each != "run":
            return True
        rows = self.lab.prepare_round().rows
        shown = "; ".join(" ".join(str(cell) for cell in row if cell is not None) for row in rows)
        what = f"search round {number + 1} of {self.lab.plan.rounds}: {shown}."
        reason = self.wait(f"round:{number}", what)
        if reason is None:
            return True
        if not can_propose:
            self._deny(f"search round {number + 1}", reason)
        self.broker.post(HUMAN, EVERYONE, f"Search round {number + 1} as proposed was denied: {reason}"[:2_000])
        return False

    def _deny(self, what: str, reason: str) -> None:
        """Pause, and leave the reason to every agent."""
        self.broker.post(HUMAN, EVERYONE, f"{what} was denied: {reason}"[:2_000])
        raise Denied(f"{what} was denied: {reason}")

    def wait(self, key: str, text: str) -> str | None:
        """None once a person has approved `key`, else their reason against it. Raises Paused when asked to stop.

        key: names the same thing in every sitting, such as "stage:selection". text: what it is, for the person.
        """
        answers = [e for e in self.lab.events(["approve"]) if e.payload["key"] == key]
        if answers and answers[-1].payload["granted"]:
            return None
        since = answers[-1].id if answers else 0
        answer = command("approve", self.lab.campaign_id)
        words = f"Waits for approval of {text} Answer from a second terminal: {answer}"
        if any(e.payload["key"] == key for e in self.lab.events(["waiting"], after=since)):
            self._show(words)
        else:
            self._emit("waiting", WORKFLOW, words, key=key, what=text)
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
