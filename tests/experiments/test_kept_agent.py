"""A kept model that acts in a loop of one's own does what `evaluate` counts, as far as single precision goes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from core.coordinator import AgentCoordinator
from core.errors import InputError
from core.policy import PolicyConfig
from core.seeding import numpy_stream
from experiments.runs.kept_agent import load_agent
from meta_rl.learner import Learner, build_learner
from meta_rl.maml_ppo import MAMLPPOConfig
from meta_rl.rl2 import RL2Config

POLICY = PolicyConfig.model_validate({"model": {"kind": "lstm", "hidden_dim": 8, "num_layers": 1}})


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as those of `saved_models/`, whose model was trained for one iteration."""
    learner = build_learner("point-robot", POLICY, RL2Config(num_worlds=4, epochs=1, minibatches=1), env_steps=800, seed=0)  # fmt: skip
    next(learner.train())
    folder = tmp_path_factory.mktemp("saved_models") / "point-robot-lstm-c-0001"
    folder.mkdir()
    learner.save(folder / "model")
    return folder


def test_the_first_episode_is_the_one_that_evaluate_counts(kept: Path) -> None:
    learner, agent = Learner.load(kept / "model"), load_agent(kept)
    tasks = learner.family.eval_tasks("search")[:3]
    counted = learner.evaluate(tasks, episodes=1, seed=0).returns[:, 0]
    worlds, horizon = learner.family.make(3), learner.family.horizon
    seed = int(numpy_stream(0, "evaluate", "worlds").integers(2**31 - 1))  # of the start states that are counted
    obs, _ = worlds.reset(seed=seed, options={"tasks": tasks})
    agent.start(3)
    lived = np.zeros(3)
    for _ in range(horizon):
        obs, reward, ended, cut, _ = worlds.step(agent.act(obs))
        agent.observe(reward, ended | cut)
        lived += reward
    np.testing.assert_allclose(lived, counted, atol=1e-5 * horizon)
    assert agent.name == "point-robot-lstm-c-0001"


def test_a_kept_model_is_run_beside_others_by_the_coordinator(kept: Path) -> None:
    coordinator = AgentCoordinator()
    coordinator.register_agent(load_agent(kept, "one"))
    coordinator.register_agent(load_agent(kept / "model.safetensors"))
    actions = coordinator.run_step_all(np.zeros((2, 2), np.float32))
    assert actions.keys() == {"one", "model"}
    np.testing.assert_array_equal(actions["one"], actions["model"])


def test_a_model_that_adapts_between_episodes_says_how_it_is_evaluated(tmp_path: Path) -> None:
    config = MAMLPPOConfig(tasks_per_update=2, episodes_per_task=2)
    build_learner("point-robot", PolicyConfig.model_validate({"model": {"kind": "mlp"}}), config, env_steps=10_000, seed=0).save(tmp_path / "model")  # fmt: skip
    with pytest.raises(InputError, match=r"trained by maml-ppo, allowed: models of rl2.*evaluate"):
        load_agent(tmp_path / "model")
    with pytest.raises(InputError, match="no folder of saved_models/"):
        load_agent(tmp_path / "modle")
