"""The statistics of the judge and the report: small pure functions over arrays of scores.

Scores are arranged (seeds, tasks): rows are independent trainings, columns are the fixed evaluation tasks.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from core.seeding import numpy_stream


def interquartile_mean(scores: np.ndarray) -> float:
    """Mean of the middle half of all scores (25 % trimmed mean). Agarwal et al. 2021, section 4."""
    return float(stats.trim_mean(np.asarray(scores, dtype=np.float64).ravel(), 0.25))


def stratified_bootstrap_interval(
    scores: np.ndarray, statistic=interquartile_mean, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of `statistic`, seeds resampled with replacement within each task.

    Agarwal et al. 2021, "Deep RL at the Edge of the Statistical Precipice", section 4.1.
    scores: (seeds, tasks).
    """
    scores = np.asarray(scores, dtype=np.float64)
    rng = numpy_stream(seed, "bootstrap")
    seeds, tasks = scores.shape
    rows = rng.integers(seeds, size=(resamples, seeds, tasks))
    samples = scores[rows, np.arange(tasks)]
    values = np.array([statistic(sample) for sample in samples])
    tail = (1 - level) / 2
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
