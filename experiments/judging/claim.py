"""What a claim is: the hypothesis, both configurations, the seeds and the rule that decides, written down before its first run; and the
rows that the judge reads as its evidence."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from core.config import FrozenConfig
from experiments.judging import statistics
from experiments.metrics import FIRST_EPISODE, MetricName, QuestionMetric
from experiments.search.pruning import Pruning
from meta_rl.learner import DEFAULT_LEARNER

ARMS = ("challenger", "baseline")
ALPHA = 0.05
MIN_SEEDS = 5
MIN_SPLIT = 4  # seeds of a side, where the two sides have unequal numbers
JUDGING = 2
"""The present rule by which a claim's test is chosen (`experiments/campaign/claims.py`); 1 is always paired, looks from seven seeds."""


class ArmClaim(FrozenConfig):
    """One side of the claim: the chosen configuration and the tuning that led to it."""

    variant_hash: str
    label: str = Field(default="", exclude_if=lambda label: not label)
    """What the side is called, where there are more than two."""
    model: str
    learner: str = Field(default=DEFAULT_LEARNER, exclude_if=lambda name: name == DEFAULT_LEARNER)
    """What trains it; left out where it is the usual one, as it was before sides could name one."""
    scored_by: MetricName = Field(default=FIRST_EPISODE, exclude_if=lambda name: name == FIRST_EPISODE)
    """What its runs are scored by."""
    parameters: int
    tuner: str
    """How the configuration was chosen, such as "tpe" or "default"."""
    search_trials: int
    """Configurations tried on the search pool."""
    tuning_env_steps: int
    """Env steps that all search and selection runs of this arm were given; one that failed early used fewer. A pruned run
    counts with what it really spent."""


class EqualTime(FrozenConfig):
    """Env steps that take the two sides the same training time, by a throughput that was measured before the claim."""

    challenger: int
    baseline: int
    """Training steps of a confirmation run at equal time."""
    ratio: float
    """Env steps a second of the challenger over those of the baseline."""
    how: str
    """How the ratio was measured, or that a person gave it."""
    alone: bool = False
    """Whether this is the claim's only parity; false where equal env steps are judged too."""


class Extended(FrozenConfig):
    """The evidence that an extending claim goes on from."""

    claim: str
    """The claim that it extends, such as k-0003."""
    e_product: float
    """The product of the e-values of that claim and of those that it extends."""
    seeds: int
    """How many seeds that evidence has."""
    effect: float
    """The mean difference over them."""


class Look(FrozenConfig):
    """A number of seeds after which confirming may stop, with its share of the error rate."""

    seeds: int
    spent: float
    """Error that may have been made up to and including this look (O'Brien-Fleming spending)."""
    level: float
    """The two-sided p-value that the paired t-test must fall below here."""


