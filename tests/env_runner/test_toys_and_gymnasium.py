"""Toys against their exact anchors, Gymnasium ids against Gymnasium, and the simple Environment."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from core.errors import InputError
from env_runner.anchors import measure_anchor
from env_runner.environment import Environment, RunningNorm
from env_runner.task_distributions import get_family
from env_runner.task_family import EnvOptions, with_changes


def play(family_id: str, num_envs: int, choose) -> np.ndarray:
    """Return of the first episode under `choose(env, obs, step)`."""
    family = get_family(family_id)
    env = family.make(num_envs)
    obs, _ = env.reset(seed=0)
    returns, living = np.zeros(num_envs), np.ones(num_envs, dtype=bool)
    for step in range(family.horizon):
        obs, rewards, terminated, truncated, _ = env.step(choose(env, obs, step))
        returns += rewards * living
        living &= ~(terminated | truncated)
    return returns


def test_bandit_anchors_are_exact():
    anchors = get_family("bandit").anchors
    random = measure_anchor(get_family("bandit"), "random", episodes=1000, seed=0)
    assert random.mean() == pytest.approx(anchors["random"], abs=4 * random.std() / 1000**0.5)
    best = play("bandit", 1000, lambda env, obs, step: env.tasks.argmax(axis=1))
    assert best.mean() == pytest.approx(anchors["ceiling"], abs=4 * best.std() / 1000**0.5)


def test_tabular_mdp_anchor_is_exact_and_rows_are_chances():
    family = get_family("tabular-mdp")
    random = measure_anchor(family, "random", episodes=2000, seed=0)
    assert random.mean() == pytest.approx(family.anchors["random"], abs=4 * random.std() / 2000**0.5)
    chances = family.eval_tasks("search")[:, 50:].reshape(-1, 10, 5, 10)
    np.testing.assert_allclose(chances.sum(axis=-1), 1.0)


def test_tabular_mdp_moves_by_its_own_chances():
    family = get_family("tabular-mdp")
    env = family.make(4000)
    env.reset(seed=0, options={"tasks": np.repeat(family.eval_tasks("search")[:1], 4000, axis=0)})
    obs, *_ = env.step(np.full(4000, 2))
    np.testing.assert_allclose(
        obs.mean(axis=0), family.eval_tasks("search")[0, 50:].reshape(10, 5, 10)[0, 2], atol=0.03
    )


def test_t_maze_pays_one_for_the_remembered_side():
    side = {}

    def choose(env, obs, step):
        if step == 0:
            side["cue"] = obs[:, 0].copy()
        return np.where(obs[:, 1] > 0, np.where(side["cue"] > 0, 1, 2), 0)

    np.testing.assert_array_equal(play("t-maze", 8, choose), np.ones(8))
    blind = play("t-maze", 8, lambda env, obs, step: np.where(obs[:, 1] > 0, 1, 0))
    assert set(blind) == {1.0, -1.0}


def test_the_cue_of_the_t_maze_is_seen_only_once():
    env = get_family("t-maze").make(2)
    first, _ = env.reset(seed=0)
    assert (np.abs(first[:, 0]) == 1).all()
    bumped, rewards, *_ = env.step(np.array([1, 1]))  # into the wall, still in the first place
    np.testing.assert_array_equal(bumped[:, 0], 0.0)
    np.testing.assert_allclose(rewards, -0.1)


def test_the_point_robot_reaches_a_goal_it_knows():
    def choose(env, obs, step):
        goal = np.stack((np.cos(env.tasks[:, 0]), np.sin(env.tasks[:, 0])), axis=1)
        return (goal - obs) / 0.1

    assert play("point-robot", 50, choose).min() > -8
    still = measure_anchor(get_family("point-robot"), "stand_still", episodes=400, seed=0)
    assert still.mean() == pytest.approx(get_family("point-robot").anchors["stand_still"], rel=0.02)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "FrozenLake-v1"])
def test_a_gymnasium_id_is_that_environment(env_id: str):
    family = get_family(env_id)
    env, theirs = family.make(1), gymnasium.make(env_id)
    obs, _ = env.reset(seed=0)
    from core.seeding import numpy_stream

    stream, rng = numpy_stream(0, "world", 0), np.random.default_rng(1)
    their_obs, _ = theirs.reset(seed=int(stream.integers(2**31)))
    for _ in range(300):
        np.testing.assert_array_equal(obs[0], gymnasium.spaces.flatten(theirs.observation_space, their_obs))
        action = (
            rng.integers(family.action.size, size=1)
            if family.action.kind == "categorical"
            else rng.uniform(-2, 2, (1, 1))
        )
        sent = int(action[0]) if family.action.kind == "categorical" else action[0].astype(np.float32)
        obs, rewards, terminated, truncated, infos = env.step(action)
        their_obs, reward, over, cut, _ = theirs.step(sent)
        assert (rewards[0], terminated[0], truncated[0]) == (float(reward), over, cut)
        if over or cut:
            last = gymnasium.spaces.flatten(theirs.observation_space, their_obs)
            np.testing.assert_array_equal(infos["final_obs"][0], last)
            their_obs, _ = theirs.reset(seed=int(stream.integers(2**31)))


def test_an_environment_with_an_unknown_action_space_is_refused():
    gymnasium.register("ManySwitches-v0", entry_point=lambda **_: _ManySwitches())
    with pytest.raises(InputError, match="allowed: Box, Discrete"):
        get_family("ManySwitches-v0").make(1)


class _ManySwitches(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.MultiBinary(3)


# Environment ---------------------------------------------------------------------------------------------------------
def test_environment_of_one_world_speaks_in_single_values():
    with Environment("CartPole-v1", seed=0) as env:
        obs = env.reset()
        assert obs.shape == (4,)
        for _ in range(500):
            obs, reward, done, info = env.step(1)
            assert isinstance(reward, float)
            assert isinstance(done, bool)
            if done:
                break
        assert info["terminated"]
        assert not info["truncated"]
        assert abs(obs[2]) > 0.2  # the last observation of the episode, with the pole over, not the first of the next
        assert abs(env.reset()[2]) <= 0.05


def test_environment_of_many_worlds_is_batched():
    with Environment("halfcheetah-vel", batch_size=3, seed=0) as env:
        assert env.reset().shape == (3, 17)
        tasks = env.tasks.copy()
        obs, reward, done, info = env.step(np.zeros((3, 6)))
        assert obs.shape == (3, 17)
        assert reward.shape == done.shape == info["x_velocity"].shape == (3,)
        env.reset()
        np.testing.assert_array_equal(env.tasks, tasks)
        env.reset(new_tasks=True)
        assert not np.array_equal(env.tasks, tasks)
        env.reset(tasks=[0.1, 0.2, 0.3])
        np.testing.assert_array_equal(env.tasks[:, 0], [0.1, 0.2, 0.3])


def test_environment_gives_the_same_numbers_for_the_same_seed():
    def run() -> list[float]:
        env = Environment("halfcheetah-vel", seed=3)
        env.reset()
        return [env.step(np.full(6, 0.5))[1] for _ in range(5)]

    assert run() == run()


def test_normalized_observations_are_centred_with_unit_spread():
    env = Environment("halfcheetah-vel", batch_size=16, seed=0, normalize=True)
    env.reset()
    rng = np.random.default_rng(0)
    seen = np.concatenate([env.step(rng.uniform(-1, 1, (16, 6)))[0] for _ in range(150)][50:])
    assert np.abs(seen.mean(axis=0)).max() < 0.5
    assert (np.abs(seen.std(axis=0) - 1) < 0.5).all()


def test_running_norm_equals_the_moments_of_all_batches_together():
    rng = np.random.default_rng(0)
    batches = [rng.normal(3, 2, (size, 4)) for size in (1, 5, 17)]
    norm = RunningNorm(4)
    for batch in batches:
        norm.update(batch)
    everything = np.concatenate(batches)
    np.testing.assert_allclose(norm.mean, everything.mean(axis=0))
    np.testing.assert_allclose(norm(everything), (everything - everything.mean(0)) / everything.std(0), rtol=1e-6)


def test_an_environment_name_that_is_unknown_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'CartPole-v1'"):
        Environment("CartPole-v")


# Mid-episode changes -------------------------------------------------------------------------------------------------
def test_a_point_robots_goal_switches_at_its_step_in_every_episode():
    family = with_changes(get_family("point-robot"), EnvOptions(switch_step=12, switch_task=(np.pi,)))
    env = family.make(3)
    obs, _ = env.reset(seed=0, options={"tasks": np.zeros((3, 1))})
    for step in range(2 * family.horizon):
        obs, rewards, _, _, infos = env.step(np.zeros((3, 2)))
        goal = [-1.0, 0.0] if step % family.horizon >= 12 else [1.0, 0.0]
        seen = infos.get("final_obs", obs)
        np.testing.assert_allclose(rewards, -np.linalg.norm(seen - goal, axis=1), atol=1e-12)
        np.testing.assert_allclose(infos["tasks"], np.pi if goal[0] < 0 else 0.0)


def test_a_bandits_drawn_switch_comes_back_with_the_seed_and_is_another_for_each_world():
    seen = []
    for _ in range(2):
        env = get_family("bandit").make(4, options=EnvOptions(switch_step=1))
        env.reset(seed=5)
        env.step(np.zeros(4, dtype=np.int64))
        seen.append(env.step(np.zeros(4, dtype=np.int64))[4]["tasks"])
    np.testing.assert_array_equal(seen[0], seen[1])
    assert len(np.unique(seen[0][:, 0])) == 4


def test_a_family_with_changes_is_the_family_in_all_but_its_worlds():
    family = get_family("point-robot")
    changed = with_changes(family, EnvOptions(switch_step=3))
    assert (changed.id, changed.version, changed.horizon) == (family.id, family.version, family.horizon)
    np.testing.assert_array_equal(changed.eval_tasks("selection"), family.eval_tasks("selection"))
    assert changed.make(1).options.switch_step == 3
    assert family.make(1).options.switch_step is None
    assert with_changes(family, EnvOptions(failure_scale=0.5)) is family
    with pytest.raises(InputError, match="switch_step: got 20, allowed: below the horizon"):
        with_changes(family, EnvOptions(switch_step=20))
