"""The statistics of the judge and the report: small pure functions over arrays of scores.

Scores are arranged (seeds, tasks): rows are independent trainings, columns are the fixed evaluation tasks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

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


def rate_interval(rates: np.ndarray, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a success rate, inside [0, 1] also where all or none succeed.

    rates: of independent units, such as tasks, each a share of successes in [0, 1]; its mean is the rate. Of shares the variance is at most
    that of single successes, p (1 - p), so for units of several episodes the interval is too wide rather than too narrow. Wilson 1927,
    "Probable inference, the law of succession, and statistical inference"; Brown, Cai and DasGupta 2001, section 3.1.1.
    """
    rates = np.asarray(rates, dtype=np.float64)
    n, z = len(rates), float(stats.norm.ppf(0.5 + level / 2))
    if n < 1 or rates.min() < 0 or rates.max() > 1:
        raise ValueError("rates: allowed: one or more, from 0 to 1")
    p = float(rates.mean())
    middle, scale = p + z**2 / (2 * n), 1 + z**2 / n
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return min(max(float((middle - half) / scale), 0.0), p), max(
        min(float((middle + half) / scale), 1.0), p
    )  # rounding


class Difference(NamedTuple):
    """The difference of two means with its standard error, spread / root, and its degrees of freedom: all that a t-test needs."""

    mean: float
    spread: float
    root: float
    freedom: float

    def interval(self, level: float) -> tuple[float, float]:
        """Student's t interval."""
        half = float(stats.t.ppf(0.5 + level / 2, self.freedom)) * self.spread / self.root
        return float(self.mean - half), float(self.mean + half)

    @property
    def p_value(self) -> float:
        """Two-sided, of the hypothesis that the difference is zero."""
        if self.spread == 0:
            return 1.0 if self.mean == 0 else 0.0
        return float(2 * stats.t.sf(abs(self.mean / (self.spread / self.root)), self.freedom))

    def detectable(self, *, alpha: float = 0.05, power: float = 0.8) -> float:
        """The smallest difference that a two-sided test finds with the given power; normal theory with t quantiles."""
        quantiles = stats.t.ppf(1 - alpha / 2, self.freedom) + stats.t.ppf(power, self.freedom)
        return float(quantiles * self.spread / self.root)


def compare_means(first: np.ndarray, second: np.ndarray, *, paired: bool) -> Difference:
    """Mean of `first` less mean of `second`: of pairs, or of independent samples of any sizes and spreads (Welch 1947)."""
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if paired:
        differences = first - second
        count = len(differences)
        return Difference(float(differences.mean()), float(differences.std(ddof=1)), float(np.sqrt(count)), count - 1)
    parts = [float(values.var(ddof=1)) / len(values) for values in (first, second)]
    total, counts = sum(parts), (len(first) - 1, len(second) - 1)
    freedom = float(sum(counts))
    if total > 0:
        freedom = total**2 / sum(part**2 / n for part, n in zip(parts, counts, strict=True))
    return Difference(float(first.mean() - second.mean()), float(np.sqrt(total)), 1.0, float(freedom))


