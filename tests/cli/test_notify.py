"""One message where a person is wanted, and nothing of a campaign in the hands of whoever receives it."""

from __future__ import annotations

import json
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

import main
from core.errors import InputError
from experiments.reading import report
from experiments.runs import provenance
from experiments.runs.runner import Paused
from experiments.serving import notify
from experiments.serving.notify import Hook, check_address, payload
from multi_agent.workflows import research_workflow
from multi_agent.workflows.crew import CrewEvent

SLACK, DISCORD, OTHER = "https://hooks.slack.com/services/T0/B0/secret", "https://discord.com/api/webhooks/1/secret", "http://10.0.0.7:9/x"  # fmt: skip
GOAL = "beat LSTM <!channel> @everyone \x1b[31m\u202e on postgresql://me:hunter2@host/db"


class Receiver(BaseHTTPRequestHandler):
    """Takes every message, or answers as `how` says."""

    got: ClassVar[list[Any]] = []
    how: ClassVar[str] = ""
    gone: ClassVar[threading.Event]

    def do_POST(self) -> None:
        self.got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        if self.how == "slow":
            self.gone.wait(20)
        self.send_response({"refuses": 500, "sends on": 307}.get(self.how, 200))
        self.send_header("location", self.path + "/further")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    Receiver.got, Receiver.how, Receiver.gone = [], "", threading.Event()
    yield f"http://127.0.0.1:{server.server_port}/secret-path"
    Receiver.gone.set()
    server.shutdown()
    server.server_close()


def test_every_host_gets_the_shape_that_it_shows_and_obeys_nothing() -> None:
    slack, discord, other = (payload(url, "waiting", "c-0001", GOAL) for url in (SLACK, DISCORD, OTHER))
    assert (set(slack), set(discord), set(other)) == ({"text"}, {"content", "allowed_mentions"}, {"event", "campaign", "goal", "text"})  # fmt: skip
    assert "&lt;!channel&gt;" in slack["text"]
    assert discord["allowed_mentions"] == {"parse": []}
    assert (other["event"], other["campaign"]) == ("waiting", "c-0001")
    for message in (slack, discord, other):
        text = json.dumps(message, ensure_ascii=False)
        assert "hunter2" not in text
        assert all(character.isprintable() for character in text)
    assert len(payload(DISCORD, "failed", "c-0001", "x" * 5000)["content"]) <= 2000


@pytest.mark.parametrize("url", ["", "hooks.slack.com/x", "ftp://host/", "file:///etc/passwd", "http://", "http://[", "http://host:port/", "https://a b/secret", "http://a\nb/"])  # fmt: skip
def test_what_is_no_web_address_is_refused_and_not_repeated(url: str, tmp_path: Path, capsys) -> None:
    with pytest.raises(InputError, match="no web address") as refused:
        check_address(url)
    assert "secret" not in str(refused.value)
    words = ["--goal", "beat LSTM on point-robot", "--env-steps", "2M", "--llm", "offline", f"--notify={url}"]
    assert main.main([*words, "--data-dir", str(tmp_path / "data")]) == 2
    assert not (tmp_path / "data" / "ledger.db").exists()


@pytest.mark.parametrize("how", ["refuses", "sends on", "slow", "nobody there"])
def test_a_hook_that_fails_is_one_line_without_its_address(
    how: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "TIME_LIMIT_S", 0.3 if how == "slow" else 5.0)
    Receiver.how, said = how, []
    url = "http://127.0.0.1:9/secret-path" if how == "nobody there" else address
    Hook(url, said.append).post("failed", "c-0001", "a goal")
    assert len(said) == 1
    assert said[0].startswith("--notify: 127.0.0.1 did not take the message (")
    assert "secret" not in said[0]
    assert len(Receiver.got) == (how != "nobody there")


def test_without_a_hook_nothing_is_sent() -> None:
    Hook(None, pytest.fail).post("failed", "c-0001", "a goal")


@pytest.mark.parametrize(
    ("ends", "told"), [("verdict", ["waiting", "verdict"]), ("fault", ["waiting", "failed"]), ("pause", ["waiting"])]
)
def test_a_campaign_tells_of_its_wait_its_verdict_and_its_failure(ends: str, told: list[str], data: Path, address: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # fmt: skip
    with closing(sqlite3.connect(data / "ledger.db")) as connection:
        connection.execute("update campaigns set stage = 'verdict', status = 'paused', ended_at = null")
        connection.commit()

    def work(lab: Any, llm: Any, *, on_event: Any, **options: Any) -> None:
        on_event(
            CrewEvent("waiting", "workflow", "Waits", {"text": "Waits", "key": "stage:verdict", "what": "a prompt"})
        )
        on_event(CrewEvent("waiting", "workflow", "Waits", {"text": "Waits"}))  # shown again
        if ends != "verdict":
            raise {"fault": RuntimeError("sk-secret in a prompt"), "pause": Paused("by a person")}[ends]

    monkeypatch.setattr(research_workflow, "run_research", work)
    monkeypatch.setattr(
        report, "write_report", lambda ledger, number, paths: (data / "report.html", data / "report.md")
    )
    monkeypatch.setenv("OPENAI_API_KEY", "")
    words = ["resume", "c-0001", "--llm", "offline", "--notify", address, "--data-dir", str(data)]
    if ends == "fault":
        with pytest.raises(RuntimeError):
            main.main(words)
    else:
        assert main.main(words) == {"verdict": 0, "pause": 130}[ends], capsys.readouterr()
    assert [message["event"] for message in Receiver.got] == told
    text = json.dumps(Receiver.got)
    assert not [word for word in ("prompt", "sk-secret", str(data), "secret-path") if word in text]
    if ends == "verdict":
        assert (Receiver.got[-1]["outcome"], Receiver.got[-1]["campaign"]) == ("inconclusive", "c-0001")
    with closing(sqlite3.connect(data / "ledger.db")) as connection:
        assert "secret-path" not in "\n".join(connection.iterdump())


def test_the_address_of_a_hook_is_recorded_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["main.py", "--goal", "x", "--notify", SLACK, f"--notify={DISCORD}", "--seed", "1"]
    )
    provenance.checkout_and_machine.cache_clear()
    try:
        assert provenance.provenance()["command"] == [
            "main.py",
            "--goal",
            "x",
            "--notify",
            "***",
            "--notify=***",
            "--seed",
            "1",
        ]
    finally:
        provenance.checkout_and_machine.cache_clear()
