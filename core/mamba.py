"""Mamba: a state space model whose step, input and output maps depend on the input (Gu and Dao 2023, arXiv 2312.00752).

Glossary, the paper's letters: E inner width, N states a channel, K taps of the causal convolution, R rank of the step.

    [x, z] = W_in u                                             (figure 3)
    x = silu(conv(x))                                           depthwise, causal, K taps
    [delta, B, C] = W_x x;   delta = softplus(W_delta delta + b)
    h_t = exp(delta_t A) h_{t-1} + delta_t B_t x_t              (equation 2a, algorithm 2; B discretised by Euler's rule
    y_t = C_t h_t + D x_t                                        as in the authors' code), A = -exp(A_log), (E, N)
    out = W_out (y silu(z))
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field, model_validator
from torch import Tensor, nn

from core.config import search
from core.errors import bad_value
from core.fused.autograd import Fused, fused_allowed
from core.kernels.jit import as_numpy, f32
from core.kernels.selective import (
    conv_silu,
    conv_silu_backward,
    conv_silu_step,
    selective_scan,
    selective_scan_backward,
    selective_step,
)
from core.scan import split_scan
from core.sequence_model import SequenceModelConfig, linear, register_model
from core.ssm import StateSpaceModel, check_time_steps
from core.stack import BLOCKS, LayerNorm

LARGEST = 1e3
"""Beyond this a block without a norm reads no further: a stream that is far outside of what networks are made for."""


class MambaConfig(SequenceModelConfig):
    """Selective state spaces: what is kept and what is forgotten depends on the input."""

    kind: Literal["mamba"] = "mamba"
    expand: float = Field(default=1.0, gt=0, le=4)
    """Inner width, in hidden_dims (the paper uses 2)."""
    states_per_channel: int = Field(default=8, ge=1, le=256, json_schema_extra=search(choices=(4, 8, 16)))
    """States of each inner channel, N (the paper uses 16)."""
    conv_width: int = Field(default=4, ge=1, le=16)
    """Taps of the causal convolution in front of the recurrence; 1 is none but a scale."""
    dt_rank: int = Field(default=0, ge=0, le=1024)
    """Rank of the map to the step; 0 means hidden_dim / 16, rounded up."""
    dt_min: float = Field(default=0.005, ge=1e-5, le=10, json_schema_extra=search(low=0.002, high=0.1, log=True))
    """Smallest initial step; time constants run from 1 / (N dt) to 1 / dt steps."""
    dt_max: float = Field(default=0.5, ge=1e-5, le=10)
    """Largest initial step."""
    norm: Literal["none", "layer", "rms"] = "none"
    """Normalisation in front of each block (the paper uses rms)."""

    @model_validator(mode="after")
    def _ranges_are_ranges(self) -> MambaConfig:
        check_time_steps(self)
        return self

    @classmethod
    def for_state_dim(cls, state_dim: int, hidden_dim: int, num_layers: int) -> MambaConfig:
        """The configuration whose layers carry `state_dim` real numbers: N + K - 1 for each of hidden_dim channels."""
        taps = cls.model_fields["conv_width"].default
        if state_dim % hidden_dim or state_dim < taps * hidden_dim:
            raise bad_value(
                "state_dim", state_dim, f"a multiple of {hidden_dim} of {taps * hidden_dim} or more for mamba"
            )
        return cls(hidden_dim=hidden_dim, num_layers=num_layers, states_per_channel=state_dim // hidden_dim - taps + 1)


# --------------------------------------------------------------------------------------------- convolution with silu
def conv_reference(x: Tensor, past: Tensor, keep: Tensor | None, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """silu(bias + sum_j weight_j x_{t-j}) and the last K - 1 inputs; a tap never reaches across a reset.

    x (B, T, E), past (B, K - 1, E) oldest first, weight (K, E) with weight_0 the present, bias (E,).
    """
    taps, time = weight.shape[0], x.shape[1]
    extended = torch.cat([past, x], 1)
    total = bias + weight[0] * x
    reach = padded = None
    if keep is not None:
        reach, padded = torch.ones_like(keep), F.pad(keep, (taps - 1, 0), value=1.0)
    for j in range(1, taps):
        shifted = extended[:, taps - 1 - j : taps - 1 - j + time]
        if reach is not None and padded is not None:
            reach = reach * padded[:, taps - j : taps - j + time]
            shifted = shifted * reach.unsqueeze(-1)
        total = total + weight[j] * shifted
    return F.silu(total), _last_inputs(extended, keep, taps)


def _last_inputs(extended: Tensor, keep: Tensor | None, taps: int) -> Tensor:
    """The last K - 1 of (B, K - 1 + T, E), zero where a later step was reset."""
    if taps == 1:
        return extended[:, :0]
    last = extended[:, 1 - taps :]
    if keep is None:
        return last
    # Entry i of the extended sequence lives if no reset comes after it: the product of the keeps of i + 1 ... end.
    after = F.pad(keep, (taps - 1, 1), value=1.0)[:, 1:].flip(1).cumprod(1).flip(1)
    return last * after[:, 1 - taps :].unsqueeze(-1)


def _reach(keep: Tensor | None, batch: int, time: int, taps: int) -> np.ndarray:
    """(B, T, K): whether tap j of step t sees across no reset: the product of keep over t - j + 1 ... t."""
    reach = np.ones((batch, time, taps), f32)
    if keep is not None:
        values = as_numpy(keep)
        for j in range(1, taps):
            reach[:, :, j] = reach[:, :, j - 1]
            reach[:, j - 1 :, j] *= values[:, : max(time - j + 1, 0)]
    return reach


class _Conv(Fused):
    """`conv_reference` in one pass each way."""

    reference = staticmethod(conv_reference)

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        x, past, keep, weight, bias = inputs
        extended, reach = torch.cat([past, x], 1), _reach(keep, x.shape[0], x.shape[1], weight.shape[0])
        pre, out = torch.empty(x.shape), torch.empty(x.shape)
        conv_silu(extended.numpy(), reach, as_numpy(weight), as_numpy(bias), pre.numpy(), out.numpy())
        _Conv.keep_inputs(ctx, inputs, extended, pre)
        ctx.reach = reach
        return out, _last_inputs(extended, keep, weight.shape[0]).clone()

    @staticmethod
    def fast_backward(ctx: Any, inputs: list[Any], saved: list[Tensor], grads: tuple[Any, ...]) -> tuple[Any, ...]:
        _, _, keep, weight, bias = inputs
        extended, pre = saved
        grad, grad_last = grads
        taps = weight.shape[0]
        grad_extended = torch.zeros_like(extended)
        grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        if grad is not None:
            conv_silu_backward(
                as_numpy(grad), pre.numpy(), extended.numpy(), ctx.reach, as_numpy(weight), grad_extended.numpy(),
                grad_weight.numpy(), grad_bias.numpy(),
            )  # fmt: skip
        if grad_last is not None and taps > 1:
            alive = _last_inputs(torch.ones_like(extended), keep, taps)
            grad_extended[:, 1 - taps :] += grad_last * alive
        return grad_extended[:, taps - 1 :], grad_extended[:, : taps - 1], None, grad_weight, grad_bias


# ------------------------------------------------------------------------------------------------- the selective scan
def selective_reference(
    x: Tensor,
    delta: Tensor,
    a_log: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor,
    state: Tensor,
    keep: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y (B, T, E) and the last state: x, delta (B, T, E); a_log (N, E); b, c (B, T, N); state (B, N, E)."""
    transition = (-a_log.exp() * delta.unsqueeze(2)).exp()
    drive = b.unsqueeze(-1) * (delta * x).unsqueeze(2)
    states = split_scan(transition.flatten(2), drive.flatten(2), state.flatten(1), keep, is_complex=False)
    states = states.unflatten(2, a_log.shape)
    return (c.unsqueeze(2) @ states).squeeze(2) + skip * x, states[:, -1]


