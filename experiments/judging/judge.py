"""The judge: a pure function from a claim and its ledger rows to a verdict. No model has a say in it.

A claim is fixed before the first confirmation run. The judge checks that the evidence is what the claim asked for
(every seed of both arms, every task, equal env steps, equal tuning), then tests the paired per-seed differences of the
mean return. What it cannot decide it calls inconclusive and says why.

By default both sides' seeds are paired; a claim may name Welch's test instead, and unequal numbers of seeds, both chosen before it from
how seeds of the two sides go together. Undecided evidence is `equivalent` where both one-sided tests hold the difference inside a
margin that the claim names (Schuirmann 1987). At equal training time, each side has env steps of its own; a claim of both parities is
decided by Holm's procedure over the two.

A claim may name looks: numbers of seeds after which confirming may stop early. The chance of a wrong decision at any of
them stays below alpha, because each look has a stricter level of its own (`statistics.sequential_levels`), written
into the claim before the first run. `seeds_to_run` says what to train next and applies the same rule as `judge`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from core.config import FrozenConfig
from core.errors import InputError
from experiments.judging import statistics
from experiments.judging.claim import ARMS, MIN_SEEDS, MIN_SPLIT, ClaimContent, ConfirmationRow
from experiments.metrics import parse_metric, worst_tenth
from experiments.vocabulary import FINISHED, PARAMETER_TOLERANCE, Outcome


class ParityCheck(FrozenConfig):
    """One condition of a fair comparison, with its numbers."""

    name: str
    challenger: str
    baseline: str
    holds: bool


class ArmResult(FrozenConfig):
    """One side's confirmation scores."""

    mean: float
    interval: tuple[float, float]
    iqm: float
    iqm_interval: tuple[float, float]
    worst_seed: float
    worst_task: float
    seed_means: tuple[float, ...]


class PairVerdict(FrozenConfig):
    """The verdict on one pair of several sides."""

    first: str
    second: str
    outcome: Outcome
    reason: str
    effect: float | None
    """First minus second."""
    interval: tuple[float, float] | None
    p_value: float | None
    """Holm's, among all pairs."""
    first_mean: float | None
    second_mean: float | None

    @classmethod
    def of(cls, pair: tuple[str, str], verdict: VerdictContent) -> PairVerdict:
        """What a verdict says of a pair."""
        return cls(
            first=pair[0],
            second=pair[1],
            outcome=verdict.outcome,
            reason=verdict.reason,
            effect=verdict.effect,
            interval=verdict.interval,
            p_value=verdict.adjusted_p_value,
            first_mean=None if verdict.challenger is None else verdict.challenger.mean,
            second_mean=None if verdict.baseline is None else verdict.baseline.mean,
        )

    @property
    def winner(self) -> str | None:
        """The side that is better, where that is decided."""
        return {"confirmed": self.first, "refuted": self.second}.get(self.outcome)


class VerdictContent(FrozenConfig):
    """The judge's decision and every number behind it."""

    outcome: Outcome
    reason: str
    effect: float | None = None
    """Mean paired difference, challenger minus baseline, in units of return."""
    interval: tuple[float, float] | None = None
    """95 % interval of the effect (Student's t over seeds); with looks the repeated interval, which holds at all looks at
    once (Jennison and Turnbull 1989, "Interim analyses: the repeated confidence interval approach")."""
    p_value: float | None = None
    margin: float = 0.0
    probability_of_improvement: float | None = None
    minimum_detectable_effect: float | None = None
    seeds: int = 0
    challenger: ArmResult | None = None
    baseline: ArmResult | None = None
    parity: tuple[ParityCheck, ...] = Field(default=())
    run_ids: tuple[int, ...] = ()
    level: float | None = None
    """Two-sided level of the test that decided: alpha, or that of the look."""
    look: int | None = None
    """Which look of the claim decided, from 1; None where the claim has none."""
    adjusted_p_value: float | None = None
    """Holm's p-value where several claims were judged together."""
    claims_judged_together: int = 1
    e_value: float | None = Field(default=None, exclude_if=lambda value: value is None)
    """Evidence against equal sides from this claim's own seeds (`statistics.e_value`); 20 or more is as rare as p below 0.05 where there is
    no difference, at whatever moment one looks. Kept so that a later night can multiply it."""
    e_product: float | None = Field(default=None, exclude_if=lambda value: value is None)
    """The product with the e-values of the claims that this one extends; what an extended claim is decided by."""
    pairs: tuple[PairVerdict, ...] = Field(default=(), exclude_if=lambda pairs: not pairs)
    """Where there are more than two sides: every pair; the effect and the two sides of this verdict are those of the first."""
    best: str | None = Field(default=None, exclude_if=lambda arm: arm is None)
    """The side that beats every other one, where there are more than two and one does."""
    test: Literal["paired", "welch"] = Field(default="paired", exclude_if=lambda test: test == "paired")
    """The test that was made."""
    at_equal_time: VerdictContent | None = Field(default=None, exclude_if=lambda verdict: verdict is None)
    """The same question at equal training time, where the claim asks for both parities."""


