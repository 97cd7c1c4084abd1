"""Rewards, tasks, anchors, mid-episode changes and unstable worlds of the locomotion families."""

from __future__ import annotations

import os

import gymnasium
import numpy as np
import pytest

from core.errors import InputError
from env_runner.anchors import measure_anchor
from env_runner.locomotion import LocomotionFamily, MujocoTaskEnv, Step
from env_runner.task_distributions import FAMILIES, get_family
from env_runner.task_family import EnvOptions


def make(family_id: str, num_envs: int, options: EnvOptions | None = None) -> MujocoTaskEnv:
    env = get_family(family_id).make(num_envs, options=options)
    assert isinstance(env, MujocoTaskEnv)
    return env


# halfcheetah-vel -----------------------------------------------------------------------------------------------------
def test_the_confirmation_pool_of_halfcheetah_vel_is_the_published_grid():
    family = get_family("halfcheetah-vel")
    np.testing.assert_allclose(family.eval_tasks("confirmation")[:, 0], np.linspace(0.075, 3, 40), atol=1e-12)


def test_halfcheetah_vel_is_gymnasiums_robot_with_the_published_reward():
    """Two hundred steps against Gymnasium's environment: same observations, reward recomputed from its velocity."""
    family = get_family("halfcheetah-vel")
    env = family.make(1)
    obs, _ = env.reset(seed=0, options={"tasks": [[1.3]]})
    theirs = gymnasium.make("HalfCheetah-v5").unwrapped
    theirs.reset(seed=0)
    theirs.set_state(np.concatenate(([env.physics.qpos[0, 0]], obs[0, :8])), obs[0, 8:])  # pyright: ignore
    rng = np.random.default_rng(0)
    for step in range(200):
        action = rng.uniform(-1.5, 1.5, (1, 6))  # beyond the limits: the clipped action is applied and charged
        clipped = np.clip(action[0], -1, 1)
        theirs.data.qacc_warmstart[:] = 0  # pyright: ignore[reportAttributeAccessIssue]
        their_obs, _, _, _, info = theirs.step(clipped)
        obs, rewards, terminated, truncated, infos = env.step(action)
        last = infos["final_obs"] if truncated[0] else obs
        np.testing.assert_array_equal(last[0], their_obs)
        assert infos["x_velocity"][0] == info["x_velocity"]
        assert rewards[0] == pytest.approx(-abs(info["x_velocity"] - 1.3) - 0.05 * (clipped**2).sum(), abs=1e-12)
        assert not terminated[0]
        assert truncated[0] == (step == 199)


# `random` is the figure known from elsewhere; `rel` is how far ours may be from it. A thousand steps at random cannot
# come to -1464: the mean distance alone is 1.5 a step and the actions cost another 0.1.
@pytest.mark.parametrize(
    ("family_id", "episodes", "stand_still", "random", "rel"),
    [
        ("halfcheetah-vel", 100, -300, -332, 0.08),
        ("halfcheetah-vel-maml", 100, -200, -259, 0.05),
        ("halfcheetah-vel-garage", 100, -100, -134, 0.08),
        pytest.param("halfcheetah-vel-amago", 60, -1500, -1464, 0.22, marks=pytest.mark.slow),
    ],
)
def test_anchors_agree_with_the_published_ones(family_id, episodes, stand_still, random, rel):
    family = get_family(family_id)
    still = measure_anchor(family, "stand_still", episodes=episodes, seed=1).mean()
    assert still == pytest.approx(stand_still, rel=0.01) == pytest.approx(family.anchors["stand_still"], rel=0.01)
    ours = measure_anchor(family, "random", episodes=episodes, seed=1).mean()
    assert ours == pytest.approx(random, rel=rel)
    assert ours == pytest.approx(family.anchors["random"], rel=0.03)


def test_the_task_blind_anchor_is_the_best_constant_speed():
    for family_id in ("halfcheetah-vel", "halfcheetah-vel-maml", "halfcheetah-vel-garage", "halfcheetah-vel-amago"):
        family = get_family(family_id)
        tasks = family.eval_tasks("confirmation")[:, 0]
        best = max(-np.abs(speed - tasks).mean() * family.horizon for speed in np.linspace(0, 3, 601))
        assert best == pytest.approx(family.anchors["task_blind"], rel=0.01)


def test_in_the_classic_variant_running_fast_is_best_whatever_the_task():
    family = get_family("halfcheetah-vel-classic")
    assert isinstance(family, LocomotionFamily)
    still, none = np.zeros((5, 6)), None
    for speed in (2.5, 6.0):
        velocity = np.full((5, 1), speed)
        step = Step(make(family.id, 5).physics, velocity, still, none, family.eval_tasks("search"))
        rewards = family.reward(step)
        np.testing.assert_allclose(rewards, 0.5 * family.eval_tasks("search")[:, 0])


