"""A policy that goes on learning in evaluation: each world by itself, from what it lived, and back to what was trained."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from adaptation.policy_adaptation import PolicyAdaptation
from core.errors import InputError
from core.policy import PolicyConfig, PolicyInput, RecurrentPolicy, log_prob
from core.sequence_model import MODELS
from env_runner.task_distributions import get_family
from env_runner.task_family import EnvOptions
from meta_rl.adapting import NOISE, Objective, PolicyAdapter, Window, moving_names
from meta_rl.evaluate import evaluate, evaluate_in_context
from meta_rl.learner import Learner, build_learner, parse_learner_config
from meta_rl.losses import clipped_policy_loss, value_loss

SWITCH = EnvOptions(switch_step=10)
MOVING = ("head", "norm", "low-rank", "all")


def trained(family: str = "point-robot", kind: str = "lru", iterations: int = 2, seed: int = 0, **model) -> Learner:
    memory = {"kind": kind, "hidden_dim": 16, "num_layers": 1, **model}
    policy = PolicyConfig.model_validate({"model": memory, "encoder_dim": 16, "head_dim": 16})
    config = parse_learner_config({"kind": "rl2", "num_worlds": 16, "epochs": 2, "minibatches": 4, "gamma": 0.9})
    steps = iterations * config.iteration_steps(get_family(family).horizon)
    learner = build_learner(family, policy, config, env_steps=steps, seed=seed)
    for _ in learner.train():
        pass
    return learner


def adapting(adapts: str, **fields) -> PolicyAdaptation:
    return PolicyAdaptation.model_validate(
        {"adapts": adapts, "every": 5, "window": 10, "learning_rate": 0.1, "exploration": 0.0, **fields}
    )


def lived(learner: Learner, adaptation: PolicyAdaptation | None, episodes: int = 2, **how) -> np.ndarray:
    tasks = how.pop("tasks", learner.family.eval_tasks("search"))
    return evaluate(learner, tasks, episodes=episodes, seed=3, changes=SWITCH, adaptation=adaptation, **how).returns


def objective_of(learner: Learner, reward_scale: float = 1.0) -> Objective:
    own = {name: getattr(learner.config, name) for name in ("clip", "value_coef", "gamma", "gae_lambda")}
    return Objective(**own, crosses_endings=False, reward_scale=reward_scale)


@pytest.mark.parametrize(("adapts", "family"), [*((adapts, "point-robot") for adapts in MOVING), ("head", "bandit")])
def test_what_moves_nothing_equals_no_adaptation_bit_for_bit(adapts: str, family: str):
    learner = trained(family, norm="layer")
    for how in ({}, {"deterministic": False}):
        plain = lived(learner, None, **how)
        assert (lived(learner, adapting(adapts, learning_rate=0.0), **how) == plain).all()
        assert (lived(learner, adapting(adapts, every=10_000), **how) == plain).all()


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_every_memory_adapts_with_any_part_and_is_as_it_was_afterwards(kind: str):
    learner = trained(kind=kind)
    weights = {name: p.detach().clone() for name, p in learner.policy.named_parameters()}
    plain = lived(learner, None)
    for adapts in ("head", "low-rank", "all"):
        first, again = (lived(learner, adapting(adapts)) for _ in range(2))
        assert (first == again).all()
        assert (first != plain).any()
    assert all(torch.equal(weights[name], p) for name, p in learner.policy.named_parameters())
    assert (lived(learner, None) == plain).all()


def test_nothing_is_learned_before_there_is_anything_to_learn_from():
    learner = trained()
    plain, changed = lived(learner, None, episodes=1), lived(learner, adapting("head", every=20), episodes=2)
    assert (changed[:, 0] == plain[:, 0]).all()
    assert (changed[:, 1] != lived(learner, None)[:, 1]).any()


def test_a_world_learns_from_nothing_but_what_it_lived_itself():
    learner = trained()
    tasks = learner.family.eval_tasks("search")
    others = tasks.copy()
    others[1:] = tasks[:0:-1]
    for adapts in ("head", "all"):
        one, two = (lived(learner, adapting(adapts), tasks=t) for t in (tasks, others))
        assert (one[0] == two[0]).all()
        assert (one[1:] != two[1:]).any()


# One world by a plain loop ---------------------------------------------------------------------------------------------
WORLDS, STEPS = 3, 7


def a_window(learner: Learner, adapter: PolicyAdapter) -> tuple[Window, PolicyInput]:
    """What three worlds might have lived, advantages and all, and what they read."""
    rng = torch.Generator().manual_seed(1)
    policy: RecurrentPolicy = learner.policy
    size, dim = policy.action.size, policy.obs_dim
    inputs = PolicyInput(
        torch.randn(WORLDS, STEPS, dim, generator=rng),
        torch.randn(WORLDS, STEPS, size, generator=rng),
        torch.randn(WORLDS, STEPS, generator=rng),
        torch.zeros(WORLDS, STEPS),
    )
    hidden = 0.1 * torch.randn(WORLDS, policy.hidden_size, generator=rng)
    with torch.no_grad():
        out = policy(inputs, hidden)
        features = policy.features(inputs, hidden)[0]
        if policy.action.kind == "categorical":
            actions = torch.randint(size, (WORLDS, STEPS), generator=rng)
        else:
            actions = out.mean_or_logits + 0.3 * torch.randn(WORLDS, STEPS, size, generator=rng)
        old = log_prob(out, actions)
    advantages, returns = (torch.randn(WORLDS, STEPS, generator=rng) for _ in range(2))
    return Window(features if adapter.only_heads else inputs, hidden, actions, old, advantages, returns), inputs


def alone(learner: Learner, config: PolicyAdaptation, window: Window, inputs: PolicyInput, row: int) -> RecurrentPolicy:
    """The policy after one world's steps, by autograd on the module itself and torch's optimiser."""
    policy = copy.deepcopy(learner.policy)
    trained_ = {name: p.detach().clone() for name, p in policy.named_parameters()}
    names = moving_names(policy, config)
    generator = torch.Generator().manual_seed(0)
    factors = {}
    if config.adapts == "low-rank":
        for name in names:
            rows, columns = trained_[name].shape
            rank = min(config.rank, rows, columns)
            b = torch.randn(columns, rank, generator=generator) / math.sqrt(columns)
            factors[name] = (torch.zeros(rows, rank, requires_grad=True), b.requires_grad_())
        moving = [factor for pair in factors.values() for factor in pair]
    else:
        moving = [p for name, p in policy.named_parameters() if name in names]
    optimizer = torch.optim.SGD(moving, lr=config.learning_rate)
    one = PolicyInput(*(part[row : row + 1] for part in inputs))
    for _ in range(config.steps):
        weights = {name: trained_[name] + a @ b.T for name, (a, b) in factors.items()}
        out = torch.func.functional_call(policy, weights, (one, window.hidden[row : row + 1]))
        loss, _ = clipped_policy_loss(
            log_prob(out, window.actions[row : row + 1]), window.old_log_prob[row : row + 1],
            window.advantages[row : row + 1], learner.config.clip,
        )  # fmt: skip
        loss = loss + learner.config.value_coef * value_loss(out.value, window.returns[row : row + 1])
        optimizer.zero_grad()
        loss.backward(inputs=moving)
        torch.nn.utils.clip_grad_norm_(moving, config.max_grad_norm)
        optimizer.step()
    with torch.no_grad():
        for name, (a, b) in factors.items():
            dict(policy.named_parameters())[name].copy_(trained_[name] + a @ b.T)
    return policy


@pytest.mark.parametrize("family", ["point-robot", "bandit"])
@pytest.mark.parametrize("kind", ["lru", "lstm", "transformer"])
@pytest.mark.parametrize("adapts", ["head", "low-rank", "all"])
def test_one_world_adapted_alone_by_a_plain_loop_equals_its_row_of_the_batch(adapts: str, kind: str, family: str):
    learner = trained(family, kind)
    config = adapting(adapts, steps=3, guard=False, max_grad_norm=0.2)
    objective = objective_of(learner)
    adapter = PolicyAdapter(learner.policy, config, WORLDS, objective, noise=1.0)
    window, inputs = a_window(learner, adapter)
    with torch.no_grad():
        adapter.learn(window)
    assert adapter.moved.all()
    for row in range(WORLDS):
        expected = dict(alone(learner, config, window, inputs, row).named_parameters())
        own = adapter._whole({name: weight[row] for name, weight in adapter.weights.items()})
        for name, weight in own.items():
            torch.testing.assert_close(weight, expected[name].detach(), atol=1e-6, rtol=1e-4)
        assert torch.equal(expected[NOISE], learner.policy.log_std) if NOISE in expected else True


def test_the_guard_undoes_the_steps_of_those_worlds_alone_that_they_made_worse():
    learner = trained()
    objective = objective_of(learner)
    config = adapting("head", learning_rate=1.0, max_grad_norm=1e9, steps=20)
    guarded = PolicyAdapter(learner.policy, config, WORLDS, objective, noise=1.0)
    free = PolicyAdapter(learner.policy, config.model_copy(update={"guard": False}), WORLDS, objective, noise=1.0)
    window, _ = a_window(learner, guarded)
    calm = torch.tensor([0.0, 1.0, 1.0])  # without features the loss is flat enough for steps of this size
    assert isinstance(window.read, torch.Tensor)
    window = window._replace(
        read=3.0 * window.read * calm.view(-1, 1, 1), advantages=window.advantages * calm.view(-1, 1)
    )
    with torch.no_grad():
        guarded.learn(window)
        free.learn(window)
    assert free.moved.tolist() == [True, True, True]
    assert guarded.moved.tolist() == [True, False, False]
    assert guarded.undone == 2
    for name, weight in guarded.weights.items():
        assert torch.equal(weight[0], free.weights[name][0])
        assert torch.equal(weight[1:], guarded.trained[name].expand_as(weight[1:]))


def test_adaptation_climbs_the_reward_that_was_lived_so_the_sign_matters():
    """A policy without memory cannot find a hidden goal, but its copies can: and where reward counts as loss they flee it."""
    learner = trained(kind="mlp", iterations=20)
    config = adapting("all", learning_rate=0.03, every=10, window=20, steps=4, exploration=1.0)
    tasks = learner.family.eval_tasks("search")

    def last(scale: float) -> float:
        objective = objective_of(learner, scale)
        adapter = PolicyAdapter(learner.policy, config, len(tasks), objective, noise=1.0)
        found = evaluate_in_context(
            learner.policy, learner.normalizer, learner.family, tasks, episodes=12, seed=0, adapting=adapter
        )
        return float(found.returns[:, -4:].mean())

    without = evaluate(learner, tasks, episodes=12, seed=0, deterministic=False).returns[:, -4:].mean()
    gain, loss = last(learner.normalizer.return_scale) - without, last(-learner.normalizer.return_scale) - without
    assert gain > 1.0
    assert loss < -1.0


# What cannot be ----------------------------------------------------------------------------------------------------------
def test_what_cannot_adapt_is_refused_with_a_sentence():
    with pytest.raises(InputError, match="'norm', allowed: what this policy has: it has no norms"):
        lived(trained(kind="lstm"), adapting("norm"))
    policy = PolicyConfig.model_validate({"model": {"kind": "lru", "hidden_dim": 8, "num_layers": 1}})
    maml = build_learner("point-robot", policy, parse_learner_config({"kind": "maml-ppo"}), env_steps=10_000, seed=0)
    with pytest.raises(InputError, match="head with maml-ppo: it adapts by gradient steps of its own"):
        lived(maml, adapting("head"))
    told = parse_learner_config({"kind": "rl2", "privileged_critic": True})
    with pytest.raises(InputError, match="the critic is told the task"):
        lived(build_learner("point-robot", policy, told, env_steps=10_000, seed=0), adapting("head"))
