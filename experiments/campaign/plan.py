"""How a budget becomes runs: the richest design that still leaves every run long enough to learn something.

A campaign's runs are counted in full runs F (selection and confirmation) and half runs (baseline and search), so a
design costs a known number of env steps per step of F. The designs are tried from the richest down; the first whose
F reaches the family's learning length is taken, else the smallest one, as long as F has `MIN_ITERATIONS` training
iterations of the largest configuration. Nothing is spent before the plan is shown.
"""

from __future__ import annotations

import math

from pydantic import Field

from core.config import FrozenConfig
from core.errors import InputError
from experiments.numbers import format_count, format_seconds
from experiments.runs.machine import default_memory_limit_mb
from experiments.search.pruning import Pruning, make_pruning
from experiments.search.sizing import SIZING
from meta_rl.learner import LearnerConfig

MIN_ITERATIONS = 2
STARTUP_S = 4.0  # a run's process start, imports and evaluation where it was not measured
OVERHEAD_S = 20.0  # planning, crew, judging and report
SHARE = 0.88  # of the wall time that is planned; the rest is room for a slower moment of the machine


class Budget(FrozenConfig):
    """What may be spent: wall time, or env steps (which makes the whole campaign deterministic)."""

    wall_s: float | None = Field(default=None, gt=0)
    env_steps: int | None = Field(default=None, gt=0)


class Design(FrozenConfig):
    """How many runs of each kind."""

    name: str
    baseline_seeds: int
    """Seeds of the baseline's default configuration at search length, for the noise floor."""
    rounds: int
    """Search trials of each tuned arm; trial 0 is the default configuration."""
    top: int
    """Best configurations of each arm that are measured again on fresh seeds."""
    selection_seeds: int
    confirmation_seeds: int


DESIGNS = (
    Design(name="thorough", baseline_seeds=5, rounds=16, top=4, selection_seeds=3, confirmation_seeds=12),
    Design(name="long", baseline_seeds=4, rounds=8, top=3, selection_seeds=2, confirmation_seeds=10),
    Design(name="standard", baseline_seeds=3, rounds=4, top=2, selection_seeds=2, confirmation_seeds=8),
    Design(name="short", baseline_seeds=3, rounds=3, top=2, selection_seeds=1, confirmation_seeds=6),
    Design(name="smallest", baseline_seeds=2, rounds=2, top=1, selection_seeds=1, confirmation_seeds=5),
)


class Plan(FrozenConfig):
    """Every run of the campaign, fixed before the first one."""

    budget: Budget
    design: Design
    tuned_arms: int
    """2 where both sides are tuned, 1 where the baseline is the default by definition of the question."""
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

    @property
    def rounds(self) -> int:
        return self.design.rounds + self.rounds_bought

    @property
    def confirmation_seeds(self) -> int:
        return self.design.confirmation_seeds

    @property
    def runs(self) -> int:
        """How many runs are trained in all."""
        return _count(self.design, self.tuned_arms)[0] + self.tuned_arms * self.rounds_bought

    @property
    def env_steps_total(self) -> int:
        """Env steps of all runs; bought rounds cost what pruning saved, so they add nothing."""
        _, halves, fulls = _count(self.design, self.tuned_arms)
        return halves * self.env_steps_search + fulls * self.env_steps_full

    @property
    def expected_s(self) -> float | None:
        """Expected wall seconds; None where throughput was not measured."""
        if self.steps_per_s is None:
            return None
        return (
            OVERHEAD_S
            + _starts(self.design, self.tuned_arms) * self.startup_s / self.workers
            + self.env_steps_total / (self.steps_per_s * self.workers)
        )


def _count(design: Design, tuned_arms: int) -> tuple[int, int, int]:
    """(runs, of them at search length, at full length). The baseline's first seed is its search trial 0."""
    search = tuned_arms * design.rounds
    extra_baseline = design.baseline_seeds - (1 if tuned_arms == 2 else 0)
    selection = tuned_arms * design.top * design.selection_seeds
    confirmation = 2 * design.confirmation_seeds
    return (search + extra_baseline + selection + confirmation, search + extra_baseline, selection + confirmation)


def _starts(design: Design, tuned_arms: int) -> int:
    """Processes that are started: the runs, and the feasibility gate's one iteration of every trial but the defaults."""
    return _count(design, tuned_arms)[0] + tuned_arms * (design.rounds - 1)


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
) -> Plan:
    """The richest design that fits. InputError where not even the smallest does, with the budget that would.

    iteration_steps: env steps of one training iteration; run lengths are whole multiples of it.
    memory_limit_mb: MiB that one run may occupy; an equal part of most of this machine's memory where None.
    learning_episodes: what the learner's configuration says; a design is made smaller before a run has fewer of them.
    """
    if budget.env_steps is None and steps_per_s is None:
        raise ValueError("a budget in wall time needs the measured steps_per_s")
    learning = max(learning_episodes * horizon, MIN_ITERATIONS * iteration_steps)
    for design in DESIGNS:
        full = (
            _full_length(budget, design, tuned_arms, workers, steps_per_s, startup_s)
            // iteration_steps
            * iteration_steps
        )
        if full >= (learning if design is not DESIGNS[-1] else MIN_ITERATIONS * iteration_steps):
            half = max(math.ceil(full / 2 / iteration_steps), 1) * iteration_steps
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
                pruning=make_pruning(half, iteration_steps=iteration_steps, rounds=design.rounds),
                sizing=SIZING,
            )
    raise InputError(_too_small(budget, iteration_steps, tuned_arms, workers, steps_per_s, startup_s))


def _full_length(
    budget: Budget, design: Design, tuned_arms: int, workers: int, steps_per_s: float | None, startup_s: float
) -> int:
    """Env steps of a full run when `design` spends the whole budget."""
    _, halves, fulls = _count(design, tuned_arms)
    if budget.env_steps is not None:
        steps = float(budget.env_steps)
    else:
        assert budget.wall_s is not None
        assert steps_per_s is not None
        starts = _starts(design, tuned_arms)
        steps = max((budget.wall_s * SHARE - OVERHEAD_S) * workers - starts * startup_s, 0.0) * steps_per_s
    return int(steps / (fulls + halves / 2))


def _too_small(
    budget: Budget, iteration_steps: int, tuned_arms: int, workers: int, steps_per_s: float | None, startup_s: float
) -> str:
    runs, halves, fulls = _count(DESIGNS[-1], tuned_arms)
    full = MIN_ITERATIONS * iteration_steps
    steps = (fulls + halves / 2) * full
    if budget.env_steps is not None:
        needed = f"--env-steps {format_count(math.ceil(steps / 1000) * 1000)}"
        given = f"--env-steps {format_count(budget.env_steps)}"
    else:
        assert budget.wall_s is not None
        assert steps_per_s is not None
        starts = _starts(DESIGNS[-1], tuned_arms)
        seconds = ((steps / steps_per_s + starts * startup_s) / workers + OVERHEAD_S) / SHARE
        needed = f"--budget {format_seconds(math.ceil(seconds / 10 + 1) * 10)}"
        given = f"--budget {format_seconds(budget.wall_s)}"
    return (
        f"{given} is too small for any verdict: the smallest design trains {runs} runs of at least "
        f"{format_count(full)} env steps each. Nothing was spent. The smallest that works here: {needed}"
    )
