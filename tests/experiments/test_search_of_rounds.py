"""A search that is a search: rounds of several trials, a race over fresh seeds, what is remembered, a budget that holds, an extension.

On the executor that answers at once, and on one that trains on paper by a clock of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from lab_on_script import lab_on_script, search, search_and_confirm

from core.errors import InputError
from core.seeding import numpy_stream
from env_runner.task_distributions import get_family
from experiments.bench.landscape import Landscape
from experiments.campaign import design as designs
from experiments.campaign.begin import create_campaign
from experiments.campaign.design import asks_for_both, equal_time, seed_correlation
from experiments.campaign.economy import JUDGING_S
from experiments.campaign.extend import extend_campaign
from experiments.campaign.lab import Lab
from experiments.campaign.memory import remembered, telling_shares
from experiments.campaign.plan import Budget, Design, Plan, make_plan
from experiments.campaign.question import parse_goal
from experiments.judging.claim import ClaimContent
from experiments.ledger import Ledger
from experiments.presets import preset
from experiments.reading.figures import campaign_sides
from experiments.runs.executor import Ended, Evaluated, Job, Listener, Report, Started
from experiments.runs.paths import Paths
from experiments.search.optimizer import FIRST_RADIUS, NEAR_TRIALS, SUGGESTING, Tried, near, shift, suggest
from experiments.search.pruning import make_pruning
from experiments.search.space import MARKS, SearchSpace, is_near

RACE = Design(name="race", baseline_seeds=2, rounds=2, top=3, selection_seeds=2, confirmation_seeds=6, race=(3, 2))
NEW: dict[str, Any] = {"design": RACE, "trials_at_once": 2, "pilot": True, "suggesting": SUGGESTING, "judging": 2}


def _score(job: Job) -> float:
    """The LSTM at -15, others at -5, each seed with luck of its own; a higher learning rate is a little better."""
    luck = float(numpy_stream(job.spec.seed, "luck", job.spec.policy.model.kind).normal())
    rate = job.spec.learner.model_dump()["learning_rate"]
    return (-15.0 if job.spec.policy.model.kind == "lstm" else -5.0) + 0.3 * luck + 200 * rate


def _lab(folder: Path, score: Any = _score, **changes: Any) -> Lab:
    return lab_on_script(folder / "data", score, new=True, **(NEW | changes))


# ---- rounds of several trials ---------------------------------------------------------------------------------------
def test_a_round_trains_its_trials_of_both_sides_together_and_no_trial_is_the_same_as_another(tmp_path: Path) -> None:
    lab = _lab(tmp_path)
    lab.run_baseline()
    assert {(r.arm, r.trial) for r in lab.ledger.runs(lab.number, purpose="baseline")} == {
        ("baseline", 0), ("baseline", None), ("challenger", 0), ("challenger", None),
    }  # fmt: skip
    lab.set_stage("search")
    lab.launch()
    assert lab.round == 1
    lab.launch()
    for arm in lab.arms:
        finished = lab.trials.finished(arm)
        assert [trial.number for trial in finished] == [0, 1, 2, 3]
        assert finished[0].values == lab.trials.space(arm).default_values()
        parameters = lab.trials.space(arm).parameters
        assert not any(is_near(parameters, a.values, b.values) for a, b in itertools.combinations(finished, 2))


def test_a_suggestion_does_not_depend_on_which_run_of_its_round_is_finished(tmp_path: Path) -> None:
    lab = _lab(tmp_path)
    lab.run_baseline()
    lab.set_stage("search")
    lab.launch()
    wanted = [lab.trials.suggest("challenger", trial).values for trial in (2, 3)]
    lab.launch()  # both are finished now, and what they scored is known
    again = Lab(lab.ledger, lab.number, lab.executor, lab.paths)
    assert [again.trials.suggest("challenger", trial).values for trial in (2, 3)] == wanted


def test_agents_shape_the_last_trial_of_a_round_and_the_others_stay_the_optimizers(tmp_path: Path) -> None:
    lab = _lab(tmp_path)
    lab.agent_share = 1.0
    lab.run_baseline()
    lab.set_stage("search")
    lab.propose(arm="challenger", role="meta-learning", values={"learner.gamma": 0.95}, reason="shorter")
    lab.launch()
    proposers = [lab.trials.proposer("challenger", trial, "search") for trial in (0, 1)]
    assert proposers == ["default", "agent:meta-learning"]
    assert lab.trials.shaped_by_agents() == {0}
    assert lab.suggest("challenger").trial == 3


def test_the_first_suggestions_stay_near_the_best_and_the_region_grows() -> None:
    goal = parse_goal("beat LSTM on point-robot")
    space = SearchSpace(goal.challenger, goal.task, learner="rl2")
    best = space.default_values()
    history = [Tried(best, -1.0)]
    radii = []
    for _ in range(NEAR_TRIALS - 1):
        values, radius = near(space, history, seed=3, arm="challenger")
        for parameter in space.parameters:
            if parameter.kind == "float" and parameter.name in values and parameter.name in best:
                moved = parameter.to_unit(values[parameter.name]) - parameter.to_unit(best[parameter.name])
                assert abs(moved) <= radius + 1e-3
        radii.append(radius)
        history.append(Tried(values, -2.0))
    assert radii[0] == FIRST_RADIUS
    assert radii == sorted(radii)
    assert len({str(trial.values) for trial in history}) == len(history)
    later = suggest(space, history, seed=3, arm="challenger", noise_floor=100.0, rule=SUGGESTING)
    assert later.source == "plateau" or "TPE" in later.reason


def test_a_shifted_value_stays_in_its_range_and_a_short_step_leaves_a_choice_alone() -> None:
    goal = parse_goal("beat LSTM on point-robot")
    for parameter in SearchSpace(goal.challenger, goal.task, learner="rl2").parameters:
        for by in (-2.0, -0.3, 0.0, 0.3, 2.0):
            assert parameter.check(shift(parameter, parameter.default, by)) is not None
        if parameter.kind != "float":
            assert shift(parameter, parameter.default, 0.01) == parameter.default
        if parameter.choices and not parameter.ordered:  # however many there are, and every other one is reached
            assert shift(parameter, parameter.default, 0.24) == parameter.default
            reached = {shift(parameter, parameter.default, by / 1000) for by in range(250, 750)}
            assert reached == set(parameter.choices) - {parameter.default}
            assert shift(parameter, parameter.default, -0.24) == parameter.default
    number = next(p for p in SearchSpace(goal.challenger, goal.task, learner="rl2").parameters if p.kind == "float")
    assert number.to_unit(shift(number, number.default, 0.05)) == pytest.approx(
        number.to_unit(number.default) + 0.05, abs=1e-3
    )


def test_near_the_default_beats_draws_from_the_whole_space_on_hills_whose_top_is_near() -> None:
    from experiments.bench.searches import RULES, run_searches

    goal = parse_goal("beat LSTM on halfcheetah-vel")
    space = SearchSpace(goal.challenger, goal.task, learner="rl2")
    found = run_searches(
        {name: RULES[name] for name in ("random", "optimizer")}, lambda n: Landscape(space, n), searches=30, trials=4
    )
    means = {name: sum(s.worth for s in outcomes) / len(outcomes) for name, outcomes in found.items()}
    assert means["optimizer"] > means["random"] + 1


# ---- the race -------------------------------------------------------------------------------------------------------
def test_the_race_gives_every_candidate_a_fresh_seed_and_its_leaders_another_one(tmp_path: Path) -> None:
    lab = _lab(tmp_path)
    search(lab)
    lab.run_selection()
    first, second = lab.trials.seeds("selection")
    for arm in lab.arms:
        runs = lab.ledger.runs(lab.number, purpose="selection", arm=arm)
        assert [sum(r.seed == seed for r in runs) for seed in (first, second)] == [3, 2]
        winner = lab.trials.winner(arm)
        assert winner in lab.trials.racers(arm, 1)


def test_no_seed_chooses_alone(tmp_path: Path) -> None:
    """A configuration that is far ahead on one seed and far behind on the others is not chosen."""

    def score(job: Job) -> float:
        if job.spec.policy.model.kind == "lstm":
            return -15.0
        lucky = job.spec.learner.model_dump()["learning_rate"] == rates[0]
        if job.pool == "search":
            return 0.0 if lucky else -5.0
        return -30.0 if lucky else -5.0 + 0.01 * (job.spec.seed % 7)

    rates: list[float] = [-1.0]
    lab = _lab(tmp_path, score)
    rates[0] = lab.trials.space("challenger").default_values()["learner.learning_rate"]  # type: ignore[assignment]
    search(lab)
    lab.run_selection()
    assert lab.trials.candidates("challenger")[0][1]["learner.learning_rate"] == rates[0]
    assert lab.trials.winner("challenger")[1]["learner.learning_rate"] != rates[0]


# ---- what is remembered ---------------------------------------------------------------------------------------------
def test_what_an_earlier_campaign_chose_is_trial_1_of_both_sides_or_of_none(tmp_path: Path) -> None:
    lab = _lab(tmp_path)
    search_and_confirm(lab)
    spaces = {arm: lab.trials.space(arm) for arm in lab.arms}
    chosen = {arm: lab.trials.winner(arm)[1] for arm in lab.arms}
    found = remembered(lab.ledger, lab.question, spaces)
    assert found == {arm: values for arm, values in chosen.items() if values != spaces[arm].default_values()}
    assert found
    gru = parse_goal("beat GRU on point-robot")
    other = {"challenger": spaces["challenger"], "baseline": SearchSpace(gru.baseline, gru.task, learner="rl2")}
    assert remembered(lab.ledger, gru, other) == {}  # nothing is known of the GRU, so the other side is told nothing
    again = _lab(tmp_path, memory=found)
    again.run_baseline()
    again.set_stage("search")
    again.launch()
    for arm, values in found.items():
        trial = again.trials.finished(arm)[1]
        assert trial.values == values
        assert again.trials.proposer(arm, 1, "search") == "memory"


def test_where_nothing_is_remembered_the_next_tuned_preset_is_a_trial_of_the_first_round_of_all_sides_or_of_none() -> (
    None
):
    arms = ("challenger", "baseline")
    question = parse_goal("beat recurrent with ssm on halfcheetah-vel")
    spaces = {arm: SearchSpace(side, question.task, learner="rl2", marks=MARKS) for arm, side in zip(arms, question.sides, strict=True)}  # fmt: skip
    found = remembered(None, question, spaces)
    for arm, kind in zip(arms, ("minlstm", "gru"), strict=True):
        known = preset("halfcheetah-vel", kind, "rl2")
        assert spaces[arm].spec(found[arm], env_steps=known.env_steps, seed=known.seed, parameters=None) == known
    lstm = SearchSpace(parse_goal("beat LSTM on halfcheetah-vel").baseline, question.task, learner="rl2", marks=MARKS)
    assert remembered(None, question, {"challenger": spaces["challenger"], "baseline": lstm}) == {}  # one kind has one
    toys = parse_goal("beat LSTM on point-robot")
    assert remembered(None, toys, {"challenger": SearchSpace(toys.challenger, toys.task, learner="rl2")}) == {}


def test_the_rungs_of_pruning_are_where_recorded_curves_tell_the_end(tmp_path: Path) -> None:
    lab = _lab(tmp_path)
    assert telling_shares(lab.ledger, "point-robot") is None  # nothing is recorded
    assert make_pruning(64_000, iteration_steps=640, trials=8, shares=(1 / 2,)).rungs == (32_000,)  # type: ignore[union-attr]
    assert make_pruning(64_000, iteration_steps=640, trials=8, shares=()) is None
    wide = lab_on_script(
        tmp_path / "wide", _score, new=True, **(NEW | {"design": RACE.model_copy(update={"rounds": 4})})
    )
    search(wide)
    shares = telling_shares(wide.ledger, "point-robot")
    assert shares  # a script's curve is a straight line to its score


# ---- time -----------------------------------------------------------------------------------------------------------
class PaperMachine:
    """Trains on paper: a run takes its seconds on the clock of the lab's economy, `workers` at once."""

    def __init__(self, rates: dict[str, float], startup_s: float, workers: int = 2) -> None:
        self.rates, self.startup_s, self.workers = rates, startup_s, workers
        self.busy_s = self.clock_s = 0.0

    def run(self, jobs: Sequence[Job], on_message: Listener, stop: Any) -> None:
        ends = [0.0] * self.workers
        for job in jobs:
            kind = job.spec.policy.model.kind
            train_s = 0.0 if job.probe else job.spec.env_steps / self.rates.get(kind, self.rates["ssm"])
            ends[ends.index(min(ends))] += train_s + self.startup_s
            on_message(job, Started(pid=1))
            if job.probe:
                on_message(job, Ended("done", None, memory_mb=300))
                continue
            self.busy_s += train_s + self.startup_s
            on_message(job, Report(job.spec.env_steps, {"rollout/ep_rew_mean": -9.0, "time/fps": 1e3}, train_s))
            tasks = len(get_family(job.spec.task).eval_tasks(job.pool))
            on_message(job, Evaluated(job.pool, {"return": [[_score(job)]] * tasks}))
            wall_s = train_s + self.startup_s
            on_message(job, Ended("done", None, job.spec.env_steps, train_s, wall_s=wall_s))
        self.clock_s += max(ends)


