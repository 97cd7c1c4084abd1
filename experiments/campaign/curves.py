"""What learning curves of recorded runs say: their slope, plateau and instability, and a forecast of the final score.

The last half of a curve is fitted by a line in log(env steps), so a slope is the gain from doubling the steps. Errors
of neighbouring points are correlated, so every standard error is widened by (1 + rho) / (1 - rho), rho the first
autocorrelation of the residuals (Bayley and Hammersley 1946, the effective number of independent observations), corrected
for its bias around a line (Marriott and Pope 1954, "Bias in the estimation of autocorrelations").
Of four ways to forecast (a line in steps, in their square root and in their logarithm, and the mean of the last half),
this one missed the end of 100 recorded curves by least from their first half and from their first 70 %; its nominal
95 % intervals held the end in 88 to 94 % of them (`docs/benchmarks.md`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
from scipy import stats

from core.config import FrozenConfig
from experiments.judging.statistics import mean_interval
from experiments.ledger.models import Run
from experiments.ledger.store import Ledger, join_value, readable_id
from experiments.metrics import FIRST_EPISODE, Metric, parse_metric
from experiments.tables import TableView, rounded

MIN_POINTS = 6
RETURNS = parse_metric(FIRST_EPISODE)
MIN_PAIRS = 3  # finished runs that must tie a curve's end to the score before a score is forecast
MAX_AUTOCORRELATION = 0.9
_shown = partial(rounded, digits=4)
RETURN = "rollout/ep_rew_mean"
Trend = Literal["rising", "flat", "falling", "unclear"]


class CurveAnalysis(FrozenConfig):
    """One curve, analysed. Intervals are 95 %."""

    points: int
    gain: float
    """Change of the mean training return from doubling the env steps, fitted to the last half."""
    gain_interval: tuple[float, float]
    trend: Trend
    """flat: the whole interval, up to the forecast, stays within one noise floor; unclear: it holds both signs and more."""
    largest_drop: float
    """Deepest fall of the smoothed curve below its best so far."""
    unstable: bool
    """Whether that fall is more than half of the smoothed curve's range and more than one noise floor."""
    last: float
    """Mean of the last tenth of the points."""
    forecast_at: int
    """Env steps that the forecast is for."""
    forecast: float
    """Mean training return there."""
    forecast_sd: float
    freedom: float
    """Degrees of freedom of the forecast's t interval."""


