"""Actor and critic over a memory: encoder, sequence model, heads, and the action distributions as pure functions.

The encoder sees observation, previous action, previous reward and a done flag (Duan et al. 2016, RL2); the encoded
current observation also skips past the memory into both heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from core.config import FrozenConfig, search
from core.errors import bad_value
from core.sequence_model import AnyModelConfig, build_model, default_config, default_generator


@dataclass(frozen=True)
class ActionSpec:
    """The action space: gaussian with `size` dimensions, or categorical with `size` choices."""

    kind: Literal["gaussian", "categorical"]
    size: int

    def __post_init__(self) -> None:
        if self.kind not in ("gaussian", "categorical"):
            raise bad_value("action.kind", self.kind, "gaussian, categorical")
        if self.size < 1:
            raise bad_value("action.size", self.size, "1 or more")


class PolicyConfig(FrozenConfig):
    """Encoder, memory and heads."""

    model: AnyModelConfig = Field(default_factory=lambda: default_config("s5"))
    """The memory: any registered sequence model."""
    encoder_dim: int = Field(default=64, ge=1, le=4096)
    """Width of the encoder's output, which is the memory's input."""
    head_dim: int = Field(default=64, ge=0, le=4096)
    """Width of the hidden layer in the actor's and in the critic's head; 0 makes the heads linear."""
    skip: bool = True
    """Whether the encoded current input also goes straight into the heads."""
    log_std_init: float = Field(
        default=-0.5, ge=-5, le=2, json_schema_extra=search(low=-1.5, high=0.0, family="horizon and exploration")
    )
    """Initial log standard deviation of a Gaussian policy; it does not depend on the state."""


class PolicyInput(NamedTuple):
    """What a policy sees at each step; "..." is B for one step and B T for a sequence.

    obs (..., D); prev_action (..., A): the last action, one-hot for a categorical policy, zeros at the start;
    prev_reward (...); prev_done (...): 1 where the last step ended an episode. All of one float dtype.
    """

    obs: Tensor
    prev_action: Tensor
    prev_reward: Tensor
    prev_done: Tensor


class PolicyOutput(NamedTuple):
    """mean_or_logits (..., A); log_std (A,) for a Gaussian, None for a categorical; value (...); next_hidden (B, S)."""

    mean_or_logits: Tensor
    log_std: Tensor | None
    value: Tensor
    next_hidden: Tensor


class RecurrentPolicy(nn.Module):
    """Actor and critic that share one memory.

    privileged_dim: size of task parameters that only the critic may see, 0 for none.
    """

    def __init__(
        self,
        obs_dim: int,
        action: ActionSpec,
        config: PolicyConfig,
        *,
        generator: torch.Generator | None = None,
        privileged_dim: int = 0,
    ) -> None:
        super().__init__()
        if obs_dim < 1:
            raise bad_value("obs_dim", obs_dim, "1 or more")
        if privileged_dim < 0:
            raise bad_value("privileged_dim", privileged_dim, "0 or more")
        generator = generator or default_generator()
        self.obs_dim, self.action, self.config, self.privileged_dim = obs_dim, action, config, privileged_dim
        self.encoder = _orthogonal(obs_dim + action.size + 2, config.encoder_dim, math.sqrt(2), generator)
        width = config.model.hidden_dim
        self.memory = build_model(config.model, config.encoder_dim, width, generator=generator)
        features = width + (config.encoder_dim if config.skip else 0)
        inner = config.head_dim
        # One map makes both heads' hidden layers where they see the same features: half as many calls an acting step.
        self.shared = inner > 0 and privileged_dim == 0
        if self.shared:
            self.heads_hidden = _orthogonal(features, 2 * inner, math.sqrt(2), generator)
        elif inner:
            self.actor_hidden = _orthogonal(features, inner, math.sqrt(2), generator)
            self.critic_hidden = _orthogonal(features + privileged_dim, inner, math.sqrt(2), generator)
        self.actor = _orthogonal(inner or features, action.size, 0.01, generator)
        self.critic = _orthogonal(inner or features + privileged_dim, 1, 1.0, generator)
        self.log_std = (
            nn.Parameter(torch.full((action.size,), config.log_std_init)) if action.kind == "gaussian" else None
        )

    @property
    def hidden_size(self) -> int:
        """Real numbers of memory a sequence carries."""
        return self.memory.hidden_size

    def init_hidden(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "B S"]:
        """Zeros (B, S)."""
        return self.memory.init_hidden(batch_size, device, dtype)

    def forward(
        self,
        inputs: PolicyInput,
        hidden: Tensor | None = None,
        resets: Tensor | None = None,
        privileged: Tensor | None = None,
    ) -> PolicyOutput:
        """Distribution, value and next state for one step (B, ...) or a sequence (B, T, ...).

        resets clears the memory before the step it marks; privileged (..., P) goes to the critic only.
        Raises InputError where shapes do not agree.
        """
        obs, prev_action, prev_reward, prev_done = inputs
        lead = obs.shape[:-1]
        if obs.shape[-1] != self.obs_dim or len(lead) not in (1, 2):
            raise bad_value("obs", tuple(obs.shape), f"(B, {self.obs_dim}) or (B, T, {self.obs_dim})")
        if prev_action.shape != (*lead, self.action.size):
            raise bad_value("prev_action", tuple(prev_action.shape), str((*lead, self.action.size)))
        if prev_reward.shape != lead or prev_done.shape != lead:
            raise bad_value("prev_reward, prev_done", (prev_reward.shape, prev_done.shape), str(tuple(lead)))
        if (privileged is None) != (self.privileged_dim == 0):
            raise bad_value(
                "privileged", type(privileged).__name__, f"a tensor (..., {self.privileged_dim}) or, for 0, None"
            )
        if privileged is not None and privileged.shape != (*lead, self.privileged_dim):
            raise bad_value("privileged", tuple(privileged.shape), str((*lead, self.privileged_dim)))
        features, next_hidden = self.features(inputs, hidden, resets)
        mean, value = self.judge(features, privileged)
        return PolicyOutput(mean, self.log_std, value, next_hidden)

    def features(
        self, inputs: PolicyInput, hidden: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the heads read, (..., F): the memory's output, and beside it the encoded input where that skips; and the next state."""
        obs, prev_action, prev_reward, prev_done = inputs
        seen = torch.cat([obs, prev_action, prev_reward.unsqueeze(-1), prev_done.unsqueeze(-1)], -1)
        encoded = torch.tanh(_apply(self.encoder, seen))
        memory, next_hidden = self.memory(encoded, hidden, resets)
        return torch.cat([memory, encoded], -1) if self.config.skip else memory, next_hidden

    def judge(self, features: Tensor, privileged: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean or logits (..., A) and value (...) of features (..., F)."""
        actor = features
        if self.shared:
            actor, critic = torch.tanh(_apply(self.heads_hidden, actor)).chunk(2, -1)
        else:
            critic = actor if privileged is None else torch.cat([actor, privileged], -1)
            if self.config.head_dim:
                actor = torch.tanh(_apply(self.actor_hidden, actor))
                critic = torch.tanh(_apply(self.critic_hidden, critic))
        return _apply(self.actor, actor), _apply(self.critic, critic).squeeze(-1)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The memory's "dynamics" parameters, and all "other" ones."""
        groups = self.memory.parameter_groups()
        known = {id(parameter) for group in groups.values() for parameter in group}
        groups["other"] += [parameter for parameter in self.parameters() if id(parameter) not in known]
        return groups


def _orthogonal(in_features: int, out_features: int, gain: float, generator: torch.Generator) -> nn.Linear:
    """An orthogonal linear map, bias zero."""
    layer = nn.Linear(in_features, out_features, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        nn.init.orthogonal_(layer.weight, gain, generator=generator)
        layer.bias.zero_()
    return layer


def _apply(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer without the cost of a module's call, which acting steps feel."""
    return F.linear(x, layer.weight, layer.bias)


# ----------------------------------------------------------------------------------- distributions as pure functions
LOG_2PI = math.log(2 * math.pi)


def sample(output: PolicyOutput, generator: torch.Generator | None = None) -> Tensor:
    """An action: (..., A) float for a Gaussian, (...) int64 for a categorical."""
    mean = output.mean_or_logits
    if output.log_std is not None:
        noise = torch.empty_like(mean).normal_(generator=generator)
        return torch.addcmul(mean, output.log_std.exp(), noise)
    # The largest logit plus Gumbel noise is a draw from the softmax: argmax(logits - log(Exp(1))).
    noise = torch.empty_like(mean).exponential_(generator=generator)
    return (mean - noise.log()).argmax(-1)


def mode(output: PolicyOutput) -> Tensor:
    """The most probable action, in the same form as `sample`."""
    return output.mean_or_logits if output.log_std is not None else output.mean_or_logits.argmax(-1)


def log_prob(output: PolicyOutput, action: Tensor) -> Tensor:
    """log pi(action), (...), nats."""
    mean = output.mean_or_logits
    if output.log_std is None:
        if action.shape != mean.shape[:-1]:
            raise bad_value("action", tuple(action.shape), str(tuple(mean.shape[:-1])))
        return F.log_softmax(mean, -1).gather(-1, action.long().unsqueeze(-1)).squeeze(-1)
    if action.shape != mean.shape:
        raise bad_value("action", tuple(action.shape), str(tuple(mean.shape)))
    scaled = (action - mean) * (-output.log_std).exp()
    return -0.5 * (scaled.square().sum(-1) + LOG_2PI * mean.shape[-1]) - output.log_std.sum()


def entropy(output: PolicyOutput) -> Tensor:
    """Entropy (...), nats."""
    mean = output.mean_or_logits
    if output.log_std is not None:
        return (output.log_std.sum() + 0.5 * (1 + LOG_2PI) * mean.shape[-1]).expand(mean.shape[:-1])
    log_p = F.log_softmax(mean, -1)
    return -(log_p.exp() * log_p).sum(-1)