def _timed_lab(folder: Path, machine: PaperMachine, wall_s: float, planned_rate: float) -> Lab:
    paths = Paths.of(folder / "data")
    paths.ensure()
    ledger = Ledger(paths.ledger_url)
    question = parse_goal("beat LSTM on point-robot")
    plan = make_plan(
        Budget(wall_s=wall_s),
        iteration_steps=2_560,
        horizon=20,
        tuned_arms=2,
        workers=machine.workers,
        steps_per_s=planned_rate,
        startup_s=machine.startup_s,
        timed=True,
    )
    lab = Lab(ledger, create_campaign(ledger, question, plan, seed=1, llm="offline"), machine, paths)
    real = lab.economy.spent_s
    lab.economy._since += real
    type(lab.economy)  # the clock is the machine's
    lab.economy.__class__ = type(
        "OnPaper", (type(lab.economy),), {"spent_s": property(lambda economy: machine.clock_s)}
    )
    return lab


def _to_the_claim(lab: Lab) -> ClaimContent:
    lab.run_baseline()
    lab.set_stage("search")
    while lab.round < lab.plan.rounds and not lab.time_is_short():
        lab.launch()
    lab.set_stage("selection")
    lab.run_selection()
    return lab.write_claim().content


@pytest.mark.parametrize("slower", [1.0, 0.7, 0.5])
@pytest.mark.parametrize("wall_s", [240.0, 1800.0])
def test_a_campaign_ends_within_one_percent_of_its_budget_and_tries_three_configurations_a_side_on_a_slow_machine(
    tmp_path: Path, wall_s: float, slower: float
) -> None:
    machine = PaperMachine({"lstm": 4_000 * slower, "ssm": 6_000 * slower}, 3.0)
    lab = _timed_lab(tmp_path, machine, wall_s, planned_rate=4_800)
    claim = _to_the_claim(lab)
    lab.set_stage("confirmation")
    lab.run_confirmation()
    assert machine.clock_s + JUDGING_S <= 1.01 * wall_s
    unit = 2_560 / min(machine.rates.values())  # what one iteration more would have taken in every run
    slack = (1.01 - 0.97) * wall_s + unit * 3 * claim.seeds.__len__()
    longest = lab.plan.confirmation_steps >= 1.4 * lab.plan.env_steps_full
    assert machine.clock_s + JUDGING_S >= 1.01 * wall_s - slack or longest
    assert min(claim.challenger.search_trials, claim.baseline.search_trials) >= 3
    assert claim.challenger.search_trials == claim.baseline.search_trials
    runs = lab.ledger.runs(lab.number, purpose="confirmation")
    assert {r.spec["env_steps"] for r in runs if r.arm == "baseline"} == set(claim.lengths("baseline"))
    assert {r.spec["env_steps"] for r in runs if r.arm == "challenger"} == set(claim.lengths("challenger"))


