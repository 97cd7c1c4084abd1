"""Rows for tests of the ledger: a campaign, a claim and runs, with as little as they need."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

from experiments.campaign.holder import this_process
from experiments.ledger import Ledger
from experiments.ledger.models import Campaign, Claim, Eval, Run
from experiments.ledger.store import now, split_value


def add_campaign(ledger: Ledger, **changes: Any) -> int:
    values: dict[str, Any] = {
        "goal": "beat LSTM on point-robot",
        "question": {"task": "point-robot"},
        "plan": {},
        "seed": 0,
        "stage": "search",
        "status": "paused",
        "llm": "offline",
        "provenance": {},
        "created_at": now(),
    }
    return ledger.add(Campaign(**(values | changes)))


def add_claim(ledger: Ledger, campaign: int) -> int:
    return ledger.add(Claim(campaign_id=campaign, content={"a": 1}, content_hash="0" * 64, created_at=now()))


def add_run(ledger: Ledger, *, returns: list[list[float]] | None = None, finish: str | None = "done", **changes: Any) -> int:  # fmt: skip
    """A run, with its evaluation returns (tasks, episodes) and a final status unless `finish` is None."""
    values: dict[str, Any] = {
        "purpose": "search",
        "pool": "search",
        "arm": "challenger",
        "proposer": "default",
        "spec": {"env_steps": 1000, "policy": {"model": {"kind": "s5", "state_dim": 16}}, "seed": 1},
        "config_hash": "c" * 64,
        "variant_hash": "v" * 64,
        "task": "point-robot",
        "task_version": "1",
        "model": "s5",
        "seed": 1,
        "parameters": 1000,
        "status": "queued",
        "env_steps": 1000,
        "provenance": {"python": "3.11"},
        "created_at": now(),
    }
    number = ledger.add(Run(**(values | changes)))
    with ledger.session() as session:
        for task, episodes in enumerate(returns or []):
            for episode, raw in enumerate(episodes):
                value, kind = split_value(raw)
                session.add(
                    Eval(
                        run_id=number,
                        pool=changes.get("pool", "search"),
                        task_index=task,
                        episode=episode,
                        name="return",
                        value=value,
                        kind=kind,
                    )
                )
    if finish is not None:
        with ledger.session() as session:
            run = session.get_one(Run, number)
            run.status = finish
            if returns and finish == "done":
                run.score = sum(row[0] for row in returns) / len(returns)
    return number


def dead_holder() -> dict[str, Any]:
    """What is written beside a campaign by a process of this machine that was killed."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    holder = this_process() | {"pid": process.pid, "start": None}
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return holder
