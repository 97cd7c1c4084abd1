"""Executes jobs as processes: two at once on two cores, each in its own process group with one thread.

`Executor` is the interface; `LocalExecutor` is the one implementation. It streams messages to the caller's thread and
knows nothing of the ledger. Only process groups that it created itself are ever signalled. A run over its time or memory
limit is ended; memory is what the process really occupies, measured here (`experiments/runs/machine.py` says why).
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Protocol

from experiments.runs.machine import memory_used_mb
from experiments.runs.paths import CHECKOUT
from experiments.spec import RunSpec
from experiments.vocabulary import Pool

# glibc gives large blocks back to the system at once, and the page faults of getting them again cost up to 40 % of training.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "MALLOC_TOP_PAD_": "134217728",
}
GRACE_S = 20.0  # between asking a run to stop and ending its process group
CHECKPOINT_EVERY_S = 20.0
LOOK_EVERY_S = 0.2  # between two looks at a run's memory


@dataclass(frozen=True)
class Job:
    """One run to execute."""

    run_id: int
    spec: RunSpec
    pool: Pool
    checkpoint: Path
    """Where an interrupted run continues from, without suffix."""
    model: Path
    """Where the trained learner is written, without suffix."""
    log: Path
    time_limit_s: float
    memory_limit_mb: int | None = None
    """MiB that the run's process may occupy; None for no limit."""
    rungs: tuple[int, ...] = ()
    """Env steps after which the run reports a search-pool score and waits for leave to go on."""
    look_every: int | None = None
    """Env steps between two such scores that a person asked for."""
    best: Path | None = None
    """Where the model of the best of them is written, without suffix."""
    probe: bool = False
    """Train one iteration and end: shows whether the specification can be trained; there is no evaluation, no model."""

    def __post_init__(self) -> None:
        if (self.rungs or self.look_every) and self.pool != "search":
            raise ValueError(f"only runs on the search pool have rungs, this one is on {self.pool}")

    @classmethod
    def in_folder(cls, folder: Path, number: int, spec: RunSpec, **settings: Any) -> Job:
        """A job of no run in the ledger: all that it writes lies in `folder`, which the caller throws away."""
        places = {name: folder / f"{number}-{name}" for name in ("checkpoint", "model")}
        return cls(run_id=number, spec=spec, pool="search", log=folder / f"{number}.log", **places, **settings)


@dataclass(frozen=True)
class Started:
    pid: int


@dataclass(frozen=True)
class Report:
    """One training iteration."""

    env_steps: int
    metrics: Mapping[str, float]
    train_s: float | None = None
    """Seconds since the report before, or since this process began to train."""


@dataclass(frozen=True)
class Evaluated:
    """Raw evaluation results: name -> (tasks, episodes)."""

    pool: Pool
    values: Mapping[str, Sequence[Sequence[float]]]


@dataclass(frozen=True)
class Rung:
    """A run has come to rung `number` (from 1) and waits; score: on its pool's tasks, by its specification's metric.

    means: of a look that a person asked for, the mean over the same tasks of each quantity in `LOOKED_AT` that is known.
    """

    number: int
    env_steps: int
    score: float
    means: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """The last message of every job. status `stopped`: asked to, and can continue from its checkpoint."""

    status: str
    cause: str | None
    env_steps: int | None = None
    train_s: float | None = None
    """Seconds that this process trained."""
    sha256: str | None = None
    memory_mb: int | None = None
    """The most memory that the process occupied, in MiB; None where it could not be measured."""
    wall_s: float | None = None
    """Seconds from the start of the process to its end; None where there was none."""


Message = Started | Report | Evaluated | Rung | Ended
Listener = Callable[[Job, Message], "str | None"]
"""Gets every message. What it returns counts for a Rung alone: why the run is pruned there, or None to go on."""
_KINDS = {"started": Started, "report": Report, "eval": Evaluated, "rung": Rung, "end": Ended}


class Executor(Protocol):
    """Runs jobs to their end. `on_message` is called in the calling thread; every job gets exactly one Ended."""

    workers: int

    def run(self, jobs: Sequence[Job], on_message: Listener, stop: threading.Event) -> None: ...


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    began: float
    deadline: float
    buffer: bytearray = field(default_factory=bytearray)
    ended: Ended | None = None
    kill_at: float | None = None
    looked: float = 0.0


