"""What the presets reach: return on held-out tasks against env steps and CPU time, over several training seeds.

How it is measured. Each seed trains in a process of its own with one torch thread. On the way, and at the end, the policy
acts without noise for one episode on each of the family's confirmation tasks, which no tuning has seen; the time that
this takes is not counted as training. The rows go to a JSON Lines file as they come, so a command given again trains only
what is missing; nothing that chooses a configuration reads them.

Run: `python main.py bench learning [--tasks halfcheetah-vel ...] [--models s5 lstm ...] [--seeds 5] [--env-steps 3M]`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import math
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from core.config import FrozenConfig
from core.errors import InputError, bad_value, unknown_name
from env_runner.task_distributions import get_family
from experiments.bench.registered import register_bench
from experiments.judging.statistics import mean_interval
from experiments.numbers import parse_count
from experiments.presets import effort, preset
from experiments.spec import RunSpec
from experiments.tables import TableView, table
from meta_rl.learner import DEFAULT_LEARNER

FIRST_SEED = 900_000_001  # far from the seeds that any campaign or tuning draws
MARKS = 6  # evaluations on the way, evenly spread
MINUTES = 5.0  # of CPU time: one more evaluation, for those who have no ten


class Point(FrozenConfig):
    """One evaluation on the held-out tasks."""

    env_steps: int
    """Control steps of training so far."""
    cpu_s: float
    """CPU seconds of training so far, evaluations left out."""
    wall_s: float
    """Wall seconds of the same."""
    returns: tuple[float, ...]
    """Return of the first episode, a value for each held-out task."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))


class LearningRow(FrozenConfig):
    """One training from first step to last."""

    config_hash: str
    """Which specification; with its seed and budget."""
    task: str
    model: str
    seed: int
    parameters: int
    """Trainable numbers of the policy."""
    tuned: str
    """The effort behind the preset, in its own words."""
    commit: str
    """Git commit of the code that trained."""
    spec: RunSpec
    """All that is needed to train it again: `python main.py run --spec`."""
    points: tuple[Point, ...]
    """In the order of training; the last is the score."""

    def at_minutes(self, minutes: float) -> Point | None:
        """The last evaluation within that much CPU time."""
        return next((point for point in reversed(self.points) if point.cpu_s <= 60 * minutes), None)


def train_once(spec: RunSpec, commit: str) -> LearningRow:
    """Train a specification in this process, with its evaluations."""
    import torch

    from meta_rl.learner import build_learner

    torch.set_num_threads(1)
    learner: Any = build_learner(spec.task, spec.policy, spec.learner, env_steps=spec.env_steps, seed=spec.seed)
    tasks = get_family(spec.task).eval_tasks("confirmation")
    points: list[Point] = []
    cpu, wall, steps, timed = 0.0, 0.0, 0, False

    def evaluate() -> None:
        returns = learner.evaluate(tasks, episodes=1, seed=0).returns[:, 0]
        points.append(Point(env_steps=steps, cpu_s=cpu, wall_s=wall, returns=tuple(map(float, returns))))

    due = [spec.env_steps * k // MARKS for k in range(1, MARKS)]
    reports = learner.train()
    while True:
        cpu_start, wall_start = time.process_time(), time.perf_counter()
        report = next(reports, None)
        last, cpu, wall = cpu, cpu + time.process_time() - cpu_start, wall + time.perf_counter() - wall_start
        if report is None:
            break
        # The evaluation "within five minutes" is made one iteration early, where the next would end after them.
        steps, ahead = report.env_steps, 2 * cpu - last
        on_time, timed = not timed and ahead > 60 * MINUTES, timed or ahead > 60 * MINUTES
        if on_time or (due and steps >= due[0]):
            due = [mark for mark in due if mark > steps]
            evaluate()
    evaluate()
    return LearningRow(
        config_hash=spec.config_hash,
        task=spec.task,
        model=spec.policy.model.kind,
        seed=spec.seed,
        parameters=sum(p.numel() for p in learner.policy.parameters()),
        tuned=effort(spec.task, spec.policy.model.kind),
        commit=commit,
        spec=spec,
        points=tuple(points),
    )


def read_rows(file: Path) -> list[LearningRow]:
    """The rows of an earlier call. InputError names the line that is broken."""
    rows = []
    for number, line in enumerate(file.read_text().splitlines() if file.is_file() else [], 1):
        try:
            rows.append(LearningRow.model_validate_json(line))
        except ValueError as error:
            raise InputError(
                f"{file}, line {number}: not a row of bench learning ({str(error).splitlines()[0]})"
            ) from None
    return rows


def learning_table(rows: Sequence[LearningRow]) -> TableView:
    """A line a model of one task's rows; intervals are Student's t over seeds."""
    lines: list[tuple[Any, ...]] = []
    for model in dict.fromkeys(row.model for row in rows):
        mine = [row for row in rows if row.model == model]
        final = [row.points[-1] for row in mine]
        scores = np.array([point.mean for point in final])
        early = [point.mean for row in mine if (point := row.at_minutes(MINUTES)) is not None]
        low, high = mean_interval(scores) if len(scores) > 1 else (math.nan, math.nan)
        lines.append(
            (
                model,
                len(mine),
                _one(float(np.mean(early))) if len(early) == len(mine) else None,
                _one(float(scores.mean())),
                f"[{low:.1f}, {high:.1f}]" if len(scores) > 1 else "one seed",
                _one(float(scores.min())),
                _one(min(min(point.returns) for point in final)),
                round(float(np.mean([point.cpu_s for point in final]))),
            )
        )
    task, steps = rows[0].task, rows[0].spec.env_steps
    anchors = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in get_family(task).anchors.items())
    commits = ", ".join(dict.fromkeys(row.commit for row in rows))
    return TableView(
        columns=("model", "seeds", f"{MINUTES:g} CPU min", "return", "95 %", "worst seed", "worst task", "CPU s"),
        rows=tuple(lines),
        note=f"{task}, {steps:,} env steps; held-out tasks, first episode, no noise, mean over seeds.\n"
        f"Anchors: {anchors or 'not known'}.\nCode at {commits}.",
    )


