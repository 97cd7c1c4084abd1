"""The locomotion families, and the one place to look any family up: `get_family(id)`, `FAMILIES`.

In the texts below v is the x-velocity in m/s over one control step, a the clipped action, v* the target, and sums run
over motors. Each class names its source. Anchors "stand_still" and "random" that are not exact were measured with
`env_runner.anchors.measure_anchor` (seed 0, 160 to 400 episodes, mujoco 4.0.0, gymnasium 1.4.0).
"""

# mujoco is compiled and ships no type stubs.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import ClassVar

import mujoco
import numpy as np
from jaxtyping import Bool, Float64
from numpy import ndarray

from core.errors import InputError
from env_runner import gym_tasks, metaworld_tasks, morphology, toy
from env_runner.batched_mujoco import MujocoTaskEnv, compile_model, model_xml
from env_runner.describe import describe_locomotion
from env_runner.robots import Ant, HalfCheetah, Hopper, Humanoid, Physics, Robot, Walker2d
from env_runner.task_family import (
    FAMILIES,
    POOLS,
    ActionInfo,
    ContinuousTasks,
    EnvOptions,
    FiniteTasks,
    Pool,
    TaskFamily,
    TaskVectorEnv,
)

RAND_PARAMS = 1.5**3
"""rand-params scales by 1.5^u, u ~ U[-3, 3]: factors from 1 / 3.375 to 3.375."""


class LocomotionFamily(TaskFamily):
    """A robot of Gymnasium's with a reward that depends on the task, or a model that does."""

    robot: ClassVar[Robot]
    changes_model: ClassVar[bool] = False
    """The task is the model (masses, gravity, limbs); the reward is the robot's stock one."""
    engine_packages = ("gymnasium", "mujoco")
    horizon = 200
    summary: ClassVar[str]
    task_text: ClassVar[str]
    reward_text: ClassVar[str] = "Gymnasium's own v5 reward of this robot."
    source: ClassVar[str]

    @cached_property
    def base_model(self) -> mujoco.MjModel:
        """The unchanged model of the robot; shared, not to be modified."""
        return compile_model(model_xml(self.robot.xml))

    @property
    def task_range(self) -> tuple[Sequence[float], Sequence[float]]:
        """Lowest and highest value of each parameter, for the description."""
        raise NotImplementedError

    @property
    def docstring(self) -> str:
        return describe_locomotion(self)

    def world_model(self, task: Float64[ndarray, " P"]) -> mujoco.MjModel:
        """The model of one task's world: the base model unless `changes_model`."""
        return self.base_model

    def reward(
        self,
        physics: Physics,
        velocity: Float64[ndarray, "N C"],
        actions: Float64[ndarray, "N A"],
        healthy: Bool[ndarray, " N"] | None,
        tasks: Float64[ndarray, "N P"],
    ) -> Float64[ndarray, " N"]:
        """Reward of the step just made. velocity in m/s (x, or x and y), actions clipped."""
        return self.robot.stock_reward(physics, velocity, actions, healthy)

    def make(self, num_envs: int, *, num_threads: int = 0, options: EnvOptions | None = None) -> TaskVectorEnv:
        return MujocoTaskEnv(self, num_envs, num_threads, options)


class ContinuousLocomotion(LocomotionFamily, ContinuousTasks):
    """Locomotion with tasks from a box."""

    @property
    def task_range(self) -> tuple[Sequence[float], Sequence[float]]:
        return self.low, self.high


class FiniteLocomotion(LocomotionFamily, FiniteTasks):
    """Locomotion with a handful of tasks."""

    @property
    def task_range(self) -> tuple[Sequence[float], Sequence[float]]:
        tasks = np.array(self.tasks)
        return tasks.min(axis=0).tolist(), tasks.max(axis=0).tolist()


