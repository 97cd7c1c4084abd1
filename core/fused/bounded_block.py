"""A state space block with a bounded output, as minGRU's: no residual and no map behind the cell, so that layers follow each other.

    out = sigmoid(W u + b) * tanh(y + skip * u),  y = C h of a linear cell (`core.fused.linear_cells`)

`bounded_reference` is the same in plain differentiable operations; tests/core/test_fused.py compares both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from core.fused.autograd import Fused, fused_allowed
from core.fused.linear_cells import CELLS
from core.kernels.jit import as_numpy, f32


def bounded_block(
    form: str, method: str, u: Tensor, state: Tensor, keep: Tensor | None, skip: Tensor, weight: Tensor, bias: Tensor,
    *parameters: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out (B, T, H) in (-1, 1) and the last state (B, S), for u (B, T, H), weight (H, H); the rest as `core.fused.ssm_block.ssm_block`."""
    run = BoundedBlock.apply if fused_allowed(u) else bounded_reference
    return run(form, method, u, state, keep, skip, weight, bias, *parameters)  # pyright: ignore[reportReturnType]


def bounded_output(y: Tensor, u: Tensor, skip: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What is made of a cell's y."""
    return torch.sigmoid(F.linear(u, weight, bias)) * torch.tanh(torch.addcmul(y, u, skip))


def bounded_reference(
    form: str, method: str, u: Tensor, state: Tensor, keep: Tensor | None, skip: Tensor, weight: Tensor, bias: Tensor,
    *parameters: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`bounded_block` in plain operations."""
    y, last = CELLS[form].reference(u, state, keep, method, *parameters)
    return bounded_output(y, u, skip, weight, bias), last


class BoundedBlock(Fused):
    """`bounded_block` as one function."""

    reference = staticmethod(bounded_reference)

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        form, method, u, state, keep, skip, weight, bias, *parameters = inputs
        u = u.contiguous()
        ctx.mask = np.ones(u.shape[:2], f32) if keep is None else as_numpy(keep)
        rows = u.view(-1, u.shape[2])
        cell = CELLS[form].forward(u, state, ctx.mask, method, tuple(parameters))
        ctx.kept, ctx.holds_states = cell.kept, cell.states is not None
        squashed = cell.y.addcmul_(rows, skip).tanh_()
        gate = torch.addmm(bias, rows, weight.T).sigmoid_()
        held = () if cell.states is None else (cell.states,)
        BoundedBlock.keep_inputs(ctx, inputs, squashed, gate, *held)
        return (gate * squashed).view(u.shape), cell.last

    @staticmethod
    def fast_backward(ctx: Any, inputs: list[Any], saved: list[Tensor], grads: tuple[Any, ...]) -> tuple[Any, ...]:
        """From the output back to u, state and every parameter; q the gate, s = tanh(p), p = y + D u, v = W u + b:

        out = q s:   ds = dout q,   dq = dout s;   dp = ds (1 - s^2),   dv = dq q (1 - q)
        p = y + D u: dy = dp,   dD = sum over rows of dp u,   du = D dp
        v = W u + b: dW = dv^T u,   db = sum over rows of dv,   du += dv W
        y = cell(u): the cell's backward, which adds its share to du
        """
        form, _, u, state, _, skip, weight, _, *parameters = inputs
        squashed, gate, *rest = saved
        states = rest[0] if ctx.holds_states else None
        grad, grad_last = grads
        u = u.contiguous()
        rows = u.view(-1, u.shape[2])
        grad = torch.zeros_like(rows) if grad is None else grad.reshape(rows.shape)
        slope = grad * squashed * gate * (1 - gate)
        grad_y = grad * gate * (1 - squashed.square())
        grad_u = torch.addmm(skip * grad_y, slope, weight)
        ends = ((grad_y * rows).sum(0), torch.mm(slope.T, rows), slope.sum(0))
        grad_state, grad_parameters = CELLS[form].backward(
            grad_y, grad_last, grad_u, u, state, ctx.mask, tuple(parameters), states, ctx.kept, None
        )
        return None, None, grad_u.view(u.shape), grad_state, None, *ends, *grad_parameters
