"""minGRU with a bounded output: a gated recurrence that is linear in its state, so that all inputs go through one product.

For each layer, from u (B, T, D); k_t = 1 - reset_t, s the sigmoid, all products elementwise:

    [v, z, o] = W u + b
    h_t = k_t (1 - s(z_t)) h_{t-1} + s(z_t) tanh(v_t)
    y_t = s(o_t) tanh(h_t)

The recurrence is minGRU (Feng et al. 2024, arXiv 2410.01201, section 3.1: gates read the input alone) and, with f = 1 - s(z),
QRNN's fo-pooling (Bradbury et al. 2017, arXiv 1611.01576, equation 5: c_t = f c_{t-1} + (1 - f) z, h_t = o c_t) with convolutions
of width 1. Ours are the tanh on the state as the LSTM has it, and the start: time constants -1 / ln(1 - s(b_z)) log-uniform
in [tau_min, tau_max] steps. Every output is in (-1, 1), so layers follow each other with no residual, norm or merge.
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

from core.config import search
from core.fused.autograd import Fused, fused_allowed
from core.kernels.gated import gated_scan, gated_scan_backward, gated_step, load_gated
from core.kernels.jit import as_numpy, f32
from core.scan import split_scan
from core.sequence_model import SequenceModel, SequenceModelConfig, linear, register_model


class TimeConstantsConfig(SequenceModelConfig):
    """What gated recurrences share whose time constants are drawn at the start."""

    tau_min: float = Field(default=2.0, ge=0.1, le=1e5, json_schema_extra=search(low=1.0, high=8.0, log=True))
    """Shortest initial time constant, in steps."""
    tau_max: float = Field(default=100.0, ge=0.1, le=1e5, json_schema_extra=search(low=30.0, high=300.0, log=True))
    """Longest initial time constant, in steps."""

    @model_validator(mode="after")
    def _range(self) -> TimeConstantsConfig:
        if self.tau_min > self.tau_max:
            raise ValueError(f"tau_min {self.tau_min} must be at most tau_max {self.tau_max}")
        return self


class MinGRUConfig(TimeConstantsConfig):
    """minGRU (Feng et al. 2024) with a bounded output: gates read the input alone, and the state is linear in the last one."""

    kind: Literal["mingru"] = "mingru"


def gate_biases(width: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """b (H,) with time constants log-uniform in [low, high] steps: 1 - s(b) = exp(-1 / tau), so b = ln(e^(1 / tau) - 1)."""
    span = math.log(high) - math.log(low)
    tau = torch.exp(torch.rand(width, generator=generator, dtype=torch.float64) * span + math.log(low))
    return torch.log(torch.expm1(1 / tau)).float()


def mingru_reference(u: Tensor, h: Tensor, keep: Tensor | None, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """One layer in plain operations: u (B, T, D), h (B, H), keep (B, T), weight (3H, D), bias (3H,) to y (B, T, H) and the last h."""
    v, z, o = F.linear(u, weight, bias).chunk(3, -1)
    gate = torch.sigmoid(z)
    states = split_scan(1 - gate, gate * torch.tanh(v), h, keep, is_complex=False)
    return torch.sigmoid(o) * torch.tanh(states), states[:, -1]


class FusedGates(Fused):
    """A reference of this file's form with the gates, the scan and the output in one pass each way."""

    @classmethod
    def run(cls, ctx: Any, inputs: Any) -> tuple[Tensor, Tensor]:
        """The forward of `core.kernels.gated`, for as many gates as W has."""
        u, h, keep, weight, bias = inputs
        load_gated()
        batch, time, _ = u.shape
        width, rows = h.shape[1], len(bias)
        pre = torch.mm(u.reshape(batch * time, -1), weight.T).view(batch, time, rows)
        gates = pre if rows == 3 * width else torch.empty(batch, time, 3 * width)
        shut = torch.empty(batch, time, 2 * (rows - 3 * width))
        ctx.mask = np.ones((batch, time), f32) if keep is None else as_numpy(keep)
        states, squashed, out = (torch.empty(batch, time, width) for _ in range(3))
        gated_scan(
            pre.numpy(), gates.numpy(), shut.numpy(), as_numpy(bias), as_numpy(h), ctx.mask, states.numpy(), squashed.numpy(), out.numpy(),
        )  # fmt: skip
        cls.keep_inputs(ctx, inputs, gates, shut, states, squashed)
        return out, states[:, -1].clone()

    @staticmethod
    def fast_backward(ctx: Any, inputs: list[Any], saved: list[Tensor], grads: tuple[Any, ...]) -> tuple[Any, ...]:
        """dp by `core.kernels.gated.gated_scan_backward`; p = u W^T:  dW = dp^T u,  du = dp W."""
        u, h, _, weight, bias = inputs
        gates, shut, states, squashed = saved
        grad, grad_last = grads
        grad = torch.zeros(states.shape) if grad is None else grad
        grad_h = torch.zeros(h.shape) if grad_last is None else grad_last.clone(memory_format=torch.contiguous_format)
        slopes, grad_bias = torch.empty(gates.shape), torch.zeros_like(bias)
        grad_pre = torch.empty(*gates.shape[:2], len(bias)) if shut.numel() else slopes
        gated_scan_backward(
            gates.numpy(), shut.numpy(), states.numpy(), squashed.numpy(), as_numpy(h), ctx.mask, as_numpy(grad), grad_h.numpy(),
            slopes.numpy(), grad_pre.numpy(), grad_bias.numpy(),
        )  # fmt: skip
        flat = grad_pre.flatten(0, 1)
        grad_u = torch.mm(flat, weight).view(u.shape) if ctx.needs_input_grad[0] else None
        return grad_u, grad_h, None, torch.mm(flat.T, u.reshape(len(flat), -1)), grad_bias


