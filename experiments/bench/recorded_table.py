"""Tables of real training runs over one search space, so that whole searches can be repeated in seconds.

A table is a JSON-lines file: a first line with everything its numbers depend on, then one line a run. Configuration 0 is
the default; the others fill the space evenly (scrambled Sobol points in the space's unit coordinates), so that any
beginning of the list covers it too. Every configuration is trained with seeds of its own, and every run is evaluated on
the tasks of the search pool and of the selection pool: one seed can play the search's noisy measurement, another one
the fresh evidence. `record` trains what is missing and appends, so an interrupted recording goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from pydantic import Field
from scipy.stats import qmc

from core.config import FrozenConfig
from core.errors import InputError
from core.seeding import numpy_stream, seed_sequence
from env_runner.task_distributions import get_family
from experiments.campaign.question import parse_goal
from experiments.campaign.sides import parse_model
from experiments.runs.provenance import provenance
from experiments.search.side import Value
from experiments.search.sizing import count_parameters
from experiments.search.space import Parameter, SearchSpace
from experiments.spec import RunSpec
from meta_rl.learner import DEFAULT_LEARNER

FOLDER = Path(__file__).parent / "data"
EVALUATED_ON = ("search", "selection")


class TableHeader(FrozenConfig):
    """What the numbers of a table depend on."""

    task: str
    model: str
    """Model family whose space is searched, such as ssm."""
    env_steps: int = Field(ge=1)
    """Training steps of every run."""
    policy_parameters: int = Field(ge=1)
    """Trainable numbers that every policy is sized to."""
    configurations: int = Field(ge=2)
    """How many are planned; a file may hold fewer."""
    seeds: int = Field(ge=2)
    """Training seeds of every configuration."""
    default_seeds: int = Field(ge=2)
    """Training seeds of configuration 0, for the noise floor."""
    parameters: tuple[Parameter, ...]
    """The space that was searched, in the order of its coordinates; a later version may search another one."""
    recorded_with: dict[str, Any]
    """Command, packages, commit and machine of the process that began the file."""


class TableRun(FrozenConfig):
    """One training."""

    configuration: int
    values: dict[str, Value]
    seed: int
    search: float | None
    """Mean first-episode return on the search pool's tasks; None where training diverged."""
    selection: float | None
    """The same on the selection pool's tasks."""
    cpu_s: float


class RecordedTable:
    """A table in memory: configurations with their unit coordinates and the scores of each seed."""

    def __init__(self, header: TableHeader, runs: list[TableRun]) -> None:
        self.header = header
        kinds = next((p.choices for p in header.parameters if p.name == "model.kind"), None)
        named = parse_model(header.model)
        side = (
            named if kinds is None else named.model_copy(update={"kinds": tuple(map(str, kinds))})
        )  # as the name was understood when it was recorded
        self.space = SearchSpace(side, header.task, learner=DEFAULT_LEARNER)
        self.space.parameters = header.parameters
        by_number: dict[int, list[TableRun]] = {}
        for run in runs:
            by_number.setdefault(run.configuration, []).append(run)
        complete = {n: r for n, r in sorted(by_number.items()) if len(r) >= header.seeds}
        self.numbers = tuple(complete)
        self.configurations = tuple(rows[0].values for rows in complete.values())
        self.runs = tuple(tuple(rows) for rows in complete.values())

    @cached_property
    def coordinates(self) -> Float[ndarray, "N D"]:
        """Unit coordinates of every configuration; NaN where a model kind does not have the parameter."""
        return np.stack([self.space.to_unit(values) for values in self.configurations])

    def __len__(self) -> int:
        return len(self.configurations)

    def scores(self, pool: str) -> Float[ndarray, "N K"]:
        """Scores on one pool's tasks of the first `seeds` runs of every configuration; NaN where one diverged."""
        return np.array(
            [[_number(getattr(run, pool)) for run in rows[: self.header.seeds]] for rows in self.runs], dtype=float
        )

    def noise_floor(self) -> float:
        """Standard deviation of the search score over the default configuration's seeds."""
        scores = [run.search for run in self.runs[self.numbers.index(0)] if run.search is not None]
        return float(np.std(scores, ddof=1))

    def nearest(self, values: dict[str, Value], tried: set[int]) -> int:
        """Place of the untried configuration next to `values`.

        Distance: mean over the parameters that either has of the absolute difference of unit coordinates (Gower 1971);
        two different choices of a list without an order, and a parameter that only one of them has, count as 1.
        """
        point, table = self.space.to_unit(values), self.coordinates
        one, other = np.isnan(point), np.isnan(table)
        unordered = np.array([not p.ordered for p in self.space.parameters])
        gap = np.abs(np.where(other, 0.0, table) - np.where(one, 0.0, point))
        gap = np.where(unordered, (gap > 1e-9).astype(float), gap)
        gap = np.where(one != other, 1.0, np.where(one & other, 0.0, gap))
        distance = gap.sum(axis=1) / (~(one & other)).sum(axis=1)
        distance[list(tried)] = np.inf
        if not np.isfinite(distance).any():
            raise InputError(f"trials: all {len(self)} configurations of the table are tried")
        return int(np.argmin(distance))


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def load_table(name: str | Path) -> RecordedTable:
    """The table in a file, or the one of that name among the recorded ones."""
    path = Path(name)
    if not path.is_file():
        path = FOLDER / f"{name}.jsonl"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.jsonl")))
        raise InputError(f"--table: got {str(name)!r}, allowed: a file, or one of {known}")
    header, *rows = [line for line in path.read_text().splitlines() if line.strip()]
    return RecordedTable(TableHeader.model_validate_json(header), [TableRun.model_validate_json(row) for row in rows])


