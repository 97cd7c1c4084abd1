"""Agents and their coordinator, on a small world whose returns are known exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from core.agent import PolicyAgent
from core.coordinator import AgentCoordinator
from core.errors import InputError
from core.policy import ActionSpec, PolicyConfig, PolicyInput, RecurrentPolicy


class Counter:
    """Worlds that last world + 2 steps and pay their number plus one at each; obs is (step, world)."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.actions: list[np.ndarray] = []

    def _obs(self) -> np.ndarray:
        obs = np.stack([self.steps, np.arange(self.batch_size)], 1).astype(np.float64)
        return obs if self.batch_size > 1 else obs[0]

    def reset(self) -> np.ndarray:
        self.steps = np.zeros(self.batch_size)
        return self._obs()

    def step(self, action: Any, /) -> tuple[np.ndarray, Any, Any, Any]:
        self.actions.append(np.asarray(action))
        self.steps += 1
        done = self.steps >= np.arange(self.batch_size) + 2
        reward = np.arange(self.batch_size) + 1.0
        self.steps[done] = 0
        obs = self._obs()
        return (obs, reward, done, {}) if self.batch_size > 1 else (obs, reward[0], done[0], {})


def agent_of(name: str, kind: str = "gaussian", **options: Any) -> PolicyAgent:
    config = PolicyConfig(model={"kind": "lru", "hidden_dim": 8, "state_dim": 8}, encoder_dim=8, head_dim=8)  # pyright: ignore
    policy = RecurrentPolicy(2, ActionSpec(kind, 3), config, generator=torch.Generator().manual_seed(1))  # pyright: ignore
    return PolicyAgent(name, policy, **options)


@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
def test_an_agent_acts_as_its_policy_on_the_whole_sequence(kind: str) -> None:
    agent, rng = agent_of("one", kind, reward_scale=0.5), np.random.default_rng(0)
    agent.start(4)
    obs, rewards, dones = rng.normal(size=(6, 4, 2)), rng.normal(size=(6, 4)), rng.random((6, 4)) < 0.3
    actions = []
    for t in range(6):
        actions.append(agent.act(obs[t]))
        agent.observe(rewards[t], dones[t])
    taken = torch.from_numpy(np.stack(actions, 1))
    one_hot = torch.nn.functional.one_hot(taken, 3).float() if kind == "categorical" else taken
    shift = lambda value: torch.cat([torch.zeros_like(value[:, :1]), value[:, :-1]], 1)  # noqa: E731
    inputs = PolicyInput(
        torch.from_numpy(obs).float().transpose(0, 1),
        shift(one_hot),
        shift(torch.from_numpy(rewards).float().T * 0.5),
        shift(torch.from_numpy(dones).float().T),
    )
    output = agent.policy(inputs)
    wanted = output.mean_or_logits.argmax(-1) if kind == "categorical" else output.mean_or_logits
    assert torch.allclose(wanted.double(), taken.double(), atol=1e-5)


def test_reset_on_done_makes_each_episode_a_fresh_trial() -> None:
    keeping, clearing = agent_of("keeps"), agent_of("clears", reset_on_done=True)
    for agent in (keeping, clearing):
        agent.start(1)
        for _ in range(3):
            agent.act(np.ones((1, 2)))
            agent.observe(np.ones(1), np.ones(1))
    fresh = agent_of("fresh")
    fresh.start(1)
    fresh.last_done, fresh.last_reward, fresh.last_action = (
        clearing.last_done,
        clearing.last_reward,
        clearing.last_action,
    )
    action = fresh.act(np.ones((1, 2)))
    assert np.allclose(clearing.act(np.ones((1, 2))), action)
    assert not np.allclose(keeping.act(np.ones((1, 2))), action)