def test_at_equal_time_both_sides_train_as_long_and_the_ratio_says_how_it_was_measured(tmp_path: Path) -> None:
    machine = PaperMachine({"lstm": 4_000, "ssm": 6_000}, 3.0)
    lab = _timed_lab(tmp_path, machine, 1800.0, planned_rate=4_800)
    claim = _to_the_claim(lab)
    assert claim.equal_time is not None
    assert claim.equal_time.ratio == pytest.approx(1.5, rel=1e-3)
    assert "env steps/s" in claim.equal_time.how
    seconds = (claim.equal_time.challenger / 6_000, claim.equal_time.baseline / 4_000)
    assert seconds[0] == pytest.approx(seconds[1], rel=0.05)
    assert "at equal training time" in claim.hypothesis


def test_without_a_clock_equal_time_takes_the_ratio_that_is_given_or_is_left_out(tmp_path: Path) -> None:
    lab = _lab(tmp_path)
    search(lab)
    lab.run_selection()
    assert lab.write_claim().content.equal_time is None
    given = _lab(tmp_path, timed=True, time_ratio=2.0)
    search(given)
    given.run_selection()
    timed = equal_time(given.trials, 12_800, 640)
    assert timed is not None
    assert (timed.challenger, timed.baseline, timed.how) == (25_600, 12_800, "given with --time-ratio")
    question = parse_goal("beat LSTM on point-robot")
    assert not asks_for_both(question, Budget(env_steps=10**6), None)
    assert asks_for_both(question, Budget(env_steps=10**6), 2.0)
    same = parse_goal("compare LSTM and LSTM with gamma=0.9 on point-robot")
    assert not asks_for_both(same, Budget(wall_s=60.0), None)


