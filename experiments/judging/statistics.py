"""The statistics of the judge and the report: small pure functions over arrays of scores.

Scores are arranged (seeds, tasks): rows are independent trainings, columns are the fixed evaluation tasks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from scipy import stats

from core.seeding import numpy_stream

Statistic = Callable[[np.ndarray], np.ndarray]  # (resamples, values) -> (resamples,)


def interquartile_mean(scores: np.ndarray) -> float:
    """Mean of the middle half of all scores (25 % trimmed mean). Agarwal et al. 2021, section 4.3."""
    return float(iqm_of_rows(np.asarray(scores, dtype=np.float64).reshape(1, -1))[0])


def iqm_of_rows(values: np.ndarray) -> np.ndarray:
    """The interquartile mean of every row: (rows, values) -> (rows,)."""
    count = values.shape[1]
    cut = int(0.25 * count)
    return np.sort(values, axis=1)[:, cut : count - cut].mean(axis=1)


def mean_of_rows(values: np.ndarray) -> np.ndarray:
    """The mean of every row: (rows, values) -> (rows,)."""
    return values.mean(axis=1)


def stratified_bootstrap_interval(
    scores: np.ndarray,
    statistic: Statistic = iqm_of_rows,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of `statistic`, seeds resampled with replacement anew within each task.

    Agarwal et al. 2021, "Deep RL at the Edge of the Statistical Precipice", section 4.1: right where every task had
    trainings of its own. Where one training is evaluated on all tasks, `seed_bootstrap_interval` is.
    scores: (seeds, tasks).
    """
    scores = np.asarray(scores, dtype=np.float64)
    seeds, tasks = scores.shape
    rows = numpy_stream(seed, "bootstrap").integers(seeds, size=(resamples, seeds, tasks))
    values = statistic(scores[rows, np.arange(tasks)].reshape(resamples, -1))
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def seed_bootstrap_interval(
    scores: np.ndarray,
    statistic: Statistic = iqm_of_rows,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of `statistic` where one training is evaluated on all tasks: whole seeds are resampled.

    The returns of one training on two tasks rise and fall together, so a bootstrap within tasks would be too narrow
    (Field and Welsh 2007, the cluster bootstrap). With few seeds a percentile interval is too narrow as well; the
    percentiles are widened to what Student's t asks for (Hesterberg 2015, "What Teachers Should Know About the
    Bootstrap", section 5.3, the expanded percentile interval). scores: (seeds, tasks).
    """
    scores = np.asarray(scores, dtype=np.float64)
    seeds = scores.shape[0]
    if seeds < 2:
        raise ValueError(f"scores: got {seeds} seeds, allowed: two or more")
    rows = numpy_stream(seed, "seed bootstrap").integers(seeds, size=(resamples, seeds))
    values = statistic(scores[rows].reshape(resamples, -1))
    tail = float(stats.norm.cdf(np.sqrt(seeds / (seeds - 1)) * stats.t.ppf((1 - level) / 2, seeds - 1)))
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def mean_interval(values: np.ndarray, *, level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean of independent values. Needs two or more."""
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if n < 2:
        raise ValueError(f"values: got {n}, allowed: two or more")
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * float(values.std(ddof=1)) / np.sqrt(n)
    return float(values.mean() - half), float(values.mean() + half)


def paired_t_p_value(differences: np.ndarray) -> float:
    """Two-sided p-value of the paired t-test that the mean difference is zero."""
    differences = np.asarray(differences, dtype=np.float64)
    spread = differences.std(ddof=1)
    if spread == 0:
        return 1.0 if differences.mean() == 0 else 0.0
    t = differences.mean() / (spread / np.sqrt(len(differences)))
    return float(2 * stats.t.sf(abs(t), len(differences) - 1))


def probability_of_improvement(challenger: np.ndarray, baseline: np.ndarray) -> float:
    """P(challenger > baseline), averaged over tasks, ties counted half. Agarwal et al. 2021, section 4.3.

    challenger: (seeds, tasks); baseline: (seeds', tasks).
    """
    larger = challenger[:, None, :] > baseline[None, :, :]
    equal = challenger[:, None, :] == baseline[None, :, :]
    return float((larger + 0.5 * equal).mean())


def minimum_detectable_effect(spread: float, n: int, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest mean difference that a two-sided paired t-test over `n` pairs finds with the given power.

    spread: standard deviation of the differences. Normal-theory formula with t quantiles.
    """
    quantiles = stats.t.ppf(1 - alpha / 2, n - 1) + stats.t.ppf(power, n - 1)
    return float(quantiles * spread / np.sqrt(n))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjusted p-values of several tests: each may be held against alpha, and the chance of any error stays below it.

    Holm 1979, "A simple sequentially rejective multiple test procedure": the i-th smallest of m is multiplied by
    m - i + 1, then made monotone.
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(order))
    highest = 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * float(p_values[index])))
        adjusted[index] = highest
    return tuple(float(p) for p in adjusted)


def obrien_fleming_spending(fraction: float, alpha: float) -> float:
    """The error that may be spent once `fraction` of the evidence is in: little early, all of `alpha` at 1.

    Lan and DeMets 1983, "Discrete sequential boundaries for clinical trials", alpha_1*(t), two-sided.
    """
    return float(2 * stats.norm.sf(stats.norm.isf(alpha / 2) / np.sqrt(fraction)))


@cache
def sequential_levels(
    looks: tuple[int, ...], alpha: float = 0.05, *, simulations: int = 400_000
) -> tuple[tuple[float, float], ...]:
    """(spent so far, p-value to fall below) at every look of a paired t-test that may stop early.

    looks: pairs at each look, rising; the last is the whole sample. Under the null hypothesis the t statistics of the
    looks have one joint distribution whatever the spread, so thresholds are found by simulating it: at each look the
    threshold is where the share of samples first rejected there is what O'Brien-Fleming spending allows, less three
    standard errors of the simulation. So the chance of rejecting at any look is at most `alpha` with the exact small-sample
    distribution, where the usual normal boundaries (Jennison and Turnbull 2000, section 7.2) would exceed it.
    """
    if len(looks) < 1 or looks[0] < 2 or any(a >= b for a, b in itertools.pairwise(looks)):
        raise ValueError(f"looks: got {looks}, allowed: rising numbers of pairs from 2 on")
    spent = [obrien_fleming_spending(n / looks[-1], alpha) for n in looks]
    if len(looks) == 1:
        return ((alpha, alpha),)
    p_values = _null_p_values(looks, simulations)
    going = np.ones(simulations, dtype=bool)
    levels, before = [], 0.0
    for place, now in enumerate(spent):
        step = now - before
        step -= 3 * np.sqrt(step * (1 - step) / simulations)
        count = int(max(step, 0.0) * simulations)
        alive = np.sort(p_values[going, place])
        level = float(alive[count]) if count < len(alive) else 1.0
        level = now if place == 0 else min(level, alpha)  # the first look needs no simulation: p is uniform
        going &= p_values[:, place] >= level
        levels.append((float(now), level))
        before = now
    return tuple(levels)


def _null_p_values(looks: tuple[int, ...], simulations: int) -> np.ndarray:
    """p-values of the t-test at every look on simulated samples without a difference: (simulations, looks)."""
    rng = numpy_stream(0, "sequential levels")
    found = np.empty((simulations, len(looks)))
    for start in range(0, simulations, 50_000):
        stop = min(start + 50_000, simulations)
        draws = rng.standard_normal((stop - start, looks[-1]))
        sums, squares = draws.cumsum(axis=1), (draws**2).cumsum(axis=1)
        for place, n in enumerate(looks):
            total, square = sums[:, n - 1], squares[:, n - 1]
            variance = (square - total**2 / n) / (n - 1)
            found[start:stop, place] = 2 * stats.t.sf(np.abs(total) / np.sqrt(n * variance), n - 1)
    return found
