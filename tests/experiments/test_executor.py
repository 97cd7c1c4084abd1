"""Runs are processes of their own: they end with a status and a cause, stop with a checkpoint, and leave no orphan."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from core.checkpoint import load_checkpoint
from core.checkpoint import save_checkpoint as save_checkpoint_files
from core.seeding import seed_sequence
from env_runner.task_distributions import get_family
from env_runner.task_family import with_changes
from experiments.presets import preset
from experiments.runs import worker
from experiments.runs.executor import Ended, Evaluated, Job, LocalExecutor, Message, Report, Started
from experiments.runs.machine import default_memory_limit_mb, machine_memory_mb
from experiments.spec import RunSpec, set_fields
from meta_rl.evaluate import evaluate
from meta_rl.learner import build_learner

ITERATION = 640  # 32 worlds x 20 steps of the point robot


def _spec(iterations: int = 3, **learner: object) -> RunSpec:
    spec = preset("point-robot", "lstm", "rl2")
    changed = spec.learner.model_copy(update=learner)
    return spec.model_copy(update={"env_steps": iterations * ITERATION, "seed": 5, "learner": changed})


def _job(folder: Path, spec: RunSpec, *, time_limit_s: float = 120) -> Job:
    return Job(
        run_id=1,
        spec=spec,
        pool="search",
        checkpoint=folder / "checkpoint",
        model=folder / "model",
        log=folder / "log",
        time_limit_s=time_limit_s,
    )


def _run(job: Job, stop_after: int | None = None) -> list[Message]:
    messages: list[Message] = []
    stop = threading.Event()

    def listen(_: Job, message: Message) -> None:
        messages.append(message)
        if stop_after is not None and sum(isinstance(m, Report) for m in messages) >= stop_after:
            stop.set()

    LocalExecutor(2).run([job], listen, stop)
    return messages


def _numbers(messages: list[Message]) -> list:
    """All that the specification decides: metrics without times, and evaluation returns."""
    reports = [(m.env_steps, {k: v for k, v in m.metrics.items() if not k.startswith("time/")}) for m in messages if isinstance(m, Report)]  # fmt: skip
    return [*reports, *[m.values for m in messages if isinstance(m, Evaluated)]]


def test_a_run_starts_reports_evaluates_and_ends(tmp_path: Path) -> None:
    messages = _run(_job(tmp_path, _spec()))
    assert isinstance(messages[0], Started)
    assert [m.env_steps for m in messages if isinstance(m, Report)] == [ITERATION, 2 * ITERATION, 3 * ITERATION]
    (evaluated,) = [m for m in messages if isinstance(m, Evaluated)]
    assert (len(evaluated.values["return"]), len(evaluated.values["return"][0])) == (20, 2)
    ended = messages[-1]
    assert isinstance(ended, Ended)
    assert (ended.status, ended.env_steps) == ("done", 3 * ITERATION)
    assert (tmp_path / "model.safetensors").is_file()


def test_stopping_and_resuming_gives_the_numbers_of_an_uninterrupted_run(tmp_path: Path) -> None:
    spec = _spec(20)
    whole = _run(_job(tmp_path / "whole", spec))
    first = _run(_job(tmp_path / "parts", spec), stop_after=3)
    assert isinstance(first[-1], Ended)
    assert first[-1].status == "stopped"
    rest = _run(_job(tmp_path / "parts", spec))
    assert 3 <= len(_numbers(first)) < 20
    assert _numbers(first) + _numbers(rest) == _numbers(whole)


@pytest.mark.parametrize("in_training", ["false", "true"])
def test_a_run_in_changed_worlds_with_an_adapter_gives_the_numbers_of_its_learner_evaluated_so_and_resumes_to_them(
    tmp_path: Path, in_training: str
) -> None:
    fields = {
        "changes.switch_step": "6", "changes.in_training": in_training,
        "adaptation.adapts": "all", "adaptation.every": "12", "adaptation.learning_rate": "0.1",
    }  # fmt: skip
    spec = set_fields(_spec(8), fields)
    job = _job(tmp_path, spec)
    stopped = _run(job, stop_after=1)[-1]
    assert isinstance(stopped, Ended)
    assert stopped.status == "stopped"
    evaluated, _ = _run(job)[-2:]
    assert isinstance(evaluated, Evaluated)

    learner = build_learner(spec.task, spec.policy, spec.learner, env_steps=spec.env_steps, seed=spec.seed)
    if in_training == "true":
        learner.family = with_changes(learner.family, spec.changes)
    for _ in learner.train():
        pass
    tasks = get_family(spec.task).eval_tasks("search")
    seed = int(seed_sequence(spec.seed, "evaluation", "search").generate_state(1)[0])
    given = {"changes": spec.changes, "adaptation": spec.adaptation}
    again = evaluate(learner, tasks, episodes=2, seed=seed, **given).returns
    assert evaluated.values["return"] == again.tolist()
    for without in given:
        assert (evaluate(learner, tasks, episodes=2, seed=seed, **(given | {without: None})).returns != again).any()
    plain = build_learner(spec.task, spec.policy, spec.learner, env_steps=spec.env_steps, seed=spec.seed)
    for _ in plain.train():
        pass
    same = all(torch.equal(a, b) for a, b in zip(plain.policy.parameters(), learner.policy.parameters(), strict=True))
    assert same == (in_training == "false")


def test_a_run_that_cannot_be_built_fails_with_its_cause(tmp_path: Path) -> None:
    spec = _spec(1).model_copy(update={"env_steps": 1})
    ended = _run(_job(tmp_path, spec))[-1]
    assert isinstance(ended, Ended)
    assert ended.status == "failed"
    assert "env_steps" in (ended.cause or "")


def test_a_run_that_diverges_says_so(tmp_path: Path) -> None:
    ended = _run(_job(tmp_path, _spec(30, value_coef=1e38)))[-1]  # gradients beyond float32
    assert isinstance(ended, Ended)
    assert ended.status == "diverged"
    assert "norm" in (ended.cause or "")
    assert (tmp_path / "model.safetensors").is_file()


def test_a_run_over_its_time_limit_is_ended(tmp_path: Path) -> None:
    ended = _run(_job(tmp_path, _spec(100_000), time_limit_s=6))[-1]
    assert isinstance(ended, Ended)
    assert ended.status == "timeout"
    assert "6 s" in (ended.cause or "")


def test_a_killed_run_is_a_crash_with_the_signals_name(tmp_path: Path) -> None:
    messages: list[Message] = []

    def listen(_: Job, message: Message) -> None:
        messages.append(message)
        if isinstance(message, Started):
            os.kill(message.pid, signal.SIGKILL)

    LocalExecutor(1).run([_job(tmp_path, _spec(1000))], listen, threading.Event())
    ended = messages[-1]
    assert isinstance(ended, Ended)
    assert ended.status == "crashed"
    assert "SIGKILL" in (ended.cause or "")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_run_whose_parent_is_killed_ends_by_itself(tmp_path: Path) -> None:
    code = f"""