def test_figures_show_the_runs_at_equal_env_steps_where_both_parities_are_judged(tmp_path: Path) -> None:
    lab = _lab(tmp_path, timed=True, time_ratio=2.0)
    search_and_confirm(lab)
    verdict = lab.judge()
    claim = lab.write_claim().content  # the one that was written
    assert verdict.at_equal_time is not None
    assert len(set(claim.lengths("challenger"))) == 2
    sides = campaign_sides(lab.ledger, lab.number)
    assert {run.id for side in sides for run in side.runs} == set(verdict.run_ids)
    assert {run.spec["env_steps"] for side in sides for run in side.runs} == {claim.env_steps}
    assert len(lab.ledger.runs(lab.number, purpose="confirmation")) > len(verdict.run_ids)


@pytest.mark.parametrize("workers", [2, 8])
def test_nine_tenths_of_the_workers_time_is_training_while_a_round_is_searched(tmp_path: Path, workers: int) -> None:
    machine = PaperMachine({"lstm": 4_000, "ssm": 6_000}, 1.0, workers)
    lab = _timed_lab(tmp_path, machine, 7200.0, planned_rate=4_800)
    lab.run_baseline()
    lab.set_stage("search")
    lab.launch()
    machine.busy_s = machine.clock_s = 0.0
    lab.launch()
    assert machine.busy_s / (workers * machine.clock_s) >= 0.9


