"""Goals in words become the right typed question, or an error that helps."""

from __future__ import annotations

import pytest

from core.errors import InputError
from core.sequence_model import MODELS
from env_runner.task_distributions import FAMILIES
from experiments.campaign.question import Question, parse_goal

SSM = ("s5", "lru", "s4d")


@pytest.mark.parametrize(
    ("goal", "kind", "challenger", "baseline", "task"),
    [
        ("beat LSTM on halfcheetah-vel", "beat", SSM, ("lstm",), "halfcheetah-vel"),
        ("Can an SSM outperform the LSTM on point-robot?", "beat", SSM, ("lstm",), "point-robot"),
        ("show that a state space model beats LSTM on the halfcheetah-vel task", "beat", SSM, ("lstm",), "halfcheetah-vel"),
        ("please make LRU do better than the LSTM policy on point-robot.", "beat", ("lru",), ("lstm",), "point-robot"),
        ("beat lstm with s4d on ant-dir", "beat", ("s4d",), ("lstm",), "ant-dir"),
        ("beat s5 on point-robot", "beat", ("lru", "s4d"), ("s5",), "point-robot"),
        ("compare S5 and LSTM on halfcheetah-dir", "compare", ("s5",), ("lstm",), "halfcheetah-dir"),
        ("S5 vs. LRU on point-robot", "compare", ("s5",), ("lru",), "point-robot"),
        ("find the best SSM on halfcheetah-vel", "best", SSM, ("s5",), "halfcheetah-vel"),
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
        assert question.model_copy(update={"learner": "rl2", "goal": plain.goal}) == plain
        assert Question.model_validate(question.model_dump(mode="json")) == question
        assert question.sentence() == f"{plain.sentence()} Trained by maml-ppo."
        assert question.names == (*plain.names[:-1], "maml-ppo")


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        ("beat LTSM on halfcheetah-vel", ["'ltsm'", "Did you mean 'lstm'", "Allowed:"]),
        ("beat LSTM on halfcheeta-vel", ["'halfcheeta-vel'", "Did you mean 'halfcheetah-vel'", "Allowed:"]),
        ("beat LSTM on point-robot, trained by maml", ["unknown learner 'maml'", "Did you mean 'maml-ppo'"]),
        ("make it good", ["what to do", "a model", "the task", "Examples:"]),
        ("beat lstm", ["the task", "Examples:"]),
        ("improve lru on point-robot", ["by how many percent", "Examples:"]),
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