@pytest.mark.slow
@pytest.mark.parametrize("family_id", [name for name in FAMILIES if isinstance(FAMILIES[name], LocomotionFamily)])
def test_measured_anchors_can_be_measured_again(family_id: str):
    family = get_family(family_id)
    for policy in ("stand_still", "random"):
        returns = measure_anchor(family, policy, episodes=100, seed=5)
        error = max(4 * returns.std() / 10, 0.02 * abs(family.anchors[policy]), 0.3)
        assert returns.mean() == pytest.approx(family.anchors[policy], abs=error)


# The other goals -----------------------------------------------------------------------------------------------------
def rewards_of(family_id: str, velocity, action, healthy, task) -> float:
    env = make(family_id, 1)
    env.reset(seed=0)
    step = Step(env.physics, np.array([velocity]), np.array([action]), np.array([healthy]), np.array([task]))
    return float(env.locomotion.reward(step)[0])


def test_goal_rewards_have_the_stated_constants():
    # At the start nothing touches anything yet, so the ant's contact cost is 0.
    assert rewards_of("halfcheetah-dir", [2.0], [0.5] * 6, True, [-1.0]) == pytest.approx(-2.0 - 0.05 * 1.5)
    assert rewards_of("ant-vel", [2.0, 9.0], [0.5] * 8, True, [0.5]) == pytest.approx(1 - 1.5 + 0.05 - 0.005 * 2)
    assert rewards_of("walker2d-vel", [2.0], [0.5] * 6, True, [5.0]) == pytest.approx(-3 + 15 - 0.001 * 1.5)
    up = [np.pi / 2]
    assert rewards_of("ant-dir", [9.0, 2.0], [0.5] * 8, True, up) == pytest.approx(2.0 - 0.5 * 2 + 1)
    assert rewards_of("humanoid-dir", [9.0, 2.0], [0.1] * 17, True, up) == pytest.approx(0.5 - 0.1 * 0.17 + 5)


def test_the_ants_contact_cost_appears_once_it_stands():
    env = make("ant-vel", 2)
    env.reset(seed=0)
    costs = []
    for _ in range(40):
        env.step(np.zeros((2, 8)))
        costs.append(np.asarray(env.robot.contact_cost(env.physics)).max())
    assert costs[0] == 0.0 < max(costs)


def test_a_fallen_walker_terminates_and_the_time_limit_truncates():
    env = make("walker2d-vel", 8)
    env.reset(seed=0)
    rng, terminated_once = np.random.default_rng(0), False
    for _ in range(60):
        _, _, terminated, truncated, infos = env.step(rng.uniform(-1, 1, (8, 6)))
        if terminated.any():
            terminated_once = True
            height = infos["final_obs"][terminated, 0]
            angle = infos["final_obs"][terminated, 1]
            assert ((height <= 0.8) | (height >= 2.0) | (np.abs(angle) >= 1.0)).all()
        assert not truncated.any()
    assert terminated_once


# Dynamics ------------------------------------------------------------------------------------------------------------
def test_dynamics_families_give_each_world_its_own_model():
    env = make("halfcheetah-gravity", 2)
    env.reset(seed=0, options={"tasks": [[0.5], [2.0]]})
    np.testing.assert_allclose([model.opt.gravity[2] for model in env.physics.models], [-9.81 / 2, -9.81 * 2])
    env = make("halfcheetah-mass", 2)
    env.reset(seed=0, options={"tasks": [[0.5], [2.0]]})
    np.testing.assert_allclose([model.body_mass.sum() for model in env.physics.models], [7.0, 28.0])
    # The start is the same for both; what follows is not.
    assert env.physics.full_state[0, 1] != env.physics.full_state[1, 1]  # pyright: ignore[reportAttributeAccessIssue]


def test_a_factor_of_one_is_the_stock_robot():
    for family_id in ("halfcheetah-mass", "walker2d-params", "hopper-params", "imujoco-walker2d"):
        family = get_family(family_id)
        assert isinstance(family, LocomotionFamily)
        changed = family.world_model(np.ones(family.num_params))
        for name in ("body_mass", "body_inertia", "dof_damping", "geom_friction", "body_invweight0", "qpos0"):
            np.testing.assert_allclose(getattr(changed, name), getattr(family.base_model, name), atol=1e-12)


def test_a_model_change_leaves_the_base_model_alone():
    family = get_family("walker2d-params")
    assert isinstance(family, LocomotionFamily)
    before = family.base_model.body_mass.copy()
    changed = family.world_model(np.full(family.num_params, 2.0))
    np.testing.assert_array_equal(family.base_model.body_mass, before)
    np.testing.assert_allclose(changed.body_mass, 2 * before)
    # Heavier bodies are harder to move: the constants that MuJoCo derives follow.
    assert (changed.body_invweight0[1:, 0] < family.base_model.body_invweight0[1:, 0]).all()


