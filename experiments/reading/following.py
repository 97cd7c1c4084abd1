"""A campaign that another process works on, as its rows tell it from look to look: what was said, which runs moved on, what is spent."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from sqlalchemy import select

from experiments.campaign.claims import find_claim, find_verdict, judge_claim
from experiments.campaign.economy import Economy
from experiments.campaign.evidence import Evidence
from experiments.campaign.holder import is_alive, silent_seconds, standing_of
from experiments.campaign.journal import Journal
from experiments.campaign.plan import Plan
from experiments.campaign.question import Question
from experiments.campaign.trials import Trials
from experiments.campaign.views import BudgetView, EventView, VerdictView
from experiments.ledger.models import Campaign, Metric, Run
from experiments.ledger.store import Ledger
from experiments.metrics import FIRST_EPISODE
from experiments.runs.provenance import require_plugins
from experiments.runs.runner import RunProgress
from experiments.vocabulary import FINISHED, readable_id

SAID = ("stage", "agent", "tool_call", "tool_result", "message", "llm_call", "waiting", "turn")
"""Kinds of events that the process at work shows too."""
EARLIER = 12
"""Events of before the first look that are told with it."""


class News(NamedTuple):
    """What happened since the last look."""

    events: list[EventView]
    runs: list[RunProgress]


class Followed:
    """A campaign for whoever watches it; nothing is written, so the ledger may be open for reading alone.

    What a live view asks of a campaign's `Lab` it answers as well.
    """

    def __init__(self, ledger: Ledger, number: int) -> None:
        self.ledger, self.number, self.campaign_id = ledger, number, str(readable_id("c", number))
        row = ledger.get_campaign(number)
        self.question = Question.model_validate(row.question)
        require_plugins(row.provenance, self.question.names, self.campaign_id, unchanged=False)
        self.trials = Trials(ledger, number, self.question, Plan.model_validate(row.plan), row.seed)
        self.journal = Journal(self.trials)
        self.ledger_query = Evidence(self.trials).ledger_query
        self._last_event = 0
        self._seen: dict[int, tuple[str, int]] = {}  # status and env steps of each run at the last look
        self._waits: dict[str, str] = {}  # what an approval was asked for, by its key
        self._first = True
        self._take(row)

    @property
    def plan(self) -> Plan:
        return self.trials.plan

    @property
    def round(self) -> int:
        return self.journal.round

    @property
    def standing(self) -> str:
        """done, running, paused, failed, or interrupted where the process has ended without a word; at the last look."""
        return "done" if self._row.stage == "done" else standing_of(self._row)

    @property
    def stage(self) -> str:
        return self._row.stage

    @property
    def holder(self) -> dict[str, Any] | None:
        """Which process holds it; see `holder.py`."""
        return self._row.holder

    @property
    def narrative(self) -> str:
        return self._row.narrative or ""

    def look(self) -> News:
        """What is new since the last look; with the first one the newest events, and of runs those that train."""
        self._take(self.ledger.get_campaign(self.number))
        recorded = self.ledger.events(self.number, (*SAID, "approve"), after=self._last_event)
        self._last_event = recorded[-1].id if recorded else self._last_event
        waits = {e.payload["key"]: str(e.payload.get("what", "")) for e in recorded if e.kind == "waiting"}
        self._waits |= waits
        events = [
            EventView(id=e.id, kind=e.kind, actor=e.actor, payload=e.payload)
            if e.kind != "approve"
            else EventView(id=e.id, kind="waiting", actor="workflow", payload={"text": self._answer(e.payload)})
            for e in recorded
        ]
        runs = self._moved()
        if self._first:
            events, self._first = events[-EARLIER:], False
        return News(events, runs)

    def budget(self) -> BudgetView:
        """What was spent and what is planned, as of the last look."""
        training = sum(steps for status, steps in self._seen.values() if status == "running")
        return self.economy.budget(rounds_finished=self.round, steps_in_training=training)

    def verdict(self) -> VerdictView | None:
        """The verdict, None before there is one."""
        claim = find_claim(self.ledger, self.number)
        return None if claim is None or find_verdict(self.ledger, claim) is None else judge_claim(self.ledger, claim)

    def _take(self, row: Campaign) -> None:
        self._row = row
        self.trials.plan = Plan.model_validate(row.plan)  # which the process at work may have changed
        since = silent_seconds(row.holder) if standing_of(row) == "running" else 0.0
        began = time.monotonic() - max(since or 0.0, 0.0)
        self.economy = Economy(self.trials, self.journal, spent_before_s=row.spent_s, began=began)

    def _answer(self, payload: dict[str, Any]) -> str:
        what = self._waits.get(str(payload.get("key")), str(payload.get("key")))
        return f"Approved: {what}" if payload.get("granted") else f"Denied: {what} {payload.get('text', '')}"

    def _moved(self) -> list[RunProgress]:
        moved = []
        for run in self.ledger.runs(self.number):
            now = (run.status, run.env_steps)
            before = self._seen.get(run.id)
            self._seen[run.id] = now
            if now == before or not (run.status == "running" or (run.status in FINISHED and not self._first)):
                continue
            hidden = run.purpose == "confirmation"  # whose score waits for the verdict
            moved.append(
                RunProgress(
                    run_id=run.id,
                    arm=run.arm,
                    purpose=run.purpose,
                    model=run.model,
                    status=run.status,
                    env_steps=run.env_steps,
                    env_steps_planned=run.spec["env_steps"],
                    steps_per_s=self._newest(run, "time/fps"),
                    train_return=self._newest(run, "rollout/ep_rew_mean"),
                    score=None if hidden else run.score,
                    scored_by=run.spec.get("scored_by", FIRST_EPISODE),
                )
            )
        return moved

    def _newest(self, run: Run, name: str) -> float | None:
        """The last finite value of a metric."""
        query = select(Metric.value).where(Metric.run_id == run.id, Metric.name == name, Metric.value.is_not(None))
        with self.ledger.session() as session:
            return session.scalar(query.order_by(Metric.env_steps.desc()).limit(1))


def running_campaign(ledger: Ledger) -> int:
    """The newest campaign that a process works on, else the newest of all. InputError where there is none."""
    with ledger.session() as session:
        rows = session.scalars(select(Campaign).where(Campaign.status == "running").order_by(Campaign.id.desc()))
        at_work = next((row.id for row in rows if is_alive(row.holder)), None)
    return ledger.resolve("@last", "campaign") if at_work is None else at_work
