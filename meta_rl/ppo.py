"""Proximal policy optimisation over whole sequences: settings, optimiser and the update, shared by what trains with it.

Whole trials go through the model from their first step, so that no stored memory state is stale and nothing is padded;
a minibatch is a set of worlds. Source: Schulman et al. 2017 (arXiv 1707.06347); recurrent form as in Ni et al. 2022
(arXiv 2110.05038), section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from core.config import search
from core.kernels.ppo_loss import CLIPPED, ENTROPY, KL, NORM, POLICY_LOSS, VALUE_LOSS
from core.policy import PolicyInput, PolicyOutput, RecurrentPolicy, entropy, log_prob
from meta_rl.auxiliary import Auxiliary, Targets
from meta_rl.flat_adam import FlatAdam
from meta_rl.fused_ppo import FusedLoss
from meta_rl.learner import DivergedError, LearnerConfig
from meta_rl.losses import approx_kl, clip_fraction, clipped_policy_loss, standardize, value_loss

HORIZON = "horizon and exploration"  # family of the tunable fields that say how far to look and how much to try


class PPOConfig(LearnerConfig):
    """Settings of the clipped update. The defaults are what worked best on halfcheetah-vel (see `experiments/presets`)."""

    learning_rate: float = Field(default=5e-4, gt=0, le=1, json_schema_extra=search(low=2e-4, high=3e-3, log=True))
    """Adam's step size at the start of training."""
    final_learning_rate: float = Field(default=0.0, ge=0, le=1)
    """Adam's step size at the end; the change is linear in env steps."""
    dynamics_lr_scale: float = Field(default=1.0, ge=0, le=10)
    """Factor on the step size of state space transition parameters (A, step sizes, ring radii and phases)."""
    memory_lr_scale: float = Field(
        default=1.0,
        gt=0,
        le=10,
        json_schema_extra=search(low=0.1, high=1.0, log=True, since=4),
        exclude_if=lambda scale: scale == 1,
    )
    """Factor on the step size of the whole memory, its transition parameters included (RESeL takes 1/30, Luo et al. 2024, arXiv 2405.15384)."""
    adam_beta2: float = Field(default=0.999, gt=0, lt=1)
    """Adam's decay of squared gradients; 0.95 follows a changing objective faster."""
    epochs: int = Field(default=8, ge=1, le=100)
    """Passes over the batch an update."""
    minibatches: int = Field(default=16, ge=1, json_schema_extra=search(choices=(8, 16, 32)))
    """Parts of the worlds a pass; each is one optimiser step."""
    clip: float = Field(default=0.2, gt=0, lt=1)
    """Epsilon of the clipped objective."""
    entropy_coef: float = Field(default=1e-3, ge=0, json_schema_extra=search(choices=(0.0, 1e-3, 3e-3), family=HORIZON))
    """Weight of the entropy bonus."""
    value_coef: float = Field(default=0.5, ge=0)
    """Weight of the critic's loss."""
    max_grad_norm: float = Field(default=0.5, gt=0)
    """Norm above which a gradient is scaled down."""
    gamma: float = Field(
        default=0.97, ge=0, le=1, json_schema_extra=search(choices=(0.95, 0.97, 0.98, 0.99), family=HORIZON)
    )
    """Discount a step. A short horizon learns fastest in locomotion."""
    gae_lambda: float = Field(default=0.9, ge=0, le=1, json_schema_extra=search(choices=(0.9, 0.95), family=HORIZON))
    """Lambda of generalized advantage estimation."""
    target_kl: float | None = Field(default=None, gt=0)
    """Stop an update's remaining passes when a pass ends with a mean KL above 1.5 times this. None: never."""
    kl_ceiling: float | None = Field(default=None, gt=0)
    """Lower the step size while an update's mean KL is above this; below it, let it rise back. None: never."""


