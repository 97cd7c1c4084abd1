"""Runs that a person starts: fresh seeds of a configuration, what they would cost, and their scores together."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import islice

import numpy as np
from sqlalchemy import select

from core.config import FrozenConfig
from core.errors import bad_value
from core.seeding import numpy_stream
from experiments.judging.judge import ArmResult, summarise
from experiments.ledger.ids import readable_id
from experiments.ledger.models import Run
from experiments.ledger.store import Ledger
from experiments.metrics import FIRST_EPISODE, parse_metric
from experiments.search.sizing import count_parameters
from experiments.spec import RunSpec
from experiments.vocabulary import POOL_OFFSET, Pool
from meta_rl.learner import LEARNERS

MAX_SEEDS = 100


class SeedRow(FrozenConfig):
    """One run of the configuration."""

    run: str
    seed: int
    status: str
    cause: str | None
    score: float | None
    worst_task: float | None
    train_s: float | None


class SeedScores(FrozenConfig):
    """A configuration over several training seeds."""

    rows: tuple[SeedRow, ...]
    pool: str
    tasks: int
    """Evaluation tasks that every seed of the result was evaluated on."""
    result: ArmResult | None
    """Mean, IQM and their 95 % intervals over the finished seeds; None below two of them."""
    original: str | None = None
    """The run that these repeat, with its own seed; it is not part of the result."""
    original_score: float | None = None

    def sentence(self) -> str:
        """The result on one line."""
        unfinished = sum(row.score is None for row in self.rows)
        words = f"{unfinished} of {len(self.rows)} seeds have no score and are in no mean. " if unfinished else ""
        if self.result is None:
            return words + "Two scores are the least for an interval."
        r = self.result
        words += (
            f"mean {r.mean:.2f}, 95 % interval [{r.interval[0]:.2f}, {r.interval[1]:.2f}]; "
            f"IQM {r.iqm:.2f} [{r.iqm_interval[0]:.2f}, {r.iqm_interval[1]:.2f}]; "
            f"{len(self.rows) - unfinished} seeds, {self.tasks} {self.pool} tasks each."
        )
        if self.original is not None and self.original_score is not None:
            words += f" {self.original}, which is not among them, has {self.original_score:.2f}."
        return words


class Intention(FrozenConfig):
    """What a command would train, for `--dry-run`."""

    spec: RunSpec
    seeds: tuple[int, ...]
    pool: str
    parameters: int
    env_steps_total: int
    expected_s: float | None
    """From recorded runs of this model on this task; None where there are none."""
    already: tuple[str, ...]
    """Recorded runs of exactly this configuration and one of these seeds."""


def fresh_seeds(ledger: Ledger | None, spec: RunSpec, pool: Pool, count: int) -> tuple[int, ...]:
    """`count` seeds from the pool's own range that no recorded run of this variant has; the same ledger gives the same."""
    if not 1 <= count <= MAX_SEEDS:
        raise bad_value("--seeds", count, f"from 1 to {MAX_SEEDS}")
    used: set[int] = set()
    if ledger is not None:
        with ledger.session() as session:
            used = set(session.scalars(select(Run.seed).where(Run.variant_hash == spec.variant_hash)))
    draws = numpy_stream(0, "by hand", pool, spec.variant_hash).choice(
        99_999_999, size=len(used) + count, replace=False
    )
    free = (seed for draw in draws if (seed := POOL_OFFSET[pool] + int(draw)) not in used)
    return tuple(islice(free, count))


def intention(ledger: Ledger | None, spec: RunSpec, seeds: Sequence[int], pool: Pool, workers: int) -> Intention:
    """What would be trained, and how long it would take by what this ledger recorded."""
    specs = [spec.model_copy(update={"seed": seed}) for seed in seeds]
    already: list[str] = []
    if ledger is not None:
        hashes = [s.config_hash for s in specs]
        with ledger.session() as session:
            numbers = session.scalars(select(Run.id).where(Run.config_hash.in_(hashes)).order_by(Run.id))
            already = [readable_id("r", number) for number in numbers]
    each = None if ledger is None else _expected_s(ledger, spec)
    return Intention(
        spec=specs[0],
        seeds=tuple(seeds),
        pool=pool,
        parameters=count_parameters(spec),
        env_steps_total=spec.env_steps * len(specs),
        expected_s=None if each is None else each * -(-len(specs) // workers),
        already=tuple(already),
    )


def _expected_s(ledger: Ledger, spec: RunSpec) -> float | None:
    """Median over the newest finished runs of this model on this task, scaled to the specification's length."""
    query = (
        select(Run.env_steps, Run.train_s, Run.wall_s)
        .where(Run.task == spec.task, Run.model == spec.policy.model.kind, Run.status == "done")
        .order_by(Run.id.desc())
        .limit(20)
    )
    with ledger.session() as session:
        found = [(steps, train, wall) for steps, train, wall in session.execute(query) if steps and train and wall]
    if not found:
        return None
    a_step = statistics.median(train / steps for steps, train, _ in found)
    around = statistics.median(wall - train for _, train, wall in found)
    return spec.env_steps * a_step + max(around, 0.0)


def scored_by(run: Run) -> str:
    """What a run's score is, in words."""
    metric = parse_metric(run.spec.get("scored_by", FIRST_EPISODE))
    if metric.name == FIRST_EPISODE:
        return "first-episode return"
    return metric.words(LEARNERS[run.spec["learner"]["kind"]].config_type.shot)


def seed_scores(ledger: Ledger, run_ids: Sequence[int], original: int | None = None) -> SeedScores:
    """The finished runs together: the mean and IQM over seeds and tasks with their intervals, as the judge computes them."""
    runs = [ledger.get_run(number) for number in run_ids]
    returns = ledger.scored_values(run_ids)
    shown = [run for run in runs if run.score is not None and not ledger.score_is_hidden(run)]
    tasks = len(returns[shown[0].id]) if shown else 0
    table = [[returns[run.id][task] for task in sorted(returns[run.id])] for run in shown]
    first = None if original is None else ledger.get_run(original)
    hidden = first is not None and ledger.score_is_hidden(first)
    return SeedScores(
        rows=tuple(
            SeedRow(
                run=readable_id("r", run.id),
                seed=run.seed,
                status=run.status,
                cause=run.cause,
                score=run.score if run in shown else None,
                worst_task=min(returns[run.id].values()) if run in shown else None,
                train_s=run.train_s,
            )
            for run in runs
        ),
        pool=runs[0].pool,
        tasks=tasks,
        result=summarise(np.array(table)) if len(table) > 1 else None,
        original=None if first is None else readable_id("r", first.id),
        original_score=None if first is None or hidden else first.score,
    )
