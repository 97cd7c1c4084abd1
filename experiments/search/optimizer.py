"""Which configuration to try next: the default, multivariate TPE, and a rule for when both have stopped finding anything.

Everything here is a pure function of the finished trials and a seed. The study is built anew for every suggestion, so a
resumed campaign gets the suggestion that it would have got, and nothing has to be saved.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import optuna

from core.config import FrozenConfig
from core.seeding import numpy_stream, seed_sequence
from experiments.search.side import Value
from experiments.search.space import SearchSpace

PLATEAU_TRIALS = 4
"""Trials in a row without an improvement beyond the noise floor, after which another family has to change."""

Source = Literal["default", "optimizer", "plateau"]


class Tried(NamedTuple):
    """One finished trial; score is None where its run failed or was pruned."""

    values: dict[str, Value]
    score: float | None
    rung: tuple[int, float] | None = None
    """Env steps and score at which a pruned run was ended."""


class Suggestion(NamedTuple):
    """A complete configuration, where it comes from and why."""

    values: dict[str, Value]
    source: Source
    reason: str


class TPESettings(FrozenConfig):
    """Settings of the tree-structured Parzen estimator. `docs/benchmarks.md` says how they were chosen."""

    startup: int = 4
    """Trials (the default counts) before the estimator replaces random draws."""
    good_share: float = 0.2
    """Share of the trials that count as good. Optuna's own rule is 0.1, which up to ten trials is a single one."""
    candidates: int = 24
    """Draws from the density of good trials, of which the one most unlike the others is suggested."""
    prior_weight: float = 1.0
    """Weight of the flat prior over the space against one trial."""


SETTINGS = TPESettings()


def suggest(
    space: SearchSpace,
    history: Sequence[Tried],
    *,
    seed: int,
    arm: str,
    noise_floor: float | None = None,
    refused: Sequence[dict[str, Value]] = (),
) -> Suggestion:
    """The next configuration: the default first, then TPE, and on a plateau a change of another family.

    history: every finished trial of this arm in order. noise_floor: standard deviation of the score over seeds; without
    one every improvement counts. refused: suggestions for this same trial that cannot be run; they are avoided like
    failed trials, and the draw is another one after each.
    """
    if not history:
        return Suggestion(space.default_values(), "default", "trial 0 of every arm is its default")
    family = plateau_family(space, history, noise_floor or 0.0)
    if family is not None:
        values = change_family(space, history, family, seed=seed, arm=arm, refused=refused)
        reason = (
            f"no improvement beyond the noise floor in {PLATEAU_TRIALS} trials: the best configuration so far with "
            f"another {family}, the family that varied least in them"
        )
        return Suggestion(values, "plateau", reason)
    values = tpe(space, history, seed=seed, arm=arm, refused=refused)
    return Suggestion(values, "optimizer", "multivariate TPE over the finished trials")


# ---- TPE --------------------------------------------------------------------------------


