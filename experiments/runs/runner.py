"""Runs of the ledger: queue a specification as a row, execute queued rows, hold a rerun against its original.

The executor streams messages; this file, in the parent process, is the only one that writes a run's rows.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from core.config import FrozenConfig
from env_runner.task_distributions import get_family
from experiments.ledger.models import Artifact, Eval, Metric, Run
from experiments.ledger.store import Ledger, LedgerError, join_value, now, readable_id, split_value
from experiments.metrics import FIRST_EPISODE, LOOKED_AT, PREDICTION_ERROR, WATCHED, parse_metric
from experiments.metrics import Metric as Score
from experiments.runs.executor import Ended, Evaluated, Executor, Job, Message, Report, Rung, Started
from experiments.runs.machine import default_memory_limit_mb
from experiments.runs.paths import Paths
from experiments.runs.provenance import keep_patch, keep_plugins, plugin_names, provenance
from experiments.runs.worker import FRESH
from experiments.search.sizing import count_parameters
from experiments.spec import RunSpec, recorded_spec
from experiments.vocabulary import FINISHED, Pool, Purpose

TIME_LIMIT_S = 6 * 3600.0


class Paused(Exception):
    """Work was asked to stop; everything is saved and continues with `resume`."""


class Denied(Paused):
    """A person said no to what would have come next; the message is their reason, for people."""


@dataclass(frozen=True)
class RunProgress:
    """What the live view shows of one run."""

    run_id: int
    arm: str | None
    purpose: str
    model: str
    status: str
    env_steps: int
    env_steps_planned: int
    steps_per_s: float | None
    train_return: float | None
    score: float | None
    scored_by: str = FIRST_EPISODE
    """The metric of the score."""


ProgressListener = Callable[[RunProgress], None]
Pruner = Callable[[Run, Rung], "str | None"]
"""Why a search run that has come to a rung is pruned there, or None where it goes on."""
SIGN_S = 60.0
"""Seconds between two signs of life of runs that a person started."""
SPENT = "time/train_s"
"""The metric that holds the seconds from one report of a run to the next, so that its training time survives a resume."""
RUNG_SCORE = "rung/score"
"""The metric that holds a search run's score at a rung, and that of a run by hand at each look, which has those of `LOOKED_AT` beside it."""


def queue_run(
    ledger: Ledger,
    spec: RunSpec,
    *,
    purpose: Purpose,
    pool: Pool,
    proposer: str,
    campaign_id: int | None = None,
    claim_id: int | None = None,
    arm: str | None = None,
    trial: int | None = None,
    rerun_of: int | None = None,
) -> int:
    """Write a queued run and return its id."""
    return ledger.add(
        Run(
            campaign_id=campaign_id,
            claim_id=claim_id,
            rerun_of=rerun_of,
            purpose=purpose,
            pool=pool,
            arm=arm,
            trial=trial,
            proposer=proposer,
            spec=spec.model_dump(mode="json"),
            config_hash=spec.config_hash,
            variant_hash=spec.variant_hash,
            task=spec.task,
            task_version=get_family(spec.task).version,
            model=spec.policy.model.kind,
            seed=spec.seed,
            parameters=count_parameters(spec),
            status="queued",
            provenance=provenance(),
            created_at=now(),
        )
    )


