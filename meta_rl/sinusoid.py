"""Sinusoid regression, the classic check of a meta-learner: y = A sin(x + phase) from a few points.

A ~ U[0.1, 5], phase ~ U[0, pi], x ~ U[-5, 5]. Source: Finn, Abbeel, Levine 2017 (arXiv 1703.03400), section 5.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from core.errors import bad_value
from core.seeding import torch_stream
from meta_rl.meta_maml import MetaMAML, Task


def sinusoid_tasks(generator: torch.Generator, num_tasks: int, shots: int, query: int | None = None) -> list[Task]:
    """Tasks (support_x, support_y, query_x, query_y) of shapes (shots, 1) and (query or shots, 1)."""
    if num_tasks < 1 or shots < 1:
        raise bad_value("num_tasks, shots", (num_tasks, shots), "1 or more each")
    points = shots + (query or shots)
    amplitude = 0.1 + 4.9 * torch.rand(num_tasks, 1, 1, generator=generator)
    phase = math.pi * torch.rand(num_tasks, 1, 1, generator=generator)
    x = 10.0 * torch.rand(num_tasks, points, 1, generator=generator) - 5.0
    y = amplitude * torch.sin(x + phase)
    return [(x[i, :shots], y[i, :shots], x[i, shots:], y[i, shots:]) for i in range(num_tasks)]


def sinusoid_network(generator: torch.Generator, width: int = 40, context_dim: int = 0) -> nn.Sequential:
    """The paper's network 1-40-40-1 with ReLU; weights truncated normal would be theirs, He uniform is ours."""
    network = nn.Sequential(
        nn.Linear(1 + context_dim, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
    )
    with torch.no_grad():
        for layer in network:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
                layer.bias.zero_()
    return network


@dataclass(frozen=True)
class SinusoidResult:
    """Mean squared query error over tasks by number of gradient steps, and over tasks of the zero predictor."""

    error_by_steps: dict[int, float]
    zero_predictor: float


def train_on_sinusoids(maml: MetaMAML, *, updates: int, shots: int, meta_batch: int = 25, seed: int = 0) -> list[float]:
    """Meta-train; returns the meta-loss of every update."""
    stream = torch_stream(seed, "sinusoid", "train")
    return [maml.meta_update(sinusoid_tasks(stream, meta_batch, shots)) for _ in range(updates)]


def score_on_sinusoids(
    maml: MetaMAML, *, shots: int, steps: tuple[int, ...] = (0, 1, 5, 10), num_tasks: int = 600, seed: int = 0
) -> SinusoidResult:
    """Error on fresh tasks, 100 query points each, after each number of steps in `steps`."""
    tasks = sinusoid_tasks(torch_stream(seed, "sinusoid", "test"), num_tasks, shots, query=100)
    errors: dict[int, float] = {}
    for count in steps:
        losses = []
        for support_x, support_y, query_x, query_y in tasks:
            weights = maml.adapt_task(support_x, support_y, num_steps=count) if count else dict(maml.start())
            with torch.no_grad():
                predicted, _ = maml.functional_forward(query_x, None, weights)
            losses.append(float(nn.functional.mse_loss(predicted, query_y)))
        errors[count] = float(np.mean(losses))
    zero = float(np.mean([float(query_y.square().mean()) for *_, query_y in tasks]))
    return SinusoidResult(errors, zero)


__all__ = ["SinusoidResult", "score_on_sinusoids", "sinusoid_network", "sinusoid_tasks", "train_on_sinusoids"]
