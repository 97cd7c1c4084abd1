"""What the parent records of a run's messages."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from experiments.ledger import Ledger
from experiments.presets import preset
from experiments.runs.executor import Ended, Evaluated, Job, Listener, Message, Report, Started
from experiments.runs.paths import Paths
from experiments.runs.runner import Paused, execute_runs, queue_run


class Script:
    """An executor that sends these messages for every job; `stopped` ends as if a person had asked to stop."""

    workers = 1

    def __init__(self, *messages: Message) -> None:
        self.messages = messages

    def run(self, jobs: Sequence[Job], on_message: Listener, stop: threading.Event) -> None:
        for job in jobs:
            for message in (Started(pid=1), *self.messages):
                on_message(job, message)
                if isinstance(message, Ended) and message.status == "stopped":
                    stop.set()


def report(env_steps: int, seconds: float) -> Report:
    return Report(env_steps=env_steps, metrics={"time/fps": 1.0}, train_s=seconds)


RESULT = Evaluated(pool="search", values={"return": [[1.0]]})
STOPPED = Ended(status="stopped", cause="asked to")


def train_in_sittings(folder: Path, *sittings: Script) -> tuple[float, float]:
    """Training and wall seconds of one run that these executors worked on one after another."""
    paths = Paths.of(folder)
    ledger = Ledger(paths.ledger_url)
    spec = preset("point-robot", "lstm", "rl2").model_copy(update={"env_steps": 400, "seed": 1})
    run_id = queue_run(ledger, spec, purpose="manual", pool="search", proposer="default")
    for number, script in enumerate(sittings, 1):
        try:
            execute_runs(ledger, script, paths, [run_id], stop=threading.Event())
        except Paused:
            assert number < len(sittings)
    run = ledger.get_run(run_id)
    assert (run.status, run.env_steps) == ("done", 400)
    assert run.train_s is not None
    assert run.wall_s is not None
    return run.train_s, run.wall_s


def done(seconds: float) -> Ended:
    return Ended(status="done", cause=None, env_steps=400, train_s=seconds)


def test_training_time_is_that_of_all_processes_that_trained_a_run(tmp_path: Path) -> None:
    first = Script(report(100, 5.0), report(200, 3.0), STOPPED)
    second = Script(report(300, 4.0), report(400, 2.0), RESULT, done(7.0))  # a second of it after the last report
    train_s, wall_s = train_in_sittings(tmp_path, first, second)
    assert train_s == pytest.approx(5.0 + 3.0 + 7.0)
    assert wall_s > 5.0 + 3.0


def test_iterations_that_a_kill_threw_away_do_not_count_twice(tmp_path: Path) -> None:
    killed = Script(report(100, 5.0), report(200, 3.0), report(300, 9.0), STOPPED)  # the checkpoint was at 100 steps
    second = Script(report(200, 4.0), report(300, 4.0), report(400, 4.0), RESULT, done(12.0))
    assert train_in_sittings(tmp_path, killed, second)[0] == pytest.approx(5.0 + 12.0)


def test_a_run_that_was_stopped_after_its_last_iteration_keeps_its_training_time(tmp_path: Path) -> None:
    first = Script(report(200, 5.0), report(400, 3.0), STOPPED)
    second = Script(RESULT, Ended(status="done", cause=None, env_steps=None, train_s=0.01))
    assert train_in_sittings(tmp_path, first, second)[0] == pytest.approx(8.01)


def test_an_uninterrupted_run_has_the_training_time_of_its_process(tmp_path: Path) -> None:
    only = Script(report(200, 1.0), report(400, 1.0), RESULT, done(2.5))
    assert train_in_sittings(tmp_path, only)[0] == pytest.approx(2.5)


def test_iterations_from_before_their_seconds_were_recorded_count_by_their_throughput(tmp_path: Path) -> None:
    old = Script(Report(100, {"time/fps": 20.0}), Report(200, {"time/fps": 50.0}), STOPPED)
    second = Script(report(300, 4.0), report(400, 2.0), RESULT, done(7.0))
    assert train_in_sittings(tmp_path, old, second)[0] == pytest.approx(100 / 20 + 100 / 50 + 7.0)
