"""A campaign in the background: it outlives its terminal, its log ends with one record, and any terminal may watch it."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from ledger_on_hand import add_run, campaign, held_by

import main
from cli import attach, background
from cli.app import app
from cli.options import CrewOptions, LedgerOptions
from experiments.ledger import Ledger
from experiments.ledger.models import Campaign, Run
from experiments.ledger.store import now


@pytest.fixture
def other() -> Any:
    """A process that lives until the test ends."""
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        yield process
        process.communicate()


def _stopped(data: Path) -> Ledger:
    """A campaign that a person ended while nobody worked on it, so that a process that resumes it has little to do."""
    ledger = campaign(data, "paused")
    ledger.record_event(1, "stop", "human", {})
    return ledger


def test_a_detached_campaign_is_worked_on_by_the_process_named_and_its_log_ends_with_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    _stopped(data)
    assert main.main(["resume", "c-1", "--llm", "offline", "--detach", "--json", "--data-dir", str(data)]) == 0
    launch = json.loads(capsys.readouterr().out)["launch"]
    assert (launch["campaign"], launch["data_folder"]) == ("c-0001", str(data))
    place = f"--data-dir {data}"
    assert launch["commands"]["attach"] == f"python main.py attach c-0001 {place}"
    assert set(launch["commands"]) == {"attach", "status", "pause", "stop"}
    with suppress(ChildProcessError):  # the command has asked for its end already, where it was so soon
        os.waitpid(launch["process"], 0)
    *said, last = Path(launch["log"]).read_text().splitlines()
    assert any("No confirmation run had begun" in line for line in said)
    done = json.loads(last)["done"]
    assert done.pop("seconds") > 0
    assert done == {"campaign": "c-0001", "stage": "done", "outcome": None, "exit_status": 0}
    with closing(sqlite3.connect(data / "ledger.db")) as connection:
        assert connection.execute("select stage, status, holder from campaigns").fetchall() == [("done", "done", "null")]  # fmt: skip


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("print('Going on'); print('error: c-0001 is held'); raise SystemExit(2)", "error: c-0001 is held\n"),
        ("raise SystemExit(7)", "error: c-0001: its process ended with 7 at once; see "),
    ],
)
def test_what_cannot_start_in_the_background_is_the_error_of_the_command_that_started_it(
    program: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    campaign(data, "paused")
    monkeypatch.setattr("experiments.runs.background.PROGRAM", (sys.executable, "-c", program))
    assert main.main(["resume", "c-1", "--llm", "offline", "--detach", "--data-dir", str(data)]) == 2
    streams = capsys.readouterr()
    assert streams.err.startswith(words)
    assert "In the background" not in streams.out


@pytest.mark.parametrize("words", [["resume", "c-1"], ["--goal", "beat LSTM on point-robot"]])
def test_a_dry_run_detaches_nothing(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    campaign(tmp_path / "data", "paused")
    assert main.main([*words, "--detach", "--dry-run", "--data-dir", str(tmp_path / "data")]) == 2
    assert "either --dry-run or --detach" in capsys.readouterr().err
    assert not (tmp_path / "data" / "logs").exists()


def test_the_campaigns_of_one_goal_follow_each_other_and_each_has_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, called = tmp_path / "data", []
    ledger = campaign(data, "paused", "paused", "paused")

    def run(words: Any) -> int:
        called.append(words)
        if words[1] == "c-0002":
            raise RuntimeError("a fault")
        return 0

    monkeypatch.setenv(background.RECORD, json.dumps({"campaigns": [1, 2, 3], "ledger": str(ledger.url)}))
    assert background.work(run, ["resume", "c-0001", "--llm=offline"]) == 1
    assert called == [["resume", "c-0001", "--llm=offline"], ["resume", "c-0002", "--llm=offline"]]
    records = [json.loads(line)["done"] for line in capsys.readouterr().out.splitlines()]
    assert [(r["campaign"], r["stage"], r["exit_status"]) for r in records] == [("c-0001", "baseline", 0), ("c-0002", "baseline", 1)]  # fmt: skip
    assert background.RECORD not in os.environ  # which the processes that train would have too


def test_what_was_said_of_the_crew_is_said_again_to_the_process_in_the_background(tmp_path: Path) -> None:
    said = CrewOptions(llm="openai:x", base_url="http://host/v1", max_usd=0.5, max_tokens=7, agents=["Meta-Learning", "Environment"], approve_each="stage", notify="https://host/x")  # fmt: skip
    place = LedgerOptions(data_dir=str(tmp_path), ledger="sqlite:///x.db")
    _, bound, _ = app.parse_args(["resume", "c-0001", *said.words(), *place.words()])
    assert (bound.arguments["brain"], bound.arguments["options"]) == (said, place)
    assert CrewOptions().words() == []


# ---- attach -------------------------------------------------------------------------------


def _meanwhile(monkeypatch: pytest.MonkeyPatch, *steps: Any) -> None:
    """What the process at work does between two looks."""
    left = list(steps)
    monkeypatch.setattr(attach.time, "sleep", lambda _: left.pop(0)())


def test_attach_tells_what_was_said_and_which_runs_moved_on_until_the_campaign_pauses(
    tmp_path: Path, other: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    ledger = campaign(data, "running")
    held_by(ledger, other.pid)
    for number in range(20):
        ledger.record_event(1, "stage", "workflow", {"text": f"word {number}"})
    add_run(ledger, "search", "running", 640)

    def goes_on() -> None:
        ledger.record_event(1, "tool_call", "Meta-Learning", {"text": "propose(arm=challenger)"})
        ledger.record_event(1, "tool_result", "Meta-Learning", {"text": "feasible"})
        ledger.record_event(1, "launch", "lab", {"text": "not for people"})
        ledger.record_event(1, "waiting", "workflow", {"text": "Waits for approval", "key": "stage:claim", "what": "the claim."})  # fmt: skip
        add_run(ledger, "confirmation", "done", 1280, score=-123.25)
        with ledger.session() as session:
            run = session.get_one(Run, 1)
            run.status, run.score, run.ended_at = "done", -11.5, now()

    def pauses() -> None:
        ledger.record_event(1, "approve", "human", {"key": "stage:claim", "granted": True, "text": ""})
        with ledger.session() as session:
            row = session.get_one(Campaign, 1)
            row.status, row.holder = "paused", None

    _meanwhile(monkeypatch, goes_on, pauses)
    assert main.main(["attach", "--data-dir", str(data)]) == 130
    lines = capsys.readouterr().out.splitlines()
    assert "workflow: word 19" in lines
    assert "workflow: word 0" not in lines  # the newest of before are enough
    assert any(line.startswith("lab: r-0001 search challenger lstm: 640 of") for line in lines)
    assert "Meta-Learning: propose(arm=challenger) → feasible" in lines
    assert "lab: r-0001 search challenger lstm: done, return -11.5" in lines
    assert "lab: r-0002 confirmation challenger lstm: done" in lines
    assert "workflow: Approved: the claim." in lines
    assert lines[-1].startswith("c-0001 is paused at the stage baseline; nothing is lost. Go on with: python main.py resume c-0001")  # fmt: skip
    assert not [line for line in lines if "-123" in line or "not for people" in line]


def test_leaving_the_view_leaves_the_campaign_alone(
    tmp_path: Path, other: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    ledger = campaign(data, "paused", "running")
    held_by(ledger, other.pid, 2)

    def leave() -> None:
        raise KeyboardInterrupt

    _meanwhile(monkeypatch, leave)
    assert main.main(["attach", "--data-dir", str(data)]) == 0  # the one that runs, though it is not named
    assert "Left the view; c-0002 goes on." in capsys.readouterr().out
    assert [event.kind for event in ledger.events(2)] == []
    assert ledger.get_campaign(2).status == "running"


def test_a_campaign_whose_process_has_ended_says_how_to_go_on(tmp_path: Path, other: Any, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    data = tmp_path / "data"
    held_by(campaign(data, "running"), other.pid)
    other.communicate()
    assert main.main(["attach", "c-1", "--json", "--data-dir", str(data)]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert (shown["standing"], shown["verdict"]) == ("interrupted", None)
    assert shown["resume"] == f"python main.py resume c-0001 --data-dir {data}"


def test_a_campaign_that_was_just_made_is_waited_for_and_not_called_paused(
    tmp_path: Path, other: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    ledger = campaign(data, "paused")

    def taken(_: float) -> None:  # while it waits, the process begins, and ends without a word
        held_by(ledger, other.pid)
        with ledger.session() as session:
            session.get_one(Campaign, 1).status = "running"
        other.communicate()

    monkeypatch.setattr("cli.attach.time.sleep", taken)
    assert main.main(["attach", "c-1", "--data-dir", str(data)]) == 1
    said = capsys.readouterr()
    assert "c-0001 was just made; waiting for its process to begin" in said.out + said.err
    assert "is interrupted" in said.out


def test_a_finished_campaign_shows_its_verdict_and_ends(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (data / "ledger.db").read_bytes()
    assert main.main(["attach", "--data-dir", str(data)]) == 0
    assert "INCONCLUSIVE" in capsys.readouterr().out
    assert main.main(["attach", "--json", "--data-dir", str(data)]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"]["outcome"] == "inconclusive"
    assert (data / "ledger.db").read_bytes() == before


def test_there_is_nothing_to_attach_to_in_an_empty_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Ledger(f"sqlite:///{tmp_path / 'ledger.db'}").close()
    assert main.main(["attach", "--data-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
