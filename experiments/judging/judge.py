"""The judge: a pure function from a claim and its ledger rows to a verdict. No model has a say in it.

A claim is fixed before the first confirmation run. The judge checks that the evidence is what the claim asked for
(every seed of both arms, every task, equal env steps, equal tuning), then tests the paired per-seed differences of the
mean return. What it cannot decide it calls inconclusive and says why.

A claim may name looks: numbers of seeds after which confirming may stop early. The chance of a wrong decision at any of
them stays below alpha, because each look has a stricter level of its own (`statistics.sequential_levels`), written
into the claim before the first run. `seeds_to_run` says what to train next and applies the same rule as `judge`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from pydantic import ConfigDict, Field, model_validator

from core.config import FrozenConfig
from core.errors import InputError
from experiments.judging import statistics
from experiments.metrics import FIRST_EPISODE, MetricName, QuestionMetric, parse_metric, worst_tenth
from experiments.search.pruning import Pruning
from experiments.vocabulary import FINISHED, PARAMETER_TOLERANCE, Outcome
from meta_rl.learner import DEFAULT_LEARNER

ARMS = ("challenger", "baseline")
MIN_SEEDS = 5


class ArmClaim(FrozenConfig):
    """One side of the claim: the chosen configuration and the tuning that led to it."""

    variant_hash: str
    model: str
    learner: str = Field(default=DEFAULT_LEARNER, exclude_if=lambda name: name == DEFAULT_LEARNER)
    """What trains it; left out where it is the usual one, as it was before sides could name one."""
    scored_by: MetricName = Field(default=FIRST_EPISODE, exclude_if=lambda name: name == FIRST_EPISODE)
    """What its runs are scored by."""
    parameters: int
    tuner: str
    """How the configuration was chosen, such as "tpe" or "default"."""
    search_trials: int
    """Configurations tried on the search pool."""
    tuning_env_steps: int
    """Env steps that all search and selection runs of this arm were given; one that failed early used fewer. A pruned run
    counts with what it really spent."""


class Look(FrozenConfig):
    """A number of seeds after which confirming may stop, with its share of the error rate."""

    seeds: int
    spent: float
    """Error that may have been made up to and including this look (O'Brien-Fleming spending)."""
    level: float
    """The two-sided p-value that the paired t-test must fall below here."""


class ClaimContent(FrozenConfig):
    """The hypothesis and the rule that decides it, written down before the first confirmation run."""

    hypothesis: str
    task: str
    task_version: str
    metric: QuestionMetric = FIRST_EPISODE
    """What both sides are scored by; one that ends in `as_trained` is taken after the shots in each side's own `scored_by`."""
    challenger: ArmClaim
    baseline: ArmClaim
    seeds: tuple[int, ...]
    """Fresh training seeds; each is used by both arms."""
    env_steps: int
    """Training steps of every confirmation run."""
    num_tasks: int
    """Held-out tasks that every run is evaluated on."""
    margin_pct: float = 0.0
    """The challenger must be better by this percent of the baseline's absolute mean."""
    alpha: float = 0.05
    """Two-sided error rate of the paired t-test over seeds."""
    floor: float | None = None
    """The better side must exceed this return, else neither has learned the task; None where no anchor is known."""
    floor_name: str = ""
    equal_tuning: bool = True
    """Whether both sides must have been tuned with the same effort; false where the baseline is the default."""
    looks: tuple[Look, ...] = ()
    """Where confirming may stop early, from `sequential_looks`; empty where all seeds are always trained."""
    pruning: Pruning | None = None
    """How search runs of both sides ended early; None where they did not."""

    @model_validator(mode="after")
    def _looks_fit(self) -> ClaimContent:
        if self.looks:
            sizes = [look.seeds for look in self.looks]
            if sizes != sorted(set(sizes)) or sizes[-1] != len(self.seeds):
                raise ValueError(f"looks: got {sizes}, allowed: rising, the last one all {len(self.seeds)} seeds")
            if self.looks[-1].spent > self.alpha + 1e-9 or max(look.level for look in self.looks) > self.alpha:
                raise ValueError(f"looks: they spend more than alpha {self.alpha:g}")
        return self

    @property
    def stages(self) -> tuple[tuple[int, float], ...]:
        """(seeds, two-sided level) of every look; one look at all seeds where none is named."""
        return tuple((look.seeds, look.level) for look in self.looks) or ((len(self.seeds), self.alpha),)

    @property
    def is_of_one_configuration(self) -> bool:
        """Whether both sides are the same variant, which happens where the search for something better than a default
        chose that default: the same seed would give the same training twice."""
        return self.challenger.variant_hash == self.baseline.variant_hash

    @property
    def content_hash(self) -> str:
        """SHA-256 of all fields; a claim without looks or pruning has the hash that it had before claims knew of them."""
        absent = {name for name in ("looks", "pruning") if not getattr(self, name)}
        content = self.model_dump(mode="json", exclude=absent)
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sequential_looks(total: int, *, alpha: float = 0.05) -> tuple[Look, ...]:
    """Looks for `total` seeds: at half (at least `MIN_SEEDS`), at three quarters and at the end; none below seven seeds.

    Looks closer together would cost power and save little: a run of seeds is trained in parallel anyway.
    """
    sizes = sorted({max(MIN_SEEDS, -(-total // 2)), max(MIN_SEEDS, -(-3 * total // 4)), total})
    if total < 7:
        return ()
    levels = statistics.sequential_levels(tuple(sizes), alpha)
    return tuple(Look(seeds=n, spent=spent, level=level) for n, (spent, level) in zip(sizes, levels, strict=True))


class ConfirmationRow(FrozenConfig):
    """What the judge reads of one confirmation run."""

    model_config = ConfigDict(allow_inf_nan=True)

    run_id: int
    arm: str
    seed: int
    variant_hash: str
    task: str
    task_version: str
    status: str
    env_steps: int
    returns: tuple[float, ...]
    """What the run is scored by on each held-out task, in the order of the tasks; NaN where it was not finite."""


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


def judge(claim: ClaimContent, rows: Sequence[ConfirmationRow]) -> VerdictContent:
    """The verdict on `claim` from all its confirmation rows.

    invalid: the evidence is not what the claim asked for (a dropped seed or task, another configuration, unequal
    budgets). confirmed: the interval of the paired difference lies above the margin. refuted: it lies below the margin.
    inconclusive: anything else, with the reason. One configuration on both sides is not trained at all: nothing better
    was found (rows of it, from before that was so, are judged as they were). Where a person stopped the confirmation,
    the seeds that had finished on both sides are all that counts and is named.
    """
    parity = check_parity(claim)
    if claim.is_of_one_configuration and not rows:
        reason = (
            f"nothing better was found: the best of {claim.challenger.search_trials} configurations tried is the default "
            "itself, and a training differs from itself by nothing"
        )
        return VerdictContent(outcome="inconclusive", reason=reason, parity=parity)
    if any(row.status == "cancelled" for row in rows):
        return _judge_stopped(claim, rows, parity)
    verdict = _judge_looks(claim, rows, parity, claim.stages)
    if verdict.look is not None and verdict.outcome == "inconclusive" and verdict.seeds < len(claim.seeds):
        missing = f"{verdict.seeds} of {len(claim.seeds)} seeds are trained and the answer is not clear yet"
        return verdict.model_copy(update={"outcome": "invalid", "reason": f"stopped too early: {missing}"})
    return verdict


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
        decided = verdict.outcome in ("confirmed", "refuted")
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
    seeds = tuple(seed for seed in claim.seeds if all((arm, seed) in done for arm in ARMS))
    kept = [row for row in rows if row.seed in seeds or row.seed not in claim.seeds]
    run_ids = tuple(sorted(row.run_id for row in kept))
    if problem := _problem(claim, kept, seeds) or _broken_parity(parity):
        return VerdictContent(outcome="invalid", reason=problem, parity=parity, run_ids=run_ids)
    complete = [(count, level) for count, level in claim.stages if set(claim.seeds[:count]) <= set(seeds)]
    if complete:
        verdict = _judge_looks(claim, kept, parity, complete)
        if verdict.outcome in ("confirmed", "refuted"):
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
    if claim.is_of_one_configuration and not rows:
        return ()
    for count, level in claim.stages:
        seeds = claim.seeds[:count]
        present = [row for row in rows if row.seed in seeds]
        finished = {(row.arm, row.seed) for row in present if row.status in FINISHED}
        if any((arm, seed) not in finished for arm in ARMS for seed in seeds):
            return seeds
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
    differences = means["challenger"] - means["baseline"]
    effect = float(differences.mean())
    margin = claim.margin_pct / 100 * abs(float(means["baseline"].mean()))
    beyond = differences - claim.margin_pct / 100 * np.abs(means["baseline"])  # seed by seed: the margin is noisy too
    low, high = statistics.mean_interval(beyond, level=1 - level)
    best = max(float(means[arm].mean()) for arm in ARMS)
    detectable = statistics.minimum_detectable_effect(float(differences.std(ddof=1)), count, alpha=level)

    outcome: Outcome = "inconclusive"
    interval = f"{100 * (1 - claim.alpha):g} % interval of the difference"
    if claim.looks:
        interval = f"repeated {interval} after {count} of {len(claim.seeds)} seeds"
    if count < MIN_SEEDS:
        reason = f"{count} seeds are too few to decide; at least {MIN_SEEDS} are needed"
    elif claim.floor is not None and best <= claim.floor:
        reason = (
            f"neither side has learned the task within {claim.env_steps:,} env steps: the better one reaches "
            f"{best:.1f}, {claim.floor_name} {claim.floor:.1f}"
        )
    elif low > 0:
        outcome, reason = "confirmed", f"the {interval} lies above {margin:.3g}"
    elif high < 0:
        outcome, reason = "refuted", f"the {interval} lies below {margin:.3g}"
    else:
        reason = (
            f"the {interval} contains {margin:.3g}; "
            f"with {count} seeds only a difference of {detectable:.1f} would be found reliably"
        )
    return VerdictContent(
        outcome=outcome,
        reason=reason,
        effect=effect,
        interval=statistics.mean_interval(differences, level=1 - level),
        p_value=statistics.paired_t_p_value(beyond),
        margin=margin,
        minimum_detectable_effect=detectable,
        seeds=count,
        parity=parity,
        run_ids=run_ids,
        level=level,
    )


def _scores(claim: ClaimContent, rows: Sequence[ConfirmationRow], seeds: Sequence[int]) -> dict[str, np.ndarray]:
    """Arm -> scores (seeds, tasks), both arms in the order of the seeds' numbers; of the tasks that count, where not all do."""
    found = {(row.arm, row.seed): row.returns for row in rows}
    scores = {arm: np.array([found[arm, seed] for seed in sorted(seeds)]) for arm in ARMS}
    if parse_metric(claim.metric).worst:
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
        if sorted(seeds) != sorted(wanted_seeds):
            missing = sorted(set(wanted_seeds) - set(seeds))
            extra = sorted(set(seeds) - set(wanted_seeds)) + [s for s in set(seeds) if seeds.count(s) > 1]
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
        if row.status == "done" and abs(row.env_steps - claim.env_steps) > 0.02 * claim.env_steps:
            return f"run {row.run_id} trained {row.env_steps:,} env steps, the claim says {claim.env_steps:,}"
    return None


def _unfinished(rows: Sequence[ConfirmationRow]) -> str | None:
    """A seed without a finite result cannot be dropped, so it leaves the question open."""
    bad = [row for row in rows if row.status != "done" or not np.isfinite(row.returns).all()]
    if not bad:
        return None
    listing = ", ".join(f"{row.arm} seed {row.seed}: {row.status}" for row in bad[:4])
    return f"{len(bad)} of {len(rows)} confirmation runs have no finite result ({listing})"
