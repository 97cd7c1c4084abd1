"""How fast the ledger is when it is large: `python main.py bench ledger`.

Fills a throw-away SQLite file with many runs and metric rows through the same `Ledger` that the lab uses, then measures what
a person and a campaign wait for: inserting one report's metrics at a time, and the command `runs`, as a function and as
a whole process. Ours; no other ledger is compared.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.bench.registered import register_bench
from experiments.ledger import Ledger
from experiments.ledger.models import Campaign, Run
from experiments.ledger.store import file_url, now
from experiments.reading.queries import list_runs
from experiments.runs.paths import CHECKOUT

METRICS = 20  # numbers in one report of a learner
TARGET_RUNS_S = 0.5
TARGET_ROWS_PER_S = 20_000


@register_bench("ledger")
def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="main.py bench ledger", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the rows")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=10_000_000, help="metric rows in all")
    parser.add_argument(
        "--url", help="another database, such as an empty postgresql+psycopg://... (default: a SQLite file)"
    )
    options = parser.parse_args(list(arguments))
    runs, rows = (options.runs // 10, options.rows // 100) if options.quick else (options.runs, options.rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        url = options.url or file_url(path)
        ledger = Ledger(url)
        _add_runs(ledger, runs)
        print(f"{runs:,} runs; inserting {rows:,} metric rows, one report of {METRICS} metrics a transaction ...", flush=True)  # fmt: skip
        each = rows // runs // METRICS
        seconds = _add_metrics(ledger, runs, each)
        inserted = runs * each * METRICS
        print(f"insert      {inserted / seconds:12,.0f} metric rows/s   (target {TARGET_ROWS_PER_S:,})")
        if options.url is None:
            size = sum(file.stat().st_size for file in Path(folder).glob("ledger.db*"))
            print(f"size        {size / inserted:12.1f} bytes a metric row ({size / 1e6:,.0f} MB)")
        ledger.close()
        reader = Ledger(url, read_only=True)
        for words, call in _questions(reader, runs).items():
            print(f"{words:40} {1e3 * _median_s(call):10.1f} ms   (target for runs: {TARGET_RUNS_S * 1e3:.0f} ms)")
        reader.close()
        script = CHECKOUT / "main.py"
        at = ["--data-dir", folder] if options.url is None else ["--ledger", options.url]
        command = [sys.executable, str(script), "runs", *at]
        whole = _median_s(lambda: subprocess.run(command, check=True, capture_output=True), repeats=3)
        print(f"{'python main.py runs, start to end':40} {1e3 * whole:10.1f} ms")
    return 0


def _add_runs(ledger: Ledger, count: int) -> None:
    """Runs with a specification and a provenance of a real size."""
    spec = {"env_steps": 1_000_000, "policy": {f"field_{i}": 0.123456 for i in range(60)}}
    provenance = {"packages": {f"package_{i}": "1.2.3" for i in range(30)}}
    with ledger.session() as session:
        session.add(Campaign(goal="bench", question={}, plan={}, seed=0, stage="search", status="paused", llm="", provenance={}, created_at=now()))  # fmt: skip
        session.flush()
        for start in range(0, count, 1000):
            session.add_all(
                Run(
                    campaign_id=1,
                    purpose="search",
                    pool="search",
                    arm="challenger",
                    trial=i,
                    proposer="optimizer",
                    config_hash=f"{i:064x}",
                    variant_hash=f"{i // 5:064x}",
                    task="halfcheetah-vel",
                    task_version="1",
                    model=("s5", "lstm", "lru")[i % 3],
                    seed=i % 5,
                    parameters=50_000,
                    status="queued",
                    env_steps=1_000_000,
                    score=float(i % 977),
                    created_at=now(),
                    spec=spec,
                    provenance=provenance,
                )
                for i in range(start, min(start + 1000, count))
            )
            session.flush()


def _add_metrics(ledger: Ledger, runs: int, reports: int) -> float:
    """Seconds to insert every report of every run, two runs at a time as the lab trains them."""
    names = [f"train/metric_{i:02d}" for i in range(METRICS)]
    began = time.perf_counter()
    for first in range(1, runs + 1, 2):
        for step in range(reports):
            for run in (first, min(first + 1, runs)):
                ledger.add_metrics(run, 1000 * step, [(name, 0.5 * step) for name in names])
    return time.perf_counter() - began


def _questions(ledger: Ledger, runs: int) -> dict[str, Callable[[], object]]:
    return {
        "runs": lambda: list_runs(ledger),
        "runs --where model=s5 --sort -score": lambda: list_runs(ledger, where="model=s5", sort="-score"),
        "runs --group variant": lambda: list_runs(ledger, group="variant"),
        "metrics of one run": lambda: ledger.metrics(runs // 2),
        "one curve of one run": lambda: ledger.metrics(runs // 2, "train/metric_07"),
    }


def _median_s(call: Callable[[], object], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
