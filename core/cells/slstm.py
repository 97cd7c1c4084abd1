"""sLSTM: an LSTM with exponential gates, a normaliser and a stabiliser, whose state feeds back within heads.

For each layer, from u (B, T, D); k_t = 1 - reset_t multiplies c, n, m and h of the step before; all products elementwise but R's:

    [z~, i~, f~, o~] = W u + b + R h_{t-1}            R block-diagonal: a unit hears the units of its own head
    m_t = max(ln f_t + m_{t-1}, i~_t)                 f_t = sigmoid(f~), or exp(f~);   m_t = i~_t while nothing has been stored
    c_t = f'_t c_{t-1} + i'_t tanh(z~_t)              f'_t = exp(ln f_t + m_{t-1} - m_t),   i'_t = exp(i~_t - m_t)
    n_t = f'_t n_{t-1} + i'_t
    h_t = sigmoid(o~_t) c_t / n_t,   y_t = h_t

Source: Beck et al. 2024 (arXiv 2405.04517), equations 8 to 17. c / n is a weighted mean of everything stored, so y is in (-1, 1), and m keeps both
gates' exponentials at most 1. Left out are the block around the cell (norms, convolution, projections, residual). At the start R is zero
and with f a sigmoid its bias gives a full memory time constants log-uniform in [tau_min, tau_max] steps; before that it is the mean of what
was read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field, model_validator
from torch import Tensor, nn

from core.cells.mingru import GatedRecurrence, TimeConstantsConfig
from core.config import search
from core.fused.autograd import Fused, fused_allowed
from core.kernels.jit import as_numpy, f32
from core.kernels.slstm import slstm_scan, slstm_scan_backward
from core.sequence_model import register_model


class SLSTMConfig(TimeConstantsConfig):
    """sLSTM (Beck et al. 2024): exponential gates with a normaliser, and a state that feeds back within heads."""

    kind: Literal["slstm"] = "slstm"
    num_layers: int = Field(default=1, ge=1, le=32, json_schema_extra=search(choices=(1, 2)))
    """Depth: how many layers are stacked."""
    num_heads: int = Field(default=4, ge=1, le=64, json_schema_extra=search(choices=(1, 4)))
    """Blocks of the recurrent matrices; hidden_dim must be a multiple of it."""
    forget: Literal["sigmoid", "exponential"] = Field(
        default="sigmoid", json_schema_extra=search(choices=("sigmoid", "exponential"))
    )
    """The forget gate: a sigmoid, or like the input gate an exponential, which may let the past outweigh what is read."""

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> SLSTMConfig:
        if self.hidden_dim % self.num_heads:
            raise ValueError(f"hidden_dim {self.hidden_dim} must be a multiple of num_heads {self.num_heads}")
        return self

    @property
    def width_multiple(self) -> int:
        """The width must be a multiple of this."""
        return self.num_heads


def slstm_reference(
    u: Tensor, state: Tensor, keep: Tensor | None, weight: Tensor, bias: Tensor, mixing: Tensor, exponential: bool
) -> tuple[Tensor, Tensor]:
    """One layer, one step at a time: u (B, T, D), state (B, 4H) = [c | n | m | h], keep (B, T), weight (4H, D), mixing
    (heads, d, 4d) to y (B, T, H) and the last state."""
    heads, inner, _ = mixing.shape
    batch, outputs = u.shape[0], []
    projected = F.linear(u, weight, bias)
    for t in range(u.shape[1]):
        if keep is not None:
            state = state * keep[:, t, None]
        c, n, m, h = state.chunk(4, -1)
        heard = torch.bmm(h.reshape(batch, heads, inner).transpose(0, 1), mixing)  # (heads, B, 4d)
        heard = heard.view(heads, batch, 4, inner).permute(1, 2, 0, 3).reshape(batch, -1)
        z, i, f, o = (projected[:, t] + heard).chunk(4, -1)
        kept = m + (f if exponential else F.logsigmoid(f))
        m = torch.where(n == 0, i, torch.maximum(kept, i))
        stays, enters = (
            (kept - m).clamp_max(0).exp(),
            (i - m).exp(),
        )  # at most 1: an empty memory has nothing that stays
        c, n = stays * c + enters * torch.tanh(z), stays * n + enters
        h = torch.sigmoid(o) * (c / n)
        state = torch.cat([c, n, m, h], -1)
        outputs.append(h)
    return torch.stack(outputs, 1), state


class _SLSTM(Fused):
    """`slstm_reference` with one compiled loop each way."""

    reference = staticmethod(slstm_reference)

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        u, state, keep, weight, bias, mixing, exponential = inputs
        batch, time, _ = u.shape
        width = state.shape[1] // 4
        gates = torch.mm(u.reshape(batch * time, -1), weight.T).view(batch, time, 4 * width)
        ctx.mask = np.ones((batch, time), f32) if keep is None else as_numpy(keep)
        stays, states = torch.empty(batch, time, width), torch.empty(batch, time, 4 * width)
        slstm_scan(
            gates.numpy(), as_numpy(bias), as_numpy(mixing), as_numpy(state), ctx.mask, exponential, stays.numpy(), states.numpy()
        )  # fmt: skip
        _SLSTM.keep_inputs(ctx, inputs, gates, stays, states)
        return states[:, :, 3 * width :].clone(), states[:, -1].clone()

    @staticmethod
    def fast_backward(ctx: Any, inputs: list[Any], saved: list[Tensor], grads: tuple[Any, ...]) -> tuple[Any, ...]:
        """dp by `core.kernels.slstm.slstm_scan_backward`; p = u W^T:  dW = dp^T u,  du = dp W."""
        u, state, _, weight, bias, mixing, _ = inputs
        gates, stays, states = saved
        grad, grad_last = grads
        grad = torch.zeros(stays.shape) if grad is None else grad
        carried = (
            torch.zeros(state.shape) if grad_last is None else grad_last.clone(memory_format=torch.contiguous_format)
        )
        slopes, grad_bias, grad_mixing = torch.empty(gates.shape), torch.zeros_like(bias), torch.zeros(mixing.shape)
        slstm_scan_backward(
            gates.numpy(), stays.numpy(), states.numpy(), as_numpy(mixing), as_numpy(state), ctx.mask, as_numpy(grad),
            carried.numpy(), slopes.numpy(), grad_bias.numpy(), grad_mixing.numpy(),
        )  # fmt: skip
        flat = slopes.flatten(0, 1)
        grad_u = torch.mm(flat, weight).view(u.shape) if ctx.needs_input_grad[0] else None
        grad_weight = torch.mm(flat.T, u.reshape(len(flat), -1))
        return grad_u, carried, None, grad_weight, grad_bias, grad_mixing, None


@register_model("slstm", SLSTMConfig)
class SLSTM(GatedRecurrence):
    """hidden is [c | n | m | h] of each layer side by side, (B, 4 * num_layers * hidden_dim); an output map where widths differ."""

    parts, states = 4, 4
    reference: Callable[..., tuple[Tensor, Tensor]] = staticmethod(slstm_reference)

    def _draw(self, config: SLSTMConfig, generator: torch.Generator) -> None:
        self.exponential = config.forget == "exponential"
        super()._draw(config, generator)
        inner = self.width // config.num_heads
        self.mixing = nn.Parameter(torch.zeros(config.num_layers, config.num_heads, inner, 4 * inner))

    def _start(self, biases: Tensor, gate: Tensor) -> None:
        # s(-b) = e^(-1 / tau) is what a full memory keeps; an exponential gate says the same by its logarithm.
        biases[2] = F.logsigmoid(-gate) if self.exponential else -gate

    def weights(self) -> Iterator[tuple[Any, ...]]:
        """W, b and R of each layer, and whether the forget gate is an exponential."""
        for weights, mixing in zip(super().weights(), self.mixing, strict=True):
            yield *weights, mixing, self.exponential

    def _layer(self, x: Tensor) -> Callable[..., Any]:
        return _SLSTM.apply if fused_allowed(x) else slstm_reference
