"""Search spaces come from the configurations' own marks, and both arms train models of one size."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from core.errors import InputError
from core.policy import PolicyConfig
from core.sequence_model import with_width
from core.stack import HybridConfig
from experiments.campaign.begin import create_campaign
from experiments.campaign.gate import static_problems
from experiments.campaign.plan import Budget, Plan, make_plan
from experiments.campaign.question import parse_goal
from experiments.campaign.sides import parse_model
from experiments.campaign.trials import Trials, space_of
from experiments.ledger import Ledger
from experiments.search.optimizer import Tried, suggest
from experiments.search.sizing import SIZING, count_parameters, size_policy
from experiments.search.space import EMPTY, ROLES, SearchSpace, iteration_steps, plan_unit
from experiments.spec import RunSpec, parse_spec, set_fields
from experiments.vocabulary import PARAMETER_TOLERANCE
from meta_rl.learner import parse_learner_config

QUESTION = parse_goal("beat LSTM on point-robot")
CHALLENGER = SearchSpace(QUESTION.challenger, QUESTION.task, learner=QUESTION.learner)
BASELINE = SearchSpace(QUESTION.baseline, QUESTION.task, learner=QUESTION.learner)


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


def test_run_lengths_are_whole_iterations_of_every_choice_for_every_learner() -> None:
    horizon = 20
    assert plan_unit([CHALLENGER, BASELINE]) == 64 * 2 * horizon  # 16, 32 or 64 worlds of 1 or 2 episodes
    maml = SearchSpace(QUESTION.challenger, QUESTION.task, learner="maml-ppo")
    assert (
        plan_unit([maml]) == 8 * 8 * (3 + 1) * horizon
    )  # 4 or 8 tasks, 2, 4 or 8 episodes on each, 1 or 3 inner steps
    assert plan_unit([CHALLENGER, maml]) == math.lcm(64 * 2 * horizon, 8 * 8 * 4 * horizon)
    for space in (CHALLENGER, maml):
        spec = space.spec({}, env_steps=1, seed=0, parameters=None)
        assert plan_unit([space]) % iteration_steps(spec) == 0


def test_an_evaluation_shows_all_that_the_learner_trains_for() -> None:
    assert _spec().evaluation_episodes == 2
    default = BASELINE.default("lstm", "rl2")
    for learner, episodes in (
        ({"kind": "rl2", "episodes_per_trial": 3}, 3),
        ({"kind": "rl2"}, 2),
        ({"kind": "maml-ppo", "inner_steps": 4}, 5),
    ):
        start = default.model_copy(update={"learner": parse_learner_config(learner)})
        space = SearchSpace(QUESTION.baseline, QUESTION.task, learner=start.learner.kind, defaults={"lstm": start})
        assert _spec(space).evaluation_episodes == episodes


@pytest.mark.parametrize(
    ("learner", "fields"),
    [
        ("rl2", "choose fewer learner.num_worlds or learner.episodes_per_trial"),
        ("maml-ppo", "choose fewer learner.tasks_per_update, learner.episodes_per_task or learner.inner_steps"),
    ],
)
def test_a_run_that_is_too_short_for_an_iteration_names_the_fields_of_its_own_learner(
    learner: str, fields: str
) -> None:
    spec = SearchSpace(QUESTION.baseline, QUESTION.task, learner=learner).spec({}, env_steps=9, seed=0, parameters=None)
    (problem,) = static_problems(spec, count_parameters(spec), memory_limit_mb=10_000, expected_s=None, left_s=None)
    assert problem == f"one iteration takes {iteration_steps(spec):,} env steps, a search run has 9: {fields}"


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


@pytest.mark.parametrize("kind", ["lstm", "gru", "mlp", "s5", "lru", "s4d", "mamba", "transformer"])
@pytest.mark.parametrize("task", ["point-robot", "halfcheetah-vel"])
def test_sizing_to_its_own_size_changes_nothing(task: str, kind: str) -> None:
    spec = _spec(SearchSpace(parse_model(kind), task, learner="rl2"))
    assert size_policy(spec, count_parameters(spec)) == spec


@pytest.mark.parametrize("task", ["point-robot", "halfcheetah-vel", "ant-dir"])
@pytest.mark.parametrize("kind", ["s5", "lru"])
def test_two_layers_of_a_state_space_model_against_an_lstm_are_as_wide_as_the_encoder_so_that_they_train_compiled(
    task: str, kind: str
) -> None:
    budget = count_parameters(_spec(SearchSpace(parse_model("lstm"), task, learner="rl2")))
    space, two = SearchSpace(parse_model(kind), task, learner="rl2"), {"model.num_layers": 2}
    sized = space.spec(two, env_steps=1, seed=0, parameters=budget, sizing=SIZING)
    assert sized.policy.model.hidden_dim == sized.policy.encoder_dim
    assert abs(count_parameters(sized) - budget) < 0.01 * budget
    before = space.spec(two, env_steps=1, seed=0, parameters=budget)
    assert before.policy.model.hidden_dim == 61  # what campaigns that began before are resumed with


@pytest.mark.parametrize("kind", ["mamba", "mlp", "s5", "s4d"])
def test_no_other_width_comes_nearer_to_the_budget_than_the_chosen_one(kind: str) -> None:
    """But for the encoder's width, which a compiled memory gets within half of what the judge lets two sides differ by."""
    spec = _spec(SearchSpace(parse_model(kind), "halfcheetah-vel", learner="rl2"), model__num_layers=1)
    every = {w: count_parameters(spec.model_copy(update={"policy": _as_wide(spec, w)})) for w in range(40, 100)}  # fmt: skip
    for budget in (every[63], every[64], every[65], (every[63] + every[65]) // 2, every[50] + 9):
        sized = size_policy(spec, budget)
        nearest = min(abs(count - budget) for count in every.values())
        allowed = PARAMETER_TOLERANCE / 2 * budget if kind in ("s5", "s4d") and sized.policy.model.hidden_dim == 64 else nearest  # fmt: skip
        assert abs(count_parameters(sized) - budget) <= allowed


def _as_wide(spec: RunSpec, width: int) -> PolicyConfig:
    model = spec.policy.model
    changed = with_width(model, width) if model.kind == "s4d" else model.model_copy(update={"hidden_dim": width})
    return spec.policy.model_copy(update={"model": changed})


@pytest.mark.parametrize("states", [32, 64, 128])
def test_a_searched_state_size_is_trained_as_it_is_shown(states: int) -> None:
    budget = count_parameters(_spec(BASELINE))
    values = {"model.kind": "s5", "model.num_layers": 1, "model.state_dim": states}
    spec = CHALLENGER.spec(values, env_steps=1, seed=0, parameters=budget, sizing=SIZING)
    assert spec.policy.model.model_dump()["state_dim"] == states
    assert abs(count_parameters(spec) - budget) < 0.01 * budget


def test_a_plan_from_before_there_was_a_second_rule_of_sizing_keeps_the_first(tmp_path: Path) -> None:
    new = make_plan(Budget(env_steps=10**6), iteration_steps=10, horizon=5, tuned_arms=2, workers=2, steps_per_s=None)
    assert new.sizing == SIZING
    old = Plan.model_validate(new.model_dump(mode="json", exclude={"sizing"}))
    assert "sizing" not in old.model_dump(mode="json")
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    campaign_id = create_campaign(ledger, QUESTION, old, seed=1, llm="offline")
    widths = []
    for plan in (old, new):
        trials = Trials(ledger, campaign_id, QUESTION, plan, seed=1)
        widths.append(trials.spec("challenger", {"model.kind": "s5"}, seed=1, env_steps=10).policy.model.hidden_dim)
    assert widths == [61, 64]


def test_unit_coordinates_and_values_are_each_others_inverse() -> None:
    stream = np.random.default_rng(0)
    for space in (CHALLENGER, BASELINE):
        for _ in range(50):
            values = space.from_unit(stream.random(len(space.parameters)))
            assert space.check_values(values) == values
            point = space.to_unit(values)
            assert space.from_unit(np.where(np.isnan(point), 0.5, point)) == pytest.approx(values)
            assert {p.name for p, x in zip(space.parameters, point, strict=True) if not np.isnan(x)} == set(values)


def test_choices_have_equal_shares_of_the_unit_interval_and_numbers_are_ordered() -> None:
    worlds = next(p for p in CHALLENGER.parameters if p.name == "learner.minibatches")
    assert [worlds.from_unit(x) for x in (0.0, 0.32, 0.34, 0.65, 0.67, 1.0)] == [8, 8, 16, 16, 32, 32]
    assert worlds.distance(8, 16) == 0.5
    assert worlds.distance(8, None) == 1.0
    kind = CHALLENGER.parameters[0]
    assert not kind.ordered
    assert kind.distance("s5", "s4d") == kind.distance("s5", "lru") == 1.0


def test_families_split_what_one_role_tunes_by_its_subject() -> None:
    assert CHALLENGER.families() == (
        "architecture", "horizon and exploration", "optimisation", "environment", "adaptation"
    )  # fmt: skip
    of = {p.name: p.family for p in CHALLENGER.parameters}
    assert of["learner.gamma"] == of["policy.log_std_init"] == "horizon and exploration"
    assert of["learner.learning_rate"] == of["learner.minibatches"] == "optimisation"


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
    assert (
        set_fields(_spec(model__kind="s5"), {"model.state_dim": "32", "seed": "9"}).policy.model.model_dump()[
            "state_dim"
        ]
        == 32
    )


# Conditional fields, and parts that a specification leaves out --------------------------------------------------------
CHANGED = parse_goal("beat LSTM with S5 on point-robot with a switch of target")


def test_the_fields_of_an_adapter_are_there_only_where_something_adapts() -> None:
    space = space_of(CHANGED, CHANGED.challenger)
    own = {p.name for p in space.parameters if p.name.startswith("adaptation.")} - {"adaptation.adapts"}
    assert own == {
        f"adaptation.{name}" for name in ("learning_rate", "steps", "every", "window", "exploration", "guard")
    }
    off, on = (space.complete({"adaptation.adapts": adapts}) for adapts in ("nothing", "all"))
    assert not own & off.keys()
    assert own <= on.keys()
    assert "adaptation" not in space.spec(off, env_steps=1, seed=0, parameters=None).model_dump(mode="json")
    assert space.spec(on, env_steps=1, seed=0, parameters=None).adaptation.adapts == "all"
    assert np.isnan(space.to_unit(off)).sum() == np.isnan(space.to_unit(on)).sum() + len(own)
    assert space.why_absent("adaptation.steps", off).endswith(
        "only where adaptation.adapts is head or norm or low-rank or all"
    )
    for rng in map(np.random.default_rng, range(5)):
        values = space.from_unit(rng.random(len(space.parameters)))
        assert bool(own & values.keys()) == (values["adaptation.adapts"] != "nothing")


def test_the_optimizer_never_suggests_a_field_that_would_have_no_effect() -> None:
    space = space_of(CHANGED, CHANGED.challenger)
    history: list[Tried] = []
    for number in range(20):
        values = suggest(space, history, seed=1, arm="challenger", rule=1 + number % 2).values
        assert values == space.complete(values)
        history.append(Tried(values, float(number % 5)))
    assert len({trial.values["adaptation.adapts"] for trial in history}) > 1


def test_an_adapter_is_searched_where_worlds_change_or_where_a_side_names_it_and_for_learners_that_have_it() -> None:
    names = {p.name for p in CHALLENGER.parameters}
    assert not any(name.startswith(("adaptation.", "changes.")) for name in names)
    named = parse_goal("S5 with adapter:head vs LSTM on point-robot")
    assert "adaptation.steps" in {p.name for p in space_of(named, named.challenger).parameters}
    assert "adaptation.steps" not in {p.name for p in space_of(named, named.baseline).parameters}
    learners = parse_goal("which learner is best on point-robot with a switch of target")
    space = space_of(learners, learners.challenger)
    (adapts,) = (p for p in space.parameters if p.name == "adaptation.adapts")
    assert adapts.only_with == ("rl2",)
    maml = space.complete({"learner.kind": "maml-ppo", "adaptation.adapts": "all"})
    assert not any(name.startswith("adaptation.") for name in maml)
    assert space.spec(maml, env_steps=1, seed=0, parameters=None).changes.switch_step == 10
    assert {p.role for p in space.parameters if p.name.startswith("changes.")} == {"environment"}


def test_a_part_that_changes_nothing_is_left_out_of_a_specification_and_its_hashes() -> None:
    spec = _spec()
    for fields in (
        {"changes.failure_scale": "0.5"},
        {"changes.in_training": "true"},
        {"adaptation.learning_rate": "1"},
    ):
        assert set_fields(spec, fields).config_hash == spec.config_hash
    for fields in ({"changes.switch_step": "3"}, {"adaptation.adapts": "head"}, {"scored_by": "return_after_1"}):
        changed = set_fields(spec, fields)
        assert changed.variant_hash != spec.variant_hash
        assert RunSpec.model_validate(changed.model_dump(mode="json")) == changed
        assert set_fields(changed, {"seed": "5"}) == changed.model_copy(update={"seed": 5})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"changes.failure_step": "3"}, "changes.failure_step: point-robot has no motors"),
        ({"changes.switch": "3"}, "no field 'switch'; allowed here: switch_step"),
        ({"adaptation.adapts": "legs"}, "adaptation.adapts"),
        ({"adaptation.adapts": "norm"}, "it has no norms or gains"),
        ({"adaptation.adapts": "head", "learner.privileged_critic": "true"}, "its critic is told the task"),
    ],
)
def test_changes_and_adapters_that_do_not_fit_are_refused_by_the_specification(
    fields: dict[str, str], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        set_fields(_spec(), fields)


# What cannot be together is not searched together -------------------------------------------------------------------------
def test_a_search_never_proposes_what_its_side_or_its_score_excludes() -> None:
    question = parse_goal("beat LSTM with S5 with integrators=0.25 on point-robot")
    assert "model.selective" not in {p.name for p in space_of(question, question.challenger).parameters}
    question = parse_goal("beat LSTM with S5 on point-robot with a switch of target by prediction error")
    for side in question.sides:
        assert not [p for p in space_of(question, side).parameters if p.name.startswith("adaptation.")]


# A list of blocks --------------------------------------------------------------------------------------------------------
def test_a_stack_is_searched_place_by_place_and_trained_as_the_list_of_its_filled_places() -> None:
    question = parse_goal("beat LSTM with hybrid on point-robot")
    space = space_of(question, question.challenger)
    places = [p for p in space.parameters if p.field == "model.blocks"]
    assert [p.default for p in places] == ["lru", "attention", "mlp", EMPTY, EMPTY, EMPTY]
    assert EMPTY not in (places[0].choices or ())
    values = space.default_values() | {"model.blocks.2": EMPTY, "model.blocks.6": "mlstm"}
    closed = space.complete(values)
    assert [closed[p.name] for p in places] == ["lru", "mlp", "mlstm", EMPTY, EMPTY, EMPTY]
    given = {"env_steps": 10_000, "seed": 0, "parameters": 50_000, "sizing": 2}
    model = space.spec(values, **given).policy.model
    assert isinstance(model, HybridConfig)
    assert model.blocks == ("lru", "mlp", "mlstm")
    for rng in map(np.random.default_rng, range(8)):  # any list can be built, at the parameter count
        drawn = space.from_unit(rng.random(len(space.parameters)))
        spec = space.spec(drawn, **given)
        assert space.complete(drawn) == drawn
        assert count_parameters(spec) == pytest.approx(50_000, rel=0.1)


def test_a_stack_that_a_side_names_is_not_searched() -> None:
    question = parse_goal("beat LSTM with hybrid with blocks=s5/mlp on point-robot")
    space = space_of(question, question.challenger)
    assert not [p for p in space.parameters if p.field == "model.blocks"]
    model = space.spec(space.default_values(), env_steps=1, seed=0, parameters=None).policy.model
    assert isinstance(model, HybridConfig)
    assert model.blocks == ("s5", "mlp")