def percent_change(
    challenger: Sequence[float], baseline: Sequence[float], *, paired: bool = True, level: float = 0.95
) -> tuple[float, tuple[float, float]] | None:
    """100 (mean challenger - mean baseline) / |mean baseline| and its interval; None where neither is defined.

    The interval of a ratio of two means (Fieller 1954, "Some problems in interval estimation"): what t-tests of "the difference is
    so many percent of the baseline" do not reject. It is bounded only where the baseline's mean is told apart from 0, and no
    percent is given elsewhere. paired: whether the values go together, seed by seed; two or more of each side.
    """
    first, second = np.asarray(challenger, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if min(len(first), len(second)) < 2 or second.mean() == 0:
        return None
    share = np.abs(second.mean()) / second.mean() * second
    parts = [float(values.var(ddof=1)) / len(values) for values in (first, share)]
    together = float(np.cov(first, share)[0, 1]) / len(first) if paired else 0.0
    freedom = len(first) - 1 if paired else min(len(first), len(second)) - 1  # of two samples: the cautious choice
    t_squared = float(stats.t.ppf(0.5 + level / 2, freedom)) ** 2
    top, below = float(first.mean()), float(share.mean())
    a, b, c = below**2 - t_squared * parts[1], top * below - t_squared * together, top**2 - t_squared * parts[0]
    if a <= 0:
        return None
    half = np.sqrt(max(b**2 - a * c, 0.0))
    less = float(np.sign(second.mean()))  # of challenger over |baseline|: where "no change" lies
    low, high = (100 * ((b + sign * half) / a - less) for sign in (-1, 1))
    return 100 * (top / below - less), (float(low), float(high))


def e_value(differences: np.ndarray, *, spread: float = 1.0) -> float:
    """Evidence against a mean of zero that keeps its meaning at any stop: its expectation is 1 where there is no difference.

    The Bayes factor of the t-test with the right Haar prior on the standard deviation and a normal prior of standard deviation
    `spread` on the standardized effect; whatever the unknown standard deviation, it is a likelihood ratio of the t statistic
    and so an e-value, seed after seed a test martingale, and over independent sets of seeds a product (Perez-Ortiz et al. 2022,
    arXiv 2208.07610, section 4; Rouder et al. 2009, the closed form). differences: two or more, one a seed.
    """
    differences = np.asarray(differences, dtype=np.float64)
    n = len(differences)
    if n < 2:
        raise ValueError(f"differences: got {n}, allowed: two or more")
    deviation = float(differences.std(ddof=1))
    if deviation == 0:
        return 1.0 if differences.mean() == 0 else 1e12  # a certainty, but one that a product can hold
    t_squared, freedom, grown = n * float(differences.mean()) ** 2 / deviation**2, n - 1, 1 + n * spread**2
    log_ratio = np.log1p(t_squared / freedom) - np.log1p(t_squared / (grown * freedom))
    return float(min(np.exp(0.5 * n * log_ratio - 0.5 * np.log(grown)), 1e12))


def break_even_correlation(seeds: int) -> float:
    """The correlation of the two sides' seeds above which pairing finds more than Welch's test does: what the differences lose in
    spread then outweighs half of the degrees of freedom. In simulations .31 at 5 seeds, .25 at 6, .18 at 8, .11 at 12."""
    return float(np.interp(seeds, (5, 6, 8, 12, 24), (0.31, 0.25, 0.18, 0.11, 0.05)))


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
    looks: tuple[int, ...], alpha: float = 0.05, *, simulations: int = 400_000, test: str = "paired"
) -> tuple[tuple[float, float], ...]:
    """(spent so far, p-value to fall below) at every look of a t-test, paired or Welch's, that may stop early.

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
    p_values = _null_p_values(looks, simulations) if test == "paired" else _null_welch_p_values(looks, simulations)
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


def _null_welch_p_values(looks: tuple[int, ...], simulations: int) -> np.ndarray:
    """The same of Welch's test over two independent samples of as many seeds each: (simulations, looks)."""
    rng = numpy_stream(0, "sequential levels of Welch's test")
    found = np.empty((simulations, len(looks)))
    for start in range(0, simulations, 25_000):
        stop = min(start + 25_000, simulations)
        draws = rng.standard_normal((2, stop - start, looks[-1]))
        sums, squares = draws.cumsum(axis=2), (draws**2).cumsum(axis=2)
        for place, n in enumerate(looks):
            total, square = sums[..., n - 1], squares[..., n - 1]
            parts = (square - total**2 / n) / (n - 1) / n
            freedom = (n - 1) * parts.sum(0) ** 2 / (parts**2).sum(0)
            t = np.abs(total[0] - total[1]) / n / np.sqrt(parts.sum(0))
            found[start:stop, place] = 2 * stats.t.sf(t, freedom)
    return found
