"""The call before anything is spent: what it finds sets how a model is used, and a model that is not there is one sentence."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from crew_on_script import crew_lab, run_crew
from model_server import HANG, Brain, ModelServer, Reply, call, fail, honest_usage, say

import main
from core.errors import InputError
from multi_agent.llm.choose import LLMChoice, choose_llm
from multi_agent.llm.langchain_llm import without_observations
from multi_agent.llm.meter import Meter, Price
from multi_agent.llm.preflight import preflight


def ready(request: dict[str, Any]) -> Reply:
    return call(("ready", {"word": "yes"}))


def no_tools(request: dict[str, Any]) -> Reply:
    return fail(400, "registry/tiny does not support tools") if request.get("tools") else say("yes")


def old_name(request: dict[str, Any]) -> Reply:
    if "max_completion_tokens" in request:
        return fail(400, "Unrecognized request argument supplied: max_completion_tokens")
    return ready(request)


def short(request: dict[str, Any]) -> Reply:
    most = request.get("max_completion_tokens") or request["max_tokens"]
    return ready(request) if most <= 4_096 else fail(400, "max_tokens is too large: 8192. At most 4096 are supported.")


CASES: list[tuple[Brain, Any, bool, str, int]] = [
    (ready, honest_usage, True, "The model answered in", 1),
    (no_tools, honest_usage, False, "calls no tools, so it is asked in text", 2),
    (lambda request: say("yes"), honest_usage, False, "calls no tools, so it is asked in text", 1),
    (ready, lambda request, message: None, True, "counts no tokens", 1),
    (old_name, honest_usage, True, "knows max_tokens alone", 2),
    (short, honest_usage, True, "at most 4,096 tokens", 3),
]


@pytest.mark.parametrize(("brain", "usage", "tools", "said", "requests"), CASES)
def test_what_is_found_sets_how_the_model_is_used(
    brain: Brain, usage: Any, tools: bool, said: str, requests: int
) -> None:
    meter = Meter("", {}, max_tokens=50_000)
    with ModelServer(brain, usage).running() as server:
        choice, found = preflight(choose_llm("openai:local", server.url), meter)
        assert len(server.requests) == requests
        assert choice.make_chat is not None
        choice.make_chat().invoke("a crew's call")  # not refused again
    assert (choice.tools, choice.name) == (tools, "openai:local")
    assert said in found
    assert 0 < meter.tokens < 500


def test_an_offline_crew_is_asked_nothing() -> None:
    assert preflight(choose_llm("offline"), Meter("", {}, max_tokens=1)) == (choose_llm("offline"), "")


@pytest.mark.parametrize(
    ("reply", "path", "said"),
    [
        (fail(401, "Incorrect API key provided: canary-9a1b2c"), "", "Incorrect API key provided: <SSM_LLM_KEY>"),
        (fail(404, "The model `local` does not exist"), "", "does not exist"),
        (fail(404, "no such page"), "/..", "mostly end in /v1"),
        (HANG, "", "no whole answer within 1 s"),
    ],
)
def test_a_model_that_gives_no_answer_is_one_sentence(
    reply: Reply, path: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSM_LLM_KEY", "canary-9a1b2c")
    with ModelServer(lambda request: reply).running() as server:
        choice = choose_llm("openai:local", server.url.removesuffix("/v1") if path else server.url)
        with pytest.raises(InputError) as caught:
            preflight(choice, Meter("", {}), seconds=0.6)
    assert said in str(caught.value)
    assert "--llm offline" in str(caught.value)
    assert "canary" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_client_that_cannot_be_built_is_one_sentence() -> None:
    def broken() -> Any:
        raise ImportError("Using SOCKS proxy, but the 'socksio' package is not installed")

    with pytest.raises(InputError, match="socksio"):
        preflight(LLMChoice("openai:local", "langchain", broken), Meter("", {}))


@pytest.mark.parametrize("caps", [{"max_tokens": 9_000}, {"max_usd": 0.01}])
def test_a_cap_that_is_too_small_for_one_call_is_said_before_anything_is_sent(caps: dict[str, Any]) -> None:
    with (
        ModelServer(ready).running() as server,
        pytest.raises(InputError, match="one call of the crew takes 3,000 tokens"),
    ):
        preflight(server.choice(), Meter("m", {"m": Price(1.0, 10.0)}, **caps))
    assert server.requests == []


def test_a_campaign_whose_model_is_not_there_ends_before_a_row_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    goal = ["--goal", "beat LSTM on point-robot", "--env-steps", "20M", "--data-dir", str(tmp_path / "a folder")]
    with ModelServer(lambda request: fail(401, "no such key")).running() as server:
        assert main.main([*goal, "--llm", "openai:local", "--base-url", server.url]) == 2
    assert "openai:local gives no answer" in capsys.readouterr().err
    assert not list(tmp_path.rglob("ledger.db"))


# ---- a model without tools ---------------------------------------------------------------------


def test_a_model_without_tools_is_asked_in_text_and_what_it_makes_up_is_cut(tmp_path: Path) -> None:
    invented = "Observation: the score is 777\nThought: I know\nFinal Answer: the score is 777"

    arguments = json.dumps({"view": "top", "arm": None, "limit": 3})

    def brain(request: dict[str, Any]) -> Reply:
        assert not request.get("tools")
        if any(m["role"] == "assistant" for m in request["messages"]):
            return say("Thought: I saw it\nFinal Answer: it was described")
        return say(f"Thought: look\nAction: ledger_query\nAction Input: {arguments}\n{invented}")

    lab = crew_lab(tmp_path, 2)
    with ModelServer(brain).running() as server:
        choice = server.choice()
        text = LLMChoice(choice.name, choice.kind, choice.make_chat, tools=False)
        events = run_crew(lab, tmp_path, text)
    assert lab.stage == "done"
    assert not any("777" in e.text for e in events if e.kind in ("agent", "message", "tool_result"))
    assert any(e.kind == "tool_result" and not e.payload["failed"] for e in events)
    assert any(e.kind == "agent" and e.text == "it was described" for e in events)


@pytest.mark.parametrize("mark", ["Observation:", "**Observation:**", "  observation :", "- Observation:"])
def test_words_after_a_tool_call_are_not_its_result(mark: str) -> None:
    said = f"Action: look\nAction Input: {json.dumps({'a': 1})}"
    assert without_observations(f"{said}\n{mark} 777") == said
    assert without_observations("my observation: none") == "my observation: none"


# ---- a program in place of a server ------------------------------------------------------------


def test_a_program_answers_on_standard_output(tmp_path: Path) -> None:
    file = tmp_path / "an assistant.py"
    file.write_text(
        "import sys\nprompt = sys.stdin.read()\nassert '[human]' in prompt\n"
        "print('yes' if 'ready' in prompt else 'Thought: done\\nFinal Answer: heard by a program')\n"
    )
    choice = choose_llm(f"command:{sys.executable} -I '{file}'")
    choice, found = preflight(choice, Meter("", {}, max_tokens=50_000))
    assert "is asked in text; it counts no tokens" in found
    lab = crew_lab(tmp_path, 1)
    events = run_crew(lab, tmp_path, choice, max_tokens=50_000)
    assert lab.stage == "done"
    assert any(e.kind == "agent" and e.text == "heard by a program" for e in events)
    assert all(e.payload["input_tokens"] > 500 for e in events if e.kind == "llm_call")


def test_a_program_that_fails_or_hangs_gives_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = "import sys; sys.stdin.read(); sys.stderr.write('not logged in'); sys.exit(3)"
    with pytest.raises(InputError, match="ended with 3: not logged in"):
        preflight(choose_llm(f"command:{sys.executable} -c {shlex.quote(failing)}"), Meter("", {}))
    monkeypatch.setattr("multi_agent.llm.command.CALL_S", 0.3)
    with pytest.raises(InputError, match="timed out"):
        preflight(choose_llm("command:sleep 60"), Meter("", {}))
    with pytest.raises(InputError, match="allowed: a program that can be run"):
        choose_llm("command:no-such-program-here -p")
