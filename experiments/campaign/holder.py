"""Who works on a campaign: one process at a time, whether it still lives, and how another one asks it to stop.

A process is told apart by a token that it draws, beside its number and its machine: two containers may have equal process numbers,
and a number is used again. Whoever holds a campaign gives a sign of life while it works. A holder on this machine is looked up among
its processes; of one elsewhere only the age of its last sign is known, and whether its machine is gone is for a person to say.
"""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from core.errors import InputError
from core.words.commands import command
from experiments.ledger.models import Campaign, Event
from experiments.ledger.store import Ledger, now
from experiments.numbers import format_seconds
from experiments.vocabulary import readable_id

LOOK_EVERY_S = 2.0  # between two looks for a word that asks to pause or to end
SIGN_EVERY_S = 10.0  # between two signs of life
SILENT_S = 120.0  # without a sign, after which a holder from before this machine's start is taken for ended
TOKEN = uuid.uuid4().hex  # a forked process has its parent's token and another number


@contextmanager
def holding(
    ledger: Ledger,
    campaign_id: int,
    stop: threading.Event,
    spent_s: Callable[[], float],
    *,
    take_over: bool = False,
) -> Iterator[None]:
    """Marks a campaign as worked on by this process; InputError where another one holds it.

    stop: set when a pause or an end is asked for, and when another process took the campaign over. spent_s: wall seconds of
    all sittings, kept with every sign of life and on letting go. take_over: take it from a holder elsewhere, whose machine a person knows to be gone.
    """
    from experiments.runs.runner import (
        Paused,
    )  # not above: commands that only read want to know who holds, and start fast

    _take(ledger, campaign_id, take_over=take_over)
    released = threading.Event()
    threading.Thread(target=_listen, args=(ledger, campaign_id, stop, released, spent_s), daemon=True).start()
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


def _take(ledger: Ledger, campaign_id: int, *, take_over: bool) -> None:
    with ledger.session() as session:
        row = session.get_one(Campaign, campaign_id, with_for_update=True)
        held = row.status == "running" and not _is_this_process(row.holder) and is_alive(row.holder)
        if held and (_is_here(row.holder) or not take_over):
            raise InputError(
                f"{readable_id('c', campaign_id)} is being worked on by {_advice(campaign_id, row.holder)}"
            )
        taken_from = describe_holder(row.holder)
        row.status = "running" if row.stage != "done" else "done"
        row.holder = this_process()
    if held:
        ledger.record_event(campaign_id, "take-over", "human", {"text": f"from {taken_from}"})


def _advice(campaign_id: int, holder: dict[str, Any] | None) -> str:
    pause = f"Pause that one first: {command('pause', readable_id('c', campaign_id))}"
    return ". ".join(filter(None, (describe_holder(holder), pause, if_gone(campaign_id, holder))))


def if_gone(campaign_id: int, holder: dict[str, Any] | None) -> str:
    """What a person does where the machine of a holder elsewhere is gone; nothing of one that is seen from here."""
    if holder is None or _is_here(holder):
        return ""
    return f"If its machine is gone, take the campaign over: {command('resume', readable_id('c', campaign_id), '--take-over')}"


def _listen(
    ledger: Ledger,
    campaign_id: int,
    stop: threading.Event,
    released: threading.Event,
    spent_s: Callable[[], float],
) -> None:
    """Give signs of life, with the time spent so that a kill loses little of it; hear when a second process asks for a
    pause or an end by an event, or has taken over."""
    own = Event.campaign_id == campaign_id
    with ledger.session() as session:
        last = session.scalar(select(func.max(Event.id)).where(own)) or 0
    query = select(Event.id).where(own, Event.id > last, Event.kind.in_(("pause", "stop"))).limit(1)
    unsigned_s = 0.0
    while not released.wait(LOOK_EVERY_S):
        unsigned_s += LOOK_EVERY_S
        try:
            with ledger.session() as session:
                row = session.get_one(Campaign, campaign_id)
                asked = session.scalar(query) is not None or not _is_this_process(row.holder)
                if unsigned_s >= SIGN_EVERY_S and not asked and not released.is_set():
                    row.holder, row.spent_s = {**(row.holder or {}), "seen": now().isoformat()}, spent_s()
                    unsigned_s = 0.0
        except OperationalError:  # a ledger that is busy or out of reach for a moment: look again
            continue
        if asked:
            stop.set()
            return


def _let_go(ledger: Ledger, campaign_id: int, status: str, spent_s: float) -> None:
    with ledger.session() as session:
        row = session.get_one(Campaign, campaign_id)
        if not _is_this_process(row.holder):  # taken over: the campaign is another one's
            return
        row.status, row.holder, row.spent_s = status, None, spent_s
        if status == "done" and row.ended_at is None:
            row.ended_at = now()


def this_process() -> dict[str, Any]:
    """What is written beside a campaign while this process works on it."""
    told = process_here(os.getpid())
    return told | {"token": TOKEN, "seen": told["since"]}


def process_here(pid: int) -> dict[str, Any]:
    """What tells a process of this machine apart, so that `is_alive` can ask for it later on."""
    return {
        "pid": pid,
        "host": socket.gethostname(),
        "since": now().isoformat(),
        "start": _start_time(pid),
        "where": _where(),
    }


def standing_of(campaign: Campaign) -> str:
    """A campaign's status as everybody is told it: one that says running and whose process has ended is "interrupted"."""
    return "interrupted" if campaign.status == "running" and not is_alive(campaign.holder) else campaign.status


def is_alive(holder: dict[str, Any] | None) -> bool:
    """Whether the process that holds a campaign lives. One on another machine does until it lets go itself or is taken over."""
    if holder is None:
        return False
    if holder["host"] != socket.gethostname():
        return True
    if not _is_here(holder):  # this machine before it was started anew, or another container of its name
        silent_s = silent_seconds(holder)
        return silent_s is not None and silent_s < SILENT_S
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return holder.get("start") is None or _start_time(holder["pid"]) == holder["start"]


def describe_holder(holder: dict[str, Any] | None) -> str:
    """Who holds a campaign, in words; of one elsewhere with the age of its last sign of life."""
    if holder is None:
        return "nobody"
    words = f"process {holder['pid']} on {holder['host']} since {holder['since'][:16].replace('T', ' ')}"
    silent_s = silent_seconds(holder)
    if not _is_here(holder) and silent_s is not None:
        words += f", last sign of life {format_seconds(max(silent_s, 0.0))} ago"
    return words if is_alive(holder) else f"{words}, which has ended"


def _is_this_process(holder: dict[str, Any] | None) -> bool:
    return holder is not None and (holder.get("token"), holder["pid"]) == (TOKEN, os.getpid())


def _is_here(holder: dict[str, Any] | None) -> bool:
    """Whether the holder's process number can be looked up among the processes that are seen from here."""
    return holder is not None and holder["host"] == socket.gethostname() and holder.get("where", _where()) == _where()


def _where() -> str | None:
    """The machine's present start and the container's own count of processes; None where the system tells neither."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def silent_seconds(holder: dict[str, Any] | None) -> float | None:
    """Seconds since the holder's last sign of life; None for nobody, and for one of a time when there were no signs."""
    seen = None if holder is None else holder.get("seen")
    return None if seen is None else (now() - datetime.fromisoformat(seen)).total_seconds()


def _start_time(pid: int) -> str | None:
    """When a process started, in the kernel's own count, so that a reused pid is told apart. None where unknown, and of one that has
    ended and whose parent has not asked for its end yet."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return None if state in "ZX" else numbers[18]
    except (OSError, IndexError, ValueError):
        return None