# Target velocities ---------------------------------------------------------------------------------------------------
class HalfCheetahVel(ContinuousLocomotion):
    """The headline: run at a hidden speed."""

    id = "halfcheetah-vel"
    robot = HalfCheetah()
    obs_dim, action = 17, ActionInfo("gaussian", 6)
    param_names = ("target_velocity",)
    low, high = (0.0,), (3.0,)
    # Standing still costs E|v*| a step and the best constant speed that is blind to the task E|v* - median|: exact.
    # The ceiling is what the best published and tried agents come to, -20 to -40.
    anchors: Mapping[str, float] = {"stand_still": -300.0, "random": -349.0, "task_blind": -150.0, "ceiling": -30.0}
    summary = "Run at a target speed that only the reward tells."
    task_text = "Drawn uniformly (m/s); the confirmation pool is linspace(0.075, 3, 40)."
    reward_text = "-|v - v*| - 0.05 sum(a^2). The 0.05 is half of Gymnasium's default control cost."
    source = "ProMP, PEARL, VariBAD and pomdp-baselines share this formula; they differ in the robot's XML and MuJoCo version."

    def reward(
        self, physics: Physics, velocity: ndarray, actions: ndarray, healthy: ndarray | None, tasks: ndarray
    ) -> Float64[ndarray, " N"]:
        return -np.abs(velocity[:, 0] - tasks[:, 0]) - 0.05 * np.square(actions).sum(axis=1)


class HalfCheetahVelMaml(HalfCheetahVel):
    """The MAML paper's range."""

    id = "halfcheetah-vel-maml"
    high = (2.0,)
    anchors: Mapping[str, float] = {"stand_still": -200.0, "random": -255.0, "task_blind": -100.0}
    task_text = "Drawn uniformly (m/s)."
    source = "Finn et al. 2017 (MAML), section 5.3: targets U[0, 2], 200 steps."


class HalfCheetahVelGarage(HalfCheetahVel):
    """garage's variant."""

    id = "halfcheetah-vel-garage"
    high = (2.0,)
    horizon = 100
    anchors: Mapping[str, float] = {"stand_still": -100.0, "random": -127.0, "task_blind": -50.0}
    task_text = "Drawn uniformly (m/s)."
    source = "garage (rlworkgroup), HalfCheetahVelEnv: targets U[0, 2], 100 steps."


class HalfCheetahVelAmago(HalfCheetahVel):
    """AMAGO's variant."""

    id = "halfcheetah-vel-amago"
    horizon = 1000
    anchors: Mapping[str, float] = {"stand_still": -1500.0, "random": -1740.0, "task_blind": -750.0}
    task_text = "Drawn uniformly (m/s)."
    source = "AMAGO (Grigsby et al. 2024): targets U[0, 3], 1000 steps."


class HalfCheetahVelClassic(FiniteLocomotion):
    """Kept for compatibility with an earlier system; its best behaviour does not depend on the task."""

    id = "halfcheetah-vel-classic"
    robot = HalfCheetah()
    horizon = 1000
    obs_dim, action = 17, ActionInfo("gaussian", 6)
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

    def reward(
        self, physics: Physics, velocity: ndarray, actions: ndarray, healthy: ndarray | None, tasks: ndarray
    ) -> Float64[ndarray, " N"]:
        stock = self.robot.stock_reward(physics, velocity, actions, healthy)
        return 0.5 * stock - 0.5 * np.abs(velocity[:, 0] - tasks[:, 0])


class HalfCheetahDir(FiniteLocomotion):
    """Run forward or backward."""

    id = "halfcheetah-dir"
    robot = HalfCheetah()
    obs_dim, action = 17, ActionInfo("gaussian", 6)
    param_names = ("direction",)
    tasks = ((-1.0,), (1.0,))
    anchors: Mapping[str, float] = {"stand_still": 0.0, "random": -18.0, "task_blind": 0.0}
    summary = "Run forward or backward as fast as possible; only the reward tells which."
    task_text = "-1 or +1, both of them in training and in every pool."
    reward_text = "direction * v - 0.05 sum(a^2)."
    source = "Finn et al. 2017 (MAML); ProMP, PEARL."

    def reward(
        self, physics: Physics, velocity: ndarray, actions: ndarray, healthy: ndarray | None, tasks: ndarray
    ) -> Float64[ndarray, " N"]:
        return tasks[:, 0] * velocity[:, 0] - 0.05 * np.square(actions).sum(axis=1)


