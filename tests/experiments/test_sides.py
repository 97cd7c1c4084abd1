"""Campaigns whose sides are learners, options, presets and models lead to a verdict on what was asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lab_on_script import lab_on_script
from sqlalchemy import select

from experiments.campaign.begin import recorded_in
from experiments.campaign.claims import confirmation_rows
from experiments.campaign.question import parse_goal
from experiments.judging.claim import ClaimContent
from experiments.judging.judge import judge
from experiments.ledger.models import Claim
from experiments.ledger.store import join_value
from experiments.metrics import parse_metric
from multi_agent.llm.choose import choose_llm
from multi_agent.workflows.research_workflow import run_research

GOALS = {
    "beat RL2 with MAML on point-robot": ({"maml-ppo"}, {"rl2"}),
    "compare maml and first-order maml on point-robot after 2 gradient steps": ({"maml-ppo"}, {"maml-ppo"}),
    "which learner is best on point-robot": ({"rl2", "maml-ppo"}, {"rl2"}),
    "find the best architecture for RL2 on t-maze": ({"rl2"}, {"rl2"}),
    "beat point-robot.lstm with gru on point-robot": ({"rl2"}, {"rl2"}),
    "compare S5 and LSTM on point-robot in the worst tasks": ({"rl2"}, {"rl2"}),
    "beat LSTM with S5 with privileged critic on point-robot after 1 episode": ({"rl2"}, {"rl2"}),
    "does adapting the head at test time beat no adaptation for S5 on point-robot with a switch of target": (
        {"rl2"},
        {"rl2"},
    ),
    "does S5 trained with the changes beat S5 on bandit with a switch of target": ({"rl2"}, {"rl2"}),
}


@pytest.mark.parametrize("goal", GOALS)
def test_a_campaign_of_any_two_sides_ends_with_a_verdict_on_what_was_asked(goal: str, tmp_path: Path) -> None:
    lab = lab_on_script(tmp_path, goal=goal)
    run_research(lab, choose_llm("offline"), data_dir=tmp_path, on_event=lambda event: None)
    question, runs = lab.question, lab.ledger.runs(lab.number)
    for arm, allowed in zip(("challenger", "baseline"), GOALS[goal], strict=True):
        own = [run for run in runs if run.arm == arm]
        assert {run.spec["learner"]["kind"] for run in own} <= allowed
        side = getattr(question, arm)
        assert {run.model for run in own} <= set(side.kinds)
        for name, value in side.fixed.items():
            section, field = name.split(".")
            for run in own:
                holder = {**run.spec, "model": run.spec["policy"]["model"]}.get(section, {"adapts": "nothing"})
                assert holder.get(field) == value
        assert all(run.spec.get("changes", {}).get("switch_step") == question.changes.switch_step for run in own)
        if side.recorded is not None:
            assert {run.variant_hash for run in own} == {own[0].variant_hash}
    with lab.ledger.session() as session:
        row = session.scalars(select(Claim)).one()
    claim, rows = ClaimContent.model_validate(row.content), confirmation_rows(lab.ledger, row.id)
    assert claim.metric == question.metric
    assert judge(claim, rows).outcome == lab.judge().outcome

    metric = parse_metric(claim.metric)
    means: dict[str, list[float]] = {"challenger": [], "baseline": []}
    for run in lab.ledger.runs(lab.number, purpose="confirmation"):  # the same by a loop over the raw rows
        scored = metric.of_learner(
            lab.trials.spec(run.arm, lab.trials.winner(run.arm)[1], seed=0, env_steps=1).learner.scored_by
        )
        values = [join_value(e.value, e.kind) for e in lab.ledger.evals([run.id]) if e.episode == scored.column]
        assert len(values) == claim.num_tasks
        kept = sorted(values)[: -(-len(values) // 10)] if metric.worst else values
        means[run.arm].append(float(np.mean(kept)))
        assert run.score == pytest.approx(means[run.arm][-1])
    verdict = lab.judge()
    if claim.is_of_one_configuration:
        assert verdict.reason.startswith("nothing better was found")
        return
    assert verdict.challenger is not None
    assert verdict.baseline is not None
    assert verdict.challenger.mean == pytest.approx(np.mean(means["challenger"]))
    assert verdict.baseline.mean == pytest.approx(np.mean(means["baseline"]))


def test_a_recorded_run_is_held_against_as_it_was_trained(tmp_path: Path) -> None:
    first = lab_on_script(tmp_path / "first", goal="beat LSTM on point-robot")
    first.run_baseline()
    question = parse_goal("beat r-1 with gru on point-robot", recorded_in(lambda: first.ledger))
    assert question.baseline.recorded is not None
    assert question.baseline.recorded.run == "r-0001"
    lab = lab_on_script(tmp_path / "second", goal=question)
    lab.run_baseline()
    trained, recorded = lab.ledger.get_run(1), first.ledger.get_run(1)
    assert trained.variant_hash == recorded.variant_hash
    assert abs(trained.parameters - recorded.parameters) == 0
