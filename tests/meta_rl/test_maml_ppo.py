"""MAML for control: it learns to adapt by gradient, repeats bit for bit and resumes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from core.errors import InputError
from core.policy import PolicyConfig
from meta_rl.learner import DivergedError, Learner, build_learner
from meta_rl.maml_ppo import MAMLPPO, MAMLPPOConfig, TaskBatch, linear_baseline

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


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"first_order": True},
        {"correction": "e-maml", "inner_steps": 2},
        {"inner_rates": "meta-sgd"},
        {"inner_rates": "maml++", "inner_steps": 2},
    ],
)
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
    assert all(torch.equal(rate, resumed.rates[name]) for name, rate in whole.rates.items())
    tasks = whole.family.eval_tasks("search")[:2]
    first, again = (learner.evaluate(tasks, episodes=4, seed=0).returns for learner in (whole, resumed))
    assert (first == again).all()


def two_batches(config: MAMLPPOConfig) -> tuple[MAMLPPO, list[TaskBatch]]:
    """A learner in double precision, and the data of three stages on one task."""
    learner = make(config=config.model_copy(update={"tasks_per_update": 1, "episodes_per_task": 2}))
    learner.policy.double()
    learner.rates = {name: rate.detach().double().requires_grad_() for name, rate in learner.rates.items()}
    worlds = learner.family.make(2)
    task = learner.family.eval_tasks("search")[0]

    def double(batch: TaskBatch) -> TaskBatch:
        inputs = type(batch.inputs)(*(part.double() for part in batch.inputs))
        parts = (batch.actions.double(), batch.old_log_prob.double(), batch.advantages.double())
        return TaskBatch(inputs, *parts, batch.mean_return)

    theta = dict(learner.policy.named_parameters())
    return learner, [double(learner._batch(learner._live(theta, worlds, task, stage))) for stage in range(3)]


def differences(objective: Callable[[], torch.Tensor], leaf: torch.Tensor) -> torch.Tensor:
    """The gradient by central differences."""
    numeric, flat = torch.zeros_like(leaf).flatten(), leaf.detach().view(-1)
    for i in range(len(numeric)):
        values = []
        for sign in (1.0, -1.0):
            flat[i] += sign * 1e-6
            values.append(float(objective().detach()))
            flat[i] -= sign * 1e-6
        numeric[i] = (values[0] - values[1]) / 2e-6
    return numeric.view_as(leaf)


@pytest.mark.parametrize("kind", ["fixed", "meta-sgd", "maml++"])
def test_the_outer_gradient_through_two_inner_steps_equals_finite_differences(kind: str):
    learner, (first, second, post) = two_batches(FAST.model_copy(update={"inner_rates": kind, "inner_steps": 2}))
    theta: dict[str, torch.Tensor] = dict(learner.policy.named_parameters())

    def objective() -> torch.Tensor:
        params = theta
        for step, batch in enumerate((first, second)):
            params = learner.inner_loop_adapt(params, batch, step, create_graph=True)
        return learner._surrogate(params, post, None)[0]

    leaves = {
        "log_std": theta["log_std"],
        **{n: r for n, r in learner.rates.items() if n in ("rate.log_std", "rate.actor.bias")},
    }
    assert len(leaves) == (1 if kind == "fixed" else 3)
    for leaf, analytic in zip(leaves.values(), torch.autograd.grad(objective(), list(leaves.values())), strict=True):
        torch.testing.assert_close(analytic, differences(objective, leaf), atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("kind", ["meta-sgd", "maml++"])
def test_an_inner_step_with_learned_rates_is_the_papers_and_equal_rates_are_the_fixed_one(kind: str):
    config = FAST.model_copy(update={"inner_rates": kind, "inner_steps": 2})
    learner, (first, *_) = two_batches(config)
    fixed, _ = two_batches(FAST)
    theta: dict[str, torch.Tensor] = dict(learner.policy.named_parameters())
    usual = fixed.inner_loop_adapt(dict(fixed.policy.named_parameters()), first)
    for step in (0, 1, 5):
        own = learner.inner_loop_adapt(theta, first, step)
        assert all(torch.equal(own[name], usual[name]) for name in usual)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for rate in learner.rates.values():
            rate.copy_(torch.rand(rate.shape, generator=rng))
    slopes = torch.autograd.grad(learner._surrogate(theta, first, None)[0], list(theta.values()), allow_unused=True)
    for step in (0, 1, 5):  # past the trained steps the last one's rates go on
        own = learner.inner_loop_adapt(theta, first, step)
        for (name, before), slope in zip(theta.items(), slopes, strict=True):
            rate = learner.rates[f"rate.{name}"]
            rate = rate[min(step, 1)] if kind == "maml++" else rate
            torch.testing.assert_close(own[name], before if slope is None else before - rate * slope)


def test_rates_are_learned_with_the_weights_and_fixed_ones_leave_no_trace_in_a_checkpoint():
    for kind in ("fixed", "meta-sgd", "maml++"):
        config = FAST.model_copy(update={"tasks_per_update": 2, "episodes_per_task": 2, "inner_rates": kind})
        learner = make(updates=2, config=config)
        list(learner.train())
        for name, rate in learner.rates.items():  # the inner loss has no critic
            assert bool((rate != config.inner_lr).any()) == (not name.startswith("rate.critic"))
        assert bool(learner.rates) == (kind != "fixed")
        assert ("inner_rates" in config.model_dump()) == (kind != "fixed")
        names = [name for name in learner._state()[0] if name.startswith("rate.")]
        assert len(names) == len(learner.rates)


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
