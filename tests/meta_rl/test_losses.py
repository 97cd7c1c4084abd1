"""The pure functions of policy gradients against plain loops and closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from meta_rl.losses import (
    approx_kl,
    clip_fraction,
    clipped_policy_loss,
    explained_variance,
    generalized_advantages,
    standardize,
    value_loss,
)


def plain_gae(rewards, values, terminated, gamma, lam):
    batch, time = rewards.shape
    out = torch.zeros(batch, time)
    for b in range(batch):
        running = 0.0
        for t in reversed(range(time)):
            follows = 1.0 - float(terminated[b, t])
            delta = float(rewards[b, t]) + gamma * follows * float(values[b, t + 1]) - float(values[b, t])
            running = delta + gamma * lam * follows * running
            out[b, t] = running
    return out


def test_advantages_equal_a_plain_loop_with_random_endings():
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(5, 23, generator=generator)
    values = torch.randn(5, 24, generator=generator)
    terminated = (torch.rand(5, 23, generator=generator) < 0.2).float()
    ours = generalized_advantages(rewards, values, terminated, gamma=0.93, lam=0.8)
    torch.testing.assert_close(ours, plain_gae(rewards, values, terminated, 0.93, 0.8), atol=1e-5, rtol=1e-5)


def test_with_lambda_one_the_advantage_is_the_discounted_return_minus_the_value():
    rewards, values = torch.ones(1, 3), torch.tensor([[2.0, 0.0, 0.0, 10.0]])
    ours = generalized_advantages(rewards, values, torch.zeros(1, 3), gamma=0.5, lam=1.0)
    assert ours[0, 0].item() == pytest.approx(1 + 0.5 + 0.25 + 0.125 * 10 - 2)


def test_a_time_limit_bootstraps_and_a_termination_does_not():
    rewards, values = torch.zeros(1, 1), torch.tensor([[0.0, 7.0]])
    assert generalized_advantages(rewards, values, torch.zeros(1, 1), gamma=0.9, lam=1.0).item() == pytest.approx(6.3)
    assert generalized_advantages(rewards, values, torch.ones(1, 1), gamma=0.9, lam=1.0).item() == 0.0


def test_the_gradient_of_the_clipped_loss_raises_good_actions_and_lowers_bad_ones():
    log_prob = torch.zeros(2, requires_grad=True)
    loss, _ = clipped_policy_loss(log_prob, torch.zeros(2), torch.tensor([1.0, -1.0]), 0.2)
    loss.backward()
    assert log_prob.grad is not None
    assert log_prob.grad[0] < 0 < log_prob.grad[1]


def test_the_gradient_is_zero_where_the_ratio_has_left_the_clip_range_in_the_rewarded_direction():
    log_prob = torch.tensor([0.5, -0.5], requires_grad=True)
    loss, log_ratio = clipped_policy_loss(log_prob, torch.zeros(2), torch.tensor([1.0, -1.0]), 0.2)
    loss.backward()
    assert log_prob.grad is not None
    assert log_prob.grad.tolist() == [0.0, 0.0]
    assert clip_fraction(log_ratio.detach(), 0.2).item() == 1.0


def test_the_kl_estimate_is_zero_for_equal_policies_and_near_the_truth_for_two_gaussians():
    assert approx_kl(torch.zeros(4)).item() == 0.0
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    log_ratio = -0.5 * (x - 0.3) ** 2 + 0.5 * x**2  # new N(0.3, 1) against old N(0, 1): KL = 0.045
    assert approx_kl(log_ratio).item() == pytest.approx(0.045, rel=0.05)


def test_value_loss_explained_variance_and_standardize_have_their_closed_forms():
    values, returns = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0])
    assert value_loss(values, returns).item() == 0.5
    spread = torch.tensor([1.0, 2.0, 4.0])
    assert explained_variance(spread, spread).item() == 1.0
    assert explained_variance(torch.zeros(3), spread).item() == pytest.approx(0.0)
    z = standardize(spread)
    assert z.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert math.isclose(z.std().item(), 1.0, rel_tol=1e-5)
