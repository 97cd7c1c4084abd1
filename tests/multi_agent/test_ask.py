"""`ask`: questions about a recorded campaign, answered by code or by a chat model that may only select."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_on_script import lab_on_script, run_names, search_and_confirm
from model_server import Brain, ModelServer, call, fail, results_of, say

import main
from core.errors import InputError
from experiments.ledger import Ledger
from experiments.reading.answers import CAN, answer, known_ids
from experiments.runs.executor import Ended, Job
from multi_agent.ask import ask
from multi_agent.llm.choose import choose_llm


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """A campaign whose confirmation is measured and not judged; some search runs diverged."""
    folder = tmp_path_factory.mktemp("recorded")
    lab = lab_on_script(folder)
    default_rate = lab.suggest("challenger").values["learner.learning_rate"]

    def diverges(job: Job) -> Ended | None:
        """Every challenger of the search but the default one."""
        learner: Any = job.spec.learner
        if job.pool != "search" or job.spec.policy.model.kind == "lstm" or learner.learning_rate == default_rate:
            return None
        return Ended("diverged", "the loss is not finite", job.spec.env_steps, 1.0)

    lab.executor.end = diverges  # type: ignore[attr-defined]
    search_and_confirm(lab)
    lab.ledger.close()
    ledger = Ledger(f"sqlite:///{folder / 'ledger.db'}", read_only=True)
    yield ledger
    ledger.close()


def _ids(ledger: Ledger, **wanted: Any) -> list[str]:
    return run_names(ledger, 1, **wanted)


def test_why_a_run_ended_as_it_did_is_answered_with_its_cause_and_rows(recorded: Ledger) -> None:
    name = _ids(recorded, status="diverged")[0]
    found = answer(recorded, 1, f"why did {name} diverge?")
    assert f"{name} (search, challenger" in found.text
    assert "diverged: the loss is not finite" in found.text
    assert "training return ended with" in found.text
    assert name in found.rows
    assert any(row.startswith("p-") for row in found.rows)
    assert all(statement.startswith("select") for statement in found.statements)


def test_the_other_questions_are_answered_from_rows(recorded: Ledger) -> None:
    first, second = _ids(recorded, arm="baseline", purpose="search")[:2]
    for question, words in {
        "what is the best configuration?": ["Best in the search", "noise floor", "no score of it is shown before"],
        f"who proposed {second} and why?": ["proposed by optimizer", "Proposals: p-"],
        f"what changed between {first} and {second}?": ["learner.", " from ", "score went from"],
        f"what changed in {second}?": ["Between"],
        "how much is spent?": ["env steps in", "runs"],
        f"why is {second} so slow?": ["env steps/s; the median of"],
        "what failed?": ["diverged: the loss is not finite"],
        "what happens now?": ["at the stage confirmation"],
        "is it confirmed?": ["no verdict yet"],
    }.items():
        found = answer(recorded, 1, question)
        for word in words:
            assert word in found.text, (question, found.text)
        assert known_ids(recorded, found.text)[1] == []


def test_what_is_not_understood_is_said_with_what_can_be_asked(recorded: Ledger) -> None:
    found = answer(recorded, 1, "will it rain?")
    assert "not understood" in found.text
    assert all(line in found.text for line in CAN)
    assert found.rows == ()


def test_no_answer_shows_a_confirmation_score_before_the_verdict(recorded: Ledger) -> None:
    hidden = [f"{r.score:.4g}" for r in recorded.runs(1, purpose="confirmation") if r.score is not None]
    assert hidden
    runs = _ids(recorded, purpose="confirmation")
    for question in (
        f"why is {runs[0]} slow?",
        f"what changed between {runs[0]} and {runs[1]}?",
        "what is best?",
        "what is the verdict?",
    ):
        text = answer(recorded, 1, question).text
        assert not any(score in text for score in hidden)


def test_an_id_that_is_not_there_and_an_empty_question_are_input_errors(recorded: Ledger, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="r-9999"):
        answer(recorded, 1, "why was r-9999 pruned?")
    for question in ("", "x" * 5_000):
        with pytest.raises(InputError, match="from 1 to"):
            ask(recorded, 1, question, choose_llm("offline"), data_dir=tmp_path)


def test_the_name_of_an_environment_is_no_verdict(recorded: Ledger, tmp_path: Path) -> None:
    for question in ("what is best on CartPole-v1?", "what is best, as on halfcheetah-v5?"):
        assert known_ids(recorded, question) == ([], [])
        found = ask(recorded, 1, question, choose_llm("offline"), data_dir=tmp_path)
        assert found.text.startswith("Best in the search")
    assert known_ids(recorded, "see r-0001, R1 and v-0001") == (["r-0001"], ["v-0001"])
    with pytest.raises(InputError, match="the ledger has no v-0001"):
        ask(recorded, 1, "what about v1?", choose_llm("offline"), data_dir=tmp_path)


def test_the_command_prints_words_and_json(recorded: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    assert recorded.path is not None
    place = ["--data-dir", str(recorded.path.parent), "--llm", "offline"]
    assert main.main(["ask", "c-0001", "what failed?", *place]) == 0
    assert "answered by code" in capsys.readouterr().out
    assert main.main(["ask", "@last", "what failed?", "--json", *place]) == 0
    assert json.loads(capsys.readouterr().out)["rows"]
    assert main.main(["ask", "c-0001", "why was r-0999 pruned?", *place]) == 2
    assert "r-0999" in capsys.readouterr().err


# ---- with a chat model ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """A campaign with its verdict."""
    folder = tmp_path_factory.mktemp("judged")
    lab = lab_on_script(folder)
    search_and_confirm(lab)
    lab.judge()
    lab.ledger.close()
    ledger = Ledger(f"sqlite:///{folder / 'ledger.db'}", read_only=True)
    yield ledger
    ledger.close()


def _asked(ledger: Ledger, brain: Brain, folder: Path, **options: Any) -> tuple[Any, list[dict[str, Any]]]:
    with ModelServer(brain).running() as server:
        found = ask(ledger, 1, "how many search runs are there?", server.choice(), data_dir=folder, **options)
    return found, server.requests


def _counts(request: dict[str, Any]) -> Any:
    if not results_of(request):
        statement = "select id, (select count(*) from runs where purpose = 'search') as n from runs order by id limit 1"
        return call(("read_ledger", {"statement": statement}))
    number = json.loads(results_of(request)[0])["rows"][0][1]
    return say(f"There are {number} search runs, such as r-0001. \x1b[31m[bold]")


def test_a_model_answers_from_its_own_selects_and_cites_rows(judged: Ledger, tmp_path: Path) -> None:
    found, _ = _asked(judged, _counts, tmp_path)
    assert found.by == "openai:scripted"
    assert found.text == f"There are {len(_ids(judged, purpose='search'))} search runs, such as r-0001. [bold]"
    assert found.rows == ("r-0001",)
    assert len(found.statements) == 1


BAD: dict[str, tuple[Brain, str]] = {
    "cites nothing": (lambda request: say("All is well."), "cites no row"),
    "cites a row that is not there": (lambda request: say("See r-4711."), "r-4711, which the ledger does not have"),
    "cites only the name of an environment": (lambda request: say("It is CartPole-v1."), "cites no row"),
    "invents a number": (lambda request: say("r-0001 won by 47.5 %."), "47.5 stands in nothing"),
    "never ends": (lambda request: call(("read_ledger", {"statement": "select 1 as n"})), "not done after"),
    "an unknown tool": (lambda request: call(("drop_tables", {})), "not done after"),
    "malformed arguments": (lambda request: call(("read_ledger", '{"statement": ')), "not done after"),
    "http 500": (lambda request: fail(500, "on fire"), "on fire"),
}


@pytest.mark.parametrize("fault", BAD)
def test_code_answers_where_the_model_cannot_be_used(fault: str, judged: Ledger, tmp_path: Path) -> None:
    brain, why = BAD[fault]
    found, requests = _asked(judged, brain, tmp_path)
    assert why in found.by
    assert "not understood" in found.text
    assert len(requests) <= 8


@pytest.mark.parametrize(
    "statement",
    ["delete from runs", "select 1; drop table runs", "attach 'x.db' as x", "pragma writable_schema = 1", "update runs set score = 1"],
)  # fmt: skip
def test_the_model_cannot_write(statement: str, judged: Ledger, tmp_path: Path) -> None:
    before = [(r.id, r.score) for r in judged.runs(1)]

    def brain(request: dict[str, Any]) -> Any:
        return say(results_of(request)[0]) if results_of(request) else call(("read_ledger", {"statement": statement}))

    _, requests = _asked(judged, brain, tmp_path)
    assert "only reads" in results_of(requests[-1])[0]
    assert [(r.id, r.score) for r in judged.runs(1)] == before


def test_a_cap_is_held_before_the_call(judged: Ledger, tmp_path: Path) -> None:
    found, requests = _asked(judged, _counts, tmp_path, max_tokens=5_000)
    assert requests == []
    assert "--max-tokens" in found.by


def test_no_model_selects_while_a_confirmation_is_open(recorded: Ledger, tmp_path: Path) -> None:
    found, requests = _asked(recorded, _counts, tmp_path)
    assert requests == []
    assert "not judged yet" in found.by
