"""What chat models and their servers do that no vendor's documentation says: none of it ends a campaign, leaks a key or invents a row."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from crew_on_script import crew_lab, idea, run_crew
from lab_on_script import proposals_of
from model_server import ModelServer, Reply, call, fail, results_of, say, turn_of

import main
from core.errors import InputError
from core.words.commands import quoted
from core.words.text import without_password
from multi_agent.communication.honesty import MARK, mark_unknown
from multi_agent.llm.calls import is_too_long
from multi_agent.llm.choose import PROVIDERS, LLMChoice, choose_llm, ollama_chat_models, redact
from multi_agent.llm.meter import Meter
from multi_agent.llm.preflight import preflight
from multi_agent.workflows import CollaborativeLearning

# ---- what an answer is made of -----------------------------------------------------------------


def test_lone_surrogates_are_kept_and_sent_back_as_question_marks(tmp_path: Path) -> None:
    def brain(request: dict[str, Any]) -> Reply:
        turn, results = turn_of(request), results_of(request)
        if turn["kind"] == "plan" and not results:
            return call(
                ("tell", {"to": "all", "text": "look \ud83d here", "evidence": []}), ("tell\udce9", {"x\ud83d": 1})
            )
        return say("half \ud83d of a face")

    lab = crew_lab(tmp_path, 2)
    with ModelServer(brain).running() as server:
        events = run_crew(lab, tmp_path, server.choice())
    assert lab.stage == "done"
    assert not any("could not answer" in e.text for e in events)
    assert any(e.kind == "agent" and e.text == "half ? of a face" for e in events)
    json.dumps([dict(e.payload) for e in events], ensure_ascii=False).encode()
    assert "look ? here" in json.dumps(server.requests)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_an_answer_in_the_place_of_the_thinking_is_the_answer(field: str, tmp_path: Path) -> None:
    thought = {"role": "assistant", "content": "", field: "<think>hm</think>\nOne layer is enough."}
    lab = crew_lab(tmp_path, 1)
    with ModelServer(lambda request: (200, thought)).running() as server:
        choice, found = preflight(choose_llm("openai:local", server.url), Meter("", {}))
        events = run_crew(lab, tmp_path, choice)
    assert "asked in text" in found
    assert any(e.kind == "agent" and e.text == "One layer is enough." for e in events)
    assert not any("the answer is empty" in str(e.payload.get("error")) for e in events)


# ---- contexts that are too short ---------------------------------------------------------------

TOO_LONG = [
    "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens.",
    "the request exceeds the available context size, try increasing it",
    "prompt is too long: 210000 tokens > 200000 maximum",
    "The input token count (9000) exceeds the maximum number of tokens allowed (8192).",
]


def of_context(most: int, words: str) -> Any:
    """A model that reads at most so many characters of messages."""

    def brain(request: dict[str, Any]) -> Reply:
        return say("Done.") if len(json.dumps(request["messages"])) <= most else fail(400, words)

    return brain


@pytest.mark.parametrize("words", TOO_LONG)
def test_words_of_servers_about_a_short_context_are_understood(words: str) -> None:
    assert is_too_long(words)
    assert not is_too_long("Rate limit reached: too many tokens per min, please wait")


@pytest.mark.parametrize(("most", "answers"), [(4_600, True), (1_000, False)])
def test_a_short_context_gets_shorter_prompts_once_and_else_the_optimizer_goes_on(
    most: int, answers: bool, tmp_path: Path
) -> None:
    lab = crew_lab(tmp_path, 2)
    with ModelServer(of_context(most, TOO_LONG[0])).running() as server:
        events = run_crew(lab, tmp_path, server.choice())
    assert lab.stage == "done"
    assert any(e.kind == "agent" and e.text == "Done." for e in events) == answers
    silent = [e.text for e in events if "not asked again" in e.text]
    assert len(silent) == (0 if answers else 1)
    assert answers or "context is too short" in silent[0]
    refused = [r for r in server.requests if len(json.dumps(r["messages"])) > most]
    agents = {r["messages"][0]["content"] for r in refused}
    assert len(refused) == (len(agents) if answers else 2)  # each agent learns it once


def test_a_preflight_asks_for_shorter_answers_where_the_context_is_short() -> None:
    def brain(request: dict[str, Any]) -> Reply:
        most = request.get("max_completion_tokens") or request["max_tokens"]
        return call(("ready", {"word": "yes"})) if most <= 2_048 else fail(400, TOO_LONG[0])

    with ModelServer(brain).running() as server:
        _, found = preflight(choose_llm("openai:local", server.url), Meter("", {}))
    assert "at most 2,048 tokens" in found


# ---- Ollama ------------------------------------------------------------------------------------

TAGS = [
    {"name": "nomic-embed-text:latest", "details": {"family": "nomic-bert"}},
    {"name": "mystery", "capabilities": ["embedding"]},
    {"name": "bge-m3"},
    {"name": "qwen3:8b", "details": {"family": "qwen3"}},
    {"name": "llama3.2", "capabilities": ["completion", "tools"]},
]


@pytest.fixture
def ollama(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"models": TAGS}).encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{server.server_port}")
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_model_that_embeds_alone_is_not_chosen_and_refused_with_the_nearest_that_chats(ollama: str) -> None:
    assert ollama_chat_models() == ollama_chat_models(ollama) == ["qwen3:8b", "llama3.2"]

    def refuses() -> Any:
        raise RuntimeError('"qwen3-embedding:8b" does not support chat (status code: 400)')

    with pytest.raises(InputError, match=r"Did you mean 'qwen3:8b'\?.*does not support chat"):
        preflight(LLMChoice("ollama:qwen3-embedding:8b", "langchain", refuses), Meter("", {}))


# ---- numbers -----------------------------------------------------------------------------------

SOURCES = 'score -61.237; {"delta": 2.4} learning_rate=0.0003 the spread is 9.99 (not in the ledger)'


@pytest.mark.parametrize(
    ("said", "marked"),
    [
        ("The score rose to -55.2.", "The score rose to -55.2 (not in the ledger)."),
        ("The score is -61.24, +2.4 noise floors.", None),
        ("It gained 3.7 noise floors; the next is 8.1.", "It gained 3.7 (not in the ledger) noise floors; the next is 8.1."),
        ("A return of 9.99 was measured.", "A return of 9.99 (not in the ledger) was measured."),
        ("It was measured with learning_rate=0.5 in r-0042.", None),
        ("I expect a gain of 1.5 noise floors.", None),
        ("Try a rate of 0.01.", None),
        ("The best has 3 layers after 12 trials and 40,000 steps.", None),
        ("Its effect was 5.5 (not in the ledger).", None),
        ("Version 1.2.3 is better.", None),
    ],
)  # fmt: skip
def test_a_measured_number_of_nobodys_is_marked_and_no_other_one(said: str, marked: str | None) -> None:
    assert mark_unknown(said, SOURCES) == (marked or said)
    assert mark_unknown(mark_unknown(said, SOURCES), SOURCES) == (marked or said)


def test_what_agents_tell_one_another_marks_numbers_that_no_row_holds(tmp_path: Path) -> None:
    lie = "The best run scores 777.25 and r-0001 leads."

    def brain(request: dict[str, Any]) -> Reply:
        turn, results = turn_of(request), results_of(request)
        if turn["kind"] == "plan" and not results:
            return call(
                ("tell", {"to": "all", "text": lie, "evidence": []}),
                ("remember", {"text": lie, "evidence": ["r-0001"]}),
                ("write_note", {"text": lie, "target": None}),
            )
        if turn["kind"] == "propose" and turn["role"] == "meta-learning" and not results:
            told = {"reason": f"{lie} With it I expect 1.75.", "expected_delta": 1.75}
            return call(*(("propose", idea(arm, {"learner.learning_rate": 0.001}, **told)) for arm in turn["arms"]))
        return say(lie)

    lab = crew_lab(tmp_path, 2)
    with ModelServer(brain).running() as server:
        events = run_crew(lab, tmp_path, server.choice())
    prompts = json.dumps([m["content"] for r in server.requests for m in r["messages"] if m["role"] == "user"])
    assert prompts.count("777.25") == prompts.count(f"777.25 {MARK}") > 3
    said = [e for e in events if e.kind == "agent" and "777.25" in e.text and e.payload["turn"]["kind"] != "report"]
    assert said
    assert all(f"777.25 {MARK}" in e.text for e in said)
    reasons = [p.reason for p in proposals_of(lab).values() if "777.25" in p.reason]
    assert reasons
    assert all(f"777.25 {MARK}" in reason and f"1.75 {MARK}" not in reason for reason in reasons)


# ---- keys --------------------------------------------------------------------------------------

CANARIES = {
    name: f"canary-{number}-9a1b2c"
    for number, name in enumerate(
        [
            *("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_ORGANIZATION", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"),
            *("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "GOOGLE_API_KEY", "GEMINI_API_KEY", "OLLAMA_API_KEY"),
        ]
    )
} | {"OPENAI_CUSTOM_HEADERS": "X-Mine: canary-9a1b2c", "ANTHROPIC_CUSTOM_HEADERS": "X-Mine: canary-9a1b2c"}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_no_variable_of_a_vendors_reaches_another_server(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(PROVIDERS[provider].package)
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    with ModelServer(lambda request: fail(400, "no")).running() as server:
        choice = choose_llm(f"{provider}:local", server.url)
        assert choice.make_chat is not None
        chat = choice.make_chat()
        for _ in range(2):
            with contextlib.suppress(Exception):  # it speaks another protocol than this server
                chat.invoke("hello")
    assert len(server.headers) >= 2
    assert "canary" not in json.dumps(server.headers)
    assert {name: os.environ.get(name) for name in CANARIES} == CANARIES


CANARY = "-".join(("canary", "7f3a", "9c51"))  # in parts: the patch of this file is kept with every run
PROGRAM = f"command:env LLM_KEY={CANARY} {sys.executable} -I -c \"print('Final Answer: heard')\""


def test_a_key_in_a_programs_words_is_kept_and_printed_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    choice = choose_llm(PROGRAM)
    assert choice.name.startswith("command:env LLM_KEY=*** ")
    lab = crew_lab(tmp_path / "data", 1)
    events = run_crew(lab, tmp_path / "data", choice)
    assert any(e.kind == "agent" and e.text == "heard" for e in events)
    monkeypatch.setattr(sys, "argv", ["main.py", "--llm", PROGRAM])
    monkeypatch.delenv("LLM_KEY", raising=False)
    goal = ["--goal", "beat LSTM on point-robot", "--env-steps", "2M", "--data-dir", str(tmp_path / "other")]
    assert main.main([*goal, "--llm", PROGRAM, "--dry-run"]) == 0
    assert main.main([*goal, "--llm", f"{PROGRAM}'", "--dry-run"]) == 2
    output = capfd.readouterr()
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    shown = output.out + output.err + quoted("--llm", PROGRAM) + redact(CANARY) + without_password(PROGRAM)
    assert CANARY not in shown + json.dumps([dict(e.payload) for e in events])
    assert CANARY.encode() not in written
    with pytest.raises(InputError, match="was not recorded"):
        choose_llm(choice.name)


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("command:claude --api-key abcd1234 -p", "command:claude --api-key *** -p"),
        ("command:x -H 'Authorization: Bearer tok_12345'", "command:x -H 'Authorization: Bearer ***'"),
        ("command:x sk-ant-1234-abcd", "command:x ***"),
        ("command:llm --max-tokens 5000", "command:llm --max-tokens 5000"),
        ("compare attention with key_dim=32 and token mixing", "compare attention with key_dim=32 and token mixing"),
    ],
)
def test_a_key_is_known_by_its_name_or_its_look(word: str, shown: str) -> None:
    assert without_password(word) == shown


# ---- caps --------------------------------------------------------------------------------------


def test_the_bench_of_proposers_and_solve_task_try_the_model_and_hold_the_caps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ModelServer(lambda request: fail(401, "no such key")).running() as server:
        model = ["--llm", "openai:local", "--base-url", server.url]
        words = ["bench", "proposers", "--arms", "hybrid", "--searches", "1", "--trials", "2", *model]
        assert main.main(words) == 2
        assert "openai:local gives no answer" in capsys.readouterr().err
        assert main.main([*words, "--max-tokens", "9000"]) == 2
        assert "one call of the crew takes 3,000 tokens" in capsys.readouterr().err
        assert main.main([*words, "--max-usd", "-1"]) == 2
        assert "--max-usd" in capsys.readouterr().err
    assert len(server.requests) == 1
    program = shlex.quote(sys.executable)
    team = CollaborativeLearning(llm=f"command:{program} -c 'raise SystemExit(3)'", data_dir=tmp_path / "a")
    with pytest.raises(InputError, match="gives no answer"):
        team.solve_task("point-robot", max_tokens=50_000)
    assert not list(tmp_path.rglob("ledger.db"))
