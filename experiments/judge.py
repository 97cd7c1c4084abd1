"""The judge: a pure function from a claim and its ledger rows to a verdict. No model has a say in it.

A claim is fixed before the first confirmation run. The judge checks that the evidence is what the claim asked for
(every seed of both arms, every task, equal env steps, equal tuning), then tests the paired per-seed differences of the
mean return. What it cannot decide it calls inconclusive and says why.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import ConfigDict, Field

from core.config import FrozenConfig
from experiments import statistics

Outcome = Literal["confirmed", "refuted", "inconclusive", "invalid"]
ARMS = ("challenger", "baseline")
MIN_SEEDS = 5
PARAMETER_TOLERANCE = 0.10


class ArmClaim(FrozenConfig):
    """One side of the claim: the chosen configuration and the tuning that led to it."""

    variant_hash: str
    model: str
    parameters: int
    tuner: str
    """How the configuration was chosen, such as "tpe" or "default"."""
    search_trials: int
    """Configurations tried on the search pool."""
    tuning_env_steps: int
    """Env steps of all search and selection runs of this arm."""


class ClaimContent(FrozenConfig):
    """The hypothesis and the rule that decides it, written down before the first confirmation run."""

    hypothesis: str
    task: str
    task_version: str
    metric: Literal["return_first_episode"] = "return_first_episode"
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

    @property
    def content_hash(self) -> str:
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


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
    """First-episode return on each held-out task, in the order of the tasks; NaN where it was not finite."""


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
    """95 % interval of the effect (Student's t over seeds)."""
    p_value: float | None = None
    margin: float = 0.0
    probability_of_improvement: float | None = None
    minimum_detectable_effect: float | None = None
    seeds: int = 0
    challenger: ArmResult | None = None
    baseline: ArmResult | None = None
    parity: tuple[ParityCheck, ...] = Field(default=())
    run_ids: tuple[int, ...] = ()


def judge(claim: ClaimContent, rows: Sequence[ConfirmationRow]) -> VerdictContent:
    """The verdict on `claim` from all its confirmation rows.

    invalid: the evidence is not what the claim asked for (a dropped seed or task, another configuration, unequal
    budgets). confirmed: the interval of the paired difference lies above the margin. refuted: it lies below the margin.
    inconclusive: anything else, with the reason.
    """
    parity = check_parity(claim)
    run_ids = tuple(sorted(row.run_id for row in rows))
    problem = _problem(claim, rows) or _broken_parity(parity)
    if problem:
        return VerdictContent(outcome="invalid", reason=problem, parity=parity, run_ids=run_ids)
    if trouble := _unfinished(rows):
        return VerdictContent(outcome="inconclusive", reason=trouble, parity=parity, run_ids=run_ids)

    scores = {
        arm: np.array([row.returns for row in sorted(rows, key=lambda r: r.seed) if row.arm == arm]) for arm in ARMS
    }
    means = {arm: scores[arm].mean(axis=1) for arm in ARMS}
    differences = means["challenger"] - means["baseline"]
    effect = float(differences.mean())
    margin = claim.margin_pct / 100 * abs(float(means["baseline"].mean()))
    beyond = differences - claim.margin_pct / 100 * np.abs(means["baseline"])  # seed by seed: the margin is noisy too
    low, high = statistics.mean_interval(beyond, level=1 - claim.alpha)
    best = max(float(means[arm].mean()) for arm in ARMS)
    detectable = statistics.minimum_detectable_effect(float(differences.std(ddof=1)), len(differences))

    outcome: Outcome = "inconclusive"
    if len(claim.seeds) < MIN_SEEDS:
        reason = f"{len(claim.seeds)} seeds are too few to decide; at least {MIN_SEEDS} are needed"
    elif claim.floor is not None and best <= claim.floor:
        reason = (
            f"neither side has learned the task within {claim.env_steps:,} env steps: the better one reaches "
            f"{best:.1f}, {claim.floor_name} {claim.floor:.1f}"
        )
    elif low > 0:
        outcome, reason = "confirmed", f"the {_percent(claim)} interval of the difference lies above {margin:.3g}"
    elif high < 0:
        outcome, reason = "refuted", f"the {_percent(claim)} interval of the difference lies below {margin:.3g}"
    else:
        reason = (
            f"the {_percent(claim)} interval of the difference contains {margin:.3g}; "
            f"with {len(differences)} seeds only a difference of {detectable:.1f} would be found reliably"
        )
    return VerdictContent(
        outcome=outcome,
        reason=reason,
        effect=effect,
        interval=statistics.mean_interval(differences, level=1 - claim.alpha),
        p_value=statistics.paired_t_p_value(beyond),
        margin=margin,
        probability_of_improvement=statistics.probability_of_improvement(scores["challenger"], scores["baseline"]),
        minimum_detectable_effect=detectable,
        seeds=len(differences),
        challenger=summarise(scores["challenger"]),
        baseline=summarise(scores["baseline"]),
        parity=parity,
        run_ids=run_ids,
    )


def summarise(scores: np.ndarray) -> ArmResult:
    """Mean, IQM, their intervals and the worst cases of scores (seeds, tasks)."""
    means = scores.mean(axis=1)
    return ArmResult(
        mean=float(means.mean()),
        interval=statistics.mean_interval(means),
        iqm=statistics.interquartile_mean(scores),
        iqm_interval=statistics.stratified_bootstrap_interval(scores),
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
        checks += [
            ParityCheck(name="tuner", challenger=c.tuner, baseline=b.tuner, holds=c.tuner == b.tuner),
            ParityCheck(
                name="search trials",
                challenger=str(c.search_trials),
                baseline=str(b.search_trials),
                holds=c.search_trials == b.search_trials,
            ),
            ParityCheck(
                name="env steps spent on tuning (within 2 %)",
                challenger=f"{c.tuning_env_steps:,}",
                baseline=f"{b.tuning_env_steps:,}",
                holds=abs(c.tuning_env_steps - b.tuning_env_steps)
                <= 0.02 * max(c.tuning_env_steps, b.tuning_env_steps),
            ),
        ]
    return tuple(checks)


def _broken_parity(parity: Sequence[ParityCheck]) -> str | None:
    broken = [f"{p.name}: {p.challenger} against {p.baseline}" for p in parity if not p.holds]
    return f"the two sides were not treated alike ({'; '.join(broken)})" if broken else None


def _problem(claim: ClaimContent, rows: Sequence[ConfirmationRow]) -> str | None:
    """What makes the evidence other than the claim asked for, or None."""
    for arm in ARMS:
        wanted = getattr(claim, arm).variant_hash
        seeds = [row.seed for row in rows if row.arm == arm]
        if sorted(seeds) != sorted(claim.seeds):
            missing = sorted(set(claim.seeds) - set(seeds))
            extra = sorted(set(seeds) - set(claim.seeds)) + [s for s in set(seeds) if seeds.count(s) > 1]
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


def _percent(claim: ClaimContent) -> str:
    return f"{100 * (1 - claim.alpha):g} %"