def analyse_curve(
    env_steps: Sequence[float], returns: Sequence[float], *, at: int, floor: float | None
) -> CurveAnalysis | None:
    """A curve of finite returns by rising env steps; None below `MIN_POINTS` points.

    at: env steps to forecast for. floor: the campaign's noise floor, in units of return.
    """
    steps, values = np.asarray(env_steps, dtype=np.float64), np.asarray(returns, dtype=np.float64)
    if len(steps) < MIN_POINTS:
        return None
    start = len(steps) - max(4, len(steps) // 2)
    x, y = np.log2(steps[start:]), values[start:]
    target = math.log2(max(at, float(steps[-1])))
    count, centre = len(x), float(x.mean())
    width = float(((x - centre) ** 2).sum())
    gain = float(((x - centre) * (y - y.mean())).sum()) / width
    residuals = y - y.mean() - gain * (x - centre)
    square = float(residuals @ residuals)
    variance = square / (count - 2)
    rho = float(residuals[:-1] @ residuals[1:]) / square if square > 0 else 0.0
    rho += (2 + 4 * rho) / count if square > 0 else 0.0  # the estimate is that much too low around a fitted line
    rho = min(max(rho, 0.0), MAX_AUTOCORRELATION)
    inflation = (1 + rho) / (1 - rho)
    freedom = max(count / inflation - 2, 1.0)
    quantile = float(stats.t.ppf(0.975, freedom))
    half = quantile * math.sqrt(variance * inflation / width)
    tail = max(1, len(values) // 10)
    ahead = math.sqrt(variance * inflation * (1 / count + (target - centre) ** 2 / width) + variance / tail)
    smooth = np.convolve(values, np.ones(tail) / tail, mode="valid")
    drop = float((np.maximum.accumulate(smooth) - smooth).max())
    spread = float(smooth.max() - smooth.min())
    doublings = max(target - x[-1], 1.0)  # how far ahead a plateau has to hold
    return CurveAnalysis(
        points=len(steps),
        gain=gain,
        gain_interval=(gain - half, gain + half),
        trend=_trend(gain - half, gain + half, None if floor is None else floor / doublings),
        largest_drop=drop,
        unstable=spread > 0 and drop > 0.5 * spread and (floor is None or drop > floor),
        last=float(values[-tail:].mean()),
        forecast_at=int(max(at, steps[-1])),
        forecast=float(y.mean() + gain * (target - centre)),
        forecast_sd=ahead,
        freedom=freedom,
    )


def _trend(low: float, high: float, negligible: float | None) -> Trend:
    if negligible is not None and -negligible < low and high < negligible:
        return "flat"
    return "rising" if low > 0 else "falling" if high < 0 else "unclear"


def curve_table(
    ledger: Ledger,
    runs: Sequence[Run],
    peers: Sequence[Run],
    *,
    full_steps: int,
    floor: float | None,
    metric: Metric = RETURNS,
) -> TableView:
    """`runs` with their analysis, one row each.

    peers: finished runs whose scores say how far the score, an evaluation, lies from the end of the training curve.
    full_steps: what a finished run is forecast for; a run still in training is forecast for its own end. metric: of the scores; curves
    are of returns, so scores and a noise floor of another unit, such as env steps to a return, are not held against them.
    """
    gaps = []
    is_return = metric.quantity == RETURNS.quantity
    floor = floor if is_return else None
    for peer in peers if is_return else ():
        analysis = _analyse(ledger, peer, full_steps, floor)
        if peer.score is not None and analysis is not None:
            gaps.append(peer.score - analysis.last)
    rows: list[tuple[str | float | int | None, ...]] = []
    short: list[str] = []
    for run in runs:
        name = readable_id("r", run.id)
        analysis = _analyse(ledger, run, full_steps if run.score is not None else int(run.spec["env_steps"]), floor)
        if analysis is None:
            short.append(name)
            continue
        low, high = analysis.gain_interval
        score = _score_forecast(analysis, gaps)
        unstable = "yes" if analysis.unstable else "no"
        rows.append((name, run.arm, run.model, analysis.points, *map(_shown, (analysis.gain, low, high)), analysis.trend, _shown(analysis.largest_drop), unstable, analysis.forecast_at, *map(_shown, score)))  # fmt: skip
    notes = ["gain: change of the training return from doubling the env steps, with its 95 % interval"]
    if not is_return:
        notes.append(f"scores are {metric.asked('shot')}, which curves of returns do not forecast")
    elif len(gaps) < MIN_PAIRS:
        notes.append(f"a forecast of the score needs {MIN_PAIRS} finished runs with curves, there are {len(gaps)}")
    else:
        notes.append(
            f"forecast: score at that many env steps, 95 % interval, tied to the curves by {len(gaps)} finished runs"
        )
    if short:
        notes.append(f"fewer than {MIN_POINTS} points: {', '.join(short)}")
    columns = ("run", "arm", "model", "points", "gain", "low", "high", "trend", "largest drop", "unstable", "forecast at", "forecast", "forecast low", "forecast high")  # fmt: skip
    return TableView(columns=columns, rows=tuple(rows), note="; ".join(notes))


def episode_table(ledger: Ledger, run: Run) -> TableView:
    """A run's evaluation by episode on one task, memory kept: mean, worst task, and the gain over the first episode.

    The gain is the mean over tasks of the paired difference, with its 95 % t interval; a run without evaluation has no row.
    """
    table: dict[int, dict[int, float]] = {}
    for row in ledger.evals([run.id]):
        table.setdefault(row.episode, {})[row.task_index] = join_value(row.value, row.kind)
    rows: list[tuple[str | float | int | None, ...]] = []
    for episode, returns in sorted(table.items()):
        values = np.array(list(returns.values()))
        first = table.get(0, {})
        gains = np.array([value - first[task] for task, value in returns.items() if task in first])
        known = episode > 0 and len(gains) > 1 and bool(np.isfinite(gains).all())
        low, high = mean_interval(gains) if known else (None, None)
        rows.append((episode, _shown(float(values.mean())), _shown(float(values.min())), _shown(float(gains.mean())) if known else None, _shown(low), _shown(high)))  # fmt: skip
    columns = ("episode", "mean return", "worst task", "gain over the first", "low", "high")
    return TableView(columns=columns, rows=tuple(rows), note="" if rows else "this run was not evaluated")


def _analyse(ledger: Ledger, run: Run, at: int, floor: float | None) -> CurveAnalysis | None:
    points = [(m.env_steps, join_value(m.value, m.kind)) for m in ledger.metrics(run.id, RETURN)]
    points = [(s, v) for s, v in points if math.isfinite(v)]
    return analyse_curve([s for s, _ in points], [v for _, v in points], at=at, floor=floor)


def _score_forecast(analysis: CurveAnalysis, gaps: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Forecast score and its interval: the curve's forecast plus the usual gap, with the errors of both."""
    if len(gaps) < MIN_PAIRS:
        return None, None, None
    gap = np.asarray(gaps)
    sd = math.sqrt(analysis.forecast_sd**2 + float(gap.var(ddof=1)) * (1 + 1 / len(gap)))
    half = float(stats.t.ppf(0.975, min(analysis.freedom, len(gap) - 1))) * sd
    centre = analysis.forecast + float(gap.mean())
    return centre, centre - half, centre + half
