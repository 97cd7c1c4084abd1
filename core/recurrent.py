"""LSTM and GRU under the common contract: the baselines that a state space model has to beat, none of them handicapped.

LSTM runs through torch's fused kernel. torch has no fused GRU on CPU (its loop is five times slower than its LSTM), so
the GRU has a kernel (`core.kernels.gru`): one product for all inputs, then a compiled loop. Both have a reference loop in plain
operations, used for second derivatives, under torch.func transforms, and by the tests.
Gates, layouts and names are torch's (nn.LSTM, nn.GRU), so weights can be exchanged with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from core.config import search
from core.fused.autograd import Fused, Native, fused_allowed
from core.kernels.gru import gru_scan, gru_scan_backward
from core.kernels.jit import as_numpy, f32
from core.sequence_model import SequenceModel, SequenceModelConfig, linear, register_model, transforms_active

NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class LSTMConfig(SequenceModelConfig):
    """LSTM (Hochreiter and Schmidhuber 1997), torch's gates and layout."""

    kind: Literal["lstm"] = "lstm"
    num_layers: int = Field(default=1, ge=1, le=32, json_schema_extra=search(choices=(1, 2)))
    """Depth: how many layers are stacked."""
    forget_bias: float = Field(default=1.0, ge=-5, le=5, json_schema_extra=search(choices=(0.0, 1.0, 2.0)))
    """Initial bias of the forget gate; 1 keeps memory at the start (Jozefowicz et al. 2015)."""


class GRUConfig(SequenceModelConfig):
    """GRU (Cho et al. 2014) in the form of torch and cuDNN: the reset gate acts after the recurrent product."""

    kind: Literal["gru"] = "gru"
    num_layers: int = Field(default=1, ge=1, le=32, json_schema_extra=search(choices=(1, 2)))
    """Depth: how many layers are stacked."""


class _Recurrent(SequenceModel):
    """What LSTM and GRU share: torch's parameters, drawn from `generator`, and an output map where widths differ."""

    gates: int
    states: int

    def __init__(
        self, config: SequenceModelConfig, input_dim: int, output_dim: int, *, generator: torch.Generator
    ) -> None:
        super().__init__(config, input_dim, output_dim)
        width, layers = config.hidden_dim, config.num_layers
        self.width, self.layers, self.hidden_size = width, layers, self.states * layers * width
        self.core = nn.Module()
        for layer in range(layers):
            fan_in = input_dim if layer == 0 else width
            recurrent = torch.cat(
                [nn.init.orthogonal_(torch.empty(width, width), generator=generator) for _ in range(self.gates)]
            )
            drawn = torch.empty(self.gates * width, fan_in).normal_(0.0, 1 / math.sqrt(fan_in), generator=generator)
            zeros = torch.zeros(self.gates * width)
            for name, value in zip(NAMES, (drawn, recurrent, zeros, zeros.clone()), strict=True):
                self.core.register_parameter(f"{name}_l{layer}", nn.Parameter(value))
        self.decoder = None if output_dim == width else linear(width, output_dim, generator)

    def weights(self, layer: int) -> tuple[Tensor, ...]:
        """weight_ih, weight_hh, bias_ih, bias_hh of a layer."""
        held = self.core._parameters
        return tuple(held[f"{name}_l{layer}"] for name in NAMES)  # pyright: ignore[reportReturnType]


# -------------------------------------------------------------------------------------------------------------- LSTM
def lstm_reference(
    x: Tensor, h: Tensor, c: Tensor, keep: Tensor | None, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer, one step at a time: i, f, g, o = W x + U h + b; c = sig(f) c + sig(i) tanh(g); h = sig(o) tanh(c)."""
    outputs = []
    projected = torch.nn.functional.linear(x, w_ih, b_ih + b_hh)
    for t in range(x.shape[1]):
        if keep is not None:
            h, c = h * keep[:, t, None], c * keep[:, t, None]
        i, f, g, o = (projected[:, t] + h @ w_hh.T).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs, 1), h, c


def _between_resets(
    run: Callable[..., tuple[Tensor, ...]], x: Tensor, states: tuple[Tensor, ...], keep: Tensor | None
) -> tuple[Tensor, ...]:
    """`run(x, *states)` on the stretches between steps where any sequence is reset: torch's kernels know no resets."""
    cuts = [0]
    if keep is not None:
        states = tuple(state * keep[:, 0, None] for state in states)
        cuts += ((keep[:, 1:] != 1).any(0).nonzero().flatten() + 1).tolist()
    outputs = []
    for start, end in zip(cuts, [*cuts[1:], x.shape[1]], strict=True):
        if start:
            assert keep is not None
            states = tuple(state * keep[:, start, None] for state in states)
        y, *states = run(x[:, start:end], *states)  # pyright: ignore[reportAssignmentType]
        outputs.append(y)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1), *states


