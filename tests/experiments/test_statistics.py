"""The statistics against golden values of rliable 1.2, scipy, and simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from experiments.judging import statistics


def _table(seeds: int, tasks: int, shift: float = 0.0) -> np.ndarray:
    i, j = np.arange(seeds)[:, None], np.arange(tasks)[None, :]
    return np.round(10 * np.sin(1.7 * i + 0.9 * j + shift) + 0.5 * i + j, 3)


# from rliable 1.2.0: metrics.aggregate_iqm, library.get_interval_estimates(reps=50000), on the tables above
GOLDEN = [
    ((10, 6, 0.0), 4.54976667, (1.93615583, 7.15448083)),
    ((10, 6, 0.4), 4.45576667, (1.8230975, 7.18997833)),
    ((5, 13, 0.2), 7.06657576, (4.85911364, 9.25152348)),
]


@pytest.mark.parametrize(("shape", "iqm", "interval"), GOLDEN)
def test_the_interquartile_mean_and_its_stratified_interval_are_rliables(shape, iqm, interval) -> None:
    scores = _table(*shape)
    assert statistics.interquartile_mean(scores) == pytest.approx(iqm, abs=1e-7)
    found = statistics.stratified_bootstrap_interval(scores, resamples=20_000)
    assert found == pytest.approx(interval, abs=0.06)  # both are simulated; the interval is about 5 wide


def test_the_probability_of_improvement_is_rliables() -> None:
    assert statistics.probability_of_improvement(_table(10, 6), _table(10, 6, 0.4)) == pytest.approx(0.5183333333333334)
    repeated = np.repeat(_table(10, 6)[:, :1], 13, axis=1)
    assert statistics.probability_of_improvement(_table(5, 13, 0.2), repeated) == pytest.approx(0.6369230769230769)


def test_ties_count_half() -> None:
    same = np.ones((3, 2))
    assert statistics.probability_of_improvement(same, same) == 0.5


def test_the_paired_test_is_scipys() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=9) + 0.5, rng.normal(size=9)
    result = stats.ttest_rel(a, b)
    assert statistics.paired_t_p_value(a - b) == pytest.approx(float(result.pvalue))
    interval = result.confidence_interval(0.95)
    assert statistics.mean_interval(a - b) == pytest.approx((float(interval.low), float(interval.high)))


def test_one_value_has_no_interval() -> None:
    with pytest.raises(ValueError, match="two or more"):
        statistics.mean_interval(np.array([1.0]))


def _coverage(interval, draw, truth: float, repeats: int) -> float:
    hits = 0
    for seed in range(repeats):
        low, high = interval(draw(seed), seed)
        hits += low <= truth <= high
    return hits / repeats


def test_the_mean_interval_covers_as_often_as_it_says() -> None:
    for seeds, level in ((5, 0.95), (8, 0.95), (12, 0.8)):

        def draw(seed: int, seeds: int = seeds) -> np.ndarray:
            return np.random.default_rng([seeds, seed]).normal(size=seeds)

        found = _coverage(lambda x, _, level=level: statistics.mean_interval(x, level=level), draw, 0.0, 2500)
        assert found == pytest.approx(level, abs=0.015)


@pytest.mark.parametrize("paired", [True, False])
def test_the_percent_of_a_baseline_covers_as_often_as_it_says(paired: bool) -> None:
    """-8 against -10 is 20 % better, whatever the sign of both; seeds of the two sides go together where they are paired."""

    def draw(seed: int) -> np.ndarray:
        rng = np.random.default_rng([11, seed])
        together = rng.normal(size=8) * paired
        return np.stack([-8 + together + rng.normal(size=8), -10 + together + rng.normal(size=8)])

    def interval(sides: np.ndarray, seed: int) -> tuple[float, float]:
        found = statistics.percent_change(*sides, paired=paired)
        assert found is not None
        return found[1]

    covered = _coverage(interval, draw, 20.0, 2500)
    assert 0.94 <= covered <= (0.96 if paired else 0.985)  # Welch's degrees of freedom are taken at their fewest


def test_the_percent_of_a_baseline_is_what_the_two_t_tests_do_not_reject() -> None:
    """Fieller's ends against the definition: at each end the paired t-test of challenger - (1 + share) baseline is at its level."""
    rng = np.random.default_rng(3)
    challenger, baseline = rng.normal(12, 2, 6), rng.normal(10, 1, 6)
    percent, ends = statistics.percent_change(challenger, baseline) or (0.0, (0.0, 0.0))
    assert percent == pytest.approx(100 * (challenger.mean() / baseline.mean() - 1))
    for end in ends:
        assert stats.ttest_rel(challenger, (1 + end / 100) * baseline).pvalue == pytest.approx(0.05)


def test_a_baseline_that_may_be_zero_has_no_percent() -> None:
    assert statistics.percent_change([1.0, 2.0, 3.0], [-0.1, 0.1, 0.05]) is None
    assert statistics.percent_change([1.0, 2.0], [0.0, 0.0]) is None
    assert statistics.percent_change([1.0], [2.0]) is None


def _correlated(seeds: int, tasks: int = 12):
    """Scores whose seeds differ on all tasks at once, as trainings evaluated on many tasks do."""

    def draw(seed: int) -> np.ndarray:
        rng = np.random.default_rng([7, seed])
        return np.linspace(-2, 2, tasks) + rng.normal(size=(seeds, 1)) + rng.normal(size=(seeds, tasks))

    return draw


