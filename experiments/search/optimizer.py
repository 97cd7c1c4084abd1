"""Which configuration to try next: the default, what is near the best, multivariate TPE, and a rule for when nothing is found.

A preset is a good start, and most of a space is far worse than it. So the first trials stay near the best configuration that is
known, in a region that widens with every trial (a trust region, as in TuRBO, Eriksson et al. 2019, arXiv 1910.01739, but one that
grows: with so few noisy trials a failure to improve says nothing), and the estimator takes over when it has trials to
estimate from. Everything here is a pure function of the finished trials and a seed. The study is built anew for every suggestion, so a
resumed campaign gets the suggestion that it would have got, and nothing has to be saved.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import optuna
from scipy.stats import qmc

from core.config import FrozenConfig
from core.seeding import numpy_stream, seed_sequence
from experiments.search.side import Value
from experiments.search.space import Parameter, SearchSpace, is_near

PLATEAU_TRIALS = 4
"""Trials in a row without an improvement beyond the noise floor, after which another family has to change."""

SUGGESTING = 2
"""The present rule of `suggest`: 1 drew four trials of the whole space at random before TPE; 2 stays near the best at first."""
NEAR_TRIALS = 12
"""Trials, the default among them, until TPE takes over. `docs/benchmarks.md` says how the three numbers were chosen."""
FIRST_RADIUS = 0.1
"""How far a coordinate of the unit cube may move in the first trial beside the default; it grows with the root of the trials."""
MOVED = 0.5
"""Share of the coordinates that move in one suggestion."""

Source = Literal["default", "memory", "optimizer", "plateau"]


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
    beside: Sequence[dict[str, Value]] = (),
    memory: dict[str, Value] | None = None,
    rule: int = 1,
) -> Suggestion:
    """The next configuration: the default first, then one that is remembered, then near the best or by TPE, and on a plateau a
    change of another family.

    history: every finished trial of this arm in order. noise_floor: standard deviation of the score over seeds; without
    one every improvement counts. refused: suggestions for this same trial that cannot be run; they are avoided like
    failed trials, and the draw is another one after each. beside: configurations of the trials that are measured at the same
    time; they count as no better than the worst so far (the constant liar of Ginsbourger et al. 2010). memory: what an earlier
    campaign chose, or a tuned preset. rule: `SUGGESTING`, or 1 as campaigns of before have it.
    """
    if not history and not beside:
        return Suggestion(space.default_values(), "default", "trial 0 of every arm is its default")
    if memory is not None and len(history) + len(beside) == 1 and memory not in refused:
        return Suggestion(
            memory,
            "memory",
            "the best configuration that is known of this task: what an earlier campaign in this ledger selected, or the preset that was tuned to it",
        )
    family = None if beside else plateau_family(space, history, noise_floor or 0.0)
    if family is not None:
        values = change_family(space, history, family, seed=seed, arm=arm, refused=refused)
        reason = (
            f"no improvement beyond the noise floor in {PLATEAU_TRIALS} trials: the best configuration so far with "
            f"another {family}, the family that varied least in them"
        )
        return Suggestion(values, "plateau", reason)
    if rule > 1 and len(history) + len(beside) < NEAR_TRIALS:
        values, radius = near(space, history, seed=seed, arm=arm, beside=beside, refused=refused)
        return Suggestion(values, "optimizer", f"within {100 * radius:.0f} % of the range around the best so far")
    values = tpe(space, history, seed=seed, arm=arm, refused=[*beside, *refused])
    return Suggestion(values, "optimizer", "multivariate TPE over the finished trials")


# ---- near the best ----------------------------------------------------------------------


def near(
    space: SearchSpace,
    history: Sequence[Tried],
    *,
    seed: int,
    arm: str,
    beside: Sequence[dict[str, Value]] = (),
    refused: Sequence[dict[str, Value]] = (),
) -> tuple[dict[str, Value], float]:
    """A configuration around the best one, and the radius of the region in the unit cube.

    `MOVED` of the coordinates move by up to the radius each, by a scrambled Sobol sequence (Owen 1998) whose point number is that of
    the trial, so the draws of one campaign fill the region evenly. Its centre is the best finished trial, or the default.
    """
    best = best_trial(history)
    centre = space.default_values() if best is None else best.values
    count = len(history) + len(beside)
    radius = min(FIRST_RADIUS * math.sqrt(max(count, 1)), 0.5)
    dimensions = len(space.parameters)
    if not dimensions:
        return centre, radius
    known = [*(trial.values for trial in history), *beside, *refused]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a length that is no power of two, which a sequence read one by one has
        points = qmc.Sobol(2 * dimensions, rng=numpy_stream(seed, "near", arm)).random(count + len(refused) + 20)
    values = centre
    for point in points[
        count + len(refused) :
    ]:  # a draw that moved nothing, or to where something stands, is passed over
        moves, picked = point[:dimensions], point[dimensions:] < MOVED
        shifted: dict[str, Value] = dict(centre)
        for parameter, move, is_picked in zip(space.parameters, moves, picked, strict=True):
            if is_picked and parameter.name in centre:
                by = radius * (2 * move - 1)
                shifted[parameter.name] = shift(parameter, centre[parameter.name], by, halves=space.marks >= 3)
        values = space.complete(shifted)
        if not any(is_near(space.parameters, other, values) for other in known):
            break
    return values, radius


def shift(parameter: Parameter, value: Value, by: float, *, halves: bool = True) -> Value:
    """A parameter's value moved by a share of its range, kept inside. A choice or a whole number moves from the middle of its
    share of the range, so that a step shorter than half of that changes nothing; choices without an order go round.

    halves: of choices without an order the present one has half of the range, as if there were two: how soon it is left then does not
    depend on how many there are. Searches of before these were seven models left one of many sooner.
    """
    if parameter.kind == "float":
        return parameter.from_unit(min(max(parameter.to_unit(value) + by, 0.0), 1.0))
    if parameter.kind == "choice":
        count = len(parameter.choices or ())
        if halves and not parameter.ordered and count > 1:
            if abs(by) < 0.25:
                return value
            others = [choice for choice in parameter.choices or () if choice != value]
            return others[min(int((by % 1.0 - 0.25) * 2 * len(others)), len(others) - 1)]
        place = (round(parameter.to_unit(value) * max(count - 1, 1)) + 0.5) / count + by
        return parameter.from_unit(min(max(place, 0.0), 1.0 - 1e-9) if parameter.ordered else place % 1.0)
    low, high = int(parameter.low or 0), int(parameter.high or 0)
    if parameter.log:
        place = math.log((float(value) + 0.5) / low) / math.log((high + 1) / low)
    else:
        place = (float(value) - low + 0.5) / (high + 1 - low)
    return parameter.from_unit(min(max(place + by, 0.0), 1.0 - 1e-9))


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
    return space.complete(chosen)  # less what a later choice left without an effect


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