class _Recorder:
    """Turns one run's messages into its ledger rows."""

    def __init__(
        self, ledger: Ledger, paths: Paths, run: Run, listener: ProgressListener | None, prune: Pruner | None
    ) -> None:
        self.ledger, self.paths, self.run, self.listener, self.prune = ledger, paths, run, listener, prune
        self.began = time.monotonic()
        self.evaluated: Evaluated | None = None
        self.rate: float | None = None
        self.last_return: float | None = None
        self.env_steps = run.env_steps
        self.resumed_at: int | None = None
        """Env steps of this process's first report; what is recorded below it was trained by earlier processes."""

    def handle(self, message: Message) -> str | None:
        """Record a message; the answer to a rung is why the run is pruned there, or None."""
        if isinstance(message, Started):
            self._update(status="running", started_at=self.run.started_at or now(), heartbeat_at=now())
            self._show("running")
        elif isinstance(message, Report):
            self.env_steps = message.env_steps
            if self.resumed_at is None:
                self.resumed_at = message.env_steps
            spent = {} if message.train_s is None else {SPENT: message.train_s}
            self.ledger.add_metrics(self.run.id, message.env_steps, [*message.metrics.items(), *spent.items()])
            self._update(env_steps=message.env_steps, heartbeat_at=now())
            self.rate = message.metrics.get("time/fps")
            value = message.metrics.get("rollout/ep_rew_mean")
            self.last_return = value if value is not None and math.isfinite(value) else self.last_return
            self._show("running")
        elif isinstance(message, Evaluated):
            self.evaluated = message
        elif isinstance(message, Rung):
            return self._at_rung(message)
        else:
            self._end(message)
        return None

    def _at_rung(self, rung: Rung) -> str | None:
        found = {RUNG_SCORE: rung.score, **{LOOKED_AT[name]: mean for name, mean in rung.means.items()}}
        with self.ledger.session() as session:
            for name, number in found.items():
                value, kind = split_value(number)
                row = Metric(run_id=self.run.id, env_steps=rung.env_steps, name=name, value=value, kind=kind)
                session.merge(row)
        # Only a search run may be pruned: selection and confirmation are evidence, the baseline's seeds the noise floor.
        return self.prune(self.run, rung) if self.prune is not None and self.run.purpose == "search" else None

    def _end(self, message: Ended) -> None:
        if message.status == "stopped":
            self._update(status="queued", cause="paused")
            self._show("paused")
            return
        score, metric = None, parse_metric(self.run.spec.get("scored_by", FIRST_EPISODE))
        if self.evaluated is not None and metric.level is not None:
            self.evaluated = self._with_steps_to(metric, self.evaluated, message.env_steps or self.env_steps)
        with self.ledger.session() as session:
            run = session.get_one(Run, self.run.id)
            if self.evaluated is not None:
                session.add_all(_eval_rows(run.id, self.evaluated))
                score = metric.of_evaluation(self.evaluated.values)
            if message.memory_mb is not None:
                steps = message.env_steps if message.env_steps is not None else self.env_steps
                peak = Metric(run_id=run.id, env_steps=steps, name="memory/peak_mb", value=float(message.memory_mb))
                session.add(peak)
            if message.sha256 is not None:
                path = self.paths.model(run.id).with_suffix(".safetensors")
                session.add(
                    Artifact(
                        run_id=run.id,
                        kind="model",
                        path=str(path.relative_to(self.paths.data)),
                        sha256=message.sha256,
                        created_at=now(),
                    )
                )
            best = self.paths.best_model(run.id).with_suffix(".safetensors")
            if best.is_file():
                sha256 = hashlib.sha256(best.read_bytes()).hexdigest()
                where = str(best.relative_to(self.paths.data))
                session.add(Artifact(run_id=run.id, kind="best", path=where, sha256=sha256, created_at=now()))
            earlier_s = self._earlier_s(session)
            wall_s = time.monotonic() - self.began if message.wall_s is None else message.wall_s
            session.flush()  # a finished run takes no more rows
            run.status, run.cause, run.score = message.status, message.cause, score
            run.env_steps = message.env_steps if message.env_steps is not None else self.env_steps
            run.train_s = None if message.train_s is None else earlier_s + message.train_s
            run.wall_s, run.ended_at = earlier_s + wall_s, now()
        checkpoint = self.paths.checkpoint(self.run.id)
        for path in (checkpoint, checkpoint.with_name(checkpoint.name + FRESH)):
            for suffix in (".safetensors", ".json"):
                path.with_suffix(suffix).unlink(missing_ok=True)
        self._show(message.status, score)

    def _with_steps_to(self, metric: Score, evaluated: Evaluated, env_steps: int) -> Evaluated:
        """With the env steps to the metric's return, the same for every task: from the looks that are rows, and this last one."""
        curve = [(m.env_steps, join_value(m.value, m.kind)) for m in self.ledger.metrics(self.run.id, WATCHED)]
        last = float(np.mean([task[metric.column] for task in evaluated.values["return"]]))
        steps = metric.env_steps_to([*curve, (env_steps, last)], self.run.spec["env_steps"])
        return replace(
            evaluated, values={**evaluated.values, metric.quantity: [[steps]] * len(evaluated.values["return"])}
        )

    def _earlier_s(self, session: Session) -> float:
        """Seconds that earlier processes trained up to the checkpoint that this one went on from.

        A report from before these seconds were recorded has the throughput of its iteration, which says the same.
        """
        query = select(Metric.env_steps, Metric.name, Metric.value)
        query = query.where(Metric.run_id == self.run.id, Metric.name.in_((SPENT, "time/fps")))
        if self.resumed_at is not None:
            query = query.where(Metric.env_steps < self.resumed_at)
        reports: dict[int, dict[str, float]] = {}
        for env_steps, name, value in session.execute(query.order_by(Metric.env_steps)):
            reports.setdefault(env_steps, {})[name] = value or 0.0
        seconds, before = 0.0, 0
        for env_steps, times in reports.items():
            rate = times.get("time/fps", 0.0)
            seconds += times[SPENT] if SPENT in times else (env_steps - before) / rate if rate > 0 else 0.0
            before = env_steps
        return seconds

    def _update(self, **values: object) -> None:
        with self.ledger.session() as session:
            run = session.get_one(Run, self.run.id)
            for name, value in values.items():
                setattr(run, name, value)

    def _show(self, status: str, score: float | None = None) -> None:
        if self.listener is not None:
            run = self.run
            self.listener(
                RunProgress(
                    run_id=run.id,
                    arm=run.arm,
                    purpose=run.purpose,
                    model=run.model,
                    status=status,
                    env_steps=self.env_steps,
                    env_steps_planned=run.spec["env_steps"],
                    steps_per_s=self.rate,
                    train_return=self.last_return,
                    score=score,
                    scored_by=run.spec.get("scored_by", FIRST_EPISODE),
                )
            )