@pytest.mark.parametrize("seeds", [8, 12])
def test_the_seed_bootstrap_covers_within_a_point_and_a_half_of_what_it_says(seeds: int) -> None:
    truth = 0.0  # the scores are symmetric about zero
    found = _coverage(
        lambda x, s: statistics.seed_bootstrap_interval(x, resamples=500, seed=s), _correlated(seeds), truth, 2500
    )
    assert found == pytest.approx(0.95, abs=0.015)


def test_a_bootstrap_within_tasks_would_be_far_too_narrow_for_one_training_on_many_tasks() -> None:
    found = _coverage(
        lambda x, s: statistics.stratified_bootstrap_interval(x, resamples=400, seed=s), _correlated(8), 0.0, 400
    )
    assert found < 0.7


def test_the_stratified_bootstrap_covers_where_every_task_has_its_own_trainings() -> None:
    def draw(seed: int) -> np.ndarray:
        return np.random.default_rng([3, seed]).normal(size=(20, 6))

    def interval(x: np.ndarray, seed: int) -> tuple[float, float]:
        return statistics.stratified_bootstrap_interval(x, statistics.mean_of_rows, resamples=400, seed=seed)

    assert _coverage(interval, draw, 0.0, 2000) == pytest.approx(0.95, abs=0.015)


def test_power_is_as_predicted_by_the_minimum_detectable_effect() -> None:
    for n in (5, 8, 12):
        effect = statistics.minimum_detectable_effect(1.0, n, power=0.8)
        values = np.random.default_rng(n).normal(loc=effect, size=(20_000, n))
        t = values.mean(axis=1) / (values.std(axis=1, ddof=1) / np.sqrt(n))
        found = float((np.abs(t) > stats.t.ppf(0.975, n - 1)).mean())
        assert found == pytest.approx(0.8, abs=0.05)  # the formula is an approximation; exact power is a noncentral t's


def test_holm_is_the_textbook_procedure() -> None:
    # Holm 1979 by hand: 4 x 0.01, 3 x 0.02 = 0.06, max(0.06, 2 x 0.03), max(., 0.04)
    assert statistics.holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx((0.06, 0.04, 0.06, 0.06))
    assert statistics.holm([0.9, 0.8]) == (1.0, 1.0)
    assert statistics.holm([]) == ()


def test_holm_keeps_the_chance_of_any_error_below_alpha() -> None:
    rng = np.random.default_rng(0)
    wrong = sum(min(statistics.holm(rng.uniform(size=4).tolist())) < 0.05 for _ in range(4000))
    assert wrong / 4000 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 4000)


def test_spending_is_obrien_and_flemings() -> None:
    # Lan and DeMets 1983 with alpha 0.05 two-sided: 0.00557 at half, all at the end
    assert statistics.obrien_fleming_spending(0.5, 0.05) == pytest.approx(0.00557, abs=1e-5)
    assert statistics.obrien_fleming_spending(1.0, 0.05) == pytest.approx(0.05)


@pytest.mark.parametrize("looks", [(5, 8, 10), (6, 12), (5, 6, 7, 8)])
def test_stopping_early_keeps_the_error_rate(looks: tuple[int, ...]) -> None:
    levels = statistics.sequential_levels(looks)
    repeats = 60_000
    values = np.random.default_rng(99).normal(size=(repeats, looks[-1]))  # not the stream the levels come from
    rejected = np.zeros(repeats, dtype=bool)
    for n, (_, level) in zip(looks, levels, strict=True):
        result: Any = stats.ttest_1samp(values[:, :n], 0.0, axis=1)
        rejected |= result.pvalue < level
    assert rejected.mean() <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / repeats)
    assert rejected.mean() >= 0.044  # and spends nearly all of it


def test_one_look_is_the_fixed_test() -> None:
    assert statistics.sequential_levels((8,)) == ((0.05, 0.05),)


def test_looks_that_do_not_rise_are_refused() -> None:
    with pytest.raises(ValueError, match="rising"):
        statistics.sequential_levels((8, 8))


@pytest.mark.parametrize(("successes", "tasks"), [(0, 5), (5, 5), (1, 5), (17, 45), (50, 50), (0, 1)])
def test_a_success_rates_interval_is_wilsons_and_never_leaves_zero_to_one(successes: int, tasks: int) -> None:
    rates = np.array([1.0] * successes + [0.0] * (tasks - successes))
    for level in (0.8, 0.95):
        told = stats.binomtest(successes, tasks).proportion_ci(level, method="wilson")
        assert statistics.rate_interval(rates, level=level) == pytest.approx((told.low, told.high), abs=1e-12)
        assert (
            0
            <= statistics.rate_interval(rates, level=level)[0]
            <= rates.mean()
            <= statistics.rate_interval(rates, level=level)[1]
            <= 1
        )
    with pytest.raises(ValueError, match="from 0 to 1"):
        statistics.rate_interval(np.array([1.2]))


def test_a_success_rates_interval_holds_the_true_rate_at_least_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0)
    held = []
    for _ in range(2_000):
        own = draws.beta(0.8, 0.4, size=12)  # tasks that differ, each tried three times
        low, high = statistics.rate_interval(draws.binomial(3, own) / 3)
        held.append(low <= 0.8 / 1.2 <= high)
    assert np.mean(held) >= 0.94
