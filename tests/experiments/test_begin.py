"""Everybody who starts a campaign has it planned by the same function."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

import main
from experiments.campaign import begin
from experiments.campaign.begin import plan_campaign
from experiments.campaign.plan import Budget, make_plan
from experiments.campaign.question import parse_goal
from experiments.ledger import Ledger
from experiments.runs.machine import available_workers
from experiments.runs.paths import Paths
from multi_agent.workflows import collaborative_learning
from multi_agent.workflows.collaborative_learning import CollaborativeLearning

GOAL = "beat LSTM on point-robot"


def test_a_budget_in_env_steps_is_planned_from_the_questions_arms_alone(tmp_path: Path) -> None:
    """Held against the planner below it, with the unit of a run's length counted by hand."""
    unit = math.lcm(*(20 * worlds * episodes for worlds in (16, 32, 64) for episodes in (1, 2)))  # horizon 20
    plan = plan_campaign(parse_goal(GOAL), Budget(env_steps=2_000_000), Paths.of(tmp_path), memory_limit_mb=900)
    assert plan == make_plan(
        Budget(env_steps=2_000_000),
        iteration_steps=unit,
        horizon=20,
        tuned_arms=2,
        workers=available_workers(),
        steps_per_s=None,
        memory_limit_mb=900,
    )
    assert list(tmp_path.iterdir()) == []


def test_wall_time_is_planned_from_what_was_measured_with_both_arms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, said = [], []

    def measured(spaces, paths, workers, stop):
        asked.append([space.side.name for space in spaces])
        return SimpleNamespace(steps_per_s=12_345.6, startup_s=2.5)

    monkeypatch.setattr(begin, "measure_throughput", measured)
    plan = plan_campaign(parse_goal(GOAL), Budget(wall_s=3600), Paths.of(tmp_path), say=said.append)
    assert asked == [["ssm", "lstm"]]
    assert (plan.steps_per_s, plan.startup_s) == (12_345.6, 2.5)
    assert any("Measured 12,346 env steps/s" in words for words in said)


def test_the_command_line_and_solve_task_plan_the_same_campaign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["--goal", GOAL, "--env-steps", "2M", "--llm", "offline", "--dry-run", "--json"]
    assert main.main([*call, "--data-dir", str(tmp_path)]) == 0
    shown = json.loads(capsys.readouterr().out)

    class Begun(Exception):
        pass

    def work(*_: object, **__: object) -> None:
        raise Begun

    monkeypatch.setattr(collaborative_learning, "run_research", work)
    with pytest.raises(Begun):
        CollaborativeLearning(llm="offline", data_dir=tmp_path).solve_task("point-robot", env_steps=2_000_000)
    ledger = Ledger(Paths.of(tmp_path).ledger_url)
    campaign = ledger.get_campaign(1)
    ledger.close()
    assert (campaign.plan, campaign.question) == (shown["plan"], shown["question"])
