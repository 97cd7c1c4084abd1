"""The examples run from an empty folder, write to their data folder alone, and print what was measured."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from lab_on_script import ScriptedExecutor, ssm_leads

from core.plugins import load_plugin
from experiments.ledger import Ledger
from experiments.runs.executor import Job
from experiments.runs.paths import Paths

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
CUSTOM = {file.stem: file for file in sorted(EXAMPLES.glob("custom_*.py"))}
pytestmark = pytest.mark.usefixtures("plugins_loaded", "_elsewhere")


@pytest.fixture
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, with the search path as it was."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(os, "environ", os.environ.copy())


def example(name: str) -> ModuleType:
    if name in CUSTOM:
        return sys.modules[load_plugin(CUSTOM[name]).module]
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, data: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert example(name).main(["--data-dir", str(data), *words]) == 0
    assert list(Path.cwd().iterdir()) == []
    return capsys.readouterr().out


def lstm_leads(job: Job) -> float:
    return -ssm_leads(job)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is trained is answered from a script; everything else is the product's own."""
    monkeypatch.setattr("experiments.runs.executor.LocalExecutor", lambda *options: ScriptedExecutor(lstm_leads))


@pytest.mark.usefixtures("scripted")
def test_the_first_minute_ends_with_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = run("getting_started", tmp_path / "data", capsys)
    assert [line.split()[3] for line in said.splitlines() if line.startswith("$ ")] == ["run", "show", "rerun", "--goal"]  # fmt: skip
    assert "confirmation  5 fresh seeds a side" in said


@pytest.mark.usefixtures("scripted")
def test_on_request_the_first_question_is_brought_to_its_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run("getting_started", tmp_path / "data", capsys, "--to-verdict")
    assert [line.split()[3] for line in said.splitlines() if line.startswith("$ ")] == ["run", "show", "rerun", "--goal", "campaigns"]  # fmt: skip
    assert "r-0002 matches r-0001" in said
    assert "CONFIRMED" in said


@pytest.mark.usefixtures("scripted")
def test_the_demo_shows_what_each_agent_proposed_and_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run("multi_agent_demo", tmp_path / "data", capsys)
    rows = [line.split() for line in said.splitlines() if re.match(r" +\d+  (challenger|baseline) ", line)]
    assert {row[2] for row in rows} == {"State-Modeling", "Meta-Learning", "Adaptation", "Environment"}
    assert {row[3] for row in rows} == {"default", "optimizer"}
    effect = re.search(r"effect ([+-][\d.]+), 95 % interval .* from (r-.*)", said)
    assert effect is not None
    assert float(effect[1]) == pytest.approx(10, abs=1)
    ledger = Ledger(Paths.of(tmp_path / "data").ledger_url, read_only=True)
    assert effect[2].split(", ") == [f"r-{run.id:04d}" for run in ledger.runs(1) if run.purpose == "confirmation"]


@pytest.mark.usefixtures("scripted")
def test_in_emergence_those_speak_again_that_a_colleague_wrote_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run("advanced_collaboration", tmp_path / "data", capsys, "--modes", "emergent")
    mode, turns, again, _, to_one, _, _, verdict = said.splitlines()[-1].split()
    assert (mode, verdict) == ("emergent", "confirmed")
    assert 4 * int(again) == 3 * (int(turns) - int(again))  # all four speak once, three of them are asked
    assert int(to_one) > 0


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("custom_model", "3 steps after the input: |h| = "),
        ("custom_family", "heating that knows the loss: return -0.02"),
        ("custom_agent_creation", "Archivist: carried_numbers(width=16)"),
    ],
)
def test_what_one_file_adds_is_used_at_once(
    name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in run(name, tmp_path / "data", capsys, "--no-contract")


@pytest.mark.slow
def test_a_script_that_registers_something_trains_it_in_another_process(tmp_path: Path) -> None:
    words = [sys.executable, CUSTOM["custom_family"], "--no-contract", "--env-steps", "1280", "--data-dir", tmp_path / "data"]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "r-0001: done" in done.stdout
    (row,) = Ledger(Paths.of(tmp_path / "data").ledger_url, read_only=True).runs(None)
    assert row.provenance["plugins"][0]["registers"] == {"task family": ["thermostat"]}
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["getting_started", "multi_agent_demo", "advanced_collaboration"])
def test_an_example_trains_for_real(name: str) -> None:
    done = subprocess.run([sys.executable, EXAMPLES / f"{name}.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert list(Path.cwd().iterdir()) == []