# ---- the test ---------------------------------------------------------------------------------------------------------
def test_pairs_that_go_together_are_tested_as_pairs_and_others_are_not(tmp_path: Path) -> None:
    def together(job: Job) -> float:
        shared = 5 * float(numpy_stream(job.spec.seed, "shared").normal())
        return (-15.0 if job.spec.policy.model.kind == "lstm" else -14.0) + shared

    pairs = {"design": RACE.model_copy(update={"baseline_seeds": 6})}
    lab = _lab(tmp_path / "together", together, **pairs)
    search_and_confirm(lab)
    assert seed_correlation(lab.trials)[0] > 0.95
    assert lab.write_claim().content.test == "paired"
    apart = _lab(tmp_path / "apart", **pairs)
    search_and_confirm(apart)
    claim = apart.write_claim().content
    assert claim.test == "welch"
    assert "go together by r =" in claim.test_why


def test_seeds_are_split_unequally_only_where_the_pilots_spreads_are_very_unlike(tmp_path: Path) -> None:
    def uneven(job: Job) -> float:
        luck = float(numpy_stream(job.spec.seed, "luck", job.spec.policy.model.kind).normal())
        return -15.0 + 0.1 * luck if job.spec.policy.model.kind == "lstm" else -5.0 + 3 * luck

    seeds = RACE.model_copy(update={"baseline_seeds": designs.PILOT_SEEDS})
    lab = _lab(tmp_path, uneven, design=seeds)
    search_and_confirm(lab)
    claim = lab.write_claim().content
    assert claim.split == (8, 4)  # of twelve in all, at least four a side
    runs = lab.ledger.runs(lab.number, purpose="confirmation")
    assert [sum(r.arm == arm for r in runs) for arm in ("challenger", "baseline")] == [8, 4]
    assert lab.judge().outcome == "confirmed"


