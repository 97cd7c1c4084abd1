"""Who holds a campaign: one process at a time, on this machine or on another one."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from ledger_rows import add_campaign, dead_holder

import main
from core.errors import InputError
from experiments.campaign import holder as holder_module
from experiments.campaign.holder import describe_holder, holding, is_alive, this_process
from experiments.campaign.steering import human_words
from experiments.ledger import Ledger
from experiments.ledger.models import Campaign
from experiments.ledger.store import now
from experiments.runs.paths import Paths


def test_a_reused_process_number_is_told_apart() -> None:
    own = this_process()
    assert is_alive(own)
    assert not is_alive(own | {"start": "1"}) or own["start"] is None
    assert is_alive(own | {"host": "elsewhere", "pid": 1})
    assert not is_alive(dead_holder())
    assert not is_alive(None)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        holder = own | {"pid": child.pid, "start": holder_module._start_time(child.pid)}
        assert is_alive(holder)
        child.kill()
        wait_until = time.monotonic() + 10
        while is_alive(holder) and time.monotonic() < wait_until:  # ended, and not asked for by its parent
            time.sleep(0.01)
        assert not is_alive(holder) or holder["start"] is None


@pytest.fixture
def elsewhere() -> dict:
    """A holder in another container, whose process has the number that this one has here."""
    return this_process() | {"host": "a1b2c3", "token": "another", "seen": (now() - timedelta(hours=3)).isoformat()}


def test_two_processes_of_equal_number_in_two_containers_do_not_both_hold_a_campaign(
    ledger: Ledger, elsewhere: dict
) -> None:
    add_campaign(ledger, status="running", holder=elsewhere)
    with (
        pytest.raises(InputError, match=r"on a1b2c3 since .*, last sign of life 3h ago\. .*resume c-0001 --take-over"),
        holding(ledger, 1, threading.Event(), lambda: 1.0),
    ):
        pass
    assert ledger.get_campaign(1).holder == elsewhere


def test_a_container_of_this_name_that_gives_signs_of_life_keeps_its_campaign(ledger: Ledger, elsewhere: dict) -> None:
    beside = elsewhere | {"host": socket.gethostname(), "where": "this kernel, another container"}
    assert not is_alive(beside)  # three hours of silence: this machine was started anew
    add_campaign(ledger, status="running", holder=beside | {"seen": now().isoformat()})
    with pytest.raises(InputError, match="last sign of life"), holding(ledger, 1, threading.Event(), lambda: 1.0):
        pass


def test_a_person_takes_a_campaign_over_and_the_former_holder_stops_and_leaves_it_alone(
    ledger: Ledger, elsewhere: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder_module, "LOOK_EVERY_S", 0.05)
    add_campaign(ledger, status="paused", holder=None)
    stop = threading.Event()
    with holding(ledger, 1, stop, lambda: 5.0):
        with ledger.session() as session:  # what a take-over from elsewhere does
            session.get_one(Campaign, 1).holder = elsewhere
        assert stop.wait(30)
    row = ledger.get_campaign(1)
    assert (row.holder, row.status, row.spent_s) == (elsewhere, "running", 0.0)
    with holding(ledger, 1, threading.Event(), lambda: 7.0, take_over=True):
        assert ledger.get_campaign(1).holder["token"] == this_process()["token"]
    assert (ledger.get_campaign(1).holder, ledger.get_campaign(1).spent_s) == (None, 7.0)
    with ledger.session() as session:
        (word,) = human_words(session, 1)
    assert word.kind == "take-over"
    assert "a1b2c3" in word.text


def test_a_holder_that_lives_on_this_machine_is_not_taken_over(ledger: Ledger) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        other = this_process() | {"pid": process.pid, "start": None, "token": "another"}
        add_campaign(ledger, status="running", holder=other)
        with (
            pytest.raises(InputError, match=r"Pause that one first: python main.py pause c-0001$"),
            holding(ledger, 1, threading.Event(), lambda: 1.0, take_over=True),
        ):
            pass
    finally:
        process.communicate()


def test_a_holder_gives_signs_of_life_while_it_works(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holder_module, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(holder_module, "SIGN_EVERY_S", 0.05)
    add_campaign(ledger, status="paused", holder=None)
    with holding(ledger, 1, threading.Event(), lambda: 1.0):
        first = ledger.get_campaign(1).holder["seen"]
        until = time.monotonic() + 30
        while ledger.get_campaign(1).holder["seen"] == first and time.monotonic() < until:
            time.sleep(0.05)
        assert ledger.get_campaign(1).holder["seen"] > first
        assert ledger.get_campaign(1).spent_s == 1.0  # so that a kill loses seconds and not the whole sitting
    assert ledger.get_campaign(1).holder is None


def test_a_holder_of_a_time_without_signs_of_life_is_looked_up_as_before() -> None:
    old = {k: this_process()[k] for k in ("pid", "host", "since", "start")}
    assert is_alive(old)
    assert "last sign" not in describe_holder(old)
    assert is_alive(old | {"host": "elsewhere"})
    assert not is_alive({k: dead_holder()[k] for k in old})


@pytest.mark.parametrize("words", [["pause", "c-0001"], ["stop", "c-0001"], ["instruct", "c-0001", "smaller"]])
def test_a_word_to_a_campaign_held_elsewhere_says_when_that_gave_its_last_sign_and_how_it_is_taken_over(
    words: list[str], tmp_path: Path, elsewhere: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = Paths.of(tmp_path)
    add_campaign(Ledger(paths.ledger_url), status="running", holder=elsewhere)
    assert main.main([*words, "--data-dir", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "last sign of life 3h ago" in said
    assert f"resume c-0001 --take-over --data-dir {tmp_path}" in said