class AntVel(ContinuousLocomotion):
    """Ant at a hidden speed."""

    id = "ant-vel"
    robot = Ant()
    obs_dim, action = 105, ActionInfo("gaussian", 8)
    param_names = ("target_velocity",)
    low, high = (0.0,), (3.0,)
    anchors: Mapping[str, float] = {"stand_still": -91.6, "random": -47.4}
    summary = "Run at a target speed that only the reward tells, without falling."
    task_text = "Drawn uniformly (m/s)."
    reward_text = "1 - |v - v*| + 0.05 - 0.005 sum(a^2) - 5e-4 sum(clip(contact forces, -1, 1)^2)."
    source = "Finn et al. 2017 (MAML), AntRandGoalVel; Gymnasium's contact cost and health limits."

    def reward(
        self, physics: Physics, velocity: ndarray, actions: ndarray, healthy: ndarray | None, tasks: ndarray
    ) -> Float64[ndarray, " N"]:
        goal = 1.0 - np.abs(velocity[:, 0] - tasks[:, 0])
        return goal + 0.05 - 0.005 * np.square(actions).sum(axis=1) - self.robot.contact_cost(physics)


class Walker2dVel(ContinuousLocomotion):
    """Walker at a hidden speed."""

    id = "walker2d-vel"
    robot = Walker2d(frame_skip=8)
    obs_dim, action = 17, ActionInfo("gaussian", 6)
    param_names = ("target_velocity",)
    low, high = (0.0,), (10.0,)
    anchors: Mapping[str, float] = {"stand_still": 580.0, "random": 83.6}
    summary = "Walk at a target speed that only the reward tells, without falling."
    task_text = "Drawn uniformly (m/s)."
    reward_text = "-|v - v*| + 15 - 0.001 sum(a^2)."
    source = "ProMP, Walker2DRandVelEnv: its alive bonus 15 and frame skip 8 (Gymnasium's own are 1 and 4), U[0, 10]."

    def reward(
        self, physics: Physics, velocity: ndarray, actions: ndarray, healthy: ndarray | None, tasks: ndarray
    ) -> Float64[ndarray, " N"]:
        return -np.abs(velocity[:, 0] - tasks[:, 0]) + 15.0 - 1e-3 * np.square(actions).sum(axis=1)


# Directions in the plane ---------------------------------------------------------------------------------------------
class AntDir(ContinuousLocomotion):
    """Ant in a hidden direction."""

    id = "ant-dir"
    robot = Ant()
    obs_dim, action = 105, ActionInfo("gaussian", 8)
    param_names = ("angle",)
    low, high = (0.0,), (2 * np.pi,)
    grid_offset = 0.75
    anchors: Mapping[str, float] = {"stand_still": 199.7, "random": -26.1}
    summary = "Run in a direction of the plane that only the reward tells."
    task_text = "The direction's angle from the x-axis, drawn uniformly (rad)."
    reward_text = "velocity along the direction - 0.5 sum(a^2) + 1, velocity (x, y) of the torso in m/s."
    source = "PEARL, AntDirEnv. VariBAD's variant takes +-1 as radians; this one does not."

    def reward(
        self, physics: Physics, velocity: ndarray, actions: ndarray, healthy: ndarray | None, tasks: ndarray
    ) -> Float64[ndarray, " N"]:
        along = np.cos(tasks[:, 0]) * velocity[:, 0] + np.sin(tasks[:, 0]) * velocity[:, 1]
        return along - 0.5 * np.square(actions).sum(axis=1) + 1.0


class HumanoidDir(ContinuousLocomotion):
    """Humanoid in a hidden direction."""

    id = "humanoid-dir"
    robot = Humanoid()
    obs_dim, action = 348, ActionInfo("gaussian", 17)
    param_names = ("angle",)
    low, high = (0.0,), (2 * np.pi,)
    grid_offset = 0.75
    anchors: Mapping[str, float] = {"stand_still": 201.6, "random": 122.5}
    summary = "Walk in a direction of the plane that only the reward tells."
    task_text = "The direction's angle from the x-axis, drawn uniformly (rad)."
    reward_text = (
        "0.25 * velocity along the direction - 0.1 sum(a^2) + 5, velocity (x, y) of the centre of mass in m/s."
    )
    source = "PEARL, HumanoidDirEnv, without its impact cost."

    def reward(
        self, physics: Physics, velocity: ndarray, actions: ndarray, healthy: ndarray | None, tasks: ndarray
    ) -> Float64[ndarray, " N"]:
        along = np.cos(tasks[:, 0]) * velocity[:, 0] + np.sin(tasks[:, 0]) * velocity[:, 1]
        return 0.25 * along - 0.1 * np.square(actions).sum(axis=1) + 5.0