def judge(claim: ClaimContent, rows: Sequence[ConfirmationRow]) -> VerdictContent:
    """The verdict on `claim` from all its confirmation rows.

    invalid: the evidence is not what the claim asked for (a dropped seed or task, another configuration, unequal
    budgets). confirmed: the interval of the paired difference lies above the margin. refuted: it lies below the margin.
    equivalent: it lies within the claim's equivalence margin, whatever its sign. inconclusive: anything else, with the reason.
    One configuration on both sides is not trained at all: nothing better was found (rows of it, from before that was so,
    are judged as they were). Where a person stopped the confirmation, the seeds that had finished on both sides count alone.
    """
    if claim.others:
        return _judge_several(claim, rows)
    parity = check_parity(claim)
    if claim.is_of_one_configuration and not rows:
        reason = (
            f"nothing better was found: the best of {claim.challenger.search_trials} configurations tried is the default "
            "itself, and a training differs from itself by nothing"
        )
        return VerdictContent(outcome="inconclusive", reason=reason, parity=parity)
    if any(row.status == "cancelled" for row in rows):
        return _judge_stopped(_of_one_parity(claim), rows_of(claim, rows, timed=False), parity)
    if claim.equal_time is not None and not claim.equal_time.alone:
        return _judge_both(claim, rows, parity)
    verdict = _judge_looks(claim, rows, parity, claim.stages)
    if claim.extends is not None:
        return _judge_extended(claim, verdict)
    if verdict.look is not None and verdict.outcome == "inconclusive" and verdict.seeds < len(claim.seeds):
        missing = f"{verdict.seeds} of {len(claim.seeds)} seeds are trained and the answer is not clear yet"
        return verdict.model_copy(update={"outcome": "invalid", "reason": f"stopped too early: {missing}"})
    return verdict


def _judge_several(claim: ClaimContent, rows: Sequence[ConfirmationRow]) -> VerdictContent:
    """The verdict on more than two sides: every pair by the same test, all p-values held together (Holm).

    Where the challenger is held against each, it is confirmed where it beats all of them, refuted where one beats it. Where the question is
    which is best, confirmed names the side that beats every other one.
    """
    run_ids = tuple(sorted(row.run_id for row in rows))
    stray = next((row for row in rows if row.arm not in claim.arms), None)
    if stray is not None:
        return VerdictContent(outcome="invalid", reason=f"run {stray.run_id} belongs to no side of the claim ({stray.arm})", run_ids=run_ids)  # fmt: skip
    evidence = []
    for pair in claim.pairs:
        names = dict(zip(pair, ARMS, strict=True))
        own = [row.model_copy(update={"arm": names[row.arm]}) for row in rows if row.arm in names]
        evidence.append((claim.of_pair(*pair), own))
    verdicts = judge_together(evidence, alpha=claim.alpha)
    pairs = tuple(PairVerdict.of(pair, verdict) for pair, verdict in zip(claim.pairs, verdicts, strict=True))
    invalid = next((pair for pair in pairs if pair.outcome == "invalid"), None)
    won = {pair.winner: {other for p in pairs if p.winner == pair.winner for other in (p.first, p.second)} for pair in pairs if pair.winner}  # fmt: skip
    best = next((arm for arm, beaten in won.items() if beaten == set(claim.arms)), None)
    outcomes = {pair.outcome for pair in pairs}

    def called(arm: str) -> str:
        return claim.side(arm).label or arm

    outcome: Outcome = "inconclusive"
    if invalid is not None:
        outcome, reason = "invalid", f"{called(invalid.first)} against {called(invalid.second)}: {invalid.reason}"
    elif claim.ranks:
        lead = max(claim.arms, key=lambda arm: _mean_of(pairs, arm))
        reason = f"no side beats all others; {called(lead)} has the highest mean"
        if best is not None:
            outcome, reason = "confirmed", f"{called(best)} beats every other side"
    elif best == "challenger":
        outcome, reason = (
            "confirmed",
            f"{called('challenger')} beats each of the {len(pairs)} sides that it is held against",
        )
    elif "refuted" in outcomes:
        better = ", ".join(called(pair.second) for pair in pairs if pair.outcome == "refuted")
        outcome, reason = "refuted", f"{better} beats {called('challenger')}"
    elif outcomes == {"equivalent"}:
        outcome, reason = "equivalent", "none of the differences is worth anything"
    else:
        beaten = sum(pair.outcome == "confirmed" for pair in pairs)
        reason = f"{called('challenger')} beats {beaten} of the {len(pairs)} sides that it is held against"
    first = verdicts[0]
    return first.model_copy(
        update={"outcome": outcome, "reason": reason, "pairs": pairs, "best": best, "run_ids": run_ids}
    )


