"""Which searched hyperparameters go with the score, from the finished trials of one arm."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from experiments.campaign.trials import FinishedTrial
from experiments.search.space import Parameter
from experiments.tables import TableView

MIN_TRIALS = 4


def sensitivity_table(trials: Sequence[FinishedTrial], parameters: Sequence[Parameter], limit: int) -> TableView:
    """Every parameter that varied, with the strength of its link to the score, strongest first.

    Numbers: Spearman's rank correlation with its 95 % interval, Fisher's z with the standard error of Bonett and Wright
    2000 ("Sample size requirements for estimating Pearson, Kendall and Spearman correlations"). Choices: the
    correlation ratio eta, the root of the share of variance between the choices, without an interval.
    """
    scored = [t for t in trials if t.score is not None]
    rows: list[tuple[str | float | int | None, ...]] = []
    for parameter in parameters:
        pairs = [(t.values[parameter.name], float(t.score or 0.0)) for t in scored if parameter.name in t.values]
        if len(pairs) < MIN_TRIALS or len({v for v, _ in pairs}) < 2 or len({s for _, s in pairs}) < 2:
            continue
        if parameter.kind == "choice":
            rows.append((parameter.name, "eta", round(_correlation_ratio(pairs), 2), None, None, len(pairs)))
        else:
            rho = float(stats.spearmanr([float(v) for v, _ in pairs], [s for _, s in pairs])[0])  # type: ignore[arg-type]
            low, high = rank_interval(rho, len(pairs))
            rows.append((parameter.name, "rank correlation", round(rho, 2), round(low, 2), round(high, 2), len(pairs)))
    rows.sort(key=lambda row: -abs(float(row[2] or 0.0)))
    note = (
        "an interval that holds 0 shows nothing"
        if rows
        else f"needs {MIN_TRIALS} finished trials with different values"
    )
    return TableView(columns=("parameter", "measure", "value", "low", "high", "trials"), rows=tuple(rows[:limit]), note=note)  # fmt: skip


def rank_interval(rho: float, count: int, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of a Spearman correlation over `count` pairs, four or more."""
    z = math.atanh(min(max(rho, -0.999999), 0.999999))
    half = float(stats.norm.ppf(0.5 + level / 2)) * math.sqrt((1 + rho**2 / 2) / max(count - 3, 1))
    return math.tanh(z - half), math.tanh(z + half)


def _correlation_ratio(pairs: Sequence[tuple[object, float]]) -> float:
    scores = np.array([s for _, s in pairs])
    groups = [np.array([s for v, s in pairs if v == choice]) for choice in {v for v, _ in pairs}]
    between = sum(len(g) * float((g.mean() - scores.mean()) ** 2) for g in groups)
    return math.sqrt(between / float(((scores - scores.mean()) ** 2).sum()))
