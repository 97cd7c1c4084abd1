"""MAML for control: it learns to adapt by gradient, repeats bit for bit and resumes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.errors import InputError
from core.policy import PolicyConfig
from meta_rl.learner import DivergedError, Learner, build_learner
from meta_rl.maml_ppo import MAMLPPO, MAMLPPOConfig, linear_baseline

SMALL = PolicyConfig.model_validate(
    {"model": {"kind": "lru", "hidden_dim": 8, "state_dim": 8, "num_layers": 1}, "encoder_dim": 8, "head_dim": 8}
)
FAST = MAMLPPOConfig(tasks_per_update=5, episodes_per_task=6, epochs=3, learning_rate=5e-3, inner_lr=0.5, gamma=0.9)


def make(updates: int = 3, config: MAMLPPOConfig = FAST, seed: int = 0) -> MAMLPPO:
    steps = config.tasks_per_update * config.episodes_per_task * 20 * (config.inner_steps + 1)
    learner = build_learner("point-robot", SMALL, config, env_steps=updates * steps, seed=seed)
    assert isinstance(learner, MAMLPPO)
    return learner


def weights(learner: MAMLPPO) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learner.policy.parameters()])


def test_training_makes_one_inner_step_worth_more():
    learner = make(updates=6)
    reports = list(learner.train())
    after_adapting = [r.metrics["rollout/ep_rew_last"] for r in reports]
    assert np.mean(after_adapting[3:]) > np.mean(after_adapting[:3])
    returns = learner.evaluate(learner.family.eval_tasks("search")[::5], episodes=2, seed=0).returns
    assert returns.shape == (4, 2)
    assert returns[:, 1].mean() > returns[:, 0].mean() + 2.0  # one gradient step helps


@pytest.mark.parametrize("change", [{}, {"first_order": True}, {"correction": "e-maml", "inner_steps": 2}])
def test_the_same_seed_is_bit_equal_and_resuming_equals_going_on(tmp_path, change: dict):
    config = FAST.model_copy(update={"tasks_per_update": 2, "episodes_per_task": 2, **change})
    whole, part = make(config=config), make(config=config)
    reports = list(whole.train())
    training = part.train()
    assert next(training).metrics["train/policy_loss"] == reports[0].metrics["train/policy_loss"]
    training.close()
    part.save(tmp_path / "part")
    resumed = Learner.load(tmp_path / "part")
    assert isinstance(resumed, MAMLPPO)
    list(resumed.train())
    assert torch.equal(weights(whole), weights(resumed))


def test_the_outer_gradient_through_one_inner_step_equals_finite_differences():
    learner = make(config=FAST.model_copy(update={"tasks_per_update": 1, "episodes_per_task": 2}))
    learner.policy.double()
    worlds = learner.family.make(2)
    task = learner.family.eval_tasks("search")[0]
    pre = learner._batch(learner._live(dict(learner.policy.named_parameters()), worlds, task, 0))
    post = learner._batch(learner._live(dict(learner.policy.named_parameters()), worlds, task, 1))

    def double(batch):
        inputs = type(batch.inputs)(*(part.double() for part in batch.inputs))
        parts = (batch.actions.double(), batch.old_log_prob.double(), batch.advantages.double())
        return type(batch)(inputs, *parts, batch.mean_return)

    pre, post = double(pre), double(post)
    theta: dict[str, torch.Tensor] = dict(learner.policy.named_parameters())

    def objective() -> torch.Tensor:
        return learner._surrogate(learner.inner_loop_adapt(theta, pre, create_graph=True), post, None)[0]

    leaf = theta["log_std"]
    analytic = torch.autograd.grad(objective(), leaf)[0]
    numeric = torch.zeros_like(leaf)
    for i in range(len(leaf)):
        values = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                leaf[i] += sign * 1e-6
            values.append(float(objective().detach()))
            with torch.no_grad():
                leaf[i] -= sign * 1e-6
        numeric[i] = (values[0] - values[1]) / 2e-6
    torch.testing.assert_close(analytic, numeric, atol=1e-7, rtol=1e-4)


def test_the_linear_baseline_predicts_returns_that_are_linear_in_its_features():
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(40, 5, 2))
    rewards = np.zeros((40, 5))
    rewards[:, -1] = 1.0  # the return depends on time alone
    values = linear_baseline(obs, rewards, np.zeros((40, 5), dtype=bool), gamma=1.0)
    np.testing.assert_allclose(values, 1.0, atol=1e-2)
    assert values.shape == (40, 6)


def test_a_diverging_update_raises_and_leaves_the_last_good_state():
    learner = make()
    training = learner.train()
    next(training)
    good = weights(learner)

    def poison(optimizer, args, kwargs):
        with torch.no_grad():
            learner.policy.actor.weight.fill_(float("nan"))

    handle = learner.optimizer.register_step_post_hook(poison)
    with pytest.raises(DivergedError):
        next(training)
    handle.remove()
    assert torch.equal(good, weights(learner))


def test_a_budget_below_one_meta_update_is_refused():
    with pytest.raises(InputError, match="1200"):
        build_learner("point-robot", SMALL, FAST, env_steps=1000, seed=0)
