"""Robots of Gymnasium's with tasks: the base families and their worlds. The families are in goal_tasks and body_tasks.

In the families' texts v is the x-velocity in m/s over one control step, a the clipped action, v* the target, and sums run
over motors. Each family names its source. Anchors "stand_still" and "random" that are not exact were measured with
`env_runner.anchors.measure_anchor` (seed 0, 160 to 400 episodes, mujoco 4.0.0, gymnasium 1.4.0).
"""

# mujoco is compiled and ships no type stubs.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import mujoco
import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float64
from numpy import ndarray

from env_runner.batched_mujoco import LoopPhysics, RolloutPhysics, check_threads, compile_model, model_xml
from env_runner.describe import action_rows, observation_rows
from env_runner.drawing import Lived, Track
from env_runner.robots import Physics, Robot
from env_runner.task_family import (
    ActionInfo,
    ContinuousTasks,
    EnvOptions,
    FiniteTasks,
    TaskFamily,
    TaskVectorEnv,
    make_box,
)


@dataclass(frozen=True)
class Step:
    """The control step that N worlds have just made: what a reward may depend on."""

    physics: Physics
    velocity: Float64[ndarray, "N C"]
    """Mean velocity over the step in m/s: x (C = 1), or x and y (C = 2)."""
    actions: Float64[ndarray, "N A"]
    """As they were sent, clipped to the motors' range."""
    healthy: Bool[ndarray, " N"] | None
    """Which worlds go on; None for a robot that never terminates."""
    tasks: Float64[ndarray, "N P"]
    """The tasks in force."""

    @property
    def effort(self) -> Float64[ndarray, " N"]:
        """sum(a^2)."""
        return np.square(self.actions).sum(axis=1)


class LocomotionFamily(TaskFamily):
    """A robot of Gymnasium's with a reward that depends on the task, or a model that does."""

    robot: Robot
    changes_model: ClassVar[bool] = False
    """The task is the model (masses, gravity, limbs); the reward is the robot's stock one."""
    motor_can_fail = True
    engine_packages = ("gymnasium", "mujoco")
    horizon = 200
    summary: ClassVar[str]
    task_text: ClassVar[str]
    reward_text: ClassVar[str] = "Gymnasium's own v5 reward of this robot."
    source: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.target_can_switch = not cls.changes_model

    def __init__(self) -> None:
        self.obs_dim = self.robot.obs_dim
        self.action = ActionInfo("gaussian", self.robot.num_motors)

    @cached_property
    def base_model(self) -> mujoco.MjModel:
        """The unchanged model of the robot; shared, not to be modified."""
        return compile_model(model_xml(self.robot.xml))

    @property
    @abstractmethod
    def task_range(self) -> tuple[Sequence[float], Sequence[float]]:
        """Lowest and highest value of each parameter, for the description."""

    def world_model(self, task: Float64[ndarray, " P"]) -> mujoco.MjModel:
        """The model of one task's world: the base model unless `changes_model`."""
        return self.base_model

    def reward(self, step: Step) -> Float64[ndarray, " N"]:
        """Reward of the step just made."""
        return self.robot.stock_reward(step.physics, step.velocity, step.actions, step.healthy)

    def make(self, num_envs: int, *, num_threads: int = 0, options: EnvOptions | None = None) -> TaskVectorEnv:
        return MujocoTaskEnv(self, num_envs, num_threads, options)

    @property
    def seconds_per_step(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return float(self.base_model.opt.timestep * self.robot.frame_skip)

    def track(self, lived: Lived) -> Track:
        return Track("velocity", lived.infos["x_velocity"], unit="m/s")

    def body(self, task: Float64[ndarray, " P"]) -> mujoco.MjModel:
        return self.world_model(task)

    @property
    def docstring(self) -> str:
        robot, model = self.robot, self.base_model
        dt = model.opt.timestep * robot.frame_skip
        noise = "standard normal noise times" if robot.velocity_noise == "normal" else "uniform noise within"
        anchors = (
            ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in self.anchors.items()) or "not known"
        )
        tasks = "\n".join(
            f"- `{name}`: {low:g} to {high:g}"
            for name, low, high in zip(self.param_names, *self.task_range, strict=True)
        )
        separate = (
            "disjoint from one another and from training" if self.pools_are_disjoint else "the same tasks in all three"
        )
        return f"""# {self.id}

## Description
{robot.name} of Gymnasium (`{robot.gymnasium_id}`, `{robot.xml}`). {self.summary}

## Action Space
`Box({model.actuator_ctrlrange[0, 0]:g}, {model.actuator_ctrlrange[0, 1]:g}, ({model.nu},), float32)`; clipped to it, and the clipped action is charged.

| Num | Action | Min | Max | Joint | Unit at the joint |
|---|---|---|---|---|---|
{action_rows(model)}

## Observation Space
`Box(-inf, inf, ({self.obs_dim},), float64)`. The task is not observed.

| Num | Observation | Joint | Unit |
|---|---|---|---|
{observation_rows(robot, model)}

## Tasks
{tasks}

{self.task_text} Fixed pools search, selection, confirmation: {separate}.

## Rewards
{self.reward_text} One control step is {dt:g} s.

## Starting State
Positions: the model's start pose plus uniform noise within {robot.reset_noise:g}; velocities: {noise} {robot.reset_noise:g}.

## Episode End
{robot.end} Truncated after {self.horizon} steps.

## Arguments
`make(num_envs, num_threads=0, options=EnvOptions(...))`: `switch_step`, `switch_task` (goal families), `failure_step`,
`failed_actuator`, `failure_scale`.

## Anchors
Mean return of one episode: {anchors}.

## Provenance
{self.source}

## Version
{self.version}
"""


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


