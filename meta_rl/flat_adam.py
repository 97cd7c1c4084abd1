"""Adam on one flat vector: every parameter is a view of it, every gradient a view of another.

A policy of 50,000 numbers in 30 tensors costs torch's fused Adam and its gradient norm 0.2 ms a step, mostly for walking
the tensors; here it is two loops. The update is torch's (Kingma and Ba 2015, algorithm 1), and so are groups and states.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.fused.policy import flat_layout
from core.kernels.adam import adam, norm
from core.kernels.jit import f32


class FlatAdam(torch.optim.Optimizer):
    """torch's Adam without weight decay for float32 parameters on the CPU, which become views of `weights`.

    Each group may have further entries (such as `lr_scale`). `state` holds step, exp_avg and exp_avg_sq a parameter,
    as torch's does, but as views: change them in place. `starts` says where each parameter begins, by its id.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(list(groups), {"lr": lr, "betas": betas, "eps": eps})
        self.parameters: list[Tensor] = [p for group in self.param_groups for p in group["params"]]
        starts, size = flat_layout(self.parameters)
        self.starts = {id(p): start for p, start in zip(self.parameters, starts, strict=True)}
        self.weights, self.gradients, self._m, self._v = (np.zeros(size, f32) for _ in range(4))
        self._steps = torch.zeros(())
        self._spans, first = [], 0
        for group in self.param_groups:
            count = len(group["params"])
            self._spans.append((starts[first], starts[first + count] if first + count < len(starts) else size))
            first += count
        for p in self.parameters:
            self.state[p] = {
                "step": self._steps,
                "exp_avg": self._view(self._m, p),
                "exp_avg_sq": self._view(self._v, p),
            }
        self.attach()

    def _view(self, vector: np.ndarray, parameter: Tensor) -> Tensor:
        start = self.starts[id(parameter)]
        return torch.from_numpy(vector[start : start + parameter.numel()]).view(parameter.shape)

    def attach(self) -> None:
        """Make every parameter and gradient a view again, where someone has put another tensor in its place."""
        base = self.weights.ctypes.data
        for p in self.parameters:
            if p.data_ptr() != base + 4 * self.starts[id(p)]:
                view = self._view(self.weights, p)
                view.copy_(p.detach())
                p.data = view
            if p.grad is None or p.grad.data_ptr() != self.gradients.ctypes.data + 4 * self.starts[id(p)]:
                p.grad = self._view(self.gradients, p)

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Zero all gradients in place."""
        self.gradients.fill(0)

    def gradient_norm(self) -> float:
        """Norm of all gradients together."""
        return float(norm(self.gradients))

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One step, as torch's optimizers do it."""
        if closure is not None:
            raise NotImplementedError("FlatAdam takes no closure")
        self._move(1.0)
        self.announce()

    def announce(self) -> None:
        """Tell torch that the parameters changed: the kernel writes past its eyes, and acting keeps what it computed."""
        torch.autograd.graph.increment_version(self.parameters)

    def advance(self, scale: float) -> None:
        """One step with every gradient times `scale`, without torch's wrapping of `step`, which costs five times the
        step itself. Call `announce` after the last one. Hooks after a step run as after `step`.
        """
        self._move(scale)
        for hook in self._optimizer_step_post_hooks.values():
            hook(self, (), {})

    def _move(self, scale: float) -> None:
        self._steps += 1
        count = self._steps.item()
        for group, (start, end) in zip(self.param_groups, self._spans, strict=True):
            beta1, beta2 = group["betas"]
            adam(
                self.weights[start:end], self.gradients[start:end], self._m[start:end], self._v[start:end],
                f32(scale), f32(group["lr"] / (1 - beta1**count)), f32(beta1), f32(beta2),
                f32(math.sqrt(1 - beta2**count)), f32(group["eps"]),
            )  # fmt: skip