def _lstm_torch(x: Tensor, h: Tensor, c: Tensor, keep: Tensor | None, *weights: Tensor) -> tuple[Tensor, ...]:
    """torch's fused kernel."""

    def run(x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        state = (h.unsqueeze(0), c.unsqueeze(0))
        y, h, c = torch.lstm(x, state, weights, True, 1, 0.0, torch.is_grad_enabled(), False, True)
        return y, h[0], c[0]

    return _between_resets(run, x, (h, c), keep)


def _gru_torch(x: Tensor, h: Tensor, keep: Tensor | None, *weights: Tensor) -> tuple[Tensor, ...]:
    """torch's GRU, fused by cuDNN on a GPU."""

    def run(x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        y, h = torch.gru(x, h.unsqueeze(0), weights, True, 1, 0.0, torch.is_grad_enabled(), False, True)
        return y, h[0]

    return _between_resets(run, x, (h,), keep)


class _LSTM(Native):
    reference = staticmethod(lstm_reference)
    native = staticmethod(_lstm_torch)


@register_model("lstm", LSTMConfig)
class LSTM(_Recurrent):
    """hidden is [h | c] of each layer side by side, (B, 2 * num_layers * hidden_dim)."""

    gates, states = 4, 2

    def __init__(self, config: LSTMConfig, input_dim: int, output_dim: int, *, generator: torch.Generator) -> None:
        super().__init__(config, input_dim, output_dim, generator=generator)
        with torch.no_grad():
            for layer in range(self.layers):
                self.weights(layer)[2][self.width : 2 * self.width] = config.forget_bias

    def _sequence(self, x: Tensor, hidden: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        run: Callable[..., Any] = lstm_reference
        if not transforms_active():
            run = _LSTM.apply if torch.is_grad_enabled() else _lstm_torch
        states, parts = hidden.split(self.width, 1), []
        for layer in range(self.layers):
            h, c = states[2 * layer].contiguous(), states[2 * layer + 1].contiguous()
            x, h, c = run(x, h, c, keep, *self.weights(layer))
            parts += [h, c]
        return x if self.decoder is None else self.decoder(x), torch.cat(parts, 1)

    def _step(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        states, parts = hidden.split(self.width, 1), []
        for layer in range(self.layers):
            x, c = torch.lstm_cell(x, (states[2 * layer], states[2 * layer + 1]), *self.weights(layer))
            parts += [x, c]
        return x if self.decoder is None else self.decoder(x), torch.cat(parts, 1)


# --------------------------------------------------------------------------------------------------------------- GRU
def gru_reference(
    x: Tensor, h: Tensor, keep: Tensor | None, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> tuple[Tensor, Tensor]:
    """One layer, one step at a time: r, z = sig(W x + U h + b); n = tanh(W x + b + r (U h + b)); h = (1 - z) n + z h."""
    outputs = []
    projected = torch.nn.functional.linear(x, w_ih, b_ih)
    for t in range(x.shape[1]):
        if keep is not None:
            h = h * keep[:, t, None]
        r_x, z_x, n_x = projected[:, t].chunk(3, -1)
        r_h, z_h, n_h = torch.nn.functional.linear(h, w_hh, b_hh).chunk(3, -1)
        r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
        n = torch.tanh(n_x + r * n_h)
        h = n + z * (h - n)
        outputs.append(h)
    return torch.stack(outputs, 1), h


class _GRU(Fused):
    """One layer: x (B, T, D), h (B, H), keep and torch's four parameters to y (B, T, H) and the last h."""

    reference = staticmethod(gru_reference)

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        x, h, keep, w_ih, w_hh, b_ih, b_hh = inputs
        batch, time, _ = x.shape
        width = h.shape[1]
        by_time = x.transpose(0, 1).reshape(time * batch, -1)
        projected = torch.addmm(b_ih, by_time, w_ih.T)
        mask = np.ones((time, batch), f32) if keep is None else as_numpy(keep.T)
        out, gates = torch.empty(time, batch, width), torch.empty(time, batch, 4 * width)
        previous = torch.empty(time, batch, width)
        gru_scan(
            projected.numpy().reshape(time, batch, -1), as_numpy(w_hh.T), as_numpy(b_hh), as_numpy(h), mask,
            out.numpy(), gates.numpy(), previous.numpy(),
        )  # fmt: skip
        _GRU.keep_inputs(ctx, inputs, by_time, gates, previous)
        ctx.mask = mask
        return out.transpose(0, 1), out[-1].clone()

    @staticmethod
    def fast_backward(ctx: Any, inputs: list[Any], saved: list[Tensor], grads: tuple[Any, ...]) -> tuple[Any, ...]:
        _, _, _, w_ih, w_hh, _, _ = inputs
        by_time, gates, previous = saved
        grad_y, grad_last = grads
        time, batch, width = previous.shape
        carry = torch.zeros(batch, width) if grad_last is None else grad_last.clone()
        grad_y = torch.zeros(time, batch, width) if grad_y is None else grad_y.transpose(0, 1)
        d_x, d_h = torch.empty(time, batch, 3 * width), torch.empty(time, batch, 3 * width)
        gru_scan_backward(
            as_numpy(grad_y), as_numpy(w_hh), ctx.mask, gates.numpy(), previous.numpy(), d_x.numpy(), d_h.numpy(),
            as_numpy(carry),
        )  # fmt: skip
        flat_x, flat_h = d_x.flatten(0, 1), d_h.flatten(0, 1)
        grad_x = torch.mm(flat_x, w_ih).view(time, batch, -1).transpose(0, 1) if ctx.needs_input_grad[0] else None
        grad_w_hh = torch.mm(flat_h.T, previous.flatten(0, 1))
        return grad_x, carry, None, torch.mm(flat_x.T, by_time), grad_w_hh, flat_x.sum(0), flat_h.sum(0)


class _NativeGRU(Native):
    reference = staticmethod(gru_reference)
    native = staticmethod(_gru_torch)


def gru_layer(
    x: Float[Tensor, "B T D"], h: Float[Tensor, "B H"], keep: Float[Tensor, "B T"] | None, *weights: Tensor
) -> tuple[Float[Tensor, "B T H"], Float[Tensor, "B H"]]:
    """One GRU layer: the compiled kernel on CPU, torch's on a GPU, the reference where neither may run."""
    if fused_allowed(x):
        run = _GRU.apply
    elif x.device.type == "cpu" or transforms_active():
        run = gru_reference
    else:
        run = _NativeGRU.apply if torch.is_grad_enabled() else _gru_torch
    return run(x, h, keep, *weights)  # pyright: ignore[reportReturnType]


@register_model("gru", GRUConfig)
class GRU(_Recurrent):
    """hidden is h of each layer side by side, (B, num_layers * hidden_dim)."""

    gates, states = 3, 1

    def _sequence(self, x: Tensor, hidden: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        parts = []
        for layer, h in enumerate(hidden.split(self.width, 1)):
            x, h = gru_layer(x, h, keep, *self.weights(layer))
            parts.append(h)
        return x if self.decoder is None else self.decoder(x), torch.cat(parts, 1)

    def _step(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        parts = []
        for layer, h in enumerate(hidden.split(self.width, 1)):
            x = torch.gru_cell(x, h, *self.weights(layer))
            parts.append(x)
        return x if self.decoder is None else self.decoder(x), parts[0] if len(parts) == 1 else torch.cat(parts, 1)
