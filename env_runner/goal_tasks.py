"""Robots with a hidden goal, a velocity or a direction, that only the reward tells. Notation: `env_runner.locomotion`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from env_runner.drawing import Lived, Track
from env_runner.locomotion import ContinuousLocomotion, FiniteLocomotion, Step
from env_runner.robots import Ant, HalfCheetah, Humanoid, Walker2d
from env_runner.task_family import register_family


# Target velocities ---------------------------------------------------------------------------------------------------
class TargetVelocity(ContinuousLocomotion):
    """Run at a hidden speed."""

    param_names = ("target_velocity",)
    task_text = "Drawn uniformly (m/s)."

    def track(self, lived: Lived) -> Track:
        return velocity_and_target(lived)


def velocity_and_target(lived: Lived) -> Track:
    """v beside v*, in m/s."""
    return Track("velocity", lived.infos["x_velocity"], lived.tasks[:, 0], "m/s")


def distance_to_target(step: Step) -> Float64[ndarray, " N"]:
    """|v - v*| in m/s."""
    return np.abs(step.velocity[:, 0] - step.tasks[:, 0])


@register_family
class HalfCheetahVel(TargetVelocity):
    """The headline: run at a hidden speed."""

    id = "halfcheetah-vel"
    robot = HalfCheetah()
    low, high = (0.0,), (3.0,)
    # Standing still costs E|v*| a step and the best constant speed that is blind to the task E|v* - median|: exact.
    # The ceiling is what the best published and tried agents come to, -20 to -40.
    anchors: Mapping[str, float] = {"stand_still": -300.0, "random": -349.0, "task_blind": -150.0, "ceiling": -30.0}
    summary = "Run at a target speed that only the reward tells."
    task_text = "Drawn uniformly (m/s); the confirmation pool is linspace(0.075, 3, 40)."
    reward_text = "-|v - v*| - 0.05 sum(a^2). The 0.05 is half of Gymnasium's default control cost."
    source = "ProMP, PEARL, VariBAD and pomdp-baselines share this formula; they differ in the robot's XML and MuJoCo version."

    def reward(self, step: Step) -> Float64[ndarray, " N"]:
        return -distance_to_target(step) - 0.05 * step.effort


@register_family
class HalfCheetahVelMaml(HalfCheetahVel):
    """The MAML paper's range."""

    id = "halfcheetah-vel-maml"
    high = (2.0,)
    anchors: Mapping[str, float] = {"stand_still": -200.0, "random": -255.0, "task_blind": -100.0}
    task_text = TargetVelocity.task_text
    source = "Finn et al. 2017 (MAML), section 5.3: targets U[0, 2], 200 steps."


@register_family
class HalfCheetahVelGarage(HalfCheetahVelMaml):
    """garage's variant."""

    id = "halfcheetah-vel-garage"
    horizon = 100
    anchors: Mapping[str, float] = {"stand_still": -100.0, "random": -127.0, "task_blind": -50.0}
    source = "garage (rlworkgroup), HalfCheetahVelEnv: targets U[0, 2], 100 steps."


@register_family
class HalfCheetahVelAmago(HalfCheetahVel):
    """AMAGO's variant."""

    id = "halfcheetah-vel-amago"
    horizon = 1000
    anchors: Mapping[str, float] = {"stand_still": -1500.0, "random": -1740.0, "task_blind": -750.0}
    task_text = TargetVelocity.task_text
    source = "AMAGO (Grigsby et al. 2024): targets U[0, 3], 1000 steps."


@register_family
class HalfCheetahVelClassic(FiniteLocomotion):
    """Kept for compatibility with an earlier system; its best behaviour does not depend on the task."""

    id = "halfcheetah-vel-classic"
    robot = HalfCheetah()
    horizon = 1000
    param_names = ("target_velocity",)
    tasks = ((0.5,), (1.0,), (1.5,), (2.0,), (2.5,))
    # 0.5 v - 0.5 |v - v*| is 0.5 v* for every v >= v*: running fast is optimal whatever the task. Exact, without
    # the control cost, which makes both an upper bound.
    anchors: Mapping[str, float] = {"stand_still": -750.0, "random": -951.0, "task_blind": 750.0, "ceiling": 750.0}
    summary = "Run at a target speed, with half of the stock reward mixed in."
    task_text = "One of five speeds (m/s), all of them in training and in every pool."
    reward_text = (
        "0.5 (v - 0.1 sum(a^2)) - 0.5 |v - v*|. For v >= v* this is 0.5 v* less the control cost, so a policy that "
        "always runs fast needs no knowledge of the task: no measure of adaptation."
    )
    source = "SSM-MetaRL-TestCompute; for compatibility only."

    def reward(self, step: Step) -> Float64[ndarray, " N"]:
        return 0.5 * super().reward(step) - 0.5 * distance_to_target(step)

    def track(self, lived: Lived) -> Track:
        return velocity_and_target(lived)


