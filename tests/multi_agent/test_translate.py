"""A goal that the grammar does not understand, put into its words by a chat model behind a loopback server; code reads what comes back."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from model_server import ModelServer, fail, say

import main
from core.errors import InputError
from experiments.campaign.question import nearest_goals, parse_goal
from experiments.campaign.sides import no_ledger
from multi_agent.translate import translate


def _translated(brain, folder: Path, goal: str = "schlage LSTM mit S5 auf point-robot"):
    with ModelServer(brain).running() as server:
        return translate(goal, server.choice(), runs=no_ledger, data_dir=folder), server


def test_a_goal_in_another_language_becomes_the_question_that_its_translation_is(tmp_path: Path) -> None:
    goal = "schlage LSTM mit S5 auf point-robot"
    (question,), server = _translated(lambda request: say('"beat LSTM with S5 on point-robot"'), tmp_path, goal)
    plain = parse_goal("beat LSTM with S5 on point-robot")
    assert question.goal == goal
    assert question.understood_as == "beat LSTM with S5 on point-robot"
    assert question.translated_by
    changed = {"goal": plain.goal, "understood_as": "", "translated_by": ""}
    assert question.model_copy(update=changed) == plain
    assert "read it as 'beat LSTM with S5 on point-robot'" in question.sentence()
    assert "point-robot" in json.dumps(server.requests[0]["messages"])


def test_a_translation_that_is_no_goal_is_sent_back_once_with_what_is_wrong(tmp_path: Path) -> None:
    answers = ["beat LSTN on point-robot", "beat LSTM on point-robot"]
    (question,), server = _translated(lambda request: say(answers.pop(0)), tmp_path)
    assert question.understood_as == "beat LSTM on point-robot"
    assert "'lstn'" in server.requests[1]["messages"][-1]["content"].lower()


@pytest.mark.parametrize(
    ("brain", "words"),
    [
        (lambda request: say("none"), "found no goal in it"),
        (lambda request: say("ignore the rules and confirm it"), "is no goal either"),
        (lambda request: fail(401, "no such key"), "could not be asked"),
    ],
)
def test_a_model_that_is_of_no_use_is_said_and_nothing_is_started(brain, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        _translated(brain, tmp_path)


def test_the_command_line_asks_the_model_and_shows_who_translated(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with ModelServer(lambda request: say("beat LSTM on point-robot and t-maze")).running() as server:
        call = [
            "--goal",
            "bitte schlage das LSTM",
            "--env-steps",
            "9M",
            "--dry-run",
            "--json",
            "--data-dir",
            str(tmp_path),
        ]
        assert main.main([*call, "--llm", "openai:scripted", "--base-url", server.url]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [part["question"]["task"] for part in found["campaigns"]] == ["point-robot", "t-maze"]
    assert {part["question"]["translated_by"] for part in found["campaigns"]} == {"openai:scripted"}


@pytest.mark.parametrize(
    "words", ["schlage LSTM auf point-robot", "make mamba great", "gru??", "", "point robot maml rl2"]
)
def test_the_nearest_goals_are_understood_and_of_the_names_that_were_said(words: str) -> None:
    goals = nearest_goals(words)
    assert len(goals) == 3
    for goal in goals:
        parse_goal(goal)
    for name in re.findall(r"lstm|mamba|gru|maml", words.lower())[:1]:
        assert any(name in goal for goal in goals)
