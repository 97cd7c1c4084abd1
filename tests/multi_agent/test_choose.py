"""Choosing and paying for a chat model, before anything runs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from model_server import ModelServer, say

from core.errors import InputError
from multi_agent.llm import choose
from multi_agent.llm.choose import choose_llm, redact
from multi_agent.llm.meter import BudgetSpentError, Meter, Price, read_prices

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for provider in choose.PROVIDERS.values():
        if provider.key:
            monkeypatch.delenv(provider.key, raising=False)
    for variable in ("SSM_LLM_KEY", "OPENAI_API_BASE", "OPENAI_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")  # nothing answers there


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The vendor packages that seem to be installed; tests change the set."""
    names = {"langchain_openai"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in names or None)
    return names


def test_offline_needs_nothing_and_says_what_it_is() -> None:
    choice = choose_llm("offline")
    assert choice.kind == "offline"
    assert choice.describe().startswith("No language model is in use")
    assert "--llm openai:..." in choice.describe()


def test_auto_without_a_key_is_offline() -> None:
    assert choose_llm("auto").kind == "offline"
    assert choose_llm(None).kind == "offline"


def test_auto_takes_the_first_key_whose_package_is_installed(
    monkeypatch: pytest.MonkeyPatch, installed: set[str]
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-123456")
    missing = choose_llm("auto")
    assert missing.kind == "offline"
    assert 'pip install -e ".[anthropic]"' in missing.describe()
    installed.add("langchain_anthropic")
    assert choose_llm("auto").name == "anthropic:claude-sonnet-4-5"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-123456")
    choice = choose_llm("auto")
    assert choice.name == "openai:gpt-5-mini"
    assert "OPENAI_API_KEY is set" in choice.describe()
    assert "sk-123456" not in choice.describe()


def test_auto_takes_a_local_ollama_that_answers(monkeypatch: pytest.MonkeyPatch, installed: set[str]) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"models": [{"name": "qwen3:8b"}]}).encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{server.server_port}")
    installed.add("langchain_ollama")
    choice = choose_llm("auto")
    server.shutdown()
    server.server_close()
    assert choice.name == "ollama:qwen3:8b"


@pytest.mark.parametrize(
    ("name", "base_url", "said"),
    [
        ("openai:gpt-5", None, "export OPENAI_API_KEY="),
        ("anthropic:claude-sonnet-4-5", None, 'pip install -e ".[anthropic]"'),
        ("ollama:qwen3:8b", None, 'pip install -e ".[ollama]"'),
        ("opnai:gpt-5", None, "Did you mean 'openai'?"),
        ("gpt-5", None, "Allowed: anthropic, google_genai, ollama, openai"),
        ("openai", None, "the model is missing"),
        ("openai:", None, "the model is missing"),
        ("replay:", None, "c-0007"),
        ("replay:yesterday", None, "c-0007"),
        ("openai:x", "localhost:8000", "--base-url: got 'localhost:8000'"),
        ("openai:x", "http://h:port/v1", "--base-url: got 'http://h:port/v1'"),
        ("openai:x", "http://[::1/v1", "--base-url: got 'http://[::1/v1'"),
        ("openai:x", "http://", "--base-url: got 'http://'"),
        ("openai:x", "http://me:secret@h:port/", "--base-url: got 'http://h:port/'"),
        ("openai:x", "https://api.openai.com\\@h/v1", "allowed: an address such as"),
        ("openai:x", "https://api.openai.com/v1", "export OPENAI_API_KEY="),
        ("auto", "http://127.0.0.1:8000/v1", "--base-url needs the model's name"),
    ],
)
def test_a_wrong_choice_says_what_to_do(name: str, base_url: str | None, said: str, installed: set[str]) -> None:
    with pytest.raises(InputError) as caught:
        choose_llm(name, base_url)
    assert said in str(caught.value)


def test_an_own_server_needs_no_key(installed: set[str]) -> None:
    choice = choose_llm("openai:local", "http://user:secret@127.0.0.1:8000/v1")
    assert choice.kind == "langchain"
    assert "127.0.0.1:8000" in choice.describe()
    assert "secret" not in choice.describe()
    assert choice.price_name == ""  # another server's price is unknown


