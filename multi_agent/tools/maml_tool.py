"""Probe of the Meta-Learning agent: how far one inner step may go.

A short experiment of its own: the arm's untrained sequence model meets transitions of the task
family's training tasks and takes a few MAML inner steps towards predicting the next observation and the reward, once
for each inner rate.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from pydantic import Field

from core.config import FrozenConfig
from core.errors import InputError
from multi_agent.tools.ssm_tool import MemoryArguments, model_config
from multi_agent.tools.tool import Tool, ToolContext

INNER_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
PROBE_TASKS, PROBE_EPISODES, PROBE_STEPS = 3, 8, 32  # episodes: half to adapt on, half to measure on
PROBE_LIMIT_S = 20.0  # after the first forward passes, which may compile


class InnerRateArguments(MemoryArguments):
    """A sequence model to adapt."""

    inner_steps: int = Field(default=1, ge=1, le=5)
    """Gradient steps on each task."""


class InnerRateProbe(FrozenConfig):
    """Loss on fresh episodes of the same tasks, before and after adapting, by inner rate."""

    kind: str
    inner_steps: int
    tasks: int
    loss_before: float
    """Mean squared error of the standardized next observation and reward, mean over the tasks; 1 is guessing the mean."""
    inner_rate: tuple[float, ...]
    loss_after: tuple[float | None, ...]
    """By inner rate; None where adapting gave a loss that is not finite or time ran out before it was tried."""
    best_rate: float | None
    """Rate with the lowest loss after; None where none lowered it."""
    largest_rate_that_helps: float | None
    """Highest rate whose loss after is below the loss before."""
    measured_s: float


def inner_rate_sensitivity(context: ToolContext, arguments: InnerRateArguments) -> InnerRateProbe:
    """Adapt an untrained model to a few training tasks with several inner rates: loss before and after, seconds of work."""
    import torch

    from core.seeding import torch_stream
    from core.sequence_model import build_model
    from meta_rl.meta_maml import MetaMAML

    config = model_config(context, arguments.arm, arguments.values)
    tasks = _transitions(context.lab.question.task)
    model = build_model(
        config, tasks[0][0].shape[-1], tasks[0][1].shape[-1], generator=torch_stream(0, "inner rate probe")
    )
    mse = torch.nn.functional.mse_loss

    def query_loss(maml: Any, params: Any, x: torch.Tensor, y: torch.Tensor) -> float:
        with torch.no_grad():
            return float(mse(maml.functional_forward(x, None, params)[0], y))

    theta = dict(model.named_parameters())
    half = PROBE_EPISODES // 2
    before = float(np.mean([query_loss(MetaMAML(model), theta, x[half:], y[half:]) for x, y in tasks]))
    start = time.monotonic()
    after: list[float | None] = []
    for rate in INNER_RATES:
        losses = []
        maml = MetaMAML(model, inner_lr=rate, first_order=True)
        try:
            with np.errstate(all="ignore"):  # weights of a step that is too long overflow, which is the answer
                for x, y in tasks if time.monotonic() - start < PROBE_LIMIT_S else ():
                    adapted = maml.adapt_task(x[:half], y[:half], num_steps=arguments.inner_steps)
                    losses.append(query_loss(maml, adapted, x[half:], y[half:]))
        except InputError:
            losses = []
        mean = float(np.mean(losses)) if losses else math.nan
        after.append(round(mean, 4) if math.isfinite(mean) else None)
    helped = [(loss, rate) for loss, rate in zip(after, INNER_RATES, strict=True) if loss is not None and loss < before]
    return InnerRateProbe(
        kind=config.kind,
        inner_steps=arguments.inner_steps,
        tasks=len(tasks),
        loss_before=round(before, 4),
        inner_rate=INNER_RATES,
        loss_after=tuple(after),
        best_rate=min(helped)[1] if helped else None,
        largest_rate_that_helps=max(rate for _, rate in helped) if helped else None,
        measured_s=round(time.monotonic() - start, 2),
    )


def _transitions(task: str) -> list[tuple[Any, Any]]:
    """Per training task: x (E, T, D + A) and y (E, T, D + 1), random actions, standardized over all tasks together."""
    import torch

    from core.seeding import numpy_stream
    from env_runner.task_distributions import get_family

    family = get_family(task)
    steps = min(family.horizon, PROBE_STEPS)
    parameters = family.sample_tasks(numpy_stream(0, "inner rate probe", "tasks"), PROBE_TASKS)
    env: Any = family.make(PROBE_TASKS * PROBE_EPISODES)
    try:
        obs, _ = env.reset(seed=0, options={"tasks": np.repeat(parameters, PROBE_EPISODES, 0)})
        env.action_space.seed(0)
        inputs, targets = [], []
        for _ in range(steps):
            action = env.action_space.sample()
            following, reward, *_ = env.step(action)
            acted = np.eye(family.action.size)[action] if family.action.kind == "categorical" else action
            inputs.append(np.concatenate([obs, acted], axis=1))
            targets.append(np.concatenate([following - obs, np.asarray(reward)[:, None]], axis=1))
            obs = following
    finally:
        env.close()

    def standardized(rows: list[np.ndarray]) -> torch.Tensor:
        table = torch.from_numpy(np.stack(rows, axis=1).astype(np.float32))  # (worlds, T, width)
        flat = table.flatten(0, 1)
        table = (table - flat.mean(0)) / flat.std(0).clamp_min(1e-6)
        return table.reshape(PROBE_TASKS, PROBE_EPISODES, steps, -1)

    return list(zip(standardized(inputs), standardized(targets), strict=True))


INNER_RATE_SENSITIVITY = Tool(
    "inner_rate_sensitivity", InnerRateArguments, inner_rate_sensitivity, measures=True, writes="nothing"
)
