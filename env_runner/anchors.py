"""Returns that need no learning: standing still and acting at random, measured; what the families' anchors come from."""

from __future__ import annotations

from typing import Literal

import numpy as np
from gymnasium import spaces
from jaxtyping import Float64
from numpy import ndarray

from core.errors import InputError, bad_value
from core.seeding import numpy_stream
from env_runner.task_family import ContinuousTasks, FiniteTasks, TaskFamily, check_count


def measure_anchor(
    family: TaskFamily, policy: Literal["stand_still", "random"], *, episodes: int, seed: int, num_threads: int = 0
) -> Float64[ndarray, " E"]:
    """Return of the first episode of `episodes` worlds under a policy that knows nothing.

    Tasks: spread evenly over the range of a family with one continuous parameter (less noise than drawing them), each in
    turn of a family with a handful, else drawn from the training stream of `seed`.
    stand_still: the action 0 always (real-valued actions only). random: uniform over the action space.
    Raises InputError for another policy, or for standing still among discrete actions.
    """
    check_count("episodes", episodes, 1)
    if policy not in ("stand_still", "random"):
        raise bad_value("policy", policy, "stand_still or random")
    env = family.make(episodes, num_threads=num_threads)
    tasks = None
    if isinstance(family, ContinuousTasks) and family.num_params == 1:
        tasks = family.from_unit((np.arange(episodes)[:, None] + 0.5) / episodes)
    elif isinstance(family, FiniteTasks):
        tasks = np.resize(family.eval_tasks("search"), (episodes, family.num_params))
    space, rng = env.single_action_space, numpy_stream(seed, "anchor actions")
    if policy == "stand_still" and not isinstance(space, spaces.Box):
        raise InputError(f"policy: 'stand_still' has no meaning among the discrete actions of {family.id}")
    env.reset(seed=seed, options=None if tasks is None else {"tasks": tasks})
    returns, living = np.zeros(episodes), np.ones(episodes, dtype=bool)
    for _ in range(family.horizon):
        if not isinstance(space, spaces.Box):
            actions = rng.integers(family.action.size, size=episodes)
        elif policy == "random":
            actions = rng.uniform(space.low, space.high, (episodes, *space.shape))
        else:
            actions = np.zeros((episodes, *space.shape))
        _, rewards, terminated, truncated, _ = env.step(actions)
        returns += rewards * living
        living &= ~(terminated | truncated)
        if not living.any():
            break
    env.close()
    return returns
