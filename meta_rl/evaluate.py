"""One protocol of evaluation for every learner: raw returns per task and episode, zero-shot first.

Column e of a result is what a learner earns in its e-th episode on a task (memory learners) or after e adaptation steps
(gradient learners). So zero-shot is column 0, and K-shot is column K, whichever way a learner adapts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adaptation.policy_adaptation import PolicyAdaptation
from core.errors import InputError, bad_value
from core.policy import RecurrentPolicy
from core.seeding import numpy_stream, torch_stream
from env_runner.task_distributions import get_family
from env_runner.task_family import EnvOptions, TaskFamily, with_changes
from meta_rl.adapting import PolicyAdapter
from meta_rl.auxiliary import Auxiliary
from meta_rl.learner import EvalResult, Learner
from meta_rl.normalize import Normalizer
from meta_rl.rollout import SUCCESS, Trajectory, episode_bounds, rollout

LAST_STEPS = 100  # "final_" quantities are means over the last this many steps of an episode


def check_tasks(tasks: np.ndarray, family: TaskFamily) -> np.ndarray:
    """Tasks as float64 (M, P) with M >= 1, or InputError."""
    tasks = np.asarray(tasks, dtype=np.float64)
    if tasks.ndim != 2 or tasks.shape[0] < 1 or tasks.shape[1] != family.num_params:
        raise bad_value("tasks", tasks.shape, f"(M, {family.num_params}) with M >= 1, for {family.id}")
    if not np.isfinite(tasks).all():
        raise bad_value("tasks", "values that are not finite", "finite numbers")
    return tasks


def evaluate_in_context(
    policy: RecurrentPolicy,
    normalizer: Normalizer,
    family: TaskFamily,
    tasks: np.ndarray,
    *,
    episodes: int,
    seed: int,
    deterministic: bool = True,
    adapting: PolicyAdapter | None = None,
    auxiliary: Auxiliary | None = None,
) -> EvalResult:
    """Let a memory policy live `episodes` episodes on each task, memory kept, weights and normalisers untouched.

    adapting: copies of the policy, one a task, that learn as they live, and act in its place with their own noise.
    auxiliary: a head on the memory, whose prediction errors are then an extra, means over an episode. Worlds of families that can end early live more episodes in the same time; the first `episodes` count.
    """
    tasks = check_tasks(tasks, family)
    if episodes < 1:
        raise bad_value("episodes", episodes, "1 or more")
    worlds = family.make(len(tasks))
    try:
        trajectory = rollout(
            policy,
            normalizer,
            worlds,
            tasks,
            num_steps=episodes * family.horizon,
            seed=int(numpy_stream(seed, "evaluate", "worlds").integers(2**31 - 1)),
            generator=torch_stream(seed, "evaluate", "actions"),
            deterministic=deterministic if adapting is None else adapting.noise == 0,
            adapting=adapting,
            # The critic's values are not used here, but a critic built for task parameters must be given some.
            privileged=policy.privileged_dim > 0,
        )
    finally:
        worlds.close()
    result = summarize(trajectory, episodes)
    if auxiliary is None:
        return result
    errors = auxiliary.errors(policy, trajectory)
    means = [
        [float(np.nanmean(errors[world, start:end])) for start, end in episode_bounds(trajectory, world)[:episodes]]
        for world in range(len(tasks))
    ]
    return EvalResult(result.returns, {**result.extras, "prediction_error": np.array(means)})


def summarize(trajectory: Trajectory, episodes: int) -> EvalResult:
    """Returns, lengths, successes and final quantities of the first `episodes` episodes of every world."""
    shape = (len(trajectory.rewards), episodes)
    returns, lengths, reached = np.empty(shape), np.empty(shape), np.empty(shape)
    finals = {f"final_{name}": np.empty(shape) for name in trajectory.infos}
    for world in range(shape[0]):
        bounds = episode_bounds(trajectory, world)
        if len(bounds) < episodes:
            raise InputError(f"evaluate: a world ended {len(bounds)} episodes in {trajectory.rewards.shape[1]} steps")
        for column, (start, end) in enumerate(bounds[:episodes]):
            returns[world, column] = trajectory.rewards[world, start:end].sum()
            lengths[world, column] = end - start
            for name, values in trajectory.infos.items():
                if name == SUCCESS:
                    reached[world, column] = values[world, start:end].max()
                finals[f"final_{name}"][world, column] = values[world, max(start, end - LAST_STEPS) : end].mean()
    success = {SUCCESS: reached} if SUCCESS in trajectory.infos else {}
    return EvalResult(returns, {"episode_length": lengths, **success, **finals})


def evaluate(
    learner: Learner,
    tasks: np.ndarray,
    *,
    episodes: int,
    seed: int,
    deterministic: bool = True,
    changes: EnvOptions | None = None,
    adaptation: PolicyAdaptation | None = None,
    family: TaskFamily | None = None,
) -> EvalResult:
    """The evaluation of any learner, in worlds with mid-episode changes and with a policy that adapts, where these are given.

    tasks (M, P). family: a copy of its family whose worlds do more, such as note what is lived in them. What the learner trains in does not count here, and the learner is as it was afterwards. InputError where its
    family has no such changes, and where it cannot adapt.
    """
    trained_in = learner.family
    learner.family = with_changes(family or get_family(learner.family_id).examined, changes or EnvOptions())
    try:
        if adaptation is not None and adaptation.is_on:
            return learner.adapt_and_evaluate(
                tasks, adaptation, episodes=episodes, seed=seed, deterministic=deterministic
            )
        return learner.evaluate(tasks, episodes=episodes, seed=seed, deterministic=deterministic)
    finally:
        learner.family = trained_in


@dataclass(frozen=True)
class FewShotResult:
    """Returns (M,) on each of M tasks, by number of shots."""

    returns: Mapping[int, np.ndarray]


def few_shot(
    learner: Learner,
    tasks: np.ndarray,
    *,
    shots: Sequence[int] = (0, 1, 5, 10),
    seed: int,
    deterministic: bool = True,
    changes: EnvOptions | None = None,
    adaptation: PolicyAdaptation | None = None,
) -> FewShotResult:
    """Zero-shot and K-shot returns of any learner as `evaluate` gives them; `shots` are 0 or more, in any order."""
    if not shots or min(shots) < 0:
        raise bad_value("shots", list(shots), "one or more integers of 0 or more")
    result = evaluate(
        learner,
        tasks,
        episodes=max(shots) + 1,
        seed=seed,
        deterministic=deterministic,
        changes=changes,
        adaptation=adaptation,
    )
    return FewShotResult({shot: result.returns[:, shot] for shot in sorted(set(shots))})