# Dynamics: one MjModel a world ---------------------------------------------------------------------------------------
class HalfCheetahGravity(ContinuousLocomotion):
    """HalfCheetah on other planets."""

    id = "halfcheetah-gravity"
    robot = HalfCheetah()
    changes_model = True
    obs_dim, action = 17, ActionInfo("gaussian", 6)
    param_names = ("gravity_factor",)
    low, high = (0.5,), (2.0,)
    anchors: Mapping[str, float] = {"stand_still": -0.2, "random": -51.9}
    summary = "Run forward under an unknown gravity."
    task_text = "Gravity is 9.81 m/s^2 times the factor, drawn uniformly."
    source = "Ours: no table of this family is in print."

    def world_model(self, task: Float64[ndarray, " P"]) -> mujoco.MjModel:
        return morphology.with_gravity(self.base_model, float(task[0]))


class HalfCheetahMass(ContinuousLocomotion):
    """HalfCheetah, lighter or heavier."""

    id = "halfcheetah-mass"
    robot = HalfCheetah()
    changes_model = True
    obs_dim, action = 17, ActionInfo("gaussian", 6)
    param_names = ("mass_factor",)
    low, high, log_scale = (1 / RAND_PARAMS,), (RAND_PARAMS,), True
    anchors: Mapping[str, float] = {"stand_still": -0.2, "random": -56.5}
    summary = "Run forward with an unknown body mass."
    task_text = "All masses and inertias times one factor 1.5^u, u ~ U[-3, 3]."
    source = "Ours, with the range of rand-params (Rothfuss et al., rand_param_envs)."

    def world_model(self, task: Float64[ndarray, " P"]) -> mujoco.MjModel:
        return morphology.with_mass(self.base_model, float(task[0]))


class AntMass(HalfCheetahMass):
    """Ant, lighter or heavier."""

    id = "ant-mass"
    robot = Ant()
    obs_dim, action = 105, ActionInfo("gaussian", 8)
    anchors: Mapping[str, float] = {"stand_still": 198.8, "random": -32.0}


