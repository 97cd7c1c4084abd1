"""Search spaces come from the configurations' own marks, and both arms train models of one size."""

from __future__ import annotations

import pytest

from core.errors import InputError
from experiments.question import parse_goal
from experiments.space import ROLES, SearchSpace, count_parameters, size_policy
from experiments.spec import RunSpec, parse_spec, set_fields

QUESTION = parse_goal("beat LSTM on point-robot")
CHALLENGER = SearchSpace(QUESTION.challenger, QUESTION.task)
BASELINE = SearchSpace(QUESTION.baseline, QUESTION.task)


def _spec(space: SearchSpace = CHALLENGER, **values: float | str) -> RunSpec:
    named = {name.replace("__", "."): value for name, value in values.items()}
    return space.spec(named, env_steps=10_000, seed=1, parameters=None)


def test_the_slices_of_the_roles_are_disjoint_and_cover_the_space() -> None:
    names = [p.name for role in ROLES for p in CHALLENGER.of_role(role)]
    assert sorted(names) == sorted(p.name for p in CHALLENGER.parameters)
    assert len(names) == len(set(names))
    assert all(CHALLENGER.of_role(role) for role in ROLES)


def test_both_arms_search_the_same_learner_fields() -> None:
    learner = [[p.name for p in s.parameters if p.name.startswith("learner.")] for s in (CHALLENGER, BASELINE)]
    assert learner[0] == learner[1]


def test_a_value_lands_in_the_specification() -> None:
    spec = _spec(model__kind="lru", learner__learning_rate=5e-4)
    assert spec.policy.model.kind == "lru"
    assert spec.learner.model_dump()["learning_rate"] == 5e-4


@pytest.mark.parametrize("kind", ["s5", "lru", "s4d"])
@pytest.mark.parametrize("layers", [1, 3])
def test_every_configuration_is_sized_to_the_parameter_budget(kind: str, layers: int) -> None:
    budget = count_parameters(_spec(BASELINE))
    spec = CHALLENGER.spec({"model.kind": kind, "model.num_layers": layers}, env_steps=1, seed=0, parameters=budget)
    assert abs(count_parameters(spec) - budget) < 0.06 * budget


def test_sizing_to_its_own_size_changes_nothing() -> None:
    spec = _spec(BASELINE)
    assert size_policy(spec, count_parameters(spec)) == spec


def test_suggestions_are_a_pure_function_and_stay_in_the_space() -> None:
    history: list = []
    for number in range(8):
        first = CHALLENGER.suggest(history, seed=3, arm="challenger")
        assert first == CHALLENGER.suggest(history, seed=3, arm="challenger")
        assert CHALLENGER.check_values(first) == first
        assert set(first) == set(CHALLENGER.complete(first))
        history.append((first, None if number == 2 else -float(number)))
    assert CHALLENGER.suggest(history, seed=4, arm="challenger") != first


def test_suggestions_follow_the_scores() -> None:
    """After many trials where a small learning rate is best, small ones are suggested."""
    history: list = []
    for _ in range(30):
        values = BASELINE.suggest(history, seed=0, arm="baseline")
        history.append((values, -float(values["learner.learning_rate"])))
    late = [float(values["learner.learning_rate"]) for values, _ in history[-10:]]
    assert max(late) < 1e-3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model.kind": "s6"}, ["model.kind", "'s6'", "s5"]),
        ({"learner.learning_rate": 7.0}, ["learner.learning_rate", "7.0", "nearest allowed is 0.003"]),
        ({"learner.learning_rate": "fast"}, ["'fast'", "float from"]),
        ({"learner.learningrate": 1e-3}, ["learner.learningrate", "Did you mean 'learner.learning_rate'"]),
        ({"learner.num_worlds": 17}, ["17", "one of"]),
    ],
)
def test_a_wrong_value_is_answered_with_what_is_allowed(values: dict, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        CHALLENGER.check_values(values)
    for word in words:
        assert word in str(caught.value)


def test_a_value_of_another_roles_slice_names_its_owner() -> None:
    with pytest.raises(InputError, match="belongs to the slice of meta-learning"):
        CHALLENGER.check_values({"learner.gamma": 0.97}, "state-modeling")


def test_a_specification_survives_json_and_keeps_its_hashes() -> None:
    spec = _spec()
    again = parse_spec(spec.model_dump_json(), "test")
    assert again == spec
    assert again.config_hash == spec.config_hash
    other_seed = spec.model_copy(update={"seed": 2, "env_steps": 20_000})
    assert other_seed.variant_hash == spec.variant_hash
    assert other_seed.config_hash != spec.config_hash


def test_a_wrong_field_of_a_specification_is_named_by_its_path() -> None:
    text = _spec().model_dump_json().replace('"gamma":0.97', '"gamma":7')
    with pytest.raises(InputError, match=r"gamma.*7"):
        parse_spec(text, "file.json")
    with pytest.raises(InputError, match="allowed here"):
        set_fields(_spec(), {"model.sate_dim": "3"})
    assert set_fields(_spec(), {"model.state_dim": "32", "seed": "9"}).policy.model.model_dump()["state_dim"] == 32
