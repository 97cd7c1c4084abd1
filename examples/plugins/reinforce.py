"""A learner in one file: REINFORCE on whole episodes, with the mean over the worlds as its baseline.

    theta <- theta + alpha grad mean_{i,t} log pi(a_it | history_it) (R_it - mean_j R_jt) / std
    R_it: discounted return from step t on of world i

Source: Williams 1992, "Simple statistical gradient-following algorithms for connectionist reinforcement learning", equation 1.
The policy's memory lives through the episode, so it learns within it, as RL2's does; one gradient step an iteration.

    python main.py --plugin examples/plugins/reinforce.py --goal "beat LSTM on point-robot, trained by reinforce"
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from core.config import search
from core.errors import bad_value
from core.policy import PolicyConfig, PolicyInput, RecurrentPolicy, log_prob
from core.seeding import numpy_stream, torch_stream
from env_runner.task_distributions import get_family
from meta_rl.evaluate import evaluate_in_context
from meta_rl.learner import DivergedError, EvalResult, Learner, LearnerConfig, TrainReport, register_learner
from meta_rl.losses import standardize
from meta_rl.normalize import Normalizer, scaled_rewards
from meta_rl.rollout import family_action, rollout
from meta_rl.training_state import restore_optimizer, restore_policy, training_tensors

LEARNS = (
    "point-robot",
    {"kind": "reinforce", "num_worlds": 32, "learning_rate": 1e-2, "gamma": 0.8},
    25_600,
)
"""Task, settings and env steps within which it learns: the contract suite holds it to that."""


class ReinforceConfig(LearnerConfig):
    """Settings of REINFORCE."""

    size_fields: ClassVar[tuple[str, ...]] = ("num_worlds",)

    kind: Literal["reinforce"] = "reinforce"
    num_worlds: int = Field(
        default=32, ge=2, le=4096, json_schema_extra=search(choices=(16, 32, 64), role="environment")
    )
    """Worlds stepped together; each lives one episode an iteration."""
    learning_rate: float = Field(default=3e-3, gt=0, le=1, json_schema_extra=search(low=1e-3, high=3e-2, log=True))
    """Adam's step size."""
    gamma: float = Field(default=0.9, ge=0, le=1)
    """Discount a step."""

    def iteration_steps(self, horizon: int) -> int:
        """One episode a world."""
        return self.num_worlds * horizon


@register_learner("reinforce", ReinforceConfig)
class Reinforce(Learner):
    """REINFORCE over any sequence model and any family."""

    config: ReinforceConfig

    def __init__(
        self, family_id: str, policy: PolicyConfig, config: LearnerConfig, *, env_steps: int, seed: int
    ) -> None:
        super().__init__(family_id, policy, config, env_steps=env_steps, seed=seed)
        self.family = get_family(family_id)
        self.steps_per_iteration = self.config.iteration_steps(self.family.horizon)
        self.iterations = self.env_steps // self.steps_per_iteration
        if self.iterations < 1:
            raise bad_value("env_steps", env_steps, f"{self.steps_per_iteration} or more")
        generator = torch_stream(seed, "policy", "init")
        self.policy = RecurrentPolicy(self.family.obs_dim, family_action(self.family), policy, generator=generator)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=self.config.learning_rate)
        self.normalizer = Normalizer(self.family.obs_dim, self.config.gamma)
        self.iteration = 0

    def train(self) -> Generator[TrainReport, None, None]:
        """One report a gradient step."""
        worlds = self.family.make(self.config.num_worlds)
        try:
            while self.iteration < self.iterations:
                yield self._iterate(worlds)
        finally:
            worlds.close()

    def _iterate(self, worlds: Any) -> TrainReport:
        start, step = time.perf_counter(), self.iteration
        lived = rollout(
            self.policy,
            self.normalizer,
            worlds,
            self.family.sample_tasks(numpy_stream(self.seed, "tasks", step), self.config.num_worlds),
            num_steps=self.family.horizon,
            seed=int(numpy_stream(self.seed, "worlds", step).integers(2**31 - 1)),
            generator=torch_stream(self.seed, "actions", step),
        )
        before = {name: value.clone() for name, value in self._state()[0].items()}
        returns = scaled_rewards(lived.rewards, self.normalizer.return_scale)
        for t in reversed(range(returns.shape[1] - 1)):
            goes_on = torch.from_numpy(~(lived.terminated | lived.truncated)[:, t])
            returns[:, t] += self.config.gamma * returns[:, t + 1] * goes_on
        seen = PolicyInput(*(part[:, :-1].clone() for part in lived.inputs))
        weights = standardize(returns - returns.mean(0))
        loss = -(log_prob(self.policy(seen), lived.actions.clone()) * weights).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if not all(bool(parameter.isfinite().all()) for parameter in self.policy.parameters()):
            self._restore(before, {"iteration": step})
            raise DivergedError("a parameter is not finite")
        self.normalizer.update(lived.obs, lived.rewards, lived.terminated)
        self.iteration += 1
        wall = time.perf_counter() - start
        metrics = {
            "rollout/ep_rew_mean": float(lived.rewards.sum(1).mean()),
            "train/policy_loss": float(loss.detach()),
            "time/fps": self.steps_per_iteration / wall,
        }
        return TrainReport(self.iteration, self.iteration * self.steps_per_iteration, wall, metrics)

    def evaluate(self, tasks: np.ndarray, *, episodes: int, seed: int, deterministic: bool = True) -> EvalResult:
        """Column e: the e-th episode on the task with memory kept."""
        return evaluate_in_context(
            self.policy, self.normalizer, self.family, tasks, episodes=episodes, seed=seed, deterministic=deterministic
        )

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = training_tensors(self.policy, self.normalizer, self.optimizer, self.policy.parameters())
        return tensors, {"iteration": self.iteration}

    def _restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        restore_policy(self.policy, self.normalizer, tensors)
        restore_optimizer(self.optimizer, self.policy.parameters(), tensors)
        self.iteration = int(meta["iteration"])
