"""How a budget becomes runs: the richest design that still leaves every run long enough to learn something.

A campaign's runs are counted in full runs F (selection and confirmation) and half runs (baseline and search), so a
design costs a known number of env steps per step of F. The designs are tried from the richest down; the first whose
F reaches the family's learning length is taken, else the smallest one, as long as F has `MIN_ITERATIONS` training
iterations of the largest configuration. Nothing is spent before the plan is shown.

A search round holds as many trials of each side as there are workers, so that the longer runs of one side and the
shorter ones of the other fill them evenly; a round's trials are suggested in one go and end together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import Field

from core.config import FrozenConfig
from core.errors import InputError
from experiments.judging.claim import JUDGING, Extended
from experiments.numbers import format_count, format_seconds
from experiments.runs.machine import default_memory_limit_mb
from experiments.search.optimizer import SUGGESTING
from experiments.search.pruning import Pruning, make_pruning
from experiments.search.side import Value
from experiments.search.sizing import SIZING
from experiments.search.space import MARKS
from meta_rl.learner import LearnerConfig

MIN_ITERATIONS = 2
FEWEST_TRIALS = 3  # of a side: with fewer it is called untuned in the verdict, so no round is dropped before
STARTUP_S = 4.0  # a run's process start, imports and evaluation where it was not measured
OVERHEAD_S = 20.0  # planning, crew, judging and report
SHARE = (
    0.95  # of the wall time that is planned; what is left of it when the claim is written goes into longer final runs
)
AT_ONCE = (
    2  # trials of a side in one round where the budget is in env steps: such a campaign is the same on every machine
)
MOST_AT_ONCE = 16  # trials of a side in one round: beyond that a round is a search without looking
PROPOSING = 2
"""The present rule of what agents propose. 1: their slices are merged into one configuration, and a search of fewer than four rounds
is the optimizer's alone. 2: an idea is tried as one change of one configuration, and a search of two rounds has a round of theirs."""
MOST_IDEAS = 4  # trials of a side in one round that agents may shape: one for each slice of the configuration


class Budget(FrozenConfig):
    """What may be spent: wall time, or env steps (which makes the whole campaign deterministic)."""

    wall_s: float | None = Field(default=None, gt=0)
    env_steps: int | None = Field(default=None, gt=0)

    def share(self, parts: int) -> Budget:
        """An equal part of it."""
        return Budget(
            wall_s=None if self.wall_s is None else self.wall_s / parts,
            env_steps=None if self.env_steps is None else self.env_steps // parts,
        )


class Design(FrozenConfig):
    """How many runs of each kind."""

    name: str
    baseline_seeds: int
    """Seeds of the baseline's default configuration at search length, for the noise floor."""
    rounds: int
    """Search rounds of each tuned arm; trial 0 is the default configuration."""
    top: int
    """Best configurations of each arm that are measured again on fresh seeds."""
    selection_seeds: int
    confirmation_seeds: int
    race: tuple[int, ...] = Field(default=(), exclude_if=lambda race: not race)
    """How many configurations of each arm are measured on the first fresh seed, on the second, ...: the best so far go on.
    Empty in plans from before there was a race: then `top` are measured on each of `selection_seeds`."""

    @property
    def stages(self) -> tuple[int, ...]:
        """How many configurations of each arm are measured on each fresh seed of the selection."""
        return self.race or (self.top,) * self.selection_seeds


def _design(name: str, baseline_seeds: int, rounds: int, race: tuple[int, ...], confirmation_seeds: int) -> Design:
    return Design(
        name=name,
        baseline_seeds=baseline_seeds,
        rounds=rounds,
        top=race[0],
        selection_seeds=len(race),
        confirmation_seeds=confirmation_seeds,
        race=race,
    )


DESIGNS = (
    _design("thorough", 5, 8, (4, 3, 2), 12),
    _design("long", 4, 5, (4, 2, 2), 10),
    _design("standard", 3, 3, (3, 2), 8),
    _design("short", 2, 2, (2, 2), 6),
    _design("smallest", 2, 2, (2,), 5),
)


