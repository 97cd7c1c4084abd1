"""A trained RL2 policy under the agents' contract: it reads raw observations and rewards and adapts in its memory."""

from __future__ import annotations

import numpy as np
import torch

from core.agent import PolicyAgent
from meta_rl.rl2 import RL2
from meta_rl.rollout import ActionMap


class RL2Agent(PolicyAgent):
    """Acts as the learner's policy does in its own evaluation: frozen normalisation, actions in the worlds' bounds.

    Memory is kept over the episodes of a trial; `start` begins a new one.
    """

    def __init__(
        self, name: str, learner: RL2, *, deterministic: bool = True, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(name, learner.policy, deterministic=deterministic, generator=generator)
        self.normalizer = learner.normalizer
        worlds = learner.family.make(1)
        self._to_world = ActionMap(learner.policy.action, worlds.single_action_space)
        worlds.close()

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Actions for raw observations (N, D), as the worlds take them."""
        action = torch.from_numpy(super().act(self.normalizer.observe(obs)))
        taken, self.last_action = self._to_world(action)
        return taken

    def observe(self, reward: np.ndarray, done: np.ndarray) -> None:
        """What came of the last actions: raw rewards (N,) and ends (N,)."""
        super().observe(self.normalizer.read_reward(np.asarray(reward)), done)
