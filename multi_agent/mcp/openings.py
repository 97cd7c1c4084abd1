"""Campaign processes that servers have started: each goal once, also where two ask at the same moment, and none that ends unseen.

What was started stands in a file of the data folder while its process lives, so that another session, or another server of the same
ledger, finds it before its campaign is in the ledger. Who starts one holds the ledger's write lock meanwhile, and looks there first.
"""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import text

from core.files import write_atomic
from core.words.text import harmless
from experiments.campaign.holder import is_alive, process_here
from experiments.ledger.store import Ledger
from experiments.runs.background import error_in, new_log, start_in_background
from multi_agent.llm.choose import redact

LAST_LINES = 5
PLANNING_S = 600  # no plan takes that long without a word
ON_PURPOSE = (0, 130)  # exit codes of a campaign that is done or was paused


@dataclass
class Opening:
    """A campaign's process, from its start on."""

    process: dict[str, Any]
    """As `experiments/campaign/holder.py` tells processes apart."""
    words: tuple[str, ...]
    """Its command line."""
    goal: str
    log: Path
    newest: int
    """The newest campaign before it."""
    campaign: int | None = None
    """The one that it goes on with, or made."""
    child: subprocess.Popen[bytes] | None = None
    """None where another server started it."""

    @property
    def has_ended(self) -> bool:
        if self.child is not None:
            return self.child.poll() is not None
        return not is_alive(self.process) or self._is_silent()

    def _is_silent(self) -> bool:
        """Whether a process of another machine, of which nothing else tells, has neither made its campaign nor said a word for long."""
        if self.campaign is not None or self.process["host"] == socket.gethostname():
            return False
        try:
            return time.time() - self.log.stat().st_mtime > PLANNING_S
        except OSError:
            return True

    @property
    def code(self) -> int | None:
        """Its exit code; None while it lives, and of another server's."""
        return None if self.child is None else self.child.poll()

    def last_words(self) -> str:
        """Why it ended, as far as its log tells: the sentence that refused it, else its last lines."""
        refused: str | None = None
        lines: list[str] = []
        with suppress(OSError):
            refused = error_in(self.log)
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        if refused is not None:
            return harmless(redact(refused))
        end = "the campaign's process ended" + ("" if self.code is None else f" with exit code {self.code}")
        said = " | ".join(line.strip() for line in lines[-LAST_LINES:])
        return harmless(redact(f"{end}; its last lines: {said or 'none'}. Its log: {self.log}"))


class Openings:
    """Starts campaign processes for the servers of one ledger.

    folder: of logs and of the file of living processes. writable: gives the ledger, whose write lock keeps others out.
    """

    def __init__(self, folder: Path, writable: Callable[[], Ledger]) -> None:
        self._folder, self._writable = folder, writable
        self._lock = threading.Lock()
        self._file = folder / "opened.json"
        self._own: list[Opening] = []  # with their processes, of which this one is the parent

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else starts a campaign on this ledger meanwhile."""
        with self._lock, self._writable().session() as session:
            on_server = self._writable().backend == "postgresql"
            session.execute(
                text("SELECT pg_advisory_xact_lock(5242)" if on_server else "SELECT 1")
            )  # SQLite's locks it all
            yield

    def start(self, words: Sequence[str], goal: str, newest: int, campaign: int | None = None) -> Opening:
        """Start the command line in a process of its own, which outlives this one; what it says goes into a log. Inside `alone`."""
        log = new_log(self._folder)
        child = start_in_background(words, log, program=())
        threading.Thread(target=child.wait, daemon=True).start()  # so that it is no zombie once it has ended
        opening = Opening(process_here(child.pid), tuple(words), goal, log, newest, campaign, child)
        self._own.append(opening)
        self._write([*self.living(), opening])
        return opening

    def living(self) -> list[Opening]:
        """Processes that were started here or by another server of this data folder, and live."""
        try:
            kept = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return []
        own = {opening.process["pid"]: opening for opening in self._own}
        found = [Opening(**(told | {"words": tuple(told["words"]), "log": Path(told["log"])})) for told in kept]
        return [own.get(opening.process["pid"], opening) for opening in found if not opening.has_ended]

    def made(self, opening: Opening, campaign: int) -> None:
        """Write down which campaign a process made."""
        with self.alone():
            opening.campaign = campaign
            others = [other for other in self.living() if other.process["pid"] != opening.process["pid"]]
            self._write([*others, opening])

    def of(self, campaign: int) -> Opening | None:
        """The newest process of a campaign that this server started."""
        return next((o for o in reversed(self._own) if o.campaign == campaign), None)

    def _write(self, openings: Sequence[Opening]) -> None:
        names = ("process", "words", "goal", "newest", "campaign")
        told = [{name: getattr(o, name) for name in names} | {"log": str(o.log)} for o in openings]
        write_atomic(self._file, json.dumps(told).encode())
