"""The lab's rules, on an executor that answers at once: who may set what, when confirming stops, what failures do.

Training is real everywhere else (test_campaign.py); here the executor makes the scores, so that the outcome is known.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from core.errors import InputError
from core.seeding import numpy_stream
from env_runner.task_distributions import get_family
from experiments.executor import Ended, Evaluated, Job, Message, Report, Started
from experiments.lab import Lab, create_campaign
from experiments.ledger import Ledger
from experiments.paths import Paths
from experiments.plan import Budget, Design, Plan
from experiments.question import parse_goal

Score = Callable[[Job], float]
DESIGN = Design(name="test", baseline_seeds=3, rounds=3, top=2, selection_seeds=1, confirmation_seeds=8)


class InstantExecutor:
    """Ends every job at once with returns around `score(job)`; a score of NaN fails the run."""

    workers = 2

    def __init__(self, score: Score) -> None:
        self.score = score
        self.jobs: list[Job] = []

    def run(self, jobs: Sequence[Job], on_message: Callable[[Job, Message], None], stop: threading.Event) -> None:
        for job in jobs:
            self.jobs.append(job)
            value = self.score(job)
            on_message(job, Started(pid=1))
            on_message(job, Report(job.spec.env_steps, {"rollout/ep_rew_mean": value, "time/fps": 1e4}))
            if np.isnan(value):
                on_message(job, Ended("failed", "made to fail", job.spec.env_steps, 1.0))
                continue
            tasks = len(get_family(job.spec.task).eval_tasks(job.pool))
            noise = numpy_stream(job.spec.seed, job.spec.policy.model.kind).normal(size=(tasks, 1))
            on_message(job, Evaluated(job.pool, {"return": (value + noise).tolist()}))
            on_message(job, Ended("done", None, job.spec.env_steps, 1.0))


def _lab(folder: Path, score: Score, goal: str = "beat LSTM on point-robot", design: Design = DESIGN) -> Lab:
    paths = Paths.of(folder / "data")
    paths.ensure()
    ledger = Ledger(paths.ledger_url)
    question = parse_goal(goal)
    plan = Plan(
        budget=Budget(env_steps=10**6),
        design=design,
        tuned_arms=2 if question.baseline_is_tuned else 1,
        env_steps_full=12_800,
        env_steps_search=6_400,
        workers=2,
        steps_per_s=None,
    )
    return Lab(ledger, create_campaign(ledger, question, plan, seed=1, llm="offline"), InstantExecutor(score), paths)


def _search(lab: Lab) -> None:
    lab.run_baseline()
    lab.set_stage("search")
    while lab.round < lab.plan.rounds:
        lab.launch()


def _to_the_end(lab: Lab):
    _search(lab)
    lab.run_selection()
    lab.write_claim()
    lab.run_confirmation()
    return lab.judge()


def _by_arm(challenger: float, baseline: float, spread: float = 0.3) -> Score:
    """Scores by model kind, with a seed's own luck."""

    def score(job: Job) -> float:
        luck = float(numpy_stream(job.spec.seed, "luck", job.spec.policy.model.kind).normal())
        return (baseline if job.spec.policy.model.kind == "lstm" else challenger) + spread * luck

    return score


def test_a_clear_win_is_confirmed_and_stops_at_the_first_look_that_allows_it(tmp_path: Path) -> None:
    lab = _lab(tmp_path, _by_arm(-5.0, -15.0))
    verdict = _to_the_end(lab)
    assert verdict.outcome == "confirmed"
    assert verdict.effect == pytest.approx(10, abs=1)
    assert verdict.seeds < 8
    assert len(lab.ledger.runs(lab.number, purpose="confirmation")) == 2 * verdict.seeds


def test_a_clear_loss_is_refuted(tmp_path: Path) -> None:
    assert _to_the_end(_lab(tmp_path, _by_arm(-15.0, -5.0))).outcome == "refuted"


