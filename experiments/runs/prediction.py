"""How much adapting lowers a loss while a kept policy acts, beside what it earns: the two are different things.

A model of what follows learns from some episodes of the policy and adapts to others, step by step, as in `adaptation/dynamics.py`.
Its error falls where there is something to adapt to; no action of the policy rests on it, so a lower error is no higher return.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from adaptation.dynamics import DynamicsModel, Episodes, adapt_through_episode, prediction_errors, train_dynamics
from adaptation.test_time_adaptation import AdaptationConfig
from core.config import FrozenConfig
from core.seeding import numpy_stream, torch_stream
from core.sequence_model import default_config
from experiments.judging.statistics import mean_interval
from meta_rl.learner import Learner
from meta_rl.rollout import episode_bounds, rollout

EPISODES = 16  # half of them are learned from, half adapted to
LONGEST = 100  # steps of each
UPDATES = 100
MODEL = "s5"
ADAPTING = AdaptationConfig(learning_rate=1e-2, optimizer="sgd", num_steps=1, guard=True)


class PredictionGain(FrozenConfig):
    """One-step prediction error, a mean of squares in units of the change's own spread, without and with adapting."""

    frozen: float
    adapted: float
    reduction_percent: float
    """Mean over episodes of 100 (1 - adapted / frozen)."""
    interval: tuple[float, float]
    """95 % interval of it (Student's t over episodes)."""
    episodes: int
    steps: int

    def sentence(self) -> str:
        """The result on one line, with what it is worth."""
        return (
            f"Adapting a model of what follows: prediction error {self.frozen:.4g} with frozen weights, {self.adapted:.4g} adapted, "
            f"a reduction of {self.reduction_percent:.1f} % [{self.interval[0]:.1f}, {self.interval[1]:.1f}] "
            f"({self.episodes} episodes of {self.steps} steps). "
            "No action rests on these predictions: what adapting is worth is the return."
        )


def prediction_gain(model: Path, *, seed: int = 0) -> PredictionGain:
    """Measure it on the search tasks of a kept model's family; the policy is left as it is. model: its files, without suffix."""
    learner: Any = Learner.load(model)
    family = learner.family.examined
    tasks = family.eval_tasks("search")
    worlds = family.make(EPISODES)
    try:
        trajectory = rollout(
            learner.policy,
            learner.normalizer,
            worlds,
            tasks[np.arange(EPISODES) % len(tasks)],
            num_steps=family.horizon,
            seed=int(numpy_stream(seed, "prediction").integers(2**31 - 1)),
            generator=torch_stream(seed, "prediction", "actions"),
            privileged=learner.policy.privileged_dim > 0,
        )
    finally:
        worlds.close()
    ends = [episode_bounds(trajectory, world)[0][1] for world in range(EPISODES)]
    steps = max(min(*ends, LONGEST) - 1, 1)  # of the shortest first episode, so that all are of one length
    actions = trajectory.actions[:, :steps]
    if actions.ndim == 2:
        actions = torch.nn.functional.one_hot(actions, learner.policy.action.size)
    lived = Episodes(torch.from_numpy(trajectory.obs[:, : steps + 1]).float(), actions.float())
    half = EPISODES // 2
    seen, new = (Episodes(lived.obs[part], lived.actions[part]) for part in (slice(half), slice(half, None)))
    dynamics = DynamicsModel(
        default_config(MODEL), family.obs_dim, lived.actions.shape[-1], torch_stream(seed, "prediction", "init")
    )
    train_dynamics(dynamics, seen, updates=UPDATES, generator=torch_stream(seed, "prediction", "batches"))
    frozen = prediction_errors(dynamics, new).mean(axis=(1, 2))
    adapted = np.array(
        [adapt_through_episode(dynamics, ADAPTING, new.obs[n], new.actions[n]).adapted.mean() for n in range(half)]
    )
    reduction = 100 * (1 - adapted / frozen)
    return PredictionGain(
        frozen=float(frozen.mean()),
        adapted=float(adapted.mean()),
        reduction_percent=float(reduction.mean()),
        interval=mean_interval(reduction),
        episodes=half,
        steps=steps,
    )
