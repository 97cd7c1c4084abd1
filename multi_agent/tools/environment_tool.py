"""Probes of the Environment agent: what the task family is, and how fast its worlds step on this machine."""

from __future__ import annotations

import time

from pydantic import Field

from core.config import FrozenConfig
from core.seeding import numpy_stream
from multi_agent.tools.tool import NoArguments, Tool, ToolContext

PROBE_S = 0.5


class WorldsArguments(FrozenConfig):
    """How many worlds to step together."""

    num_envs: int = Field(default=32, ge=1, le=256)
    """Worlds stepped in one call."""


class TaskDescription(FrozenConfig):
    """The campaign's task family."""

    task: str
    description: str
    horizon: int
    """Control steps of an episode."""
    observation_size: int
    action: str
    hidden_parameters: tuple[str, ...]
    """What differs between tasks; an agent never observes it."""
    anchors: dict[str, float]
    """Mean return of one episode where it is known exactly or was measured."""


class Throughput(FrozenConfig):
    """A short measurement."""

    num_envs: int
    steps_per_s: int
    """Control steps of all worlds together per second, random actions, no learning."""
    measured_s: float


def describe_task(context: ToolContext, arguments: NoArguments) -> TaskDescription:
    """The task family: episode length, spaces, what is hidden, known anchors of the return."""
    from env_runner.task_distributions import get_family

    family = get_family(context.lab.question.task)
    return TaskDescription(
        task=family.id,
        description=family.docstring.strip().split("\n\n")[0][:600],
        horizon=family.horizon,
        observation_size=family.obs_dim,
        action=f"{family.action.kind}, {family.action.size}",
        hidden_parameters=tuple(family.param_names),
        anchors=dict(family.anchors),
    )


def measure_throughput(context: ToolContext, arguments: WorldsArguments) -> Throughput:
    """Step the family's worlds with random actions for half a second and count."""
    from env_runner.task_distributions import get_family

    env = get_family(context.lab.question.task).make(arguments.num_envs)
    try:
        env.reset(seed=0)
        env.action_space.seed(int(numpy_stream(0, "throughput probe").integers(2**31)))
        action = env.action_space.sample()
        env.step(action)  # the first step compiles and allocates
        steps, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < PROBE_S:
            env.step(action)
            steps += arguments.num_envs
    finally:
        env.close()
    return Throughput(num_envs=arguments.num_envs, steps_per_s=int(steps / elapsed), measured_s=round(elapsed, 3))


DESCRIBE_TASK = Tool("describe_task", NoArguments, describe_task, measures=True, writes="nothing")
MEASURE_THROUGHPUT = Tool("measure_throughput", WorldsArguments, measure_throughput, measures=True, writes="nothing")
