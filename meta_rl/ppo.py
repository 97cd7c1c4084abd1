"""Proximal policy optimisation over whole sequences: settings, optimiser and the update, shared by what trains with it.

Whole trials go through the model from their first step, so that no stored memory state is stale and nothing is padded;
a minibatch is a set of worlds. Source: Schulman et al. 2017 (arXiv 1707.06347); recurrent form as in Ni et al. 2022
(arXiv 2110.05038), section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from core.config import search
from core.policy import PolicyInput, RecurrentPolicy, entropy, log_prob
from meta_rl.learner import DivergedError, LearnerConfig
from meta_rl.losses import approx_kl, clip_fraction, clipped_policy_loss, standardize, value_loss


class PPOConfig(LearnerConfig):
    """Settings of the clipped update. The defaults are what worked best on halfcheetah-vel (see `experiments/presets`)."""

    learning_rate: float = Field(default=5e-4, gt=0, le=1, json_schema_extra=search(low=2e-4, high=3e-3, log=True))
    """Adam's step size at the start of training."""
    final_learning_rate: float = Field(default=0.0, ge=0, le=1)
    """Adam's step size at the end; the change is linear in env steps."""
    dynamics_lr_scale: float = Field(default=1.0, ge=0, le=10)
    """Factor on the step size of state space transition parameters (A, step sizes, ring radii and phases)."""
    adam_beta2: float = Field(default=0.999, gt=0, lt=1)
    """Adam's decay of squared gradients; 0.95 follows a changing objective faster."""
    epochs: int = Field(default=8, ge=1, le=100)
    """Passes over the batch an update."""
    minibatches: int = Field(default=16, ge=1, json_schema_extra=search(choices=(8, 16, 32)))
    """Parts of the worlds a pass; each is one optimiser step."""
    clip: float = Field(default=0.2, gt=0, lt=1)
    """Epsilon of the clipped objective."""
    entropy_coef: float = Field(default=1e-3, ge=0, json_schema_extra=search(choices=(0.0, 1e-3, 3e-3)))
    """Weight of the entropy bonus."""
    value_coef: float = Field(default=0.5, ge=0)
    """Weight of the critic's loss."""
    max_grad_norm: float = Field(default=0.5, gt=0)
    """Norm above which a gradient is scaled down."""
    gamma: float = Field(default=0.97, ge=0, le=1, json_schema_extra=search(choices=(0.95, 0.97, 0.98, 0.99)))
    """Discount a step. A short horizon learns fastest in locomotion."""
    gae_lambda: float = Field(default=0.9, ge=0, le=1, json_schema_extra=search(choices=(0.9, 0.95)))
    """Lambda of generalized advantage estimation."""
    target_kl: float | None = Field(default=None, gt=0)
    """Stop an update's remaining passes when a pass ends with a mean KL above 1.5 times this. None: never."""
    kl_ceiling: float | None = Field(default=None, gt=0)
    """Lower the step size while an update's mean KL is above this; below it, let it rise back. None: never."""


@dataclass(frozen=True)
class PPOBatch:
    """N whole sequences of T steps; `hints` (N, P) are task parameters for a privileged critic, or None."""

    inputs: PolicyInput
    actions: Tensor
    old_log_prob: Float[Tensor, "N T"]
    advantages: Float[Tensor, "N T"]
    returns: Float[Tensor, "N T"]
    hints: Tensor | None


def make_optimizer(policy: RecurrentPolicy, config: PPOConfig) -> torch.optim.Adam:
    """Adam with the dynamics parameters in a group of their own. Each group remembers its factor as `lr_scale`."""
    groups = policy.parameter_groups()
    parts = [
        {"params": groups["other"], "lr_scale": 1.0},
        {"params": groups["dynamics"], "lr_scale": config.dynamics_lr_scale},
    ]
    return torch.optim.Adam(
        [part for part in parts if part["params"]],
        lr=config.learning_rate,
        betas=(0.9, config.adam_beta2),
        eps=1e-5,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Adam, config: PPOConfig, progress: float, factor: float) -> float:
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
    optimizer: torch.optim.Optimizer,
    batch: PPOBatch,
    config: PPOConfig,
    generator: torch.Generator,
) -> dict[str, float]:
    """Several passes of clipped gradient steps over the batch; changes the policy in place.

    Advantages are standardized over the whole batch: a minibatch holds few sequences, and their mean is noise.
    Raises DivergedError when a loss is not finite.
    """
    n = batch.advantages.shape[0]
    advantages = standardize(batch.advantages)
    parameters = list(policy.parameters())
    size = -(-n // min(config.minibatches, n))
    sums = torch.zeros(6)
    steps, passes, kl = 0, 0, 0.0
    for _ in range(config.epochs):
        pass_kl, pass_steps = torch.zeros(()), 0
        for rows in torch.randperm(n, generator=generator).split(size):
            inputs = PolicyInput(*(part[rows] for part in batch.inputs))
            steps_seen = inputs.obs.shape[1]
            hints = None if batch.hints is None else batch.hints[rows].unsqueeze(1).expand(-1, steps_seen, -1)
            out = policy(inputs, privileged=hints)
            surrogate, log_ratio = clipped_policy_loss(
                log_prob(out, batch.actions[rows]), batch.old_log_prob[rows], advantages[rows], config.clip
            )
            critic = value_loss(out.value, batch.returns[rows])
            spread = entropy(out).mean()
            loss = surrogate + config.value_coef * critic - config.entropy_coef * spread
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            if not math.isfinite(loss.item()) or not math.isfinite(norm.item()):
                raise DivergedError(f"PPO's loss is {loss.item()} with a gradient of norm {norm.item()}")
            optimizer.step()
            with torch.no_grad():
                kl_now = approx_kl(log_ratio)
                measured = (surrogate, critic, spread, kl_now, clip_fraction(log_ratio, config.clip), norm)
                sums += torch.stack([m.detach() for m in measured])
                pass_kl += kl_now
            steps += 1
            pass_steps += 1
        passes += 1
        kl = float(pass_kl) / pass_steps
        if config.target_kl is not None and kl > 1.5 * config.target_kl:
            break
    if not all(bool(torch.isfinite(p).all()) for p in parameters):
        raise DivergedError("a parameter is not finite after PPO's last step")
    policy_loss, critic_loss, entropy_mean, kl_mean, clipped, norm = (sums / steps).tolist()
    return {
        "train/policy_loss": policy_loss,
        "train/value_loss": critic_loss,
        "train/entropy": entropy_mean,
        "train/approx_kl": kl_mean,
        "train/last_pass_kl": kl,
        "train/clip_fraction": clipped,
        "train/grad_norm": norm,
        "train/passes": float(passes),
    }
