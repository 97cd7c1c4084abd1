"""The tables of a locomotion family's description, in the form of Gymnasium's environment pages, read off the model."""

# mujoco is compiled and ships no type stubs.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import mujoco

from env_runner.robots import Robot

DERIVED_BLOCKS = {
    "cinert": (1, 10, "mass and inertia of each body about the centre of mass", "kg, kg m, kg m^2"),
    "cvel": (1, 6, "rotational and linear velocity of each body about the centre of mass", "rad/s, m/s"),
    "qfrc_actuator": (6, 1, "motor force at each joint", "N m"),
    "cfrc_ext": (1, 6, "external contact torque and force on each body", "N m, N"),
}


def action_rows(model: mujoco.MjModel) -> str:
    """The rows of the table of actions: one a motor."""
    rows = []
    for motor in range(model.nu):
        joint = mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_JOINT, model.actuator_trnid[motor, 0])
        low, high = model.actuator_ctrlrange[motor]
        gear = model.actuator_gear[motor, 0]
        rows.append(f"| {motor} | motor of {joint} | {low:g} | {high:g} | {joint} | torque, {gear:g} N m per unit |")
    return "\n".join(rows)


def observation_rows(robot: Robot, model: mujoco.MjModel) -> str:
    """The rows of the table of observations: one a position or velocity, one a block of what MuJoCo derives."""
    positions, velocities = [], []
    for joint in range(model.njnt):
        name = mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_JOINT, joint)
        kind = mujoco.mjtJoint(model.jnt_type[joint])
        if kind == mujoco.mjtJoint.mjJNT_FREE:
            positions += [(f"{axis} of the torso", name, "m") for axis in "xyz"]
            positions += [(f"{axis} of the torso's orientation (quaternion)", name, "-") for axis in "wxyz"]
            velocities += [(f"{axis} velocity of the torso", name, "m/s") for axis in "xyz"]
            velocities += [(f"{axis} angular velocity of the torso", name, "rad/s") for axis in "xyz"]
        elif kind == mujoco.mjtJoint.mjJNT_SLIDE:
            positions.append(("position", name, "m"))
            velocities.append(("velocity", name, "m/s"))
        else:
            positions.append(("angle", name, "rad"))
            velocities.append(("angular velocity", name, "rad/s"))
    rows = [
        f"| {num} | {what} | {joint} | {unit} |"
        for num, (what, joint, unit) in enumerate(positions[robot.skip_qpos :] + velocities)
    ]
    num = len(rows)
    for field in robot.observed_fields:
        first, width, what, unit = DERIVED_BLOCKS[field]
        count = (model.nv - first) if field == "qfrc_actuator" else (model.nbody - first) * width
        rows.append(f"| {num}-{num + count - 1} | {what} | - | {unit} |")
        num += count
    return "\n".join(rows)