@pytest.mark.parametrize(
    ("variables", "key_env", "sent", "said"),
    [
        ({}, None, "not-needed", "no key is sent"),
        ({"SSM_LLM_KEY": "own-123456"}, None, "own-123456", "its key is SSM_LLM_KEY"),
        ({"SSM_LLM_KEY": "own-123456", "MINE": "mine-12345"}, "MINE", "mine-12345", "its key is MINE"),
        ({"OPENAI_BASE_URL": "here"}, None, "not-needed", "as OPENAI_BASE_URL says"),
        ({"OPENAI_API_BASE": "here"}, None, "not-needed", "as OPENAI_API_BASE says"),
    ],
)
def test_another_server_than_the_vendors_never_gets_the_vendors_key(
    variables: dict[str, str], key_env: str | None, sent: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-9a1b2c")
    with ModelServer(lambda request: say(f"yours is {request}")).running() as server:
        for name, value in variables.items():
            monkeypatch.setenv(name, server.url if value == "here" else value)
        named = not any("BASE" in name for name in variables)
        choice = choose_llm("openai:local", server.url if named else None, key_env)
        assert choice.make_chat is not None
        choice.make_chat().invoke("hello")
    assert [headers["authorization"] for headers in server.headers] == [f"Bearer {sent}"]
    assert "canary" not in str(server.headers) + choice.describe()
    assert said in choice.describe()
    assert choice.price_name == ""
    assert (choice.base_url, choice.key_env) == (server.url, key_env)
    assert sent == "not-needed" or sent not in redact(f"Incorrect API key provided: {sent}") + choice.describe()


def test_the_vendors_own_address_gets_its_key_over_https_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-9a1b2c")
    for address, trusted in {
        "https://api.openai.com/v1": True,
        "http://api.openai.com/v1": False,
        "https://api.openai.com.example.org/v1": False,
        "https://api.openai.com@example.org/v1": False,
        "https://example.org/https://api.openai.com": False,
    }.items():
        choice = choose_llm("openai:gpt-5-mini", address)
        assert choice.make_chat is not None
        key = choice.make_chat().openai_api_key.get_secret_value()
        assert (key == "sk-canary-9a1b2c") == trusted, address
        assert (choice.price_name != "") == trusted


def test_a_key_in_place_of_its_variables_name_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="not a key") as caught:
        choose_llm("openai:local", "http://127.0.0.1:9/v1", "sk-canary-9a1b2c")
    assert "canary" not in str(caught.value)
    monkeypatch.setenv("MY_MODEL_KEY", "x" * 20)
    with pytest.raises(InputError, match="Did you mean 'MY_MODEL_KEY'"):
        choose_llm("openai:local", "http://127.0.0.1:9/v1", "MY_MODEL_KE")


def test_choosing_imports_neither_crewai_nor_langchain() -> None:
    code = (
        "import sys; from multi_agent.llm.choose import choose_llm; choose_llm('offline')\n"
        "assert not {'crewai', 'langchain', 'langchain_core', 'openai', 'torch'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_keys_are_taken_out_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-abcdef123")
    assert redact("key sk-abcdef123 refused") == "key <OPENAI_API_KEY> refused"


# ---- prices and caps ------------------------------------------------------------------------


def test_prices_are_dated_and_can_be_overridden(tmp_path: Path) -> None:
    date, prices = read_prices()
    assert len(date) == 10
    assert prices["openai:gpt-5-mini"] == Price(0.25, 2.0)
    own = tmp_path / "prices.json"
    own.write_text('{"date": "2027-02-01", "usd_per_million_tokens": {"openai:mine": [1, 3]}}')
    date, prices = read_prices(own)
    assert (date, prices["openai:mine"]) == ("2027-02-01", Price(1.0, 3.0))
    own.write_text('{"openai:mine": 1}')
    with pytest.raises(InputError, match="must look like"):
        read_prices(own)


def test_dollars_are_counted_and_capped_before_the_call() -> None:
    meter = Meter("m", {"m": Price(1.0, 10.0)}, max_usd=0.1)
    longest = 10.0 * choose.MAX_OUTPUT_TOKENS / 1e6
    meter.check(1_000)
    meter.add(20_000, 4_000)
    assert meter.usd == pytest.approx(0.06)
    assert 0.06 + 0.001 + longest > 0.1
    with pytest.raises(BudgetSpentError, match="--max-usd"):
        meter.check(1_000)


def test_tokens_are_capped_before_the_call() -> None:
    meter = Meter("unknown", {}, max_tokens=6_000 + choose.MAX_OUTPUT_TOKENS, max_usd=0.000001)
    meter.check(5_000)  # an unknown price cannot be held, tokens can
    meter.add(3_000, 500)
    with pytest.raises(BudgetSpentError, match="--max-tokens"):
        meter.check(5_000)


@pytest.mark.parametrize("cap", [{"max_tokens": 0}, {"max_usd": -1.0}])
def test_a_cap_must_be_positive(cap: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="more than 0"):
        Meter("m", {}, **cap)


@pytest.mark.parametrize(
    ("base_url", "key_env", "own_key", "sent", "said"),
    [
        ("https://ollama.example", "MY_KEY", None, "Bearer a-key-of-mine", "its key is MY_KEY"),
        (None, "MY_KEY", None, "Bearer a-key-of-mine", "its key is MY_KEY"),
        ("https://ollama.example", None, "another-key", "Bearer another-key", "its key is SSM_LLM_KEY"),
        (None, None, "another-key", None, ""),
        ("http://127.0.0.1:11434", None, None, None, ""),
    ],
)
def test_ollama_gets_the_key_that_was_named_for_it_and_no_other(
    base_url: str | None, key_env: str | None, own_key: str | None, sent: str | None, said: str,
    monkeypatch: pytest.MonkeyPatch, installed: set[str],
) -> None:  # fmt: skip
    import langchain.chat_models

    installed.add("langchain_ollama")
    monkeypatch.setenv("MY_KEY", "a-key-of-mine")
    if own_key:
        monkeypatch.setenv("SSM_LLM_KEY", own_key)
    given: dict[str, Any] = {}
    monkeypatch.setattr(langchain.chat_models, "init_chat_model", lambda name, **options: given.update(options))
    choice = choose_llm("ollama:qwen3:8b", base_url, key_env)
    assert choice.make_chat is not None
    choice.make_chat()
    assert given.get("client_kwargs", {}).get("headers", {}).get("Authorization") == sent
    assert ("its key is" in choice.note) == bool(said)
    assert said in choice.note
    assert "api_key" not in given
