"""What agents propose: one change of one configuration, with the effect that its author expects, and what came of it.

An idea is trained apart from the optimizer's configurations of its round, on the seed of all search trials, so what it brought is
the difference to the configuration that led when it was proposed. Expected and measured effects are in noise floors. Every
idea is an event; the one of a trial is the newest that holds a proposal of an agent there, so a resumed campaign has the same ones.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import Field
from sqlalchemy import select

from core.config import FrozenConfig
from core.errors import bad_value
from experiments.campaign.trials import Base, Trials, best_first, slice_of
from experiments.ledger.ids import readable_id
from experiments.ledger.models import Event, Proposal
from experiments.ledger.store import now
from experiments.search.side import Value
from experiments.search.space import ROLES

COVERAGE = 0.8
"""Share of the measured effects that the intervals of their predictions are to hold."""
PRIOR_TRIALS = 5
"""Finished trials of an arm from which on an idea has to rest on rows."""


class Expected(FrozenConfig):
    """What somebody expects of a change: its effect on the score in noise floors, with an interval of `COVERAGE`."""

    delta: float = Field(allow_inf_nan=False)
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)

    def __str__(self) -> str:
        return f"{self.delta:+.3g} [{self.low:+.3g}, {self.high:+.3g}] noise floors"


class Idea(FrozenConfig):
    """One change of one configuration."""

    author: str
    arm: str
    round: int
    trial: int | None
    """The trial that is to try it; None where other ideas of its round were preferred."""
    base: Base
    against: str | None
    """The run that it is measured against: of the best trial of its arm when it was proposed."""
    changes: dict[str, Value]
    """What differs from the base."""
    expected: Expected | None
    prior: bool
    """Whether it rests on what its author knew before, and not on rows."""
    reason: str
    evidence: tuple[str, ...] = ()
    noise_floor: float
    """What one unit of the effect is."""
    client: str = Field(default="", exclude_if=lambda client: not client)
    """The MCP client that took its author's part; empty for one of the crew's own."""

    def words(self) -> str:
        """The idea on one line."""
        changed = " ".join(f"{name}={value}" for name, value in self.changes.items())
        tried = "not tried: more is expected of others" if self.trial is None else f"trial {self.trial}"
        return (
            f"{self.arm}, {tried}: the {self.base} with {changed}; expects {self.expected or 'nothing'}. {self.reason}"
        )


class Measured(NamedTuple):
    """An idea that was trained."""

    idea: Idea
    status: str
    """Of its run."""
    effect: float | None
    """Noise floors by which it beat what it is measured against; None without two scores."""

    @property
    def is_covered(self) -> bool | None:
        """Whether the effect lies in the interval that was predicted."""
        expected = self.idea.expected
        return None if expected is None or self.effect is None else expected.low <= self.effect <= expected.high


def all_ideas(trials: Trials) -> list[Idea]:
    """Every idea of a campaign, oldest first."""
    query = select(Event).where(Event.campaign_id == trials.campaign_id, Event.kind == "idea").order_by(Event.id)
    with trials.ledger.session() as session:
        return [Idea.model_validate(event.payload["idea"]) for event in session.scalars(query)]


def standing(trials: Trials) -> dict[tuple[str, int], Idea]:
    """(arm, trial) -> the idea that is or will be tried there: it was not replaced, taken back or refused since."""
    newest = {(idea.arm, idea.trial): idea for idea in all_ideas(trials) if idea.trial is not None}
    return {
        (arm, trial): idea
        for (arm, trial), idea in newest.items()
        if trial is not None and any(p.source == "agent" for p in trials.slices(arm, trial))
    }


def measured(trials: Trials) -> list[Measured]:
    """Every idea that was trained, in the order of their trials."""
    found = []
    scores = {readable_id("r", t.run.id): t.score for arm in trials.arms for t in trials.finished(arm)}
    ideas = standing(trials)
    for arm in trials.arms:
        for trial in trials.finished(arm):
            idea = ideas.get((arm, trial.number))
            if idea is not None:
                found.append(
                    Measured(
                        idea, trial.run.status, _effect(trial.score, scores.get(idea.against or ""), idea.noise_floor)
                    )
                )
    return sorted(found, key=lambda m: (m.idea.round, m.idea.trial or 0))


def optimizers_effects(trials: Trials) -> list[float]:
    """The same effect of every trial that the optimizer alone chose: against the best trial of the rounds before, in noise floors."""
    floor, effects = unit(trials), []
    for arm in trials.arms:
        finished = trials.finished(arm)
        for trial in finished:
            begin = trials.plan.trials_of(trials.plan.round_of(trial.number)).start
            lead = best_first(t for t in finished if t.number < begin)
            effect = _effect(trial.score, lead[0].score if lead else None, floor)
            if effect is not None and trials.proposer(arm, trial.number, "search") == "optimizer":
                effects.append(effect)
    return effects


def mean_error(done: Sequence[Measured], author: str) -> float:
    """By how much an agent's predictions exceeded what was measured, on average; 0 before any was measured."""
    errors = [
        m.idea.expected.delta - m.effect
        for m in done
        if m.idea.author == author and m.idea.expected and m.effect is not None
    ]
    return statistics.fmean(errors) if errors else 0.0