class Extension(FrozenConfig):
    """What a campaign goes on from that extends the claim of another."""

    campaign: str
    """The campaign that is extended, such as c-0001."""
    winners: dict[str, tuple[int | None, dict[str, Value]]]
    """Arm -> the trial and the values of the configuration that it confirms."""
    used: tuple[int, ...]
    """Seeds that were confirmed on before, and are not used again."""
    evidence: Extended
    """What they came to."""
    claim: dict[str, Any]
    """The claim that is extended."""


class Plan(FrozenConfig):
    """Every run of the campaign, fixed before the first one."""

    budget: Budget
    design: Design
    tuned_arms: int
    """How many sides are tuned: all of them, or 1 where the baseline is the default by definition of the question."""
    env_steps_full: int
    """Training steps of a selection or confirmation run."""
    env_steps_search: int
    """Training steps of a baseline or search run."""
    workers: int
    """Runs trained at once, one thread each."""
    steps_per_s: float | None
    """Training throughput of one worker, measured on this machine before planning; None for a budget in env steps."""
    startup_s: float = STARTUP_S
    """Seconds of a run that are not training."""
    memory_limit_mb: int | None = Field(default=None, gt=0)
    """MiB that one run may occupy; None in plans from before there was a limit, and then the machine decides."""
    pruning: Pruning | None = None
    """How search runs end early; None where they are too short or too few for it to pay."""
    rounds_bought: int = Field(default=0, ge=0)
    """Search rounds beyond the design's, paid for with what pruning saved."""
    sizing: int = Field(default=1, ge=1, le=SIZING, exclude_if=lambda rule: rule == 1)
    """The rule of `experiments.search.sizing.size_policy`, so that a campaign's configurations keep their hashes: `SIZING` in a
    new plan; left out of the JSON, as before there were two, it is 1."""
    trials_at_once: int = Field(default=1, ge=1, exclude_if=lambda count: count == 1)
    """Trials of each arm in one search round."""
    pilot: bool = Field(default=False, exclude_if=lambda pilot: not pilot)
    """Whether the challenger's default is trained on the baseline's seeds too: pairs that say how the two sides' scores spread
    and go together before the claim is written."""
    marks: int = Field(default=1, ge=1, le=MARKS, exclude_if=lambda marks: marks == 1)
    """The generation of search marks that its configurations are searched over; left out of the JSON, as before there were two, it is
    1. `MARKS` in a new plan."""
    suggesting: int = Field(default=1, ge=1, le=SUGGESTING, exclude_if=lambda rule: rule == 1)
    """The rule of `experiments.search.optimizer.suggest`, so that a resumed campaign gets the suggestions it would have got:
    `SUGGESTING` in a new plan."""
    judging: int = Field(default=1, ge=1, le=JUDGING, exclude_if=lambda rule: rule == 1)
    """The rule by which `experiments.campaign.claims` chooses the test: `JUDGING` in a new plan. Rule 1 is a paired test with
    looks from seven seeds on."""
    proposing: int = Field(default=1, ge=1, le=PROPOSING, exclude_if=lambda rule: rule == 1)
    """The rule of what agents propose, and of how much of the search is theirs: `PROPOSING` in a new plan."""
    timed: bool = Field(default=False, exclude_if=lambda timed: not timed)
    """Whether the faster side is confirmed at equal training time too; see `experiments/campaign/design.py`."""
    time_ratio: float | None = Field(default=None, gt=0, exclude_if=lambda ratio: ratio is None)
    """Env steps a second of the challenger over those of the baseline, as a person gave it; None: measured, where wall time is the
    budget."""
    memory: dict[str, dict[str, Value]] = Field(default_factory=dict, exclude_if=lambda values: not values)
    """Arm -> a configuration that an earlier campaign of the ledger chose on this task: trial 1 of that arm. Of every tuned arm
    or of none, and only where it is not the default, which is trial 0."""
    extends: Extension | None = Field(default=None, exclude_if=lambda extension: extension is None)
    """What the campaign goes on from, where it extends the claim of another: it has no search and no selection of its own."""
    env_steps_baseline: int | None = Field(default=None, exclude_if=lambda steps: steps is None)
    """Training steps of the baseline's runs where the search was shortened after them; None: those of a search run."""
    env_steps_confirmation: int | None = Field(default=None, exclude_if=lambda steps: steps is None)
    """Training steps of a confirmation run, fixed with the claim by the time that is left; None: `env_steps_full`."""

    @property
    def shape(self) -> Shape:
        """How many runs the design comes to."""
        return Shape(self.design, self.tuned_arms, self.trials_at_once, self.pilot, self.timed)

    @property
    def rounds(self) -> int:
        return self.design.rounds + self.rounds_bought if self.extends is None else 0

    @property
    def trials(self) -> int:
        """Search trials of each tuned arm."""
        return self.rounds * self.trials_at_once

    def round_of(self, trial: int) -> int:
        """The search round that a trial belongs to."""
        return trial // self.trials_at_once

    def trials_of(self, round_: int) -> range:
        """The trials of a search round."""
        return range(round_ * self.trials_at_once, (round_ + 1) * self.trials_at_once)

    def open_trials(self, round_: int) -> range:
        """The trials of a round that agents may shape: the last half of them, `MOST_IDEAS` at most, by rule 1 the last one alone.
        The others are the optimizer's, so a round with several shows what each is worth on one seed."""
        trials = self.trials_of(round_)
        return trials[-1:] if self.proposing == 1 else trials[-min(max(len(trials) // 2, 1), MOST_IDEAS) :]

    def open_trial(self, round_: int) -> int:
        """The first of them."""
        return self.open_trials(round_)[0]

    def rounds_of_agents(self, share: float) -> int:
        """How many rounds agents may shape of whom `share` of the search is: by rule 2 one of two or more."""
        least = 1 if self.proposing > 1 and self.rounds > 1 and share > 0 else 0
        return max(int(share * self.rounds), least)

    @property
    def confirmation_seeds(self) -> int:
        return self.design.confirmation_seeds

    @property
    def confirmation_steps(self) -> int:
        """Training steps of a confirmation run."""
        return self.env_steps_confirmation or self.env_steps_full

    @property
    def runs(self) -> int:
        """How many runs are trained in all."""
        if self.extends is not None:
            return len(self.extends.winners) * self.design.confirmation_seeds
        bought = self.tuned_arms * self.rounds_bought * self.trials_at_once
        return self.shape.runs + bought

    @property
    def env_steps_total(self) -> int:
        """Env steps of all runs; bought rounds cost what pruning saved, so they add nothing."""
        if self.extends is not None:
            return self.runs * self.confirmation_steps
        return self.shape.halves * self.env_steps_search + self.shape.fulls * self.env_steps_full

    @property
    def expected_s(self) -> float | None:
        """Expected wall seconds; None where throughput was not measured."""
        if self.steps_per_s is None:
            return None
        return (
            OVERHEAD_S
            + self.shape.starts * self.startup_s / self.workers
            + self.env_steps_total / (self.steps_per_s * self.workers)
        )


class Shape(NamedTuple):
    """How many runs a design comes to."""

    design: Design
    tuned_arms: int
    at_once: int
    """Trials of each arm in one round."""
    pilot: bool
    """Whether the challenger's default is trained on the baseline's seeds too."""
    timed: bool
    """Whether the faster side is confirmed at equal training time too."""

    @property
    def halves(self) -> int:
        """Runs at search length. The first seed of a tuned arm's default is its search trial 0."""
        others = max(self.tuned_arms - 1, 1)
        defaults = self.design.baseline_seeds - (1 if self.tuned_arms > 1 else 0)
        defaults += others * (self.design.baseline_seeds - 1) if self.pilot else 0
        return self.tuned_arms * self.design.rounds * self.at_once + defaults

    @property
    def fulls(self) -> int:
        """Runs at full length, or as long as one of the slower side at full length."""
        sides = max(self.tuned_arms, 2)
        return self.tuned_arms * sum(self.design.stages) + (sides + self.timed) * self.design.confirmation_seeds

    @property
    def runs(self) -> int:
        return self.halves + self.fulls

    @property
    def starts(self) -> int:
        """Processes: the runs, and the feasibility gate's one iteration of every trial but the defaults."""
        return self.runs + self.tuned_arms * (self.design.rounds * self.at_once - 1)


def make_plan(
    budget: Budget,
    *,
    iteration_steps: int,
    horizon: int,
    tuned_arms: int,
    workers: int,
    steps_per_s: float | None,
    startup_s: float = STARTUP_S,
    memory_limit_mb: int | None = None,
    learning_episodes: int = LearnerConfig.learning_episodes,
    memory: Mapping[str, dict[str, Value]] | None = None,
    shares: Sequence[float] | None = None,
    timed: bool = False,
    time_ratio: float | None = None,
    part: float = 1.0,
) -> Plan:
    """The richest design that fits. InputError where not even the smallest does, with the budget that would.

    iteration_steps: env steps of one training iteration; run lengths are whole multiples of it.
    memory_limit_mb: MiB that one run may occupy; an equal part of most of this machine's memory where None.
    learning_episodes: what the learner's configuration says; a design is made smaller before a run has fewer of them.
    memory, timed, time_ratio: see `Plan`. shares: see `make_pruning`. part: `budget` over what a person gave, in whose terms a refusal speaks.
    """
    if budget.env_steps is None and steps_per_s is None:
        raise ValueError("a budget in wall time needs the measured steps_per_s")
    learning = max(learning_episodes * horizon, MIN_ITERATIONS * iteration_steps)
    at_once = min(workers, MOST_AT_ONCE) if budget.env_steps is None else AT_ONCE
    for design in DESIGNS:
        shape = Shape(design, tuned_arms, at_once, pilot=True, timed=timed)
        full = _full_length(budget, shape, workers, steps_per_s, startup_s) // iteration_steps * iteration_steps
        if full >= (learning if design is not DESIGNS[-1] else MIN_ITERATIONS * iteration_steps):
            half = max(full // 2 // iteration_steps, 1) * iteration_steps
            return Plan(
                budget=budget,
                design=design,
                tuned_arms=tuned_arms,
                env_steps_full=full,
                env_steps_search=half,
                workers=workers,
                steps_per_s=steps_per_s,
                startup_s=startup_s,
                memory_limit_mb=memory_limit_mb or default_memory_limit_mb(workers),
                pruning=make_pruning(
                    half, iteration_steps=iteration_steps, trials=design.rounds * at_once, shares=shares
                ),
                sizing=SIZING,
                trials_at_once=at_once,
                pilot=True,
                suggesting=SUGGESTING,
                marks=MARKS,
                judging=JUDGING,
                proposing=PROPOSING,
                memory=dict(memory or {}),
                timed=timed,
                time_ratio=time_ratio,
            )
    smallest = Shape(DESIGNS[-1], tuned_arms, at_once, pilot=True, timed=timed)
    raise InputError(_too_small(budget, iteration_steps, smallest, workers, steps_per_s, startup_s, part))


def _full_length(budget: Budget, shape: Shape, workers: int, steps_per_s: float | None, startup_s: float) -> int:
    """Env steps of a full run when a design spends the whole budget."""
    if budget.env_steps is not None:
        steps = float(budget.env_steps)
    else:
        assert budget.wall_s is not None
        assert steps_per_s is not None
        steps = max((budget.wall_s * SHARE - OVERHEAD_S) * workers - shape.starts * startup_s, 0.0) * steps_per_s
    return int(steps / (shape.fulls + shape.halves / 2))


def _too_small(
    budget: Budget,
    iteration_steps: int,
    shape: Shape,
    workers: int,
    steps_per_s: float | None,
    startup_s: float,
    part: float,
) -> str:
    full = MIN_ITERATIONS * iteration_steps
    steps = (shape.fulls + shape.halves / 2) * full
    if budget.env_steps is not None:
        needed = f"--env-steps {format_count(math.ceil(steps / part / 1000) * 1000)}"
        given = f"--env-steps {format_count(round(budget.env_steps / part))}"
    else:
        assert budget.wall_s is not None
        assert steps_per_s is not None
        seconds = ((steps / steps_per_s + shape.starts * startup_s) / workers + OVERHEAD_S) / SHARE
        needed = f"--budget {format_seconds(math.ceil(seconds / part / 10 + 1) * 10)}"
        given = f"--budget {format_seconds(budget.wall_s / part)}"
    return (
        f"{given} is too small for any verdict: the smallest design trains {shape.runs} runs of at least "
        f"{format_count(full)} env steps each. Nothing was spent. The smallest that works here: {needed}"
    )
