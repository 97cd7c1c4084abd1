"""A learned model of what follows (next observation), and its adaptation while an episode goes on.

No label is needed: each step's observation is the target of the prediction made a step before. That is how a model
notices a broken joint or another body, and how an `Adapter` mends it. Source: self-supervised adaptation during deployment
with forward dynamics, Hansen et al. 2021 (arXiv 2007.04309), section 3; online model adaptation under joint failures,
Nagabandi et al. 2019 (arXiv 1803.11347), section 6. Letters: N episodes, T steps, D observation size, A action size.
"""

from __future__ import annotations

from collections import deque
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


class OnlineDynamics:
    """A dynamics model in use during one episode: it remembers, and learns from the last `window` steps after every `config.every`-th step.

    config: how it adapts; None leaves the weights alone. `hidden` (1, S) is the state before the next step.
    `close` gives the model its trained weights back.
    """

    def __init__(self, model: DynamicsModel, config: AdaptationConfig | None, *, window: int = 16) -> None:
        if window < 1:
            raise bad_value("window", window, "1 or more")
        self.model, self.window = model, window
        self.adapter = None if config is None else Adapter(model, config)
        self.hidden = model.init_hidden(1)
        self._steps = 0
        self._lived: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=window)

    @property
    def rollbacks(self) -> int:
        """What the guard undid."""
        return 0 if self.adapter is None else self.adapter.rollbacks

    def step(
        self, obs: Float[Tensor, " D"], action: Float[Tensor, " A"], following: Float[Tensor, " D"]
    ) -> Float[Tensor, " D"]:
        """Squared error of each coordinate's prediction, measured before the step is learned from."""
        x = torch.cat([obs, action]).unsqueeze(0)
        y = self.model.target(obs, following).unsqueeze(0)
        self._lived.append((x, y, self.hidden))
        with torch.no_grad():
            predicted, self.hidden = self.model(x, self.hidden)
        self._steps += 1
        if self.adapter is not None and self._steps % self.adapter.config.every == 0:
            xs, ys, states = zip(*self._lived, strict=True)
            self.adapter.update_step(torch.stack(xs, 1), torch.stack(ys, 1), states[0])
        return (predicted - y).square()[0]

    def close(self) -> None:
        """The trained weights again."""
        if self.adapter is not None:
            self.adapter.reset()


@dataclass(frozen=True)
class AdaptationTrace:
    """One-step prediction errors along an episode, each measured before the step's own data were learned from.

    frozen, adapted: (T, D) squared error in standardized units, without and with adaptation. rollbacks: what the guard
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
    """Live through one recorded episode with the weights frozen, then with an update on the last `window` steps after every `config.every`-th one.

    The model has its trained weights again afterwards. Raises InputError for shapes that do not agree.
    """
    episodes = Episodes(obs.unsqueeze(0), actions.unsqueeze(0))
    frozen = prediction_errors(model, episodes)[0]
    online = OnlineDynamics(model, config, window=window)
    adapted = [online.step(obs[t], actions[t], obs[t + 1]) for t in range(len(actions))]
    online.close()
    return AdaptationTrace(frozen, torch.stack(adapted).numpy(), online.rollbacks)


@torch.no_grad()
def prediction_errors(model: DynamicsModel, episodes: Episodes) -> np.ndarray:
    """Squared one-step errors (N, T, D) in standardized units, weights as they are."""
    x = torch.cat([episodes.obs[:, :-1], episodes.actions], -1)
    return (model(x)[0] - model.target(episodes.obs[:, :-1], episodes.obs[:, 1:])).square().numpy()
