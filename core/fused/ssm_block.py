"""A state space block as one function of tensors: few passes over memory, gradients written by hand.

    residual + gate(silu(y + skip * u)),  y = C h of a linear cell (`core.fused.linear_cells`)

`block_reference` is the same in plain differentiable operations; `core.fused.autograd` says when which runs, and
tests/core/test_fused.py compares them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from core.fused.autograd import Fused, fused_allowed
from core.fused.linear_cells import CELLS
from core.kernels.jit import as_flat, as_numpy, as_rows, f32
from core.kernels.pointwise import (
    TILE,
    glu,
    glu_backward,
    half_gate,
    half_gate_backward,
    skip_silu,
    skip_silu_backward,
)


def ssm_block(
    form: str,
    method: str,
    u: Tensor,
    residual: Tensor | None,
    state: Tensor,
    keep: Tensor | None,
    skip: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *parameters: Tensor,
) -> tuple[Tensor, Tensor]:
    """residual + gate(silu(y + skip * u)) (B, T, H), and the last state (B, S); y = C h of a linear cell.

    form: "dense" with parameters (log_decay, frequency, third, B, C), or "channel" with (log_decay, frequency,
    log_dt, C). residual None means u. weight (2H, H): GLU of both halves; (H, H): value * sigmoid(weight value + bias);
    None: no gate.
    """
    run = FusedBlock.apply if fused_allowed(u) else block_reference
    return run(form, method, u, residual, state, keep, skip, weight, bias, *parameters)  # pyright: ignore[reportReturnType]


def block_reference(
    form: str,
    method: str,
    u: Tensor,
    residual: Tensor | None,
    state: Tensor,
    keep: Tensor | None,
    skip: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *parameters: Tensor,
) -> tuple[Tensor, Tensor]:
    """`ssm_block` in plain operations."""
    y, last = CELLS[form].reference(u, state, keep, method, *parameters)
    return block_output(y, u, u if residual is None else residual, skip, weight, bias), last


def block_output(
    y: Tensor, u: Tensor, residual: Tensor, skip: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """What is made of a cell's y, in plain operations."""
    value = F.silu(torch.addcmul(y, u, skip))
    if weight is None:
        return residual + value
    mixed = F.linear(value, weight, bias)
    if mixed.shape[-1] == value.shape[-1]:
        return residual + value * torch.sigmoid(mixed)
    return residual + F.glu(mixed)


class FusedBlock(Fused):
    """`ssm_block` as one function: saves passes over memory, additions of gradients and Python's own cost."""

    reference = staticmethod(block_reference)

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        form, method, u, residual, state, keep, skip, weight, bias, *parameters = inputs
        u = u.contiguous()
        rows, width = u.shape[0] * u.shape[1], u.shape[2]
        cell = CELLS[form].forward(u, state, _mask(u, keep), method, tuple(parameters))
        ctx.kept = cell.kept
        value, out, mixed = torch.empty(rows, width), torch.empty(u.shape), None
        pre = cell.y  # y + skip u, once skip_silu has run
        skip_silu(as_flat(pre), as_flat(u), _tiled(skip), as_flat(value))
        base = u if residual is None else residual
        if weight is None:
            torch.add(base, value.view(u.shape), out=out)
        else:
            mixed = torch.mm(value, weight.T)
            if weight.shape[0] == width:
                half_gate(as_flat(mixed), _tiled(bias), as_flat(value), as_flat(base), as_flat(out))
            else:
                glu(mixed.numpy(), as_numpy(bias), as_rows(base), as_rows(out))
        stored = (cell.states, pre, value, mixed)
        ctx.stored = [tensor is not None for tensor in stored]
        FusedBlock.keep_inputs(ctx, inputs, *(tensor for tensor in stored if tensor is not None))
        return out, cell.last

    @staticmethod
    def fast_backward(ctx: Any, inputs: list[Any], saved: list[Tensor], grads: tuple[Any, ...]) -> tuple[Any, ...]:
        """From the output back to u, residual, state and every parameter.

        out = residual + gate(s):   GLU or half gate: dv, db (and half's share of ds) by `core.kernels.pointwise`,
                                    v = s W^T:  dW = dv^T s,  ds += dv W;   no gate: ds = dout
        s = silu(p), p = y + D u:   dy, dD, du = D dy (+ dout where u is the residual) by `skip_silu_backward`
        y = cell(u):                the cell's backward, which adds its share to du
        """
        form, _, u, residual, state, keep, skip, weight, bias, *parameters = inputs
        tensors = iter(saved)
        states, pre, value, mixed = (next(tensors) if present else None for present in ctx.stored)
        assert pre is not None
        assert value is not None
        grad, grad_last = grads
        grad = torch.zeros(u.shape) if grad is None else grad.contiguous()
        grad_weight = grad_bias = grad_mixed = None
        if mixed is None:
            grad_value = grad.reshape(pre.shape).clone()  # it is overwritten below, and `grad` is not ours
        else:
            grad_mixed = torch.empty_like(mixed)
            if weight.shape[0] == pre.shape[1]:
                grad_value = torch.empty_like(pre)
                tiled = _tiled(bias)
                sums = np.zeros_like(tiled)
                half_gate_backward(
                    as_flat(grad), as_flat(mixed), tiled, as_flat(value), as_flat(grad_mixed), as_flat(grad_value), sums
                )
                grad_bias = _untiled(sums)
                grad_value.addmm_(grad_mixed, weight)
            else:
                grad_bias = torch.zeros_like(bias)
                glu_backward(as_rows(grad), mixed.numpy(), as_numpy(bias), grad_mixed.numpy(), grad_bias.numpy())
                grad_value = torch.mm(grad_mixed, weight)
            grad_weight = torch.mm(grad_mixed.T, value)
        grad_u = torch.empty_like(pre)
        u = u.contiguous()
        tiled = _tiled(skip)
        sums = np.zeros_like(tiled)
        skip_silu_backward(
            as_flat(grad_value), as_flat(pre), as_flat(u), tiled, as_flat(grad), residual is None, as_flat(grad_u), sums
        )
        grad_y = grad_value  # skip_silu_backward has made it that
        grad_state, grad_parameters = CELLS[form].backward(
            grad_y, grad_last, grad_u, u, state, _mask(u, keep), tuple(parameters), states, ctx.kept, grad_mixed
        )
        grad_residual = None if residual is None else grad
        ends = (grad_u.view(u.shape), grad_residual, grad_state, None, _untiled(sums), grad_weight, grad_bias)
        return None, None, *ends, *grad_parameters


def _mask(u: Tensor, keep: Tensor | None) -> np.ndarray:
    """1 - resets (B, T), ones where nothing is reset."""
    return np.ones(u.shape[:2], f32) if keep is None else as_numpy(keep)


def _tiled(vector: Tensor) -> np.ndarray:
    """A vector of the width, repeated for a stretch of the pointwise kernels."""
    return np.concatenate((as_numpy(vector),) * TILE)


def _untiled(gradient: np.ndarray) -> Tensor:
    """The sum over a stretch's rows."""
    return torch.from_numpy(np.add.reduce(gradient.reshape(TILE, -1)))
