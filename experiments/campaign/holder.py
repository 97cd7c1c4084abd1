"""Who works on a campaign: one process at a time, whether it still lives, and how another one asks it to stop."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from core.commands import command
from core.errors import InputError
from experiments.ledger.models import Campaign, Event
from experiments.ledger.store import Ledger, now
from experiments.vocabulary import readable_id

LOOK_EVERY_S = 2.0  # between two looks for a word that asks to pause or to end


@contextmanager
def holding(ledger: Ledger, campaign_id: int, stop: threading.Event, spent_s: Callable[[], float]) -> Iterator[None]:
    """Marks a campaign as worked on by this process; InputError where another one holds it.

    stop: set when a pause or an end is asked for. spent_s: wall seconds of all sittings, kept on letting go.
    """
    from experiments.runs.runner import (
        Paused,
    )  # not above: commands that only read want to know who holds, and start fast

    _take(ledger, campaign_id)
    released = threading.Event()
    threading.Thread(target=_listen, args=(ledger, campaign_id, stop, released), daemon=True).start()
    status = "failed"
    try:
        yield
        status = "done" if ledger.get_campaign(campaign_id).stage == "done" else "paused"
    except (Paused, KeyboardInterrupt):
        status = "paused"
        raise
    finally:
        released.set()
        _let_go(ledger, campaign_id, status, spent_s())


def _take(ledger: Ledger, campaign_id: int) -> None:
    with ledger.session() as session:
        row = session.get_one(Campaign, campaign_id, with_for_update=True)
        elsewhere = row.holder is not None and row.holder["pid"] != os.getpid()
        if row.status == "running" and elsewhere and is_alive(row.holder):
            name = readable_id("c", campaign_id)
            raise InputError(
                f"{name} is being worked on by {describe_holder(row.holder)}. Pause that one first: {command('pause', name)}"
            )
        row.status = "running" if row.stage != "done" else "done"
        row.holder = this_process()


def _listen(ledger: Ledger, campaign_id: int, stop: threading.Event, released: threading.Event) -> None:
    """A second process asks for a pause or an end by an event."""
    own = Event.campaign_id == campaign_id
    with ledger.session() as session:
        last = session.scalar(select(func.max(Event.id)).where(own)) or 0
    query = select(Event.id).where(own, Event.id > last, Event.kind.in_(("pause", "stop"))).limit(1)
    while not released.wait(LOOK_EVERY_S):
        with ledger.session() as session:
            asked = session.scalar(query) is not None
        if asked:
            stop.set()
            return


def _let_go(ledger: Ledger, campaign_id: int, status: str, spent_s: float) -> None:
    with ledger.session() as session:
        row = session.get_one(Campaign, campaign_id)
        row.status, row.holder, row.spent_s = status, None, spent_s
        if status == "done" and row.ended_at is None:
            row.ended_at = now()


def this_process() -> dict[str, Any]:
    """What is written beside a campaign while this process works on it."""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": now().isoformat(),
        "start": _start_time(os.getpid()),
    }


def is_alive(holder: dict[str, Any] | None) -> bool:
    """Whether the process that holds a campaign lives. One on another machine does until it lets go itself."""
    if holder is None:
        return False
    if holder["host"] != socket.gethostname():
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return holder.get("start") is None or _start_time(holder["pid"]) == holder["start"]


def describe_holder(holder: dict[str, Any] | None) -> str:
    """Who holds a campaign, in words."""
    if holder is None:
        return "nobody"
    words = f"process {holder['pid']} on {holder['host']} since {holder['since'][:19]}"
    return words if is_alive(holder) else f"{words}, which has ended"


def _start_time(pid: int) -> str | None:
    """When a process started, in the kernel's own count, so that a reused pid is told apart. None where unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None
