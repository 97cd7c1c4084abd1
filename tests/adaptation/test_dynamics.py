"""A dynamics model learns what follows, and adapting it mends its predictions after the world has changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adaptation.dynamics import (
    DynamicsModel,
    Episodes,
    OnlineDynamics,
    adapt_through_episode,
    prediction_errors,
    train_dynamics,
)
from adaptation.test_time_adaptation import AdaptationConfig, Adapter
from core.errors import InputError
from core.sequence_model import parse_model_config
from env_runner.task_distributions import get_family
from env_runner.task_family import EnvOptions


def live(num: int, steps: int, *, break_at: int | None = None, seed: int = 0) -> Episodes:
    """A damped point pushed by two motors; from `break_at` on the first motor works backwards."""
    generator = torch.Generator().manual_seed(seed)
    state = torch.zeros(num, 2)
    obs, actions = [state], []
    for t in range(steps):
        action = 2 * torch.rand(num, 2, generator=generator) - 1
        gain = torch.tensor([-1.0 if break_at is not None and t >= break_at else 1.0, 1.0])
        state = 0.9 * state + 0.5 * gain * action
        obs.append(state)
        actions.append(action)
    return Episodes(torch.stack(obs, 1), torch.stack(actions, 1))


@pytest.fixture(scope="module")
def trained() -> DynamicsModel:
    config = parse_model_config({"kind": "lru", "hidden_dim": 16, "state_dim": 16, "num_layers": 1})
    model = DynamicsModel(config, 2, 2, torch.Generator().manual_seed(0))
    losses = train_dynamics(model, live(64, 40), updates=150, generator=torch.Generator().manual_seed(0))
    assert losses[-1] < 0.05 * losses[0]
    return model


CONFIG = AdaptationConfig(learning_rate=0.03, num_steps=2, parameters="all", guard=True)


def test_it_predicts_unbroken_episodes_well_and_is_wrong_after_a_motor_breaks(trained: DynamicsModel):
    good, broken = live(1, 80, seed=1), live(1, 80, break_at=40, seed=1)
    fine = adapt_through_episode(trained, CONFIG, good.obs[0], good.actions[0])
    bad = adapt_through_episode(trained, CONFIG, broken.obs[0], broken.actions[0])
    assert fine.frozen.mean() < 0.1
    assert bad.frozen[:40].mean() < 0.1
    assert bad.frozen[45:].mean() > 0.5


def test_adapting_after_the_failure_at_least_halves_the_error_and_costs_little_before_it(trained: DynamicsModel):
    broken = live(1, 120, break_at=40, seed=2)
    trace = adapt_through_episode(trained, CONFIG, broken.obs[0], broken.actions[0])
    assert trace.adapted[80:].mean() < 0.5 * trace.frozen[80:].mean()
    assert trace.adapted[:40].mean() < trace.frozen[:40].mean() + 0.05


def test_the_trained_weights_are_back_afterwards_and_the_trace_repeats(trained: DynamicsModel):
    before = [p.detach().clone() for p in trained.parameters()]
    episode = live(1, 30, break_at=10, seed=3)
    first = adapt_through_episode(trained, CONFIG, episode.obs[0], episode.actions[0])
    assert all(torch.equal(a, b) for a, b in zip(before, trained.parameters(), strict=True))
    again = adapt_through_episode(trained, CONFIG, episode.obs[0], episode.actions[0])
    assert np.array_equal(first.adapted, again.adapted)
    assert first.rollbacks == again.rollbacks


def test_adapting_every_fourth_step_is_a_plain_loop_that_updates_at_every_fourth_step(trained: DynamicsModel):
    episode, config = live(1, 14, break_at=5, seed=6), CONFIG.model_copy(update={"every": 4, "guard": False})
    found = adapt_through_episode(trained, config, episode.obs[0], episode.actions[0], window=3).adapted
    adapter, hidden, lived, errors = Adapter(trained, config), trained.init_hidden(1), [], []
    for t in range(14):
        x = torch.cat([episode.obs[0, t], episode.actions[0, t]])[None]
        y = trained.target(episode.obs[0, t], episode.obs[0, t + 1])[None]
        lived.append((x, y, hidden))
        with torch.no_grad():
            predicted, hidden = trained(x, hidden)
        errors.append((predicted - y).square()[0].numpy())
        if t in (3, 7, 11):
            xs, ys, states = zip(*lived[-3:], strict=True)
            adapter.update_step(torch.stack(xs, 1), torch.stack(ys, 1), states[0])
    adapter.reset()
    np.testing.assert_array_equal(found, np.stack(errors))
    every_step = adapt_through_episode(trained, config.model_copy(update={"every": 1}), episode.obs[0], episode.actions[0], window=3)  # fmt: skip
    assert not np.array_equal(found, every_step.adapted)


def test_without_a_configuration_it_goes_through_the_episode_with_the_weights_as_they_are(trained: DynamicsModel):
    episode = live(1, 12, seed=4)
    online = OnlineDynamics(trained, None)
    steps = [online.step(episode.obs[0, t], episode.actions[0, t], episode.obs[0, t + 1]) for t in range(12)]
    online.close()
    np.testing.assert_allclose(torch.stack(steps).numpy(), prediction_errors(trained, episode)[0], atol=1e-5)
    assert online.rollbacks == 0


def test_bad_shapes_are_refused_by_name(trained: DynamicsModel):
    episode = live(1, 5)
    with pytest.raises(InputError, match="obs, actions"):
        adapt_through_episode(trained, CONFIG, episode.obs[0, 1:], episode.actions[0])
    with pytest.raises(InputError, match="updates"):
        train_dynamics(trained, episode, updates=0, generator=torch.Generator())


def cheetah(worlds: int, seed: int, failure_step: int | None) -> Episodes:
    """Episodes of smooth random actions on halfcheetah-vel, its first motor reversed from `failure_step` on."""
    family = get_family("halfcheetah-vel")
    options = EnvOptions(failure_step=failure_step, failed_actuator=0, failure_scale=-1.0) if failure_step else None
    env = family.make(worlds, options=options)
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=seed, options={"tasks": family.eval_tasks("search")[:1].repeat(worlds, 0)})
    seen, done, action = [obs], [], np.zeros((worlds, 6))
    for _ in range(family.horizon - 1):
        action = np.clip(0.8 * action + 0.6 * rng.normal(size=(worlds, 6)), -1, 1)
        obs, *_ = env.step(action)
        seen.append(obs)
        done.append(action)
    env.close()
    return Episodes(
        torch.from_numpy(np.stack(seen, 1).astype(np.float32)), torch.from_numpy(np.stack(done, 1).astype(np.float32))
    )


@pytest.mark.slow
def test_adapting_mends_predictions_after_a_motor_of_halfcheetah_is_reversed():
    config = parse_model_config({"kind": "lru", "hidden_dim": 64, "state_dim": 64, "num_layers": 2})
    model = DynamicsModel(config, 17, 6, torch.Generator().manual_seed(0))
    train_dynamics(model, cheetah(64, 0, None), updates=600, generator=torch.Generator().manual_seed(0))
    adaptation = AdaptationConfig(learning_rate=3e-4, num_steps=1, optimizer="adam", max_grad_norm=None)
    broken = cheetah(4, 1, 100)
    traces = [adapt_through_episode(model, adaptation, broken.obs[i], broken.actions[i], window=32) for i in range(4)]
    frozen, adapted = (np.mean([getattr(t, name) for t in traces], 0) for name in ("frozen", "adapted"))
    assert frozen[100:].mean() > 1.2 * frozen[:100].mean()  # the failure is felt
    assert adapted[130:].mean() < 0.9 * frozen[130:].mean()