def _eval_rows(run_id: int, evaluated: Evaluated) -> list[Eval]:
    rows = []
    for name, table in evaluated.values.items():
        for task_index, episodes in enumerate(table):
            for episode, raw in enumerate(episodes):
                value, kind = split_value(raw)
                rows.append(
                    Eval(
                        run_id=run_id,
                        pool=evaluated.pool,
                        task_index=task_index,
                        episode=episode,
                        name=name,
                        value=value,
                        kind=kind,
                    )
                )
    return rows


def execute_runs(
    ledger: Ledger,
    executor: Executor,
    paths: Paths,
    run_ids: Sequence[int],
    *,
    stop: threading.Event,
    listener: ProgressListener | None = None,
    time_limit_s: float = TIME_LIMIT_S,
    memory_limit_mb: int | None = None,
    rungs: tuple[int, ...] = (),
    prune: Pruner | None = None,
    look_every: int | None = None,
) -> None:
    """Execute those of `run_ids` that are not finished, in this order; raises Paused where `stop` was set meanwhile.

    memory_limit_mb: MiB that each run may occupy; an equal part of most of the machine's memory where None.
    rungs: env steps at which search runs and the baseline's are scored; prune: asked there about search runs alone.
    look_every: env steps between two scores of a run that a person started; the best one's model is kept beside the last.
    """
    memory_limit_mb = memory_limit_mb or default_memory_limit_mb(executor.workers)
    keep_patch(paths.data)
    keep_plugins(paths.data)
    with ledger.session() as session:
        query = select(Run).where(Run.id.in_(run_ids), Run.status.not_in(FINISHED))
        runs = sorted(session.scalars(query), key=lambda run: run_ids.index(run.id))
    recorders = {run.id: _Recorder(ledger, paths, run, listener, prune) for run in runs}
    jobs = [
        Job(
            run_id=run.id,
            spec=recorded_spec(run.spec, readable_id("r", run.id), run.provenance),
            pool=run.pool,  # type: ignore[arg-type]
            checkpoint=paths.checkpoint(run.id),
            model=paths.model(run.id),
            log=paths.log(run.id),
            time_limit_s=time_limit_s,
            memory_limit_mb=memory_limit_mb,
            rungs=rungs if run.purpose in ("search", "baseline") else (),
            look_every=look_every if run.purpose == "manual" else None,
            best=paths.best_model(run.id),
        )
        for run in runs
    ]
    by_hand = [run.id for run in runs if run.campaign_id is None]  # of a campaign the holder gives signs of life
    with _signs_of_life(ledger, by_hand):
        executor.run(jobs, lambda job, message: recorders[job.run_id].handle(message), stop)
    if stop.is_set():
        raise Paused