# ---- going on -------------------------------------------------------------------------------------------------------
def _extended(lab: Lab) -> Lab:
    number = extend_campaign(lab.ledger, lab.number, wall_s=None, env_steps=10**6, workers=2, llm="offline")
    return Lab(lab.ledger, number, lab.executor, lab.paths)


def test_an_extension_confirms_the_same_configurations_on_fresh_seeds_and_multiplies_the_evidence(
    tmp_path: Path,
) -> None:
    def close(job: Job) -> float:
        luck = float(numpy_stream(job.spec.seed, "luck", job.spec.policy.model.kind).normal())
        return (-10.6 if job.spec.policy.model.kind == "lstm" else -10.0) + luck

    lab = _lab(tmp_path, close, design=RACE.model_copy(update={"confirmation_seeds": 5}))
    search_and_confirm(lab)
    first = lab.judge()
    assert first.outcome == "inconclusive"
    later = _extended(lab)
    claim = later.write_claim().content
    earlier = lab.write_claim().content
    assert (claim.challenger, claim.baseline, claim.env_steps) == (
        earlier.challenger,
        earlier.baseline,
        earlier.env_steps,
    )
    assert not set(claim.seeds) & set(earlier.seeds)
    later.run_confirmation()
    second = later.judge()
    assert second.e_product == pytest.approx((first.e_value or 0) * (second.e_value or 0))
    assert second.outcome in ("confirmed", "inconclusive")
    assert len(later.ledger.runs(later.number)) == 2 * len(claim.seeds)
    if second.outcome == "inconclusive":
        third = _extended(later).write_claim().content
        assert not set(third.seeds) & (set(claim.seeds) | set(earlier.seeds))
        assert third.extends is not None
        assert third.extends.seeds == len(earlier.seeds) + len(claim.seeds)
    with pytest.raises(InputError, match="is extended by c-0002 already"):
        _extended(lab)


def test_what_is_decided_or_not_judged_is_not_extended(tmp_path: Path) -> None:
    lab = _lab(tmp_path)
    with pytest.raises(InputError, match="no verdict yet"):
        _extended(lab)
    search_and_confirm(lab)
    assert lab.judge().outcome == "confirmed"
    with pytest.raises(InputError, match="c-0001 is confirmed: only an inconclusive verdict"):
        _extended(lab)


