"""The lab's rules, on an executor that answers at once: who may set what, when confirming stops, what failures do.

Training is real everywhere else (test_campaign.py); here the executor makes the scores, so that the outcome is known.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab_on_script import Score, lab_on_script, search

from core.errors import InputError
from core.seeding import numpy_stream
from env_runner.task_distributions import FAMILIES, get_family
from experiments.campaign.claims import claim_content
from experiments.campaign.design import best_task_blind
from experiments.campaign.gate import is_near, probe, static_problems
from experiments.campaign.lab import Lab
from experiments.campaign.plan import Design
from experiments.judging import judge as judging
from experiments.ledger.waste import count_waste
from experiments.presets import preset
from experiments.reading.report import gather, write_report
from experiments.runs.executor import Job, LocalExecutor, Report, Rung
from experiments.runs.paths import Paths
from experiments.runs.runner import compare_reruns, queue_run
from experiments.search.optimizer import PLATEAU_TRIALS
from experiments.search.pruning import Pruning, make_pruning
from experiments.search.sizing import count_parameters
from experiments.spec import RunSpec

DESIGN = Design(name="test", baseline_seeds=3, rounds=3, top=2, selection_seeds=1, confirmation_seeds=8)


def _lab(
    folder: Path, score: Score, goal: str = "beat LSTM on point-robot", design: Design = DESIGN, **changes: Any
) -> Lab:
    lab = lab_on_script(folder / "data", score, goal, design=design, new=True, **changes)
    lab.agent_share = 1.0  # these tests propose in every round
    return lab


def _to_the_end(lab: Lab):
    search(lab)
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


@pytest.mark.parametrize("task", sorted(FAMILIES))
def test_the_floor_of_a_task_is_the_best_of_its_task_blind_anchors(task: str) -> None:
    anchors = get_family(task).anchors
    name, floor = best_task_blind(anchors)
    blind = {n: v for n, v in anchors.items() if n != "ceiling"}
    assert floor == (max(blind.values()) if blind else None)
    assert floor is None or anchors[name] == floor


def test_acting_at_random_is_ant_vels_floor_as_it_beats_standing_still() -> None:
    assert best_task_blind(get_family("ant-vel").anchors) == ("random", -47.4)


def test_a_claim_names_the_best_task_blind_anchor_as_its_floor(tmp_path: Path) -> None:
    lab = _lab(tmp_path, _by_arm(-5.0, -15.0), "beat LSTM on ant-vel")
    content = claim_content(lab.trials, lab.question, 100)
    assert (content.floor, content.floor_name) == (-47.4, "a random policy reaches")


def test_every_rerun_that_a_report_prints_is_allowed_when_it_is_written(tmp_path: Path) -> None:
    lab = _lab(tmp_path, _by_arm(-5.0, -15.0))
    search(lab)
    lab.run_selection()
    lab.write_claim()
    lab.run_confirmation()
    for judged in (False, True):
        if judged:
            lab.judge()
        commands = [text for _, text in gather(lab.ledger, lab.number).commands if " rerun " in text]
        named = [text.partition(" rerun ")[2].split()[0] for text in commands]
        reruns = [lab.ledger.get_run(lab.ledger.resolve(run_id, "run")) for run_id in named]
        for run in reruns:
            lab.ledger.must_show(run)
        assert ("confirmation" in {run.purpose for run in reruns}) is judged
        assert len(reruns) == 3 + judged


def test_a_failed_confirmation_run_leaves_the_question_open(tmp_path: Path) -> None:
    good = _by_arm(-5.0, -15.0)
    lab = _lab(tmp_path, lambda job: good(job))
    search(lab)
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
    search(lab)
    lab.run_selection()
    (_, first), (_, second) = lab.trials.candidates("baseline")
    assert first["learner.learning_rate"] < second["learner.learning_rate"]
    assert lab.trials.winner("baseline")[1] == second


def test_a_default_baseline_is_neither_searched_nor_selected(tmp_path: Path) -> None:
    default = preset("point-robot", "lstm", "rl2").learner

    def score(job: Job) -> float:
        luck = float(numpy_stream(job.spec.seed, "luck").normal())
        return (-15.0 if job.spec.learner == default else -5.0) + 0.3 * luck

    lab = _lab(tmp_path, score, "improve lstm on point-robot by 10 %")
    verdict = _to_the_end(lab)
    assert verdict.outcome == "confirmed"
    assert {r.arm for r in lab.ledger.runs(lab.number, purpose=("search", "selection"))} == {"challenger"}
    assert verdict.margin > 0
    assert [p.name for p in verdict.parity] == ["parameters (within 10 %)"]


@pytest.mark.parametrize("goal", ["find the best lstm on point-robot", "improve lstm on point-robot by 10 %"])
def test_a_default_that_no_trial_beats_is_not_confirmed_against_itself(tmp_path: Path, goal: str) -> None:
    default = preset("point-robot", "lstm", "rl2")

    def score(job: Job) -> float:
        return -5.0 if job.spec.learner == default.learner and job.spec.policy == default.policy else -15.0

    lab = _lab(tmp_path, score, goal)
    verdict = _to_the_end(lab)
    assert lab.trials.winner("challenger")[1] == lab.trials.space("challenger").default_values()
    assert verdict.outcome == "inconclusive"
    assert "nothing better was found" in verdict.reason
    assert not lab.ledger.runs(lab.number, purpose="confirmation")
    lab.finish("the verdict is inconclusive", "code")
    assert "nothing better was found" in write_report(lab.ledger, lab.number, lab.paths)[1].read_text()


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
    assert lab.propose(arm="challenger", role="meta-learning", values=same, reason="").source == "optimizer"
    other = {"learner.gamma": 0.99 if suggestion.values["learner.gamma"] != 0.99 else 0.95}
    changed = lab.propose(arm="challenger", role="meta-learning", values=other, reason="longer")
    assert changed.source == "agent"
    rest = {p.name: suggestion.values[p.name] for p in lab.trials.space("challenger").of_role("meta-learning")}
    assert changed.values == rest | other  # what a proposal leaves open is the suggestion's
    lab.launch()
    (run,) = [r for r in lab.ledger.runs(lab.number, purpose="search", arm="challenger") if r.trial == 1]
    assert run.spec["learner"]["gamma"] == other["learner.gamma"]
    assert run.proposer == "agent:meta-learning"


def test_what_is_checked_is_completed_as_a_proposal_of_it_is(tmp_path: Path) -> None:
    lab = _in_round_one(_lab(tmp_path, _by_arm(-10.0, -10.0)))
    values = {"learner.gamma": 0.95}
    lab.propose(arm="challenger", role="environment", values={"learner.num_worlds": 64}, reason="more")
    checked = lab.check_feasibility("challenger", values)
    lab.propose(arm="challenger", role="meta-learning", values=values, reason="shorter")
    lab.launch()
    trained = lab.trials.finished("challenger")[1]
    assert checked.parameters == trained.run.parameters
    assert (trained.values["learner.gamma"], trained.values["learner.num_worlds"]) == (0.95, 64)
    assert lab.check_feasibility("challenger", {}).same_as is None  # the next suggestion, and no default
    again = lab.check_feasibility("challenger", trained.values)
    assert again.same_as == f"r-{trained.run.id:04d}"


@pytest.mark.parametrize(
    ("kind", "inert"), [("lru", "model.dt_min"), ("s5", "model.r_max"), ("s4d", "model.state_dim")]
)
def test_a_field_that_the_proposed_kind_does_not_have_is_refused(tmp_path: Path, kind: str, inert: str) -> None:
    lab = _in_round_one(_lab(tmp_path, _by_arm(-10.0, -10.0)))
    parameter = next(p for p in lab.trials.space("challenger").parameters if p.name == inert)
    values = {"model.kind": kind, inert: parameter.default}
    with pytest.raises(InputError, match=f"{kind} has no such field; of {kind}: model.kind, model.num_layers"):
        lab.propose(arm="challenger", role="state-modeling", values=values, reason="x")
    assert not lab.check_feasibility("challenger", values).feasible
    kept = lab.propose(arm="challenger", role="state-modeling", values={"model.kind": kind}, reason="x")
    assert inert not in kept.values


def test_a_proposal_from_before_slices_were_completed_keeps_its_configuration(tmp_path: Path) -> None:
    lab = _in_round_one(_lab(tmp_path, _by_arm(-10.0, -10.0)))
    old = {"learner.gamma": 0.95}
    lab.trials.write_proposal("challenger", 1, "meta-learning", old, "agent", reason="partial")
    lab.launch()
    default = lab.trials.space("challenger").default_values()
    trained = lab.trials.finished("challenger")[1].values
    own = [p.name for p in lab.trials.space("challenger").of_role("meta-learning")]
    assert {name: trained[name] for name in own} == {name: default[name] for name in own} | old


def test_the_distance_in_noise_floors_is_to_the_default_on_the_same_seed(tmp_path: Path) -> None:
    lab = _in_round_one(_lab(tmp_path, _by_arm(-5.0, -15.0, spread=2.0)))
    rows = {row[1]: dict(zip(lab.ledger_query("runs").columns, row, strict=True)) for row in lab.ledger_query("runs").rows}  # fmt: skip
    assert rows["baseline"]["noise floors"] == 0.0
    floor = lab.trials.noise_floor()
    distance = (rows["challenger"]["score"] - rows["baseline"]["score"]) / floor
    assert rows["challenger"]["noise floors"] == pytest.approx(distance, abs=0.1)
    assert lab.trials.baseline_mean() != pytest.approx(rows["baseline"]["score"], abs=0.01)


def test_runs_and_failures_are_listed_with_the_newest_first(tmp_path: Path) -> None:
    lab = _lab(tmp_path, lambda job: float("nan") if job.spec.policy.model.kind != "lstm" else -10.0)
    search(lab)
    for view, count in (("runs", 6), ("failures", 3)):
        every = [row[0] for row in lab.ledger_query(view).rows]
        assert every == sorted(every, reverse=True)
        assert len(every) == count
        assert [row[0] for row in lab.ledger_query(view, limit=2).rows] == every[:2]


def test_agents_shape_at_most_their_share_of_the_rounds_and_both_arms_of_a_round_count_as_one(tmp_path: Path) -> None:
    design = DESIGN.model_copy(update={"rounds": 7})
    lab = _lab(tmp_path, _by_arm(-10.0, -10.0), design=design)
    lab.agent_share = Lab.agent_share
    lab.run_baseline()
    lab.set_stage("search")
    while lab.round < 7:
        if lab.round == 5:
            lab.open_round("human")
        for arm in lab.arms if lab.round else ():
            suggested = lab.suggest(arm).values["learner.entropy_coef"]
            other = {"learner.entropy_coef": 0.003 if suggested != 0.003 else 0.0}
            if lab.round in (3, 4, 6):
                with pytest.raises(InputError, match="may shape 2; allowed: exactly the values of suggest"):
                    lab.propose(arm=arm, role="meta-learning", values=other, reason="")
            else:
                lab.propose(arm=arm, role="meta-learning", values=other, reason="")
        lab.launch()
    assert lab.trials.shaped_by_agents() == {1, 2, 5}  # 30 % of 7 rounds are 2; a person opened another one


def test_a_search_without_gains_is_told_to_change_a_family_also_after_a_resume(tmp_path: Path) -> None:
    design = DESIGN.model_copy(update={"rounds": PLATEAU_TRIALS + 2})
    worse = itertools.count(10)
    lab = _lab(
        tmp_path, lambda job: -10.0 if job.spec.policy.model.kind == "lstm" else -5.0 * next(worse), design=design
    )
    lab.run_baseline()
    lab.set_stage("search")
    sources = []
    while lab.round < lab.plan.rounds:
        found = lab.suggest("challenger")
        assert found.reason
        sources.append(found.source)
        again = Lab(lab.ledger, lab.number, lab.executor, lab.paths)
        assert again.suggest("challenger") == found
        lab.launch()
    assert sources == ["default", *["optimizer"] * PLATEAU_TRIALS, "plateau"]
    number = PLATEAU_TRIALS + 1
    assert {p.source for p in lab.trials.slices("challenger", number)} == {"plateau"}
    assert lab.trials.proposer("challenger", number, "search") == "optimizer"


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
        for call in (
            lambda r: lab.analyse_curves(run_id=r),
            lab.episode_returns,
            lambda r: lab.compare_variants(r, "r-0001"),
        ):
            with pytest.raises(InputError, match="a search run of this campaign"):
                call(run)
    seen = {row[0] for view in ("incumbent", "top", "runs", "baseline") for row in lab.ledger_query(view).rows}
    allowed = {f"r-{r.id:04d}" for r in lab.ledger.runs(lab.number, purpose=("baseline", "search"))}
    assert seen <= allowed


def test_the_search_is_closed_once_its_rounds_are_over(tmp_path: Path) -> None:
    lab = _lab(tmp_path, _by_arm(-5.0, -15.0))
    search(lab)
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


# ---- the feasibility gate -----------------------------------------------------------------


def _in_round_one(lab: Lab) -> Lab:
    lab.run_baseline()
    lab.set_stage("search")
    lab.launch()
    return lab


def _refusals(lab: Lab) -> list[dict]:
    return [event.payload for event in lab.events(["refused"])]


def test_a_proposal_whose_first_iteration_fails_is_refused_with_the_reason_and_what_to_change(tmp_path: Path) -> None:
    lab = _in_round_one(_lab(tmp_path, _by_arm(-10.0, -10.0)))
    lab.executor.probe_problem = lambda job: (  # type: ignore[attr-defined]
        "out of memory: the run used 900 MiB, allowed are 800 MiB a run" if job.spec.learner.gamma == 0.99 else None
    )
    suggested = lab.suggest("challenger").values["learner.gamma"]
    refused = int(re.findall(r"(\d+) proposal|$", lab.budget().wasted_trials)[0] or 0)  # of the optimizer's own, if any
    trained = len(lab.ledger.runs(lab.number))
    with pytest.raises(InputError, match=r"used 900 MiB, allowed are 800 MiB.*choose fewer learner.num_worlds"):
        lab.propose(arm="challenger", role="meta-learning", values={"learner.gamma": 0.99}, reason="longer")
    assert len(lab.ledger.runs(lab.number)) == trained  # nothing was spent, nothing kept as evidence
    lab.launch()
    (run,) = [r for r in lab.ledger.runs(lab.number, arm="challenger", purpose="search") if r.trial == 1]
    assert run.spec["learner"]["gamma"] == suggested
    assert f"{refused + 1} proposal" in lab.budget().wasted_trials


def test_a_probe_is_made_once_for_a_configuration_and_leaves_no_evidence(tmp_path: Path) -> None:
    lab = _in_round_one(_lab(tmp_path, _by_arm(-10.0, -10.0)))
    for _ in range(3):
        lab.suggest("challenger")
        lab.suggest("baseline")
    probes = [job for job in lab.executor.jobs if job.probe]  # type: ignore[attr-defined]
    assert len(probes) == len({job.spec.config_hash for job in probes}) == 2  # one an arm
    again = Lab(lab.ledger, lab.number, lab.executor, lab.paths)
    again.suggest("challenger")
    assert len([job for job in lab.executor.jobs if job.probe]) == 2  # type: ignore[attr-defined]
    assert not {job.spec.config_hash for job in probes} & {r.config_hash for r in lab.ledger.runs(lab.number)}


def test_what_differs_by_less_than_the_gates_threshold_is_the_same_trial(tmp_path: Path) -> None:
    lab = _in_round_one(_lab(tmp_path, _by_arm(-10.0, -10.0)))
    space = lab.trials.space("challenger")
    default = space.default_values()
    rate = next(p for p in space.parameters if p.name == "learner.learning_rate")
    place = rate.to_unit(default["learner.learning_rate"])
    for shift, near in ((0.015, True), (0.03, False)):
        values = default | {"learner.learning_rate": rate.from_unit(place + shift)}
        assert is_near(space.parameters, default, values) is near
        own = {
            name: value for name, value in values.items() if name in {p.name for p in space.of_role("meta-learning")}
        }
        rest = {role: {p.name: default[p.name] for p in space.of_role(role) if p.name in default} for role in ("state-modeling", "adaptation", "environment")}  # fmt: skip
        for role, slice_ in rest.items():
            lab.propose(arm="challenger", role=role, values=slice_, reason="the default")
        propose = {"arm": "challenger", "role": "meta-learning", "values": own, "reason": "a little more"}
        if near:
            with pytest.raises(InputError, match=r"it is the same trial as r-000.*change at least one value by more"):
                lab.propose(**propose)
        else:
            assert lab.propose(**propose).values == own


def test_a_run_that_would_outlast_the_time_left_is_refused() -> None:
    spec = preset("point-robot", "lstm", "rl2").model_copy(update={"env_steps": 100_000})
    count = count_parameters(spec)
    wide = {"memory_limit_mb": 4000, "expected_s": 90.0}
    assert static_problems(spec, count, left_s=100.0, **wide) == []
    (problem,) = static_problems(spec, count, left_s=60.0, **wide)
    assert "about 90 s" in problem
    assert "60 s are left" in problem
    (problem,) = static_problems(spec, 2 * count, left_s=None, **wide)
    assert "10 %" in problem
    (problem,) = static_problems(spec.model_copy(update={"env_steps": 100}), count, left_s=None, **wide)
    assert "one iteration takes 640 env steps" in problem


def test_of_many_proposals_good_bad_and_repeated_fewer_than_one_in_fifty_launched_trials_is_wasted(
    tmp_path: Path,
) -> None:
    """Agents that propose at random, what was tried already, and what breaks at its first iteration; so does the optimizer."""
    rounds = 9
    design = DESIGN.model_copy(update={"rounds": rounds})
    lab = _lab(tmp_path, _by_arm(-10.0, -10.0), design=design)

    def breaks(job: Job) -> bool:
        return job.spec.learner.learning_rate > 1.2e-3 or job.spec.learner.gamma == 0.99

    score = lab.executor.score  # type: ignore[attr-defined]
    lab.executor.score = lambda job: float("nan") if breaks(job) else score(job)  # type: ignore[attr-defined]
    lab.executor.probe_problem = lambda job: "loss is nan" if breaks(job) else None  # type: ignore[attr-defined]
    lab = _in_round_one(lab)
    rng, refused = np.random.default_rng(0), 0
    while lab.round < rounds:
        for arm in lab.arms:
            earlier = lab.trials.finished(arm)[int(rng.integers(lab.round))].values
            for role in ("meta-learning", "environment", "adaptation", "state-modeling"):
                own = lab.trials.space(arm).of_role(role)
                kind = rng.integers(3)
                random = {p.name: p.from_unit(float(rng.random())) for p in own if p.only_for is None}
                values = {p.name: earlier[p.name] for p in own if p.name in earlier} if kind == 0 else random
                try:
                    lab.propose(arm=arm, role=role, values=values, reason="scripted")
                except InputError as error:
                    refused += "refused before it is run" in str(error)
        lab.launch()
    waste = count_waste(lab.ledger, lab.number)
    assert waste.launched == 2 * rounds
    assert waste.refused >= refused >= 5
    assert waste.wasted / waste.launched < 0.02, waste


def test_a_real_worker_shows_what_breaks_before_the_spend(tmp_path: Path) -> None:
    paths = Paths.of(tmp_path)
    paths.ensure()
    good = preset("point-robot", "lstm", "rl2").model_copy(update={"env_steps": 6_400})
    short = good.model_copy(update={"env_steps": 100})
    found = probe(
        [good, short], LocalExecutor(2, paths.environment()), paths, threading.Event(), memory_limit_mb=20_000
    )
    assert [p.problem is None for p in found] == [True, False]
    assert "env_steps" in (found[1].problem or "")
    assert found[0].memory_mb is None or found[0].memory_mb > 50
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("probe-")] == []


# ---- pruning --------------------------------------------------------------------------------

RULE = Pruning(rungs=(1_280, 2_560), env_steps=6_400)


def _pruned_lab(folder: Path, score: Score, rounds: int = 6) -> Lab:
    """A lab whose plan prunes; scores follow from the configuration alone."""
    plan = {"pruning": RULE.model_dump(mode="json")}
    return _lab(folder, score, design=DESIGN.model_copy(update={"rounds": rounds}), **plan)


def _by_rate(job: Job) -> float:
    """A score that falls with the distance of the learning rate from 1e-3."""
    own = abs(math.log(job.spec.learner.learning_rate / 1e-3))
    return -10.0 - 5 * own + (0.01 if job.spec.policy.model.kind == "lstm" else 0.0)


def test_the_rule_lets_the_best_third_go_on_and_nobody_be_pruned_among_few() -> None:
    assert RULE.why_prune(1, -50.0, [-10.0]) is None
    assert RULE.why_prune(1, -9.0, [-10.0, -20.0]) is None
    assert RULE.why_prune(1, -10.0, [-10.0, -20.0]) is None  # a tie goes on
    cause = RULE.why_prune(1, -11.0, [-10.0, -20.0])
    assert cause is not None
    for words in ("rung 1 of 2", "1,280 of 6,400", "score -11", "cut -10"):
        assert words in cause
    nine = [-float(i) for i in range(1, 9)]
    assert RULE.why_prune(1, -3.0, nine) is None  # third of nine
    assert RULE.why_prune(1, -3.5, nine) is not None


@given(scores=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_the_best_so_far_is_never_pruned(scores: list[float]) -> None:
    for place in range(len(scores)):
        if scores[place] >= max(scores[: place + 1]):
            assert RULE.why_prune(2, scores[place], scores[:place]) is None


def test_rungs_are_whole_iterations_and_only_where_they_pay() -> None:
    assert make_pruning(100 * 640, iteration_steps=640, trials=8) == Pruning(rungs=(7_680, 21_760), env_steps=64_000)
    assert make_pruning(40 * 640, iteration_steps=640, trials=8) == Pruning(rungs=(8_960,), env_steps=25_600)
    assert make_pruning(20 * 640, iteration_steps=640, trials=8) is None  # too short
    assert make_pruning(100 * 640, iteration_steps=640, trials=3) is None  # too few


def test_a_weak_trial_is_pruned_with_its_rung_score_and_cut_and_costs_what_it_spent(tmp_path: Path) -> None:
    lab = _pruned_lab(tmp_path, _by_rate)
    search(lab)
    pruned = [r for r in lab.ledger.runs(lab.number) if r.status == "pruned"]
    assert pruned
    for run in pruned:
        assert run.purpose == "search"
        assert run.score is None
        assert run.env_steps in RULE.rungs
        rungs = lab.trials.rungs(run.id)
        assert rungs[-1][0] == run.env_steps
        assert f"score {rungs[-1][1]:.4g} is below the cut" in (run.cause or "")
    lab.run_selection()
    content = lab.write_claim().content
    for arm in lab.arms:
        runs = [t.run for t in lab.trials.finished(arm)] + lab.ledger.runs(lab.number, purpose="selection", arm=arm)
        assert getattr(content, arm).tuning_env_steps == sum(r.env_steps for r in runs)
    (check,) = [p for p in judging.check_parity(content) if "tuning" in p.name]
    assert check.holds
    assert "one search run of 6,400" in check.name


def test_selection_confirmation_and_baseline_runs_are_never_pruned(tmp_path: Path) -> None:
    lab = _pruned_lab(tmp_path, lambda job: _by_rate(job) - (500 if job.pool != "search" else 0))
    _to_the_end(lab)
    asked = [job for job in lab.executor.jobs if job.rungs]  # type: ignore[attr-defined]
    assert {job.pool for job in asked} == {"search"}
    purposes = {r.purpose for r in lab.ledger.runs(lab.number) if r.status == "pruned"}
    assert purposes == {"search"}
    assert all(r.trial for r in lab.ledger.runs(lab.number) if r.status == "pruned")  # nor trial 0, the default
    job = asked[0]
    for pool in ("selection", "confirmation"):
        with pytest.raises(ValueError, match="only runs on the search pool have rungs"):
            dataclasses.replace(job, pool=pool)


def test_neither_side_spends_more_than_one_search_run_beyond_the_other_and_both_try_equally_often(
    tmp_path: Path,
) -> None:
    """The challenger gets better with every trial and is never pruned by its own rule, the baseline gets worse."""
    seen: dict[str, int] = {}

    def score(job: Job) -> float:
        better = job.spec.policy.model.kind != "lstm"
        place = seen.setdefault(job.spec.config_hash, len(seen))
        return -100.0 + place if better else -100.0 - place

    lab = _pruned_lab(tmp_path, score, rounds=8)
    search(lab)
    saved = {arm: lab.trials.saved(arm) for arm in lab.arms}
    assert saved["challenger"] == 0
    assert 0 < saved["baseline"] < RULE.env_steps
    assert len(lab.trials.finished("challenger")) == len(lab.trials.finished("baseline")) == 8


def test_what_pruning_saves_buys_rounds_for_both_sides(tmp_path: Path) -> None:
    seen: dict[str, int] = {}

    def score(job: Job) -> float:  # every trial is worse than the one before
        return -100.0 - seen.setdefault(job.spec.config_hash, len(seen))

    lab = _pruned_lab(tmp_path, score, rounds=8)
    search(lab)
    bought = lab.plan.rounds - 8
    assert bought > 0
    assert {len(lab.trials.finished(arm)) for arm in lab.arms} == {8 + bought}
    spent = sum(r.env_steps for r in lab.ledger.runs(lab.number, purpose="search"))
    assert spent <= 2 * 8 * RULE.env_steps  # no more than the design had planned
    assert Lab(lab.ledger, lab.number, lab.executor, lab.paths).plan == lab.plan  # and kept in the ledger


def test_a_decision_at_a_rung_does_not_depend_on_the_other_run_of_the_round(tmp_path: Path) -> None:
    tables = []
    for name, backwards in (("forwards", False), ("backwards", True)):
        lab = _pruned_lab(tmp_path / name, _by_rate)
        run = lab.executor.run
        lab.executor.run = lambda jobs, on, stop, run=run, b=backwards: run(jobs[::-1] if b else jobs, on, stop)  # type: ignore[method-assign]
        search(lab)
        tables.append([(r.id, r.config_hash, r.status, r.cause, r.env_steps, r.score) for r in lab.ledger.runs(lab.number)])  # fmt: skip
    assert tables[0] == tables[1]
    assert any(row[2] == "pruned" for row in tables[0])


def test_a_real_run_waits_at_its_rungs_and_training_does_not_notice(tmp_path: Path) -> None:
    spec = preset("point-robot", "lstm", "rl2").model_copy(update={"env_steps": 6 * 640, "seed": 3})

    def run(name: str, rungs: tuple[int, ...], answer: str | None) -> list:
        job = Job(
            1, spec, "search", tmp_path / name / "c", tmp_path / name / "m", tmp_path / name / "log", 900, rungs=rungs
        )
        found: list = []

        def listen(_: Job, message) -> str | None:
            found.append(message)
            return answer if isinstance(message, Rung) and message.number == 2 else None

        LocalExecutor(1).run([job], listen, threading.Event())
        return found

    whole, pruned = run("whole", (), None), run("pruned", (640, 1_920), "too weak")
    first, second = (
        [{k: v for k, v in m.metrics.items() if not k.startswith("time/")} for m in messages if isinstance(m, Report)]
        for messages in (whole, pruned)
    )
    assert len(first) == 6
    assert second == first[:3]  # it went on after the first rung, and looking at it changed nothing
    assert [m.env_steps for m in pruned if isinstance(m, Rung)] == [640, 1_920]
    assert (pruned[-1].status, pruned[-1].cause, pruned[-1].env_steps) == ("pruned", "too weak", 1_920)
    assert (tmp_path / "pruned" / "m.safetensors").is_file()


def test_what_was_launched_is_not_changed_by_a_later_proposal(tmp_path: Path) -> None:
    """An interruption leaves a launched round unfinished; agents are asked again after it and may have changed their mind."""
    lab = _in_round_one(_lab(tmp_path, _by_arm(-10.0, -10.0)))
    execute, lab._execute = lab._execute, lambda run_ids: None  # type: ignore[method-assign] # interrupted before training
    lab.launch()
    lab._execute = execute  # type: ignore[method-assign]
    again = Lab(lab.ledger, lab.number, lab.executor, lab.paths)
    suggested = again.suggest("challenger").values
    other = {"learner.num_worlds": 16 if suggested["learner.num_worlds"] == 32 else 32}
    with pytest.raises(InputError, match="round 2 is launched: its configuration stands"):
        again.propose(arm="challenger", role="environment", values=other, reason="fewer")
    queued = {r.config_hash for r in lab.ledger.runs(lab.number) if r.trial == 1}
    again.launch()
    assert {r.config_hash for r in lab.ledger.runs(lab.number) if r.trial == 1} == queued


def test_a_rerun_of_a_pruned_run_is_held_against_what_was_trained_up_to_the_rung(tmp_path: Path) -> None:
    lab = _pruned_lab(tmp_path, _by_rate)
    search(lab)
    pruned = next(r for r in lab.ledger.runs(lab.number) if r.status == "pruned")
    spec = RunSpec.model_validate(pruned.spec)
    rerun = queue_run(lab.ledger, spec, purpose="rerun", pool="search", proposer="rerun", rerun_of=pruned.id)
    assert not compare_reruns(lab.ledger, pruned.id, rerun).matches
    for row in lab.ledger.metrics(pruned.id, "rollout/ep_rew_mean"):
        lab.ledger.add_metrics(rerun, row.env_steps, [(row.name, row.value or 0.0)])
    lab.ledger.add_metrics(rerun, spec.env_steps, [("rollout/ep_rew_mean", -1.0)])  # beyond the rung
    assert compare_reruns(lab.ledger, pruned.id, rerun).matches
