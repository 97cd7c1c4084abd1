"""The judge: what it decides, what it refuses, and how often it is wrong."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from core.errors import InputError
from experiments.judging.claim import ArmClaim, ClaimContent, ConfirmationRow, EqualTime, Look, sequential_looks
from experiments.judging.judge import VerdictContent, judge, judge_together, seeds_to_run
from experiments.search.pruning import Pruning

TASKS = 6
RULE = Pruning(rungs=(3_000,), env_steps=9_000)


def _claim(seeds: int = 8, **changes) -> ClaimContent:
    side = {"parameters": 1000, "tuner": "tpe", "search_trials": 4, "tuning_env_steps": 40_000}
    content = {
        "hypothesis": "a beats b",
        "task": "toy",
        "task_version": "1",
        "challenger": ArmClaim(variant_hash="a", model="s5", **side),
        "baseline": ArmClaim(variant_hash="b", model="lstm", **side),
        "seeds": tuple(200 + i for i in range(seeds)),
        "env_steps": 10_000,
        "num_tasks": TASKS,
    }
    return ClaimContent(**(content | changes))


def _rows(claim: ClaimContent, challenger: np.ndarray, baseline: np.ndarray) -> list[ConfirmationRow]:
    """Finished confirmation runs with the given returns (seeds, tasks)."""
    rows = []
    for arm, table in (("challenger", challenger), ("baseline", baseline)):
        for seed, returns in zip(claim.seeds, table, strict=False):
            rows.append(
                ConfirmationRow(
                    run_id=len(rows) + 1,
                    arm=arm,
                    seed=seed,
                    variant_hash=getattr(claim, arm).variant_hash,
                    task=claim.task,
                    task_version=claim.task_version,
                    status="done",
                    env_steps=claim.env_steps,
                    returns=tuple(float(r) for r in returns),
                )
            )
    return rows


def _draw(rng: np.random.Generator, seeds: int, effect: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Two arms whose seeds vary by 1 and tasks by more; the challenger is better by `effect`."""
    tasks = np.linspace(-5, 5, TASKS)
    arms = [tasks + rng.normal(size=(seeds, 1)) + 0.5 * rng.normal(size=(seeds, TASKS)) for _ in range(2)]
    return arms[0] + effect, arms[1]


def _evidence(effect: float, seeds: int = 8, seed: int = 0, **changes) -> tuple[ClaimContent, list[ConfirmationRow]]:
    claim = _claim(seeds, **changes)
    return claim, _rows(claim, *_draw(np.random.default_rng(seed), seeds, effect))


def test_a_clear_difference_is_confirmed_and_a_clear_loss_refuted() -> None:
    assert judge(*_evidence(5.0)).outcome == "confirmed"
    assert judge(*_evidence(-5.0)).outcome == "refuted"
    assert judge(*_evidence(0.0)).outcome == "inconclusive"


def test_steps_to_a_return_at_equal_time_are_compared_in_the_baselines_steps_and_runs_that_never_got_there_are_equal() -> (
    None
):
    times = EqualTime(challenger=620_000, baseline=208_000, ratio=620 / 208, how="told", alone=True)
    claim = _claim(8, metric="steps_to_-5_first_episode", equal_time=times)
    lengths = {"challenger": 620_000, "baseline": 208_000}

    def verdict(share_of_challenger: float, share_of_baseline: float) -> VerdictContent:
        spread = np.linspace(0.0, 0.01, 8)[:, None] * np.ones(TASKS)
        tables = [
            -np.minimum(share + spread, 1.0) * lengths[arm]
            for arm, share in (("challenger", share_of_challenger), ("baseline", share_of_baseline))
        ]
        rows = [row.model_copy(update={"env_steps": lengths[row.arm]}) for row in _rows(claim, *tables)]
        return judge(claim, rows)

    never = verdict(1.0, 1.0)
    assert (never.outcome, never.effect) == ("inconclusive", 0.0)
    sooner = verdict(0.4, 0.6)
    assert sooner.outcome == "confirmed"
    assert sooner.effect == pytest.approx(0.2 * 208_000)
    assert verdict(0.6, 0.4).outcome == "refuted"


