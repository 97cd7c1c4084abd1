"""How a claim's evidence is designed, before any of it exists: which test, how many seeds a side, what counts as no difference, how long
the runs are at equal training time.

Everything here is decided from what the campaign and earlier ones in the ledger have measured of *other* seeds, and goes into the claim
with its numbers. Figures behind the rules (6,000 simulated comparisons of 8 seeds a side): a paired t-test with looks finds an effect of
1.0 / 1.5 / 2.0 standard deviations in .37 / .68 / .90, Welch's in .45 / .79 / .96.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
from sqlalchemy import select

from experiments.campaign.plan import Budget
from experiments.campaign.question import Question
from experiments.campaign.trials import Trials
from experiments.judging.claim import MIN_SPLIT, EqualTime, Look, sequential_looks
from experiments.judging.statistics import break_even_correlation
from experiments.ledger.models import Claim, Verdict
from experiments.metrics import parse_metric
from experiments.vocabulary import ARMS

LOOKS_FROM = 10
"""Seeds from which on a claim has looks: with fewer, what they cost in power is more than what they save."""
SHRINKAGE = 4
"""Pairs' worth of doubt that a correlation of seeds is held against: with few pairs it is taken as small."""
UNEQUAL = 3.0
"""Ratio of the two sides' spreads from which on seeds are split unequally."""
PILOT_SEEDS = 4
"""Seeds a side from which on their spreads are compared."""
EQUIVALENT_SHARE = 0.1
"""Of the way from the best task-blind policy to the ceiling: a difference within it counts as none."""
SAME_SPEED = 0.05
"""Sides whose throughput differs by less than this share train equally fast."""


TASK_BLIND = {
    "task_blind": "the best policy that is blind to the task",
    "stand_still": "standing still",
    "random": "a random policy",
}
"""Anchors of a task family that need not know the task, in words."""


def best_task_blind(anchors: Mapping[str, float]) -> tuple[str, float | None]:
    """(name, return) of the best anchor that is reached without finding out the task; ("", None) where none is known."""
    known = [name for name in TASK_BLIND if name in anchors]
    best = max(known, key=lambda name: anchors[name], default="")
    return best, anchors.get(best)


class TestDesign(NamedTuple):
    """The test of a claim with its seeds."""

    test: Literal["paired", "welch"]
    why: str
    split: tuple[int, int] | None
    looks: tuple[Look, ...]


def design_test(trials: Trials, seeds: int) -> TestDesign:
    """Paired or Welch's test for `seeds` seeds a side, by how seeds of the two sides have gone together so far."""
    if trials.plan.judging == 1:
        return TestDesign("paired", "", None, sequential_looks(seeds))
    if trials.question.rivals:
        why = "with more than two sides their seeds count as independent, and all are trained before any pair is judged"
        return TestDesign("welch", why, None, ())
    correlation, pairs = seed_correlation(trials)
    needed = break_even_correlation(seeds)
    told = f"seeds of the two sides go together by r = {correlation:.2f} over {pairs} pairs, counted as {{:.2f}}; pairing pays from {needed:.2f} on"  # fmt: skip
    counted = correlation * pairs / (pairs + SHRINKAGE) if pairs else 0.0
    why = (
        told.format(counted)
        if pairs
        else "no pairs of seeds are known yet, so the two sides' seeds count as independent"
    )
    if counted > needed:
        return TestDesign("paired", why, None, sequential_looks(seeds, from_seeds=LOOKS_FROM))
    split = _split(trials, seeds)
    if split is not None:
        return TestDesign(
            "welch", f"{why}; seeds are split {split[0]} to {split[1]} as the pilot's spreads are", split, ()
        )
    return TestDesign("welch", why, None, sequential_looks(seeds, from_seeds=LOOKS_FROM, test="welch"))


def seed_correlation(trials: Trials) -> tuple[float, int]:
    """(correlation of the two sides' scores over equal seeds, pairs less one a set): of this campaign's pilot, and of judged claims on
    the same task and metric. Sets are centred by themselves, so that a difference of levels is none of seeds."""
    sets = [_pilot(trials)]
    with trials.ledger.session() as session:
        query = select(Claim.content, Verdict.content).join(Verdict, Verdict.claim_id == Claim.id)
        rows = [
            (claim, verdict) for claim, verdict in session.execute(query.where(Claim.campaign_id != trials.campaign_id))
        ]
    for claim, verdict in rows:
        same = (claim.get("task"), claim.get("metric")) == (trials.question.task, trials.question.metric)
        if same and verdict.get("challenger") and not claim.get("split"):
            sets.append([verdict[arm]["seed_means"] for arm in ARMS])
    both, first, second, pairs = 0.0, 0.0, 0.0, 0
    for values in sets:
        if len(values[0]) < 2 or len(values[0]) != len(values[1]):
            continue
        x, y = (np.asarray(side, dtype=np.float64) - np.mean(side) for side in values)
        both, first, second = both + float(x @ y), first + float(x @ x), second + float(y @ y)
        pairs += len(x) - 1
    return (both / math.sqrt(first * second), pairs) if first > 0 and second > 0 else (0.0, 0)


