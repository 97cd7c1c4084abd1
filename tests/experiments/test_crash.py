"""A campaign that is killed again and again, with SIGKILL at random moments, ends with the rows of an undisturbed one.

The fast counterpart, through the command line and with the crew, is in test_campaign.py; here the lab is driven alone, so
that fifty starts take minutes. Only processes that the test started, and their workers, are ever signalled.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("KILLS", "50"))
CHECKPOINT_EVERY_S = 0.3
DRIVER = f"""
import sys
from pathlib import Path
from experiments.runs import executor
executor.CHECKPOINT_EVERY_S = {CHECKPOINT_EVERY_S}
from experiments.campaign.begin import create_campaign
from experiments.campaign.lab import Lab
from experiments.ledger import Ledger
from experiments.runs.paths import Paths
from experiments.campaign.plan import Budget, Design, Plan
from experiments.search.pruning import Pruning
from experiments.campaign.question import parse_goal

paths = Paths.of(Path(sys.argv[1]))
paths.ensure()
ledger = Ledger(paths.ledger_url)
design = Design(name="test", baseline_seeds=2, rounds=4, top=1, selection_seeds=1, confirmation_seeds=5)
with ledger.session() as session:
    from experiments.ledger.models import Campaign
    started = session.get(Campaign, 1) is not None
if not started:
    plan = Plan(
        budget=Budget(env_steps=10**6), design=design, tuned_arms=2, env_steps_full=6_400, env_steps_search=6_400,
        workers=2, steps_per_s=None, pruning=Pruning(rungs=(2_560,), env_steps=6_400),
    )
    create_campaign(ledger, parse_goal("compare MLP and LSTM on point-robot"), plan, seed=4, llm="none")
lab = Lab(ledger, 1, executor.LocalExecutor(2, {{"NUMBA_CACHE_DIR": str(paths.data.parent / "numba")}}), paths)
with lab.holding():
    if lab.stage == "baseline":
        lab.run_baseline()
        lab.set_stage("search")
    if lab.stage == "search":
        while lab.round < lab.plan.rounds:
            lab.launch()
        lab.set_stage("selection")
    if lab.stage == "selection":
        lab.run_selection()
        lab.set_stage("claim")
    if lab.stage == "claim":
        lab.write_claim()
        lab.set_stage("confirmation")
    if lab.stage == "confirmation":
        lab.run_confirmation()
        lab.set_stage("verdict")
    lab.judge()
    lab.finish("none", "nobody")
"""
NUMBERS = (
    "select id, purpose, pool, arm, trial, proposer, config_hash, seed, status, cause, env_steps, score from runs order by id",
    "select * from evals order by run_id, name, task_index, episode",
    "select run_id, name, env_steps, value, kind from metrics where name not like 'time/%' and name not like 'memory/%' "
    "order by run_id, name, env_steps",
    "select arm, trial, role, source, [values] from proposals order by id",
    "select content_hash from claims",
    "select outcome, content from verdicts",
    "select distinct kind, payload from events where kind in ('launch', 'refused', 'replan') order by kind, payload",
)
FINISHED = "status in ('done', 'pruned', 'diverged', 'failed', 'timeout', 'crashed', 'cancelled')"


def _start(data: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", DRIVER, str(data)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, start_new_session=True)


def _rows(data: Path, query: str) -> list[tuple[Any, ...]]:
    """Rows of the ledger; none where it does not exist yet."""
    if not (data / "ledger.db").exists():
        return []
    with sqlite3.connect(f"file:{data / 'ledger.db'}?mode=ro", uri=True) as connection:
        try:
            return connection.execute(query).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return []
            raise


def _workers(pid: int) -> list[tuple[int, str]]:
    """(pid, start time) of a process's children, who are the campaign's workers."""
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in file.read_text().split():
            found.append((int(child), _started(int(child))))
    return [(child, since) for child, since in found if since]


def _started(pid: int) -> str:
    """When a process started in the kernel's count; empty where it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _progress(data: Path) -> int:
    return sum(n for (n,) in _rows(data, "select count(*) from metrics where name = 'time/fps'"))


def _repeated_s(data: Path) -> list[float]:
    """For each interrupted run: training seconds since its last checkpoint, without the iteration reported last."""
    repeated = []
    for run, spec in _rows(data, f"select id, spec from runs where not {FINISHED}"):
        rows = _rows(
            data, f"select env_steps, value from metrics where run_id = {run} and name = 'time/fps' order by 1"
        )
        learner = json.loads(spec)["learner"]
        size = 20 * learner["num_worlds"] * learner["episodes_per_trial"]
        file = data / "checkpoints" / f"r-{run:04d}.json"
        half_moved = file.with_name(f"r-{run:04d}-new.json")
        if half_moved.exists() and not half_moved.with_suffix(".safetensors").exists():
            file = half_moved
        kept = json.loads(file.read_text())["meta"]["state"]["iteration"] * size if file.exists() else 0
        repeated.append(sum(size / fps for steps, fps in rows[:-1] if steps > kept))
    return repeated


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_fifty_kills_at_random_moments_leave_the_rows_of_an_undisturbed_campaign(tmp_path: Path) -> None:
    undisturbed, data = tmp_path / "undisturbed", tmp_path / "killed"
    process = _start(undisturbed)
    _, errors = process.communicate(timeout=3000)
    assert process.returncode == 0, errors.decode()
    total = _progress(undisturbed)
    assert total > 100
    assert any(status == "pruned" for (status,) in _rows(undisturbed, "select status from runs"))

    rng = random.Random(8)
    thresholds = sorted(rng.uniform(0, 0.97 * total) for _ in range(KILLS))
    finished: dict[int, tuple[Any, ...]] = {}
    process = _start(data)
    for threshold in thresholds:
        deadline = time.monotonic() + 600
        while _progress(data) < threshold and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(rng.uniform(0, 1.5))  # so that moments without training are hit too
        assert process.poll() is None, "the campaign ended before it could be killed"
        workers = _workers(process.pid)
        os.killpg(process.pid, signal.SIGKILL)
        if rng.random() < 0.5:  # the workers at the same moment, or left to notice it themselves
            for worker, since in workers:
                if _started(worker) == since:
                    os.killpg(worker, signal.SIGKILL)
        process.communicate()
        patience = time.monotonic() + 60
        while any(_started(worker) == since for worker, since in workers) and time.monotonic() < patience:
            time.sleep(0.05)
        assert [worker for worker, since in workers if _started(worker) == since] == []  # no orphan

        now = {row[0]: row for row in _rows(data, f"select id, status, score, env_steps from runs where {FINISHED}")}
        assert {number: now.get(number) for number in finished} == finished  # no row lost or changed
        finished = now
        twice = "select config_hash, pool, arm, count(*) from runs group by 1, 2, 3 having count(*) > 1"
        assert _rows(data, twice) == []
        assert all(seconds <= CHECKPOINT_EVERY_S for seconds in _repeated_s(data))
        process = _start(data)
    _, errors = process.communicate(timeout=3000)
    assert process.returncode == 0, errors.decode()
    for query in NUMBERS:
        assert _rows(data, query) == _rows(undisturbed, query), query