@register_family
class AntVel(TargetVelocity):
    """Ant at a hidden speed."""

    id = "ant-vel"
    robot = Ant()
    low, high = (0.0,), (3.0,)
    anchors: Mapping[str, float] = {"stand_still": -91.6, "random": -47.4}
    summary = "Run at a target speed that only the reward tells, without falling."
    reward_text = "1 - |v - v*| + 0.05 - 0.005 sum(a^2) - 5e-4 sum(clip(contact forces, -1, 1)^2)."
    source = "Finn et al. 2017 (MAML), AntRandGoalVel; Gymnasium's contact cost and health limits."

    def reward(self, step: Step) -> Float64[ndarray, " N"]:
        contact = self.robot.contact_cost(step.physics)
        return 1.0 - distance_to_target(step) + 0.05 - 0.005 * step.effort - contact


@register_family
class Walker2dVel(TargetVelocity):
    """Walker at a hidden speed."""

    id = "walker2d-vel"
    robot = Walker2d(frame_skip=8)
    low, high = (0.0,), (10.0,)
    anchors: Mapping[str, float] = {"stand_still": 580.0, "random": 83.6}
    summary = "Walk at a target speed that only the reward tells, without falling."
    reward_text = "-|v - v*| + 15 - 0.001 sum(a^2)."
    source = "ProMP, Walker2DRandVelEnv: its alive bonus 15 and frame skip 8 (Gymnasium's own are 1 and 4), U[0, 10]."

    def reward(self, step: Step) -> Float64[ndarray, " N"]:
        return -distance_to_target(step) + 15.0 - 1e-3 * step.effort


# Directions ----------------------------------------------------------------------------------------------------------
@register_family
class HalfCheetahDir(FiniteLocomotion):
    """Run forward or backward."""

    id = "halfcheetah-dir"
    robot = HalfCheetah()
    param_names = ("direction",)
    tasks = ((-1.0,), (1.0,))
    anchors: Mapping[str, float] = {"stand_still": 0.0, "random": -18.0, "task_blind": 0.0}
    summary = "Run forward or backward as fast as possible; only the reward tells which."
    task_text = "-1 or +1, both of them in training and in every pool."
    reward_text = "direction * v - 0.05 sum(a^2)."
    source = "Finn et al. 2017 (MAML); ProMP, PEARL."

    def reward(self, step: Step) -> Float64[ndarray, " N"]:
        return step.tasks[:, 0] * step.velocity[:, 0] - 0.05 * step.effort

    def track(self, lived: Lived) -> Track:
        return Track("velocity the right way", lived.tasks[:, 0] * lived.infos["x_velocity"], unit="m/s")

    def heading(self, lived: Lived) -> Float64[ndarray, "T 2"]:
        return np.stack((np.sign(lived.tasks[:, 0]), np.zeros(len(lived.tasks))), axis=1)


class PlanarDirection(ContinuousLocomotion):
    """Run in a hidden direction of the plane."""

    param_names = ("angle",)
    low, high = (0.0,), (2 * np.pi,)
    grid_offset = 0.75
    task_text = "The direction's angle from the x-axis, drawn uniformly (rad)."

    def heading(self, lived: Lived) -> Float64[ndarray, "T 2"]:
        return np.stack((np.cos(lived.tasks[:, 0]), np.sin(lived.tasks[:, 0])), axis=1)

    def track(self, lived: Lived) -> Track:
        velocity = np.stack((lived.infos["x_velocity"], lived.infos["y_velocity"]), axis=1)
        return Track("velocity the right way", (self.heading(lived) * velocity).sum(axis=1), unit="m/s")


def speed_along(step: Step) -> Float64[ndarray, " N"]:
    """Velocity along the task's direction in m/s."""
    angle = step.tasks[:, 0]
    return np.cos(angle) * step.velocity[:, 0] + np.sin(angle) * step.velocity[:, 1]


@register_family
class AntDir(PlanarDirection):
    """Ant in a hidden direction."""

    id = "ant-dir"
    robot = Ant()
    anchors: Mapping[str, float] = {"stand_still": 199.7, "random": -26.1}
    summary = "Run in a direction of the plane that only the reward tells."
    reward_text = "velocity along the direction - 0.5 sum(a^2) + 1, velocity (x, y) of the torso in m/s."
    source = "PEARL, AntDirEnv. VariBAD's variant takes +-1 as radians; this one does not."

    def reward(self, step: Step) -> Float64[ndarray, " N"]:
        return speed_along(step) - 0.5 * step.effort + 1.0


@register_family
class HumanoidDir(PlanarDirection):
    """Humanoid in a hidden direction."""

    id = "humanoid-dir"
    robot = Humanoid()
    anchors: Mapping[str, float] = {"stand_still": 201.6, "random": 122.5}
    summary = "Walk in a direction of the plane that only the reward tells."
    reward_text = (
        "0.25 * velocity along the direction - 0.1 sum(a^2) + 5, velocity (x, y) of the centre of mass in m/s."
    )
    source = "PEARL, HumanoidDirEnv, without its impact cost."

    def reward(self, step: Step) -> Float64[ndarray, " N"]:
        return 0.25 * speed_along(step) - 0.1 * step.effort + 5.0
