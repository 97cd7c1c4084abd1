"""Whole searches by different proposers in one world, at equal trials: which way of choosing configurations finds more.

A world measures a configuration: `TableWorld` looks the nearest untried row of a recorded table up, `RealWorld` trains. A
proposer chooses the next configuration from the trials so far. A search ends with the configuration of the best measured
score, and what counts is that configuration's score on a seed and on tasks that the search never saw. Search number n of
every proposer meets the same world: the same seeds play the noisy measurement and the fresh evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from core.config import FrozenConfig
from core.errors import InputError, bad_value
from core.seeding import numpy_stream
from experiments.bench.recorded_table import RecordedTable, train_once
from experiments.search.optimizer import SETTINGS, SUGGESTING, TPESettings, Tried, best_trial, suggest, tpe
from experiments.search.side import Value
from experiments.search.space import SearchSpace

ARM = "challenger"
RESAMPLES = 10_000


class World(Protocol):
    """One search's view of a task: what a configuration scores, and what it turns out to be worth."""

    space: SearchSpace
    parameters: int
    """Trainable numbers that every policy is sized to."""
    env_steps: int
    """Training steps of a measurement."""

    @property
    def default_scores(self) -> tuple[float, ...]:
        """Search scores of the default configuration on further seeds, for the noise floor."""
        ...

    def measure(self, values: dict[str, Value]) -> Tried:
        """The configuration that was really tried, and its score on the search pool; None where training failed."""
        ...

    def worth(self, values: dict[str, Value]) -> float:
        """Score of a tried configuration on a fresh seed and on the selection pool."""
        ...


class TableWorld:
    """A recorded table in one search: every configuration's seeds are dealt anew into the seen one and fresh ones."""

    def __init__(self, table: RecordedTable, search: int) -> None:
        self.table, self.space = table, table.space
        self.parameters, self.env_steps = table.header.policy_parameters, table.header.env_steps
        seen = numpy_stream(search, "dealt seeds").integers(table.header.seeds, size=len(table))
        rows = np.arange(len(table))
        self._seen = table.scores("search")[rows, seen]
        fresh = table.scores("selection")
        worst = float(np.nanmin(fresh))
        fresh[rows, seen] = 0.0
        count = table.header.seeds - 1
        # A training that diverged on a fresh seed is worth as little as the worst one that did not.
        self._fresh = (np.where(np.isnan(fresh), worst, fresh)).sum(axis=1) / count
        further = table.runs[table.numbers.index(0)][table.header.seeds :]
        self._default_scores = tuple(run.search for run in further if run.search is not None)
        self._tried: set[int] = set()

    @property
    def default_scores(self) -> tuple[float, ...]:
        return self._default_scores

    def measure(self, values: dict[str, Value]) -> Tried:
        place = self.table.nearest(values, self._tried)
        self._tried.add(place)
        score = float(self._seen[place])
        return Tried(self.table.configurations[place], score if np.isfinite(score) else None)

    def worth(self, values: dict[str, Value]) -> float:
        return float(self._fresh[self.table.configurations.index(values)])


class RealWorld:
    """Trains every configuration in this process: one seed for the search, another one for its worth."""

    def __init__(self, space: SearchSpace, search: int, *, env_steps: int, parameters: int) -> None:
        self.space, self.env_steps, self.parameters = space, env_steps, parameters
        draws = numpy_stream(search, "real seeds").choice(99_999_999, size=4, replace=False).tolist()
        self._seen, self._fresh, self._further = draws[0], draws[1], draws[2:]
        self._default_scores: tuple[float, ...] | None = None

    @property
    def default_scores(self) -> tuple[float, ...]:
        if self._default_scores is None:
            scores = [self._train(self.space.default_values(), seed)["search"] for seed in self._further]
            self._default_scores = tuple(score for score in scores if score is not None)
        return self._default_scores

    def _train(self, values: dict[str, Value], seed: int) -> dict[str, float | None]:
        spec = self.space.spec(values, env_steps=self.env_steps, seed=seed, parameters=self.parameters)
        try:
            return train_once(spec)[0]
        except InputError:  # such as more worlds than the run has steps for: a failed trial like any other
            return dict.fromkeys(("search", "selection"))

    def measure(self, values: dict[str, Value]) -> Tried:
        return Tried(values, self._train(values, self._seen)["search"])

    def worth(self, values: dict[str, Value]) -> float:
        score = self._train(values, self._fresh)["selection"]
        return float("nan") if score is None else score


class Search(NamedTuple):
    """What one search came to."""

    worth: float
    """Fresh score of the configuration that it chose."""
    trials: int
    wasted: int
    """Trials whose run failed, and proposals that repeated a configuration already proposed."""
    by_models: int = 0
    """Trials in which a chat model or an agent departed from the optimizer's suggestion."""
    tokens: int = 0
    """Of the chat model, in and out."""
    usd: float | None = 0.0
    """Dollars of the chat model; None where its price is unknown."""


Searcher = Callable[[World, int, int], Search]
"""(world, trials, seed) -> outcome."""


# ---- proposers that need no crew --------------------------------------------------------


def by_rule(choose: Callable[[World, Sequence[Tried], int], dict[str, Value]]) -> Searcher:
    """The search of a proposer that is a function of the world's space, the trials so far and a seed."""

    def search(world: World, trials: int, seed: int) -> Search:
        history: list[Tried] = []
        proposed: list[dict[str, Value]] = []
        wasted = 0
        for _ in range(trials):
            values = choose(world, history, seed)
            tried = world.measure(values)
            wasted += tried.score is None or values in proposed
            proposed.append(values)
            history.append(tried)
        return Search(worth_of_best(world, history), trials, wasted)

    return search


