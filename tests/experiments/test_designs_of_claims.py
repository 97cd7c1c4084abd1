"""Every design that a claim may have keeps its error rate and has the power it promises: paired, Welch, unequal seeds, two parities, an
extension, equivalence. Held against scipy, numerical integration and simulated campaigns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import integrate, stats

from core.seeding import numpy_stream
from experiments.judging.claim import ArmClaim, ClaimContent, ConfirmationRow, EqualTime, Extended, sequential_looks
from experiments.judging.judge import judge, rows_of, seeds_to_run
from experiments.judging.statistics import break_even_correlation, compare_means, e_value

ALLOWED = 0.05 + 2.33 * np.sqrt(0.05 * 0.95 / 1000)  # of a thousand campaigns: alpha and 2.33 standard errors
TIMED = EqualTime(challenger=20_000, baseline=10_000, ratio=2.0, how="measured")


def _claim(seeds: int = 8, **changes: object) -> ClaimContent:
    side = {"parameters": 1000, "tuner": "tpe", "search_trials": 6, "tuning_env_steps": 40_000}
    content = {
        "hypothesis": "a beats b",
        "task": "toy",
        "task_version": "1",
        "challenger": ArmClaim(variant_hash="a", model="s5", **side),
        "baseline": ArmClaim(variant_hash="b", model="lstm", **side),
        "seeds": tuple(200 + i for i in range(seeds)),
        "env_steps": 10_000,
        "num_tasks": 1,
        "tuned_from": 3,
    }
    return ClaimContent.model_validate(content | changes)


def _rows(claim: ClaimContent, arm: str, means: np.ndarray, env_steps: int = 10_000) -> list[ConfirmationRow]:
    """One row a seed with these scores."""
    return [
        ConfirmationRow(
            run_id=1 + number + 100 * (arm == "baseline") + env_steps,
            arm=arm,
            seed=seed,
            variant_hash=getattr(claim, arm).variant_hash,
            task=claim.task,
            task_version=claim.task_version,
            status="done",
            env_steps=env_steps,
            planned=env_steps,
            returns=(float(mean),),
        )
        for number, (seed, mean) in enumerate(zip(claim.seeds_of(arm), means, strict=True))
    ]


def _outcome(claim: ClaimContent, challenger: np.ndarray, baseline: np.ndarray) -> str:
    rows = _rows(claim, "challenger", challenger) + _rows(claim, "baseline", baseline)
    return judge(claim, rows).outcome


def _share(
    decide: Callable[[np.random.Generator], str], wanted: tuple[str, ...], name: str, count: int = 1000
) -> float:
    return float(np.mean([decide(numpy_stream(number, name)) in wanted for number in range(count)]))


# ---- statistics -----------------------------------------------------------------------------------------------------
def test_welchs_test_is_scipys_for_unequal_numbers_and_spreads() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(1, 5, 12), rng.normal(0, 1, 4)
    found, expected = compare_means(first, second, paired=False), stats.ttest_ind(first, second, equal_var=False)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.interval(0.9) == pytest.approx(tuple(expected.confidence_interval(0.9)))
    paired = stats.ttest_rel(first[:4], second)
    assert compare_means(first[:4], second, paired=True).p_value == pytest.approx(paired.pvalue)


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_the_e_value_is_the_ratio_of_the_t_statistics_densities_under_the_two_hypotheses(spread: float) -> None:
    differences = np.random.default_rng(5).normal(0.7, 1.3, 7)
    n = len(differences)
    t = differences.mean() / (differences.std(ddof=1) / np.sqrt(n))
    alternative, _ = integrate.quad(
        lambda delta: stats.nct.pdf(t, n - 1, delta * np.sqrt(n)) * stats.norm.pdf(delta, 0, spread), -9, 9
    )
    assert e_value(differences, spread=spread) == pytest.approx(alternative / stats.t.pdf(t, n - 1), rel=1e-4)
    assert e_value(100 * differences, spread=spread) == pytest.approx(e_value(differences, spread=spread))


def test_the_e_value_has_expectation_one_where_there_is_no_difference() -> None:
    """By integration over the t statistic, since the mean of draws is that of a heavy tail."""
    n = 6

    def weighed(t: float) -> float:
        values = np.linspace(-1, 1, n)
        values = (values - values.mean()) / values.std(ddof=1) + t / np.sqrt(n)
        return e_value(values) * stats.t.pdf(t, n - 1)

    assert integrate.quad(weighed, -2000, 2000, limit=2000, points=[0.0, -20, 20])[0] == pytest.approx(1.0, abs=2e-3)


# ---- error rates ----------------------------------------------------------------------------------------------------
DESIGNS: dict[str, tuple[ClaimContent, tuple[float, float]]] = {
    "paired": (_claim(), (1.0, 1.0)),
    "welch": (_claim(test="welch"), (1.0, 1.0)),
    "welch, spreads of 5 to 1": (_claim(test="welch"), (5.0, 1.0)),
    "unequal seeds": (_claim(12, test="welch", split=(12, 4)), (5.0, 1.0)),
    "paired with looks": (_claim(10, looks=sequential_looks(10, from_seeds=10)), (1.0, 1.0)),
    "welch with looks": (
        _claim(10, test="welch", looks=sequential_looks(10, from_seeds=10, test="welch")),
        (1.0, 1.0),
    ),
    "welch with looks, spreads of 3 to 1": (
        _claim(10, test="welch", looks=sequential_looks(10, from_seeds=10, test="welch")),
        (3.0, 1.0),
    ),
}


@pytest.mark.parametrize("name", DESIGNS)
def test_equal_sides_are_decided_at_most_as_often_as_alpha_says(name: str) -> None:
    claim, spreads = DESIGNS[name]

    def decide(rng: np.random.Generator) -> str:
        sides = [
            rng.normal(0, s, len(claim.seeds_of(a))) for a, s in zip(("challenger", "baseline"), spreads, strict=True)
        ]
        return _outcome(claim, sides[0], sides[1])

    assert _share(decide, ("confirmed", "refuted"), f"equal {name}") <= ALLOWED


def test_two_parities_judged_together_make_one_wrong_decision_at_most_as_often_as_alpha_says() -> None:
    claim = _claim(equal_time=TIMED)

    def decide(rng: np.random.Generator) -> str:
        challenger, baseline = rng.normal(size=8), rng.normal(size=8)
        rows = _rows(claim, "challenger", challenger) + _rows(claim, "baseline", baseline)
        rows += _rows(claim, "challenger", 0.5 * challenger + rng.normal(size=8), 20_000)  # longer, and not independent
        verdict = judge(claim, rows)
        assert verdict.at_equal_time is not None
        outcomes = {verdict.outcome, verdict.at_equal_time.outcome}
        return "wrong" if outcomes & {"confirmed", "refuted"} else "open"

    assert _share(decide, ("wrong",), "two parities") <= ALLOWED


def test_a_claim_that_is_extended_three_times_is_decided_by_the_product_at_most_as_often_as_alpha_says() -> None:
    def decide(rng: np.random.Generator) -> str:
        product, seeds, effect = 1.0, 0, 0.0
        for night in range(4):
            claim = _claim(extends=Extended(claim="k-0001", e_product=product, seeds=seeds, effect=effect))
            rows = _rows(claim, "challenger", rng.normal(size=8)) + _rows(claim, "baseline", rng.normal(size=8))
            verdict = judge(claim, rows)
            if verdict.outcome in ("confirmed", "refuted"):
                return f"night {night}"
            assert verdict.effect is not None
            assert verdict.e_product is not None
            effect = (seeds * effect + 8 * verdict.effect) / (seeds + 8)
            product, seeds = verdict.e_product, seeds + 8
        return "open"

    assert _share(decide, tuple(f"night {n}" for n in range(4)), "extended") <= ALLOWED


def test_a_difference_at_the_equivalence_margin_is_called_none_at_most_as_often_as_alpha_says() -> None:
    claim = _claim(12, test="welch", equivalence=1.5)

    def decide(rng: np.random.Generator) -> str:
        return _outcome(claim, rng.normal(1.5, 1, 12), rng.normal(0, 1, 12))

    assert _share(decide, ("equivalent",), "margin") <= ALLOWED
    assert _outcome(claim, np.linspace(-0.5, 0.5, 12), np.linspace(-0.4, 0.4, 12)) == "equivalent"


# ---- power ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("design", "powers"),
    [
        ("welch", {1.0: 0.45, 1.5: 0.79, 2.0: 0.96}),
        ("unequal", {1.0: 0.71, 1.5: 0.97, 2.0: 1.0}),
    ],
)
def test_power_is_what_the_design_page_says(design: str, powers: dict[float, float]) -> None:
    """Effects in standard deviations of a seed (of the noisy side's at equal seeds: the root mean square, where spreads are 5 to 1)."""
    claim = _claim(test="welch") if design == "welch" else _claim(16, test="welch", split=(16, 4))
    spreads = (1.0, 1.0) if design == "welch" else (5.0, 1.0)
    unit = float(np.sqrt(np.mean(np.square(spreads))))

    for effect, power in powers.items():

        def decide(rng: np.random.Generator, effect: float = effect) -> str:
            sides = [
                rng.normal(0, s, len(claim.seeds_of(a)))
                for a, s in zip(("challenger", "baseline"), spreads, strict=True)
            ]
            return _outcome(claim, sides[0] + effect * unit, sides[1])

        found = _share(decide, ("confirmed",), f"power {design} {effect}")
        assert found == pytest.approx(power, abs=0.02 + 2.33 * np.sqrt(power * (1 - power) / 1000))


@pytest.mark.parametrize("seeds", [5, 8, 12])
def test_pairing_pays_above_the_break_even_correlation_and_not_below(seeds: int) -> None:
    """Power of both tests at an effect of 1.5 standard deviations, over simulated pairs."""
    even = break_even_correlation(seeds)

    def power(correlation: float, paired: bool) -> float:
        rng = numpy_stream(seeds, "break even", str(correlation))
        x, own, shared = (rng.normal(size=(6000, seeds)) for _ in range(3))
        weight = np.sqrt(correlation)
        first = np.sqrt(1 - correlation) * x + weight * shared + 1.5
        second = np.sqrt(1 - correlation) * own + weight * shared
        return float(np.mean([compare_means(a, b, paired=paired).p_value < 0.05 for a, b in zip(first[:2000], second[:2000], strict=True)]))  # fmt: skip

    assert power(min(even + 0.3, 0.9), True) > power(min(even + 0.3, 0.9), False)
    assert power(max(even - 0.25, 0.0), False) > power(max(even - 0.25, 0.0), True)


# ---- what is trained and read ---------------------------------------------------------------------------------------
def test_two_parities_train_the_faster_side_at_both_lengths_and_are_judged_each_on_its_own() -> None:
    claim = _claim(equal_time=TIMED)
    assert (claim.lengths("challenger"), claim.lengths("baseline")) == ((10_000, 20_000), (10_000,))
    weak, strong, other = np.linspace(0, 1, 8), np.linspace(5, 6, 8), np.linspace(1.1, 0.1, 8)
    half = _rows(claim, "challenger", weak) + _rows(claim, "baseline", other)
    assert seeds_to_run(claim, half) == claim.seeds
    rows = half + _rows(claim, "challenger", strong, 20_000)
    assert seeds_to_run(claim, rows) == ()
    verdict = judge(claim, rows)
    assert verdict.outcome == "inconclusive"
    assert verdict.at_equal_time is not None
    assert verdict.at_equal_time.outcome == "confirmed"
    assert verdict.at_equal_time.effect == pytest.approx(strong.mean() - other.mean())
    assert {r.env_steps for r in rows_of(claim, rows, timed=True) if r.arm == "challenger"} == {20_000}
    assert judge(claim, [*rows, *_rows(claim, "challenger", weak, 15_000)]).outcome == "invalid"


def test_equal_time_alone_is_the_claims_one_parity() -> None:
    claim = _claim(equal_time=TIMED.model_copy(update={"alone": True}))
    rows = _rows(claim, "challenger", np.linspace(5, 6, 8), 20_000) + _rows(claim, "baseline", np.linspace(0, 1, 8))
    verdict = judge(claim, rows)
    assert (verdict.outcome, verdict.at_equal_time) == ("confirmed", None)


def test_a_side_with_fewer_than_three_configurations_is_called_untuned() -> None:
    claim = _claim()
    few = {arm: getattr(claim, arm).model_copy(update={"search_trials": 2}) for arm in ("challenger", "baseline")}
    rows = _rows(claim, "challenger", np.linspace(5, 6, 8)) + _rows(claim, "baseline", np.linspace(0, 1, 8))
    assert "untuned" not in judge(claim, rows).reason
    assert "both sides are untuned: only 2 configurations" in judge(claim.model_copy(update=few), rows).reason


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": (12, 4)}, "split"),
        ({"split": (8, 3), "test": "welch"}, "split"),
        ({"split": (6, 5), "test": "welch"}, "split"),
        ({"looks": sequential_looks(8), "equal_time": TIMED}, "looks"),
    ],
)
def test_a_design_that_does_not_fit_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        _claim(**changes)


def test_the_new_parts_of_a_claim_leave_the_hash_of_a_claim_without_them_as_it_was() -> None:
    content = _claim(tuned_from=0)
    assert (
        not {"test", "split", "equivalence", "equal_time", "extends", "tuned_from"}
        & content.model_dump(mode="json").keys()
    )