class _Selective(Fused):
    """`selective_reference` without ever holding all states of all sequences."""

    reference = staticmethod(selective_reference)

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        x, delta, a_log, b, c, skip, state, keep = inputs
        y, last = torch.empty(x.shape), torch.empty(state.shape)
        mask = np.ones(x.shape[:2], f32) if keep is None else as_numpy(keep)
        ctx.numbers = (
            as_numpy(x), as_numpy(delta), -np.exp(as_numpy(a_log)), as_numpy(b), as_numpy(c), as_numpy(skip),
            as_numpy(state), mask,
        )  # fmt: skip
        selective_scan(*ctx.numbers, y.numpy(), last.numpy())
        _Selective.keep_inputs(ctx, inputs)
        return y, last

    @staticmethod
    def fast_backward(ctx: Any, inputs: list[Any], saved: list[Tensor], grads: tuple[Any, ...]) -> tuple[Any, ...]:
        x, _, a_log, b, c, skip, state, _ = inputs
        grad_y, grad_last = (
            torch.zeros(like.shape) if g is None else g for g, like in zip(grads, (x, state), strict=True)
        )
        grad_x, grad_delta, grad_a = torch.empty(x.shape), torch.empty(x.shape), torch.zeros_like(a_log)
        grad_b, grad_c, grad_skip = torch.empty(b.shape), torch.empty(c.shape), torch.zeros_like(skip)
        grad_state = torch.empty(state.shape)
        results = (grad_x, grad_delta, grad_a, grad_b, grad_c, grad_skip, grad_state)
        selective_scan_backward(*ctx.numbers, *(as_numpy(value) for value in (grad_y, grad_last, *results)))
        grad_a *= torch.from_numpy(ctx.numbers[2])  # d a / d a_log = a
        return grad_x, grad_delta, grad_a, grad_b, grad_c, grad_skip, grad_state, None