@dataclass(frozen=True)
class PPOBatch:
    """N whole sequences of T steps; `hints` (N, P) are task parameters for a privileged critic, or None; `aux` is what an auxiliary
    head has to say of each step, where there is one."""

    inputs: PolicyInput
    actions: Tensor
    old_log_prob: Float[Tensor, "N T"]
    advantages: Float[Tensor, "N T"]
    returns: Float[Tensor, "N T"]
    hints: Tensor | None
    aux: Targets | None = None


def make_optimizer(policy: RecurrentPolicy, config: PPOConfig, auxiliary: Auxiliary | None = None) -> FlatAdam:
    """Adam with the dynamics parameters in a group of their own, and an auxiliary head in another; the rest of the memory too, where it
    has a factor. Each group remembers its factor as `lr_scale`."""
    groups, scale = policy.parameter_groups(), config.memory_lr_scale
    memory = {id(parameter) for parameter in policy.memory.parameters()} if scale != 1 else set()
    parts = [
        {"params": [p for p in groups["other"] if id(p) not in memory], "lr_scale": 1.0},
        {"params": groups["dynamics"], "lr_scale": scale * config.dynamics_lr_scale},
        {"params": [p for p in groups["other"] if id(p) in memory], "lr_scale": scale},
    ]
    parts += [] if auxiliary is None else [{"params": list(auxiliary.head.parameters()), "lr_scale": 1.0}]
    kept = [part for part in parts if part["params"]]
    return FlatAdam(kept, config.learning_rate, (0.9, config.adam_beta2), 1e-5)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: PPOConfig, progress: float, factor: float) -> float:
    """Set every group's rate for `progress` in [0, 1] of the training, times `factor`; returns the main one."""
    rate = factor * (config.learning_rate + (config.final_learning_rate - config.learning_rate) * progress)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    return rate


def next_lr_factor(factor: float, kl: float, ceiling: float | None) -> float:
    """The factor on the step size for the next update: down where the mean KL was too large, back up to 1 where not.

    The idea is Schulman et al. 2017's adaptive penalty (section 4), applied to the step size; the constants are ours.
    """
    if ceiling is None:
        return 1.0
    if kl > 1.2 * ceiling:
        return max(factor / 1.2, 1e-3)
    return min(factor * 1.2, 1.0) if kl < ceiling / 1.2 else factor