class RandParams(ContinuousLocomotion):
    """Every mass, inertia, joint damping and friction times its own factor."""

    changes_model = True
    log_scale = True
    summary = "Move forward with an unknown body: every mass, inertia, damping and friction has its own factor."
    task_text = "Each factor is 1.5^u, u ~ U[-3, 3], for joint damping 1.3^u."
    source = (
        "rand_param_envs (Rothfuss et al.; used by ProMP and PEARL). A body's three inertias share one factor here, so "
        "that every body stays physically possible; there each has its own."
    )

    @cached_property
    def param_names(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return morphology.param_names(self.base_model)

    @cached_property
    def high(self) -> tuple[float, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return tuple(1.3**3 if name.startswith("damping_") else RAND_PARAMS for name in self.param_names)

    @cached_property
    def low(self) -> tuple[float, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return tuple(1 / high for high in self.high)

    def world_model(self, task: Float64[ndarray, " P"]) -> mujoco.MjModel:
        return morphology.with_params(self.base_model, task)


class Walker2dParams(RandParams):
    """Walker2d with an unknown body."""

    id = "walker2d-params"
    robot = Walker2d()
    obs_dim, action = 17, ActionInfo("gaussian", 6)
    anchors: Mapping[str, float] = {"stand_still": 87.2, "random": 2.9}


class HopperParams(RandParams):
    """Hopper with an unknown body."""

    id = "hopper-params"
    robot = Hopper()
    obs_dim, action = 11, ActionInfo("gaussian", 3)
    anchors: Mapping[str, float] = {"stand_still": 142.4, "random": 17.4}


class Limbs(ContinuousLocomotion):
    """Every limb's mass and length, every joint's range and the friction times its own factor, made in the XML."""

    changes_model = True
    log_scale = True
    RANGES: ClassVar[Mapping[str, float]] = {"mass": 2.0, "length": 1.25, "range": 1.25, "friction": 2.0}
    summary = "Move forward with an unknown body: limb masses and lengths, joint ranges and friction are changed."
    task_text = (
        "Each factor is log-uniform: masses and friction within a factor 2 of the stock robot, lengths and joint ranges "
        "within 1.25. A limb is a body that a motor moves. The start pose touches the ground as the stock robot's does; "
        "a planar robot's z coordinate is relative to its standing height."
    )
    source = "Ours, after iMuJoCo, which ships files but no generator; made from Gymnasium's XML."

    @cached_property
    def _generator(self) -> morphology.LimbGenerator:
        return morphology.LimbGenerator(self.robot.xml)

    @cached_property
    def param_names(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._generator.param_names

    @cached_property
    def high(self) -> tuple[float, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return tuple(self.RANGES[name.split("_")[0]] for name in self.param_names)

    @cached_property
    def low(self) -> tuple[float, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return tuple(1 / high for high in self.high)

    @cached_property
    def _compiled(self) -> object:
        # Held-out morphologies come back at every evaluation; compiling one takes about a millisecond.
        return lru_cache(maxsize=128)(lambda factors: self._generator.build(np.array(factors)))

    def world_model(self, task: Float64[ndarray, " P"]) -> mujoco.MjModel:
        return self._compiled(tuple(task.tolist()))  # pyright: ignore[reportCallIssue]


class ImujocoHalfCheetah(Limbs):
    """HalfCheetah with changed limbs."""

    id = "imujoco-halfcheetah"
    robot = HalfCheetah()
    obs_dim, action = 17, ActionInfo("gaussian", 6)
    anchors: Mapping[str, float] = {"stand_still": -0.2, "random": -54.4}


class ImujocoAnt(Limbs):
    """Ant with changed limbs."""

    id = "imujoco-ant"
    robot = Ant()
    obs_dim, action = 105, ActionInfo("gaussian", 8)
    anchors: Mapping[str, float] = {"stand_still": 195.5, "random": -29.7}


class ImujocoHopper(Limbs):
    """Hopper with changed limbs."""

    id = "imujoco-hopper"
    robot = Hopper()
    obs_dim, action = 11, ActionInfo("gaussian", 3)
    anchors: Mapping[str, float] = {"stand_still": 149.8, "random": 16.7}


class ImujocoWalker2d(Limbs):
    """Walker2d with changed limbs."""

    id = "imujoco-walker2d"
    robot = Walker2d()
    obs_dim, action = 17, ActionInfo("gaussian", 6)
    anchors: Mapping[str, float] = {"stand_still": 73.2, "random": 2.2}


LOCOMOTION: tuple[type[LocomotionFamily], ...] = (
    HalfCheetahVel,
    HalfCheetahVelMaml,
    HalfCheetahVelGarage,
    HalfCheetahVelAmago,
    HalfCheetahVelClassic,
    HalfCheetahDir,
    HalfCheetahGravity,
    HalfCheetahMass,
    AntVel,
    AntDir,
    AntMass,
    Walker2dVel,
    Walker2dParams,
    HopperParams,
    HumanoidDir,
    ImujocoHalfCheetah,
    ImujocoAnt,
    ImujocoHopper,
    ImujocoWalker2d,
)
for _family in (*LOCOMOTION, *toy.TOYS):
    FAMILIES.register(_family.id)(_family())
for _id in gym_tasks.LISTED:
    FAMILIES.register(_id)(gym_tasks.GymnasiumTask(_id))
for _id in metaworld_tasks.LISTED:
    FAMILIES.register(_id)(metaworld_tasks.MetaWorldFamily(_id))


@lru_cache(maxsize=64)
def get_family(family_id: str) -> TaskFamily:
    """The family with this id: one of `FAMILIES`, `metaworld-ml1:<task>`, or any environment id of Gymnasium.

    Raises InputError with the nearest match and the list for a name that is none of these, and with the pip command
    where an extra is missing.
    """
    if family_id in FAMILIES:
        return FAMILIES[family_id]
    if isinstance(family_id, str) and family_id.startswith("metaworld-ml1:"):
        return metaworld_tasks.MetaWorldFamily(family_id)
    if isinstance(family_id, str) and gym_tasks.is_gymnasium_id(family_id):
        return gym_tasks.GymnasiumTask(family_id)
    return FAMILIES[family_id]  # raises with the nearest match


__all__ = [
    "FAMILIES",
    "POOLS",
    "ActionInfo",
    "EnvOptions",
    "InputError",
    "LocomotionFamily",
    "Pool",
    "TaskFamily",
    "TaskVectorEnv",
    "get_family",
]