def worth_of_best(world: World, history: Sequence[Tried]) -> float:
    """Fresh score of the configuration with the best measured one; of the first one where every run failed."""
    best = best_trial(history) or history[0]
    return world.worth(best.values)


def random_values(world: World, history: Sequence[Tried], seed: int) -> dict[str, Value]:
    """A uniform draw from the space (on the logarithm where a parameter says so)."""
    stream = numpy_stream(seed, "random search", len(history))
    return world.space.from_unit(stream.random(len(world.space.parameters)))


def tpe_values(settings: TPESettings = SETTINGS) -> Callable[[World, Sequence[Tried], int], dict[str, Value]]:
    """Multivariate TPE from its first random draw on, without the default and without the plateau rule."""
    return lambda world, history, seed: tpe(world.space, history, seed=seed, arm=ARM, settings=settings)


def suggested_values(rule: int = SUGGESTING) -> Callable[[World, Sequence[Tried], int], dict[str, Value]]:
    """What a campaign's `suggest` gives, and so what the offline researcher proposes; by its present rule or one of before."""
    return lambda world, history, seed: (
        suggest(world.space, history, seed=seed, arm=ARM, noise_floor=noise_floor(world, history), rule=rule).values
    )


def ensemble_values(world: World, history: Sequence[Tried], seed: int) -> dict[str, Value]:
    """The optimizer, TPE and a random draw in turn: several proposers that know of each other only what was measured."""
    turns = (suggested_values(), tpe_values(), random_values)
    return turns[len(history) % len(turns)](world, history, seed)


def noise_floor(world: World, history: Sequence[Tried]) -> float | None:
    """Standard deviation of the default's search scores: trial 0 and the further seeds. None below two scores."""
    first = [history[0].score] if history and history[0].score is not None else []
    scores = [*first, *world.default_scores]
    return float(np.std(scores, ddof=1)) if len(scores) > 1 else None


def default_search(world: World, trials: int, seed: int) -> Search:
    """The default configuration and nothing else."""
    return Search(world.worth(world.measure(world.space.default_values()).values), 1, 0)


RULES: Mapping[str, Searcher] = {
    "default": default_search,
    "random": by_rule(random_values),
    "tpe": by_rule(tpe_values()),
    "optimizer": by_rule(suggested_values()),
    "ensemble": by_rule(ensemble_values),
    "optimizer-1": by_rule(suggested_values(1)),
}
"""Proposers without agents. `optimizer` is a campaign whose agents add nothing: default, near the best, TPE, plateau rule;
`optimizer-1` is what it was before: random draws in place of those near the best."""


# ---- comparison -------------------------------------------------------------------------


class ArmResult(FrozenConfig):
    """One proposer over all searches."""

    arm: str
    worth: tuple[float, ...]
    """Fresh score of the chosen configuration, one a search."""
    mean: float
    interval: tuple[float, float]
    """95 % bootstrap interval of the mean over searches."""
    difference: float | None = None
    """Mean paired difference to the reference proposer; None for that one itself."""
    difference_interval: tuple[float, float] | None = None
    better: float | None = None
    """Share of the paired searches that came out better than the reference's, ties counted half."""
    trials: int
    wasted: int
    by_models: int
    tokens: int = 0
    """Of the chat model, over all searches."""
    usd: float | None = 0.0
    """Dollars of the chat model, over all searches; None where its price is unknown."""


def compare(
    searches: Mapping[str, Sequence[Search]], *, reference: str = "random", seed: int = 0
) -> tuple[ArmResult, ...]:
    """Means and paired differences to `reference` with 95 % percentile bootstrap intervals over searches."""
    base = np.array([s.worth for s in searches[reference]]) if reference in searches else None
    results = []
    for arm, outcomes in searches.items():
        worth = np.array([s.worth for s in outcomes])
        paired = None if base is None or arm == reference else worth - base
        results.append(
            ArmResult(
                arm=arm,
                worth=tuple(worth.round(4).tolist()),
                mean=round(float(worth.mean()), 4),
                interval=bootstrap_interval(worth, seed),
                difference=None if paired is None else round(float(paired.mean()), 4),
                difference_interval=None if paired is None else bootstrap_interval(paired, seed),
                better=None if paired is None else float(np.mean((paired > 0) + 0.5 * (paired == 0))),
                trials=sum(s.trials for s in outcomes),
                wasted=sum(s.wasted for s in outcomes),
                by_models=sum(s.by_models for s in outcomes),
                tokens=sum(s.tokens for s in outcomes),
                usd=None if any(s.usd is None for s in outcomes) else round(sum(s.usd or 0.0 for s in outcomes), 6),
            )
        )
    return tuple(results)


def bootstrap_interval(sample: Float[ndarray, " N"], seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of independent searches."""
    picks = numpy_stream(seed, "bootstrap").integers(len(sample), size=(RESAMPLES, len(sample)))
    low, high = np.quantile(sample[picks].mean(axis=1), (0.025, 0.975))
    return round(float(low), 4), round(float(high), 4)


def run_searches(
    arms: Mapping[str, Searcher],
    world: Callable[[int], World],
    *,
    searches: int,
    trials: int,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, list[Search]]:
    """Paired searches: number n of every arm meets `world(seed + n)` and draws from the same seed."""
    if searches < 1:
        raise bad_value("--searches", searches, "1 or more")
    if trials < 1:
        raise bad_value("--trials", trials, "1 or more")
    found: dict[str, list[Search]] = {arm: [] for arm in arms}
    for number in range(seed, seed + searches):
        for arm, searcher in arms.items():
            found[arm].append(searcher(world(number), trials, number))
            say(f"search {number - seed + 1} of {searches}, {arm}: {found[arm][-1].worth:.3f}")
    return found
