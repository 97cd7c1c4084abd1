"""The limb generator against geometry that can be checked by hand."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from env_runner.morphology import LimbGenerator

ROBOTS = {"half_cheetah.xml": 6, "ant.xml": 8, "hopper.xml": 3, "walker2d_v5.xml": 6}


def generator(xml: str) -> tuple[LimbGenerator, dict[str, int]]:
    made = LimbGenerator(xml)
    return made, {name: index for index, name in enumerate(made.param_names)}


def body(model: mujoco.MjModel, name: str) -> int:
    return mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, name)


@pytest.mark.parametrize(("xml", "limbs"), ROBOTS.items())
def test_every_limb_has_a_mass_a_length_and_a_range_and_there_is_one_friction(xml, limbs):
    made, names = generator(xml)
    assert len(names) == 3 * limbs + 1
    model = made.build(np.random.default_rng(0).uniform(0.8, 1.25, len(names)))
    assert np.isfinite(model.body_mass).all()
    assert (model.body_mass[1:] >= 0).all()


def test_a_heavier_limb_leaves_the_others_as_they_are():
    """HalfCheetah's XML fixes the total mass; the generator must not take from one limb what it gives another."""
    made, names = generator("half_cheetah.xml")
    factors = np.ones(len(names))
    stock = made.build(factors)
    factors[names["mass_bshin"]] = 2.0
    heavy = made.build(factors)
    shin = body(stock, "bshin")
    assert heavy.body_mass[shin] == pytest.approx(2 * stock.body_mass[shin])
    others = [index for index in range(stock.nbody) if index != shin]
    np.testing.assert_allclose(heavy.body_mass[others], stock.body_mass[others])
    assert stock.body_mass.sum() == pytest.approx(14.0)


def test_a_longer_leg_moves_what_hangs_on_it_and_lifts_the_torso_as_much():
    made, names = generator("walker2d_v5.xml")
    factors = np.ones(len(names))
    stock = made.build(factors)
    for side in ("", "_left"):
        factors[names[f"length_thigh{side}_joint"]] = 1.2
    long = made.build(factors)
    # The thigh is 0.45 m long and hangs straight down at the start.
    assert long.body_pos[1, 2] - stock.body_pos[1, 2] == pytest.approx(0.2 * 0.45, abs=1e-6)
    data, other = mujoco.MjData(stock), mujoco.MjData(long)
    for model, state in ((stock, data), (long, other)):
        mujoco.mj_forward(model, state)
    foot = body(stock, "foot")
    np.testing.assert_allclose(other.xpos[foot], data.xpos[foot], atol=1e-6)
    np.testing.assert_array_equal(long.qpos0, stock.qpos0)


def test_joint_ranges_keep_the_start_pose_inside():
    made, names = generator("hopper.xml")
    factors = np.ones(len(names))
    factors[names["range_thigh_joint"]] = 0.8
    stock, changed = made.build(np.ones(len(names))), made.build(factors)
    np.testing.assert_allclose(changed.jnt_range[3], 0.8 * stock.jnt_range[3])
    np.testing.assert_allclose(changed.jnt_range[4:], stock.jnt_range[4:])
    assert changed.jnt_range[3, 1] == 0.0


def test_friction_scales_every_surface():
    made, names = generator("ant.xml")
    factors = np.ones(len(names))
    factors[names["friction"]] = 0.5
    np.testing.assert_allclose(made.build(factors).geom_friction, 0.5 * made.build(np.ones(len(names))).geom_friction)
