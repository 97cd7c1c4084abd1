"""Rows of campaigns that nobody trains, for the tests of the command line."""

from __future__ import annotations

from pathlib import Path

from experiments.campaign.begin import create_campaign
from experiments.campaign.holder import this_process
from experiments.campaign.plan import Budget, make_plan
from experiments.campaign.question import parse_goal
from experiments.ledger import Ledger
from experiments.ledger.models import Campaign, Claim, Run
from experiments.ledger.store import now
from experiments.presets import named_preset
from experiments.runs.runner import queue_run
from experiments.vocabulary import Pool, Purpose


def campaign(data: Path, *statuses: str) -> Ledger:
    """A ledger with a campaign a status, without runs."""
    data.mkdir()
    ledger = Ledger(f"sqlite:///{data / 'ledger.db'}")
    budget, question = Budget(env_steps=10**6), parse_goal("beat LSTM on point-robot")
    plan = make_plan(budget, iteration_steps=1280, horizon=20, tuned_arms=2, workers=2, steps_per_s=None)
    for status in statuses:
        number = create_campaign(ledger, question, plan, seed=0, llm="offline")
        with ledger.session() as session:
            session.get_one(Campaign, number).status = status
    return ledger


def held_by(ledger: Ledger, pid: int, number: int = 1) -> None:
    """Campaign `number` is held by another process of this machine."""
    with ledger.session() as session:
        session.get_one(Campaign, number).holder = this_process() | {"pid": pid, "start": None, "token": "another"}


def add_run(ledger: Ledger, purpose: Purpose, status: str, env_steps: int, score: float | None = None) -> None:
    """A run of campaign 1 as a process at work would leave it; of a confirmation with its claim."""
    spec, claim = named_preset("point-robot.lstm"), None
    pool: Pool = "confirmation" if purpose == "confirmation" else "search"
    if pool == "confirmation":
        claim = ledger.add(Claim(campaign_id=1, content={}, content_hash="", created_at=now()))
    number = queue_run(ledger, spec, purpose=purpose, pool=pool, proposer="default", campaign_id=1, claim_id=claim, arm="challenger", trial=0)  # fmt: skip
    with ledger.session() as session:
        run = session.get_one(Run, number)
        run.status, run.env_steps, run.score = status, env_steps, score