import sys, threading
from pathlib import Path
from tests.experiments.test_executor import _job, _spec
from experiments.runs.executor import LocalExecutor, Started
def listen(job, message):
    if isinstance(message, Started):
        print(message.pid, flush=True)
LocalExecutor(1).run([_job(Path({str(tmp_path)!r}), _spec(100_000))], listen, threading.Event())
"""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=root, env=environment)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured through /proc")
def test_a_run_over_its_memory_limit_fails_and_says_what_it_used_and_what_it_may(tmp_path: Path) -> None:
    job = dataclasses.replace(_job(tmp_path, _spec(100_000)), memory_limit_mb=64)  # less than PyTorch alone occupies
    ended = _run(job)[-1]
    assert isinstance(ended, Ended)
    assert ended.status == "failed"
    used, allowed = (int(n.replace(",", "")) for n in re.findall(r"([\d,]+) MiB", ended.cause or ""))
    assert allowed == 64
    assert used == ended.memory_mb
    assert used > 64


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured through /proc")
def test_a_run_within_its_memory_limit_is_left_alone_and_says_what_it_used(tmp_path: Path) -> None:
    ended = _run(dataclasses.replace(_job(tmp_path, _spec()), memory_limit_mb=20_000))[-1]
    assert isinstance(ended, Ended)
    assert ended.status == "done"
    assert ended.memory_mb is not None
    assert 100 < ended.memory_mb < 20_000


def test_the_default_memory_limits_of_all_workers_together_leave_room_on_the_machine() -> None:
    total = machine_memory_mb()
    if total is None:
        pytest.skip("the machine's memory cannot be read here")
    for workers in (1, 2, 16):
        assert 0 < workers * default_memory_limit_mb(workers) < total


class _Saves:
    """Saves a number as a checkpoint's two files."""

    def __init__(self, number: int) -> None:
        self.number = number

    def save(self, path: Path) -> str:
        return save_checkpoint_files(path, {"x": torch.tensor([float(self.number)])}, {"number": self.number})


@pytest.mark.parametrize("moment", range(5))
def test_a_kill_while_a_checkpoint_is_written_leaves_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Both the writing and the moving of the two files go through os.replace; the kill comes before the n-th of them."""
    place = tmp_path / "r-0001"
    worker.save_checkpoint(_Saves(1), place)
    calls, replace = [], os.replace

    def counted(source: object, target: object) -> None:
        if len(calls) == moment:
            raise KeyboardInterrupt
        calls.append(source)
        replace(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", counted)
    with contextlib.suppress(KeyboardInterrupt):
        worker.save_checkpoint(_Saves(2), place)
    monkeypatch.setattr(os, "replace", replace)
    worker.complete_checkpoint(place)
    tensors, meta = load_checkpoint(place)
    assert tensors["x"].item() == meta["number"] == (2 if moment >= 3 else 1)
