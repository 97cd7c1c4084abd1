"""Robots with an unknown body: the task is the model (one MjModel a world), the reward is Gymnasium's own of the robot.

Notation and anchors: `env_runner.locomotion`. How a model is changed: `env_runner.morphology`.
"""

# mujoco is compiled and ships no type stubs.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from typing import ClassVar

import mujoco
import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from env_runner import morphology
from env_runner.locomotion import ContinuousLocomotion
from env_runner.robots import Ant, HalfCheetah, Hopper, Robot, Walker2d
from env_runner.task_family import register_family

RAND_PARAMS = 1.5**3
"""rand-params scales by 1.5^u, u ~ U[-3, 3]: factors from 1 / 3.375 to 3.375."""


class BodyFamily(ContinuousLocomotion):
    """One way to change a body, made once for each robot. A task's parameters are factors, 1 is the stock robot."""

    changes_model = True

    def __init__(self, family_id: str, robot: Robot, *, stand_still: float, random: float) -> None:
        self.id, self.robot = family_id, robot
        self.anchors = {"stand_still": stand_still, "random": random}
        super().__init__()


class Gravity(BodyFamily):
    """Other planets."""

    param_names = ("gravity_factor",)
    low, high = (0.5,), (2.0,)
    summary = "Run forward under an unknown gravity."
    task_text = "Gravity is 9.81 m/s^2 times the factor, drawn uniformly."
    source = "Ours: no table of this family is in print."

    def world_model(self, task: Float64[ndarray, " P"]) -> mujoco.MjModel:
        return morphology.with_gravity(self.base_model, float(task[0]))


class LogUniformBody(BodyFamily):
    """Factors that are log-uniform within `bound` times and one part in `bound` of the stock robot."""

    log_scale = True

    @abstractmethod
    def bound(self, param_name: str) -> float:
        """The largest factor of this parameter."""

    @cached_property
    def high(self) -> tuple[float, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return tuple(self.bound(name) for name in self.param_names)

    @cached_property
    def low(self) -> tuple[float, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return tuple(1 / high for high in self.high)


class Mass(LogUniformBody):
    """Lighter or heavier as a whole."""

    param_names = ("mass_factor",)
    summary = "Run forward with an unknown body mass."
    task_text = "All masses and inertias times one factor 1.5^u, u ~ U[-3, 3]."
    source = "Ours, with the range of rand-params (Rothfuss et al., rand_param_envs)."

    def bound(self, param_name: str) -> float:
        return RAND_PARAMS

    def world_model(self, task: Float64[ndarray, " P"]) -> mujoco.MjModel:
        return morphology.with_mass(self.base_model, float(task[0]))


class RandParams(LogUniformBody):
    """Every mass, inertia, joint damping and friction times its own factor."""

    summary = "Move forward with an unknown body: every mass, inertia, damping and friction has its own factor."
    task_text = "Each factor is 1.5^u, u ~ U[-3, 3], for joint damping 1.3^u."
    source = (
        "rand_param_envs (Rothfuss et al.; used by ProMP and PEARL). A body's three inertias share one factor here, so "
        "that every body stays physically possible; there each has its own."
    )

    @cached_property
    def param_names(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return morphology.param_names(self.base_model)

    def bound(self, param_name: str) -> float:
        return 1.3**3 if param_name.startswith("damping_") else RAND_PARAMS

    def world_model(self, task: Float64[ndarray, " P"]) -> mujoco.MjModel:
        return morphology.with_params(self.base_model, task)


class Limbs(LogUniformBody):
    """Every limb's mass and length, every joint's range and the friction times its own factor, made in the XML."""

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

    def bound(self, param_name: str) -> float:
        return self.RANGES[param_name.split("_")[0]]

    @cached_property
    def _compiled(self) -> Callable[[tuple[float, ...]], mujoco.MjModel]:
        # Held-out morphologies come back at every evaluation; compiling one takes about a millisecond.
        return lru_cache(maxsize=128)(lambda factors: self._generator.build(np.array(factors)))

    def world_model(self, task: Float64[ndarray, " P"]) -> mujoco.MjModel:
        return self._compiled(tuple(task.tolist()))


register_family(Gravity("halfcheetah-gravity", HalfCheetah(), stand_still=-0.2, random=-51.9))
register_family(Mass("halfcheetah-mass", HalfCheetah(), stand_still=-0.2, random=-56.5))
register_family(Mass("ant-mass", Ant(), stand_still=198.8, random=-32.0))
register_family(RandParams("walker2d-params", Walker2d(), stand_still=87.2, random=2.9))
register_family(RandParams("hopper-params", Hopper(), stand_still=142.4, random=17.4))
register_family(Limbs("imujoco-halfcheetah", HalfCheetah(), stand_still=-0.2, random=-54.4))
register_family(Limbs("imujoco-ant", Ant(), stand_still=195.5, random=-29.7))
register_family(Limbs("imujoco-hopper", Hopper(), stand_still=149.8, random=16.7))
register_family(Limbs("imujoco-walker2d", Walker2d(), stand_still=73.2, random=2.2))