# Mid-episode changes -------------------------------------------------------------------------------------------------
def test_a_velocity_switch_changes_the_reward_from_its_step_on():
    options = EnvOptions(switch_step=3, switch_task=(2.5,))
    env, plain = make("halfcheetah-vel", 2, options), make("halfcheetah-vel", 2)
    for each in (env, plain):
        each.reset(seed=0, options={"tasks": [[0.5], [1.0]]})
    rng = np.random.default_rng(0)
    for step in range(6):
        action = rng.uniform(-1, 1, (2, 6))
        _, switched, _, _, infos = env.step(action)
        _, usual, _, _, _ = plain.step(action)
        if step < 3:
            np.testing.assert_array_equal(switched, usual)
            np.testing.assert_array_equal(infos["tasks"], [[0.5], [1.0]])
        else:
            expected = -np.abs(infos["x_velocity"] - 2.5) - 0.05 * np.square(action).sum(axis=1)
            np.testing.assert_allclose(switched, expected, rtol=1e-12)
            np.testing.assert_array_equal(infos["tasks"], [[2.5], [2.5]])
    np.testing.assert_array_equal(env.tasks, [[0.5], [1.0]])


def test_drawn_switches_come_back_with_the_seed():
    options, seen = EnvOptions(switch_step=1), []
    for _ in range(2):
        env = make("halfcheetah-vel", 3, options)
        env.reset(seed=8)
        env.step(np.zeros((3, 6)))
        seen.append(env.step(np.zeros((3, 6)))[4]["tasks"])
    np.testing.assert_array_equal(seen[0], seen[1])
    assert len(np.unique(seen[0])) == 3


def test_a_failed_joint_ignores_its_motor_from_its_step_on():
    options = EnvOptions(failure_step=2, failed_actuator=1)
    env, plain = make("halfcheetah-vel", 1, options), make("halfcheetah-vel", 1)
    for each in (env, plain):
        each.reset(seed=0)
    for step in range(5):
        action = np.full((1, 6), 0.7)
        dead = action.copy()
        if step >= 2:
            dead[0, 1] = 0.0
        obs, rewards, _, _, _ = env.step(action)
        other, other_rewards, _, _, _ = plain.step(dead)
        np.testing.assert_array_equal(obs, other)
        # The action sent is charged, not the torque that arrives.
        assert rewards[0] - other_rewards[0] == pytest.approx(-0.05 * 0.49 if step >= 2 else 0.0)


def test_changes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="switch_step"):
        make("halfcheetah-mass", 1, EnvOptions(switch_step=3))
    with pytest.raises(InputError, match="failed_actuator"):
        make("halfcheetah-vel", 1, EnvOptions(failure_step=3, failed_actuator=6))
    with pytest.raises(InputError, match="failure_step"):
        make("halfcheetah-vel", 1, EnvOptions(failure_step=200))
    with pytest.raises(InputError, match="switch_task"):
        make("halfcheetah-vel", 1, EnvOptions(switch_step=3, switch_task=(1.0, 2.0)))
    with pytest.raises(InputError, match="no mid-episode changes"):
        get_family("t-maze").make(1, options=EnvOptions(failure_step=1))
    with pytest.raises(InputError, match="bandit has no motors that fail"):
        get_family("bandit").make(1, options=EnvOptions(failure_step=1))


# Unstable worlds -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family_id", ["halfcheetah-vel", "ant-vel"])
def test_an_unstable_world_is_reset_and_counted_and_the_others_go_on(family_id, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo would write MUJOCO_LOG.TXT here
    env, undisturbed = make(family_id, 3), make(family_id, 3)
    for each in (env, undisturbed):
        each.reset(seed=0)
    action = np.full((3, env.family.action.size), 0.1)
    good, *_ = env.step(action)
    undisturbed.step(action)
    if family_id == "ant-vel":
        env.physics.data[1].qvel[3] = 1e12  # pyright: ignore[reportAttributeAccessIssue]
    else:
        env.physics.qvel[1, 3] = 1e12
    obs, rewards, terminated, truncated, infos = env.step(action)
    others, their_rewards, *_ = undisturbed.step(action)
    assert env.unstable_count == 1
    np.testing.assert_array_equal(infos["unstable"], [False, True, False])
    np.testing.assert_array_equal(truncated, [False, True, False])
    assert not terminated.any()
    assert np.isfinite(obs).all()
    assert np.isfinite(rewards).all()
    np.testing.assert_array_equal(obs[[0, 2]], others[[0, 2]])
    np.testing.assert_array_equal(rewards[[0, 2]], their_rewards[[0, 2]])
    if family_id == "ant-vel":
        np.testing.assert_array_equal(infos["final_obs"][1], good[1])
    obs, _, _, truncated, _ = env.step(action)
    assert np.isfinite(obs).all()
    assert not truncated.any()
    assert env.unstable_count == 1
    out, err = capfd.readouterr()
    assert out == err == ""
    assert os.listdir(tmp_path) == []
