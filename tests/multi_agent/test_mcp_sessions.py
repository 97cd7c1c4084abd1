"""Sessions of MCP clients beside each other: each campaign is opened once, each turn has one session, and no process ends unseen."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from crew_on_script import crew_lab
from mcp_clients import asking, driver_of, over_http, served, wait_until

from core.errors import InputError
from experiments.campaign.holder import TOKEN, process_here
from experiments.ledger import Ledger
from experiments.ledger.models import Campaign
from experiments.ledger.store import now
from experiments.reading.queries import list_campaigns
from multi_agent.mcp import mailbox, server
from multi_agent.mcp.driver import Client
from multi_agent.mcp.openings import PLANNING_S, Opening
from multi_agent.mcp.values import OpenArguments

GOAL = OpenArguments(goal="beat LSTM on point-robot", env_steps="1M")


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LOOK_S", 0.05)
    monkeypatch.setattr(server, "WAIT_S", 0.3)


def campaign_held_by(ledger: Ledger, pid: int) -> int:
    """A campaign's row, as the process of that number writes it."""
    holder = {**process_here(pid), "token": "t", "seen": now().isoformat()}
    row = Campaign(
        goal=GOAL.goal, question={}, plan={}, seed=0, stage="search", status="running", llm="mcp", holder=holder, provenance={}, created_at=now()
    )  # fmt: skip
    return ledger.add(row)


def in_parallel(*calls: Callable[[], Any]) -> list[Any]:
    """What calls give, or are refused with, that begin at the same moment in a thread each."""
    gate, results = threading.Barrier(len(calls)), [None] * len(calls)

    def work(place: int) -> None:
        gate.wait()
        try:
            results[place] = calls[place]()
        except InputError as problem:
            results[place] = str(problem)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


def program_of(code: str) -> tuple[str, ...]:
    """A program in the campaign's place: its first argument is all of its code."""
    return (sys.executable, "-c", code)


def test_a_campaign_that_is_opened_twice_at_once_is_one_also_by_two_servers_and_another_session_joins_it(
    tmp_path: Path,
) -> None:
    one, other = driver_of(tmp_path), driver_of(tmp_path)  # two servers of one data folder
    one.program = other.program = program_of("import time; time.sleep(60)")
    mine, again, theirs = Client("a"), Client("b"), Client("c")
    try:
        given = in_parallel(
            lambda: one.open(mine, GOAL), lambda: one.open(mine, GOAL), lambda: one.open(again, GOAL), lambda: other.open(theirs, GOAL)
        )  # fmt: skip
        assert given == [None] * 4
        assert len(list((tmp_path / "mcp").glob("*.log"))) == 1
        pids = {client.opening.process["pid"] for client in (mine, again, theirs) if client.opening is not None}
        assert len(pids) == 1
        others = GOAL.model_copy(update={"goal": "Beat  lstm on point-robot", "seed": 1})
        assert "is being planned: ask next_turn in 5 s to join it" in str(in_parallel(lambda: other.open(Client("d"), others)))  # fmt: skip
        (made,) = {opening.process["pid"] for opening in one.openings.living()}
        number = campaign_held_by(one.writable, made)
        for driver, client in ((one, mine), (one, again), (other, theirs)):
            assert driver.turn(client) is None
            assert (client.campaign, client.opening) == (number, None)
        refused = str(in_parallel(lambda: other.open(Client("d"), others)))
        assert "c-0001 has this goal and is at work: join it" in refused
        assert "stop c-0001" in refused  # not the newest, which may be another one
        joined = Client("e")
        other.open(joined, GOAL)  # the same words again, by a session that came later
        assert joined.campaign == number
    finally:
        for opening in one.openings.living():
            os.kill(opening.process["pid"], signal.SIGKILL)
    wait_until(lambda: one.openings.living() == [])  # the server's child is no zombie


def test_a_process_of_another_machine_that_never_said_more_blocks_no_goal_for_ever(tmp_path: Path) -> None:
    driver, log = driver_of(tmp_path), tmp_path / "mcp" / "there.log"
    log.parent.mkdir()
    log.write_text("Measuring this machine's training throughput ...")
    there = {
        "pid": 7,
        "host": "another-machine",
        "start": 1,
        "where": "x",
        "since": "2026-01-01T00:00:00+00:00",
        "token": "t",
    }
    opening = Opening(there, ("resume",), "g", log, newest=0)
    (tmp_path / "mcp" / "opened.json").write_text(json.dumps([{"process": there, "words": ["resume"], "goal": "g", "newest": 0, "campaign": None, "log": str(log)}]))  # fmt: skip
    assert not opening.has_ended
    assert [o.goal for o in driver.openings.living()] == ["g"]
    os.utime(log, (log.stat().st_atime, time.time() - PLANNING_S - 1))
    assert opening.has_ended
    assert driver.openings.living() == []
    opening.campaign = 1  # from then on the campaign's own signs of life tell
    assert not opening.has_ended


