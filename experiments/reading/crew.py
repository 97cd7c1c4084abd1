"""What the crew of a campaign said, expected and got: its talk to be read, and predictions held against what was measured."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence

from sqlalchemy import select

from core.words.text import harmless
from experiments.campaign.evidence import described
from experiments.campaign.plan import Plan
from experiments.campaign.proposing.ideas import COVERAGE, Idea, Measured, all_ideas, measured, optimizers_effects
from experiments.campaign.question import Question
from experiments.campaign.trials import Trials
from experiments.ledger.models import Event
from experiments.ledger.store import Ledger, readable_id
from experiments.tables import Cell, TableView

TALK = ("stage", "agent", "message", "idea", "veto", "early_end", "instruct", "approve", "pause", "stop", "refused")
"""Events that a person reads; tool calls and calls of the model are left to `export`."""
INDENT = "    "
IDEA_COLUMNS = ("round", "agent", "arm", "change", "expected", "interval", "measured", "run", "rests on")
AGENT_COLUMNS = ("agent", "ideas", "tried", "expected", "measured", "error", "in interval", "gain over the optimizer")


def ideas_table(ledger: Ledger, campaign_id: int) -> TableView:
    """Every idea of the agents: what it changed, the effect that was expected of it, and the one that was measured."""
    trials = _trials(ledger, campaign_id)
    if trials is None:
        return TableView(columns=IDEA_COLUMNS, rows=(), note="No agent proposed anything of its own.")
    done = {(m.idea.arm, m.idea.trial): m for m in measured(trials)}
    vetoes = ledger.events(campaign_id, ["veto"])
    rows = []
    for idea in all_ideas(trials):
        found = done.get((idea.arm, idea.trial))
        found = found if found is not None and found.idea == idea else None
        expected = idea.expected
        rows.append(
            (
                idea.round + 1, idea.author, idea.arm, f"{idea.base}: {described(idea.changes)}",
                None if expected is None else round(expected.delta, 2),
                None if expected is None else f"{expected.low:.3g} to {expected.high:.3g}",
                None if found is None or found.effect is None else round(found.effect, 2),
                _fate(idea, vetoes) if found is None else found.status,
                "prior" if idea.prior else ", ".join(idea.evidence),
            )
        )  # fmt: skip
    note = f"Effects in noise floors, against the best trial of the arm at that time on the same seed; intervals are to hold {100 * COVERAGE:.0f} %."
    return TableView(columns=IDEA_COLUMNS, rows=tuple(rows), note=note)


def _fate(idea: Idea, vetoes: Sequence[Event]) -> str:
    """What became of an idea that was not tried."""
    place = {"agent": idea.author, "arm": idea.arm, "round": idea.round, "changes": idea.changes}
    for veto in reversed(vetoes):
        if place.items() <= veto.payload.items():
            return f"vetoed by {veto.actor} as {veto.payload['run']} again: {veto.payload['reason']}"
    return "not tried"


def predictions_table(ledger: Ledger, campaign_id: int) -> TableView:
    """By agent: how wrong its predictions were, how often their interval held, and what its ideas gained over the optimizer's trials."""
    trials = _trials(ledger, campaign_id)
    if trials is None:
        return TableView(columns=AGENT_COLUMNS, rows=())
    done, optimizer = measured(trials), optimizers_effects(trials)
    reference = statistics.fmean(optimizer) if optimizer else None
    ideas = all_ideas(trials)
    rows: list[tuple[Cell, ...]] = []
    for author in dict.fromkeys(idea.author for idea in ideas):
        own = [m for m in done if m.idea.author == author]
        rows.append((author, sum(i.author == author for i in ideas), len(own), *_scores(own, reference)))
    if reference is not None:
        rows.append(("optimizer", None, len(optimizer), None, round(reference, 2), None, None, None))
    note = "Means over tried ideas, in noise floors; error: mean distance of the expected effect from the measured one."
    return TableView(columns=AGENT_COLUMNS, rows=tuple(rows), note=note)


def _scores(own: Sequence[Measured], reference: float | None) -> tuple[Cell, ...]:
    """Mean expected and measured effect, mean absolute error, share in the interval, and gain over the optimizer's mean."""
    effects = [m.effect for m in own if m.effect is not None]
    told = [(m.idea.expected.delta, m.effect) for m in own if m.idea.expected is not None and m.effect is not None]
    held = [m.is_covered for m in own if m.is_covered is not None]
    mean = statistics.fmean(effects) if effects else None
    return (
        round(statistics.fmean(e for e, _ in told), 2) if told else None,
        None if mean is None else round(mean, 2),
        round(statistics.fmean(abs(e - m) for e, m in told), 2) if told else None,
        f"{sum(held)} of {len(held)}" if held else None,
        None if mean is None or reference is None else round(mean - reference, 2),
    )


def _trials(ledger: Ledger, campaign_id: int) -> Trials | None:
    """A campaign's trials; None where nobody had an idea, so that reading it needs nothing that may not be installed here."""
    with ledger.session() as session:
        query = select(Event.id).where(Event.campaign_id == campaign_id, Event.kind == "idea").limit(1)
        if session.scalar(query) is None:
            return None
    row = ledger.get_campaign(campaign_id)
    return Trials(ledger, campaign_id, Question.model_validate(row.question), Plan.model_validate(row.plan), row.seed)


def talk(ledger: Ledger, campaign_id: int) -> list[Event]:
    """What was said in a campaign, in order; words that the end of a turn passes on are there once."""
    query = select(Event).where(Event.campaign_id == campaign_id, Event.kind.in_(TALK)).order_by(Event.id)
    with ledger.session() as session:
        events = list(session.scalars(query))
    said: dict[str, str] = {}
    kept = []
    for event in events:
        text = str(event.payload.get("text", ""))
        if event.kind == "message" and text and said.get(event.actor, "").startswith(text):
            continue
        if event.kind == "agent":
            said[event.actor] = text
        kept.append(event)
    return kept


def transcript(ledger: Ledger, campaign_id: int, *, width: int = 80) -> str:
    """The crew's talk for reading: who said what to whom, ideas with their reasons in full, nothing wider than `width`."""
    lines = [f"What the crew of {readable_id('c', campaign_id)} said"]
    for event in talk(ledger, campaign_id):
        to = f" to {event.payload['to']}" if event.payload.get("to") else ""
        what = {"idea": " proposes", "veto": " vetoes", "refused": " (refused)"}.get(event.kind, "")
        lines += ["", harmless(f"{event.created_at:%H:%M} {event.actor}{to}{what}")[:width]]
        text = harmless(str(event.payload.get("text", "")) or event.kind)
        lines += textwrap.wrap(text, width, initial_indent=INDENT, subsequent_indent=INDENT) or [INDENT.rstrip()]
    return "\n".join(lines)
