"""Gymnasium's v5 robots as formulas over N worlds: start noise, observation, health, stock reward.

Each class repeats the arithmetic of `gymnasium/envs/mujoco/<name>_v5.py` (Gymnasium 1.x) in the same order of operations,
so that a batched step is equal to Gymnasium's to the last bit wherever the physics is (tests/env_runner/test_parity.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float64
from numpy import ndarray

from env_runner.batched_mujoco import LoopPhysics, RolloutPhysics

Physics = RolloutPhysics | LoopPhysics


@dataclass(frozen=True)
class Robot:
    """One of Gymnasium's robots. `skip_qpos` leading positions (x, or x and y) are left out of the observation."""

    name: ClassVar[str]
    xml: ClassVar[str]
    gymnasium_id: ClassVar[str]
    obs_dim: ClassVar[int]
    """D, the size of Gymnasium's observation."""
    num_motors: ClassVar[int]
    """A, the size of the action."""
    frame_skip: int
    reset_noise: ClassVar[float]
    velocity_noise: ClassVar[Literal["normal", "uniform"]]
    skip_qpos: ClassVar[int] = 1
    max_observed_speed: ClassVar[float] = np.inf
    control_cost_weight: ClassVar[float]
    forward_reward_weight: ClassVar[float] = 1.0
    healthy_reward: ClassVar[float] = 0.0
    derived_fields: ClassVar[tuple[str, ...]] = ()
    """MjData arrays that the observation or reward needs; a robot with any is stepped by LoopPhysics."""
    observed_fields: ClassVar[tuple[str, ...]] = ()
    """Those of them that the observation ends with, in order."""
    end: ClassVar[str] = "Never terminates."
    """When an episode terminates, in words."""

    def start_noise(
        self, rng: np.random.Generator, nq: int, nv: int
    ) -> tuple[Float64[ndarray, " nq"], Float64[ndarray, " nv"]]:
        """Gymnasium's start noise, drawn in Gymnasium's order: positions U(-s, s), velocities s N(0, 1) or U(-s, s)."""
        scale = self.reset_noise
        qpos = rng.uniform(-scale, scale, nq)
        qvel = scale * rng.standard_normal(nv) if self.velocity_noise == "normal" else rng.uniform(-scale, scale, nv)
        return qpos, qvel

    def position(self, physics: Physics) -> Float64[ndarray, "N C"]:
        """What is differenced to get the velocity: x (C = 1), or x and y (C = 2), in metres. A copy."""
        return physics.qpos[:, :1].copy()

    def observe(self, physics: Physics) -> Float64[ndarray, "N D"]:
        """Gymnasium's observation of every world."""
        qvel = physics.qvel
        if np.isfinite(self.max_observed_speed):
            qvel = np.clip(qvel, -self.max_observed_speed, self.max_observed_speed)
        return np.concatenate((physics.qpos[:, self.skip_qpos :], qvel), axis=1)

    def healthy(self, physics: Physics) -> Bool[ndarray, " N"] | None:
        """Which worlds may go on, or None for a robot that never terminates."""
        return None

    def control_cost(self, actions: Float64[ndarray, "N A"]) -> Float64[ndarray, " N"]:
        """w * sum(a^2)."""
        return self.control_cost_weight * np.square(actions).sum(axis=1)

    def contact_cost(self, physics: Physics) -> Float64[ndarray, " N"] | float:
        """The cost of contact forces, 0 for a robot without."""
        return 0.0

    def stock_reward(
        self,
        physics: Physics,
        velocity: Float64[ndarray, "N C"],
        actions: Float64[ndarray, "N A"],
        healthy: Bool[ndarray, " N"] | None,
    ) -> Float64[ndarray, " N"]:
        """Gymnasium v5's own reward: forward + healthy - control cost - contact cost."""
        rewards = self.forward_reward_weight * velocity[:, 0]
        if healthy is not None:
            rewards = rewards + healthy * self.healthy_reward
        costs = self.control_cost(actions)
        contact = self.contact_cost(physics)
        return rewards - (costs if isinstance(contact, float) else costs + contact)


@dataclass(frozen=True)
class HalfCheetah(Robot):
    """HalfCheetah-v5: planar, six motors, never terminates; dt = 0.05 s."""

    name = "HalfCheetah"
    xml = "half_cheetah.xml"
    gymnasium_id = "HalfCheetah-v5"
    obs_dim, num_motors = 17, 6
    frame_skip: int = 5
    reset_noise = 0.1
    velocity_noise = "normal"
    control_cost_weight = 0.1


@dataclass(frozen=True)
class PlanarLegs(Robot):
    """What Walker2d-v5 and Hopper-v5 share; dt = 0.008 s at frame skip 4."""

    frame_skip: int = 4
    reset_noise = 5e-3
    velocity_noise = "uniform"
    max_observed_speed = 10.0
    control_cost_weight = 1e-3
    healthy_reward = 1.0


@dataclass(frozen=True)
class Walker2d(PlanarLegs):
    """Walker2d-v5: planar, two legs, six motors."""

    name = "Walker2d"
    xml = "walker2d_v5.xml"
    gymnasium_id = "Walker2d-v5"
    obs_dim, num_motors = 17, 6
    end = "Terminates when the torso's height leaves (0.8, 2.0) m or its angle leaves (-1, 1) rad."

    def healthy(self, physics: Physics) -> Bool[ndarray, " N"]:
        z, angle = physics.qpos[:, 1], physics.qpos[:, 2]
        return (z > 0.8) & (z < 2.0) & (angle > -1.0) & (angle < 1.0)


