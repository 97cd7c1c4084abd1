"""A locomotion family's description in the form of Gymnasium's environment pages, with tables read off the model."""

# mujoco is compiled and ships no type stubs.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

from typing import TYPE_CHECKING

import mujoco

if TYPE_CHECKING:
    from env_runner.task_distributions import LocomotionFamily

DERIVED_BLOCKS = {
    "cinert": (1, 10, "mass and inertia of each body about the centre of mass", "kg, kg m, kg m^2"),
    "cvel": (1, 6, "rotational and linear velocity of each body about the centre of mass", "rad/s, m/s"),
    "qfrc_actuator": (6, 1, "motor force at each joint", "N m"),
    "cfrc_ext": (1, 6, "external contact torque and force on each body", "N m, N"),
}


def describe_locomotion(family: LocomotionFamily) -> str:
    """Markdown: description, spaces with units, tasks, reward, start, end, arguments, anchors, provenance."""
    robot, model = family.robot, family.base_model
    dt = model.opt.timestep * robot.frame_skip
    noise = "standard normal noise times" if robot.velocity_noise == "normal" else "uniform noise within"
    anchors = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in family.anchors.items()) or "not known"
    tasks = "\n".join(
        f"- `{name}`: {low:g} to {high:g}"
        for name, low, high in zip(family.param_names, *family.task_range, strict=True)
    )
    separate = (
        "disjoint from one another and from training" if family.pools_are_disjoint else "the same tasks in all three"
    )
    return f"""# {family.id}

## Description
{robot.name} of Gymnasium (`{robot.gymnasium_id}`, `{robot.xml}`). {family.summary}

## Action Space
`Box({model.actuator_ctrlrange[0, 0]:g}, {model.actuator_ctrlrange[0, 1]:g}, ({model.nu},), float32)`; clipped to it, and the clipped action is charged.

| Num | Action | Min | Max | Joint | Unit at the joint |
|---|---|---|---|---|---|
{_action_rows(model)}

## Observation Space
`Box(-inf, inf, ({family.obs_dim},), float64)`. The task is not observed.

| Num | Observation | Joint | Unit |
|---|---|---|---|
{_observation_rows(family)}

## Tasks
{tasks}

{family.task_text} Fixed pools search, selection, confirmation: {separate}.

## Rewards
{family.reward_text} One control step is {dt:g} s.

## Starting State
Positions: the model's start pose plus uniform noise within {robot.reset_noise:g}; velocities: {noise} {robot.reset_noise:g}.

## Episode End
{robot.end} Truncated after {family.horizon} steps.

## Arguments
`make(num_envs, num_threads=0, options=EnvOptions(...))`: `switch_step`, `switch_task` (goal families), `failure_step`,
`failed_actuator`, `failure_scale`.

## Anchors
Mean return of one episode: {anchors}.

## Provenance
{family.source}

## Version
{family.version}
"""


def _action_rows(model: mujoco.MjModel) -> str:
    rows = []
    for motor in range(model.nu):
        joint = mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_JOINT, model.actuator_trnid[motor, 0])
        low, high = model.actuator_ctrlrange[motor]
        gear = model.actuator_gear[motor, 0]
        rows.append(f"| {motor} | motor of {joint} | {low:g} | {high:g} | {joint} | torque, {gear:g} N m per unit |")
    return "\n".join(rows)


def _observation_rows(family: LocomotionFamily) -> str:
    robot, model = family.robot, family.base_model
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