def _mean_of(pairs: Sequence[PairVerdict], arm: str) -> float:
    """The mean score of a side."""
    means = [mean for p in pairs for name, mean in ((p.first, p.first_mean), (p.second, p.second_mean)) if name == arm]
    return next((mean for mean in means if mean is not None), -np.inf)


def _judge_both(
    claim: ClaimContent, rows: Sequence[ConfirmationRow], parity: tuple[ParityCheck, ...]
) -> VerdictContent:
    """The verdict at equal env steps with the one at equal training time in it, both by Holm's adjusted p-values."""
    assert claim.equal_time is not None
    steps = claim.model_copy(update={"equal_time": None})
    timed = claim.model_copy(update={"equal_time": claim.equal_time.model_copy(update={"alone": True})})
    strays = [
        row
        for row in rows
        if row.arm in ARMS and not any(_near(row.planned or row.env_steps, n) for n in claim.lengths(row.arm))
    ]
    if strays:
        return VerdictContent(
            outcome="invalid",
            reason=f"run {strays[0].run_id} was given {strays[0].planned:,} env steps, which neither parity of the claim asks for",
            parity=parity,
            run_ids=tuple(sorted(row.run_id for row in rows)),
        )
    first, second = judge_together(
        [(steps, rows_of(claim, rows, timed=False)), (timed, rows_of(claim, rows, timed=True))], alpha=claim.alpha
    )
    return first.model_copy(update={"at_equal_time": second})


def rows_of(claim: ClaimContent, rows: Sequence[ConfirmationRow], *, timed: bool) -> list[ConfirmationRow]:
    """The rows of one parity, of a claim that may ask for both: at equal training time or at equal env steps."""
    if claim.equal_time is None or claim.equal_time.alone:
        return list(rows)
    wanted = {arm: int(getattr(claim.equal_time, arm)) if timed else claim.env_steps for arm in ARMS}
    return [row for row in rows if row.arm in wanted and _near(row.planned or row.env_steps, wanted[row.arm])]


def _near(env_steps: int, wanted: int) -> bool:
    return abs(env_steps - wanted) <= 0.02 * wanted


def _of_one_parity(claim: ClaimContent) -> ClaimContent:
    """The claim at equal env steps alone, unless equal time is all that it asks for."""
    both = claim.equal_time is not None and not claim.equal_time.alone
    return claim.model_copy(update={"equal_time": None}) if both else claim


