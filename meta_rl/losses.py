"""Pure functions of policy-gradient learning: advantages, the clipped objective, and what is measured about them.

Letters: B worlds (each with one whole sequence), T time steps. Nothing here knows of models or environments.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def generalized_advantages(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T1"],
    terminated: Float[Tensor, "B T"],
    *,
    gamma: float,
    lam: float,
) -> Float[Tensor, "B T"]:
    """Generalized advantage estimates.

    delta_t = r_t + gamma (1 - terminated_t) V_{t+1} - V_t
    A_t     = delta_t + gamma lam (1 - terminated_t) A_{t+1}

    values has one column more than rewards: the last is the value of the state after the last step, so a sequence that
    is cut by a time limit bootstraps from it. `terminated` is 1 where nothing follows; an episode border inside a trial
    that is *not* marked lets advantages flow into the next episode, which is RL2's objective.
    Source: Schulman et al. 2016 (arXiv 1506.02438), equations 11 and 16.
    """
    follows = 1.0 - terminated
    deltas = rewards + gamma * follows * values[:, 1:] - values[:, :-1]
    decay = gamma * lam * follows
    # Time first and unbound once: 2T small operations on B numbers, with no indexing in the loop.
    running = torch.zeros_like(rewards[:, 0])
    backwards = []
    for delta, factor in zip(reversed(deltas.t().unbind()), reversed(decay.t().unbind()), strict=True):
        running = torch.addcmul(delta, factor, running)
        backwards.append(running)
    return torch.stack(backwards[::-1], dim=1)


def clipped_policy_loss(
    log_prob: Float[Tensor, "*S"],
    old_log_prob: Float[Tensor, "*S"],
    advantages: Float[Tensor, "*S"],
    clip: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, "*S"]]:
    """PPO's clipped surrogate, negated so that it is minimised, and the log ratio for the measures below.

    L = -mean(min(rho A, clip(rho, 1 - eps, 1 + eps) A)) with rho = exp(log_prob - old_log_prob).
    Source: Schulman et al. 2017 (arXiv 1707.06347), equation 7.
    """
    log_ratio = log_prob - old_log_prob
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip, 1.0 + clip)
    return -torch.minimum(ratio * advantages, clipped * advantages).mean(), log_ratio


def value_loss(values: Float[Tensor, "*S"], returns: Float[Tensor, "*S"]) -> Float[Tensor, ""]:
    """Half the mean squared error. Unclipped: clipping the value did not help in Andrychowicz et al. 2021, section 3.4."""
    return 0.5 * (values - returns).square().mean()


def approx_kl(log_ratio: Float[Tensor, "*S"]) -> Float[Tensor, ""]:
    """KL(old || new) from samples of the old policy: mean(rho - 1 - log rho), never negative and of low variance.

    Source: Schulman, "Approximating KL Divergence" (2020), the k3 estimator.
    """
    return (log_ratio.exp() - 1.0 - log_ratio).mean()


def clip_fraction(log_ratio: Float[Tensor, "*S"], clip: float) -> Float[Tensor, ""]:
    """The share of samples whose ratio lies outside [1 - clip, 1 + clip]."""
    return ((log_ratio.exp() - 1.0).abs() > clip).float().mean()


def explained_variance(values: Float[Tensor, "*S"], returns: Float[Tensor, "*S"]) -> Float[Tensor, ""]:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 no better than a constant."""
    return 1.0 - (returns - values).var() / returns.var().clamp_min(1e-12)


def standardize(x: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """Zero mean and unit standard deviation over all elements; the 1e-8 keeps a constant finite."""
    return (x - x.mean()) / (x.std() + 1e-8)
