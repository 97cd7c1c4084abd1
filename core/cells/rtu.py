"""Recurrent trace units: a complex diagonal ring read without an output matrix, linear (`rtu`) or with the tanh inside (`rtu-tanh`).

For each layer, from u (B, T, D), N = hidden_dim / 2 complex states h in split layout [re | im], k_t = 1 - reset_t:

    a = r e^(i theta),   r = exp(-exp(log_nu)),   theta = exp(log_theta),   gamma = sqrt(1 - r^2)
    x_t = gamma (W u_t + b)                                   W (2N, D): two real maps, of the real and of the imaginary part
    rtu        h_t = k_t a h_{t-1} + x_t,          y_t = tanh([re h_t | im h_t])
    rtu-tanh   h_t = tanh(k_t a h_{t-1} + x_t),    y_t = h_t               the tanh of each part apart

Source: Elelimy et al. 2024 (NeurIPS, arXiv 2409.01449), section 3, with r uniform on the disc's area and theta uniform in (0, 2 pi) at the
start. gamma gives every state of the linear unit the variance of its input, whatever its r. Ours are the bias, and training through whole
sequences instead of in real time. The linear unit runs through `core.scan`, the other one through `core.kernels.feedback`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field, model_validator
from torch import Tensor, nn

from core.cells.mingru import GatedRecurrence
from core.config import search
from core.fused.autograd import Fused, fused_allowed
from core.kernels.feedback import tanh_ring_scan, tanh_ring_scan_backward
from core.kernels.jit import as_numpy, f32
from core.scan import split_scan
from core.sequence_model import SequenceModelConfig, register_model

SMALLEST = 1e-12  # of 1 - r^2: the derivative of its root stays finite where a radius has reached one


class RTUConfig(SequenceModelConfig):
    """Linear recurrent trace unit (Elelimy et al. 2024): a complex diagonal ring, its real and imaginary parts squashed as the output."""

    kind: Literal["rtu"] = "rtu"
    hidden_dim: int = Field(default=64, ge=2, le=4096)
    """Width: real and imaginary parts of hidden_dim / 2 states; even."""
    r_min: float = Field(default=0.0, ge=0, lt=1)
    """Inner radius of the ring; r is a time constant of -1 / ln r steps."""
    r_max: float = Field(default=1.0, ge=1e-3, le=1, json_schema_extra=search(choices=(0.98, 0.995, 1.0)))
    """Outer radius of the ring."""
    max_phase: float = Field(
        default=2 * math.pi, ge=1e-6, le=2 * math.pi, json_schema_extra=search(choices=(0.314, 2 * math.pi))
    )
    """Largest initial phase, in radians a step."""

    @model_validator(mode="after")
    def _ring(self) -> RTUConfig:
        if self.r_min >= self.r_max:
            raise ValueError(f"r_min {self.r_min} must be less than r_max {self.r_max}")
        if self.hidden_dim % 2:
            raise ValueError(f"hidden_dim {self.hidden_dim} must be even: real and imaginary parts")
        return self

    @property
    def width_multiple(self) -> int:
        """The width must be a multiple of this."""
        return 2


class RTUTanhConfig(RTUConfig):
    """Nonlinear recurrent trace unit (Elelimy et al. 2024): the ring of `rtu` with the squashing inside the recurrence."""

    kind: Literal["rtu-tanh"] = "rtu-tanh"  # pyright: ignore[reportIncompatibleVariableOverride]


def tanh_ring_reference(a: Tensor, drive: Tensor, h: Tensor, keep: Tensor | None) -> Tensor:
    """h_t = tanh(k_t a h_{t-1} + x_t), one step at a time: a (2N,), drive (B, T, 2N), h (B, 2N), all split, to (B, T, 2N)."""
    a_re, a_im = a.chunk(2, -1)
    states = []
    for t in range(drive.shape[1]):
        if keep is not None:
            h = h * keep[:, t, None]
        re, im = h.chunk(2, -1)
        h = torch.tanh(torch.cat([a_re * re - a_im * im, a_im * re + a_re * im], -1) + drive[:, t])
        states.append(h)
    return torch.stack(states, 1)


class _TanhRing(Fused):
    """`tanh_ring_reference` as one compiled loop each way."""

    reference = staticmethod(tanh_ring_reference)

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        a, drive, h, keep = inputs
        ctx.mask = np.ones(drive.shape[:2], f32) if keep is None else as_numpy(keep)
        states = torch.empty(drive.shape)
        tanh_ring_scan(as_numpy(a), as_numpy(drive), as_numpy(h), ctx.mask, states.numpy())
        _TanhRing.keep_inputs(ctx, inputs, states)
        return states

    @staticmethod
    def fast_backward(ctx: Any, inputs: list[Any], saved: list[Tensor], grads: tuple[Any, ...]) -> tuple[Any, ...]:
        a, _, h, _ = inputs
        (states,), (grad,) = saved, grads
        grad_a, slopes, grad_h = torch.zeros_like(a), torch.empty(states.shape), torch.zeros(h.shape)
        tanh_ring_scan_backward(
            as_numpy(a), states.numpy(), as_numpy(h), ctx.mask, as_numpy(grad), grad_h.numpy(), slopes.numpy(), grad_a.numpy()
        )  # fmt: skip
        return grad_a, slopes, grad_h, None


def ring(log_nu: Tensor, log_theta: Tensor) -> tuple[Tensor, Tensor]:
    """a (2N,) split and gamma (N,), from (N,) each."""
    nu, theta = log_nu.exp(), log_theta.exp()
    radius = torch.exp(-nu)
    gamma = (-torch.expm1(-2 * nu)).clamp_min(SMALLEST).sqrt()
    return torch.cat([radius * theta.cos(), radius * theta.sin()]), gamma


def _drive(u: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor) -> Tensor:
    """gamma (W u + b) (B, T, 2N)."""
    both = torch.cat([gamma, gamma])
    return F.linear(u, weight * both.unsqueeze(1), bias * both)


def rtu_layer(
    u: Tensor, h: Tensor, keep: Tensor | None, weight: Tensor, bias: Tensor, log_nu: Tensor, log_theta: Tensor
) -> tuple[Tensor, Tensor]:
    """One linear layer: u (B, T, D), h (B, 2N), keep (B, T) to y (B, T, 2N) and the last h."""
    a, gamma = ring(log_nu, log_theta)
    states = split_scan(a.view(1, 1, -1), _drive(u, weight, bias, gamma), h, keep, is_complex=True)
    return torch.tanh(states), states[:, -1]


def rtu_tanh_layer(
    u: Tensor, h: Tensor, keep: Tensor | None, weight: Tensor, bias: Tensor, log_nu: Tensor, log_theta: Tensor
) -> tuple[Tensor, Tensor]:
    """One layer with the tanh inside, shapes as `rtu_layer`."""
    a, gamma = ring(log_nu, log_theta)
    run: Any = _TanhRing.apply if fused_allowed(u) else tanh_ring_reference
    states = run(a, _drive(u, weight, bias, gamma), h, keep)
    return states, states[:, -1]


@register_model("rtu", RTUConfig)
class RTU(GatedRecurrence):
    """hidden is h of each layer side by side, (B, num_layers * hidden_dim); an output map where widths differ."""

    parts, reference = 1, staticmethod(rtu_layer)
    dynamics = ("log_nu", "log_theta")

    def _draw(self, config: RTUConfig, generator: torch.Generator) -> None:
        shape = (config.num_layers, self.width // 2)
        draw = torch.rand(shape, generator=generator)
        # Uniform on the ring's area: r^2 = u (r_max^2 - r_min^2) + r_min^2. Neither r = 0 nor r = 1 has a finite log_nu.
        area = (draw * (config.r_max**2 - config.r_min**2) + config.r_min**2).clamp(1e-6, 1 - 1e-6)
        self.log_nu = nn.Parameter((-0.5 * torch.log(area)).log())
        phase = config.max_phase * torch.rand(shape, generator=generator).clamp_min(1e-4)
        self.log_theta = nn.Parameter(phase.log())

    def weights(self) -> Iterator[tuple[Tensor, ...]]:
        """W, b, log_nu and log_theta of each layer."""
        for weights, log_nu, log_theta in zip(super().weights(), self.log_nu, self.log_theta, strict=True):
            yield *weights, log_nu, log_theta


@register_model("rtu-tanh", RTUTanhConfig)
class RTUTanh(RTU):
    """As RTU, whose state is inside (-1, 1)."""

    reference: Callable[..., tuple[Tensor, Tensor]] = staticmethod(rtu_tanh_layer)
