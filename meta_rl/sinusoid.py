"""Sinusoid regression, the classic check of a meta-learner: y = A sin(x + phase) from a few points.

A ~ U[0.1, 5], phase ~ U[0, pi], x ~ U[-5, 5]. Source: Finn, Abbeel, Levine 2017 (arXiv 1703.03400), section 5.1.

Copies: networks of one shape stacked into one module, each with tasks and a number of shots of its own, so that several
seeds are trained at the price of about one. Losses are summed over copies and Adam works number by number, so a copy
learns what it would learn alone. A y that is NaN is a point that a copy is not shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from core.errors import bad_value
from core.seeding import torch_stream
from meta_rl.meta_maml import MetaMAML, Task

TASKS_AT_ONCE = 100  # of an evaluation, to bound its memory


def sinusoid_tasks(
    generator: torch.Generator, num_tasks: int, shots: int | Sequence[int], query: int | None = None
) -> list[Task]:
    """Tasks (support_x, support_y, query_x, query_y) of shapes (shots, C) and (query or shots, C).

    shots: for one network (C = 1), or one for each of C copies; a copy with fewer than the most sees NaN in the other rows.
    """
    each = [shots] if isinstance(shots, int) else list(shots)
    if num_tasks < 1 or not each or min(each) < 1:
        raise bad_value("num_tasks, shots", (num_tasks, shots), "1 or more each")
    most, copies = max(each), len(each)
    points = most + (query or most)
    amplitude = 0.1 + 4.9 * torch.rand(num_tasks, 1, copies, generator=generator)
    phase = math.pi * torch.rand(num_tasks, 1, copies, generator=generator)
    x = 10.0 * torch.rand(num_tasks, points, copies, generator=generator) - 5.0
    y = amplitude * torch.sin(x + phase)
    for copy, count in enumerate(each):
        if count < most:
            y[:, count:most, copy] = torch.nan
            if query is None:
                y[:, most + count :, copy] = torch.nan
    return [(x[i, :most], y[i, :most], x[i, most:], y[i, most:]) for i in range(num_tasks)]


class CopiedLinear(nn.Module):
    """C linear maps side by side: (C, B, in) to (C, B, out)."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach().T for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach().unsqueeze(0) for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class CopiedNetworks(nn.Module):
    """C networks of `sinusoid_network`'s shape: x (B, C) to y (B, C), column c through network c."""

    def __init__(self, networks: Sequence[nn.Sequential]) -> None:
        super().__init__()
        linear = [[layer for layer in network if isinstance(layer, nn.Linear)] for network in networks]
        self.layers = nn.ModuleList(CopiedLinear(layers) for layers in zip(*linear, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        y = x.transpose(-1, -2).unsqueeze(-1)
        for index, layer in enumerate(self.layers):
            y = layer(torch.relu(y) if index else y)
        return y.squeeze(-1).transpose(-1, -2)


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


def error_of_each(output: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of every copy over the points it is shown: (B, C) twice to (C,)."""
    known = ~torch.isnan(y)
    squared = torch.where(known, output - torch.where(known, y, 0.0), 0.0).square()
    return squared.sum(0) / known.sum(0)


def summed_error(output: Tensor, y: Tensor) -> Tensor:
    """The sum of `error_of_each`, so that no copy's gradient depends on how many there are."""
    return error_of_each(output, y).sum()


@dataclass(frozen=True)
class SinusoidResult:
    """Query errors on fresh tasks.

    errors: (tasks, steps + 1, C), mean squared error after 0, 1, ... inner steps. zero_predictor: (tasks, C).
    """

    errors: np.ndarray
    zero_predictor: np.ndarray

    def after(self, steps: int) -> float:
        """Mean error over tasks and copies."""
        return float(self.errors[:, steps].mean())


def train_on_sinusoids(
    maml: MetaMAML,
    *,
    updates: int,
    shots: int | Sequence[int],
    meta_batch: int = 25,
    seed: int = 0,
    decay: bool = False,
) -> list[float]:
    """Meta-train; returns the meta-loss of every update, summed over copies.

    decay: let the outer rate fall to zero in a straight line, which takes the noise of the last updates out of the result.
    """
    stream, losses = torch_stream(seed, "sinusoid", "train"), []
    for update in range(updates):
        if decay:
            for group in maml.meta_optimizer.param_groups:
                group["lr"] = maml.outer_lr * (1.0 - update / updates)
        losses.append(maml.meta_update(sinusoid_tasks(stream, meta_batch, shots), loss_fn=summed_error))
    return losses


def score_on_sinusoids(
    maml: MetaMAML, *, shots: int | Sequence[int], steps: int = 10, num_tasks: int = 600, seed: int = 0
) -> SinusoidResult:
    """Errors on fresh tasks, 100 query points each, after every number of steps up to `steps`."""
    tasks = sinusoid_tasks(torch_stream(seed, "sinusoid", "test"), num_tasks, shots, query=100)
    errors = [
        maml.evaluate(
            tasks[first : first + TASKS_AT_ONCE], loss_fn=summed_error, num_steps=steps, measure=error_of_each
        )
        for first in range(0, num_tasks, TASKS_AT_ONCE)
    ]
    zero = torch.stack([error_of_each(torch.zeros_like(query_y), query_y) for *_, query_y in tasks])
    return SinusoidResult(torch.cat(errors).double().numpy(), zero.double().numpy())
