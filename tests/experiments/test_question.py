"""Goals in words become the right typed question, or an error that helps."""

from __future__ import annotations

import pytest

from core.errors import InputError
from core.sequence_model import MODELS
from env_runner.task_distributions import FAMILIES
from experiments.campaign.question import parse_goal

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


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        ("beat LTSM on halfcheetah-vel", ["'ltsm'", "Did you mean 'lstm'", "Allowed:"]),
        ("beat LSTM on halfcheeta-vel", ["'halfcheeta-vel'", "Did you mean 'halfcheetah-vel'", "Allowed:"]),
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
