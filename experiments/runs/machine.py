"""Cores and memory of this machine, and memory of a process in MiB. Read from /proc; None where a system has none (macOS, Windows).

What a run really occupies is measured (resident memory), not its address space: PyTorch, MuJoCo and numba map several
times the memory that they touch, and a GPU build maps tens of GiB, so RLIMIT_AS would either refuse runs that fit or
allow any. A resident-size limit of the kernel (RLIMIT_RSS) has had no effect since Linux 2.4, and a control group
needs rights that a user may not have.
"""

from __future__ import annotations

import os
from pathlib import Path

SHARE = 0.8  # of the machine's memory that all runs together may use
FALLBACK_MB = 16_384  # total memory assumed where it cannot be read
MOST_WORKERS = 2


def available_workers() -> int:
    """Runs that are trained at once: one a core that this process may use, two at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_WORKERS, cores))


def machine_memory_mb() -> int | None:
    """Memory that this process may use at all: the machine's, or its control group's limit where that is less."""
    found = [_field(Path("/proc/meminfo"), "MemTotal")]
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(int(Path(place).read_text()) // 2**20)
        except (OSError, ValueError):  # absent, or "max": no limit
            continue
    known = [value for value in found if value is not None]
    return min(known) if known else None


def default_memory_limit_mb(workers: int) -> int:
    """What one of `workers` runs at once may use: an equal part of most of the machine's memory."""
    return max(1, int((machine_memory_mb() or FALLBACK_MB) * SHARE / max(workers, 1)))


def memory_used_mb(pid: int) -> int | None:
    """The most that a process has occupied so far, plus what its children occupy now; None where it has ended.

    The kernel keeps the high-water mark, so a peak between two looks is seen too.
    """
    own = _field(Path(f"/proc/{pid}/status"), "VmHWM")
    if own is None:
        return None
    return own + sum(_field(Path(f"/proc/{child}/status"), "VmRSS") or 0 for child in _descendants(pid))


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(word) for word in file.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *_descendants(child)]
    return found


def _field(file: Path, name: str) -> int | None:
    """A field such as `VmHWM:   1234 kB` in MiB."""
    try:
        for line in file.read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) // 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
