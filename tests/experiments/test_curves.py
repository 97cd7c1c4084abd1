"""Learning curves against curves whose truth is known, the sensitivity table, and the rule for ending a search early."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ledger_rows import add_campaign, add_run
from scipy import stats

from core.seeding import numpy_stream
from experiments.campaign.curves import RETURN, analyse_curve, curve_table, episode_table
from experiments.campaign.sensitivity import rank_interval, sensitivity_table
from experiments.campaign.trials import FinishedTrial
from experiments.ledger import Ledger
from experiments.ledger.models import Run
from experiments.metrics import parse_metric
from experiments.search.early_end import why_not_yet

STEPS = np.arange(1, 61) * 1000.0


def noise(number: int, spread: float, count: int = 60, rho: float = 0.0) -> np.ndarray:
    """First-order autoregressive noise of a given standard deviation."""
    draws = numpy_stream(number, "curve noise").normal(size=count) * spread * np.sqrt(1 - rho**2)
    out = np.zeros(count)
    for t in range(count):
        out[t] = (rho * out[t - 1] if t else 0.0) + draws[t]
    return out


def test_a_line_in_log_steps_is_found_exactly() -> None:
    found = analyse_curve(STEPS, -100 + 7 * np.log2(STEPS / 1000), at=120_000, floor=1.0)
    assert found is not None
    assert found.gain == pytest.approx(7)
    assert found.gain_interval == (pytest.approx(7), pytest.approx(7))
    assert found.forecast == pytest.approx(-100 + 7 * np.log2(120))
    assert (found.trend, found.largest_drop, found.unstable) == ("rising", 0.0, False)


@pytest.mark.parametrize(
    ("slope", "floor", "trend"),
    [
        (10.0, 2.0, "rising"),
        (-10.0, 2.0, "falling"),
        (0.0, 20.0, "flat"),
        (0.0, 0.001, "unclear"),
        (0.0, None, "unclear"),
    ],
)
def test_the_trend_says_what_the_interval_allows(slope: float, floor: float | None, trend: str) -> None:
    found = analyse_curve(STEPS, slope * np.log2(STEPS) + noise(5, 0.5), at=60_000, floor=floor)
    assert found is not None
    assert found.trend == trend


def test_a_collapse_is_unstable_and_noise_is_not() -> None:
    rise = 10 * np.log2(STEPS)
    collapsed = np.where(STEPS < 40_000, rise, rise - 50)
    for values, unstable in ((collapsed + noise(0, 0.5), True), (rise + noise(0, 0.5), False)):
        found = analyse_curve(STEPS, values, at=60_000, floor=1.0)
        assert found is not None
        assert found.unstable is unstable


def test_intervals_hold_the_truth_as_often_as_they_say_also_where_noise_is_correlated() -> None:
    gains, ends = [], []
    for number in range(200):
        curve = -100 + 5 * np.log2(STEPS) + noise(number, 3.0, rho=0.6)
        found = analyse_curve(STEPS, curve, at=90_000, floor=None)
        assert found is not None
        gains.append(found.gain_interval[0] <= 5 <= found.gain_interval[1])
        half = stats.t.ppf(0.975, found.freedom) * found.forecast_sd
        ends.append(abs(found.forecast - (-100 + 5 * np.log2(90_000))) <= half)
    assert np.mean(gains) > 0.88
    assert np.mean(ends) > 0.88


def test_short_curves_are_not_analysed() -> None:
    assert analyse_curve([1, 2, 3], [1, 2, 3], at=10, floor=None) is None


def _with_curve(ledger: Ledger, campaign: int, number: int) -> int:
    steps = np.arange(1, 21) * 50
    run = add_run(ledger, campaign_id=campaign, seed=number, returns=[[0.0, 1.0], [0.0, 3.0]], finish=None)
    curve = -50 + 3 * np.log2(steps)
    for step, value in zip(steps, curve, strict=True):
        ledger.add_metrics(run, int(step), [(RETURN, float(value))])
    with ledger.session() as session:
        row = session.get_one(Run, run)
        row.status, row.score = "done", 0.0
    return run


def test_a_score_is_forecast_only_where_finished_runs_tie_it_to_the_curves(file_ledger: Ledger) -> None:
    campaign = add_campaign(file_ledger)
    runs = [file_ledger.get_run(_with_curve(file_ledger, campaign, n)) for n in range(4)]
    few = curve_table(file_ledger, runs[:2], runs[:2], full_steps=2000, floor=1.0)
    assert few.records()[0]["forecast"] is None
    assert "needs 3" in few.note
    enough = curve_table(file_ledger, runs[:1], runs, full_steps=2000, floor=1.0).records()[0]
    assert enough["gain"] == pytest.approx(3, abs=0.01)
    for metric in (
        "steps_to_-50_first_episode",
        "success_first_episode",
    ):  # a curve of returns says nothing of other units
        other = curve_table(file_ledger, runs[:1], runs, full_steps=2000, floor=9e9, metric=parse_metric(metric))
        assert (other.records()[0]["forecast"], other.records()[0]["trend"]) == (None, "rising")
        assert "which curves of returns do not forecast" in other.note
        assert ("env steps to a return of -50" in other.note) == metric.startswith("steps")
    last = -50 + 3 * np.mean(np.log2([950, 1000]))
    assert enough["forecast"] == pytest.approx(-50 + 3 * np.log2(2000) - last, abs=0.05)  # the scores are 0


def test_the_curve_by_shot_has_the_paired_gain_over_the_first(file_ledger: Ledger) -> None:
    run = file_ledger.get_run(add_run(file_ledger, returns=[[0.0, 1.0], [-2.0, 1.0], [4.0, 6.0]]))
    first, second = episode_table(file_ledger, run).records()
    assert (first["mean return"], first["worst task"], first["gain over the first"]) == (
        pytest.approx(0.6667, abs=1e-3),
        -2.0,
        None,
    )
    gains = np.array([1.0, 3.0, 2.0])
    half = stats.t.ppf(0.975, 2) * gains.std(ddof=1) / np.sqrt(3)
    assert second["gain over the first"] == 2.0
    assert (second["low"], second["high"]) == (pytest.approx(2 - half, abs=1e-3), pytest.approx(2 + half, abs=1e-3))


def test_a_rank_correlation_has_an_interval_that_holds_the_truth() -> None:
    rng, held = numpy_stream(0, "ranks"), 0
    truth = 6 / np.pi * np.arcsin(0.6 / 2)  # Spearman's rho of a normal pair with correlation 0.6
    for _ in range(300):
        x = rng.normal(size=12)
        y = 0.6 * x + 0.8 * rng.normal(size=12)
        low, high = rank_interval(float(stats.spearmanr(x, y)[0]), 12)
        held += low <= truth <= high
    assert 0.9 < held / 300 <= 1


def _parameter(**fields: Any) -> Any:
    return SimpleNamespace(**fields)


def test_sensitivity_ranks_what_goes_with_the_score() -> None:
    rate = _parameter(name="learner.rate", role="meta-learning", kind="float", low=0.0, high=1.0, default=0.1)
    other = _parameter(name="learner.other", role="meta-learning", kind="float", low=0.0, high=1.0, default=0.1)
    kind = _parameter(name="model.kind", role="state-modeling", kind="choice", choices=("a", "b"), default="a")
    rng = numpy_stream(1, "sensitivity")
    trials = [
        FinishedTrial("challenger", n, None, float(n), {"learner.rate": n / 10, "learner.other": float(rng.random()), "model.kind": "ab"[n > 4]}, None)  # type: ignore[arg-type, call-arg]
        for n in range(10)
    ]  # fmt: skip
    table = sensitivity_table(trials, [other, kind, rate], 5)
    rows = table.records()
    assert rows[0]["parameter"] == "learner.rate"
    assert rows[0]["value"] == 1.0
    assert next(r for r in rows if r["parameter"] == "model.kind")["value"] == pytest.approx(0.87, abs=0.01)
    assert sensitivity_table(trials[:3], [rate], 5).rows == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"rounds_done": 3}, "at least 4"),
        ({"rounds_planned": 2, "rounds_done": 1}, "at least 2"),
        ({"floor": None}, "noise floor is not known"),
        ({"challenger": None}, "no scored trial"),
        ({"challenger": -9.5}, "+0.5 noise floors"),
        ({"challenger": -13.0}, "-3.0 noise floors"),
        ({"challenger": -13.0, "kind": "compare"}, ""),
        ({"margin_pct": 20.0}, "+1.0 noise floors"),
    ],
)
def test_a_search_ends_early_only_by_the_rule(changes: dict, words: str) -> None:
    facts = {"kind": "beat", "margin_pct": 0.0, "rounds_done": 4, "rounds_planned": 8, "challenger": -7.0, "baseline": -10.0, "floor": 1.0}  # fmt: skip
    found = why_not_yet(**(facts | changes))
    assert "(one is 1)" in found or "noise floors from" not in found
    counted = why_not_yet(**(facts | {"floor": 12_345.6, "unit": " env steps"}))
    assert counted.endswith("(one is 12,346 env steps)")
    assert words in found
    assert bool(found) == bool(words)
