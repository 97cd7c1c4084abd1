"""Batched worlds against Gymnasium's own v5 environments, from the same state under the same actions."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from env_runner.batched_mujoco import LoopPhysics, RolloutPhysics, compile_model, model_xml
from env_runner.robots import Ant, HalfCheetah, Hopper, Humanoid, Robot, Walker2d

ROBOTS = [HalfCheetah(), Walker2d(), Hopper(), Ant(), Humanoid()]
NAMES = [robot.name for robot in ROBOTS]
STEPS = 1000


def single_world(robot: Robot) -> RolloutPhysics | LoopPhysics:
    model = compile_model(model_xml(robot.xml))
    if robot.derived_fields:
        return LoopPhysics(model, 1, robot.frame_skip, fields=robot.derived_fields)
    return RolloutPhysics(model, 1, robot.frame_skip)


def gymnasium_world(robot: Robot):
    """Gymnasium's environment without wrappers, so that it goes on after it says that it is done."""
    env = gymnasium.make(robot.gymnasium_id).unwrapped
    env.reset(seed=3)
    return env


def actions_of(env, rng: np.random.Generator) -> np.ndarray:
    # Small actions keep the walkers up for a while, so that both healthy and fallen states are visited.
    return rng.uniform(0.6, 1.0) * rng.uniform(env.action_space.low, env.action_space.high).astype(np.float64)


def advance(robot: Robot, physics, action: np.ndarray):
    """One control step by our formulas: observation, reward, terminated."""
    before = robot.position(physics)
    assert physics.step(action[None]) is None
    velocity = (robot.position(physics) - before) / (physics.models[0].opt.timestep * robot.frame_skip)
    healthy = robot.healthy(physics)
    reward = robot.stock_reward(physics, velocity, action[None], healthy)[0]
    return robot.observe(physics)[0], reward, healthy is not None and not healthy[0]


@pytest.mark.parametrize("robot", ROBOTS, ids=NAMES)
def test_a_thousand_steps_equal_gymnasiums_to_the_last_bit(robot: Robot):
    """Rollouts start every control step from a zero warm start, so Gymnasium's is zeroed too; loops keep it."""
    env, physics, rng = gymnasium_world(robot), single_world(robot), np.random.default_rng(0)
    physics.start(np.array([0]), env.data.qpos[None], env.data.qvel[None])
    np.testing.assert_array_equal(robot.observe(physics)[0], env._get_obs())
    done_steps = 0
    for step in range(STEPS):
        if step % 250 == 249:  # a fallen robot tells little: start again
            env.reset()
            physics.start(np.array([0]), env.data.qpos[None], env.data.qvel[None])
        if isinstance(physics, RolloutPhysics):
            env.data.qacc_warmstart[:] = 0
        action = actions_of(env, rng)
        theirs = env.step(action)
        obs, reward, done = advance(robot, physics, action)
        np.testing.assert_array_equal(obs, theirs[0], err_msg=f"observation at step {step}")
        assert reward == theirs[1], f"reward at step {step}"
        assert done == theirs[2], f"done at step {step}"
        done_steps += done
    assert robot.name == "HalfCheetah" or 0 < done_steps < STEPS


@pytest.mark.parametrize("robot", [HalfCheetah(), Walker2d(), Hopper()], ids=NAMES[:3])
def test_with_gymnasiums_warm_start_one_step_agrees_to_a_millionth(robot: Robot):
    """The only difference is where the contact solver starts; it stops within its tolerance either way."""
    env, physics, rng = gymnasium_world(robot), single_world(robot), np.random.default_rng(1)
    worst = 0.0
    for step in range(STEPS):
        if step % 250 == 249:
            env.reset()
        physics.start(np.array([0]), env.data.qpos[None], env.data.qvel[None])
        action = actions_of(env, rng)
        theirs = env.step(action)
        obs, reward, done = advance(robot, physics, action)
        scale = 1 + np.abs(theirs[0]).max()
        worst = max(worst, np.abs(obs - theirs[0]).max() / scale, abs(reward - theirs[1]) / scale)
        assert done == theirs[2]
    assert worst < 1e-6


@pytest.mark.parametrize("robot", ROBOTS, ids=NAMES)
def test_start_states_are_gymnasiums_from_the_same_generator(robot: Robot):
    env = gymnasium.make(robot.gymnasium_id).unwrapped
    env.reset(seed=11)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(11)))
    qpos, qvel = robot.start_noise(rng, env.model.nq, env.model.nv)
    np.testing.assert_array_equal(env.data.qpos, env.init_qpos + qpos)
    np.testing.assert_array_equal(env.data.qvel, qvel)


@pytest.mark.parametrize("robot", ROBOTS, ids=NAMES)
def test_sizes_are_those_of_gymnasiums_spaces(robot: Robot):
    env = gymnasium.make(robot.gymnasium_id)
    assert (robot.obs_dim,) == env.observation_space.shape
    assert (robot.num_motors,) == env.action_space.shape


def test_models_without_textures_have_the_same_physics():
    for robot in ROBOTS:
        ours, theirs = compile_model(model_xml(robot.xml)), gymnasium.make(robot.gymnasium_id).unwrapped.model
        for name in (
            "body_mass",
            "body_inertia",
            "geom_friction",
            "dof_damping",
            "jnt_range",
            "dof_invweight0",
            "qpos0",
        ):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=f"{robot.name} {name}")
