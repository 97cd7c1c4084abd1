"""Running means and variances of what a policy reads and of what it is paid, saved with the model.

They are constant inside one iteration, so that acting and learning see the same numbers, and frozen at evaluation.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

CLIP = 10.0  # of a standardized number; keeps one wild observation from ruling a batch


class RunningMoments:
    """Mean and variance of all rows seen, merged batch by batch in float64.

    Source: Chan, Golub, LeVeque 1983, the parallel form of Welford's update.
    """

    def __init__(self, size: int) -> None:
        self.mean = np.zeros(size)
        self.var = np.ones(size)
        self.count = 0.0

    def update(self, rows: np.ndarray) -> None:
        """Merge rows (n, size)."""
        n = float(rows.shape[0])
        mean, var = rows.mean(0), rows.var(0)
        total = self.count + n
        delta = mean - self.mean
        squares = self.var * self.count + var * n + delta**2 * (self.count * n / total)
        self.mean = self.mean + delta * (n / total)
        self.var = squares / total
        self.count = total

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The state, as named tensors for a checkpoint."""
        values = np.concatenate([self.mean, self.var, [self.count]])
        return {name: torch.from_numpy(values)}

    def restore(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        values = tensors[name].numpy()
        size = (len(values) - 1) // 2
        self.mean, self.var, self.count = values[:size].copy(), values[size:-1].copy(), float(values[-1])


class Normalizer:
    """Standardizes observations and the reward that the policy reads, and scales the rewards that it is trained on.

    obs_dim: size D of an observation. gamma: discount of the return whose spread sets the reward scale.
    """

    def __init__(self, obs_dim: int, gamma: float) -> None:
        self.obs = RunningMoments(obs_dim)
        self.reward = RunningMoments(1)
        self.discounted_return = RunningMoments(1)
        self.gamma = gamma
        self.refresh()

    def refresh(self) -> None:
        """Compute the float32 constants that the fast paths below use from the moments."""
        # A coordinate that never varies must map to 0, not to noise times 1e4: hence the floor under the spread.
        self._obs_mean = self.obs.mean
        self._obs_scale = 1.0 / np.sqrt(self.obs.var + 1e-4)
        self._reward_mean = float(self.reward.mean[0])
        self._reward_scale = float(1.0 / np.sqrt(self.reward.var[0] + 1e-4))
        self.return_scale = float(1.0 / np.sqrt(self.discounted_return.var[0] + 1e-8))

    def observe(self, obs: np.ndarray) -> np.ndarray:
        """Standardized observations (..., D) in float32, clipped at 10."""
        scaled = (obs - self._obs_mean) * self._obs_scale
        return np.clip(scaled, -CLIP, CLIP).astype(np.float32)

    def read_reward(self, reward: np.ndarray) -> np.ndarray:
        """Standardized rewards (...) in float32, clipped at 10: an input of the policy, not a target."""
        scaled = (reward - self._reward_mean) * self._reward_scale
        return np.clip(scaled, -CLIP, CLIP).astype(np.float32)

    def update(self, obs: np.ndarray, rewards: np.ndarray, terminated: np.ndarray) -> None:
        """Take in one batch of trials: obs (N, T, D), rewards (N, T), terminated (N, T) of bool."""
        self.obs.update(obs.reshape(-1, obs.shape[-1]))
        self.reward.update(rewards.reshape(-1, 1))
        running = np.zeros(len(rewards))
        returns = np.empty_like(rewards)
        for t in range(rewards.shape[1]):
            running = running * self.gamma + rewards[:, t]
            returns[:, t] = running
            running = running * ~terminated[:, t]
        self.discounted_return.update(returns.reshape(-1, 1))
        self.refresh()

    def tensors(self) -> dict[str, Tensor]:
        """The state, as named tensors for a checkpoint."""
        return {
            **self.obs.tensors("normalizer.obs"),
            **self.reward.tensors("normalizer.reward"),
            **self.discounted_return.tensors("normalizer.return"),
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        self.obs.restore("normalizer.obs", tensors)
        self.reward.restore("normalizer.reward", tensors)
        self.discounted_return.restore("normalizer.return", tensors)
        self.refresh()


def scaled_rewards(rewards: np.ndarray, scale: float) -> Float[Tensor, "B T"]:
    """Rewards times the scale, in float32."""
    return torch.from_numpy((rewards * scale).astype(np.float32))
