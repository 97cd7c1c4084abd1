"""Training throughput of this machine, measured before a plan is made: a few real iterations, all workers busy."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from core.config import FrozenConfig
from core.errors import InputError
from experiments.runs.executor import Ended, Job, LocalExecutor, Message, Report, Started
from experiments.runs.paths import Paths
from experiments.runs.runner import Paused
from experiments.search.space import SearchSpace, iteration_steps

ITERATIONS = 4


class Throughput(FrozenConfig):
    """What one worker does while all are busy."""

    steps_per_s: float
    """Training env steps a second, harmonic mean over the arms' default configurations."""
    startup_s: float
    """Seconds of a run that are not training: process start, imports, evaluation."""


def measure_throughput(spaces: Sequence[SearchSpace], paths: Paths, workers: int, stop: threading.Event) -> Throughput:
    """Train the default of every space for a few iterations, as many at once as the campaign will.

    Raises Paused where `stop` was set, and InputError where a default configuration cannot be trained.
    """
    folder = Path(tempfile.mkdtemp(prefix="probe-", dir=paths.data))
    try:
        jobs = []
        for number in range(max(workers, len(spaces))):
            space = spaces[number % len(spaces)]
            short = space.spec({}, env_steps=1, seed=number, parameters=None)
            spec = short.model_copy(update={"env_steps": ITERATIONS * iteration_steps(short)})
            jobs.append(Job.in_folder(folder, number, spec, time_limit_s=300))
        rates: dict[int, list[float]] = {job.run_id: [] for job in jobs}
        reported: dict[int, float] = {}
        idle: dict[int, float] = {job.run_id: 0.0 for job in jobs}  # before the first iteration and after the last

        def listen(job: Job, message: Message) -> None:
            if isinstance(message, Started):
                idle[job.run_id] = time.monotonic() - launched
            elif isinstance(message, Report):
                rates[job.run_id].append(message.metrics["time/fps"])
                reported[job.run_id] = time.monotonic()
            elif isinstance(message, Ended) and message.status == "done":
                idle[job.run_id] += time.monotonic() - reported[job.run_id]
            elif isinstance(message, Ended) and message.status != "stopped":
                log = job.log.read_text(errors="replace")[-800:] if job.log.exists() else ""
                raise InputError(f"the default configuration could not be trained: {message.cause}\n{log}".rstrip())

        launched = time.monotonic()
        LocalExecutor(workers, paths.environment()).run(jobs, listen, stop)
        if stop.is_set():
            raise Paused
        per_job = [_steady(r) for r in rates.values()]
        return Throughput(
            steps_per_s=len(per_job) / sum(1 / r for r in per_job), startup_s=sum(idle.values()) / len(idle)
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _steady(rates: Sequence[float]) -> float:
    """The rate without the first iteration, which compiles."""
    later = rates[1:] or rates
    return len(later) / sum(1 / r for r in later)
