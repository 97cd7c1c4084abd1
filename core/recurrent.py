"""LSTM and GRU under the common contract: the baselines that a state space model has to beat, none of them handicapped.

On a CPU both run through kernels of ours (`core.kernels.recurrent`): one product for all inputs, then a compiled loop each way. torch's
LSTM there is no faster and its GRU five times slower; on a GPU torch's own kernels run. Both have a reference loop in plain
operations, used for second derivatives, under torch.func transforms, and by the tests.
Gates, layouts and names are torch's (nn.LSTM, nn.GRU), so weights can be exchanged with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from core.config import search
from core.fused.autograd import Fused, Native, fused_allowed
from core.kernels.jit import as_numpy, f32
from core.kernels.recurrent import gru_scan, gru_scan_backward, load_recurrent, lstm_scan, lstm_scan_backward
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


def _mask(keep: Tensor | None, batch: int, time: int) -> np.ndarray:
    """1 - resets (B, T) for a kernel."""
    return np.ones((batch, time), f32) if keep is None else as_numpy(keep)


def _projected(x: Tensor, weight: Tensor) -> Tensor:
    """W x (B, T, G H) of all steps in one product."""
    batch, time, _ = x.shape
    return torch.mm(x.reshape(batch * time, -1), weight.T).view(batch, time, -1)


def _slope(grad: Tensor | None, like: Tensor) -> Tensor:
    """A gradient that autograd left out, as zeros; else a copy of it, which a kernel may write over."""
    return torch.zeros(like.shape) if grad is None else grad.clone(memory_format=torch.contiguous_format)


def _runner(x: Tensor, fused: type[Fused], native: type[Native]) -> Callable[..., Any]:
    """What computes a layer for such x: the compiled kernel on a CPU, torch's on a GPU, the reference where neither may run."""
    if fused_allowed(x):
        return fused.apply
    if x.device.type == "cpu" or transforms_active():
        return fused.reference
    return native.apply if torch.is_grad_enabled() else native.native


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


class _LSTM(Fused):
    """One layer: x (B, T, D), h and c (B, H), keep and torch's four parameters to y (B, T, H) and the last h and c."""

    reference = staticmethod(lstm_reference)

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        x, h, c, keep, w_ih, w_hh, b_ih, b_hh = inputs
        load_recurrent()
        gates, ctx.mask = _projected(x, w_ih), _mask(keep, *x.shape[:2])
        previous, cells, squashed, out = (torch.empty(*x.shape[:2], h.shape[1]) for _ in range(4))
        lstm_scan(
            gates.numpy(), as_numpy(b_ih + b_hh), as_numpy(w_hh.T), as_numpy(h), as_numpy(c), ctx.mask, previous.numpy(),
            cells.numpy(), squashed.numpy(), out.numpy(),
        )  # fmt: skip
        _LSTM.keep_inputs(ctx, inputs, gates, previous, cells, squashed)
        return out, out[:, -1].clone(), cells[:, -1].clone()

    @staticmethod
    def fast_backward(ctx: Any, inputs: list[Any], saved: list[Tensor], grads: tuple[Any, ...]) -> tuple[Any, ...]:
        """dp by `core.kernels.recurrent.lstm_scan_backward`; p = W x:  dW = dp^T x,  dx = dp W;  likewise dU from q."""
        x, _, c, _, w_ih, w_hh, b_ih, _ = inputs
        gates, previous, cells, squashed = saved
        slopes, grad, grad_bias = gates.clone(), _slope(grads[0], cells), torch.zeros(b_ih.shape)
        grad_h, grad_c = _slope(grads[1], c), _slope(grads[2], c)
        lstm_scan_backward(
            slopes.numpy(), as_numpy(w_hh), as_numpy(c), ctx.mask, cells.numpy(), squashed.numpy(), grad.numpy(), grad_h.numpy(),
            grad_c.numpy(), grad_bias.numpy(),
        )  # fmt: skip
        flat = slopes.flatten(0, 1)
        grad_x = torch.mm(flat, w_ih).view(x.shape) if ctx.needs_input_grad[0] else None
        grad_w, grad_u = torch.mm(flat.T, x.reshape(len(flat), -1)), torch.mm(flat.T, previous.flatten(0, 1))
        return grad_x, grad_h, grad_c, None, grad_w, grad_u, grad_bias, grad_bias.clone()


class _NativeLSTM(Native):
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
        run = _runner(x, _LSTM, _NativeLSTM)
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
        load_recurrent()
        gates, ctx.mask = _projected(x, w_ih), _mask(keep, *x.shape[:2])
        previous, heard, out = (torch.empty(*x.shape[:2], h.shape[1]) for _ in range(3))
        gru_scan(
            gates.numpy(), as_numpy(b_ih), as_numpy(b_hh), as_numpy(w_hh.T), as_numpy(h), ctx.mask, previous.numpy(), heard.numpy(),
            out.numpy(),
        )  # fmt: skip
        _GRU.keep_inputs(ctx, inputs, gates, previous, heard)
        return out, out[:, -1].clone()

    @staticmethod
    def fast_backward(ctx: Any, inputs: list[Any], saved: list[Tensor], grads: tuple[Any, ...]) -> tuple[Any, ...]:
        """dp and da by `core.kernels.recurrent.gru_scan_backward`; p = W x, a = U q:  dW = dp^T x,  dx = dp W,  dU = da^T q."""
        x, h, _, w_ih, w_hh, b_ih, b_hh = inputs
        gates, previous, heard = saved
        slopes, grad, carry = gates.clone(), _slope(grads[0], previous), _slope(grads[1], h)
        grad_heard, grad_b_ih, grad_b_hh = heard.clone(), torch.zeros(b_ih.shape), torch.zeros(b_hh.shape)
        gru_scan_backward(
            slopes.numpy(), as_numpy(w_hh), ctx.mask, previous.numpy(), grad_heard.numpy(), grad.numpy(), carry.numpy(),
            grad_b_ih.numpy(), grad_b_hh.numpy(),
        )  # fmt: skip
        flat, q, two = slopes.flatten(0, 1), previous.flatten(0, 1), 2 * h.shape[1]
        grad_x = torch.mm(flat, w_ih).view(x.shape) if ctx.needs_input_grad[0] else None
        grad_u = torch.cat([torch.mm(flat[:, :two].T, q), torch.mm(grad_heard.flatten(0, 1).T, q)])
        return grad_x, carry, None, torch.mm(flat.T, x.reshape(len(flat), -1)), grad_u, grad_b_ih, grad_b_hh


class _NativeGRU(Native):
    reference = staticmethod(gru_reference)
    native = staticmethod(_gru_torch)


@register_model("gru", GRUConfig)
class GRU(_Recurrent):
    """hidden is h of each layer side by side, (B, num_layers * hidden_dim)."""

    gates, states = 3, 1

    def _sequence(self, x: Tensor, hidden: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        run, parts = _runner(x, _GRU, _NativeGRU), []
        for layer, h in enumerate(hidden.split(self.width, 1)):
            x, h = run(x, h, keep, *self.weights(layer))
            parts.append(h)
        return x if self.decoder is None else self.decoder(x), torch.cat(parts, 1)

    def _step(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        parts = []
        for layer, h in enumerate(hidden.split(self.width, 1)):
            x = torch.gru_cell(x, h, *self.weights(layer))
            parts.append(x)
        return x if self.decoder is None else self.decoder(x), parts[0] if len(parts) == 1 else torch.cat(parts, 1)
