"""A learned model of what follows (next observation), and its adaptation while an episode goes on.

No label is needed: each step's observation is the target of the prediction made a step before. That is how a model
notices a broken joint or another body, and how an `Adapter` mends it. Source: self-supervised adaptation during deployment
with forward dynamics, Hansen et al. 2021 (arXiv 2007.04309), section 3; online model adaptation under joint failures,
Nagabandi et al. 2019 (arXiv 1803.11347), section 6. Letters: N episodes, T steps, D observation size, A action size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptation.test_time_adaptation import AdaptationConfig, Adapter
from core.errors import bad_value
from core.sequence_model import SequenceModelConfig, build_model


@dataclass(frozen=True)
class Episodes:
    """What was seen and done: obs (N, T+1, D), actions (N, T, A), float32."""

    obs: Float[Tensor, "N T1 D"]
    actions: Float[Tensor, "N T A"]

    def __post_init__(self) -> None:
        if self.obs.shape[1] != self.actions.shape[1] + 1 or len(self.obs) != len(self.actions) or not len(self.obs):
            found = (tuple(self.obs.shape), tuple(self.actions.shape))
            raise bad_value("obs, actions", found, "shapes (N, T+1, D) and (N, T, A) with N >= 1")


class DynamicsModel(nn.Module):
    """Predicts the standardized change of the observation from observation and action, with memory.

    Input (B, D+A) or (B, T, D+A): raw observation and action side by side. Output of the same lead with D: the change in
    units of its own spread, so that an error of 1 is what guessing "as usual" would cost.
    """

    input_mean: Tensor
    input_scale: Tensor
    change_mean: Tensor
    change_scale: Tensor

    def __init__(
        self, config: SequenceModelConfig, obs_dim: int, action_dim: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.memory = build_model(config, obs_dim + action_dim, obs_dim, generator=generator)
        self.obs_dim = obs_dim
        self.register_buffer("input_mean", torch.zeros(obs_dim + action_dim))
        self.register_buffer("input_scale", torch.ones(obs_dim + action_dim))
        self.register_buffer("change_mean", torch.zeros(obs_dim))
        self.register_buffer("change_scale", torch.ones(obs_dim))

    def init_hidden(self, batch_size: int) -> Tensor:
        """Zeros (B, S)."""
        return self.memory.init_hidden(batch_size)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The predicted standardized change, and the next hidden state."""
        return self.memory((x - self.input_mean) * self.input_scale, hidden)

    def target(self, obs: Tensor, following: Tensor) -> Tensor:
        """The standardized change from `obs` to `following`, both (..., D)."""
        return (following - obs - self.change_mean) * self.change_scale

    @torch.no_grad()
    def standardize(self, episodes: Episodes) -> None:
        """Set the constants from data."""
        x = torch.cat([episodes.obs[:, :-1], episodes.actions], -1).flatten(0, 1)
        change = (episodes.obs[:, 1:] - episodes.obs[:, :-1]).flatten(0, 1)
        for values, mean, scale in (
            (x, self.input_mean, self.input_scale),
            (change, self.change_mean, self.change_scale),
        ):
            mean.copy_(values.mean(0))
            scale.copy_(1.0 / values.std(0).clamp_min(1e-6))


def train_dynamics(
    model: DynamicsModel,
    episodes: Episodes,
    *,
    updates: int,
    batch_size: int = 16,
    learning_rate: float = 3e-3,
    generator: torch.Generator,
) -> list[float]:
    """Fit the model to whole episodes with Adam; returns the mean squared error of every update."""
    if updates < 1:
        raise bad_value("updates", updates, "1 or more")
    model.standardize(episodes)
    x = torch.cat([episodes.obs[:, :-1], episodes.actions], -1)
    y = model.target(episodes.obs[:, :-1], episodes.obs[:, 1:])
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    losses = []
    for update in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1.0 - update / updates)
        rows = torch.randint(len(x), (min(batch_size, len(x)),), generator=generator)
        loss = nn.functional.mse_loss(model(x[rows])[0], y[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@dataclass(frozen=True)
class AdaptationTrace:
    """One-step prediction errors along an episode, each measured before the step's own data were learned from.

    frozen, adapted: (T,) mean squared error in standardized units, without and with adaptation. rollbacks: what the guard
    undid.
    """

    frozen: np.ndarray
    adapted: np.ndarray
    rollbacks: int


def adapt_through_episode(
    model: DynamicsModel,
    config: AdaptationConfig,
    obs: Float[Tensor, "T1 D"],
    actions: Float[Tensor, "T A"],
    *,
    window: int = 16,
) -> AdaptationTrace:
    """Live through one recorded episode with the weights frozen, then with an update after every step on the last `window`.

    The model has its trained weights again afterwards. Raises InputError for shapes that do not agree.
    """
    episodes = Episodes(obs.unsqueeze(0), actions.unsqueeze(0))
    if window < 1:
        raise bad_value("window", window, "1 or more")
    x = torch.cat([episodes.obs[:, :-1], episodes.actions], -1)
    y = model.target(episodes.obs[:, :-1], episodes.obs[:, 1:])
    with torch.no_grad():
        frozen = (model(x)[0] - y).square().mean(-1)[0]

    adapter = Adapter(model, config)
    states = [model.init_hidden(1)]  # the state before each step, under the weights of that time
    adapted = []
    for t in range(x.shape[1]):
        with torch.no_grad():
            predicted, after = model(x[:, t], states[-1])
        states.append(after)
        adapted.append(float((predicted - y[:, t]).square().mean()))
        first = max(0, t + 1 - window)
        adapter.update_step(x[:, first : t + 1], y[:, first : t + 1], states[first])
    rollbacks = adapter.rollbacks
    adapter.reset()
    return AdaptationTrace(frozen.numpy(), np.array(adapted), rollbacks)