class ClaimContent(FrozenConfig):
    """The hypothesis and the rule that decides it, written down before the first confirmation run."""

    hypothesis: str
    task: str
    task_version: str
    metric: QuestionMetric = FIRST_EPISODE
    """What both sides are scored by; one that ends in `as_trained` is taken after the shots in each side's own `scored_by`."""
    challenger: ArmClaim
    baseline: ArmClaim
    others: dict[str, ArmClaim] = Field(default_factory=dict, exclude_if=lambda arms: not arms)
    """Further sides by the names of their arms."""
    pairs: tuple[tuple[str, str], ...] = Field(default=(), exclude_if=lambda pairs: not pairs)
    """Which side is held against which, where there are more than two; all of them are judged together (Holm)."""
    ranks: bool = Field(default=False, exclude_if=lambda ranks: not ranks)
    """Whether the question is which of several sides is best, and not whether the challenger beats them."""
    seeds: tuple[int, ...]
    """Fresh training seeds; each is used by both arms."""
    env_steps: int
    """Training steps of every confirmation run."""
    num_tasks: int
    """Held-out tasks that every run is evaluated on."""
    margin_pct: float = 0.0
    """The challenger must be better by this percent of the baseline's absolute mean."""
    alpha: float = ALPHA
    """Two-sided error rate of the paired t-test over seeds."""
    floor: float | None = None
    """The better side must exceed this return, else neither has learned the task; None where no anchor is known."""
    floor_name: str = ""
    equal_tuning: bool = True
    """Whether both sides must have been tuned with the same effort; false where the baseline is the default."""
    looks: tuple[Look, ...] = ()
    """Where confirming may stop early, from `sequential_looks`; empty where all seeds are always trained."""
    pruning: Pruning | None = None
    """How search runs of both sides ended early; None where they did not."""
    test: Literal["paired", "welch"] = Field(default="paired", exclude_if=lambda test: test == "paired")
    """Student's t-test over the differences of equal seeds, or Welch's of the two sides' independent seeds."""
    test_why: str = Field(default="", exclude_if=lambda words: not words)
    """Why this test was chosen, with the numbers."""
    split: tuple[int, int] | None = Field(default=None, exclude_if=lambda split: split is None)
    """Seeds of the challenger and of the baseline, the first ones of `seeds`, where they are not as many; Welch's test alone."""
    equivalence: float | None = Field(default=None, exclude_if=lambda margin: margin is None)
    """A difference within plus and minus this counts as none, in the unit of the metric; None: equivalence is not tested."""
    tuned_from: int = Field(default=0, exclude_if=lambda trials: trials == 0)
    """Configurations from which on a side counts as tuned; 0 in claims from before that was said."""
    equal_time: EqualTime | None = Field(default=None, exclude_if=lambda parity: parity is None)
    """Equal training time, where it is claimed."""
    extends: Extended | None = Field(default=None, exclude_if=lambda extended: extended is None)
    """The evidence that this claim goes on from, in a claim that extends an inconclusive one."""

    @model_validator(mode="after")
    def _design_fits(self) -> ClaimContent:
        if self.split is not None and (
            self.test != "welch" or min(self.split) < MIN_SPLIT or max(self.split) != len(self.seeds)
        ):
            raise ValueError(
                f"split: got {self.split}, allowed: {MIN_SPLIT} or more a side with Welch's test, the larger of {len(self.seeds)} seeds"
            )
        if self.others and (self.split is not None or self.looks or self.equal_time is not None or not self.pairs):
            raise ValueError("others: allowed with pairs, as many seeds of each side, one parity and no looks")
        if self.looks and (self.split is not None or self.equal_time is not None):
            raise ValueError("looks: allowed where both sides have the same seeds and one parity is judged")
        return self

    @model_validator(mode="after")
    def _looks_fit(self) -> ClaimContent:
        if self.looks:
            sizes = [look.seeds for look in self.looks]
            if sizes != sorted(set(sizes)) or sizes[-1] != len(self.seeds):
                raise ValueError(f"looks: got {sizes}, allowed: rising, the last one all {len(self.seeds)} seeds")
            if self.looks[-1].spent > self.alpha + 1e-9 or max(look.level for look in self.looks) > self.alpha:
                raise ValueError(f"looks: they spend more than alpha {self.alpha:g}")
        return self

    @property
    def stages(self) -> tuple[tuple[int, float], ...]:
        """(seeds, two-sided level) of every look; one look at all seeds where none is named."""
        return tuple((look.seeds, look.level) for look in self.looks) or ((len(self.seeds), self.alpha),)

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of all sides."""
        return (*ARMS, *self.others)

    def side(self, arm: str) -> ArmClaim:
        """The side of an arm."""
        return self.others[arm] if arm in self.others else getattr(self, arm)

    def of_pair(self, first: str, second: str) -> ClaimContent:
        """The claim that one side of several beats another."""
        sides = {"challenger": self.side(first), "baseline": self.side(second)}
        return self.model_copy(update={**sides, "others": {}, "pairs": (), "ranks": False})

    def seeds_of(self, arm: str) -> tuple[int, ...]:
        """The seeds that a side is trained on."""
        return self.seeds if self.split is None or arm not in ARMS else self.seeds[: self.split[ARMS.index(arm)]]

    def lengths(self, arm: str) -> tuple[int, ...]:
        """The training steps of a side's confirmation runs: of both parities, where both are judged."""
        if self.equal_time is None or arm not in ARMS:
            return (self.env_steps,)
        timed = int(getattr(self.equal_time, arm))
        return (timed,) if self.equal_time.alone else tuple(dict.fromkeys((self.env_steps, timed)))

    @property
    def is_of_one_configuration(self) -> bool:
        """Whether both sides are the same variant, which happens where the search for something better than a default
        chose that default: the same seed would give the same training twice."""
        return self.challenger.variant_hash == self.baseline.variant_hash

    @property
    def content_hash(self) -> str:
        """SHA-256 of all fields; a claim without looks or pruning has the hash that it had before claims knew of them."""
        absent = {name for name in ("looks", "pruning") if not getattr(self, name)}
        content = self.model_dump(mode="json", exclude=absent)
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sequential_looks(total: int, *, alpha: float = 0.05, from_seeds: int = 7, test: str = "paired") -> tuple[Look, ...]:
    """Looks for `total` seeds: at half (at least `MIN_SEEDS`), at three quarters and at the end; none below `from_seeds` seeds.

    Looks closer together would cost power and save little: a run of seeds is trained in parallel anyway.
    """
    sizes = sorted({max(MIN_SEEDS, -(-total // 2)), max(MIN_SEEDS, -(-3 * total // 4)), total})
    if total < from_seeds:
        return ()
    levels = statistics.sequential_levels(tuple(sizes), alpha, test=test)
    return tuple(Look(seeds=n, spent=spent, level=level) for n, (spent, level) in zip(sizes, levels, strict=True))


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
    planned: int = Field(default=0, exclude_if=lambda steps: steps == 0)
    """The training steps that it was given; 0 in rows from before there were two parities: those that it trained."""
    returns: tuple[float, ...]
    """What the run is scored by on each held-out task, in the order of the tasks; NaN where it was not finite."""
