"""The episodes that a kept model lives on one held-out task, noted step by step: the very ones that its evaluation counts.

Its learner evaluates as always (`meta_rl.evaluate`), in worlds that note what is lived in them; so whatever learns can be watched, a
memory over a trial, a gradient learner before and after its steps, and what is seen has the returns of `evaluate`, to the last bit.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorWrapper
from jaxtyping import Float64
from numpy import ndarray

from core.errors import InputError, bad_value
from core.words.commands import command
from env_runner.drawing import Lived
from env_runner.task_distributions import get_family
from env_runner.task_family import Pool, TaskFamily, check_pool
from experiments.spec import RunSpec
from meta_rl.evaluate import evaluate
from meta_rl.learner import Learner

MOST_EPISODES = 100


@dataclass(frozen=True)
class Episode:
    """One episode as it was lived, with what the policy had had of the task before."""

    words: str
    lived: Lived
    total: float
    """Its return."""


@dataclass(frozen=True)
class Watched:
    """What one kept model lived on one task of a pool."""

    family: TaskFamily
    learner: str
    model: str
    pool: Pool
    index: int
    task: Float64[ndarray, " P"]
    episodes: tuple[Episode, ...]
    conditions: str
    """What is unusual of the worlds, or that it adapts in them; empty where nothing is."""


class _Noting(VectorWrapper):
    """Worlds that note every step of every trial, a trial beginning at each `reset`."""

    def __init__(self, worlds: Any) -> None:
        super().__init__(worlds)
        self.trials: list[list[dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def reset(self, **given: Any) -> Any:
        self.trials.append([])
        return self.env.reset(**given)

    def step(self, actions: Any) -> Any:
        worlds: Any = self.env
        began, tasks = worlds.drawn_state(), worlds.tasks.copy()
        result = _, rewards, terminated, truncated, infos = worlds.step(actions)
        measured = {
            name: value.copy()
            for name, value in infos.items()
            if isinstance(value, np.ndarray) and value.dtype == np.float64 and value.shape == rewards.shape
        }
        self.trials[-1].append(
            {
                "states": began,
                "actions": np.array(actions),
                "rewards": rewards.copy(),
                "tasks": infos.get("tasks", tasks),
                "done": terminated | truncated,
                "infos": measured,
            }
        )
        return result

    def lived(self, world: int) -> list[list[Lived]]:
        """By trial, the episodes of one world that ended, in the order lived."""
        return [_episodes(steps, world) for steps in self.trials]


def _episodes(steps: list[dict[str, Any]], world: int) -> list[Lived]:
    ends = [t + 1 for t, step in enumerate(steps) if step["done"][world]]
    found = []
    for start, end in zip([0, *ends], ends, strict=False):
        part = steps[start:end]
        named = {n: np.stack([step[n][world] for step in part]) for n in ("states", "actions", "rewards", "tasks")}
        infos = {n: np.array([step["infos"][n][world] for step in part]) for n in part[0]["infos"]}
        found.append(Lived(**named, infos=infos))
    return found


def watch_task(
    files: Path, *, model: str, spec: RunSpec | None, pool: Pool, index: int | None, episodes: int | None, seed: int
) -> Watched:
    """Live `episodes` columns of an evaluation on the pool, and give those of its task number `index`.

    index None: the middle task, and it alone is lived on, which is quicker and gives other start states than the evaluation's.

    files: of the kept model, without suffix; model: what it is called. spec: the run's, whose mid-episode changes and adaptation hold.
    episodes None: as many as its training is for, and two at least. InputError for a number out of range.
    """
    learner = Learner.load(files)
    family = get_family(learner.family_id).examined
    family.check()
    tasks = family.eval_tasks(check_pool(pool))
    alone = index is None
    index = len(tasks) // 2 if index is None else index
    if not 0 <= index < len(tasks):
        raise bad_value("--task", index, f"0 to {len(tasks) - 1}, the tasks of {family.id} in the {pool} pool")
    columns = max(2, learner.config.evaluation_episodes) if episodes is None else episodes
    if not 1 <= columns <= MOST_EPISODES:
        raise bad_value("--episodes", columns, f"1 to {MOST_EPISODES}")
    if seed < 0:
        raise bad_value("--seed", seed, "0 or more")
    noting, made = copy.copy(family), []

    def make(*given: Any, **named: Any) -> Any:
        made.append(_Noting(family.make(*given, **named)))
        return made[-1]

    vars(noting)["make"] = make
    given = {} if spec is None else {"changes": spec.changes, "adaptation": spec.adaptation}
    lived_on, row = (tasks[index : index + 1], 0) if alone else (tasks, index)
    result = evaluate(learner, lived_on, episodes=columns, seed=seed, family=noting, **given)
    lived = _counted(made, row, lived_on[row], result.returns[row])
    if lived is None:
        raise InputError(
            f"watch: got a model of {learner.kind}, allowed: one whose learner plays its episodes one after another in one world; this one "
            f"does not, so there is no film of them. Its numbers: {command('evaluate', model)}"
        )
    words = learner.config.column_in_words
    seen = tuple(Episode(words(column), one, float(one.rewards.sum())) for column, one in enumerate(lived))
    conditions = "" if spec is None else spec.conditions.strip()
    return Watched(family, learner.kind, model, pool, index, tasks[index], seen, conditions)


def _counted(made: list[_Noting], index: int, task: ndarray, returns: ndarray) -> list[Lived] | None:
    """The episodes on the task that earned exactly what the evaluation says: the first ones of one trial, as a memory lives them, or the
    first one of each of as many successive trials, between which a gradient learner adapts. World `index` is asked first."""
    worlds = [(noted, world) for noted in made for world in range(noted.num_envs)]
    for noted, world in sorted(worlds, key=lambda pair: pair[1] != index):
        trials, count = noted.lived(world), len(returns)
        for start, trial in enumerate(trials):
            for part in (trial[:count], [each[0] for each in trials[start : start + count] if each]):
                on_task = len(part) == count and all(np.array_equal(one.tasks[0], task) for one in part)
                if on_task and all(one.rewards.sum() == total for one, total in zip(part, returns, strict=True)):
                    return part
    return None
