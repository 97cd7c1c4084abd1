"""GRU whose state feeds back through a vector in place of a matrix: nonlinear in its state, each unit by itself.

For each layer, from u (B, T, D); k_t = 1 - reset_t, s the sigmoid, all products elementwise, q = k_t h_{t-1}:

    [z, r, n] = W u + b
    z_t = s(z + u_z q),   r_t = s(r + u_r q),   n_t = tanh(n + r_t (u_n q))
    h_t = (1 - z_t) n_t + z_t q,   y_t = h_t

This is the GRU (Cho et al. 2014, arXiv 1406.1078, in the form of torch and cuDNN) with diagonal recurrent matrices, as IndRNN has them (Li et al.
2018, arXiv 1803.04831). It needs D H weights a gate instead of D H + H^2. Where u_n is large a unit has two resting points, which no recurrence
that is linear in its state has. Ours is the start: z's biases such that a state that reads nothing keeps e^(-1 / tau) a step, tau log-uniform
in [tau_min, tau_max] steps, and the feedback N(0, feedback^2), by default zero, so that what feeds back is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field
from torch import Tensor, nn

from core.cells.mingru import GatedRecurrence, TimeConstantsConfig
from core.config import search
from core.fused.autograd import Fused, fused_allowed
from core.kernels.feedback import diag_gru_scan, diag_gru_scan_backward
from core.kernels.jit import as_numpy, f32
from core.sequence_model import register_model


class DiagGRUConfig(TimeConstantsConfig):
    """GRU whose state feeds back unit by unit (a vector in place of each recurrent matrix): bounded, nonlinear, cheap."""

    kind: Literal["diag-gru"] = "diag-gru"
    feedback: float = Field(default=0.0, ge=0, le=10, json_schema_extra=search(choices=(0.0, 0.5, 1.0)))
    """Standard deviation of the initial feedback weights u; 0 starts as a gated recurrence that is linear in its state."""


def diag_gru_reference(
    u: Tensor, h: Tensor, keep: Tensor | None, weight: Tensor, bias: Tensor, feedback: Tensor
) -> tuple[Tensor, Tensor]:
    """One layer, one step at a time: u (B, T, D), h (B, H), keep (B, T), weight (3H, D), feedback (3, H) to y (B, T, H) and the last h."""
    outputs = []
    projected = F.linear(u, weight, bias)
    for t in range(u.shape[1]):
        if keep is not None:
            h = h * keep[:, t, None]
        z_x, r_x, n_x = projected[:, t].chunk(3, -1)
        z, r = torch.sigmoid(z_x + feedback[0] * h), torch.sigmoid(r_x + feedback[1] * h)
        n = torch.tanh(n_x + r * (feedback[2] * h))
        h = n + z * (h - n)
        outputs.append(h)
    return torch.stack(outputs, 1), h


class _DiagGRU(Fused):
    """`diag_gru_reference` with one compiled loop each way."""

    reference = staticmethod(diag_gru_reference)

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        u, h, keep, weight, bias, feedback = inputs
        batch, time, _ = u.shape
        gates, out = torch.mm(u.reshape(batch * time, -1), weight.T).view(batch, time, -1), torch.empty(batch, time, h.shape[1])  # fmt: skip
        ctx.mask = np.ones((batch, time), f32) if keep is None else as_numpy(keep)
        diag_gru_scan(gates.numpy(), as_numpy(bias), as_numpy(feedback), as_numpy(h), ctx.mask, out.numpy())
        _DiagGRU.keep_inputs(ctx, inputs, gates, out)
        return out, out[:, -1].clone()

    @staticmethod
    def fast_backward(ctx: Any, inputs: list[Any], saved: list[Tensor], grads: tuple[Any, ...]) -> tuple[Any, ...]:
        """dp by `core.kernels.feedback.diag_gru_scan_backward`; p = u W^T:  dW = dp^T u,  du = dp W."""
        u, h, _, weight, bias, feedback = inputs
        gates, out = saved
        grad, grad_last = grads
        grad = torch.zeros(out.shape) if grad is None else grad
        grad_h = torch.zeros(h.shape) if grad_last is None else grad_last.clone(memory_format=torch.contiguous_format)
        slopes, grad_bias, grad_feedback = torch.empty(gates.shape), torch.zeros_like(bias), torch.zeros(feedback.shape)
        diag_gru_scan_backward(
            gates.numpy(), out.numpy(), as_numpy(feedback), as_numpy(h), ctx.mask, as_numpy(grad), grad_h.numpy(),
            slopes.numpy(), grad_bias.numpy(), grad_feedback.numpy(),
        )  # fmt: skip
        flat = slopes.flatten(0, 1)
        grad_u = torch.mm(flat, weight).view(u.shape) if ctx.needs_input_grad[0] else None
        return grad_u, grad_h, None, torch.mm(flat.T, u.reshape(len(flat), -1)), grad_bias, grad_feedback


@register_model("diag-gru", DiagGRUConfig)
class DiagGRU(GatedRecurrence):
    """hidden is h of each layer side by side, (B, num_layers * hidden_dim); an output map where widths differ."""

    parts, reference = 3, staticmethod(diag_gru_reference)

    def _draw(self, config: DiagGRUConfig, generator: torch.Generator) -> None:
        super()._draw(config, generator)
        drawn = torch.randn(config.num_layers, 3, self.width, generator=generator)
        self.feedback = nn.Parameter(config.feedback * drawn)

    def _start(self, biases: Tensor, gate: Tensor) -> None:
        biases[0] = -gate  # z is what is kept: s(-b) = 1 - s(b)

    def weights(self) -> Iterator[tuple[Tensor, ...]]:
        """W, b and u of each layer."""
        for weights, feedback in zip(super().weights(), self.feedback, strict=True):
            yield *weights, feedback

    def _layer(self, x: Tensor) -> Callable[..., Any]:
        return _DiagGRU.apply if fused_allowed(x) else diag_gru_reference
