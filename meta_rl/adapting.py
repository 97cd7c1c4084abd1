"""A policy that goes on learning while it is evaluated: in every world its own copy, from what that world lived alone.

Every `every` control steps, on the last `window` of them, with theta_o the weights that acted:
    minimise  -mean min(rho A, clip(rho, 1 - eps, 1 + eps) A)  +  c mean (V(s) - R)^2 / 2,    rho = pi(a|s) / pi_theta_o(a|s)
that is PPO's loss (Schulman et al. 2017, arXiv 1707.06347, equations 7 and 9) on one short stretch of one world. A is GAE of the
critic's values as it lived them, standardized over the window, and R = A + V before that. No env step is lived for it.
Test-time adaptation with what the deployment itself shows: Hansen et al. 2021 (arXiv 2007.04309), by the reward in place of a
self-supervised target. Letters: N worlds, W steps of the window.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from adaptation.policy_adaptation import PolicyAdaptation
from adaptation.test_time_adaptation import NORM_WORDS
from core.errors import bad_value
from core.policy import PolicyInput, PolicyOutput, RecurrentPolicy, log_prob
from meta_rl.losses import clipped_policy_loss, generalized_advantages, value_loss

Params = dict[str, Tensor]
BODY = ("encoder.", "memory.")
NOISE = "log_std"  # stays as it was trained: how much is tried is `exploration`'s


class Objective(NamedTuple):
    """The numbers of the loss, the learner's own."""

    clip: float
    value_coef: float
    gamma: float
    gae_lambda: float
    crosses_endings: bool
    """Whether reward after an early ending counts before it."""
    reward_scale: float


class Window(NamedTuple):
    """What N worlds lived in W steps: what the policy read (or its features, where nothing below them moves) and the state
    before it (N, S), what it did, and what that was worth."""

    read: PolicyInput | Tensor
    hidden: Tensor
    actions: Tensor
    old_log_prob: Tensor
    advantages: Tensor
    returns: Tensor


class _Lived(NamedTuple):
    """One control step of N worlds."""

    read: PolicyInput | Tensor
    hidden: Tensor
    value: Tensor
    action: Tensor
    log_prob: Tensor
    reward: Tensor
    ended: Tensor