def _pilot(trials: Trials) -> list[list[float]]:
    """The scores of both defaults on the seeds that both have one on: challenger's, baseline's."""
    by_hash = {run.config_hash: run.score for run in trials.ledger.runs(trials.campaign_id) if run.pool == "search"}
    scores = [[by_hash.get(spec.config_hash) for spec in trials.default_specs(arm)] for arm in ARMS]
    pairs = [(c, b) for c, b in zip(*scores, strict=True) if c is not None and b is not None]
    return [[pair[side] for pair in pairs] for side in range(2)]


def _split(trials: Trials, seeds: int) -> tuple[int, int] | None:
    """Seeds of the two sides in proportion to their pilot spreads, as many in all; None where the spreads are not so unlike."""
    pilot = _pilot(trials)
    if len(pilot[0]) < PILOT_SEEDS:
        return None
    spreads = [statistics.stdev(side) for side in pilot]
    if min(spreads) <= 0 or max(spreads) / min(spreads) < UNEQUAL:
        return None
    first = min(max(round(2 * seeds * spreads[0] / sum(spreads)), MIN_SPLIT), 2 * seeds - MIN_SPLIT)
    return (first, 2 * seeds - first)


def equivalence_margin(trials: Trials) -> float | None:
    """What counts as no difference: a tenth of the way from the best task-blind policy to the ceiling, or the spread between seeds
    of the default where no anchors are known; None where neither is."""
    question = trials.question
    if trials.plan.judging == 1 or question.improvement_pct:
        return None
    metric, anchors = parse_metric(question.metric), question.family.anchors
    floor = best_task_blind(anchors)[1]
    if metric.quantity == "return" and not metric.worst and floor is not None and "ceiling" in anchors:
        return EQUIVALENT_SHARE * (anchors["ceiling"] - floor)
    spread = trials.noise_floor()
    return spread if spread else None


def asks_for_both(question: Question, budget: Budget, time_ratio: float | None) -> bool:
    """Whether a campaign will be judged at equal env steps and at equal training time: of different models or learners, where there is
    a throughput."""
    sides = {(side.kinds, side.learners or (question.learner,)) for side in question.sides}
    known = budget.wall_s is not None or time_ratio is not None
    asked = question.parity is None and question.kind in ("beat", "compare") and not question.rivals
    return asked and len(sides) > 1 and known


def equal_time(trials: Trials, env_steps: int, unit: int) -> EqualTime | None:
    """Env steps of both sides at equal training time, the slower side's being `env_steps`; None where only equal env steps are asked for,
    or where the sides have one model and one learner.

    The throughput is that of the chosen configurations' selection runs, or what the person gave with --time-ratio.
    unit: run lengths are whole multiples of it.
    """
    question, plan = trials.question, trials.plan
    if plan.judging == 1 or not (plan.timed or question.parity == "time"):
        return None
    specs = {arm: trials.spec(arm, trials.winner(arm)[1], seed=0, env_steps=env_steps) for arm in ARMS}
    alone = question.parity == "time"
    kinds = {(spec.policy.model.kind, spec.learner.kind) for spec in specs.values()}
    if len(kinds) == 1 and not alone:
        return None
    if plan.time_ratio is not None:
        ratio, how = plan.time_ratio, "given with --time-ratio"
    elif plan.budget.wall_s is not None:
        rates = {arm: _throughput(trials, arm, spec.variant_hash) for arm, spec in specs.items()}
        if None in rates.values():
            return None
        ratio = rates["challenger"] / rates["baseline"]  # type: ignore[operator]
        told = " and ".join(f"{rates[arm]:,.0f} env steps/s ({arm})" for arm in ARMS)
        how = f"{told} in the runs that chose the configurations"
    else:
        return None
    if abs(math.log(ratio)) < SAME_SPEED:
        return EqualTime(challenger=env_steps, baseline=env_steps, ratio=round(ratio, 4), how=how, alone=alone)
    faster = max(round(env_steps * max(ratio, 1 / ratio) / unit), 1) * unit
    lengths = (faster, env_steps) if ratio > 1 else (env_steps, faster)
    return EqualTime(challenger=lengths[0], baseline=lengths[1], ratio=round(ratio, 4), how=how, alone=alone)


def _throughput(trials: Trials, arm: str, variant: str) -> float | None:
    """Env steps a second of training of a configuration's finished runs, of the default's model where none of it ran."""
    runs = [r for r in trials.ledger.runs(trials.campaign_id, arm=arm) if r.status == "done" and r.train_s and r.purpose != "confirmation"]  # fmt: skip
    runs = [run for run in runs if run.variant_hash == variant] or runs
    return sum(run.env_steps for run in runs) / sum(run.train_s or 0.0 for run in runs) if runs else None
