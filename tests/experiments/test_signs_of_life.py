"""A run that somebody works on, or waits to work on, is nobody else's to end; means and counts speak of the same rows."""

from __future__ import annotations

import math
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from lab_on_script import ScriptedExecutor

from core.errors import InputError
from experiments.ledger import Ledger
from experiments.ledger.models import Eval
from experiments.ledger.store import now
from experiments.presets import preset
from experiments.reading.doctor import examine
from experiments.reading.queries import describe_row
from experiments.runs import runner
from experiments.runs.executor import Job
from experiments.runs.few_shot import model_of_run
from experiments.runs.paths import Paths
from experiments.runs.runner import execute_runs, queue_run


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths.of(tmp_path)
    paths.ensure()
    return paths


def queued(ledger: Ledger, count: int, hours_ago: float, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    spec = preset("point-robot", "lstm", "rl2").model_copy(update={"env_steps": 1_280})
    monkeypatch.setattr(runner, "now", lambda: now() - timedelta(hours=hours_ago))
    ids = [
        queue_run(ledger, spec.model_copy(update={"seed": n}), purpose="manual", pool="search", proposer="human")
        for n in range(count)
    ]
    monkeypatch.undo()
    return ids


def test_runs_that_wait_behind_others_for_hours_are_left_to_their_owner(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(paths.ledger_url)
    ids = queued(ledger, 3, hours_ago=5, monkeypatch=monkeypatch)
    assert len([f for f in examine(paths.ledger_url, paths) if "nobody works on it" in f.what]) == 3
    seen: list[list[str]] = []

    class Slow(ScriptedExecutor):
        def _train(self, job: Job, on_message) -> None:
            seen.append([finding.what for finding in examine(paths.ledger_url, paths, fix=True)])
            super()._train(job, on_message)

    execute_runs(ledger, Slow(lambda job: 0.0), paths, ids, stop=threading.Event())
    assert seen
    assert all(not findings for findings in seen)
    assert {ledger.get_run(run).status for run in ids} == {"done"}


def test_a_mean_is_over_the_rows_that_its_count_counts(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(paths.ledger_url)
    (run,) = queued(ledger, 1, hours_ago=0, monkeypatch=monkeypatch)
    values = [1.0, 5.0, math.nan, math.inf]
    with ledger.session() as session:
        for task, value in enumerate(values):
            finite = math.isfinite(value)
            kind = "finite" if finite else "nan" if math.isnan(value) else "inf"
            session.add(Eval(run_id=run, pool="search", task_index=task, episode=0, name="return", value=value if finite else None, kind=kind))  # fmt: skip
    (row,) = describe_row(ledger, f"r-{run}")["evaluation"]
    assert (row["mean"], row["worst"], row["tasks"], row["not_finite"]) == (3.0, 1.0, 2, 2)


def test_a_kept_model_is_found_by_every_form_of_its_runs_id(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(paths.ledger_url)
    ids = queued(ledger, 1, hours_ago=0, monkeypatch=monkeypatch)
    for name in ("r-0001", "r-1", "r1", "@last"):
        with pytest.raises(InputError, match=r"r-0001 has no kept model\. Train it again with: .* rerun r-0001"):
            model_of_run(ledger, paths, name)
    kept = paths.model(ids[0]).with_suffix(".safetensors")
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(b"")
    for name in ("r-0001", "r-1", "r1", "@last"):
        assert model_of_run(ledger, paths, name) == paths.model(ids[0])
    assert model_of_run(ledger, paths, "saved_models/x") == "saved_models/x"
    with pytest.raises(InputError, match="r-0099"):
        model_of_run(ledger, paths, "r-99")