class MujocoTaskEnv(TaskVectorEnv):
    """N worlds of a locomotion family: physics, the robot's observation, the family's reward, mid-episode changes.

    `infos` of a step holds x_velocity (N,) m/s, y_velocity (N,) m/s where the robot has one, `tasks` (N, P) in force in
    that step where a switch is asked for, and `unstable` (N,) where MuJoCo gave up on a world. Such a world is
    truncated with the reward of standing still under the action sent, its `final_obs` is its last good observation, and
    `unstable_count` goes up by one.
    """

    def __init__(self, family: LocomotionFamily, num_envs: int, num_threads: int, options: EnvOptions | None) -> None:
        self.robot: Robot = family.robot
        model = family.base_model
        low, high = model.actuator_ctrlrange.T
        action_space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
        super().__init__(family, num_envs, make_box(family.obs_dim), action_space, options)
        # The float32 bounds of the space differ from the model's own for +-0.4 (Humanoid): clip to the model's.
        self._action_low, self._action_high = low.copy(), high.copy()
        self.locomotion = family
        self.physics: RolloutPhysics | LoopPhysics
        threads = check_threads(num_threads)
        if self.robot.derived_fields:
            self.physics = LoopPhysics(model, num_envs, self.robot.frame_skip, threads, self.robot.derived_fields)
        else:
            self.physics = RolloutPhysics(model, num_envs, self.robot.frame_skip, threads)
        self._base_model = model
        self._dt = model.opt.timestep * self.robot.frame_skip
        self._failed = np.zeros(num_envs, dtype=np.int64)

    @property
    def dt(self) -> float:
        """Seconds of one control step."""
        return self._dt

    def _apply_tasks(self) -> None:
        if self.locomotion.changes_model:
            self.physics.set_models([self.locomotion.world_model(task) for task in self.tasks])

    def _start(self, worlds: ndarray) -> None:
        robot, model = self.robot, self._base_model
        qpos, qvel = np.empty((len(worlds), model.nq)), np.empty((len(worlds), model.nv))
        for row, world in enumerate(worlds.tolist()):
            qpos[row], qvel[row] = robot.start_noise(self.world_rngs[world], model.nq, model.nv)
            qpos[row] += self.physics.models[world].qpos0
        self.physics.start(worlds, qpos, qvel)
        self._position = robot.position(self.physics)
        self._draw_changes(worlds)

    def _draw_changes(self, worlds: ndarray) -> None:
        options = self.options
        if options.failure_step is not None:
            for world in worlds.tolist():
                drawn = self.world_rngs[world].integers(self._base_model.nu)
                self._failed[world] = drawn if options.failed_actuator is None else options.failed_actuator
        self.draw_switches(worlds)

    def _advance(self, actions: ndarray) -> tuple[ndarray, ndarray, dict[str, Any]]:
        options, robot, physics = self.options, self.robot, self.physics
        ctrl = actions
        if options.failure_step is not None:
            ctrl = actions.copy()
            (failing,) = np.nonzero(self.elapsed >= options.failure_step)
            ctrl[failing, self._failed[failing]] *= options.failure_scale
        tasks = self.tasks_in_force()
        before = self._position
        unstable = physics.step(ctrl)
        self._position = robot.position(physics)
        velocity = (self._position - before) / self._dt
        healthy = robot.healthy(physics)
        rewards = self.locomotion.reward(Step(physics, velocity, actions, healthy, tasks))
        infos: dict[str, Any] = {"x_velocity": velocity[:, 0]}
        if velocity.shape[1] > 1:
            infos["y_velocity"] = velocity[:, 1]
        if options.switch_step is not None:
            infos["tasks"] = tasks
        if unstable is not None:
            infos["unstable"] = unstable
        terminated = np.zeros(self.num_envs, dtype=bool) if healthy is None else ~healthy
        return rewards, terminated, infos

    def drawn_state(self) -> ndarray:
        return self.physics.qpos.copy()

    def _observe(self) -> ndarray:
        return self.robot.observe(self.physics)

    def close_extras(self, **kwargs: Any) -> None:
        self.physics.close()
