"""What a model may cost in time, tokens and dollars: held whatever it does and however it counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from crew_on_script import crew_lab, quiet, run_crew
from model_server import DRIP, HANG, ModelServer, Reply, say

from experiments.campaign.plan import Budget
from experiments.ledger import Ledger
from experiments.runs.paths import Paths
from multi_agent.ask import ask
from multi_agent.llm import calls
from multi_agent.llm.calls import MODEL_SHARE, estimated_tokens


@pytest.mark.parametrize("never", [HANG, DRIP], ids=["hangs", "drips"])
def test_a_model_that_never_ends_its_answer_costs_its_own_time_and_no_run(never: Reply, tmp_path: Path) -> None:
    wall_s, rounds = 40.0, 4
    lab = crew_lab(tmp_path, rounds, budget=Budget(wall_s=wall_s))
    with ModelServer(lambda request: never).running() as server:
        events = run_crew(lab, tmp_path, server.choice())
        waited = sum(e.payload["latency_s"] for e in events if e.kind == "llm_call")
        asked = sum(e.kind == "llm_call" for e in events)
    assert lab.stage == "done"
    assert lab.round == rounds
    assert {run.env_steps for run in lab.ledger.runs(lab.number, purpose="search")} == {lab.plan.env_steps_search}
    assert not any("The search ends after" in e.text for e in events)
    assert 1 <= asked <= 3
    assert waited < MODEL_SHARE * wall_s + asked  # and none of it is on the clock that the search is planned by
    assert any("no whole answer within 1 s" in e.text for e in events)
    assert any("not asked again" in e.text for e in events)


def test_the_models_share_of_the_time_is_over_for_all_sittings(tmp_path: Path) -> None:
    lab = crew_lab(tmp_path, 1, budget=Budget(wall_s=40.0))
    call = {"input_tokens": 1, "output_tokens": 1, "usd": None, "latency_s": 3.5}
    lab.record_event("llm_call", "Coordinator", call)
    with ModelServer(quiet).running() as server:
        events = run_crew(lab, tmp_path, server.choice())
    assert server.requests == []
    assert any("the 4 s that the budget has for the chat model are over" in e.text for e in events)
    assert lab.stage == "done"


def test_an_answer_to_a_question_comes_in_time_from_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = crew_lab(tmp_path, 1)
    run_crew(lab, tmp_path)
    monkeypatch.setattr("multi_agent.ask.CALL_S", 0.2)
    with ModelServer(lambda request: DRIP).running() as server:
        reading = Ledger(Paths.of(tmp_path).ledger_url, read_only=True)
        answer = ask(reading, lab.number, "what do you recommend?", server.choice(), data_dir=tmp_path)
    assert answer.by.startswith("code, because")
    assert "no whole answer within" in answer.by


@pytest.mark.parametrize(
    "usage",
    [None, {"prompt_tokens": -5_000, "completion_tokens": -5, "total_tokens": -5_005}, {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}],
    ids=["none", "negative", "zero", "too few"],
)  # fmt: skip
def test_tokens_are_at_least_what_the_text_makes(usage: dict[str, int] | None, tmp_path: Path) -> None:
    lab = crew_lab(tmp_path, 1)
    with ModelServer(lambda request: say("word " * 300), lambda request, message: usage).running() as server:
        events = run_crew(lab, tmp_path, server.choice())
    counted = [e.payload for e in events if e.kind == "llm_call"]
    assert len(counted) == len(server.requests) > 0
    for call, request in zip(counted, server.requests, strict=True):
        assert call["input_tokens"] >= len(json.dumps([request["messages"], request.get("tools")])) // 6
        assert call["output_tokens"] >= 300
    so_far = [call["tokens_so_far"] for call in counted]
    assert so_far == sorted(so_far)


def test_an_estimate_counts_every_character() -> None:
    assert estimated_tokens("abc" * 100) == 101
    assert estimated_tokens({"a": "b" * 300}, "c" * 300) > 200


def test_within_raises_what_went_wrong() -> None:
    def fails(sent: Any) -> None:
        raise ValueError(f"no {sent}")

    with pytest.raises(calls.NoAnswerError, match="ValueError: no x"):
        calls.within(5, fails, "x")
