"""Goals in words become the right typed question, or an error that helps."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from core.errors import InputError
from core.sequence_model import MODELS
from env_runner.task_distributions import FAMILIES
from env_runner.task_family import EnvOptions
from experiments.campaign.question import Question, parse_goal, parse_goals, parse_question
from experiments.campaign.trials import space_of
from experiments.metrics import parse_metric
from experiments.presets import preset
from experiments.search.side import Recorded
from experiments.spec import set_fields
from meta_rl.learner import LEARNERS

SSM = ("mingru", "minlstm", "s5", "lru", "s4d", "mlstm", "ssd", "gated-deltanet")
RECURRENT = ("lstm", "gru", "diag-gru", "rtu-tanh", "slstm")


@pytest.mark.parametrize(
    ("goal", "kind", "challenger", "baseline", "task"),
    [
        ("beat LSTM on halfcheetah-vel", "beat", SSM, ("lstm",), "halfcheetah-vel"),
        ("Can an SSM outperform the LSTM on point-robot?", "beat", SSM, ("lstm",), "point-robot"),
        ("show that a state space model beats LSTM on the halfcheetah-vel task", "beat", SSM, ("lstm",), "halfcheetah-vel"),
        ("please make LRU do better than the LSTM policy on point-robot.", "beat", ("lru",), ("lstm",), "point-robot"),
        ("beat lstm with s4d on ant-dir", "beat", ("s4d",), ("lstm",), "ant-dir"),
        ("beat s5 on point-robot", "beat", tuple(kind for kind in SSM if kind != "s5"), ("s5",), "point-robot"),
        ("compare S5 and LSTM on halfcheetah-dir", "compare", ("s5",), ("lstm",), "halfcheetah-dir"),
        ("S5 vs. LRU on point-robot", "compare", ("s5",), ("lru",), "point-robot"),
        ("find the best SSM on halfcheetah-vel", "best", SSM, ("mingru",), "halfcheetah-vel"),
        ("beat recurrent models with an SSM on point-robot", "beat", SSM, RECURRENT, "point-robot"),
        ("find the best RNN on halfcheetah-vel", "best", RECURRENT, ("lstm",), "halfcheetah-vel"),
        ("beat mingru with diag-gru on t-maze", "beat", ("diag-gru",), ("mingru",), "t-maze"),
        ("tune lstm for point-robot", "best", ("lstm",), ("lstm",), "point-robot"),
        ("improve LRU on halfcheetah-vel by 10 %", "improve", ("lru",), ("lru",), "halfcheetah-vel"),
        ("improve the LRU model by 5 percent on point-robot", "improve", ("lru",), ("lru",), "point-robot"),
    ],
)  # fmt: skip
def test_a_goal_is_understood(
    goal: str, kind: str, challenger: tuple[str, ...], baseline: tuple[str, ...], task: str
) -> None:
    question = parse_goal(goal)
    assert (question.kind, question.challenger.kinds, question.baseline.kinds, question.task) == (
        kind,
        challenger,
        baseline,
        task,
    )
    assert question.goal == goal
    assert question.baseline_is_tuned == (kind in ("beat", "compare"))


def test_every_registered_model_and_task_can_be_asked_about() -> None:
    for kind in MODELS:
        for task in FAMILIES:
            assert parse_goal(f"find the best {kind} on {task}").challenger.kinds == (kind,)
            assert parse_goal(f"find the best {kind} on {task}").task == task


def test_an_improvement_has_its_percentage() -> None:
    assert parse_goal("improve LRU on point-robot by 12.5 %").improvement_pct == 12.5


@pytest.mark.parametrize("words", ["beat LSTM with lru on point-robot{}", "improve LRU on point-robot by 10 %{}"])
def test_a_goal_may_say_what_trains_both_sides_and_is_recorded_as_before_where_it_does_not(words: str) -> None:
    plain = parse_goal(words.format(""))
    assert plain.learner == "rl2"
    assert "learner" not in plain.model_dump(mode="json")
    assert Question.model_validate(plain.model_dump(mode="json")) == plain
    for ending in (", trained by maml-ppo", " trained with the MAML-PPO."):
        question = parse_goal(words.format(ending))
        assert question.learner == "maml-ppo"
        assert question.metric == "return_as_trained"
        assert question.model_copy(update={"learner": "rl2", "goal": plain.goal, "metric": plain.metric}) == plain
        assert Question.model_validate(question.model_dump(mode="json")) == question
        assert "Trained by maml-ppo." in question.sentence()
        assert "after the shots that each is trained for" in question.sentence()
        assert question.names == (*plain.names[:-1], "maml-ppo")


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        ("beat LTSM on halfcheetah-vel", ["'ltsm'", "Did you mean 'lstm'", "Allowed:"]),
        ("beat LSTM on halfcheeta-vel", ["'halfcheeta-vel'", "Did you mean 'halfcheetah-vel'", "Allowed:"]),
        ("beat LSTM on point-robot, trained by mamlppo", ["unknown learner 'mamlppo'", "Did you mean 'maml-ppo'"]),
        ("make it good", ["what to do", "a model", "the task", "The nearest that would be:"]),
        ("beat lstm", ["the task", "The nearest that would be:"]),
        ("improve lru on point-robot", ["by how many percent", "The nearest that would be:"]),
        ("improve lru on point-robot by 0 %", ["0 %", "more than 0"]),
        ("compare lru and lru on point-robot", ["lru", "find the best lru on point-robot"]),
        ("", ["was not understood"]),
    ],
)
def test_a_goal_that_cannot_be_understood_says_what_is_missing(goal: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse_goal(goal)
    for word in words:
        assert word in str(caught.value)


MODELS_OF = {name: LEARNERS[name].config_type.models for name in ("rl2", "maml-ppo")}


@pytest.mark.parametrize(
    ("goal", "kind", "challenger", "baseline", "metric"),
    [
        ("beat RL2 with MAML on point-robot", "beat", {"learners": ("maml-ppo",)}, {"learners": ("rl2",)}, "return_as_trained"),
        ("compare maml and first-order maml on halfcheetah-dir", "compare", {"learners": ("maml-ppo",), "fixed": {"learner.first_order": False}}, {"learners": ("maml-ppo",), "fixed": {"learner.first_order": True}}, "return_as_trained"),
        ("beat maml with FOMAML on point-robot after five gradient steps", "beat", {"learners": ("maml-ppo",), "fixed": {"learner.first_order": True}}, {"learners": ("maml-ppo",), "fixed": {"learner.first_order": False}}, "return_after_5"),
        ("which learner is best on point-robot", "best", {"learners": ("rl2", "maml-ppo")}, {"learners": ("rl2",), "kinds": ("lstm",)}, "return_as_trained"),
        ("find the best architecture for RL2 on t-maze", "best", {"kinds": (*MODELS_OF["rl2"], "mingru", "hybrid"), "learners": ("rl2",)}, {"kinds": ("lstm",), "learners": ("rl2",)}, "return_first_episode"),
        ("find the best model on halfcheetah-vel", "best", {"kinds": MODELS_OF["rl2"]}, {"kinds": ("lstm",)}, "return_first_episode"),
        ("find the best of S5, LRU and GRU on point-robot", "best", {"kinds": ("s5", "lru", "gru")}, {"kinds": ("s5",)}, "return_first_episode"),
        ("which is better, S5 or LSTM, on point-robot", "compare", {"kinds": ("s5",)}, {"kinds": ("lstm",)}, "return_first_episode"),
        ("does S5 with privileged critic beat S5 on halfcheetah-vel", "beat", {"kinds": ("s5",), "fixed": {"learner.privileged_critic": True}}, {"kinds": ("s5",), "fixed": {"learner.privileged_critic": False}}, "return_first_episode"),
        ("beat LSTM with S5 + num_layers=2 on point-robot", "beat", {"kinds": ("s5",), "fixed": {"model.num_layers": 2}}, {"kinds": ("lstm",), "fixed": {}}, "return_first_episode"),
        ("beat LSTM on point-robot with S5 with maml-ppo", "beat", {"kinds": ("s5",), "learners": ("maml-ppo",)}, {"kinds": ("lstm",), "learners": ()}, "return_as_trained"),
        ("compare S5 and LSTM on halfcheetah-vel in the worst tasks", "compare", {"kinds": ("s5",)}, {"kinds": ("lstm",)}, "worst_tenth_return_first_episode"),
        ("beat LSTM with LRU after 2 episodes on point-robot", "beat", {"kinds": ("lru",)}, {"kinds": ("lstm",)}, "return_after_2"),
        ("beat maml with rl2 on point-robot zero-shot", "beat", {"learners": ("rl2",)}, {"learners": ("maml-ppo",)}, "return_first_episode"),
        ("beat RL2 on point-robot", "beat", {"learners": ("maml-ppo",)}, {"learners": ("rl2",)}, "return_as_trained"),
    ],
)  # fmt: skip
def test_a_side_is_whatever_a_specification_can_say(
    goal: str, kind: str, challenger: dict[str, Any], baseline: dict[str, Any], metric: str
) -> None:
    question = parse_goal(goal)
    assert (question.kind, question.metric) == (kind, metric)
    for side, named in zip(question.sides, (challenger, baseline), strict=True):
        assert {name: getattr(side, name) for name in named} == named
        space = space_of(question, side)
        spec = space.spec({}, env_steps=1, seed=0, parameters=None)
        data = spec.model_dump(mode="json")
        for name, value in side.fixed.items():
            assert name not in {p.name for p in space.parameters}
            section, field = name.split(".")
            assert {"model": data["policy"]["model"], "policy": data["policy"], "learner": data["learner"]}[section][
                field
            ] == value
        assert spec.learner.kind == (side.learners or ("rl2",))[0]
        assert parse_metric(spec.scored_by).column < spec.evaluation_episodes
    assert Question.model_validate(question.model_dump(mode="json")) == question
    assert parse_question(question.model_dump_json(), "it") == question


def test_what_neither_side_names_is_free_on_both_alike() -> None:
    question = parse_goal("beat RL2 with MAML on point-robot")
    assert set(question.challenger.kinds) == set(question.baseline.kinds)
    assert (question.challenger.kinds[0], question.baseline.kinds[0]) == (
        "mlp",
        "lstm",
    )  # each begins as it is usually trained


@pytest.mark.parametrize(
    ("goal", "metric", "percent"),
    [
        ("beat LSTM by 10 % on point-robot", "return_first_episode", 10.0),
        ("improve S5 by 2.5 percent over LSTM on point-robot", "return_first_episode", 2.5),
        ("improve maml on point-robot by 5 %", "return_as_trained", 5.0),
    ],
)
def test_a_margin_may_stand_anywhere(goal: str, metric: str, percent: float) -> None:
    question = parse_goal(goal)
    assert (question.metric, question.improvement_pct) == (metric, percent)
    assert f"by {percent:g} %" in question.sentence()


def _runs(name: str) -> Recorded:
    assert name == "r-0042"
    return Recorded(run=name, spec=preset("halfcheetah-vel", "gru", "rl2").model_dump(mode="json"))


def test_a_recorded_run_and_a_preset_are_sides_that_are_neither_searched_nor_sized() -> None:
    wanted = preset("halfcheetah-vel", "gru", "rl2")
    for words in ("r-0042", "halfcheetah-vel.gru"):
        question = parse_goal(f"beat {words} on halfcheetah-vel", _runs)
        assert question.challenger.kinds == SSM
        assert not question.baseline_is_tuned
        space = space_of(question, question.baseline)
        assert space.parameters == ()
        spec = space.spec({}, env_steps=wanted.env_steps, seed=wanted.seed, parameters=10)
        assert spec == wanted
        assert f"than {words} as it is" in question.sentence()
        assert Question.model_validate(question.model_dump(mode="json")) == question
    improved = parse_goal("improve r-0042 by 5 % on halfcheetah-vel", _runs)
    assert (improved.kind, improved.challenger.kinds, improved.improvement_pct) == ("beat", ("gru",), 5.0)


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        ("beat LSTM and GRU with S5 and LRU on point-robot", ["several", "compare S5 and LRU on"]),
        ("beat LSTM, GRU and LSTM on point-robot", ["lstm is named twice"]),
        ("beat LSTM and r-0042 on halfcheetah-vel", ["r-0042", "one side at a time"]),
        ("beat maml with maml on point-robot", ["train the same", "find the best maml-ppo on point-robot"]),
        ("compare maml and first_order=false on point-robot", ["train the same"]),
        ("beat RL2 with RL2 without privileged critic on point-robot", ["train the same"]),
        ("beat S5 with lstm with s4d on point-robot", ["lstm and s4d exclude each other"]),
        ("beat LSTM with S5 by success rate on point-robot", ["success rate", "does not say when a goal is reached"]),
        ("beat LSTM with S5 with gama=0.9 on point-robot", ["'gama'", "Did you mean 'learner.gamma'"]),
        ("beat LSTM with S5 with gamma=1.9 on point-robot", ["gamma", "less than or equal to 1"]),
        ("beat GRU with LSTM with state_dim=4 on point-robot", ["lstm", "has no field state_dim"]),
        ("beat r-0042 on point-robot", ["r-0042 was trained on halfcheetah-vel", "r-0042 on halfcheetah-vel"]),
        ("beat LSTM with r-0042 on halfcheetah-vel", ["r-0042 is what it is", "beat r-0042 with lstm"]),
        ("compare r-0042 and halfcheetah-vel.lstm on halfcheetah-vel", ["both as they were recorded", "compare"]),
        ("beat LSTM after 40 shots on point-robot", ["return_after_40", "K from 1 to 19"]),
    ],
)  # fmt: skip
def test_sides_that_cannot_be_asked_about_are_answered_with_what_would_work(goal: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse_goal(goal, _runs)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "point-robo"}, "Did you mean 'point-robot'"),
        ({"challenger": {"name": "x", "kinds": ["s6"]}}, "'s6'"),
        ({"challenger": {"name": "x", "kinds": []}}, "no model"),
        ({"challenger": {"name": "x", "kinds": ["s5"], "learner": "rl2"}}, "Did you mean 'learners'"),
        ({"learner": "rl3"}, "Did you mean 'rl2'"),
        ({"metric": "return_after_99"}, "K from 1 to 19"),
        ({"metric": "success_after_1"}, "does not say when a goal is reached"),
    ],
)
def test_a_typed_question_is_checked_as_a_goal_is(change: dict[str, Any], words: str) -> None:
    content = parse_goal("beat LSTM with S5 on point-robot").model_dump(mode="json") | change
    with pytest.raises(InputError, match=words):
        parse_question(json.dumps(content), "question.json")


PASTED = "\ufeff\u201cBeat\u00a0LSTM with S5\u200b on halfcheetah\u2011vel\u201d\uff0e"


@pytest.mark.parametrize(
    "goal",
    [
        PASTED,
        "\u00abbeat LSTM with S5 on halfcheetah\u2010vel\u00bb",
        "beat LSTM\u3000with S5 on halfcheetah\u2212vel\u3002",
        "\u202abeat LSTM with \uff33\uff15 on halfcheetah-vel\u202c",
    ],
)
def test_a_goal_that_was_pasted_is_read_as_what_it_looks_like_and_kept_as_it_was(goal: str) -> None:
    question = parse_goal(goal)
    assert question.model_copy(update={"goal": ""}) == parse_goal("beat LSTM with S5 on halfcheetah-vel").model_copy(
        update={"goal": ""}
    )
    assert question.goal == goal


def test_several_sides_are_each_held_against_the_challenger_or_all_against_one_another() -> None:
    beat = parse_goal("beat LSTM and GRU on point-robot")
    assert [side.name for side in beat.sides] == ["ssm", "lstm", "gru"]
    assert beat.pairs == (("challenger", "baseline"), ("challenger", "rival-2"))
    compared = parse_goal("compare S5, LRU and GRU on point-robot")
    assert len(compared.pairs) == 3
    listed = parse_goal("compare S5 with LSTM and GRU on t-maze")
    assert [side.kinds for side in listed.sides] == [("s5",), ("lstm",), ("gru",)]
    joined = parse_goal("compare S5 with adapter:head and LSTM on halfcheetah-vel with a joint failure")
    assert [side.name for side in joined.sides] == ["s5 with adapter:head", "lstm"]
    every = parse_goal("compare all models on t-maze")
    assert [side.name for side in every.sides] == ["ssm", "lstm", "gru", "transformer", "mlp"]
    assert Question.model_validate(every.model_dump(mode="json")) == every


def test_several_tasks_are_a_question_each_at_a_share_of_the_error_rate() -> None:
    questions = parse_goals("beat LSTM and GRU on point-robot and t-maze")
    assert [(q.task, q.tasks_at_once, len(q.sides)) for q in questions] == [("point-robot", 2, 3), ("t-maze", 2, 3)]
    with pytest.raises(InputError, match="several tasks"):
        parse_goal("beat LSTM on point-robot and t-maze")


@pytest.mark.parametrize(
    ("goal", "parity"),
    [
        ("beat LSTM on point-robot at equal time", "time"),
        ("beat LSTM at equal training time on point-robot", "time"),
        ("compare S5 and GRU with the same wall time on point-robot", "time"),
        ("beat LSTM on point-robot at equal env steps", "steps"),
        ("beat LSTM on point-robot", None),
    ],
)
def test_a_goal_may_ask_for_one_parity_alone(goal: str, parity: str | None) -> None:
    assert parse_goal(goal).parity == parity


@pytest.mark.parametrize(
    ("goal", "metric", "parity", "aux"),
    [
        ("beat LSTM on point-robot in fewer steps to -12", "steps_to_-12_first_episode", "steps", None),
        ("beat LSTM on point-robot in fewer env steps to a return of -12.5", "steps_to_-12.5_first_episode", "steps", None),
        ("beat LSTM with GRU in less training time until -14 on point-robot", "steps_to_-14_first_episode", "time", None),
        ("beat RL2 with MAML on point-robot in fewer samples to -10 after 2 shots", "steps_to_-10_after_2", "steps", None),
        ("compare S5 and LSTM on point-robot in predicting the next observation", "prediction_error_first_episode", None, "next_observation"),
        ("beat LSTM on point-robot by the prediction error of the reward after 1 episode", "prediction_error_after_1", None, "reward"),
        ("beat LSTM with S5 with learner.aux=task on point-robot by prediction error", "prediction_error_first_episode", None, "task"),
    ],
)  # fmt: skip
def test_env_steps_to_a_return_and_prediction_errors_are_scores(
    goal: str, metric: str, parity: str | None, aux: str | None
) -> None:
    question = parse_goal(goal)
    assert (question.metric, question.parity) == (metric, parity)
    assert [side.fixed.get("learner.aux") for side in question.sides] == [aux, aux]
    assert parse_question(question.model_dump_json(), "again") == question


# Mid-episode changes and test-time adaptation --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("goal", "changes", "challenger", "baseline"),
    [
        ("does adapting the head at test time beat no adaptation for S5 on halfcheetah-vel with a joint failure", {"failure_step": 100}, {"adaptation.adapts": "head"}, {"adaptation.adapts": "nothing"}),
        ("beat S5 without adaptation on point-robot with S5 with adapter:head with a switch of target", {"switch_step": 10}, {"adaptation.adapts": "head"}, {"adaptation.adapts": "nothing"}),
        ("S5 with an adapter of all weights vs S5 on bandit with a target switch at step 7", {"switch_step": 7}, {"adaptation.adapts": "all"}, {"adaptation.adapts": "nothing"}),
        ("beat S5 with S5 with low-rank adaptation.every=3 on point-robot", {}, None, None),
        ("S5 + adapter: low rank + adaptation.learning_rate=0.1 vs S5 on point-robot", {}, {"adaptation.adapts": "low-rank", "adaptation.learning_rate": 0.1}, {"adaptation.adapts": "nothing", "adaptation.learning_rate": 0.003}),
        ("does S5 trained with failures beat S5 on halfcheetah-vel with a joint failure at step 60", {"failure_step": 60}, {"changes.in_training": True}, {"changes.in_training": False}),
        ("beat LSTM with S5 on halfcheetah-vel with a joint failure and with a switch of target", {"failure_step": 100, "switch_step": 100}, {}, {}),
    ],
)  # fmt: skip
def test_changes_hold_for_both_sides_and_an_adapter_for_the_one_that_names_it(
    goal: str, changes: dict[str, int], challenger: dict[str, Any] | None, baseline: dict[str, Any] | None
) -> None:
    if challenger is None:
        with pytest.raises(InputError):
            parse_goal(goal)
        return
    question = parse_goal(goal)
    assert question.changes == EnvOptions.model_validate(changes)
    assert (question.challenger.fixed, question.baseline.fixed) == (challenger, baseline)
    assert (question.challenger.kinds, question.baseline.kinds) == (("s5",), ("s5",) if challenger else ("lstm",))
    assert Question.model_validate(question.model_dump(mode="json")) == question
    assert parse_question(question.model_dump_json(), "it") == question
    assert ("In every episode" in question.sentence()) == bool(changes)
    for side in question.sides:
        spec = space_of(question, side).spec({}, env_steps=1, seed=0, parameters=None)
        assert {name: getattr(spec.changes, name) for name in EnvOptions.model_fields} == question.changes.model_dump()
        assert spec.adaptation.adapts == side.fixed.get("adaptation.adapts", "nothing")
        assert spec.changes.in_training == side.fixed.get("changes.in_training", False)


def test_a_recorded_run_is_asked_about_in_the_worlds_that_it_was_evaluated_in() -> None:
    recorded = set_fields(
        preset("halfcheetah-vel", "gru", "rl2"), {"changes.failure_step": "50", "adaptation.adapts": "head"}
    )

    def runs(name: str) -> Recorded:
        return Recorded(run=name, spec=recorded.model_dump(mode="json"))

    question = parse_goal("beat r-0042 on halfcheetah-vel", runs)
    assert question.changes == EnvOptions(failure_step=50)
    specs = [space_of(question, side).spec({}, env_steps=1, seed=0, parameters=None) for side in question.sides]
    assert [spec.changes.failure_step for spec in specs] == [50, 50]
    assert specs[1].variant_hash == recorded.variant_hash
    elsewhere = parse_goal("beat r-0042 on halfcheetah-vel with a joint failure at step 70", runs)
    assert (
        space_of(elsewhere, elsewhere.baseline).spec({}, env_steps=1, seed=0, parameters=None).changes.failure_step
        == 70
    )


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        ("beat LSTM on t-maze with a joint failure", "t-maze has no mid-episode changes; locomotion families, point-robot and bandit do"),
        ("beat LSTM on point-robot with a joint failure", "point-robot has no motors that fail"),
        ("beat LSTM on halfcheetah-mass with a switch of target", "changes the model, not the goal"),
        ("beat LSTM on point-robot with a switch of target at step 20", "below the horizon of point-robot, 20"),
        ("beat S5 with S5 trained with failures on point-robot", 'nothing changes in the worlds of this goal: add "with a joint failure"'),
        ("beat S5 with S5 with maml-ppo with adapter:head on point-robot", "maml-ppo: it adapts by gradient steps of its own"),
        ("does S5 without adaptation beat S5 on point-robot", "share s5"),
        ("beat LSTM with S5 with failure_step=10 on halfcheetah-vel", "'failure_step'"),
    ],
)  # fmt: skip
def test_changes_and_adapters_that_cannot_be_are_answered_with_what_would_work(goal: str, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        parse_goal(goal)


def test_a_question_without_changes_is_recorded_as_before_there_were_any() -> None:
    content = parse_goal("beat LSTM with S5 on point-robot").model_dump(mode="json")
    assert "changes" not in content
    before = Question.model_validate(content)
    assert before.changes == EnvOptions()
    old, new, present = ({p.name for p in space_of(before, before.challenger, marks).parameters} for marks in (1, 2, 3))
    assert present - new == {"model.gating", "model.integrators", "model.selective"}
    assert not {name for name in new if name.startswith(("adaptation.", "changes."))}
    assert new - old == {"learner.aux", "learner.aux_weight"}
