"""The crew on the real lab: real training of the toy family in real processes (slow)."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from crew_on_script import alone, crew_lab, idea, run_crew
from model_server import ModelServer, Reply, call, results_of, say, turn_of

from experiments.campaign.lab import Lab
from experiments.campaign.plan import Budget
from experiments.campaign.question import parse_goal
from experiments.runs.executor import LocalExecutor
from experiments.runs.paths import Paths
from experiments.search.space import SearchSpace, plan_unit
from multi_agent.workflows.collaborative_learning import CollaborativeLearning

pytestmark = pytest.mark.slow
GOAL = "beat LSTM on point-robot"


def open_lab(folder: Path, rounds: int = 3) -> Lab:
    """A new or the existing campaign of one training iteration a run in `folder`, trained in processes of their own."""
    question = parse_goal(GOAL)
    families = (question.challenger, question.baseline)
    unit = plan_unit([SearchSpace(family, question.task, learner=question.learner) for family in families])
    executor = LocalExecutor(2, Paths.of(folder).environment())
    lengths = {"env_steps_full": unit, "env_steps_search": unit, "budget": Budget(env_steps=10**9)}
    return crew_lab(folder, rounds, goal=GOAL, executor=executor, **lengths)


def test_a_model_shapes_a_real_campaign(tmp_path: Path) -> None:
    def brain(request: dict[str, Any]) -> Reply:
        turn, results = turn_of(request), results_of(request)
        if turn["kind"] == "propose" and turn["role"] == "meta-learning" and not results:
            return call(*(("propose", idea(arm, {"learner.learning_rate": 0.00123})) for arm in turn["arms"]))
        if turn["kind"] == "review" and not results:
            return call(("ledger_query", {"view": "sensitivity", "arm": None, "limit": 5}))
        return say("Done.")

    lab = open_lab(tmp_path, rounds=4)
    with ModelServer(brain).running() as server, lab.holding():
        run_crew(lab, tmp_path, server.choice())
    assert lab.stage == "done"
    search = lab.ledger.runs(lab.number, purpose="search")
    assert {r.proposer for r in search if r.trial == 1} == {"agent:meta-learning"}
    assert {r.spec["learner"]["learning_rate"] for r in search if r.trial == 1} == {0.00123}
    assert {r.proposer for r in search if r.trial == 2} == {"optimizer"}
    assert not [e for e in lab.events(["tool_result"]) if e.payload["failed"]]


def test_a_campaign_killed_in_the_search_is_resumed_to_its_verdict(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from test_real_lab import *\n"
        "lab = open_lab(Path(sys.argv[1]))\n"
        "with lab.holding(): run_crew(lab, Path(sys.argv[1]))\n"
    )
    lab = open_lab(tmp_path)  # the campaign that the process then works on
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=alone(), cwd=tmp_path)
    deadline = time.monotonic() + 240
    while lab.round != 1 or not any(r.status == "running" for r in lab.ledger.runs(lab.number, purpose="search")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lab = open_lab(tmp_path)
    assert lab.stage == "search"
    before = {r.id: (r.status, r.score) for r in lab.ledger.runs(lab.number) if r.status == "done"}
    with lab.holding():
        run_crew(lab, tmp_path)
    assert lab.stage == "done"
    after = {r.id: (r.status, r.score) for r in lab.ledger.runs(lab.number)}
    assert before.items() <= after.items()
    assert len([r for r in lab.ledger.runs(lab.number, purpose="search") if r.trial == 1]) == 2  # none trained twice


def test_collaborative_learning_solves_a_task(tmp_path: Path) -> None:
    team = CollaborativeLearning(
        agents=["State-Modeling", "Meta-Learning"], coordinator="Coordinator", llm="offline", data_dir=tmp_path
    )
    result = team.solve_task("point-robot", "debate", env_steps=150_000)
    assert result.campaign == "c-0001"
    assert result.outcome in ("confirmed", "refuted", "inconclusive")
    if result.improvement is not None:
        assert result.improvement.low <= result.improvement.effect <= result.improvement.high
        assert result.improvement.run_ids
