"""Going on with an inconclusive claim: a campaign that begins at the claim, with the same two configurations on fresh seeds.

It is no second chance at luck: an extending claim is decided by the product of its e-value with those before it
(`experiments/judging/judge.py`), which keeps its error rate however often one goes on, and not by another test at the same level.
"""

from __future__ import annotations

import math
from typing import Any

from sqlalchemy import select

from core.errors import InputError
from core.words.commands import command
from experiments.campaign.begin import create_campaign
from experiments.campaign.claims import find_claim, find_verdict
from experiments.campaign.plan import Extension, Plan
from experiments.campaign.question import Question
from experiments.campaign.trials import Trials
from experiments.judging.claim import MIN_SEEDS, ClaimContent, Extended
from experiments.judging.judge import VerdictContent
from experiments.judging.statistics import e_value
from experiments.ledger.models import Campaign, Run
from experiments.ledger.store import Ledger
from experiments.numbers import format_count, format_seconds
from experiments.vocabulary import ARMS, readable_id

MOST_SEEDS = 100
"""Fresh seeds a side in one extension: beyond that a difference is too small to be of use."""
AROUND = 0.95  # of a budget in wall time that goes into runs


def extend_campaign(
    ledger: Ledger, campaign_id: int, *, wall_s: float | None, env_steps: int | None, workers: int, llm: str
) -> int:
    """Write the campaign that extends `campaign_id`, and return its id; as many fresh seeds as fit into the budget.

    InputError where there is nothing to extend: no verdict, a decided one, another extension already, a budget for fewer than
    `MIN_SEEDS` seeds, or a configuration that this code builds otherwise than the claim says.
    """
    name = readable_id("c", campaign_id)
    row = ledger.get_campaign(campaign_id)
    claim = find_claim(ledger, campaign_id)
    verdict_row = None if claim is None else find_verdict(ledger, claim)
    if claim is None or verdict_row is None:
        raise InputError(
            f"{name} has no verdict yet: there is nothing to extend. Go on with: {command('resume', name)}"
        )
    content, verdict = ClaimContent.model_validate(claim.content), VerdictContent.model_validate(verdict_row.content)
    if (
        verdict.outcome != "inconclusive"
        or verdict.effect is None
        or verdict.challenger is None
        or verdict.baseline is None
    ):
        raise InputError(f"{name} is {verdict.outcome}: only an inconclusive verdict with finished runs is extended. It says: {verdict.reason}")  # fmt: skip
    if later := _extension_of(ledger, name):
        raise InputError(f"{name} is extended by {later} already, so that is what goes on: {command('extend', later)}")
    question, plan = Question.model_validate(row.question), Plan.model_validate(row.plan)
    before = content.extends
    sides = [list(getattr(verdict, arm).seed_means) for arm in ARMS]
    pairs = min(len(side) for side in sides)
    own = verdict.e_value or e_value([c - b for c, b in zip(sides[0][:pairs], sides[1][:pairs], strict=True)])  # type: ignore[arg-type]
    product = verdict.e_product or own
    seeds_before = verdict.seeds + (before.seeds if before else 0)
    effect = verdict.effect
    if before is not None:
        effect = (before.seeds * before.effect + verdict.seeds * verdict.effect) / seeds_before
    trials = Trials(ledger, campaign_id, question, plan, row.seed)
    winners: dict[str, tuple[int | None, dict[str, Any]]] = {}
    for arm in ARMS:
        trial, values = trials.winner(arm)
        if trials.spec(arm, values, seed=0, env_steps=1).variant_hash != getattr(content, arm).variant_hash:
            raise InputError(f"{name}: this code builds the {arm}'s configuration otherwise than the claim names it: extend it with the code that it was made with")  # fmt: skip
        winners[arm] = (trial, values)
    count = _seeds_for(ledger, claim.id, wall_s, env_steps, workers)
    used = _seeds_used(plan)
    extension = Extension(
        campaign=name,
        winners=winners,
        used=(*used, *content.seeds),
        evidence=Extended(claim=readable_id("k", claim.id), e_product=product, seeds=seeds_before, effect=effect),
        claim=content.model_dump(mode="json"),
    )
    fresh = plan.model_copy(
        update={
            "extends": extension,
            "design": plan.design.model_copy(update={"name": "extension", "confirmation_seeds": count}),
            "budget": plan.budget.model_copy(update={"wall_s": wall_s, "env_steps": env_steps}),
            "workers": workers,
            "timed": False,
        }
    )
    number = create_campaign(ledger, question, fresh, seed=row.seed, llm=llm)
    with ledger.session() as session:
        session.get_one(Campaign, number).stage = "claim"
    return number


def _extension_of(ledger: Ledger, name: str) -> str | None:
    """The campaign that extends `name`, or None."""
    with ledger.session() as session:
        for number, plan in session.execute(select(Campaign.id, Campaign.plan).order_by(Campaign.id)):
            if (plan.get("extends") or {}).get("campaign") == name:
                return readable_id("c", number)
    return None


def _seeds_used(plan: Plan) -> tuple[int, ...]:
    """The seeds of the claims before the one that is extended."""
    return () if plan.extends is None else plan.extends.used


def _seeds_for(ledger: Ledger, claim_id: int, wall_s: float | None, env_steps: int | None, workers: int) -> int:
    """How many seeds a side fit into a budget, by what a seed of both sides has cost so far."""
    with ledger.session() as session:
        query = select(Run.seed, Run.env_steps, Run.wall_s).where(Run.claim_id == claim_id, Run.status == "done")
        runs = [(seed, steps, seconds or 0.0) for seed, steps, seconds in session.execute(query)]
    seeds = len({seed for seed, _, _ in runs})
    if env_steps is not None:
        cost = sum(steps for _, steps, _ in runs) / seeds
        count, least = int(env_steps / cost), f"--env-steps {format_count(math.ceil(MIN_SEEDS * cost / 1000) * 1000)}"
    else:
        assert wall_s is not None
        cost = sum(seconds for *_, seconds in runs) / seeds / workers / AROUND
        count, least = int(wall_s / cost), f"--budget {format_seconds(math.ceil(MIN_SEEDS * cost / 10 + 1) * 10)}"
    if count < MIN_SEEDS:
        raise InputError(f"the budget is too small for {MIN_SEEDS} fresh seeds a side. Nothing was spent. The smallest that works here: {least}")  # fmt: skip
    return min(count, MOST_SEEDS)