@pytest.mark.parametrize(("worlds", "episodes"), [(1, 3), (3, 3), (3, 7)])
def test_run_episodes_returns_every_episode_once(worlds: int, episodes: int) -> None:
    coordinator, environment = AgentCoordinator(), Counter(worlds)
    coordinator.register_agent(agent_of("one"))
    coordinator.register_agent(agent_of("two", "categorical"))
    results = coordinator.run_episodes(environment, episodes)
    share = -(-episodes // worlds)
    world = np.repeat(np.arange(worlds), share)[:episodes]
    for result in results.values():
        assert result.lengths.tolist() == (world + 2).tolist()
        assert result.returns.tolist() == ((world + 1) * (world + 2)).tolist()
    shapes = {action.shape for action in environment.actions}
    assert shapes == ({(3,), ()} if worlds == 1 else {(worlds, 3), (worlds,)})


def test_run_step_all_gives_each_agent_its_observations() -> None:
    coordinator, same = AgentCoordinator(), np.ones((2, 2))
    for name in ("one", "two"):
        agent = agent_of(name)
        agent.start(2)
        coordinator.register_agent(agent)
    actions = coordinator.run_step_all(same)
    assert np.allclose(actions["one"], actions["two"])
    actions = coordinator.run_step_all({"one": same, "two": -same})
    assert not np.allclose(actions["one"], actions["two"])
    with pytest.raises(InputError, match="missing: two"):
        coordinator.run_step_all({"one": same})


def test_a_broadcast_update_reaches_all_or_the_named_agents_and_changes_their_actions() -> None:
    coordinator = AgentCoordinator()
    one, two = agent_of("one"), agent_of("two")
    coordinator.register_agent(one)
    coordinator.register_agent(two)
    coordinator.broadcast_update({"actor.bias": torch.ones(3)}, ["two"])
    assert not one.policy.actor.bias.any()
    assert torch.equal(two.policy.actor.bias, torch.ones(3))
    coordinator.broadcast_update({"actor.bias": torch.full((3,), 2.0)})
    assert torch.equal(one.policy.actor.bias, two.policy.actor.bias)
    for parameters in ({"actor.bies": torch.ones(3)}, {"log_std": torch.zeros(3), "actor.bias": torch.ones(4)}):
        with pytest.raises(InputError, match="parameters"):
            coordinator.broadcast_update(parameters)
    assert torch.equal(one.policy.log_std, torch.full((3,), -0.5))  # pyright: ignore[reportArgumentType]


def test_an_agent_adapts_in_context_and_says_so() -> None:
    agent = agent_of("one")
    assert agent.adapt() == {"status": "in_context", "loss": None, "steps": 0}
    with pytest.raises(InputError, match="data"):
        agent.adapt(np.ones(3))


def test_sampled_actions_follow_the_generator() -> None:
    def actions(seed: int) -> np.ndarray:
        agent = agent_of("one", deterministic=False, generator=torch.Generator().manual_seed(seed))
        agent.start(2)
        return agent.act(np.ones((2, 2)))

    assert np.array_equal(actions(0), actions(0))
    assert not np.array_equal(actions(0), actions(1))


def test_misuse_is_refused_by_name() -> None:
    coordinator, agent = AgentCoordinator(), agent_of("one")
    with pytest.raises(InputError, match="no agent is registered"):
        coordinator.run_step_all(np.ones((1, 2)))
    with pytest.raises(InputError, match="no agent is registered"):
        coordinator.run_episodes(Counter(1), 1)
    coordinator.register_agent(agent)
    with pytest.raises(InputError, match="taken: one"):
        coordinator.register_agent(agent_of("one"))
    with pytest.raises(InputError, match="episodes: got 0"):
        coordinator.run_episodes(Counter(1), 0)
    with pytest.raises(InputError, match="unknown agent 'onr'"):
        coordinator.broadcast_update({}, ["onr"])
    with pytest.raises(InputError, match="start"):
        agent.act(np.ones((1, 2)))
    agent.start(1)
    with pytest.raises(InputError, match="obs: got"):
        agent.act(np.ones((2, 2)))
    with pytest.raises(InputError, match="reward: got"):
        agent.observe(np.ones(2), np.ones(1))
    with pytest.raises(InputError, match="generator"):
        agent_of("x", deterministic=False)