def tpe(
    space: SearchSpace,
    history: Sequence[Tried],
    *,
    seed: int,
    arm: str,
    refused: Sequence[dict[str, Value]] = (),
    settings: TPESettings = SETTINGS,
) -> dict[str, Value]:
    """A configuration from multivariate TPE (Bergstra et al. 2011; multivariate: Falkner et al. 2018).

    A pruned trial ranks below every finished one, by how far it came. A trial whose run failed and a refused suggestion
    count as bad as the worst one measured, so that their neighbourhood is avoided.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    names = ("optimizer", arm, len(history), *([len(refused)] if refused else []))
    state = int(seed_sequence(seed, *names).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # multivariate and group are called experimental
        sampler = optuna.samplers.TPESampler(
            multivariate=True,
            group=True,
            n_startup_trials=settings.startup,
            n_ei_candidates=settings.candidates,
            prior_weight=settings.prior_weight,
            gamma=lambda trials: max(1, min(math.ceil(settings.good_share * trials), 25)),
            seed=state,
        )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    by_name = {p.name: p for p in space.parameters}
    worst = min((t.score for t in history if t.score is not None), default=None)
    for values, score, rung in (*history, *(Tried(values, None) for values in refused)):
        known = {k: v for k, v in values.items() if k in by_name}
        state_, value = optuna.trial.TrialState.COMPLETE, worst if score is None else score
        if rung is not None:
            state_, value = optuna.trial.TrialState.PRUNED, None
        elif value is None:
            state_ = optuna.trial.TrialState.FAIL
        study.add_trial(
            optuna.trial.create_trial(
                params=known,
                distributions={k: by_name[k].distribution() for k in known},
                value=value,
                intermediate_values={} if rung is None else {rung[0]: rung[1]},
                state=state_,
            )
        )
    trial = study.ask()
    chosen: dict[str, Value] = {}
    for p in space.parameters:
        if not space.has(p, chosen):
            continue
        if p.kind == "choice":
            picked: Any = trial.suggest_categorical(p.name, p.choices or ())
            chosen[p.name] = picked
        elif p.kind == "int":
            chosen[p.name] = trial.suggest_int(p.name, int(p.low or 0), int(p.high or 0), log=p.log)
        else:
            chosen[p.name] = trial.suggest_float(p.name, p.low or 0.0, p.high or 0.0, log=p.log)
    return chosen


# ---- the plateau rule -------------------------------------------------------------------


def trials_since_gain(history: Sequence[Tried], noise_floor: float) -> int:
    """Finished trials after the last one that was better than the incumbent by more than the noise floor.

    The incumbent is the last trial that was, so several small gains in a row count as soon as their sum exceeds it.
    """
    incumbent, last = -math.inf, 0
    for number, (_, score, _) in enumerate(history):
        if score is not None and (incumbent == -math.inf or score > incumbent + noise_floor):
            incumbent, last = score, number
    return len(history) - 1 - last


def plateau_family(space: SearchSpace, history: Sequence[Tried], noise_floor: float) -> str | None:
    """The family of hyperparameters that the next trial has to change, or None where the search still gains.

    Due once after every `PLATEAU_TRIALS` trials without a gain. The family is the one that varied least over those
    trials; of equals the one that comes first in the space.
    """
    since = trials_since_gain(history, noise_floor)
    if since == 0 or since % PLATEAU_TRIALS or best_trial(history) is None:
        return None
    recent = [t.values for t in history[-PLATEAU_TRIALS:]]
    spread = {family: variation(space, family, recent) for family in space.families()}
    return min(spread, key=lambda family: round(spread[family], 9))


def variation(space: SearchSpace, family: str, configurations: Sequence[dict[str, Value]]) -> float:
    """Mean over a family's parameters of the mean distance between two of the configurations, from 0 to 1.

    Distances are those of unit coordinates; different choices of a list without an order, and a parameter that only one
    of the two has, are 1 apart.
    """
    pairs = [(a, b) for i, a in enumerate(configurations) for b in configurations[:i]]
    own = [p for p in space.parameters if p.family == family]
    distances = [p.distance(a.get(p.name), b.get(p.name)) for p in own for a, b in pairs]
    return math.fsum(distances) / max(len(distances), 1)


def best_trial(history: Sequence[Tried]) -> Tried | None:
    """The trial with the best score, the earlier one of equals."""
    return max((t for t in history if t.score is not None), key=lambda t: t.score or 0.0, default=None)


def change_family(
    space: SearchSpace,
    history: Sequence[Tried],
    family: str,
    *,
    seed: int,
    arm: str,
    refused: Sequence[dict[str, Value]] = (),
) -> dict[str, Value]:
    """The best configuration with fresh random values for one family, different from it and from every trial."""
    best = best_trial(history)
    assert best is not None
    stream = numpy_stream(seed, "plateau", arm, len(history))
    tried = [space.complete(values) for values in (*(t.values for t in history), *refused)]
    values = best.values
    for _ in range(100):  # a family with few choices may be used up: then the last draw stands
        fresh = {p.name: p.from_unit(stream.random()) for p in space.parameters if p.family == family}
        values = space.complete({**best.values, **fresh})
        if values not in tried:
            break
    return values