def test_equal_sides_use_every_seed_and_stay_open(tmp_path: Path) -> None:
    verdict = _to_the_end(_lab(tmp_path, _by_arm(-10.0, -10.0)))
    assert (verdict.outcome, verdict.seeds) == ("inconclusive", 8)


def test_two_sides_that_have_not_learned_decide_nothing(tmp_path: Path) -> None:
    floor = get_family("point-robot").anchors["stand_still"]
    verdict = _to_the_end(_lab(tmp_path, _by_arm(floor - 5, floor - 50)))
    assert verdict.outcome == "inconclusive"
    assert "neither side has learned" in verdict.reason


def test_a_failed_confirmation_run_leaves_the_question_open(tmp_path: Path) -> None:
    good = _by_arm(-5.0, -15.0)
    lab = _lab(tmp_path, lambda job: good(job))
    _search(lab)
    lab.run_selection()
    unlucky = lab.write_claim().content.seeds[2]
    lab.executor.score = lambda job: float("nan") if job.spec.seed == unlucky else good(job)  # type: ignore[attr-defined]
    lab.run_confirmation()
    verdict = lab.judge()
    assert verdict.outcome == "inconclusive"
    assert "no finite result" in verdict.reason


def test_an_arm_whose_search_fails_altogether_confirms_its_default(tmp_path: Path) -> None:
    good = _by_arm(-5.0, -15.0)

    def score(job: Job) -> float:
        return float("nan") if job.pool != "confirmation" and job.spec.policy.model.kind != "lstm" else good(job)

    lab = _lab(tmp_path, score)
    assert _to_the_end(lab).outcome == "confirmed"
    assert lab.trials.winner("challenger")[1] == lab.trials.space("challenger").default_values()
    assert len(lab.ledger_query("failures", "challenger").rows) == 3


def test_selection_can_overturn_the_search(tmp_path: Path) -> None:
    """The best of the search is measured again on fresh seeds, and the better configuration there goes on."""

    def score(job: Job) -> float:
        rate = job.spec.learner.model_dump()["learning_rate"]
        return -1000 * rate if job.pool == "search" else 1000 * rate - 10

    lab = _lab(tmp_path, score)
    _search(lab)
    lab.run_selection()
    (_, first), (_, second) = lab.trials.candidates("baseline")
    assert first["learner.learning_rate"] < second["learner.learning_rate"]
    assert lab.trials.winner("baseline")[1] == second


def test_a_default_baseline_is_neither_searched_nor_selected(tmp_path: Path) -> None:
    lab = _lab(tmp_path, _by_arm(-5.0, -15.0), "improve lstm on point-robot by 10 %")
    verdict = _to_the_end(lab)
    assert {r.arm for r in lab.ledger.runs(lab.number, purpose=("search", "selection"))} == {"challenger"}
    assert verdict.margin > 0
    assert [p.name for p in verdict.parity] == ["parameters (within 10 %)"]


def test_trial_0_is_every_arms_default_and_the_baselines_is_not_trained_twice(tmp_path: Path) -> None:
    lab = _lab(tmp_path, _by_arm(-10.0, -10.0))
    lab.run_baseline()
    lab.set_stage("search")
    with pytest.raises(InputError, match="trial 0 is every arm's default"):
        lab.propose(arm="challenger", role="meta-learning", values={"learner.gamma": 0.99}, reason="x")
    lab.launch()
    searched = lab.ledger.runs(lab.number, purpose="search")
    assert [(r.arm, r.trial, r.proposer) for r in searched] == [("challenger", 0, "default")]