def test_a_budget_for_fewer_than_five_fresh_seeds_names_the_one_that_is_enough(tmp_path: Path) -> None:
    lab = _lab(
        tmp_path, lambda job: -10.0 + 0.5 * float(numpy_stream(job.spec.seed, job.spec.policy.model.kind).normal())
    )
    search_and_confirm(lab)
    lab.judge()
    with pytest.raises(InputError, match=r"The smallest that works here: --env-steps \d+k"):
        extend_campaign(lab.ledger, lab.number, wall_s=None, env_steps=1000, workers=2, llm="offline")


def test_a_plan_of_before_keeps_its_rules() -> None:
    old = Plan(
        budget=Budget(env_steps=10**6),
        design=Design(name="short", baseline_seeds=3, rounds=3, top=2, selection_seeds=2, confirmation_seeds=6),
        tuned_arms=2,
        env_steps_full=12_800,
        env_steps_search=6_400,
        workers=2,
        steps_per_s=None,
    )
    assert (old.trials, old.design.stages, old.suggesting, old.judging, old.shape.runs) == (3, (2, 2), 1, 1, 28)


# ---- several sides --------------------------------------------------------------------------------------------------
def _three(goal: str, folder: Path, **scores: float) -> Lab:
    def score(job: Job) -> float:
        kind = job.spec.policy.model.kind
        return scores.get(kind, -5.0) + 0.3 * float(numpy_stream(job.spec.seed, "luck", kind).normal())

    return lab_on_script(folder / "data", score, goal, new=True, **(NEW | {"tuned_arms": 3}))


def test_more_than_two_sides_share_their_runs_and_every_pair_is_judged_with_holm(tmp_path: Path) -> None:
    lab = _three("beat LSTM and GRU on point-robot", tmp_path, lstm=-15.0, gru=-12.0)
    search_and_confirm(lab)
    verdict = lab.judge()
    assert (verdict.outcome, verdict.best) == ("confirmed", "challenger")
    assert [(pair.first, pair.second, pair.outcome) for pair in verdict.pairs] == [
        ("challenger", "baseline", "confirmed"),
        ("challenger", "rival-2", "confirmed"),
    ]
    assert len(lab.ledger.runs(lab.number, purpose="confirmation")) == 3 * RACE.confirmation_seeds
    assert {r.arm: r.model for r in lab.ledger.runs(lab.number)}["rival-2"] == "gru"


def test_a_challenger_that_one_of_several_beats_is_refuted_and_one_that_beats_some_is_open(tmp_path: Path) -> None:
    lab = _three("beat LSTM and GRU on point-robot", tmp_path / "refuted", lstm=-15.0, gru=-1.0)
    search_and_confirm(lab)
    verdict = lab.judge()
    assert (verdict.outcome, verdict.reason) == (
        "refuted",
        "GRU beats SSM (mingru, minlstm, s5, lru, s4d, mlstm, ssd, gated-deltanet)",
    )
    lab = _three("beat LSTM and GRU on point-robot", tmp_path / "open", lstm=-15.0, gru=-5.0)
    search_and_confirm(lab)
    assert "beats 1 of the 2 sides" in lab.judge().reason


def test_a_comparison_of_several_names_the_best_or_says_that_there_is_none(tmp_path: Path) -> None:
    lab = _three("compare LSTM, GRU and MLP on point-robot", tmp_path / "best", lstm=-15.0, gru=-1.0, mlp=-10.0)
    search_and_confirm(lab)
    verdict = lab.judge()
    assert (verdict.outcome, verdict.best, len(verdict.pairs)) == ("confirmed", "baseline", 3)
    lab = _three("compare LSTM, GRU and MLP on point-robot", tmp_path / "none", lstm=-15.0, gru=-1.0, mlp=-1.0)
    search_and_confirm(lab)
    verdict = lab.judge()
    assert (verdict.outcome, verdict.best) == ("inconclusive", None)
    assert "no side beats all others" in verdict.reason
