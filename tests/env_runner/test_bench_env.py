"""The benchmark returns what it says; how fast anything is, is no test's business."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from core.errors import InputError
from experiments.bench.env import EnvBenchmark, as_text, bench_env


def test_a_quick_benchmark_is_a_frozen_typed_table():
    said: list[str] = []
    benchmark = bench_env(robots=["HalfCheetah"], rounds=1, quick=True, progress=said.append)
    rates = {row.engine: row for row in benchmark.rows}
    assert {"limit", "ours", "gymnasium-sync"} <= set(rates)
    assert all(row.lowest <= row.steps_per_s <= row.highest for row in benchmark.rows)
    ratio = next(ratio for ratio in benchmark.ratios if ratio.name == "ours / limit")
    assert ratio.value == pytest.approx(rates["ours"].steps_per_s / rates["limit"].steps_per_s)
    assert ratio.target == 0.85
    assert EnvBenchmark.model_validate_json(benchmark.model_dump_json()) == benchmark
    with pytest.raises(ValidationError):
        benchmark.rounds = 3  # pyright: ignore[reportAttributeAccessIssue]
    assert "HalfCheetah" in as_text(benchmark)
    assert said


def test_unknown_robots_are_refused():
    with pytest.raises(InputError, match="HalfCheetah, Ant, Walker2d, Humanoid"):
        bench_env(robots=["Spider"])
