"""A metric is a name, and its number is what a loop over the raw results gives."""

from __future__ import annotations

import math

import numpy as np
import pytest

from core.errors import InputError
from experiments.metrics import FIRST_EPISODE, Metric, parse_metric
from meta_rl.learner import LEARNERS

STREAM = np.random.default_rng(7)
RETURNS, SUCCESS = STREAM.normal(size=(25, 4)), STREAM.integers(0, 2, size=(25, 4)).astype(float)
RAW = {"return": RETURNS.tolist(), "success": SUCCESS.tolist()}


@pytest.mark.parametrize("quantity", ["return", "success"])
@pytest.mark.parametrize("shot", [0, 1, 3])
def test_a_score_is_the_mean_of_its_column(quantity: str, shot: int) -> None:
    column = [row[shot] for row in RAW[quantity]]
    metric = Metric(quantity, shot, worst=False)
    assert metric.of_evaluation(RAW) == pytest.approx(sum(column) / len(column))
    worst = sorted(column)[:3]  # a tenth of 25, rounded up
    assert metric._replace(worst=True).of_evaluation(RAW) == pytest.approx(sum(worst) / 3)


@pytest.mark.parametrize(
    "name",
    [FIRST_EPISODE, "return_after_1", "return_after_19", "success_first_episode", "worst_tenth_return_after_5", "worst_tenth_success_as_trained", "return_as_trained", "prediction_error_after_2", "steps_to_-50_first_episode", "steps_to_0.25_as_trained", "steps_to_1200_after_3"],
)  # fmt: skip
def test_a_name_taken_apart_and_put_together_is_the_same_name(name: str) -> None:
    assert parse_metric(name).name == name


@pytest.mark.parametrize("name", ["", "return", "return_after_0", "return_after_20", "regret_after_1", "return_after_1 ", "success_after_-1", "steps_to_first_episode", "steps_to_1e3_first_episode", "worst_tenth_steps_to_5_first_episode"])  # fmt: skip
def test_another_name_is_refused_with_what_is_allowed(name: str) -> None:
    with pytest.raises(InputError, match=r"allowed: .*QUANTITY_after_K"):
        parse_metric(name)


def test_less_of_an_error_or_of_steps_is_a_higher_score() -> None:
    raw = {"prediction_error": [[0.5], [0.3]], "steps_to_-50": [[1200.0], [1200.0]]}
    assert parse_metric("prediction_error_first_episode").of_evaluation(raw) == pytest.approx(-0.4)
    assert parse_metric("steps_to_-50_after_2").of_evaluation(raw) == -1200.0
    worst = parse_metric("worst_tenth_prediction_error_first_episode")
    assert worst.of_evaluation(raw) == -0.5


@pytest.mark.parametrize("steps", [0.0, 1.0, 737.0, 1000.0])
def test_the_env_steps_to_a_return_are_where_a_straight_line_crosses_it(steps: float) -> None:
    def line(x: float) -> float:
        return -80.0 + 0.03 * x

    curve = [(x, line(x)) for x in range(100, 1100, 100)]
    metric = parse_metric("steps_to_0_first_episode")._replace(level=line(steps))
    assert metric.env_steps_to(curve, 5000) == pytest.approx(
        max(steps, 100.0)
    )  # nothing is known before the first look
    assert metric.env_steps_to([(x, -90.0) for x, _ in curve], 5000) == 5000.0  # never: all of them


def test_one_value_that_is_not_finite_leaves_no_score() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        raw = {"return": [[1.0, 2.0], [bad, 3.0]]}
        assert parse_metric(FIRST_EPISODE).of_evaluation(raw) is None
        assert parse_metric("return_after_1").of_evaluation(raw) == 2.5


def test_every_learner_is_scored_by_a_column_that_its_evaluation_has() -> None:
    for name in LEARNERS:
        config = LEARNERS[name].config_type(kind=name)
        assert parse_metric(config.scored_by).column < max(config.evaluation_episodes, 1)
    for steps in (1, 3):
        maml = LEARNERS["maml-ppo"].config_type.model_validate({"kind": "maml-ppo", "inner_steps": steps})
        assert maml.scored_by == f"return_after_{steps}"
        asked = parse_metric("worst_tenth_return_as_trained").of_learner(maml.scored_by)
        assert asked.name == f"worst_tenth_return_after_{steps}"
        assert parse_metric("return_after_7").of_learner(maml.scored_by).name == "return_after_7"


def test_metrics_are_read_by_people_in_their_learners_terms() -> None:
    shots = {name: LEARNERS[name].config_type.shot for name in ("rl2", "maml-ppo")}
    assert parse_metric("return_after_2").words(shots["rl2"]) == "return after 2 episodes lived on the task"
    assert (
        parse_metric("return_after_1").words(shots["maml-ppo"]) == "return after 1 gradient step on episodes of its own"
    )
    assert parse_metric("worst_tenth_success_first_episode").words("shot") == (
        "success rate in the first episode (worst tenth of the tasks)"
    )


@pytest.mark.parametrize(
    ("name", "score", "shown"),
    [
        ("return_first_episode", -12.34, "return -12.3"),
        ("steps_to_-50_first_episode", -123456.0, "123,456 env steps to a return of -50"),
        ("success_after_1", 0.8125, "success rate 0.812"),
        ("prediction_error_first_episode", -0.25, "prediction error 0.25"),
    ],
)
def test_a_score_is_shown_in_the_unit_that_it_was_measured_in(name: str, score: float, shown: str) -> None:
    assert parse_metric(name).shown(score) == shown
