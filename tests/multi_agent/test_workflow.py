"""The crew at work on a lab in memory: with the offline researcher, and with faulty models behind a loopback server."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_lab import FakeLab
from model_server import Brain, ModelServer, Reply, call, fail, results_of, say, turn_of

from core.errors import InputError
from experiments.campaign.lab import Paused
from multi_agent.llm.choose import LLMChoice, choose_llm
from multi_agent.tools import environment_tool
from multi_agent.workflows.research_workflow import CrewEvent, run_research


@pytest.fixture(autouse=True)
def _short_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment_tool, "PROBE_S", 0.01)


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    real, foreign = socket.socket.connect, []

    def connect(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            foreign.append(address)
            raise OSError(f"no connection to {address}")
        return real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    yield
    assert foreign == []


def run(lab: FakeLab, choice: LLMChoice, folder: Path, **options: Any) -> list[CrewEvent]:
    events: list[CrewEvent] = []
    run_research(lab, choice, data_dir=folder, on_event=events.append, **options)  # type: ignore[arg-type]
    return events


def run_with(brain: Brain, folder: Path, *, rounds: int = 4, chat: dict[str, Any] | None = None, **options: Any):
    """(lab, events, requests) of a campaign whose model is `brain`; it must end in a verdict."""
    lab = FakeLab(rounds=rounds)
    with ModelServer(brain).running() as server:
        events = run(lab, server.choice(**(chat or {})), folder, **options)
    assert lab.stage == "done"
    assert lab.round == rounds == lab.launches
    assert lab.finished is not None
    return lab, events, server.requests


# ---- the offline researcher -----------------------------------------------------------------


def test_offline_researcher_brings_a_campaign_to_its_verdict(tmp_path: Path) -> None:
    lab = FakeLab(rounds=3)
    events = run(lab, choose_llm("offline"), tmp_path)
    assert lab.stages == ["plan", "baseline", "search", "selection", "claim", "confirmation", "verdict", "done"]
    assert lab.launches == 3
    assert lab.finished is not None
    narrative, narrator = lab.finished
    assert narrator == "Coordinator (offline)"
    assert "inconclusive" in narrative
    spoke = {e.actor for e in events if e.kind == "agent"}
    assert spoke == {"Coordinator", "State-Modeling", "Meta-Learning", "Adaptation", "Environment"}
    assert not [e for e in events if e.payload.get("failed")]
    assert events[0].text.endswith("model: offline.")


def test_offline_researcher_takes_every_value_from_the_optimizer(tmp_path: Path) -> None:
    lab = FakeLab(rounds=3)
    run(lab, choose_llm("offline"), tmp_path)
    assert {p.source for p in lab.proposals.values()} == {"optimizer"}
    for (number, arm, role), proposal in lab.proposals.items():
        lab.round = number
        slice_ = {p.name for p in lab.describe_search_space(arm, role).parameters}
        assert proposal.values == {k: v for k, v in lab.suggest(arm).values.items() if k in slice_}
    assert len(lab.proposals) == 3 * 5  # three slices of the challenger, two of the baseline, in each round
    assert all(p.evidence for (number, _, _), p in lab.proposals.items() if number)


def test_every_event_shown_is_in_the_ledger_first(tmp_path: Path) -> None:
    lab = FakeLab(rounds=2)
    events = run(lab, choose_llm("offline"), tmp_path)
    assert [(e.kind, e.actor, e.payload) for e in lab.recorded] == [(e.kind, e.actor, e.payload) for e in events]
    calls = [e for e in events if e.kind == "llm_call"]
    assert all(len(e.payload["prompt_hash"]) == 16 and e.payload["prompt_file_hash"] for e in calls)
    assert {e.kind for e in events} == {"stage", "agent", "tool_call", "tool_result", "message", "llm_call"}


def test_two_offline_campaigns_propose_the_same(tmp_path: Path) -> None:
    first, second = FakeLab(rounds=2), FakeLab(rounds=2)
    run(first, choose_llm("offline"), tmp_path / "a")
    run(second, choose_llm("offline"), tmp_path / "b")
    assert first.proposals == second.proposals
    assert first.finished == second.finished


def test_an_arm_that_is_not_tuned_is_left_alone(tmp_path: Path) -> None:
    lab = FakeLab(rounds=2, tuned=False)
    run(lab, choose_llm("offline"), tmp_path)
    assert {arm for _, arm, _ in lab.proposals} == {"challenger"}


def test_the_search_ends_early_when_time_is_short(tmp_path: Path) -> None:
    lab = FakeLab(rounds=5)
    lab.short_after = 2
    run(lab, choose_llm("offline"), tmp_path)
    assert lab.launches == 2
    assert lab.stage == "done"


# ---- pausing --------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [Paused, KeyboardInterrupt])
def test_a_stop_inside_a_tool_passes_through_and_the_campaign_goes_on(
    tmp_path: Path, stop: type[BaseException]
) -> None:
    lab = FakeLab(rounds=3)

    def interrupt() -> None:
        if lab.round == 1:
            lab.on_launch = None
            raise stop

    lab.on_launch = interrupt
    with pytest.raises(stop):
        run(lab, choose_llm("offline"), tmp_path)
    assert (lab.stage, lab.round) == ("search", 1)
    run(lab, choose_llm("offline"), tmp_path)
    assert (lab.stage, lab.launches) == ("done", 3)


def test_a_stop_while_the_model_thinks_is_prompt(tmp_path: Path) -> None:
    lab = FakeLab(rounds=2)
    asked = threading.Event()

    def brain(request: dict[str, Any]) -> Reply:
        asked.set()
        time.sleep(5)
        return say("too late")

    def stop() -> None:
        asked.wait(20)
        lab.stop_event.set()

    threading.Thread(target=stop, daemon=True).start()
    with ModelServer(brain).running() as server, pytest.raises(Paused):
        run(lab, server.choice(), tmp_path)
    assert len(server.requests) == 1


# ---- a language model that behaves ----------------------------------------------------------


def good_brain(request: dict[str, Any]) -> Reply:
    """Proposes a learning rate of its own where it may, in parallel calls; launches; reports."""
    turn, results = turn_of(request), results_of(request)
    if turn["kind"] == "propose" and not results:
        looks = [(name, {"arm": arm}) for name in ("describe_search_space", "suggest") for arm in turn["arms"]]
        return call(*looks, ("ledger_query", {"view": "top", "arm": None, "limit": 3}))
    if turn["kind"] == "propose" and len(results) == 5 and turn["role"] == "meta-learning":
        best = json.loads(results[-1])["rows"][0][0]
        values = [{"name": "learner.learning_rate", "value": 0.0042}]
        text = {"reason": f"[bold]{best}[/bold] rose late", "predicted_effect": "faster", "evidence": [best]}
        return call(*(("propose", {"arm": arm, "values": values, **text}) for arm in turn["arms"]))
    if turn["kind"] == "launch" and not results:
        return call(("launch", {}))
    if turn["kind"] == "report":
        return say("The verdict is inconclusive: the effect of 0.25 is small.")
    return say("Done.")


def test_a_model_over_http_proposes_launches_and_narrates(tmp_path: Path) -> None:
    lab, events, requests = run_with(good_brain, tmp_path, rounds=4)
    own = [p for p in lab.proposals.values() if p.source == "agent"]
    assert {(p.round, p.arm, p.role) for p in own} == {(1, arm, "meta-learning") for arm in ("challenger", "baseline")}
    assert all(p.values == {"learner.learning_rate": 0.0042} for p in own)
    assert lab.finished == (
        "The verdict is inconclusive: the effect of 0.25 is small.",
        "Coordinator (openai:scripted)",
    )
    assert not any("Code launches" in e.text for e in events)
    assert all("strict" not in tool["function"] for r in requests for tool in r["tools"])
    tokens = sum(e.payload["input_tokens"] + e.payload["output_tokens"] for e in events if e.kind == "llm_call")
    assert tokens == 120 * len(requests)


def test_agents_of_a_language_model_speak_only_in_their_share_of_rounds(tmp_path: Path) -> None:
    _, events, _ = run_with(good_brain, tmp_path, rounds=4)
    modes = [e.payload["mode"] for e in events if "mode" in e.payload]
    assert modes == ["default", "agents", "optimizer", "optimizer"]
    assert sum(e.kind == "agent" and e.actor == "Meta-Learning" for e in events) == 1


def test_parallel_calls_run_in_their_order(tmp_path: Path) -> None:
    _, events, _ = run_with(good_brain, tmp_path)
    mine = [e for e in events if e.actor == "Meta-Learning" and e.kind in ("tool_call", "tool_result")]
    assert [e.kind for e in mine] == ["tool_call", "tool_result"] * (len(mine) // 2)
    arms = [e.payload["arguments"]["arm"] for e in mine if e.kind == "tool_call"]
    assert arms == ["challenger", "baseline", "challenger", "baseline", None, "challenger", "baseline"]


def test_streaming_models_work(tmp_path: Path) -> None:
    lab, _, requests = run_with(good_brain, tmp_path, chat={"streaming": True})
    assert all(r["stream"] for r in requests)
    assert any(p.source == "agent" for p in lab.proposals.values())


def test_text_of_a_model_is_handed_on_as_it_is(tmp_path: Path) -> None:
    lab, _, _ = run_with(good_brain, tmp_path)
    assert any(p.reason.startswith("[bold]") for p in lab.proposals.values())


def test_an_instruction_reaches_every_agent_and_opens_a_round(tmp_path: Path) -> None:
    lab = FakeLab(rounds=4)

    def instruct() -> None:
        if lab.round == 2:
            lab.record_event("instruct", "human", {"text": "try smaller state sizes"})

    lab.on_launch = instruct
    with ModelServer(good_brain).running() as server:
        events = run(lab, server.choice(), tmp_path)
    assert [e.payload["mode"] for e in events if "mode" in e.payload] == ["default", "agents", "optimizer", "agents"]
    told = [r for r in server.requests if "human: try smaller state sizes" in json.dumps(r)]
    assert {turn_of(r)["kind"] for r in told} == {"propose", "launch"}
    assert len([e for e in events if e.actor == "human"]) == 1


def test_an_instruction_given_during_a_pause_opens_the_next_round(tmp_path: Path) -> None:
    lab = FakeLab(rounds=4)

    def stop() -> None:
        if lab.round == 2:
            lab.on_launch = None
            raise Paused

    lab.on_launch = stop
    with ModelServer(good_brain).running() as server:
        with pytest.raises(Paused):
            run(lab, server.choice(), tmp_path)
        lab.record_event("instruct", "human", {"text": "try smaller state sizes"})
        events = run(lab, server.choice(), tmp_path)
    assert [e.payload["mode"] for e in events if "mode" in e.payload] == ["agents", "optimizer"]
    assert len([e for e in lab.recorded if e.payload.get("instruction")]) == 1


# ---- language models that do not behave ------------------------------------------------------


def constantly(reply: Reply) -> Brain:
    return lambda request: reply


FAULTS: dict[str, Brain] = {
    "prose instead of calls": constantly(say("I would suggest a learning rate of 0.5 and claim a return of +9000.")),
    "empty answers": constantly(say("")),
    "malformed arguments": constantly(call(("suggest", '{"arm": "chal'))),
    "arguments that are no object": constantly(call(("suggest", "[1, 2]"))),
    "wrong arguments": constantly(call(("ledger_query", {"view": "everything", "score": 1.0}))),
    "oversized arguments": constantly(call(("write_note", {"text": "x" * 300_000, "target": None}))),
    "an unknown tool": constantly(call(("judge", {"outcome": "confirmed"}))),
    "an endless loop": lambda request: call(("ledger_query", {"view": "top", "arm": None, "limit": 1 + len(results_of(request)) % 9})),
    "http 500": constantly(fail(500, "server on fire")),
    "http 429": constantly(fail(429, "Rate limit reached: too many requests")),
    "a refused key": constantly(fail(401, "Incorrect API key provided: sk-very-secret-key")),
    "a full context": constantly(fail(400, "This model's maximum context length is 4096 tokens")),
    "a server without tools": lambda request: fail(400, "this model does not support tools") if request.get("tools") else say("Final Answer: fine"),
    "markup and control characters": constantly(say("[red]x[/red] \x00 \x1b[31m {$turn} " + "\u202e" * 5)),
    "a lone surrogate": constantly(call(("write_note", '{"text": "\\ud800 oops", "target": null}'))),
    "infeasible proposals": lambda request: call(
        ("propose", {"arm": "challenger", "values": [{"name": "model.num_layers", "value": 10**9}], "reason": "more",
                     "predicted_effect": "more", "evidence": []})),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_campaign_reaches_its_verdict_whatever_the_model_does(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-key")
    rounds = 1 if fault in ("malformed arguments", "an endless loop") else 3  # they use up every call of a turn
    lab, events, requests = run_with(FAULTS[fault], tmp_path, rounds=rounds)
    assert all(p.source == "optimizer" for p in lab.proposals.values())
    assert len(requests) <= 200
    assert lab.finished is not None
    assert lab.finished[1] == "code"  # none of these wrote a narrative that rests on rows
    assert "sk-very-secret-key" not in json.dumps([e.payload for e in events])
    assert {e.kind for e in events} <= {"stage", "agent", "tool_call", "tool_result", "message", "llm_call"}


def test_a_dead_model_is_not_asked_for_ever(tmp_path: Path) -> None:
    _, events, requests = run_with(FAULTS["http 500"], tmp_path, rounds=8)
    assert len(requests) == 3
    assert any("not asked again" in e.text for e in events)


def test_rate_limits_are_retried_by_the_client_alone(tmp_path: Path) -> None:
    _, _, requests = run_with(FAULTS["http 429"], tmp_path, chat={"max_retries": 1})
    assert len(requests) == 6  # three turns, each tried twice


def test_the_model_cannot_set_values_in_the_optimizers_rounds(tmp_path: Path) -> None:
    def stubborn(request: dict[str, Any]) -> Reply:
        if turn_of(request)["kind"] == "propose" and len(results_of(request)) < 3:
            values = [{"name": "learner.learning_rate", "value": 0.009}]
            text = {"reason": "mine", "predicted_effect": "best", "evidence": []}
            return call(("propose", {"arm": "challenger", "values": values, **text}))
        return say("Done.")

    lab, _, _ = run_with(stubborn, tmp_path, rounds=8)
    assert {p.round for p in lab.proposals.values() if p.source == "agent"} <= {1, 5}


def test_a_narrative_that_lies_is_thrown_away(tmp_path: Path) -> None:
    def liar(request: dict[str, Any]) -> Reply:
        return say("The verdict is inconclusive, but the challenger won by 47.5 %.")

    lab, events, _ = run_with(liar, tmp_path)
    assert lab.finished == ("The verdict is inconclusive. The interval [-0.4, 0.9] contains 0.", "code")
    assert any("47.5 stands in no result" in e.text for e in events)


def test_a_number_cannot_be_laundered_through_a_tool(tmp_path: Path) -> None:
    def launderer(request: dict[str, Any]) -> Reply:
        if turn_of(request)["kind"] == "report" and not results_of(request):
            values = [{"name": "model.num_layers", "value": 47.5}]
            return call(
                ("check_feasibility", {"arm": "challenger", "values": values}),
                ("ledger_query", {"view": "top", "arm": None, "limit": 475}),
                ("write_note", {"text": "it won by 47.5", "target": None}),
            )
        return say("The verdict is inconclusive, but the challenger won by 47.5 %.")

    lab, _, _ = run_with(launderer, tmp_path, rounds=1)
    assert lab.finished is not None
    assert lab.finished[1] == "code"


def test_a_model_that_never_answers_is_left_after_the_timeout(tmp_path: Path) -> None:
    def slow(request: dict[str, Any]) -> Reply:
        time.sleep(1.0)
        return say("too late")

    _, events, requests = run_with(slow, tmp_path, rounds=1, chat={"timeout": 0.2})
    assert len(requests) == 3
    assert any("Timeout" in e.payload["error"] for e in events if e.payload.get("failed"))


# ---- replay ---------------------------------------------------------------------------------


def test_a_recorded_crew_is_replayed_without_a_model(tmp_path: Path) -> None:
    first, _, _ = run_with(good_brain, tmp_path / "first", rounds=4)
    second = FakeLab(rounds=4, first_run=51, earlier=first)
    events = run(second, choose_llm("replay:c-0009"), tmp_path / "second")
    assert not [e for e in events if e.payload.get("failed")]
    assert second.finished == (first.finished[0], "Coordinator (replay:c-0009)")  # type: ignore[index]
    for key, old in first.proposals.items():
        new = second.proposals[key]
        assert (new.values, new.source) == (old.values, old.source)
        assert [int(row[2:]) - 50 for row in new.evidence] == [int(row[2:]) for row in old.evidence]
    assert second.proposals.keys() == first.proposals.keys()


def test_an_offline_campaign_can_be_replayed_too(tmp_path: Path) -> None:
    first = FakeLab(rounds=2)
    run(first, choose_llm("offline"), tmp_path / "first")
    second = FakeLab(rounds=2, first_run=51, earlier=first)
    run(second, choose_llm("replay:c-0009"), tmp_path / "second")
    assert [p.values for p in second.proposals.values()] == [p.values for p in first.proposals.values()]


def test_a_replay_goes_on_without_what_was_not_recorded(tmp_path: Path) -> None:
    first, _, _ = run_with(good_brain, tmp_path / "first", rounds=3)
    longer = FakeLab(rounds=5, first_run=51, earlier=first)
    run(longer, choose_llm("replay:c-0009"), tmp_path / "second")
    assert (longer.stage, longer.launches) == ("done", 5)


def test_replaying_what_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="c-0009"):
        run(FakeLab(earlier=FakeLab()), choose_llm("replay:c-0008"), tmp_path)
    with pytest.raises(InputError, match="no model call is recorded"):
        run(FakeLab(earlier=FakeLab()), choose_llm("replay:c-0009"), tmp_path)


# ---- caps -----------------------------------------------------------------------------------


def test_a_token_cap_is_held_before_each_call(tmp_path: Path) -> None:
    lab, events, requests = run_with(good_brain, tmp_path, max_tokens=13_100)
    spent = sum(e.payload["input_tokens"] + e.payload["output_tokens"] for e in events if e.kind == "llm_call")
    assert 0 < spent <= 13_100
    assert any("--max-tokens" in e.text for e in events)
    with ModelServer(good_brain).running() as server:  # a new sitting counts what the earlier one spent
        lab.set_stage("verdict")
        run(lab, server.choice(), tmp_path, max_tokens=spent + 10)
    assert server.requests == []
    assert requests


def test_an_unknown_price_is_said(tmp_path: Path) -> None:
    _, events, _ = run_with(good_brain, tmp_path, rounds=1, max_usd=1.0)
    assert any("--max-usd cannot be held" in e.text for e in events)


# ---- nothing outside the data folder ----------------------------------------------------------


def test_nothing_is_written_to_home_or_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here, data = tmp_path / "home", tmp_path / "here", tmp_path / "data"
    home.mkdir()
    here.mkdir()
    code = (
        "import sys, socket; from pathlib import Path\n"
        "def refuse(*a): raise AssertionError('a connection')\n"
        "socket.socket.connect = refuse; socket.create_connection = refuse\n"
        "from fake_lab import FakeLab\n"
        "from multi_agent.llm.choose import choose_llm\n"
        "from multi_agent.workflows.research_workflow import run_research\n"
        "lab = FakeLab(rounds=1)\n"
        "run_research(lab, choose_llm('offline'), data_dir=Path(sys.argv[1]), on_event=lambda e: None)\n"
        "assert lab.stage == 'done'\n"
    )
    import subprocess
    import sys

    here_tests = Path(__file__).resolve().parent
    path = f"{here_tests.parents[1]}{os.pathsep}{here_tests}"
    environment = os.environ | {"HOME": str(home), "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"NUMBA_CACHE_DIR": str(data / "numba"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(data)], cwd=here, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")
    assert list(home.iterdir()) == []
    assert list(here.iterdir()) == []
    assert (data / "crewai").is_dir()
