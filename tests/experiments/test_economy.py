"""What a campaign spends and plans by where the machine slows down and a person resumes it in between."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from env_runner.task_distributions import get_family
from experiments.campaign.begin import create_campaign
from experiments.campaign.lab import Lab
from experiments.campaign.plan import Budget, Design, Plan
from experiments.campaign.question import parse_goal
from experiments.campaign.steering import end_campaign
from experiments.ledger import Ledger
from experiments.reading.answers import answer
from experiments.runs.executor import Ended, Evaluated, Job, Listener, Report, Started
from experiments.runs.paths import Paths
from experiments.runs.runner import Paused

PLANNED_RATE, LOADED_RATE = 1_000.0, 200.0
REPORTS = 4  # of a run


class LoadedMachine:
    """Trains on paper: every report names the seconds that its iteration took, and a run that was stopped goes on from there.

    rate: env steps a second of the present sitting. stop_after: reports until a person pauses, None for never.
    """

    workers = 1

    def __init__(self) -> None:
        self.rate, self.stop_after = PLANNED_RATE, None
        self.trained: dict[int, int] = {}
        self.seconds = self.steps = 0.0  # of every iteration that was kept

    def run(self, jobs: Sequence[Job], on_message: Listener, stop: threading.Event) -> None:
        for job in jobs:
            if job.probe:
                on_message(job, Ended("done", None, memory_mb=300))
                continue
            on_message(job, Started(pid=1))
            of_this_process = 0.0
            for env_steps in range(
                job.spec.env_steps // REPORTS, job.spec.env_steps + 1, job.spec.env_steps // REPORTS
            ):
                if env_steps <= self.trained.get(job.run_id, 0):
                    continue
                steps = env_steps - self.trained.get(job.run_id, 0)
                seconds = steps / self.rate
                on_message(job, Report(env_steps, {"rollout/ep_rew_mean": -9.0, "time/fps": self.rate}, seconds))
                self.trained[job.run_id] = env_steps
                self.steps, self.seconds, of_this_process = self.steps + steps, self.seconds + seconds, of_this_process + seconds  # fmt: skip
                self.stop_after = None if self.stop_after is None else self.stop_after - 1
                if self.stop_after == 0:
                    self.stop_after = None
                    on_message(job, Ended("stopped", "asked to"))
                    stop.set()
                    return
            tasks = len(get_family(job.spec.task).eval_tasks(job.pool))
            kind = job.spec.policy.model.kind
            on_message(job, Evaluated(job.pool, {"return": [[-15.0 if kind == "lstm" else -5.0]] * tasks}))
            on_message(job, Ended("done", None, job.spec.env_steps, of_this_process))


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """A campaign of two search rounds within 300 s, planned for an idle machine."""
    paths = Paths.of(tmp_path / "data")
    paths.ensure()
    ledger = Ledger(paths.ledger_url)
    plan = Plan(
        budget=Budget(wall_s=300.0),
        design=Design(name="test", baseline_seeds=2, rounds=2, top=1, selection_seeds=1, confirmation_seeds=5),
        tuned_arms=2,
        env_steps_full=12_800,
        env_steps_search=6_400,
        workers=1,
        steps_per_s=PLANNED_RATE,
        startup_s=0.0,
    )
    campaign_id = create_campaign(ledger, parse_goal("beat LSTM on point-robot"), plan, seed=1, llm="offline")
    return Lab(ledger, campaign_id, LoadedMachine(), paths)


def _resumed(lab: Lab) -> Lab:
    return Lab(lab.ledger, lab.number, lab.executor, lab.paths)


def test_a_campaign_that_is_resumed_within_runs_on_a_loaded_machine_plans_with_the_true_throughput(lab: Lab) -> None:
    machine = lab.executor
    assert isinstance(machine, LoadedMachine)
    assert lab.economy.steps_per_s() == PLANNED_RATE
    lab.run_baseline()
    lab.set_stage("search")
    machine.rate = LOADED_RATE
    for reports in (1, 2):  # two pauses within a run of four: after each its rest is trained by another process
        machine.stop_after = reports
        with pytest.raises(Paused):
            lab.launch()
        lab = _resumed(lab)
    while lab.round < lab.plan.rounds:
        lab.launch()
    rate = machine.steps / machine.seconds
    assert LOADED_RATE < rate < PLANNED_RATE
    assert lab.economy.steps_per_s() == pytest.approx(rate)
    loaded = lab.ledger.runs(lab.number, purpose="search")
    assert {round(run.env_steps / run.train_s) for run in loaded} == {LOADED_RATE}
    assert lab.economy.steps_per_s(lab.trials.search_spec("challenger", {})) == pytest.approx(LOADED_RATE)
    assert lab.economy.time_limit_s() == pytest.approx(120 + 10 * 12_800 / rate)
    lab.economy.fit_full_length()
    final_runs = 2 * 1 + 2 * 5
    affordable = 0.95 * 300 * rate / final_runs  # what the budget buys at the true throughput
    assert lab.plan.env_steps_full <= affordable
    assert lab.plan.env_steps_full < 12_800
    words = answer(Ledger(lab.paths.ledger_url, read_only=True), lab.number, f"how fast was r-{loaded[0].id:04d}?").text
    assert f"trained {LOADED_RATE:,.0f} env steps/s" in words


def test_a_confirmation_that_is_stopped_within_a_run_is_judged_on_the_seeds_that_had_finished(lab: Lab) -> None:
    from cli.live import verdict_lines

    lab.run_baseline()
    lab.set_stage("search")
    while lab.round < lab.plan.rounds:
        lab.launch()
    lab.run_selection()
    seeds = lab.write_claim().content.seeds
    lab.executor.stop_after = 2 * 2 * REPORTS + REPORTS + 1  # type: ignore[attr-defined]
    with pytest.raises(Paused):
        lab.run_confirmation()
    lab.ledger.record_event(lab.number, "stop", "human", {})
    end_campaign(lab)
    verdict = lab.judge()
    assert (verdict.outcome, verdict.seeds) == ("inconclusive", 2)
    assert str(seeds[1]) in verdict.reason
    assert str(seeds[2]) not in verdict.reason
    counted = [run for run in lab.ledger.runs(lab.number, purpose="confirmation") if run.id in verdict.run_ids]
    assert [(run.seed, run.status) for run in counted] == [(seed, "done") for seed in seeds[:2] for _ in range(2)]
    lines = verdict_lines(verdict, lab.question, lab.plan, lab.round, lab.campaign_id, verdict.claim_id)
    assert any(line.startswith("2 paired seeds") for line in lines)
    assert "2 of 5 seeds had finished" in (lab.ledger.get_campaign(lab.number).narrative or "")
