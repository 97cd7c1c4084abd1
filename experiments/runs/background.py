"""A command of this program in a process of its own, which outlives the one that starts it; what it says goes into a log."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.runs.paths import CHECKOUT

PROGRAM = (sys.executable, str(CHECKOUT / "main.py"))


def start_in_background(
    words: Sequence[str],
    log: Path,
    *,
    program: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start the command line with `words` in a session of its own, so that a terminal that closes does not end it.

    log: the file that takes all that it says, line by line. environment: variables beside this process's own.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        return subprocess.Popen(
            [*(PROGRAM if program is None else program), *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
        )


def new_log(folder: Path, prefix: str = "") -> Path:
    """A file in `folder` that is not there yet, named by the moment."""
    return folder / f"{prefix}{time.strftime('%Y%m%d-%H%M%S')}-{time.monotonic_ns()}.log"


def error_in(log: Path) -> str | None:
    """The sentence that a process ended with, None where its log has none."""
    lines = log.read_text(errors="replace").splitlines()
    return next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), None)
