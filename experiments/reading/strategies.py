"""What agents found that nobody else did: configurations far from all others that were tried, and better on fresh seeds.

A strategy is a region of configurations that agents reached and no other proposer of its side did, and that training seeds of
which the search knew nothing showed to be better. Nothing else counts as one: no word of an agent, and no score of the search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from core.config import FrozenConfig
from experiments.campaign.plan import Plan
from experiments.campaign.question import Question
from experiments.campaign.trials import Trials
from experiments.judging.statistics import mean_interval
from experiments.ledger.ids import readable_id
from experiments.ledger.store import Ledger
from experiments.search.side import Value
from experiments.search.space import REGION, Parameter
from experiments.tables import TableView

OF_AGENTS = ("agent:", "mcp:")


class Strategy(FrozenConfig):
    """A configuration that agents shaped, held against everything that others tried on its side."""

    campaign: str
    arm: str
    trial: int
    proposer: str
    values: dict[str, Value]
    """The configuration."""
    novelty: float
    """Distance to the nearest configuration of another proposer: the largest difference of a field, in shares of its range."""
    gain: float | None
    """Mean difference of the score on fresh seeds to the best other configuration measured there; None where there is none."""
    interval: tuple[float, float] | None
    """95 % interval of the gain (Student's t over seeds); None below two seeds."""
    run_ids: tuple[int, ...]
    """The runs on fresh seeds that the gain is computed from."""

    @property
    def is_found(self) -> bool:
        """Whether it is a strategy: a region of its own, and better on fresh seeds beyond doubt."""
        return self.novelty > REGION and self.interval is not None and self.interval[0] > 0

    def __str__(self) -> str:
        low, high = self.interval or (float("nan"), float("nan"))
        return (
            f"{self.proposer} on {self.arm}, trial {self.trial}: novelty {self.novelty:.2f}, "
            f"better by {self.gain or 0.0:.3g} [{low:.3g}, {high:.3g}]"
        )


def distance(parameters: Sequence[Parameter], first: Mapping[str, Value], second: Mapping[str, Value]) -> float:
    """The largest difference of a field of two configurations, from 0 to 1, in shares of its range."""
    return max((p.distance(first.get(p.name), second.get(p.name)) for p in parameters), default=0.0)


def shaped_by_agents(ledger: Ledger, campaign_id: int) -> list[Strategy]:
    """Every finished configuration of a campaign that agents shaped, the most novel first."""
    row = ledger.get_campaign(campaign_id)
    question, plan = Question.model_validate(row.question), Plan.model_validate(row.plan)
    trials = Trials(ledger, campaign_id, question, plan, row.seed)
    shaped = []
    for arm in trials.arms:
        parameters = trials.space(arm).parameters
        finished = [(trial, trials.proposer(arm, trial.number, "search")) for trial in trials.finished(arm)]
        others = [trial.values for trial, proposer in finished if not proposer.startswith(OF_AGENTS)]
        fresh = _fresh_scores(trials, arm)
        for trial, proposer in finished:
            if not proposer.startswith(OF_AGENTS) or not others:
                continue
            variant = trials.spec(arm, trial.values, seed=0, env_steps=1).variant_hash
            rivals = {trials.spec(arm, values, seed=0, env_steps=1).variant_hash for values in others}
            gains, run_ids = _gains(fresh, variant, rivals)
            shaped.append(
                Strategy(
                    campaign=readable_id("c", campaign_id),
                    arm=arm,
                    trial=trial.number,
                    proposer=proposer,
                    values=trial.values,
                    novelty=min(distance(parameters, trial.values, values) for values in others),
                    gain=float(np.mean(gains)) if gains else None,
                    interval=mean_interval(np.array(gains)) if len(gains) > 1 else None,
                    run_ids=run_ids,
                )
            )
    return sorted(shaped, key=lambda strategy: -strategy.novelty)


def strategies_table(ledger: Ledger, campaign_ids: Sequence[int], *, found_alone: bool = False) -> TableView:
    """The configurations that agents shaped in some campaigns, and which of them are strategies; or those alone."""
    shaped = [strategy for number in campaign_ids for strategy in shaped_by_agents(ledger, number)]
    rows = tuple(
        (
            s.campaign,
            s.arm,
            s.trial,
            s.proposer.removeprefix(OF_AGENTS[0]),
            round(s.novelty, 3),
            None if s.gain is None else round(s.gain, 3),
            None if s.interval is None else f"{s.interval[0]:.3g} to {s.interval[1]:.3g}",
            s.is_found,
        )
        for s in shaped
        if s.is_found or not found_alone
    )
    found = sum(s.is_found for s in shaped)
    campaigns = f"{len(campaign_ids)} campaign{'' if len(campaign_ids) == 1 else 's'}"
    return TableView(
        columns=("campaign", "arm", "trial", "agents", "novelty", "gain on fresh seeds", "95 % interval", "strategy"),
        rows=rows,
        note=f"{found} strateg{'y' if found == 1 else 'ies'} in {campaigns}. A strategy is a configuration that agents shaped, further "
        f"than {REGION:g} of a field's range from all that others tried, and better than the best of those on fresh seeds.",
    )


def _fresh_scores(trials: Trials, arm: str) -> dict[str, dict[int, tuple[float, int]]]:
    """Variant -> selection seed -> (score, run): what the search never saw."""
    scores: dict[str, dict[int, tuple[float, int]]] = {}
    for run in trials.ledger.runs(trials.campaign_id, purpose="selection", arm=arm):
        if run.score is not None:
            scores.setdefault(run.variant_hash, {})[run.seed] = (run.score, run.id)
    return scores


def _gains(
    fresh: Mapping[str, Mapping[int, tuple[float, int]]], variant: str, rivals: set[str]
) -> tuple[list[float], tuple[int, ...]]:
    """Differences on shared fresh seeds to the best rival measured there, and the runs that they come from."""
    own = fresh.get(variant, {})
    measured = [seeds for rival, seeds in fresh.items() if rival in rivals and rival != variant and own.keys() & seeds]
    if not measured:
        return [], ()
    best = max(measured, key=lambda seeds: np.mean([score for score, _ in seeds.values()]))
    shared = sorted(own.keys() & best.keys())
    return [own[s][0] - best[s][0] for s in shared], tuple(n for s in shared for n in (own[s][1], best[s][1]))
