"""The MAML agent under the agents' contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.errors import InputError
from core.policy import ActionSpec
from core.ssm import StateSpaceModel
from meta_rl.maml_agent import MetaMAMLAgent
from meta_rl.meta_maml import MetaMAML
from meta_rl.sinusoid import sinusoid_network, sinusoid_tasks


def make(num_steps: int = 5, inner_lr: float = 1e-3) -> MetaMAMLAgent:
    maml = MetaMAML(sinusoid_network(torch.Generator().manual_seed(0)), inner_lr=inner_lr, outer_lr=1e-3)
    return MetaMAMLAgent(maml, ActionSpec("gaussian", 1), num_steps=num_steps)


def test_adapting_lowers_the_support_loss_and_changes_what_it_does_but_not_the_meta_learned_start():
    agent = make()
    support_x, support_y, *_ = sinusoid_tasks(torch.Generator().manual_seed(1), 1, 10)[0]
    agent.start(2)
    obs = np.array([[0.5], [-2.0]])
    before = agent.act(obs)
    untouched = [p.detach().clone() for p in agent.maml.model.parameters()]
    start_loss = agent.maml.loss(agent.weights, support_x, support_y)
    report = agent.adapt(support_x, support_y)
    assert report["status"] == "adapted"
    assert report["loss"] is not None
    assert report["loss"] < start_loss
    assert not np.allclose(agent.act(obs), before)
    assert all(torch.equal(a, b) for a, b in zip(untouched, agent.maml.model.parameters(), strict=True))
    agent.start(2)
    assert np.array_equal(agent.act(obs), before)


def test_meta_updates_make_later_adaptation_better():
    agent, stream = make(num_steps=1, inner_lr=0.01), torch.Generator().manual_seed(0)
    losses = [agent.meta_update(sinusoid_tasks(stream, 10, 10)) for _ in range(80)]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


def test_a_model_with_memory_keeps_it_between_steps_and_clears_it_at_an_end():
    model = StateSpaceModel(state_dim=8, input_dim=3, output_dim=2, hidden_dim=8)
    agent = MetaMAMLAgent(MetaMAML(model), ActionSpec("categorical", 2))
    agent.start(2)
    assert agent.act(np.ones((2, 3))).shape == (2,)
    agent.observe(np.zeros(2), np.array([True, False]))
    assert agent.hidden is not None
    assert agent.hidden[0].abs().sum() == 0
    assert agent.hidden[1].abs().sum() > 0


def test_new_parameters_are_taken_over_and_wrong_ones_refused():
    agent = make()
    agent.start(1)
    agent.update({"4.bias": torch.tensor([3.0]), "4.weight": torch.zeros(1, 40)})
    assert agent.act(np.zeros((1, 1))).item() == 3.0
    with pytest.raises(InputError, match="parameters"):
        agent.update({"4.bias": torch.zeros(2)})
    with pytest.raises(InputError, match="data"):
        agent.adapt(torch.zeros(1, 1))
    with pytest.raises(InputError, match="num_steps"):
        make(num_steps=0)