def _one(value: float) -> float:
    return round(value, 1)


@register_bench("learning")
def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing and print the table."""
    from core.sequence_model import MODELS
    from env_runner.task_distributions import FAMILIES
    from experiments.runs.provenance import provenance

    parser = argparse.ArgumentParser(prog="bench learning", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["halfcheetah-vel"], help="task families")
    parser.add_argument("--models", nargs="+", default=["s5", "lstm"], help="sequence models, each with its preset")
    parser.add_argument("--seeds", type=int, default=5, help="training seeds a model")
    parser.add_argument("--env-steps", default="3M", help="training budget of a seed")
    parser.add_argument("--workers", type=int, default=2, help="seeds trained at once, a core each")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/learning.jsonl"), help="where rows are kept")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.workers < 1:
        raise bad_value("--seeds, --workers", (options.seeds, options.workers), "1 or more")
    for model in options.models:
        if model not in MODELS:
            raise unknown_name("model", model, MODELS)
    for task in options.tasks:
        if task not in FAMILIES:
            raise unknown_name("task", task, FAMILIES)
    steps = parse_count(options.env_steps)
    made_with = provenance()
    commit = f"{made_with['git_commit'] or 'no git'}{'+changes' if made_with['git_dirty'] else ''}"
    wanted = [
        preset(task, model, DEFAULT_LEARNER).model_copy(update={"env_steps": steps, "seed": FIRST_SEED + k})
        for task in options.tasks
        for k in range(options.seeds)
        for model in options.models
    ]
    found = {row.config_hash: row for row in read_rows(options.out)}
    missing = [spec for spec in wanted if spec.config_hash not in found]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    pool = concurrent.futures.ProcessPoolExecutor(
        options.workers, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    )
    with pool, options.out.open("a") as file:
        for done in concurrent.futures.as_completed([pool.submit(train_once, spec, commit) for spec in missing]):
            row = done.result()
            found[row.config_hash] = row
            print(row.model_dump_json(), file=file, flush=True)
            if not options.json:
                last = row.points[-1]
                print(f"{row.task} {row.model} seed {row.seed}: {last.mean:.1f} in {last.cpu_s:.0f} CPU s", flush=True)
    rows = [found[spec.config_hash] for spec in wanted]
    if options.json:
        print(json.dumps([row.model_dump(mode="json") for row in rows]))
        return 0
    console = Console(highlight=False)
    for task in options.tasks:
        shown = learning_table([row for row in rows if row.task == task])
        console.print(table(shown.columns, shown.rows), shown.note, "", sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
