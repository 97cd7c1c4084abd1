"""Meta-World, where it is installed (it is not in the usual environment: it pins mujoco 3.3.0)."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from core.errors import InputError
from env_runner.metaworld_tasks import MetaWorldFamily
from env_runner.task_distributions import POOLS, get_family

needs_metaworld = pytest.mark.skipif(
    importlib.util.find_spec("metaworld") is None, reason="Meta-World is not installed"
)


def test_what_a_benchmark_is_can_be_asked_without_meta_world():
    family = get_family("metaworld-ml10")
    assert isinstance(family, MetaWorldFamily)
    assert (family.horizon, family.obs_dim, family.action.size) == (500, 39, 4)
    assert (family.adaptation_episodes, family.evaluation_episodes) == (10, 3)
    assert get_family("metaworld-mt10").obs_dim == 49
    assert [len(family.eval_tasks(pool)) for pool in POOLS] == [30, 30, 25]
    # Held-out tasks are of environments that are not trained on.
    assert set(family.eval_tasks("confirmation")[:, 0]) == {1}
    assert set(family.sample_tasks(np.random.default_rng(0), 200)[:, 0]) == {0}


def test_tasks_out_of_range_are_refused():
    for task in ([0, 5, 0], [0, 0, 50], [0.5, 0, 0], [-1, 0, 0]):
        with pytest.raises(InputError, match="whole numbers"):
            get_family("metaworld-ml1:reach-v3").check_tasks([task], 1)


@pytest.mark.skipif(importlib.util.find_spec("metaworld") is not None, reason="Meta-World is installed")
def test_a_missing_extra_names_the_pip_command():
    with pytest.raises(InputError, match=r'pip install -e "\.\[metaworld\]"'):
        get_family("metaworld-ml1:reach-v3").make(1)


@needs_metaworld
def test_ml1_test_goals_are_none_of_the_training_goals():
    family = get_family("metaworld-ml1:reach-v3")
    assert isinstance(family, MetaWorldFamily)
    held_out = {family.world(task)[1].data for task in family.eval_tasks("confirmation")}
    trained = {family.world(np.array([0.0, 0.0, float(goal)]))[1].data for goal in range(40)}
    assert not held_out & trained


@needs_metaworld
def test_an_unknown_manipulation_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'reach-v3'"):
        get_family("metaworld-ml1:reach-v2").make(1).reset(seed=0)


@needs_metaworld
def test_rewards_are_the_v2_ones_and_a_known_good_policy_succeeds():
    from metaworld.policies import ENV_POLICY_MAP  # pyright: ignore[reportMissingImports]

    family, policy = get_family("metaworld-ml1:reach-v3"), ENV_POLICY_MAP["reach-v3"]()
    assert isinstance(family, MetaWorldFamily)
    env = family.make(1)
    obs, _ = env.reset(seed=0, options={"tasks": family.eval_tasks("confirmation")[:1]})
    goal = env._workers[0]._worlds._envs[0]._target_pos  # pyright: ignore[reportAttributeAccessIssue]
    success, rewards = 0.0, np.zeros(1)
    for _ in range(200):
        seen = np.concatenate((obs[0, :36], goal))  # the scripted policy sees the goal that the benchmark hides
        obs, rewards, _, _, infos = env.step(policy.get_action(seen)[None])
        success = max(success, infos["success"][0])
    assert success == 1.0
    assert 8 < rewards[0] <= 10


@needs_metaworld
@pytest.mark.slow
@pytest.mark.timeout(1200)  # the goals of ML45 and MT50 take minutes to draw
@pytest.mark.parametrize("kind", ["ml10", "mt10", "ml45", "mt50"])
def test_all_training_manipulations_at_once(kind: str):
    family = get_family(f"metaworld-{kind}")
    assert isinstance(family, MetaWorldFamily)
    count = family.num_train_environments
    env = family.make(count)
    tasks = np.array([(0, environment, 0) for environment in range(count)], dtype=float)
    obs, _ = env.reset(seed=0, options={"tasks": tasks})
    assert obs.shape == (count, family.obs_dim)
    if kind.startswith("mt"):
        np.testing.assert_array_equal(obs[:, 39:], np.eye(count))
        assert np.abs(obs[:, 36:39]).sum(axis=1).min() > 0
    else:
        np.testing.assert_array_equal(obs[:, 36:39], 0.0)
    obs, rewards, *_ = env.step(np.zeros((count, 4)))
    assert np.isfinite(obs).all()
    assert ((rewards >= 0) & (rewards <= 10)).all()
    # Other environments in other worlds: the old ones are used again.
    env.reset(options={"tasks": np.roll(tasks, 1, axis=0)})