def test_the_verdict_does_not_depend_on_the_order_of_the_rows() -> None:
    claim, rows = _evidence(0.8)
    shuffled = [rows[i] for i in np.random.default_rng(3).permutation(len(rows))]
    assert judge(claim, shuffled) == judge(claim, rows)


def test_swapping_the_sides_turns_the_verdict_around() -> None:
    claim, rows = _evidence(3.0)
    swapped = claim.model_copy(update={"challenger": claim.baseline, "baseline": claim.challenger})
    other = {"challenger": "baseline", "baseline": "challenger"}
    turned = judge(swapped, [row.model_copy(update={"arm": other[row.arm]}) for row in rows])
    verdict = judge(claim, rows)
    assert (verdict.outcome, turned.outcome) == ("confirmed", "refuted")
    assert turned.effect == pytest.approx(-(verdict.effect or 0.0))


def test_a_margin_must_be_exceeded() -> None:
    rng = np.random.default_rng(0)
    base = -10 + 0.01 * rng.normal(size=(8, TASKS))
    for percent, outcome in ((5.0, "confirmed"), (30.0, "refuted")):
        claim = _claim(margin_pct=percent)
        verdict = judge(claim, _rows(claim, base + 2.0, base))
        assert verdict.outcome == outcome
        assert verdict.margin == pytest.approx(percent / 10, rel=0.01)


@pytest.mark.parametrize("effect", [5.0, -5.0])
def test_two_sides_that_have_not_learned_the_task_decide_nothing(effect: float) -> None:
    claim, rows = _evidence(effect, floor=50.0, floor_name="a blind policy reaches")
    verdict = judge(claim, rows)
    assert verdict.outcome == "inconclusive"
    assert "neither side has learned" in verdict.reason


def test_fewer_than_five_seeds_decide_nothing() -> None:
    assert "too few" in judge(*_evidence(50.0, seeds=4)).reason
    assert judge(*_evidence(50.0, seeds=4)).outcome == "inconclusive"


def _change(rows: list[ConfirmationRow], index: int, **changes) -> list[ConfirmationRow]:
    return [row.model_copy(update=changes) if i == index else row for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("forge", "words"),
    [
        (lambda rows: rows[1:], "missing"),
        (lambda rows: [*rows, rows[0].model_copy(update={"run_id": 99})], "unexpected"),
        (lambda rows: _change(rows, 0, seed=999), "unexpected"),
        (lambda rows: _change(rows, 0, returns=rows[0].returns[:-1]), "5 of 6 held-out tasks"),
        (lambda rows: _change(rows, 0, variant_hash="x"), "another configuration"),
        (lambda rows: _change(rows, 9, variant_hash="a"), "another configuration"),
        (lambda rows: _change(rows, 0, env_steps=20_000), "env steps"),
        (lambda rows: _change(rows, 0, task="other"), "was on other"),
        (lambda rows: _change(rows, 0, task_version="2"), "was on toy 2"),
        (lambda rows: [*rows, rows[0].model_copy(update={"arm": "third"})], "no side"),
        (lambda rows: [row for row in rows if row.arm == "challenger"], "baseline"),
        (lambda rows: [], "missing"),
    ],
)
def test_evidence_that_is_not_what_the_claim_asked_for_is_invalid(forge, words: str) -> None:
    claim, rows = _evidence(5.0)
    verdict = judge(claim, forge(rows))
    assert verdict.outcome == "invalid"
    assert words in verdict.reason


