"""How many search trials came to nothing: light to import, so that `status` can say it."""

from __future__ import annotations

from sqlalchemy import select

from core.config import FrozenConfig
from experiments.ledger.models import Event, Run
from experiments.ledger.store import Ledger, readable_id

WASTED = ("failed", "diverged", "crashed", "timeout")


class Waste(FrozenConfig):
    """How many search trials came to nothing, of all that were launched."""

    launched: int
    failed: int
    """Failed, diverged, crashed or ran into their time limit."""
    duplicates: int
    """Launched although a trial of the same arm was the same or too near, because nothing else was left."""
    refused: int
    """Proposals that the gate refused before anything was spent on them."""

    @property
    def wasted(self) -> int:
        return self.failed + self.duplicates

    def sentence(self) -> str:
        """`1 of 24 (1 without a result, 0 duplicates); 3 proposals refused before a run`."""
        duplicates = f"{self.duplicates} duplicate{'' if self.duplicates == 1 else 's'}"
        refused = f"{self.refused} proposal{'' if self.refused == 1 else 's'} refused before a run"
        return f"{self.wasted} of {self.launched} ({self.failed} without a result, {duplicates}); {refused}"


def count_waste(ledger: Ledger, campaign_id: int) -> Waste:
    """Launched, failed, doubled and refused trials of a campaign, from its rows."""
    with ledger.session() as session:
        kinds = select(Event.kind, Event.payload).where(
            Event.campaign_id == campaign_id, Event.kind.in_(("launch", "refused"))
        )
        events = [(kind, payload) for kind, payload in session.execute(kinds.order_by(Event.id))]
        status = {readable_id("r", i): s for i, s in session.execute(select(Run.id, Run.status).where(Run.campaign_id == campaign_id))}  # fmt: skip
    launched = {payload["round"]: payload for kind, payload in events if kind == "launch"}  # a resumed round once
    runs = [run for payload in launched.values() for run in payload["runs"]]
    return Waste(
        launched=len(runs),
        failed=sum(status.get(run) in WASTED for run in runs),
        duplicates=sum(len(payload.get("near", {})) for payload in launched.values()),
        refused=sum(kind == "refused" for kind, _ in events),
    )