def test_a_campaign_that_dies_at_its_start_is_told_with_its_last_lines_and_one_that_dies_later_too(
    tmp_path: Path,
) -> None:
    driver, client = driver_of(tmp_path), Client("a")
    driver.program = program_of("print('loading'); raise RuntimeError('no \\x1b[31mroom')")
    driver.open(client, GOAL)
    opening = client.opening
    assert opening is not None
    wait_until(lambda: opening.has_ended)
    with pytest.raises(
        InputError,
        match=r"ended with exit code 1; its last lines: loading \| Traceback .*RuntimeError: no \\x1b\[31mroom. Its log: ",
    ):
        driver.turn(client)  # fmt: skip
    assert not Path(f"/proc/{opening.process['pid']}").exists()  # nobody has to ask for its end
    with pytest.raises(InputError, match="there is no campaign yet"):
        driver.turn(client)
    driver.program = program_of("import time; time.sleep(60)")
    driver.open(client, GOAL)
    assert client.opening is not None
    pid = client.opening.process["pid"]
    campaign_held_by(driver.writable, pid)
    assert driver.turn(client) is None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: driver.openings.living() == [])
    standing = driver.standing(client, None)
    assert standing.state == "not running"
    assert "c-0001 is interrupted: no process works on it. Go on with the tool resume_campaign" in standing.text
    assert "the campaign's process ended with exit code -9; its last lines: none" in standing.text
    assert list_campaigns(driver.ledger).records()[0]["status"] == "interrupted"


def test_a_turn_has_one_session_until_that_leaves_or_its_server_ends_and_others_hear_who_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab, dead = crew_lab(tmp_path, 1), process_here(os.getpid()) | {"start": "1"}  # another process had this number
    one, other = driver_of(tmp_path), driver_of(tmp_path)
    first, second, third = Client("claude"), Client("codex"), Client("cursor")
    with lab.holding():
        lab.set_stage("search")
        told = {"prompt": "p", "turn": {"kind": "plan"}, "tools": ["ledger_query"], "holder": TOKEN}
        number = lab.record_event("turn", "Coordinator", told)
        turns = in_parallel(lambda: one.turn(first), lambda: one.turn(second), lambda: other.turn(third), lambda: one.turn(first))  # fmt: skip
        taken = {turn.holder.client for turn in turns if turn is not None}
        assert len(taken) == 1
        assert len(lab.events(["mcp"])) == 1
        (name,) = taken
        clients = {"claude": (one, first), "codex": (one, second), "cursor": (other, third)}
        driver, holder = clients.pop(name)
        assert driver.turn(holder).number == number  # asked again it is still its own
        for waiting, client in clients.values():
            standing = waiting.standing(client, waiting.turn(client))
            assert standing.state == "another's turn"
            assert re.search(rf"another session, of the client {name}, has the turn of Coordinator until \d\d:\d\d:\d\d UTC", standing.text)  # fmt: skip
            with pytest.raises(InputError, match="is not yours any more"):
                waiting.hand(client).call(turns[0] or driver.turn(holder), "ledger_query", {})
            with pytest.raises(InputError, match="is not yours any more"):
                waiting.hand(client).finish(driver.turn(holder), "Done.")
        calls = in_parallel(*[lambda: driver.hand(holder).call(driver.turn(holder), "ledger_query", {"view": "top"})] * 3)  # fmt: skip
        assert len(set(calls)) == 1  # the same call at once runs once
        driver.leave(holder)
        (next_driver, heir), *_ = clients.values()
        with monkeypatch.context() as patch:  # the heir's server is killed: with it, its sessions have no turn any more
            patch.setattr(mailbox, "process_here", lambda pid: dead)
            turn = next_driver.turn(heir)
        assert turn.holder.session == heir.session
        turn = driver.turn(holder)
        assert turn.holder.session == holder.session
        ended = in_parallel(*[lambda: driver.hand(holder).finish(turn, "Done.")] * 2)
        assert sorted(ended, key=str) == [None, "the turn of Coordinator is over: ask next_turn"]


def test_a_session_that_ends_gives_its_turn_to_the_next_one_over_http(tmp_path: Path) -> None:
    lab = crew_lab(tmp_path, 1)

    async def main(url: str) -> None:
        async with over_http(url) as session:
            assert (await asking(session)("next_turn"))["state"] == "your turn"
            async with over_http(url) as other:
                standing = await asking(other)("next_turn")
                assert standing["state"] == "another's turn"
                assert "has the turn of Coordinator until" in await asking(other)("finish_turn", words="Done.")
        async with over_http(url) as session:
            now = await asking(session)("next_turn")
            while now["state"] != "your turn":
                now = await asking(session)("next_turn")

    with served(driver_of(tmp_path)) as url, lab.holding():
        lab.set_stage("search")
        told = {"prompt": "p", "turn": {"kind": "plan"}, "tools": ["ledger_query"], "holder": TOKEN}
        lab.record_event("turn", "Coordinator", told)
        anyio.run(main, url)