def _judge_looks(
    claim: ClaimContent,
    rows: Sequence[ConfirmationRow],
    parity: tuple[ParityCheck, ...],
    stages: Sequence[tuple[int, float]],
) -> VerdictContent:
    """The verdict at the first of these looks that decides, else at the last one that there is evidence for."""
    verdict, look = None, 0
    for count, level in stages:
        verdict, look = _judge_look(claim, rows, parity, count, level), look + 1
        decided = verdict.outcome in ("confirmed", "refuted", "equivalent")
        if decided or verdict.effect is None or not _rows_beyond(claim, rows, count):
            break
    assert verdict is not None
    if verdict.effect is None:
        return verdict
    more = _summaries(claim, rows, claim.seeds[: verdict.seeds])
    return verdict.model_copy(update={"look": look if claim.looks else None, **more})


def _judge_stopped(
    claim: ClaimContent, rows: Sequence[ConfirmationRow], parity: tuple[ParityCheck, ...]
) -> VerdictContent:
    """The verdict on a confirmation that a person stopped.

    A look whose seeds had all finished decides as it would have; short of one that does, nothing is decided, whatever
    the seeds that happened to be ready say.
    """
    done = {(row.arm, row.seed) for row in rows if row.status == "done"}
    seeds = tuple(
        seed for seed in claim.seeds if all((arm, seed) in done for arm in ARMS if seed in claim.seeds_of(arm))
    )
    kept = [row for row in rows if row.seed in seeds or row.seed not in claim.seeds]
    run_ids = tuple(sorted(row.run_id for row in kept))
    if problem := _problem(claim, kept, seeds) or _broken_parity(parity):
        return VerdictContent(outcome="invalid", reason=problem, parity=parity, run_ids=run_ids)
    complete = [(count, level) for count, level in claim.stages if set(claim.seeds[:count]) <= set(seeds)]
    if complete:
        verdict = _judge_looks(claim, kept, parity, complete)
        if verdict.outcome in ("confirmed", "refuted", "equivalent"):
            return verdict
    names = f" ({', '.join(map(str, seeds))})" if seeds else ""
    return VerdictContent(
        outcome="inconclusive",
        reason=f"a person stopped the confirmation when {len(seeds)} of {len(claim.seeds)} seeds had finished on both sides"
        f"{names}; what was still to be trained is cancelled",
        parity=parity,
        seeds=len(seeds),
        run_ids=run_ids,
    )


def seeds_to_run(claim: ClaimContent, rows: Sequence[ConfirmationRow]) -> tuple[int, ...]:
    """The seeds that must be finished before the claim can go on, both arms each; empty where the answer is fixed.

    Call it, train what it names, and call it again until it is empty; then `judge` decides on the same rows.
    """
    if claim.is_of_one_configuration and not rows and not claim.others:
        return ()
    for count, level in claim.stages:
        seeds = claim.seeds[:count]
        present = [row for row in rows if row.seed in seeds]
        finished = [(row.arm, row.seed) for row in present if row.status in FINISHED]
        wanted = [(arm, seed, len(claim.lengths(arm))) for arm in claim.arms for seed in claim.seeds_of(arm)[:count]]
        if any(finished.count((arm, seed)) < lengths for arm, seed, lengths in wanted):
            return seeds
        if claim.equal_time is not None or claim.others:  # without looks: all that it asks for is trained at once
            return ()
        verdict = _judge_look(claim, present, check_parity(claim), count, level)
        if verdict.outcome in ("confirmed", "refuted") or verdict.effect is None:
            return ()
    return ()


def judge_together(
    evidence: Sequence[tuple[ClaimContent, Sequence[ConfirmationRow]]], *, alpha: float = 0.05
) -> tuple[VerdictContent, ...]:
    """Verdicts on all claims of one campaign; the chance of one or more wrong decisions among them stays below `alpha`.

    Holm's procedure over the claims' p-values: a claim that its own test would decide, but not the adjusted p-value, is
    inconclusive. A claim without a p-value counts as 1. Claims with looks cannot be judged together; give each
    alpha divided by the number of claims instead.
    """
    if len(evidence) > 1 and any(claim.looks for claim, _ in evidence):
        raise InputError("claims with looks cannot be judged together: give each alpha divided by the number of claims")
    verdicts = [judge(claim, rows) for claim, rows in evidence]
    adjusted = statistics.holm([1.0 if v.p_value is None else v.p_value for v in verdicts])
    together = []
    for verdict, p_value in zip(verdicts, adjusted, strict=True):
        update: dict[str, object] = {"claims_judged_together": len(verdicts)}
        if verdict.p_value is not None:
            update["adjusted_p_value"] = p_value
        if verdict.outcome in ("confirmed", "refuted") and p_value >= alpha:
            update |= {
                "outcome": "inconclusive",
                "reason": f"{verdict.reason}, but among {len(verdicts)} claims its p-value is {p_value:.3g} (Holm), "
                f"not below {alpha:g}",
            }
        together.append(verdict.model_copy(update=update))
    return tuple(together)


