"""Metrics that leave for another program as runs train: which ones, under which tags, when, and what a failure costs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import main
from core.errors import InputError
from experiments.ledger import Ledger
from experiments.ledger.models import Campaign, Claim, Eval, Run, Verdict
from experiments.ledger.store import now
from experiments.presets import named_preset
from experiments.runs.paths import Paths
from experiments.runs.runner import RunProgress, queue_run
from experiments.serving.sinks import check_sinks
from experiments.serving.stream import Stream
from experiments.serving.tensorboard import FIRST, scalars
from experiments.vocabulary import readable_id

STUB = """
import json, os

print("a program that prints")
class Settings:
    def __init__(self, **given): pass
def keep(*words):
    with open(os.environ["KEPT"], "a") as file: file.write(json.dumps(words) + "\\n")
def init(settings, **given):
    if os.environ.get("FAILS"): raise RuntimeError("wrong key sk-secret")
    keep("start", given)
    return Begun(given["name"])
class Begun:
    def __init__(self, name): self.name, self.summary = name, {}
    def log(self, metrics, step): keep("log", self.name, step, metrics)
    def finish(self, exit_code): keep("finish", self.name, self.summary["status"], exit_code)
"""
"""What this project calls of wandb, by a module of that name that keeps what it is told."""


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stub keeps what arrives."""
    package = tmp_path / "stub" / "wandb"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STUB)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("KEPT", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    (tmp_path / "data").mkdir()
    return Ledger(f"sqlite:///{tmp_path / 'data' / 'ledger.db'}")


def _arrived(kept: Path) -> list[list[Any]]:
    return [json.loads(line) for line in kept.read_text().splitlines()]


def _stream(ledger: Ledger, tmp_path: Path, said: list[str], **named: Any) -> Stream:
    return Stream(("wandb",), ledger, Paths.of(tmp_path / "data"), said.append, **named)


def _queued(ledger: Ledger, **named: Any) -> int:
    given: dict[str, Any] = {"purpose": "manual", "pool": "search", "proposer": "human"} | named
    return queue_run(ledger, named_preset("point-robot.lstm"), **given)


def _trains(ledger: Ledger, run_id: int, steps: int, listen: Any) -> None:
    ledger.add_metrics(run_id, steps, [("rollout/ep_rew_mean", -steps / 100), ("eval/return", 1.0), ("loss/value", float("nan"))])  # fmt: skip
    _shows(ledger, run_id, steps, "running", listen)


def _shows(ledger: Ledger, run_id: int, steps: int, status: str, listen: Any) -> None:
    with ledger.session() as session:
        run = session.get_one(Run, run_id)
        run.env_steps, run.status = steps, status
    listen(RunProgress(run_id, None, "manual", "lstm", status, steps, 10**6, None, None, None))


def _ends(ledger: Ledger, run_id: int, steps: int, listen: Any) -> None:
    with ledger.session() as session:
        session.add_all(Eval(run_id=run_id, pool=session.get_one(Run, run_id).pool, task_index=task, episode=0, name="return", value=-5.0 - task, kind="finite") for task in range(2))  # fmt: skip
    _shows(ledger, run_id, steps, "done", listen)


def _sent(arrived: list[list[Any]], name: str = "r-0001") -> Counter[tuple[str, int, str]]:
    logs = [line for line in arrived if line[:2] == ["log", name]]
    assert [line[2] for line in logs] == sorted(line[2] for line in logs)  # steps never fall
    return Counter((tag, step, str(value)) for _, _, step, metrics in logs for tag, value in metrics.items())


def test_what_arrives_is_what_the_event_files_hold_with_the_specification(
    ledger: Ledger, kept: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    shown: list[RunProgress] = []
    run_id = _queued(ledger)
    with _stream(ledger, tmp_path, said) as stream:
        listen = stream.beside(shown.append)
        _shows(ledger, run_id, 0, "running", listen)
        for steps in (640, 1280, 1920):
            _trains(ledger, run_id, steps, listen)
        _ends(ledger, run_id, 1920, listen)
    arrived, run = _arrived(kept), ledger.get_run(run_id)
    assert _sent(arrived) == Counter((tag, step, str(value)) for tag, step, value in scalars(ledger, run))
    assert (FIRST, 1920, "-5.5") in _sent(arrived)
    (_, start), *_, finish = arrived
    assert (start["name"], start["group"], start["project"]) == ("r-0001", None, "autonomous-ssm-metarl")
    assert {name: start["config"][name] for name in run.spec} == run.spec
    assert finish == ["finish", "r-0001", "done", 0]
    assert (said, len(shown)) == ([], 5)


def test_a_run_that_goes_on_sends_what_is_new_alone(ledger: Ledger, kept: Path, tmp_path: Path) -> None:
    run_id = _queued(ledger)
    _trains(ledger, run_id, 640, lambda progress: None)
    with _stream(ledger, tmp_path, []) as stream:
        listen = stream.beside(lambda progress: None)
        _shows(ledger, run_id, 640, "running", listen)
        _trains(ledger, run_id, 1280, listen)
        _shows(ledger, run_id, 1280, "queued", listen)
    arrived = _arrived(kept)
    assert {step for _, step, _ in _sent(arrived)} == {1280}
    assert arrived[-1] == ["finish", "r-0001", "queued", 0]


@pytest.mark.parametrize("when", ["no verdict", "a verdict", "a verdict in a later sitting"])
def test_a_confirmations_scores_leave_after_its_verdict_alone(
    when: str, ledger: Ledger, kept: Path, tmp_path: Path
) -> None:
    plan: dict[str, Any] = {"goal": "g", "question": {}, "plan": {}, "seed": 0, "stage": "confirmation", "status": "running", "llm": "offline"}  # fmt: skip
    number = ledger.add(Campaign(**plan, provenance={}, created_at=now()))
    claim = ledger.add(Claim(campaign_id=number, content={}, content_hash="", created_at=now()))
    run_id = _queued(ledger, purpose="confirmation", pool="confirmation", campaign_id=number, claim_id=claim)

    def judge() -> None:
        ledger.add(Verdict(claim_id=claim, outcome="refuted", reason="", content={}, created_at=now()))

    with _stream(ledger, tmp_path, [], campaign=number) as stream:
        listen = stream.beside(lambda progress: None)
        _shows(ledger, run_id, 0, "running", listen)
        _trains(ledger, run_id, 640, listen)
        _ends(ledger, run_id, 640, listen)
        if when == "a verdict":
            judge()
    tags = {tag for tag, _, _ in _sent(_arrived(kept))}
    assert "rollout/ep_rew_mean" in tags
    assert ("eval/return" in tags) <= (when == "a verdict")
    assert (FIRST in tags) == (when == "a verdict")
    if when == "a verdict in a later sitting":
        judge()
        with _stream(ledger, tmp_path, [], campaign=number):
            pass
        first, second = [line[1] for line in _arrived(kept) if line[0] == "start"]
        assert (first["id"], first["group"]) == (second["id"], readable_id("c", number))
        sent = _sent(_arrived(kept))
        assert (FIRST, 640, "-5.5") in sent
        assert set(sent.values()) == {1}


def test_a_sink_that_fails_is_said_once_without_its_words_and_costs_nothing(
    ledger: Ledger, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAILS", "1")
    said: list[str] = []
    shown: list[RunProgress] = []
    with _stream(ledger, tmp_path, said) as stream:
        for run_id in (_queued(ledger), _queued(ledger)):
            for steps in (640, 1280):
                _trains(ledger, run_id, steps, stream.beside(shown.append))
    assert len(shown) == 4
    (line,) = said
    assert line.startswith("--sink wandb failed (RuntimeError): see ")
    assert "sk-secret" not in line
    assert capfd.readouterr() == ("", "")
    assert "sk-secret" in (tmp_path / "data" / "logs" / "sink-wandb.log").read_text()


def test_a_sink_that_hangs_is_left_when_its_time_is_over(
    ledger: Ledger, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = tmp_path / "stub" / "wandb" / "__init__.py"
    stub.write_text(STUB + "\nimport time; time.sleep(3600)\n")
    monkeypatch.setattr("experiments.serving.stream.FLUSH_S", 0.5)
    said: list[str] = []
    with _stream(ledger, tmp_path, said) as stream:
        for steps in range(640, 640 * 40, 640):
            _trains(ledger, 1 if steps > 640 else _queued(ledger), steps, stream.beside(lambda progress: None))
    assert [line.partition(":")[0] for line in said] == ["--sink wandb was still sending after 0 s and is ended"]


def test_a_package_that_is_not_installed_is_said_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'--sink trackio needs its package: pip install -e "\.\[trackio\]"'):
        check_sinks(["trackio"])
    data = tmp_path / "data"
    words = ["run", "--preset", "point-robot.mlp", "--env-steps", "640", "--sink", "wandb", "--data-dir", str(data)]
    assert main.main(words) == 2
    assert not (data / "ledger.db").exists()


def test_a_run_by_hand_sends_the_score_that_it_records(kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    words = ["run", "--preset", "point-robot.mlp", "--env-steps", "640", "--sink", "wandb", "--json"]
    assert main.main([*words, "--data-dir", str(tmp_path / "data")]) == 0
    score = json.loads(capsys.readouterr().out)["score"]  # nothing that the sink prints is in between
    (sent,) = [float(value) for tag, _, value in _sent(_arrived(kept)) if tag == FIRST]
    assert sent == pytest.approx(score)