@dataclass(frozen=True)
class Hopper(PlanarLegs):
    """Hopper-v5: planar, one leg, three motors."""

    name = "Hopper"
    xml = "hopper.xml"
    gymnasium_id = "Hopper-v5"
    obs_dim, num_motors = 11, 3
    end = (
        "Terminates when the torso's height is 0.7 m or less, its angle leaves (-0.2, 0.2) rad, or any other position or "
        "velocity leaves (-100, 100)."
    )

    def healthy(self, physics: Physics) -> Bool[ndarray, " N"]:
        z, angle = physics.qpos[:, 1], physics.qpos[:, 2]
        bounded = (np.abs(physics.qpos[:, 2:]) < 100.0).all(axis=1) & (np.abs(physics.qvel) < 100.0).all(axis=1)
        return bounded & (z > 0.7) & (angle > -0.2) & (angle < 0.2)


@dataclass(frozen=True)
class Ant(Robot):
    """Ant-v5: four legs, eight motors, contact forces in the observation; dt = 0.05 s."""

    name = "Ant"
    xml = "ant.xml"
    gymnasium_id = "Ant-v5"
    obs_dim, num_motors = 105, 8
    frame_skip: int = 5
    reset_noise = 0.1
    velocity_noise = "normal"
    skip_qpos = 2
    control_cost_weight = 0.5
    healthy_reward = 1.0
    derived_fields = ("cfrc_ext", "xpos")
    observed_fields = ("cfrc_ext",)
    contact_cost_weight: ClassVar[float] = 5e-4
    end = "Terminates when the torso's height leaves [0.2, 1.0] m or any number is not finite."

    def position(self, physics: Physics) -> Float64[ndarray, "N 2"]:
        # Gymnasium reads the torso's frame, which is that of the last force computation, not qpos after integration.
        return _derived(physics, "xpos")[:, 1, :2].copy()

    def observe(self, physics: Physics) -> Float64[ndarray, "N D"]:
        contact = np.clip(_derived(physics, "cfrc_ext")[:, 1:], -1.0, 1.0)
        return np.concatenate((physics.qpos[:, 2:], physics.qvel, contact.reshape(len(contact), -1)), axis=1)

    def healthy(self, physics: Physics) -> Bool[ndarray, " N"]:
        z = physics.qpos[:, 2]
        finite = np.isfinite(physics.qpos).all(axis=1) & np.isfinite(physics.qvel).all(axis=1)
        return finite & (z >= 0.2) & (z <= 1.0)

    def contact_cost(self, physics: Physics) -> Float64[ndarray, " N"]:
        forces = np.clip(_derived(physics, "cfrc_ext"), -1.0, 1.0)
        return self.contact_cost_weight * np.square(forces).reshape(len(forces), -1).sum(axis=1)


@dataclass(frozen=True)
class Humanoid(Robot):
    """Humanoid-v5: 17 motors in [-0.4, 0.4], inertias, velocities and contact forces observed; dt = 0.015 s."""

    name = "Humanoid"
    xml = "humanoid.xml"
    gymnasium_id = "Humanoid-v5"
    obs_dim, num_motors = 348, 17
    frame_skip: int = 5
    reset_noise = 1e-2
    velocity_noise = "uniform"
    skip_qpos = 2
    control_cost_weight = 0.1
    forward_reward_weight = 1.25
    healthy_reward = 5.0
    derived_fields = ("cinert", "cvel", "qfrc_actuator", "cfrc_ext", "xipos")
    observed_fields = ("cinert", "cvel", "qfrc_actuator", "cfrc_ext")
    contact_cost_weight: ClassVar[float] = 5e-7
    end = "Terminates when the root's height leaves (1.0, 2.0) m."

    def position(self, physics: Physics) -> Float64[ndarray, "N 2"]:
        xipos = _derived(physics, "xipos")
        centre = np.empty((len(xipos), 2))
        for world, model in enumerate(physics.models):
            mass = model.body_mass
            centre[world] = (np.einsum("b,bj->j", mass, xipos[world]) / mass.sum())[0:2]
        return centre

    def observe(self, physics: Physics) -> Float64[ndarray, "N D"]:
        count = len(physics.qpos)
        parts = [physics.qpos[:, 2:], physics.qvel]
        parts += [_derived(physics, name)[:, 1:].reshape(count, -1) for name in ("cinert", "cvel")]
        parts += [_derived(physics, "qfrc_actuator")[:, 6:], _derived(physics, "cfrc_ext")[:, 1:].reshape(count, -1)]
        return np.concatenate(parts, axis=1)

    def healthy(self, physics: Physics) -> Bool[ndarray, " N"]:
        z = physics.qpos[:, 2]
        return (z > 1.0) & (z < 2.0)

    def contact_cost(self, physics: Physics) -> Float64[ndarray, " N"]:
        forces = _derived(physics, "cfrc_ext")
        return np.minimum(self.contact_cost_weight * np.square(forces).reshape(len(forces), -1).sum(axis=1), 10.0)


def _derived(physics: Physics, name: str) -> ndarray:
    """An array of what MuJoCo computed inside the last step; only LoopPhysics has it."""
    assert isinstance(physics, LoopPhysics), "a robot with derived_fields is stepped by LoopPhysics"
    return physics.derived[name]