def _judge_look(
    claim: ClaimContent,
    rows: Sequence[ConfirmationRow],
    parity: tuple[ParityCheck, ...],
    count: int,
    level: float,
) -> VerdictContent:
    """The verdict from the first `count` seeds of the claim, tested at `level`."""
    later = set(claim.seeds[count:])
    rows = [row for row in rows if row.seed not in later]
    run_ids = tuple(sorted(row.run_id for row in rows))
    problem = _problem(claim, rows, claim.seeds[:count]) or _broken_parity(parity)
    if problem:
        return VerdictContent(outcome="invalid", reason=problem, parity=parity, run_ids=run_ids)
    if trouble := _unfinished(rows):
        return VerdictContent(outcome="inconclusive", reason=trouble, parity=parity, run_ids=run_ids)

    scores = _scores(claim, rows, claim.seeds[:count])
    means = {arm: scores[arm].mean(axis=1) for arm in ARMS}
    pairs = claim.test == "paired"
    margin = claim.margin_pct / 100 * abs(float(means["baseline"].mean()))
    bar = means["baseline"] + claim.margin_pct / 100 * np.abs(
        means["baseline"]
    )  # seed by seed: the margin is noisy too
    beyond = statistics.compare_means(means["challenger"], bar, paired=pairs)
    low, high = beyond.interval(1 - level)
    plain = statistics.compare_means(means["challenger"], means["baseline"], paired=pairs)
    effect, best = plain.mean, max(float(means[arm].mean()) for arm in ARMS)
    detectable = plain.detectable(alpha=level)
    fewest = MIN_SEEDS if claim.split is None else MIN_SPLIT

    outcome: Outcome = "inconclusive"
    interval = f"{100 * (1 - claim.alpha):g} % interval of the difference"
    if claim.looks:
        interval = f"repeated {interval} after {count} of {len(claim.seeds)} seeds"
    if min(len(means[arm]) for arm in ARMS) < fewest:
        reason = f"{count} seeds are too few to decide; at least {MIN_SEEDS} are needed"
    elif claim.floor is not None and best <= claim.floor:
        reason = (
            f"neither side has learned the task within {max(claim.lengths(a)[0] for a in ARMS):,} env steps: the better one reaches "
            f"{best:.1f}, {claim.floor_name} {claim.floor:.1f}"
        )
    elif low > 0:
        outcome, reason = "confirmed", f"the {interval} lies above {margin:.3g}"
    elif high < 0:
        outcome, reason = "refuted", f"the {interval} lies below {margin:.3g}"
    elif claim.equivalence is not None and count == len(claim.seeds) and _within(plain, claim):
        outcome = "equivalent"
        narrow = plain.interval(1 - 2 * claim.alpha)
        reason = (
            f"the {100 * (1 - 2 * claim.alpha):g} % interval of the difference, from {narrow[0]:+.3g} to {narrow[1]:+.3g}, lies within "
            f"±{claim.equivalence:.3g}, which the claim counts as no difference"
        )
    else:
        reason = (
            f"the {interval} contains {margin:.3g}; "
            f"with {count} seeds only a difference of {detectable:.1f} would be found reliably"
        )
    if claim.equal_tuning and min(claim.challenger.search_trials, claim.baseline.search_trials) < claim.tuned_from:
        fewer = min(claim.challenger.search_trials, claim.baseline.search_trials)
        reason += (
            f"; both sides are untuned: only {fewer} configuration{'' if fewer == 1 else 's'} of each could be tried"
        )
    several = [means[arm][: min(len(means["challenger"]), len(means["baseline"]))] for arm in ARMS]
    return VerdictContent(
        outcome=outcome,
        reason=reason,
        effect=effect,
        interval=plain.interval(1 - level),
        p_value=beyond.p_value,
        e_value=statistics.e_value(several[0] - several[1]) if claim.tuned_from and len(several[0]) > 1 else None,
        margin=margin,
        test=claim.test,
        minimum_detectable_effect=detectable,
        seeds=count,
        parity=parity,
        run_ids=run_ids,
        level=level,
    )