@pytest.mark.parametrize(
    ("field", "value"), [("parameters", 1200), ("tuner", "grid"), ("search_trials", 5), ("tuning_env_steps", 41_000)]
)
def test_unequal_treatment_of_the_sides_is_invalid_with_its_numbers(field: str, value: object) -> None:
    claim, rows = _evidence(5.0)
    uneven = claim.model_copy(update={"challenger": claim.challenger.model_copy(update={field: value})})
    verdict = judge(uneven, rows)
    assert verdict.outcome == "invalid"
    assert [p.holds for p in verdict.parity].count(False) == 1
    assert "not treated alike" in verdict.reason


@pytest.mark.parametrize(("more", "outcome"), [(0, "confirmed"), (9_000, "confirmed"), (9_001, "invalid")])
def test_with_pruning_the_sides_may_differ_by_one_search_run_and_no_more(more: int, outcome: str) -> None:
    claim, rows = _evidence(5.0, pruning=RULE)
    side = claim.challenger.model_copy(update={"tuning_env_steps": claim.baseline.tuning_env_steps + more})
    verdict = judge(claim.model_copy(update={"challenger": side}), rows)
    assert verdict.outcome == outcome
    (check,) = [p for p in verdict.parity if "tuning" in p.name]
    assert f"{40_000 + more:,}" == check.challenger


def test_pruning_does_not_loosen_a_parity_that_is_already_wider() -> None:
    small = Pruning(rungs=(300,), env_steps=700)  # less than 2 % of 40,000
    (check,) = [p for p in judge(*_evidence(5.0, pruning=small)).parity if "tuning" in p.name]
    assert check.name == "env steps spent on tuning (within 2 %)"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_run_without_a_finite_result_leaves_the_question_open(bad: float) -> None:
    claim, rows = _evidence(5.0)
    verdict = judge(claim, _change(rows, 0, returns=(bad, *rows[0].returns[1:])))
    assert verdict.outcome == "inconclusive"
    assert "1 of 16" in verdict.reason


@pytest.mark.parametrize("status", ["diverged", "failed", "timeout", "crashed", "cancelled", "running"])
def test_a_run_that_did_not_finish_leaves_the_question_open_and_is_never_dropped(status: str) -> None:
    claim, rows = _evidence(5.0)
    verdict = judge(claim, _change(rows, 3, status=status, returns=()))
    assert verdict.outcome == "inconclusive"
    assert status in verdict.reason


@pytest.mark.parametrize("finished", [0, 3, 7])
def test_a_stopped_confirmation_counts_and_names_the_seeds_that_had_finished_on_both_sides(finished: int) -> None:
    claim, rows = _evidence(5.0)
    ready = claim.seeds[:finished]
    last = claim.seeds[finished]
    rows = [
        row if row.seed in ready or (row.seed == last and row.arm == "baseline") else row.model_copy(update={"status": "cancelled", "returns": ()})
        for row in rows
    ]  # fmt: skip
    verdict = judge(claim, rows)
    assert (verdict.outcome, verdict.seeds, verdict.effect) == ("inconclusive", finished, None)
    assert f"{finished} of 8 seeds had finished on both sides" in verdict.reason
    assert {r.run_id for r in rows if r.seed in ready} == set(verdict.run_ids)
    named = {seed for seed in claim.seeds if str(seed) in verdict.reason}
    assert named == set(ready)
    if finished:  # rows that were never queued are no other case
        assert judge(claim, [row for row in rows if row.seed in (*ready, last)]) == verdict


def test_a_stop_after_a_look_that_decides_leaves_its_decision_and_one_after_an_unclear_look_decides_nothing() -> None:
    claim = _sequential()
    for effect, outcome, seeds in ((5.0, "confirmed", 5), (0.0, "inconclusive", 6)):
        challenger, baseline = _draw(np.random.default_rng(1), 10, effect)
        every = _rows(claim, challenger, baseline)
        rows = [r if r.seed in claim.seeds[:6] else r.model_copy(update={"status": "cancelled", "returns": ()}) for r in every]  # fmt: skip
        verdict = judge(claim, rows)
        assert (verdict.outcome, verdict.seeds) == (outcome, seeds)


