"""Words of people to a campaign that runs in another process. All of them are events; nothing else is shared.

`waiting` is written by the workflow where it needs an approval, `approve`, `instruct`, `pause`, `stop` and `take-over` by a
person's command. What a person said is part of the report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.config import FrozenConfig
from core.errors import InputError
from core.words.commands import command
from experiments.ledger.models import Event, Run
from experiments.ledger.store import Ledger, readable_id
from experiments.vocabulary import FINISHED

if TYPE_CHECKING:
    from experiments.campaign.lab import Lab

HUMAN_KINDS = ("instruct", "approve", "pause", "stop", "take-over")


class Waiting(FrozenConfig):
    """What a campaign waits for."""

    key: str
    what: str


class HumanWord(FrozenConfig):
    """Something a person said to a campaign."""

    event: int
    """Number of its row in the table of events."""
    kind: str
    when: str
    text: str


def open_wait(session: Session, campaign_id: int) -> Waiting | None:
    """What the campaign waits for, None where it waits for nothing; in a session that is open already."""
    query = select(Event).where(Event.campaign_id == campaign_id, Event.kind.in_(("waiting", "approve", "stop")))
    waiting: Waiting | None = None
    for event in session.scalars(query.order_by(Event.id)):
        if event.kind == "waiting":
            waiting = Waiting(key=event.payload["key"], what=event.payload["what"])
        elif event.kind == "stop" or (waiting is not None and event.payload["key"] == waiting.key):
            waiting = None
    return waiting


def approve(ledger: Ledger, campaign_id: int, *, deny: str | None, via: str = "") -> Waiting:
    """Approve what the campaign waits for, or deny it with a reason. via: who passed the person's word on. InputError where it waits for nothing."""
    name = readable_id("c", campaign_id)
    with ledger.session() as session:
        waiting = open_wait(session, campaign_id)
    if waiting is None:
        raise InputError(f"{name} waits for no approval. See: {command('status')}")
    payload: dict[str, Any] = {"key": waiting.key, "granted": deny is None, "text": deny or ""}
    ledger.record_event(campaign_id, "approve", "human", payload | ({"via": via} if via else {}))
    return waiting


def is_stopped(ledger: Ledger, campaign_id: int) -> bool:
    """Whether a person ended the campaign."""
    with ledger.session() as session:
        query = select(Event.id).where(Event.campaign_id == campaign_id, Event.kind == "stop")
        return session.scalar(query.limit(1)) is not None


def end_campaign(lab: Lab) -> None:
    """End a campaign for good: runs that are not finished are cancelled, and what confirmation there is, is judged.

    Without a claim there is nothing to judge, so the campaign ends without a verdict and its narrative says so.
    """
    from experiments.runs.runner import cancel_run

    stage, rounds = lab.stage, lab.round
    for run in lab.ledger.runs(lab.number):
        if run.status not in FINISHED:
            cancel_run(lab.ledger, run.id)
    text = f"Stopped by a person at the stage {stage}, after {rounds} of {lab.plan.rounds} search rounds."
    with lab.ledger.session() as session:
        begun = session.scalar(
            select(Run.id).where(Run.campaign_id == lab.number, Run.purpose == "confirmation").limit(1)
        )
    if begun is None:
        text += " No confirmation run had begun, so there is no verdict."
    else:
        verdict = lab.judge()
        text += f" The verdict on what confirmation there is: {verdict.outcome}. {verdict.reason}."
    lab.finish(text, "code")


def human_words(session: Session, campaign_id: int) -> tuple[HumanWord, ...]:
    """What people said to a campaign, in order."""
    query = select(Event).where(Event.campaign_id == campaign_id, Event.kind.in_(HUMAN_KINDS)).order_by(Event.id)
    return tuple(
        HumanWord(event=e.id, kind=_name(e), when=f"{e.created_at:%Y-%m-%d %H:%M}", text=_text(e))
        for e in session.scalars(query)
    )


def _name(event: Event) -> str:
    if event.kind != "approve":
        return event.kind
    return "approved" if event.payload["granted"] else "denied"


def _text(event: Event) -> str:
    key = event.payload.get("key")
    return " ".join(filter(None, (f"{key}." if key else "", str(event.payload.get("text", "")))))
