"""What the ledger knows of a task before a campaign on it begins: a configuration that did well, and how soon curves tell.

Read once, when the plan is made, and kept in the plan: a resumed campaign, and one that runs again with the same plan, does not
depend on what the ledger has learned since.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import numpy as np
from scipy import stats
from sqlalchemy import select

from core.errors import InputError
from experiments.campaign.plan import Plan
from experiments.campaign.question import Question
from experiments.campaign.trials import Trials
from experiments.ledger.models import Campaign, Claim, Metric, Run
from experiments.ledger.store import Ledger, LedgerError
from experiments.presets import TUNED, effort
from experiments.search.pruning import SHARES
from experiments.search.side import Value
from experiments.search.space import SearchSpace, is_near
from experiments.vocabulary import Arm
from meta_rl.learner import DEFAULT_LEARNER

CAMPAIGNS = 20
"""The newest campaigns on a task that are looked through."""
AGREEMENT = 0.7
"""Rank correlation with the final score from which on a look at a run may end it."""
FEWEST_CURVES = 10
"""Recorded runs of a task below which nothing is said of its curves."""


def remembered(
    ledger: Ledger | None, question: Question, spaces: Mapping[Arm, SearchSpace]
) -> dict[str, dict[str, Value]]:
    """Arm -> what is known to be good on this task beside its default, for the arms that will be tuned: one trial of their first round.

    First the configuration of its space with the best selection score that a campaign on this task has chosen: for all arms or for
    none, since what one side is told the other must be told; a side whose best is its own default has that as trial 0, and is left
    out. Without one (or without a ledger), the tuned preset of each side's next kind, where all of them have one.
    """
    found = {arm: None if ledger is None else _best(ledger, question, space) for arm, space in spaces.items()}
    if any(values is None for values in found.values()):
        presets = {arm: _next_preset(space) for arm, space in spaces.items()}
        told = {arm: values for arm, values in presets.items() if values is not None}
        return told if len(told) == len(spaces) else {}
    kept: dict[str, dict[str, Value]] = {}
    for arm, space in spaces.items():
        values = found[arm]
        if values is not None and not is_near(space.parameters, space.default_values(), values):
            kept[arm] = values
    return kept


def _next_preset(space: SearchSpace) -> dict[str, Value] | None:
    """The first tuned preset among the side's kinds after the one that its default is of."""
    if space.side.recorded is not None:
        return None
    for kind in space.side.kinds[1:]:
        if (
            effort(space.task, kind).startswith(TUNED)
            and space.default(kind, space.learners[0]).learner.kind == DEFAULT_LEARNER
        ):
            try:
                return space.preset_values(kind)
            except InputError:  # a value that this space does not search
                continue
    return None


def _best(ledger: Ledger, question: Question, space: SearchSpace) -> dict[str, Value] | None:
    if space.side.recorded is not None:
        return None
    with ledger.session() as session:
        query = select(Campaign).join(Claim, Claim.campaign_id == Campaign.id).order_by(Campaign.id.desc())
        rows = [row for row in session.scalars(query.limit(CAMPAIGNS)) if row.question.get("task") == question.task]
    best: tuple[float, dict[str, Value]] | None = None
    for row in rows:
        try:
            earlier, plan = Question.model_validate(row.question), Plan.model_validate(row.plan)
            if earlier.metric != question.metric:
                continue
            trials = Trials(ledger, row.id, earlier, plan, row.seed)
            for arm in trials.arms:
                _, values = trials.winner(arm)
                spec = trials.spec(arm, values, seed=0, env_steps=1)
                runs = ledger.runs(row.id, purpose="selection", arm=arm)
                scores = [r.score for r in runs if r.variant_hash == spec.variant_hash and r.score is not None]
                kind, learner = spec.policy.model.kind, spec.learner.kind
                if not scores or kind not in space.side.kinds or learner not in space.learners:
                    continue
                own = {p.name for p in space.parameters}
                kinds: dict[str, Value] = {"model.kind": kind, "learner.kind": learner}
                fitting = space.complete(space.check_values({n: v for n, v in (kinds | values).items() if n in own}))
                score = statistics.fmean(scores)
                if best is None or score > best[0]:
                    best = (score, fitting)
        except (
            InputError,
            LedgerError,
            ValueError,
        ):  # of a plugin that is not here, or of values that are not allowed any more
            continue
    return None if best is None else best[1]


def telling_shares(ledger: Ledger, task: str) -> tuple[float, ...] | None:
    """The shares of a search run after which training curves of this task tell its final score: Spearman's rank correlation of at
    least `AGREEMENT` over the recorded runs of the search pool that are scored by the first episode's return. None where there are
    too few."""
    with ledger.session() as session:
        query = select(Run.id, Run.env_steps, Run.score, Run.spec).where(
            Run.task == task, Run.pool == "search", Run.status == "done"
        )
        newest = session.execute(query.order_by(Run.id.desc()).limit(200))
        runs = [row for row in newest if row.score is not None and "scored_by" not in row.spec]
        curves: dict[int, list[tuple[int, float]]] = {}
        metric = select(Metric.run_id, Metric.env_steps, Metric.value).where(
            Metric.name == "rollout/ep_rew_mean", Metric.run_id.in_([run.id for run in runs])
        )
        for run_id, env_steps, value in session.execute(metric.order_by(Metric.run_id, Metric.env_steps)):
            if value is not None:
                curves.setdefault(run_id, []).append((env_steps, value))
    known = [run for run in runs if run.id in curves]
    if len(known) < FEWEST_CURVES:
        return None
    telling = []
    for share in SHARES:
        seen = [_at(curves[run.id], share * run.env_steps) for run in known]
        agreement = np.corrcoef(stats.rankdata(seen), stats.rankdata([run.score for run in known]))[0, 1]
        if np.isfinite(agreement) and agreement >= AGREEMENT:
            telling.append(share)
    return tuple(telling)


def _at(curve: list[tuple[int, float]], env_steps: float) -> float:
    """The mean training return of the tenth of the run before a moment: one iteration alone is noisy."""
    end = curve[-1][0]
    near = [value for steps, value in curve if env_steps - 0.1 * end <= steps <= env_steps]
    return statistics.fmean(near) if near else curve[0][1]
