"""Which process works on a campaign, and whether it still lives."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from experiments.ledger.store import now


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