def _within(difference: statistics.Difference, claim: ClaimContent) -> bool:
    """Whether both one-sided tests hold the difference inside the claim's equivalence margin (Schuirmann 1987)."""
    assert claim.equivalence is not None
    low, high = difference.interval(1 - 2 * claim.alpha)
    return -claim.equivalence < low and high < claim.equivalence


def _judge_extended(claim: ClaimContent, verdict: VerdictContent) -> VerdictContent:
    """The verdict of an extending claim: by the product of the e-values, which keeps its error rate at whatever moment one stops
    (Ramdas et al. 2023, arXiv 2210.01948, section 2), and not by a second test of the same hypothesis."""
    assert claim.extends is not None
    if (
        verdict.e_value is None
        or verdict.effect is None
        or verdict.outcome == "invalid"
        or "neither side" in verdict.reason
    ):
        return verdict
    before, product = claim.extends, claim.extends.e_product * verdict.e_value
    seeds = before.seeds + verdict.seeds
    effect = (before.seeds * before.effect + verdict.seeds * verdict.effect) / seeds
    needed = 1 / claim.alpha
    words = f"the evidence of {seeds} seeds over {before.claim} and this claim multiplies to {product:.3g}"
    if product >= needed:
        outcome: Outcome = "confirmed" if effect > 0 else "refuted"
        reason = f"{words}, {needed:g} or more decides; the difference over all of them is {effect:+.3g}"
    else:
        outcome, reason = (
            "inconclusive",
            f"{words}, less than the {needed:g} that decides; more seeds may be added with extend",
        )
    return verdict.model_copy(update={"outcome": outcome, "reason": reason, "e_product": product})


def _scores(claim: ClaimContent, rows: Sequence[ConfirmationRow], seeds: Sequence[int]) -> dict[str, np.ndarray]:
    """Arm -> scores (seeds, tasks), both arms in the order of the seeds' numbers; of the tasks that count, where not all do."""
    found = {(row.arm, row.seed): row.returns for row in rows}
    scores = {
        arm: np.array([found[arm, seed] for seed in sorted(set(seeds) & set(claim.seeds_of(arm)))]) for arm in ARMS
    }
    metric, timed = parse_metric(claim.metric), claim.equal_time is not None and claim.equal_time.alone
    if timed and metric.level is not None:  # in the baseline's steps; multiplied first, so that "never" equals "never"
        scores["challenger"] = scores["challenger"] * claim.lengths("baseline")[0] / claim.lengths("challenger")[0]
    if metric.worst:
        scores = {arm: np.sort(values, axis=1)[:, : worst_tenth(claim.num_tasks)] for arm, values in scores.items()}
    return scores


def _summaries(claim: ClaimContent, rows: Sequence[ConfirmationRow], seeds: Sequence[int]) -> dict[str, object]:
    """What a verdict says about the two sides beyond the test."""
    scores = _scores(claim, rows, seeds)
    return {
        "probability_of_improvement": statistics.probability_of_improvement(scores["challenger"], scores["baseline"]),
        **{arm: summarise(scores[arm]) for arm in ARMS},
    }


def _rows_beyond(claim: ClaimContent, rows: Sequence[ConfirmationRow], count: int) -> bool:
    """Whether there is evidence from a later look of the claim."""
    later = set(claim.seeds[count:])
    return any(row.seed in later for row in rows)


def summarise(scores: np.ndarray) -> ArmResult:
    """Mean, IQM, their intervals and the worst cases of scores (seeds, tasks)."""
    means = scores.mean(axis=1)
    return ArmResult(
        mean=float(means.mean()),
        interval=statistics.mean_interval(means),
        iqm=statistics.interquartile_mean(scores),
        iqm_interval=statistics.seed_bootstrap_interval(scores),
        worst_seed=float(means.min()),
        worst_task=float(scores.mean(axis=0).min()),
        seed_means=tuple(float(m) for m in means),
    )