def test_a_proposal_stands_in_the_round_and_its_source_is_what_the_ledger_finds(tmp_path: Path) -> None:
    lab = _lab(tmp_path, _by_arm(-10.0, -10.0))
    lab.run_baseline()
    lab.set_stage("search")
    lab.launch()
    suggestion = lab.suggest("challenger")
    assert suggestion == lab.suggest("challenger")
    same = {"learner.gamma": suggestion.values["learner.gamma"]}
    assert lab.propose(arm="challenger", role="meta-learning", values=same, reason="", source="optimizer").source == "optimizer"  # fmt: skip
    other = {"learner.gamma": 0.99 if suggestion.values["learner.gamma"] != 0.99 else 0.95}
    pretended = lab.propose(arm="challenger", role="meta-learning", values=other, reason="longer", source="optimizer")
    assert pretended.source == "agent"
    lab.launch()
    (run,) = [r for r in lab.ledger.runs(lab.number, purpose="search", arm="challenger") if r.trial == 1]
    assert run.spec["learner"]["gamma"] == other["learner.gamma"]
    assert run.proposer == "agent:meta-learning"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"role": "state-modelling"}, "Did you mean 'state-modeling'"),
        ({"arm": "chalenger"}, "Did you mean 'challenger'"),
        ({"values": {"learner.gamma": 0.97}}, "belongs to the slice of meta-learning"),
        ({"evidence": ["r-9999"]}, "has no run r-9999"),
        ({"evidence": ["a paper"]}, "ids of search runs"),
    ],
)
def test_a_wrong_proposal_says_what_is_allowed(tmp_path: Path, arguments: dict, words: str) -> None:
    lab = _lab(tmp_path, _by_arm(-10.0, -10.0))
    lab.run_baseline()
    lab.set_stage("search")
    base: dict = {"arm": "challenger", "role": "state-modeling", "values": {}, "reason": "x"}
    with pytest.raises(InputError, match=words):
        lab.propose(**(base | arguments))


def test_tools_see_search_runs_alone(tmp_path: Path) -> None:
    lab = _lab(tmp_path, _by_arm(-5.0, -15.0))
    _to_the_end(lab)
    for purpose in ("selection", "confirmation"):
        run = f"r-{lab.ledger.runs(lab.number, purpose=purpose)[0].id:04d}"
        for call in (lab.learning_curve, lab.episode_returns, lambda r: lab.compare_variants(r, "r-0001")):
            with pytest.raises(InputError, match="a search run of this campaign"):
                call(run)
    seen = {row[0] for view in ("incumbent", "top", "runs", "baseline") for row in lab.ledger_query(view).rows}
    allowed = {f"r-{r.id:04d}" for r in lab.ledger.runs(lab.number, purpose=("baseline", "search"))}
    assert seen <= allowed


def test_the_search_is_closed_once_its_rounds_are_over(tmp_path: Path) -> None:
    lab = _lab(tmp_path, _by_arm(-5.0, -15.0))
    _search(lab)
    with pytest.raises(InputError, match="the search is closed"):
        lab.suggest("challenger")
    with pytest.raises(InputError, match="claim"):
        lab.run_confirmation()


def test_every_step_can_be_repeated_without_training_again(tmp_path: Path) -> None:
    lab = _lab(tmp_path, _by_arm(-5.0, -15.0))
    verdict = _to_the_end(lab)
    trained = len(lab.executor.jobs)  # type: ignore[attr-defined]
    lab.run_baseline()
    lab.run_selection()
    assert lab.write_claim().id == verdict.claim_id
    lab.run_confirmation()
    assert lab.judge() == verdict
    assert len(lab.executor.jobs) == trained  # type: ignore[attr-defined]


def test_two_labs_cannot_hold_one_campaign(tmp_path: Path) -> None:
    import subprocess
    import sys

    lab = _lab(tmp_path, _by_arm(-5.0, -15.0))
    root = Path(__file__).resolve().parents[2]
    with lab.holding():
        command = [sys.executable, str(root / "main.py"), "resume", "c-1", "--data-dir", str(tmp_path / "data")]
        result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert "is being worked on by process" in result.stderr
    assert "pause c-0001" in result.stderr
