"""The real lab on the real ledger, with an executor that answers every run from a function of its specification, at once.

For tests of rules, rows and the crew: no process is started and nothing is trained, so the scores are known beforehand.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import select

from core.seeding import numpy_stream
from env_runner.task_distributions import get_family
from experiments.campaign.begin import create_campaign
from experiments.campaign.lab import Lab
from experiments.campaign.plan import Budget, Design, Plan
from experiments.campaign.question import Question, parse_goal
from experiments.ledger import Ledger
from experiments.ledger.models import Proposal
from experiments.metrics import parse_metric
from experiments.runs.executor import Ended, Evaluated, Executor, Job, Listener, Report, Rung, Started
from experiments.runs.paths import Paths

Score = Callable[[Job], float]
DESIGN = Design(name="test", baseline_seeds=2, rounds=3, top=1, selection_seeds=1, confirmation_seeds=5)


def ssm_leads(job: Job) -> float:
    """State space models at -5, the LSTM at -15; a thousandth for the seed, so that there is a noise floor."""
    return (-15.0 if job.spec.policy.model.kind == "lstm" else -5.0) + 0.001 * (job.spec.seed % 97)


def goes_on(job: Job) -> Ended | None:
    """No run ends before its evaluation."""
    return None


class ScriptedExecutor:
    """Ends every job at once.

    score: mean return of a job's evaluation; NaN fails the run. end: how a job ends instead of being evaluated, or None.
    reports: training reports of a job, rising by one return each. A rung's score rises by a straight line to the final
    one; `probe_problem` says why a first iteration would fail, or None. jobs: all that came, in order.
    """

    workers = 2

    def __init__(
        self,
        score: Score,
        end: Callable[[Job], Ended | None] = goes_on,
        *,
        reports: int = 1,
        episodes: int = 1,
    ) -> None:
        self.score, self.end, self.reports, self.episodes = score, end, reports, episodes
        self.probe_problem: Callable[[Job], str | None] = lambda job: None
        self.jobs: list[Job] = []

    def run(self, jobs: Sequence[Job], on_message: Listener, stop: threading.Event) -> None:
        for job in jobs:
            self.jobs.append(job)
            if job.probe:
                problem = self.probe_problem(job)
                on_message(job, Ended("failed" if problem else "done", problem, memory_mb=300))
            else:
                self._train(job, on_message)

    def _train(self, job: Job, on_message: Listener) -> None:
        value, steps = self.score(job), job.spec.env_steps
        on_message(job, Started(pid=1))
        for number, env_steps in enumerate(job.rungs, 1):
            at_rung = value - 20 * (1 - env_steps / steps)
            on_message(job, Report(env_steps, {"rollout/ep_rew_mean": at_rung, "time/fps": 1e4}))
            cause = on_message(job, Rung(number, env_steps, at_rung))
            if cause is not None:
                on_message(job, Ended("pruned", cause, env_steps, 1.0))
                return
        for part in range(1, self.reports + 1):
            metrics = {"rollout/ep_rew_mean": value - self.reports + part, "time/fps": 1e4}
            on_message(job, Report(steps * part // self.reports, metrics))
        ended = Ended("failed", "made to fail", steps, 1.0) if math.isnan(value) else self.end(job)
        if ended is None:
            tasks = len(get_family(job.spec.task).eval_tasks(job.pool))
            noise = numpy_stream(job.spec.seed, job.spec.policy.model.kind).normal(
                size=(tasks, max(self.episodes, parse_metric(job.spec.scored_by).column + 1))
            )
            on_message(job, Evaluated(job.pool, {"return": np.add(value, noise).tolist()}))
            ended = Ended("done", None, steps, 1.0)
        on_message(job, ended)


def lab_on_script(
    folder: Path,
    score: Score = ssm_leads,
    goal: str | Question = "beat LSTM on point-robot",
    *,
    design: Design = DESIGN,
    new: bool = False,
    executor: Executor | None = None,
    **plan: Any,
) -> Lab:
    """The newest campaign in `folder`, or a `new` one of runs of one or two iterations. plan: fields of its plan."""
    paths = Paths.of(folder)
    paths.ensure()
    ledger = Ledger(paths.ledger_url)
    question = parse_goal(goal) if isinstance(goal, str) else goal
    fields: dict[str, Any] = {
        "budget": Budget(env_steps=10**6),
        "design": design,
        "tuned_arms": 2 if question.baseline_is_tuned else 1,
        "env_steps_full": 12_800,
        "env_steps_search": 6_400,
        "workers": 2,
        "steps_per_s": None,
    }
    try:
        campaign_id = None if new else ledger.resolve("@last", "campaign")
    except ValueError:
        campaign_id = None
    if campaign_id is None:
        campaign_id = create_campaign(ledger, question, Plan(**(fields | plan)), seed=1, llm="offline")
    return Lab(ledger, campaign_id, executor or ScriptedExecutor(score), paths)


def search(lab: Lab) -> None:
    """The baseline and every search round, without a crew."""
    lab.run_baseline()
    lab.set_stage("search")
    while lab.round < lab.plan.rounds:
        lab.launch()


def search_and_confirm(lab: Lab) -> None:
    """Every stage's work up to the confirmation runs, without a crew; not judged."""
    search(lab)
    lab.set_stage("selection")
    lab.run_selection()
    lab.write_claim()
    lab.set_stage("confirmation")
    lab.run_confirmation()


def proposals_of(lab: Lab) -> dict[tuple[int, str, str], Proposal]:
    """(round, arm, role) -> the proposal that holds."""
    query = select(Proposal).where(Proposal.campaign_id == lab.number, Proposal.superseded.is_(False))
    with lab.ledger.session() as session:
        return {(p.trial, p.arm, p.role): p for p in session.scalars(query.order_by(Proposal.id))}


def run_names(ledger: Ledger, campaign_id: int, **wanted: Any) -> list[str]:
    """Ids such as r-0042 of a campaign's runs whose fields are as wanted."""
    runs = ledger.runs(campaign_id)
    return [f"r-{run.id:04d}" for run in runs if all(getattr(run, k) == v for k, v in wanted.items())]