def check_parity(claim: ClaimContent) -> tuple[ParityCheck, ...]:
    """Whether the two sides were treated alike, condition by condition."""
    c, b = claim.challenger, claim.baseline
    larger = max(c.parameters, b.parameters)
    close = abs(c.parameters - b.parameters) <= PARAMETER_TOLERANCE * larger
    checks = [
        ParityCheck(
            name="parameters (within 10 %)",
            challenger=f"{c.parameters:,}",
            baseline=f"{b.parameters:,}",
            holds=close,
        )
    ]
    if claim.equal_tuning:
        # Pruning stops each side's own weak trials, so true costs cannot be equal to a percent; its rule (experiments/
        # pruning.py) keeps them within one search run, and anything beyond that means that the rule was not kept.
        allowed = 0.02 * max(c.tuning_env_steps, b.tuning_env_steps)
        within = "2 %"
        if claim.pruning is not None and claim.pruning.env_steps > allowed:
            allowed, within = (
                claim.pruning.env_steps,
                f"one search run of {claim.pruning.env_steps:,}, by the rule of pruning",
            )
        checks += [
            ParityCheck(name="tuner", challenger=c.tuner, baseline=b.tuner, holds=c.tuner == b.tuner),
            ParityCheck(
                name="search trials",
                challenger=str(c.search_trials),
                baseline=str(b.search_trials),
                holds=c.search_trials == b.search_trials,
            ),
            ParityCheck(
                name=f"env steps spent on tuning (within {within})",
                challenger=f"{c.tuning_env_steps:,}",
                baseline=f"{b.tuning_env_steps:,}",
                holds=abs(c.tuning_env_steps - b.tuning_env_steps) <= allowed,
            ),
        ]
    return tuple(checks)


def _broken_parity(parity: Sequence[ParityCheck]) -> str | None:
    broken = [f"{p.name}: {p.challenger} against {p.baseline}" for p in parity if not p.holds]
    return f"the two sides were not treated alike ({'; '.join(broken)})" if broken else None


def _problem(claim: ClaimContent, rows: Sequence[ConfirmationRow], wanted_seeds: Sequence[int]) -> str | None:
    """What makes the evidence other than the claim asked for, or None."""
    for arm in ARMS:
        wanted = getattr(claim, arm).variant_hash
        seeds = [row.seed for row in rows if row.arm == arm]
        own = [seed for seed in wanted_seeds if seed in claim.seeds_of(arm)]
        if sorted(seeds) != sorted(own):
            missing = sorted(set(own) - set(seeds))
            extra = sorted(set(seeds) - set(own)) + [s for s in set(seeds) if seeds.count(s) > 1]
            return f"{arm}: confirmation seeds are not those of the claim (missing {missing}, unexpected {extra})"
        for row in rows:
            if row.arm == arm and row.variant_hash != wanted:
                return f"{arm}: run {row.run_id} trained another configuration than the claim names"
    for row in rows:
        if row.arm not in ARMS:
            return f"run {row.run_id} belongs to no side of the claim ({row.arm})"
        if (row.task, row.task_version) != (claim.task, claim.task_version):
            return f"run {row.run_id} was on {row.task} {row.task_version}, the claim is on {claim.task_version}"
        if row.status == "done" and len(row.returns) != claim.num_tasks:
            return f"run {row.run_id} has returns for {len(row.returns)} of {claim.num_tasks} held-out tasks"
        if row.status == "done" and not _near(row.env_steps, claim.lengths(row.arm)[0]):
            return f"run {row.run_id} trained {row.env_steps:,} env steps, the claim says {claim.lengths(row.arm)[0]:,}"
    return None


def _unfinished(rows: Sequence[ConfirmationRow]) -> str | None:
    """A seed without a finite result cannot be dropped, so it leaves the question open."""
    bad = [row for row in rows if row.status != "done" or not np.isfinite(row.returns).all()]
    if not bad:
        return None
    listing = ", ".join(f"{row.arm} seed {row.seed}: {row.status}" for row in bad[:4])
    return f"{len(bad)} of {len(rows)} confirmation runs have no finite result ({listing})"
