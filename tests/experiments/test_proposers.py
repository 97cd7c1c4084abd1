"""Who proposes: the default first, TPE, the plateau rule, the agents' share; and the optimizer against random search."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from core.errors import InputError
from experiments.bench.proposers import main, spread
from experiments.bench.recorded_table import RecordedTable, load_table, plan_configurations, record
from experiments.bench.searches import RULES, Search, TableWorld, bootstrap_interval, by_rule, compare, run_searches
from experiments.campaign.question import parse_goal
from experiments.campaign.sides import parse_model
from experiments.search.optimizer import (
    PLATEAU_TRIALS,
    Tried,
    change_family,
    plateau_family,
    suggest,
    tpe,
    trials_since_gain,
    variation,
)
from experiments.search.side import Value
from experiments.search.space import SearchSpace

QUESTION = parse_goal("beat LSTM on point-robot")
CHALLENGER = SearchSpace(QUESTION.challenger, QUESTION.task, learner=QUESTION.learner)
BASELINE = SearchSpace(QUESTION.baseline, QUESTION.task, learner=QUESTION.learner)


@pytest.fixture(scope="module")
def table() -> RecordedTable:
    return load_table("point-robot")


def _flat(number: int, score: float = -10.0, space: SearchSpace = BASELINE) -> list[Tried]:
    """Trials with configurations of the plan, the first of them better than all later ones."""
    configurations = plan_configurations(space, 33)
    return [Tried(values, score - (n > 0)) for n, values in enumerate(configurations[:number])]


# ---- suggestions ------------------------------------------------------------------------


def test_suggestions_are_a_pure_function_and_stay_in_the_space() -> None:
    history: list[Tried] = []
    for number in range(8):
        first = suggest(CHALLENGER, history, seed=3, arm="challenger")
        assert first == suggest(CHALLENGER, history, seed=3, arm="challenger")
        assert CHALLENGER.check_values(first.values) == first.values
        assert set(first.values) == set(CHALLENGER.complete(first.values))
        assert first.source == ("default" if number == 0 else "optimizer")
        assert first.reason
        history.append(Tried(first.values, None if number == 2 else float(number)))
    other = suggest(CHALLENGER, history, seed=4, arm="challenger")
    assert other.values != suggest(CHALLENGER, history, seed=3, arm="challenger").values


def test_suggestions_follow_the_scores() -> None:
    """After many trials where a small learning rate is best, small ones are suggested."""
    history: list[Tried] = []
    for _ in range(30):
        values = tpe(BASELINE, history, seed=0, arm="baseline")
        history.append(Tried(values, -float(values["learner.learning_rate"])))
    late = [float(t.values["learner.learning_rate"]) for t in history[-10:]]
    assert float(np.median(late)) < 1e-3


def test_failed_pruned_and_refused_configurations_are_avoided() -> None:
    """Where every large learning rate ends badly, in whichever way, fewer of them are suggested than at random."""
    history: list[Tried] = []
    refused: list[dict[str, Value]] = []
    for number, values in enumerate(plan_configurations(BASELINE, 33)):
        bad = float(values["learner.learning_rate"]) > 8e-4
        if bad and number % 3 == 0:
            refused.append(values)
        else:
            rung = (640, -30.0) if bad and number % 3 == 1 else None
            history.append(Tried(values, None if bad else -10.0 + number % 2, rung))
    share = np.mean(
        [float(tpe(BASELINE, history, seed=s, arm="a", refused=refused)["learner.learning_rate"]) > 8e-4 for s in range(40)]
    )  # fmt: skip
    assert share < 0.3  # a uniform draw exceeds it in half of the cases


def test_a_refused_suggestion_is_followed_by_another_one() -> None:
    history = _flat(6)
    first = suggest(BASELINE, history, seed=1, arm="a")
    second = suggest(BASELINE, history, seed=1, arm="a", refused=[first.values])
    assert second.values != first.values
    assert second == suggest(BASELINE, history, seed=1, arm="a", refused=[first.values])


# ---- the plateau rule -------------------------------------------------------------------


def test_a_gain_below_the_noise_floor_is_none() -> None:
    scores = [-10.0, -9.9, -9.8, None, -9.0, -9.2]
    history = [Tried({}, score) for score in scores]
    assert trials_since_gain(history, 0.0) == 1
    assert trials_since_gain(history, 0.5) == 1
    assert trials_since_gain(history, 2.0) == 5
    assert trials_since_gain([Tried({}, None)] * 4, 0.0) == 3


def test_small_gains_in_a_row_count_once_their_sum_exceeds_the_noise_floor() -> None:
    history = [Tried({}, -10.0 + 0.3 * n) for n in range(5)]
    assert trials_since_gain(history, 0.5) == 0


def test_a_plateau_changes_one_family_of_the_best_configuration_and_says_so() -> None:
    history = _flat(1 + PLATEAU_TRIALS)
    found = suggest(BASELINE, history, seed=0, arm="baseline", noise_floor=0.1)
    assert found.source == "plateau"
    family = plateau_family(BASELINE, history, 0.1)
    assert family is not None
    assert family in found.reason
    best = history[0].values
    changed = {p.family for p in BASELINE.parameters if found.values[p.name] != best[p.name]}
    assert changed == {family}
    assert BASELINE.check_values(found.values) == found.values


def test_the_family_that_varied_least_in_the_last_trials_is_the_one_to_change() -> None:
    history = _flat(1)
    fields = {"architecture": "model.num_layers", "optimisation": "learner.learning_rate", "environment": "learner.num_worlds"}  # fmt: skip
    base = history[0].values
    moves: list[dict[str, Value]] = [
        {"learner.learning_rate": 1e-3, "model.num_layers": 2, "learner.gamma": 0.95},
        {"learner.learning_rate": 2e-3, "model.num_layers": 1, "learner.gamma": 0.99},
        {"learner.learning_rate": 3e-4, "model.num_layers": 2, "learner.episodes_per_trial": 2},
        {"learner.learning_rate": 6e-4, "model.num_layers": 1, "learner.gamma": 0.98},
    ]
    history += [Tried(base | move, -11.0) for move in moves]
    assert len(moves) == PLATEAU_TRIALS
    assert plateau_family(BASELINE, history, 0.0) == "environment"
    spreads = {f: variation(BASELINE, f, [t.values for t in history[-PLATEAU_TRIALS:]]) for f in fields}
    assert spreads["environment"] == 0.0 < spreads["optimisation"]


def test_the_rule_waits_for_the_next_full_plateau_after_each_change_and_ends_with_a_gain() -> None:
    due = [plateau_family(BASELINE, _flat(n), 0.1) is not None for n in range(1, 2 * PLATEAU_TRIALS + 3)]
    assert [n for n, is_due in enumerate(due) if is_due] == [PLATEAU_TRIALS, 2 * PLATEAU_TRIALS]
    history = _flat(PLATEAU_TRIALS)
    history.append(Tried(history[-1].values, -5.0))
    assert plateau_family(BASELINE, history, 0.1) is None


def test_a_plateau_never_repeats_a_configuration_while_the_family_has_others() -> None:
    history = _flat(1 + PLATEAU_TRIALS, space=CHALLENGER)
    for family in CHALLENGER.families():
        tried = [t.values for t in history]
        values = change_family(CHALLENGER, history, family, seed=2, arm="challenger")
        assert values not in tried
        assert CHALLENGER.complete(CHALLENGER.check_values(values)) == values


# ---- tables -----------------------------------------------------------------------------


def test_the_recorded_table_tells_configurations_apart_beyond_the_noise_of_a_seed(table: RecordedTable) -> None:
    scores = table.scores("search")
    good = scores[np.isfinite(scores).all(axis=1)]
    assert stats.f_oneway(*good).pvalue < 0.001
    facts = spread(table)
    assert facts["best"] > facts["default"] + facts["between"]
    assert table.configurations[0] == table.space.default_values()
    assert all(table.space.check_values(values) == values for values in table.configurations)
    assert {"torch", "numpy"} <= set(table.header.recorded_with["packages"])


def test_a_proposal_is_mapped_to_the_nearest_untried_row(table: RecordedTable) -> None:
    """Against a plain loop over parameters."""
    stream = np.random.default_rng(1)
    tried: set[int] = set()
    for _ in range(8):
        values = table.space.from_unit(stream.random(len(table.space.parameters)))
        distances = []
        for row in table.configurations:
            terms = [
                p.distance(values.get(p.name), row.get(p.name))
                for p in table.space.parameters
                if p.name in values or p.name in row
            ]
            distances.append(sum(terms) / len(terms))
        expected = min((d, n) for n, d in enumerate(distances) if n not in tried)[1]
        found = table.nearest(values, tried)
        assert distances[found] == pytest.approx(distances[expected])
        tried.add(found)
    assert table.nearest(table.configurations[5], set()) == 5
    with pytest.raises(InputError, match="are tried"):
        table.nearest(table.configurations[0], set(range(len(table))))


def test_the_fresh_score_of_a_search_is_of_a_seed_that_it_did_not_see(table: RecordedTable) -> None:
    search, selection = table.scores("search"), table.scores("selection")
    for number in range(4):
        world = TableWorld(table, number)
        for place in range(0, len(table), 7):
            tried = world.measure(table.configurations[place])
            assert tried.values == table.configurations[place]
            column = int(np.argmin(np.abs(search[place] - (tried.score or 0.0))))
            if np.isfinite(selection[place]).all() and table.header.seeds == 2:
                assert world.worth(tried.values) == pytest.approx(selection[place, 1 - column])


@pytest.mark.slow
def test_a_recording_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    told: list[str] = []
    sizes = {"task": "point-robot", "model": "lstm", "env_steps": 1280, "configurations": 2, "default_seeds": 2}
    record(path, **sizes, say=told.append)
    whole = path.read_text().splitlines()
    assert len(whole) == 1 + 2 * 2 == 1 + len(told)
    path.write_text("\n".join(whole[:3]) + "\n")
    record(path, **sizes)
    keep = [{k: v for k, v in json.loads(line).items() if k != "cpu_s"} for line in whole[1:]]
    again = [{k: v for k, v in json.loads(line).items() if k != "cpu_s"} for line in path.read_text().splitlines()[1:]]
    assert again == keep
    assert len(load_table(path)) == 2


# ---- searches ---------------------------------------------------------------------------


def test_paired_searches_meet_the_same_world_and_equal_trials(table: RecordedTable) -> None:
    found = run_searches(RULES, lambda n: TableWorld(table, n), searches=2, trials=5)
    again = run_searches(RULES, lambda n: TableWorld(table, n), searches=2, trials=5)
    assert found == again
    assert {s.trials for arm in ("random", "tpe", "optimizer") for s in found[arm]} == {5}
    assert {s.trials for s in found["default"]} == {1}
    assert [s.worth for s in found["default"]] == [
        TableWorld(table, n).worth(table.configurations[0]) for n in range(2)
    ]


def test_an_oracle_wins_every_comparison_and_its_interval_excludes_zero(table: RecordedTable) -> None:
    def best(world, history, seed):
        order = np.argsort(-np.nanmean(table.scores("search"), axis=1))
        return table.configurations[int(order[len(history)])]

    arms = {"random": RULES["random"], "oracle": by_rule(best)}
    results = {r.arm: r for r in compare(run_searches(arms, lambda n: TableWorld(table, n), searches=12, trials=3))}
    assert results["oracle"].difference_interval is not None
    assert results["oracle"].difference_interval[0] > 0
    assert results["random"].difference is None


def test_the_offline_researchers_search_beats_random_search_at_equal_trials(table: RecordedTable) -> None:
    """The offline researcher takes what `suggest` gives, so its search is the arm `optimizer`
    (tests/multi_agent/test_proposer_arms.py runs both)."""
    arms = {name: RULES[name] for name in ("random", "optimizer")}
    results = compare(run_searches(arms, lambda n: TableWorld(table, n), searches=32, trials=16))
    assert results[1].trials == results[0].trials == 32 * 16
    assert results[1].difference_interval is not None
    assert results[1].difference_interval[0] > 0


def test_intervals_shrink_with_searches_and_contain_the_mean() -> None:
    stream = np.random.default_rng(0)
    few, many = stream.normal(size=8), stream.normal(size=512)
    low, high = bootstrap_interval(few)
    assert low < few.mean() < high
    narrow = bootstrap_interval(many)
    assert narrow[1] - narrow[0] < (high - low) / 3
    ties = compare({"random": [Search(1.0, 1, 0)] * 3, "same": [Search(1.0, 1, 0)] * 3})
    assert ties[1].better == 0.5


def test_the_command_prints_each_arm_with_its_difference_to_random(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--arms", "default,random,tpe", "--searches", "3", "--trials", "4", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [arm["arm"] for arm in shown["arms"]] == ["default", "random", "tpe"]
    assert [arm["trials"] for arm in shown["arms"]] == [3, 12, 12]
    assert main(["--arms", "random,tpe", "--searches", "2", "--trials", "3"]) == 0
    assert "2 paired searches of 3 trials" in capsys.readouterr().out
    with pytest.raises(InputError, match="Did you mean 'random'"):
        main(["--arms", "randm"])
    with pytest.raises(InputError, match="searches"):
        main(["--searches", "0"])


def test_a_table_keeps_the_space_it_was_recorded_over(tmp_path: Path, table: RecordedTable) -> None:
    narrower = table.header.model_copy(update={"parameters": table.header.parameters[1:]})
    file = tmp_path / "old.jsonl"
    file.write_text(narrower.model_dump_json() + "\n")
    assert load_table(file).space.parameters == narrower.parameters
    with pytest.raises(InputError, match="another search space"):
        record(file, task="point-robot", model="ssm", env_steps=5120, configurations=2)
    with pytest.raises(InputError, match="point-robot"):
        load_table("no-such-table")
    assert parse_model("ssm").name == table.header.model