def record(
    path: Path,
    *,
    task: str,
    model: str,
    env_steps: int,
    configurations: int,
    seeds: int = 2,
    default_seeds: int = 8,
    first: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Train every planned run from configuration `first` on that `path` does not hold yet, appending each as it ends.

    Files of several beginnings, one a process, make one table: a header, then the runs of all.
    """
    space = SearchSpace(parse_model(model), task, learner=DEFAULT_LEARNER)
    if path.is_file():
        lines = path.read_text().splitlines()
        header, runs = TableHeader.model_validate_json(lines[0]), [TableRun.model_validate_json(x) for x in lines[1:]]
    else:
        question = parse_goal(f"beat LSTM on {task}")
        rival = SearchSpace(question.baseline, task, learner=DEFAULT_LEARNER).spec(
            {}, env_steps=1, seed=0, parameters=None
        )
        header = TableHeader(
            task=task,
            model=model,
            env_steps=env_steps,
            policy_parameters=count_parameters(rival),
            configurations=configurations,
            seeds=seeds,
            default_seeds=default_seeds,
            parameters=space.parameters,
            recorded_with=provenance(),
        )
        runs = []
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(header.model_dump_json() + "\n")
    if header.parameters != space.parameters:
        raise InputError(f"--record: {path} was begun over another search space; choose another file")
    done = {(run.configuration, run.seed) for run in runs}
    for number, values in list(enumerate(plan_configurations(space, header.configurations)))[first:]:
        count = header.default_seeds if number == 0 else header.seeds
        for seed in numpy_stream(0, "table", number).choice(99_999_999, size=count, replace=False).tolist():
            if (number, seed) in done:
                continue
            spec = space.spec(values, env_steps=header.env_steps, seed=seed, parameters=header.policy_parameters)
            scores, cpu_s = train_once(spec)
            run = TableRun(configuration=number, values=values, seed=seed, cpu_s=round(cpu_s, 2), **scores)
            with path.open("a") as file:
                file.write(run.model_dump_json() + "\n")
            say(f"configuration {number} seed {seed}: search {run.search}, selection {run.selection}, {cpu_s:.1f} s")


def plan_configurations(space: SearchSpace, count: int) -> list[dict[str, Value]]:
    """The default, then scrambled Sobol points (Owen 1998; seed 0) of the unit cube as configurations."""
    points = qmc.Sobol(len(space.parameters), scramble=True, rng=np.random.default_rng(0)).random(count - 1)
    return [space.default_values(), *(space.from_unit(point) for point in points)]


def train_once(spec: RunSpec) -> tuple[dict[str, float | None], float]:
    """Scores of one training in this process by pool, and its CPU seconds."""
    import torch

    from meta_rl.evaluate import evaluate
    from meta_rl.learner import DivergedError, build_learner

    torch.set_num_threads(1)
    began = time.process_time()
    learner = build_learner(spec.task, spec.policy, spec.learner, env_steps=spec.env_steps, seed=spec.seed)
    try:
        for _ in learner.train():
            pass
    except DivergedError:
        return dict.fromkeys(EVALUATED_ON), time.process_time() - began
    scores: dict[str, float | None] = {}
    for pool in EVALUATED_ON:
        seed = int(seed_sequence(spec.seed, "evaluation", pool).generate_state(1)[0])
        tasks = get_family(spec.task).eval_tasks(pool)
        result = evaluate(
            learner,
            tasks,
            episodes=spec.evaluation_episodes,
            seed=seed,
            changes=spec.changes,
            adaptation=spec.adaptation,
        )
        score = float(np.mean(np.asarray(result.returns)[:, 0]))
        scores[pool] = round(score, 5) if np.isfinite(score) else None
    return scores, time.process_time() - began
