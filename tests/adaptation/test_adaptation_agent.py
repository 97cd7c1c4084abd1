"""The adapting agent under the agents' contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from adaptation.adaptation_agent import AdaptationAgent
from adaptation.test_time_adaptation import AdaptationConfig, Adapter
from core.coordinator import AgentCoordinator
from core.errors import InputError
from core.policy import ActionSpec
from core.ssm import StateSpaceModel
from env_runner.environment import Environment


def make(**config) -> AdaptationAgent:
    model = StateSpaceModel(state_dim=8, input_dim=4, output_dim=2, hidden_dim=8)
    return AdaptationAgent(Adapter(model, AdaptationConfig(**config)), ActionSpec("categorical", 2), name="adapter")


def test_adapt_returns_status_and_loss_and_start_forgets_what_was_learned():
    agent = make(learning_rate=0.1)
    agent.start(3)
    first = agent.act(np.ones((3, 4)))
    x, y = torch.ones(3, 4), torch.tensor([[5.0, -5.0]] * 3)
    reports = [agent.adapt(x, y) for _ in range(20)]
    assert reports[0]["status"] == "adapted"
    assert reports[0]["steps"] == 1
    losses = [report["loss"] for report in reports]
    assert losses[0] is not None
    assert losses[-1] is not None
    assert losses[-1] < losses[0]
    agent.start(3)
    assert agent.adapter.hidden_state is None
    assert (agent.act(np.ones((3, 4))) == first).all()


def test_a_step_that_the_guard_undoes_is_reported_as_rolled_back():
    agent = make(learning_rate=1e4, max_grad_norm=None, guard=True)
    agent.start(1)
    assert agent.adapt(torch.ones(1, 4), torch.zeros(1, 2))["status"] == "rolled_back"


def test_memory_is_cleared_only_where_an_episode_ended():
    agent = make()
    agent.start(2)
    agent.act(np.ones((2, 4)))
    agent.observe(np.zeros(2), np.array([True, False]))
    assert agent.hidden is not None
    assert agent.hidden[0].abs().sum() == 0
    assert agent.hidden[1].abs().sum() > 0


def test_the_coordinator_runs_it_on_a_real_environment():
    coordinator = AgentCoordinator()
    coordinator.register_agent(make())
    with Environment("CartPole-v1", batch_size=2) as environment:
        result = coordinator.run_episodes(environment, 2)["adapter"]
    assert len(result.returns) == 2
    assert (result.returns >= 1).all()


def test_new_parameters_become_the_trained_ones():
    agent = AdaptationAgent(Adapter(nn.Linear(4, 2)))
    agent.update({"bias": torch.tensor([1.0, 2.0])})
    agent.start(1)
    assert agent.act(np.zeros((1, 4))).tolist() == [[1.0, 2.0]]


def test_bad_input_is_refused_by_name():
    agent = make()
    with pytest.raises(InputError, match="start"):
        agent.act(np.ones((1, 4)))
    agent.start(1)
    with pytest.raises(InputError, match="data"):
        agent.adapt()
    with pytest.raises(InputError, match="obs"):
        agent.act(np.ones((2, 4)))
    with pytest.raises(InputError, match="parameters"):
        agent.update({"nothing": torch.zeros(1)})
    with pytest.raises(InputError, match="reward"):
        agent.observe(np.zeros(2), np.zeros(2))
