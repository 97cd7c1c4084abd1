"""The RL2 agent acts exactly as the learner's own evaluation does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.policy import PolicyConfig
from meta_rl.learner import build_learner
from meta_rl.rl2 import RL2, RL2Config
from meta_rl.rl2_agent import RL2Agent
from meta_rl.rollout import rollout

POLICY = PolicyConfig.model_validate({"model": {"kind": "lru", "hidden_dim": 8, "state_dim": 8, "num_layers": 1}})


@pytest.mark.parametrize("family", ["point-robot", "Pendulum-v1"])
def test_agent_and_evaluation_earn_the_same_rewards_step_by_step(family: str):
    config = RL2Config(num_worlds=4, epochs=1, minibatches=1)
    learner = build_learner(family, POLICY, config, env_steps=4 * 200, seed=0)
    assert isinstance(learner, RL2)
    next(learner.train())
    tasks, steps = np.repeat(learner.family.eval_tasks("search")[:1], 3, 0), 30
    lived = rollout(
        learner.policy, learner.normalizer, learner.family.make(3), tasks, num_steps=steps, seed=5, deterministic=True
    )
    agent = RL2Agent("rl2", learner)
    agent.start(3)
    worlds = learner.family.make(3)
    obs, _ = worlds.reset(seed=5, options={"tasks": tasks})
    rewards = np.empty((3, steps))
    for t in range(steps):
        obs, rewards[:, t], ended, cut, _ = worlds.step(agent.act(obs))
        agent.observe(rewards[:, t], ended | cut)
    np.testing.assert_allclose(rewards, lived.rewards, atol=1e-5)
    assert agent.adapt()["status"] == "in_context"
    assert isinstance(agent.hidden, torch.Tensor)