@contextmanager
def _signs_of_life(ledger: Ledger, run_ids: Sequence[int]) -> Iterator[None]:
    """Meanwhile the rows of these runs, those that still wait for a worker too, say every minute that somebody works on them."""
    ended = threading.Event()

    def show() -> None:
        with ledger.session() as session:
            unfinished = (Run.id.in_(run_ids), Run.status.not_in(FINISHED))
            session.execute(update(Run).where(*unfinished).values(heartbeat_at=now()))

    def go_on() -> None:
        while not ended.wait(SIGN_S):
            try:
                show()
            except LedgerError:  # a locked or full disk is the business of those who write results
                continue

    if not run_ids:
        yield
        return
    show()
    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def cancel_run(ledger: Ledger, run_id: int) -> bool:
    """End an unfinished run that nobody will continue; False where it was finished."""
    with ledger.session() as session:
        run = session.get_one(Run, run_id)
        if run.status in FINISHED:
            return False
        run.status, run.cause, run.ended_at = "cancelled", "stopped by the user", now()
        return True


class Difference(FrozenConfig):
    """One number that is not the same in a rerun."""

    where: str
    recorded: str
    rerun: str


class RerunCheck(FrozenConfig):
    """Whether a rerun reproduced the recorded numbers."""

    original: str
    rerun: str
    matches: bool
    compared: int
    """Numbers compared: all evaluation returns and all training metrics but those of time."""
    differences: tuple[Difference, ...]
    """The first ten."""
    reasons: tuple[str, ...]
    """What differs in provenance, where numbers drifted."""


def compare_reruns(ledger: Ledger, original_id: int, rerun_id: int) -> RerunCheck:
    """Hold every recorded number of two runs of the same specification against each other, exactly."""
    first, second = _numbers(ledger, original_id), _numbers(ledger, rerun_id)
    pruned = ledger.get_run(original_id).status == "pruned"
    if pruned:  # what a rerun trains beyond the rung has nothing to be held against
        second = {where: value for where, value in second.items() if where in first}
    added = f"eval {PREDICTION_ERROR} "
    if not any(where.startswith(added) for where in first):  # recorded before evaluations had it
        second = {where: value for where, value in second.items() if not where.startswith(added)}
    differences = []
    for where in sorted(first.keys() | second.keys()):
        a, b = first.get(where), second.get(where)
        same = a == b or (a is not None and b is not None and math.isnan(a) and math.isnan(b))
        if not same:
            differences.append(Difference(where=where, recorded=str(a), rerun=str(b)))
    original, rerun = ledger.get_run(original_id), ledger.get_run(rerun_id)
    reasons = []
    if differences:
        old, new = original.provenance, rerun.provenance
        for field in ("git_commit", "git_patch_sha256", "python", "packages", "machine"):
            if old.get(field) != new.get(field):
                reasons.append(f"{field}: {old.get(field)} then, {new.get(field)} now")
        if plugin_names(old) != plugin_names(new):
            reasons.append(f"plugins: {plugin_names(old)} then, {plugin_names(new)} now")
        if original.task_version != rerun.task_version:
            reasons.append(f"task version: {original.task_version} then, {rerun.task_version} now")
        if original.status != rerun.status and not pruned:
            reasons.append(f"status: {original.status} then, {rerun.status} now")
    return RerunCheck(
        original=readable_id("r", original_id),
        rerun=readable_id("r", rerun_id),
        matches=not differences,
        compared=len(first),
        differences=tuple(differences[:10]),
        reasons=tuple(reasons),
    )


def _numbers(ledger: Ledger, run_id: int) -> dict[str, float]:
    """Every number of a run that its specification determines."""
    numbers = {
        f"eval {row.name} task {row.task_index} episode {row.episode}": join_value(row.value, row.kind)
        for row in ledger.evals([run_id], name=None)
    }
    for row in ledger.metrics(run_id):
        if not row.name.startswith(("time/", "memory/", "rung/")):  # a rerun has no rungs
            numbers[f"metric {row.name} at {row.env_steps}"] = join_value(row.value, row.kind)
    return numbers