class LocalExecutor:
    """Jobs as processes of this machine.

    workers: how many run at once. environment: variables added for the processes, such as cache folders.
    """

    def __init__(self, workers: int, environment: Mapping[str, str] | None = None) -> None:
        self.workers = workers
        self._environment = dict(environment or {})

    def run(self, jobs: Sequence[Job], on_message: Listener, stop: threading.Event) -> None:
        waiting, running = list(jobs), []
        with selectors.DefaultSelector() as selector:
            try:
                while waiting or running:
                    while waiting and len(running) < self.workers and not stop.is_set():
                        entry = self._start(waiting.pop(0))
                        selector.register(entry.process.stdout, selectors.EVENT_READ, entry)  # type: ignore[arg-type]
                        running.append(entry)
                    if stop.is_set():
                        for job in waiting:
                            on_message(job, Ended("stopped", "not started yet"))
                        waiting.clear()
                        for entry in running:
                            if entry.kill_at is None:
                                self._ask_to_stop(entry)
                    for key, _ in selector.select(timeout=0.2):
                        entry = key.data
                        if not self._read(entry, on_message):
                            selector.unregister(key.fileobj)
                            running.remove(entry)
                            ended = self._finish(entry)
                            on_message(entry.job, replace(ended, wall_s=time.monotonic() - entry.began))
                    for entry in running:
                        self._enforce(entry)
            finally:
                for entry in running:
                    _end_group(entry.process)
                    entry.log.close()

    def _start(self, job: Job) -> _Running:
        for path in (job.log, job.checkpoint, job.model):
            path.parent.mkdir(parents=True, exist_ok=True)
        root = str(CHECKOUT)
        environment = {**MALLOC, **os.environ, **self._environment, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
        log = job.log.open("ab")
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.runs.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
        content = {
            "spec": job.spec.model_dump(mode="json"),
            "pool": job.pool,
            "checkpoint": str(job.checkpoint),
            "model": str(job.model),
            "rungs": job.rungs,
            "look_every": job.look_every,
            "best": None if job.best is None else str(job.best),
            "probe": job.probe,
            "checkpoint_every_s": CHECKPOINT_EVERY_S,
        }
        self._write(process, json.dumps(content))
        began = time.monotonic()
        return _Running(job, process, log, began, deadline=began + job.time_limit_s)

    def _write(self, process: subprocess.Popen[bytes], line: str) -> None:
        assert process.stdin is not None
        with suppress(OSError):  # it may have ended already; its end is read from its output
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()

    def _ask_to_stop(self, entry: _Running) -> None:
        entry.kill_at = time.monotonic() + GRACE_S
        self._write(entry.process, "stop")

    def _enforce(self, entry: _Running) -> None:
        moment = time.monotonic()
        if entry.ended is None and moment > entry.deadline:
            entry.ended = Ended("timeout", f"ran longer than its limit of {entry.job.time_limit_s:.0f} s")
            _end_group(entry.process)
        elif (entry.kill_at is not None and moment > entry.kill_at) or self._over_memory(entry, moment):
            _end_group(entry.process)

    def _over_memory(self, entry: _Running, moment: float) -> bool:
        """Whether the run occupied more than it may; its end then says how much."""
        limit = entry.job.memory_limit_mb
        if entry.ended is not None or limit is None or moment - entry.looked < LOOK_EVERY_S:
            return False
        entry.looked = moment
        used = memory_used_mb(entry.process.pid)
        if used is None or used <= limit:
            return False
        cause = f"out of memory: the run used {used:,} MiB, allowed are {limit:,} MiB a run"
        entry.ended = Ended("failed", cause, memory_mb=used)
        return True

    def _read(self, entry: _Running, on_message: Listener) -> bool:
        """Pass on complete lines; False at the end of the output."""
        assert entry.process.stdout is not None
        chunk = os.read(entry.process.stdout.fileno(), 1 << 16)
        entry.buffer += chunk
        while (end := entry.buffer.find(b"\n")) >= 0:
            content: dict[str, Any] = json.loads(entry.buffer[:end])
            del entry.buffer[: end + 1]
            message = _KINDS[content.pop("kind")](**content)
            if isinstance(message, Ended):
                entry.ended = entry.ended or message
                continue
            answer = on_message(entry.job, message)
            if isinstance(message, Report):
                self._write(entry.process, f"recorded {message.env_steps}")
            elif isinstance(message, Rung):
                self._write(entry.process, "go on" if answer is None else f"prune {answer}")
        return bool(chunk)

    def _finish(self, entry: _Running) -> Ended:
        assert entry.process.stdin is not None
        with suppress(OSError):
            entry.process.stdin.close()
        code = entry.process.wait()
        entry.log.close()
        if entry.ended is not None:
            return entry.ended
        if entry.kill_at is not None:
            return Ended("stopped", "did not stop in time; continues from its last checkpoint")
        reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return Ended("crashed", f"the process ended without a result ({reason}); see {entry.job.log}")


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process group that this executor started; its leader is not reaped yet, so the id is still its own."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
