"""The course of a campaign as its rows tell it: the stage, the search round, and everything that was said and done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from core.errors import unknown_name
from experiments.campaign.trials import Trials
from experiments.campaign.views import EventView
from experiments.ledger.models import Campaign
from experiments.vocabulary import STAGES, Stage


class Journal:
    """Reads and writes the course of the campaign whose trials are given; nothing is kept in memory."""

    def __init__(self, trials: Trials) -> None:
        self.trials, self.ledger, self.campaign_id = trials, trials.ledger, trials.campaign_id

    @property
    def stage(self) -> Stage:
        return self.ledger.get_campaign(self.campaign_id).stage  # type: ignore[return-value]

    def set_stage(self, stage: Stage, *, spent_s: float) -> None:
        """Move the campaign to a later stage, and keep the wall seconds of all sittings so far."""
        if stage not in STAGES:
            raise unknown_name("stage", stage, STAGES)
        with self.ledger.session() as session:
            row = session.get_one(Campaign, self.campaign_id)
            row.stage, row.spent_s = stage, spent_s

    def finish(self, narrative: str, narrator: str) -> None:
        """Close the campaign with the crew's own words, which stand beside the verdict and never in its place."""
        with self.ledger.session() as session:
            row = session.get_one(Campaign, self.campaign_id)
            row.narrative = f"{narrative.strip()}\n\n({narrator})"
            row.stage = "done"

    @property
    def round(self) -> int:
        """Search rounds whose runs are all finished; the index of the round to be worked on."""
        launched, round_ = self._rounds_of("launch"), 0
        finished = min(len(self.trials.finished(arm)) for arm in self.trials.arms) // self.trials.plan.trials_at_once
        while round_ in launched and round_ < finished:
            round_ += 1
        return round_

    def is_launched(self, round_: int) -> bool:
        """Whether the runs of a round were queued, so that its configurations stand."""
        return round_ in self._rounds_of("launch")

    def opened(self) -> set[int]:
        """Rounds that a person opened to the agents, whatever their share."""
        return self._rounds_of("opened")

    def ends_early(self) -> bool:
        """Whether a request to end the search was granted."""
        return any(event.payload["granted"] for event in self.events(["early_end"]))

    def record_event(self, kind: str, actor: str, payload: dict[str, Any]) -> int:
        """Keep what the crew said or did; the number of the event, which rises."""
        clean = json.loads(json.dumps(payload, default=str))
        return self.ledger.record_event(self.campaign_id, kind, actor, clean)

    def events(
        self, kinds: Sequence[str] | None = None, after: int = 0, campaign: str | None = None
    ) -> list[EventView]:
        """Recorded events, oldest first, of this campaign or of another."""
        campaign_id = self.campaign_id if campaign is None else self.ledger.resolve(campaign, "campaign")
        found = self.ledger.events(campaign_id, kinds, after)
        return [EventView(id=e.id, kind=e.kind, actor=e.actor, payload=e.payload) for e in found]

    def _rounds_of(self, kind: str) -> set[int]:
        return {event.payload["round"] for event in self.events([kind])}
