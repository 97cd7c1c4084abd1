"""The real lab on the real ledger, with an executor that makes scores up at once: for tests of what rows and tools do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from core.seeding import numpy_stream
from env_runner.task_distributions import get_family
from experiments.campaign.begin import create_campaign
from experiments.campaign.lab import Lab
from experiments.campaign.plan import Budget, Design, Plan
from experiments.campaign.question import parse_goal
from experiments.ledger import Ledger
from experiments.runs.executor import Ended, Evaluated, Job, Message, Report, Started
from experiments.runs.paths import Paths

DESIGN = Design(name="test", baseline_seeds=2, rounds=3, top=1, selection_seeds=1, confirmation_seeds=5)


class InstantExecutor:
    """Ends every job at once; a job whose pool and arm `fail` names ends with a cause."""

    workers = 2

    def __init__(self, fail: Callable[[Job], bool] = lambda job: False) -> None:
        self.fail = fail

    def run(self, jobs: Sequence[Job], on_message: Callable[[Job, Message], None], stop: threading.Event) -> None:
        for job in jobs:
            steps = job.spec.env_steps
            value = (-15.0 if job.spec.policy.model.kind == "lstm" else -5.0) + 0.001 * (job.spec.seed % 97)
            on_message(job, Started(pid=1))
            for part in range(1, 9):
                on_message(job, Report(steps * part // 8, {"rollout/ep_rew_mean": value - 8 + part, "time/fps": 1e4}))
            if self.fail(job):
                on_message(job, Ended("diverged", "the loss is not finite", steps, 1.0))
                continue
            tasks = len(get_family(job.spec.task).eval_tasks(job.pool))
            returns = value + numpy_stream(job.spec.seed, job.pool).normal(size=(tasks, 2))
            on_message(job, Evaluated(job.pool, {"return": returns.tolist()}))
            on_message(job, Ended("done", None, steps, 1.0))


def instant_lab(
    folder: Path,
    *,
    goal: str = "beat LSTM on point-robot",
    fail: Callable[[Job], bool] = lambda job: False,
    design: Design = DESIGN,
) -> Lab:
    """A new campaign in `folder`, or the one that is there."""
    paths = Paths.of(folder)
    paths.ensure()
    ledger = Ledger(paths.ledger_url)
    question = parse_goal(goal)
    plan = Plan(
        budget=Budget(env_steps=10**6),
        design=design,
        tuned_arms=2,
        env_steps_full=12_800,
        env_steps_search=6_400,
        workers=2,
        steps_per_s=None,
    )
    try:
        number = ledger.resolve("@last", "campaign")
    except ValueError:
        number = create_campaign(ledger, question, plan, seed=1, llm="offline")
    return Lab(ledger, number, InstantExecutor(fail), paths)


def search_and_confirm(lab: Lab) -> None:
    """Every stage's work up to the confirmation runs, without a crew; not judged."""
    lab.run_baseline()
    lab.set_stage("search")
    while lab.round < lab.plan.rounds:
        lab.launch()
    lab.set_stage("selection")
    lab.run_selection()
    lab.write_claim()
    lab.set_stage("confirmation")
    lab.run_confirmation()
