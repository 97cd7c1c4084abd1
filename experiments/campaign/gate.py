"""The feasibility gate: can a configuration be trained within the plan? Asked before anything is spent on it.

Four checks, the cheap ones first: ranges, size and length; time and memory against what is left; trials of the same arm
that are too near; and one real training iteration in a worker of its own, so that a crash, a loss that is not finite or
too much memory shows before the spend. The iteration's score is thrown away: its outcome is an event, never evidence.
What is refused comes back as words that say why and what to change.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.config import FrozenConfig
from experiments.judging.judge import PARAMETER_TOLERANCE
from experiments.runs.executor import Ended, Executor, Job, Message
from experiments.runs.paths import Paths
from experiments.runs.runner import Paused
from experiments.search.space import Parameter, Value, count_parameters, iteration_steps
from experiments.spec import RunSpec

NEAR = 0.02
"""Two configurations are the same trial where no coordinate of the unit cube (`Parameter.to_unit`) differs by more than
this: numbers by 2 % of their range, in logarithms on a log scale, and every choice agrees. Noise hides less than that."""
BYTES_A_PARAMETER = 16  # float32 weight, gradient and Adam's two moments: the least that training can need
PROBE_LIMIT_S = 120.0  # process start and one iteration; seconds in practice


class Probe(FrozenConfig):
    """What one real training iteration of a configuration showed."""

    config_hash: str
    problem: str | None
    memory_mb: int | None


def is_near(parameters: Sequence[Parameter], first: Mapping[str, Value], second: Mapping[str, Value]) -> bool:
    """Whether two complete configurations of one arm are the same trial for all that a run can show (see `NEAR`)."""
    if first.keys() != second.keys():
        return False
    shared = [p for p in parameters if p.name in first]
    return all(abs(p.to_unit(first[p.name]) - p.to_unit(second[p.name])) <= NEAR for p in shared)


def static_problems(
    spec: RunSpec, parameters: int, *, memory_limit_mb: int, expected_s: float | None, left_s: float | None
) -> list[str]:
    """What can be said without training: size, length, and time and memory against what is left.

    parameters: the campaign's parameter count. expected_s, left_s: seconds that the search run takes and that the
    search has left; None where no wall time was measured or given.
    """
    problems = []
    if iteration_steps(spec) > spec.env_steps:
        problems.append(
            f"one iteration takes {iteration_steps(spec):,} env steps, a search run has {spec.env_steps:,}: "
            f"{_what_to_shrink(spec)}"
        )
    count = count_parameters(spec)
    if abs(count - parameters) > PARAMETER_TOLERANCE * max(count, parameters):
        problems.append(
            f"no width of this model comes within {100 * PARAMETER_TOLERANCE:.0f} % of the campaign's {parameters:,} parameters "
            f"(the nearest has {count:,}): choose {'fewer' if count > parameters else 'more'} model.num_layers"
        )
    needed = count * BYTES_A_PARAMETER // 2**20
    if needed > memory_limit_mb:
        problems.append(
            f"training {count:,} parameters takes at least {needed:,} MiB, allowed are {memory_limit_mb:,} MiB a run"
        )
    if expected_s is not None and left_s is not None and expected_s > left_s:
        problems.append(
            f"the run would take about {expected_s:.0f} s by this campaign's measured throughput, {max(left_s, 0):.0f} s are left "
            "for the search: choose a model.kind that trains faster or fewer model.num_layers"
        )
    return problems


def probe(
    specs: Sequence[RunSpec],
    executor: Executor,
    paths: Paths,
    stop: threading.Event,
    *,
    memory_limit_mb: int,
    time_limit_s: float = PROBE_LIMIT_S,
) -> list[Probe]:
    """Train one iteration of every specification, several at once. Raises Paused where `stop` was set meanwhile."""
    if not specs:
        return []
    folder = Path(tempfile.mkdtemp(prefix="probe-", dir=paths.data))
    ends: dict[int, Ended] = {}

    def listen(job: Job, message: Message) -> None:
        if isinstance(message, Ended):
            ends[job.run_id] = message

    try:
        jobs = [
            Job.in_folder(folder, number, spec, time_limit_s=time_limit_s, memory_limit_mb=memory_limit_mb, probe=True)
            for number, spec in enumerate(specs)
        ]
        executor.run(jobs, listen, stop)
        if stop.is_set():
            raise Paused
        return [
            Probe(config_hash=s.config_hash, problem=_in_words(s, ends[i]), memory_mb=ends[i].memory_mb)
            for i, s in enumerate(specs)
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _what_to_shrink(spec: RunSpec) -> str:
    """Which fields make an iteration of `spec` smaller: its learner says so."""
    names = [f"learner.{name}" for name in spec.learner.size_fields]
    if not names:
        return "choose other settings of the learner"
    return "choose fewer " + " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _in_words(spec: RunSpec, end: Ended) -> str | None:
    """Why a configuration whose first iteration ended so cannot be trained, and what to change; None where it can."""
    if end.status == "done":
        return None
    cause = end.cause or ""
    if "out of memory" in cause:
        change = f"{_what_to_shrink(spec)}, or a smaller model.state_dim"
    elif end.status == "diverged":
        change = "choose a smaller learner.learning_rate"
    elif end.status == "timeout":
        change = "choose a smaller or faster model"
    else:
        change = "choose other values; the cause names what does not fit"
    return f"its first training iteration {end.status}: {cause.split('; see ')[0]}; {change}"