# --------------------------------------------------------------------------------------------------------- the block
@BLOCKS.register("mamba")
class MambaBlock(nn.Module):
    """Residual Mamba block. State of a sequence: [last K - 1 inputs of the convolution (K - 1, E) | h (N, E)]."""

    dynamics = ("A_log", "dt_bias")

    def __init__(self, config: MambaConfig, generator: torch.Generator) -> None:
        super().__init__()
        width = config.hidden_dim
        inner, count, taps = max(1, round(config.expand * width)), config.states_per_channel, config.conv_width
        rank = config.dt_rank or math.ceil(width / 16)
        norms = {"none": lambda: None, "layer": lambda: LayerNorm(width), "rms": lambda: nn.RMSNorm(width)}
        self.norm = norms[config.norm]()
        self.project = linear(width, 2 * inner, generator, bias=False)
        self.conv_weight = nn.Parameter((torch.rand(taps, inner, generator=generator) * 2 - 1) / math.sqrt(taps))
        self.conv_bias = nn.Parameter(torch.zeros(inner))
        self.select = linear(inner, rank + 2 * count, generator, bias=False)
        self.dt_weight = nn.Parameter((torch.rand(inner, rank, generator=generator) * 2 - 1) / math.sqrt(rank))
        # softplus(dt_bias) is log-uniform in [dt_min, dt_max] (section 3.6): the inverse of softplus is x + log(1 - e^-x).
        low, high = math.log(config.dt_min), math.log(config.dt_max)
        dt = torch.exp(torch.rand(inner, generator=generator) * (high - low) + low)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        # A = -(1 ... N) in each channel (S4D-Real, section 3.6), stored (N, E): channels lie side by side in memory.
        self.A_log = nn.Parameter(torch.arange(1.0, count + 1).log().unsqueeze(1).repeat(1, inner))
        self.D = nn.Parameter(torch.ones(inner))
        self.merge = linear(inner, width, generator, bias=False)
        self.inner, self.count, self.taps, self.rank = inner, count, taps, rank
        self.state_size = (taps - 1 + count) * inner

    def forward(self, x: Tensor, state: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, T, H), state (B, (K - 1 + N) E) to the same shapes."""
        fast = fused_allowed(x)
        past, h = state.unflatten(1, (-1, self.inner)).split((self.taps - 1, self.count), 1)
        v, z = F.linear(self._read(x), self.project.weight).chunk(2, -1)
        v, past = (_Conv.apply if fast else conv_reference)(v, past, keep, self.conv_weight, self.conv_bias)
        delta, b, c = F.linear(v, self.select.weight).split((self.rank, self.count, self.count), -1)
        delta = F.softplus(F.linear(delta, self.dt_weight, self.dt_bias))
        y, h = (_Selective.apply if fast else selective_reference)(v, delta, self.A_log, b, c, self.D, h, keep)
        return x + F.linear(y * F.silu(z), self.merge.weight), torch.cat([past, h], 1).flatten(1)

    def _read(self, x: Tensor) -> Tensor:
        """What the block sees of the residual stream: normalised, or at most LARGEST.

        A block is a polynomial of degree 5 in its input (v, delta, B, C and z are each linear in a large one), so L of them
        without a norm are of degree 5^L, and a few narrow ones overflow. Held at LARGEST, what each adds is bounded, and its
        derivative beyond is zero.
        """
        return x.clamp(-LARGEST, LARGEST) if self.norm is None else self.norm(x)

    def prepare_step(self) -> tuple[Any, ...]:
        """Maps transposed, taps with the oldest first, A; and the low-rank map to the step multiplied out.

        W_delta (W_x x)_delta is one matrix (E, E) on x: with B's and C's rows, one product instead of two.
        """
        low, rest = self.select.weight[: self.rank], self.select.weight[self.rank :]
        select = torch.cat([self.dt_weight @ low, rest]).T.contiguous()
        bias = torch.cat([self.dt_bias, self.dt_bias.new_zeros(2 * self.count)])
        taps, a = self.conv_weight.flip(0).contiguous(), -self.A_log.exp()
        arrays = None
        if fused_allowed(a):
            arrays = tuple(as_numpy(value) for value in (taps, self.conv_bias, a, self.D))
        return self.project.weight.T, select, bias, self.merge.weight.T, taps, a, arrays

    def step(self, x: Tensor, state: Tensor, prepared: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        """x (B, H), state (B, (K - 1 + N) E), no gradients."""
        project, select, bias, merge, taps, a, arrays = prepared
        projected = torch.mm(self._read(x), project)
        if arrays is not None:
            weight, conv_bias, a, skip = arrays
            after, v = torch.empty(state.shape), torch.empty(x.shape[0], self.inner)
            state, gate, out, inner = as_numpy(state), projected.numpy(), v.numpy(), self.inner  # pyright: ignore
            conv_silu_step(gate, state, weight, conv_bias, after.numpy(), out)
            selected = torch.addmm(bias, v, select)
            delta = F.softplus(selected[:, :inner])
            selective_step(out, gate, delta.numpy(), selected.numpy(), a, skip, state, len(weight), after.numpy())
            return torch.addmm(x, v, merge), after
        v, z = projected.chunk(2, 1)
        past, h = state.unflatten(1, (-1, self.inner)).tensor_split((self.taps - 1,), 1)
        past = torch.cat([past, v.unsqueeze(1)], 1)
        v = F.silu((past * taps).sum(1).add_(self.conv_bias))
        delta, b, c = torch.addmm(bias, v, select).split((self.inner, self.count, self.count), 1)
        delta = F.softplus(delta)
        h = torch.addcmul((delta.unsqueeze(1) * a).exp_().mul_(h), b.unsqueeze(2), (delta * v).unsqueeze(1))
        y = torch.addcmul(torch.bmm(c.unsqueeze(1), h).squeeze(1), self.D, v)
        return torch.addmm(x, y.mul_(F.silu(z)), merge), torch.cat([past[:, 1:], h], 1).flatten(1)


register_model("mamba", MambaConfig)(StateSpaceModel)