class _Heads(nn.Module):
    """The part of a policy after its memory, as a module of its own: features (..., F) to mean or logits, and value."""

    def __init__(self, policy: RecurrentPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.policy.judge(features)


def moving_names(policy: RecurrentPolicy, config: PolicyAdaptation) -> list[str]:
    """The parameters that adapt. Raises InputError where the policy has none of the kind."""
    named = dict(policy.named_parameters())
    names = [name for name in named if name != NOISE]
    if config.adapts == "head":
        names = [name for name in names if not name.startswith(BODY)]
    elif config.adapts == "norm":
        names = [n for n in names if named[n].ndim <= 1 and any(word in n.lower() for word in NORM_WORDS)]
    elif config.adapts == "low-rank":
        names = [name for name in names if named[name].ndim == 2]
    if not names:
        raise bad_value("adaptation.adapts", config.adapts, "what this policy has: it has no norms or gains")
    return names


class PolicyAdapter:
    """The copies of N worlds: `rollout` asks `act` before each step and tells `live` after it.

    noise: the part of its own noise that the policy acts with, 0 for none. `moved` (N,) says which worlds' weights are no longer
    the trained ones; `undone` counts what the guard put back. The policy itself is never changed. Raises InputError for a
    policy whose critic is told the task, and for a choice of parameters that it has none of.
    """

    def __init__(
        self, policy: RecurrentPolicy, config: PolicyAdaptation, worlds: int, objective: Objective, *, noise: float
    ) -> None:
        if policy.privileged_dim:
            raise bad_value("adaptation.adapts", config.adapts, "nothing: the critic is told the task")
        self.policy, self.config, self.objective, self.noise = policy, config, objective, noise
        self.trained: Params = {name: p.detach() for name, p in policy.named_parameters()}
        self.names = moving_names(policy, config)
        self.only_heads = config.adapts == "head"
        self.heads = _Heads(policy)
        self.weights: Params = self._copies(worlds)
        self.moved = torch.zeros(worlds, dtype=torch.bool)
        self.undone = 0
        self.steps = 0
        self.hidden = policy.init_hidden(worlds)
        self._lived: deque[_Lived] = deque(maxlen=config.window)
        self._now: tuple[PolicyInput | Tensor, Tensor, PolicyOutput] | None = None

    # What a rollout calls -----------------------------------------------------------------------------------------------
    def act(self, inputs: PolicyInput, out: PolicyOutput) -> PolicyOutput:
        """What the copies say in place of `out`, what the trained policy says; they learn first where it is time.

        The trained policy's own numbers stand, to the last bit, in worlds whose weights have not moved.
        """
        with torch.inference_mode(False), torch.no_grad():
            inputs = PolicyInput(*(part.clone() for part in inputs))
            out = out._replace(mean_or_logits=out.mean_or_logits.clone(), value=out.value.clone())
            before = self.hidden
            read, said = self._say(inputs, before, out)
            if self.steps and self.steps % self.config.every == 0:
                self.learn(self.window(said.value))
                read, said = self._say(inputs, before, out)
            self.steps += 1
            self._now = read, before, said
            return said

    def live(self, action: Tensor, reward: Tensor, ended: Tensor) -> None:
        """What was done after the last `act`, and what came of it: reward as the worlds gave it, ended where nothing follows."""
        with torch.inference_mode(False), torch.no_grad():
            assert self._now is not None
            read, hidden, said = self._now
            action = action.clone()
            scaled = (reward * self.objective.reward_scale).to(torch.float32)
            ended = torch.zeros_like(scaled) if self.objective.crosses_endings else ended.to(torch.float32)
            self._lived.append(_Lived(read, hidden, said.value, action, log_prob(said, action), scaled, ended))

    # Learning -----------------------------------------------------------------------------------------------------------
    def window(self, following: Tensor) -> Window:
        """The last steps with their advantages. following (N,): the critic's value of the state that came after them."""
        lived = list(self._lived)
        advantages = generalized_advantages(
            torch.stack([step.reward for step in lived], 1),
            torch.stack([*(step.value for step in lived), following], 1),
            torch.stack([step.ended for step in lived], 1),
            gamma=self.objective.gamma,
            lam=self.objective.gae_lambda,
        )
        values = torch.stack([step.value for step in lived], 1)
        spread = advantages.std(1, correction=0, keepdim=True)
        reads = [step.read for step in lived]
        read = (
            torch.stack([r for r in reads if isinstance(r, Tensor)], 1)
            if self.only_heads
            else PolicyInput(*(torch.stack(parts, 1) for parts in zip(*reads, strict=True)))
        )
        return Window(
            read=read,
            hidden=lived[0].hidden,
            actions=torch.stack([step.action for step in lived], 1),
            old_log_prob=torch.stack([step.log_prob for step in lived], 1),
            advantages=(advantages - advantages.mean(1, keepdim=True)) / (spread + 1e-8),
            returns=advantages + values,
        )

    def learn(self, window: Window) -> None:
        """`steps` gradient steps of every world on its own row of the window; the guard undoes what made its loss larger."""
        start, first = self.weights, None
        gradient = vmap(grad_and_value(self._loss))
        for _ in range(self.config.steps):
            slopes, loss = gradient(self.weights, window)
            first = loss if first is None else first
            norm = torch.stack([slope.flatten(1).square().sum(1) for slope in slopes.values()]).sum(0).sqrt()
            # A gradient that is not finite moves nothing.
            scale = torch.where(norm.isfinite(), (self.config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0), 0.0)
            self.weights = {
                name: weight - self.config.learning_rate * _rows(scale, weight) * slopes[name].nan_to_num(0.0, 0.0, 0.0)
                for name, weight in self.weights.items()
            }
        if self.config.guard and first is not None:
            kept = vmap(self._loss)(self.weights, window) <= first
            self.undone += int((~kept).sum())
            self.weights = {name: torch.where(_rows(kept, w), w, start[name]) for name, w in self.weights.items()}
        self.moved = torch.zeros_like(self.moved)
        for name, weight in self.weights.items():
            self.moved |= (weight != self._start_of(name)).flatten(1).any(1)

    def _loss(self, weights: Params, window: Window) -> Tensor:
        """The loss of one world: weights of its own, its row of the window."""
        if isinstance(window.read, Tensor):
            mean, value = functional_call(self.heads, self._of_heads(weights), (window.read,))
        else:
            inputs = PolicyInput(*(part.unsqueeze(0) for part in window.read))
            out = functional_call(self.policy, self._whole(weights), (inputs, window.hidden.unsqueeze(0)))
            mean, value = out.mean_or_logits.squeeze(0), out.value.squeeze(0)
        said = self._with_noise(PolicyOutput(mean, self._log_std(), value, value))
        surrogate, _ = clipped_policy_loss(
            log_prob(said, window.actions), window.old_log_prob, window.advantages, self.objective.clip
        )
        return surrogate + self.objective.value_coef * value_loss(value, window.returns)

    # Acting -------------------------------------------------------------------------------------------------------------
    def _say(self, inputs: PolicyInput, hidden: Tensor, out: PolicyOutput) -> tuple[PolicyInput | Tensor, PolicyOutput]:
        """What the loss will read of this step, and what the copies say; moves their memory on."""
        if self.only_heads:
            read, self.hidden = self.policy.features(inputs, hidden)
            if self.moved.any():
                mean, value = vmap(lambda w, x: functional_call(self.heads, self._of_heads(w), (x,)))(
                    self.weights, read
                )
                out = self._instead(out, mean, value)
            return read, self._with_noise(out)

        def step(weights: Params, one: PolicyInput, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            alone = PolicyInput(*(part.unsqueeze(0) for part in one))
            said = functional_call(self.policy, self._whole(weights), (alone, state.unsqueeze(0)))
            return said.mean_or_logits.squeeze(0), said.value.squeeze(0), said.next_hidden.squeeze(0)

        if self.moved.any():
            mean, value, self.hidden = vmap(step)(self.weights, inputs, hidden)
            out = self._instead(out, mean, value)
        else:
            _, self.hidden = self.policy.features(inputs, hidden)
        return inputs, self._with_noise(out)

    def _instead(self, out: PolicyOutput, mean: Tensor, value: Tensor) -> PolicyOutput:
        chosen = torch.where(self.moved.unsqueeze(1), mean, out.mean_or_logits)
        return out._replace(mean_or_logits=chosen, value=torch.where(self.moved, value, out.value))

    def _with_noise(self, out: PolicyOutput) -> PolicyOutput:
        """The distribution that is acted with."""
        if self.noise in (0.0, 1.0):
            return out
        if out.log_std is None:
            return out._replace(mean_or_logits=out.mean_or_logits / self.noise)
        return out._replace(log_std=out.log_std + math.log(self.noise))

    # Weights ------------------------------------------------------------------------------------------------------------
    def _copies(self, worlds: int) -> Params:
        """What moves, (N, ...) each: the parameters, or for a low-rank change W + A B^T the factors A, zero, and B."""
        if self.config.adapts != "low-rank":
            return {name: self.trained[name].expand(worlds, *self.trained[name].shape) for name in self.names}
        generator, copies = torch.Generator().manual_seed(0), {}
        for name in self.names:
            rows, columns = self.trained[name].shape
            rank = min(self.config.rank, rows, columns)
            b = torch.randn(columns, rank, generator=generator) / math.sqrt(columns)
            copies[f"{name}|A"] = torch.zeros(worlds, rows, rank)
            copies[f"{name}|B"] = b.expand(worlds, columns, rank)
        return copies

    def _start_of(self, name: str) -> Tensor:
        """What a copy's weight is while nothing has moved; B alone moves nothing."""
        if self.config.adapts != "low-rank":
            return self.trained[name]
        return torch.zeros(()) if name.endswith("|A") else self.weights[name]

    def _whole(self, weights: Params) -> Params:
        """One world's parameters in place of the trained ones."""
        if self.config.adapts != "low-rank":
            return weights
        return {name: self.trained[name] + weights[f"{name}|A"] @ weights[f"{name}|B"].T for name in self.names}

    def _of_heads(self, weights: Params) -> Params:
        return {f"policy.{name}": weight for name, weight in weights.items()}

    def _log_std(self) -> Tensor | None:
        return self.trained.get(NOISE)


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """(N,) shaped so that it scales each row of `like` (N, ...)."""
    return values.view(-1, *(1 for _ in like.shape[1:]))