def unit(trials: Trials) -> float:
    """Score of one noise floor; 1 where none was measured, or seeds do not differ."""
    return trials.noise_floor() or 1.0


def _effect(score: float | None, against: float | None, floor: float) -> float | None:
    return None if score is None or against is None else (score - against) / floor


def check_grounds(trials: Trials, idea: Idea) -> None:
    """InputError where an idea rests on nothing: on no row although it says so, or on prior knowledge although there are rows."""
    done = len(trials.finished(idea.arm))
    if idea.prior and done >= PRIOR_TRIALS:
        raise bad_value(
            "prior_or_rows",
            "prior",
            f"rows: the {idea.arm} has {done} finished trials; name those it rests on in evidence",
        )
    if not idea.prior and idea.expected is not None and not idea.evidence:
        allowed = "rows, with the runs it rests on in evidence" + ("" if done >= PRIOR_TRIALS else "; or prior")
        raise bad_value("prior_or_rows", "rows without evidence", allowed)


def withdraw(trials: Trials, arm: str, round_: int, author: str, *said: Event) -> None:
    """Take back what an agent proposed in a round: its trial is the optimizer's again. said: events that tell of it, in the same transaction."""
    for (held, trial), idea in standing(trials).items():
        if held == arm and idea.author == author and trial in trials.plan.open_trials(round_):
            trials.replace_proposals(arm, trial, said)


def vetoed(trials: Trials, idea: Idea, by: str, run: str, reason: str) -> None:
    """Take an idea back because it repeats a run, and write down who did so, what it was and why."""
    trial = "" if idea.trial is None else f" (trial {idea.trial})"
    text = f"takes back the idea of {idea.author} for the {idea.arm}{trial}, which repeats {run}: {reason}"
    told = {
        "agent": idea.author,
        "arm": idea.arm,
        "trial": idea.trial,
        "round": idea.round,
        "run": run,
        "reason": reason,
    }
    payload = {"text": text, **told, "changes": idea.changes}
    event = Event(campaign_id=trials.campaign_id, kind="veto", actor=by, payload=payload, created_at=now())
    withdraw(trials, idea.arm, idea.round, idea.author, event)


def place(trials: Trials, idea: Idea) -> int | None:
    """The trial that tries an idea: its author's own of this round, a free one, or that of which least is expected; None where
    every other is expected to bring more. What is expected is corrected by what the same agent's predictions were wrong by.
    """
    places = trials.plan.open_trials(idea.round)
    held = {trial: i for (arm, trial), i in standing(trials).items() if arm == idea.arm and trial in places}
    own = [trial for trial, other in held.items() if other.author == idea.author]
    free = [trial for trial in places if trial not in held]
    if own or free:
        return (own or free)[0]
    done = measured(trials)

    def worth(other: Idea) -> float:
        return (other.expected.delta if other.expected else 0.0) - mean_error(done, other.author)

    weakest = min(held, key=lambda trial: worth(held[trial]))
    return weakest if worth(idea) > worth(held[weakest]) else None


def keep(trials: Trials, idea: Idea, configuration: dict[str, Value]) -> None:
    """Write an idea, and where it has a trial its configuration there, in one transaction. The same one again changes nothing."""
    if idea in (all_ideas(trials) if idea.trial is None else standing(trials).values()):
        return
    payload = {"text": idea.words(), "idea": idea.model_dump(mode="json")}
    event = Event(campaign_id=trials.campaign_id, kind="idea", actor=idea.author, payload=payload, created_at=now())
    rows: list[Proposal] = []
    via = f" (mcp:{idea.client})" if idea.client else ""
    if idea.trial is not None:
        authors = {p.role for p in trials.space(idea.arm).parameters if p.name in idea.changes}
        source = "incumbent" if idea.base == "incumbent" else "optimizer"
        for role in ROLES:
            own, is_changed = slice_of(trials.space(idea.arm), role, configuration), role in authors
            if own or is_changed:
                rows.append(
                    Proposal(
                        campaign_id=trials.campaign_id,
                        arm=idea.arm,
                        trial=idea.trial,
                        role=role,
                        source="agent" if is_changed else source,
                        changes=own,
                        reason=(idea.reason[:2000] + via) if is_changed else f"the {idea.base}'s",
                        predicted_effect=str(idea.expected or "") if is_changed else "",
                        evidence=list(idea.evidence) if is_changed else [],
                        created_at=now(),
                    )
                )
    trials.replace_proposals(idea.arm, idea.trial, [*rows, event])