def ppo_update(
    policy: RecurrentPolicy,
    optimizer: FlatAdam,
    batch: PPOBatch,
    config: PPOConfig,
    generator: torch.Generator,
    auxiliary: Auxiliary | None = None,
) -> dict[str, float]:
    """Several passes of clipped gradient steps over the batch; changes the policy in place.

    Advantages are standardized over the whole batch: a minibatch holds few sequences, and their mean is noise.
    Raises DivergedError when a loss is not finite.
    """
    n = batch.advantages.shape[0]
    advantages = standardize(batch.advantages)
    size = -(-n // min(config.minibatches, n))
    optimizer.attach()
    if FusedLoss.allowed(policy, optimizer, batch.hints):
        whole = (batch.inputs, batch.actions, batch.old_log_prob, advantages, batch.returns)
        helped = None if auxiliary is None or batch.aux is None else (auxiliary, batch.aux)
        gradient = FusedLoss(policy, optimizer, *whole, auxiliary=helped)
    else:
        gradient = PlainLoss(policy, optimizer, batch, advantages, auxiliary)
    sums = np.zeros(6)
    steps, passes, kl = 0, 0, 0.0
    for _ in range(config.epochs):
        kl_before, steps_before = sums[KL], steps
        for rows in torch.randperm(n, generator=generator).split(size):
            loss, norm = gradient(rows, config.clip, config.value_coef, config.entropy_coef, sums)
            if not math.isfinite(loss) or not math.isfinite(norm):
                raise DivergedError(f"PPO's loss is {loss} with a gradient of norm {norm}")
            optimizer.advance(min(1.0, config.max_grad_norm / (norm + 1e-6)))
            steps += 1
        passes += 1
        kl = float(sums[KL] - kl_before) / (steps - steps_before)
        if config.target_kl is not None and kl > 1.5 * config.target_kl:
            break
    optimizer.announce()
    if not np.isfinite(optimizer.weights).all():
        raise DivergedError("a parameter is not finite after PPO's last step")
    means = (sums / steps).tolist()
    return {
        "train/policy_loss": means[POLICY_LOSS],
        "train/value_loss": means[VALUE_LOSS],
        "train/entropy": means[ENTROPY],
        "train/approx_kl": means[KL],
        "train/last_pass_kl": kl,
        "train/clip_fraction": means[CLIPPED],
        "train/grad_norm": means[NORM],
        "train/passes": float(passes),
        **({} if auxiliary is None else {"train/aux_loss": auxiliary.mean_loss()}),
    }


def ppo_loss(
    policy: RecurrentPolicy,
    batch: PPOBatch,
    advantages: Tensor,
    clip: float,
    value_coef: float,
    entropy_coef: float,
    auxiliary: Auxiliary | None = None,
) -> tuple[Tensor, Tensor]:
    """PPO's loss of whole sequences in plain operations: what `meta_rl.fused_ppo` computes compiled.

    auxiliary: a head that reads the memory, whose loss is added. Also the measures (5,): surrogate, critic's loss, entropy, KL, share of samples outside the clip.
    """
    hints = batch.hints
    if hints is not None:
        hints = hints.unsqueeze(1).expand(-1, advantages.shape[1], -1)
    features, hidden = policy.features(batch.inputs)
    mean, value = policy.judge(features, hints)
    out = PolicyOutput(mean, policy.log_std, value, hidden)
    surrogate, log_ratio = clipped_policy_loss(log_prob(out, batch.actions), batch.old_log_prob, advantages, clip)
    critic = value_loss(out.value, batch.returns)
    spread = entropy(out).mean()
    loss = surrogate + value_coef * critic - entropy_coef * spread
    if auxiliary is not None and batch.aux is not None:
        loss = loss + auxiliary.loss(features[..., : auxiliary.width], batch.aux)
    with torch.no_grad():
        return loss, torch.stack([surrogate, critic, spread, approx_kl(log_ratio), clip_fraction(log_ratio, clip)])


class PlainLoss:
    """Gradients of PPO's loss by autograd, for any policy, as `FusedLoss` gives them."""

    def __init__(
        self,
        policy: RecurrentPolicy,
        optimizer: FlatAdam,
        batch: PPOBatch,
        advantages: Tensor,
        auxiliary: Auxiliary | None = None,
    ) -> None:
        self.policy, self.optimizer, self.batch, self.advantages = policy, optimizer, batch, advantages
        self.auxiliary = auxiliary

    def __call__(
        self, rows: Tensor, clip: float, value_coef: float, entropy_coef: float, measured: np.ndarray
    ) -> tuple[float, float]:
        """Gradients for the sequences `rows` (M,): the loss and the gradient's norm; adds means to measured (6,)."""
        batch = self.batch
        chosen = PPOBatch(
            inputs=PolicyInput(*(part[rows] for part in batch.inputs)),
            actions=batch.actions[rows],
            old_log_prob=batch.old_log_prob[rows],
            advantages=batch.advantages[rows],
            returns=batch.returns[rows],
            hints=None if batch.hints is None else batch.hints[rows],
            aux=None if batch.aux is None else batch.aux.of(rows),
        )
        loss, now = ppo_loss(self.policy, chosen, self.advantages[rows], clip, value_coef, entropy_coef, self.auxiliary)
        self.optimizer.zero_grad()
        loss.backward()
        norm = self.optimizer.gradient_norm()
        measured += np.array([*now.tolist(), norm])
        return loss.item(), norm