def test_a_configuration_against_itself_is_not_trained_and_the_verdict_is_that_nothing_better_was_found() -> None:
    side = _claim().challenger
    claim = _claim(challenger=side, baseline=side)
    assert seeds_to_run(claim, []) == ()
    verdict = judge(claim, [])
    assert (verdict.outcome, verdict.effect, verdict.seeds, verdict.run_ids) == ("inconclusive", None, 0, ())
    assert verdict.reason.startswith(
        "nothing better was found: the best of 4 configurations tried is the default itself"
    )


def test_a_configuration_that_was_confirmed_against_itself_is_judged_as_it_was_when_it_was_trained() -> None:
    side = _claim().challenger
    claim = _claim(challenger=side, baseline=side, margin_pct=10.0)
    returns = np.linspace(5, 8, 8)[:, None] + np.zeros((8, TASKS))
    assert judge(claim, _rows(claim, returns, returns)).outcome == "refuted"


@given(st.lists(st.integers(0, 15), max_size=16), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_no_choice_of_dropped_runs_turns_an_open_question_into_a_decision(dropped: list[int], seed: int) -> None:
    claim, rows = _evidence(0.0, seed=seed % 5)
    kept = [row for i, row in enumerate(rows) if i not in dropped]
    if len(kept) < len(rows):
        assert judge(claim, kept).outcome == "invalid"


def test_truly_equal_arms_are_decided_at_most_as_often_as_alpha_allows() -> None:
    """A thousand simulated campaigns; 0.05 + 2.33 standard errors of a thousand draws is 0.066."""
    rng = np.random.default_rng(2024)
    outcomes = []
    for seeds in (5, 8, 10, 12):
        claim = _claim(seeds)
        for _ in range(250):
            outcomes.append(judge(claim, _rows(claim, *_draw(rng, seeds))).outcome)
    assert set(outcomes) <= {"confirmed", "refuted", "inconclusive"}
    assert outcomes.count("confirmed") / 1000 <= 0.05
    assert (outcomes.count("confirmed") + outcomes.count("refuted")) / 1000 <= 0.066


def test_power_is_what_the_verdict_predicts() -> None:
    rng = np.random.default_rng(5)
    seeds, claim = 10, _claim(10)
    spread = math.sqrt(2 * (1 + 0.25 / TASKS))  # of a paired difference of seed means, by construction of _draw
    from experiments.judging.statistics import minimum_detectable_effect

    effect = minimum_detectable_effect(spread, seeds)
    found = [judge(claim, _rows(claim, *_draw(rng, seeds, effect))).outcome for _ in range(300)]
    assert found.count("confirmed") / 300 == pytest.approx(0.8, abs=0.08)
    assert "refuted" not in found


# ---- stopping early ---------------------------------------------------------------------


def _sequential(seeds: int = 10) -> ClaimContent:
    return _claim(seeds, looks=sequential_looks(seeds))


def _until(claim: ClaimContent, rows: list[ConfirmationRow]) -> tuple[list[ConfirmationRow], int]:
    """The rows that a lab would have trained, step by step, and the number of steps."""
    present: list[ConfirmationRow] = []
    steps = 0
    while wanted := seeds_to_run(claim, present):
        steps += 1
        present = [row for row in rows if row.seed in wanted]
    return present, steps


def test_a_clear_answer_stops_at_the_first_look() -> None:
    claim = _sequential()
    rows = _rows(claim, *_draw(np.random.default_rng(0), 10, 20.0))
    present, steps = _until(claim, rows)
    verdict = judge(claim, present)
    assert (steps, len(present)) == (1, 2 * claim.looks[0].seeds)
    assert (verdict.outcome, verdict.look, verdict.seeds) == ("confirmed", 1, claim.looks[0].seeds)
    assert verdict.level == claim.looks[0].level


def test_an_unclear_answer_goes_on_to_the_last_look() -> None:
    claim = _sequential()
    present, steps = _until(claim, _rows(claim, *_draw(np.random.default_rng(1), 10)))
    assert (steps, len(present)) == (3, 20)
    assert judge(claim, present).outcome == "inconclusive"


def test_stopping_before_the_rule_allows_is_invalid() -> None:
    claim = _sequential()
    rows = _rows(claim, *_draw(np.random.default_rng(1), 10))
    early = [row for row in rows if row.seed in claim.seeds[: claim.looks[0].seeds]]
    assert judge(claim, early).outcome == "invalid"
    assert "too early" in judge(claim, early).reason
    between = [row for row in rows if row.seed in claim.seeds[: claim.looks[0].seeds + 1]]
    assert judge(claim, between).outcome == "invalid"


def test_seeds_trained_after_the_answer_was_clear_change_nothing() -> None:
    claim = _sequential()
    challenger, baseline = _draw(np.random.default_rng(0), 10, 20.0)
    challenger[claim.looks[0].seeds :] -= 500.0  # what came later says the opposite
    verdict = judge(claim, _rows(claim, challenger, baseline))
    assert (verdict.outcome, verdict.seeds) == ("confirmed", claim.looks[0].seeds)


def test_an_unknown_seed_is_invalid_at_any_look() -> None:
    claim = _sequential()
    rows = _rows(claim, *_draw(np.random.default_rng(0), 10, 20.0))
    assert judge(claim, [*rows, rows[0].model_copy(update={"seed": 1, "run_id": 99})]).outcome == "invalid"


def test_a_failed_run_ends_confirming_early_as_inconclusive() -> None:
    claim = _sequential()
    rows = _change(_rows(claim, *_draw(np.random.default_rng(0), 10, 20.0)), 0, status="diverged", returns=())
    present, steps = _until(claim, rows)
    assert steps == 1
    assert judge(claim, present).outcome == "inconclusive"


def test_the_sequential_judge_keeps_its_error_rate_in_a_thousand_campaigns_and_saves_runs() -> None:
    rng = np.random.default_rng(11)
    outcomes, spent = [], []
    for seeds in (8, 10):
        claim = _sequential(seeds)
        for _ in range(500):
            present, _ = _until(claim, _rows(claim, *_draw(rng, seeds)))
            outcomes.append(judge(claim, present).outcome)
    assert set(outcomes) <= {"confirmed", "refuted", "inconclusive"}
    assert outcomes.count("confirmed") / 1000 <= 0.05
    assert (outcomes.count("confirmed") + outcomes.count("refuted")) / 1000 <= 0.066
    claim = _sequential()
    for _ in range(40):
        present, _ = _until(claim, _rows(claim, *_draw(rng, 10, 4.0)))
        spent.append(len(present) / 20)
        assert judge(claim, present).outcome == "confirmed"
    assert np.mean(spent) < 0.8


def test_looks_must_end_with_all_seeds_and_spend_no_more_than_alpha() -> None:
    with pytest.raises(ValidationError, match="the last one all 8"):
        _claim(8, looks=(Look(seeds=5, spent=0.01, level=0.01),))
    with pytest.raises(ValidationError, match="more than alpha"):
        _claim(8, looks=(Look(seeds=8, spent=0.1, level=0.1),))


def test_few_seeds_get_no_looks() -> None:
    assert sequential_looks(6) == ()
    assert [look.seeds for look in sequential_looks(12)] == [6, 9, 12]
    assert [look.seeds for look in sequential_looks(8)] == [5, 6, 8]


def test_a_claim_without_looks_and_pruning_keeps_the_hash_it_had_before_claims_knew_of_them() -> None:
    import hashlib
    import json

    claim = _claim()
    content = claim.model_dump(mode="json")
    del content["looks"], content["pruning"]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert claim.content_hash == hashlib.sha256(text.encode()).hexdigest()
    assert _sequential(8).content_hash != claim.content_hash
    assert _claim(pruning=RULE).content_hash != claim.content_hash


# ---- several claims ---------------------------------------------------------------------


def test_claims_judged_together_are_held_to_holms_p_values() -> None:
    candidates = (_evidence(0.9, seed=seed) for seed in range(200))
    weak, alone = next((e, v) for e in candidates if 0.03 < ((v := judge(*e)).p_value or 0.0) < 0.05)
    assert alone.outcome == "confirmed"
    strong = _evidence(5.0)
    together = judge_together([weak, weak, strong])
    assert [v.outcome for v in together] == ["inconclusive", "inconclusive", "confirmed"]
    assert together[0].adjusted_p_value == pytest.approx(2 * (alone.p_value or 0))
    assert together[0].claims_judged_together == 3
    assert judge_together([weak])[0].outcome == "confirmed"


def test_an_invalid_claim_still_counts_among_those_judged_together() -> None:
    claim, rows = _evidence(5.0)
    together = judge_together([(claim, rows), (claim, rows[1:])])
    assert together[1].outcome == "invalid"
    assert together[0].adjusted_p_value == pytest.approx(2 * (together[0].p_value or 0))


def test_claims_with_looks_are_not_judged_together() -> None:
    claim = _sequential()
    rows = _rows(claim, *_draw(np.random.default_rng(0), 10, 20.0))
    with pytest.raises(InputError, match="divided by the number"):
        judge_together([(claim, rows), (claim, rows)])


# ---- a real campaign --------------------------------------------------------------------


def test_a_recorded_verdict_is_what_a_few_independent_lines_make_of_the_raw_rows(old_ledger) -> None:
    import sqlite3

    with sqlite3.connect(old_ledger("0001")) as connection:
        rows = connection.execute(
            """select r.arm, r.seed, avg(e.value), count(*) from evals e join runs r on r.id = e.run_id
               where r.claim_id = 1 and e.pool = 'confirmation' and e.name = 'return' and e.episode = 0
               group by r.arm, r.seed"""
        ).fetchall()
        claim = json.loads(connection.execute("select content from claims").fetchone()[0])
        verdict = json.loads(connection.execute("select content from verdicts").fetchone()[0])
    mean = {(arm, seed): value for arm, seed, value, tasks in rows if tasks == claim["num_tasks"]}
    differences = [mean["challenger", seed] - mean["baseline", seed] for seed in claim["seeds"]]
    n, effect = len(differences), sum(differences) / len(differences)
    spread = math.sqrt(sum((d - effect) ** 2 for d in differences) / (n - 1))
    half = {5: 2.776445}[n] * spread / math.sqrt(n)  # Student's t from a printed table
    expected = "confirmed" if effect > half else "refuted" if effect < -half else "inconclusive"
    assert verdict["outcome"] == expected
    assert verdict["effect"] == pytest.approx(effect)
    assert verdict["interval"] == pytest.approx([effect - half, effect + half], rel=1e-6)


def test_a_recorded_claim_is_judged_again_as_it_was(old_ledger) -> None:
    from experiments.campaign.claims import confirmation_rows
    from experiments.ledger import Ledger
    from experiments.ledger.models import Claim, Verdict

    ledger = Ledger(f"sqlite:///{old_ledger('0001')}", read_only=True)
    with ledger.session() as session:
        claim, verdict = session.get_one(Claim, 1), session.get_one(Verdict, 1)
    content = ClaimContent.model_validate(claim.content)
    assert content.content_hash == claim.content_hash
    again = judge(content, confirmation_rows(ledger, 1))
    for field in ("outcome", "reason", "effect", "interval", "p_value", "parity", "run_ids", "seeds"):
        assert getattr(again, field) == getattr(type(again).model_validate(verdict.content), field)