class _MinGRU(FusedGates):
    """`mingru_reference`."""

    reference = staticmethod(mingru_reference)

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        return _MinGRU.run(ctx, inputs)


class GatedRecurrence(SequenceModel):
    """Layers y, h = layer(u, h, keep, W, b) on each other, with nothing between; an output map where widths differ.

    hidden is each layer's state side by side, (B, num_layers * states * hidden_dim); mostly `states` is 1 and the state is h.
    Subclasses say how many widths W has (`parts`), the layer's reference, and which biases the time constants start.
    """

    parts: int
    states = 1
    reference: Callable[..., tuple[Tensor, Tensor]]

    def __init__(self, config: Any, input_dim: int, output_dim: int, *, generator: torch.Generator) -> None:
        super().__init__(config, input_dim, output_dim)
        width, count = config.hidden_dim, config.num_layers
        self.width, self.hidden_size = width, self.states * width * count
        self.layers = nn.ModuleList(
            linear(width if layer else input_dim, self.parts * width, generator) for layer in range(count)
        )
        with torch.no_grad():
            self._draw(config, generator)
        self.decoder = None if output_dim == width else linear(width, output_dim, generator)

    def _draw(self, config: Any, generator: torch.Generator) -> None:
        """What a layer has besides W, and the biases."""
        for layer in self.layers:
            bias, gate = layer.bias, gate_biases(self.width, config.tau_min, config.tau_max, generator)
            assert isinstance(bias, Tensor)
            self._start(bias.view(self.parts, self.width), gate)

    def _start(self, biases: Tensor, gate: Tensor) -> None:
        """Fill the biases (parts, H), zeros so far, such that the share of the new input is s(gate)."""
        raise NotImplementedError

    def weights(self) -> Iterator[tuple[Tensor, ...]]:
        """What the reference takes of each layer: W, b and what `_draw` added."""
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            yield layer.weight, layer.bias

    def _layer(self, x: Tensor) -> Callable[..., Any]:
        """What computes a layer for such x."""
        return type(self).reference

    def _sequence(self, x: Tensor, hidden: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        run, states = self._layer(x), []
        for weights, h in zip(self.weights(), hidden.split(self.states * self.width, 1), strict=True):
            x, h = run(x, h, keep, *weights)
            states.append(h)
        return x if self.decoder is None else self.decoder(x), torch.cat(states, 1)


class LinearGates(GatedRecurrence):
    """Gated recurrences whose gates read the input alone, which `core.kernels.gated` computes: minGRU and minLSTM.

    hidden is h of each layer side by side, (B, num_layers * hidden_dim); an output map where widths differ.
    """

    fused: type[FusedGates]

    def _layer(self, x: Tensor) -> Callable[..., Any]:
        return self.fused.apply if fused_allowed(x) else type(self).reference

    def _step(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        if not fused_allowed(x):
            return super()._step(x, hidden)
        states = torch.stack(hidden.split(self.width, 1))  # a copy that the kernel moves on
        for (weight, bias), state in zip(self.weights(), states, strict=True):
            pre, x = torch.mm(x, weight.T), torch.empty(state.shape)
            gated_step(pre.numpy(), as_numpy(bias), state.numpy(), x.numpy())
        return x if self.decoder is None else self.decoder(x), torch.cat(states.unbind(), 1)


@register_model("mingru", MinGRUConfig)
class MinGRU(LinearGates):
    """minGRU; see the module's docstring."""

    parts, reference, fused = 3, staticmethod(mingru_reference), _MinGRU

    def _start(self, biases: Tensor, gate: Tensor) -> None:
        biases[1] = gate
