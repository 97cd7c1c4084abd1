"""Functions of tensors whose forward and backward are written by hand, differentiable twice all the same.

Each has a reference in plain differentiable operations that computes the same numbers. The fast one runs where it can (CPU,
float32, no torch.func transform); a second derivative is taken through the reference, so nothing is lost to speed. The tests
compare both, forwards and backwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from core.sequence_model import transforms_active


def fused_allowed(x: Tensor) -> bool:
    """Whether the fused kernels may stand in for the reference."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and not transforms_active()


class Fused(torch.autograd.Function):
    """Base of the fused functions. Subclasses give `reference` and `fast_backward(ctx, saved, grads)`.

    A backward that must itself be differentiated (create_graph) replays the reference on the saved inputs.
    """

    reference: Callable[..., Any]
    fast_backward: Callable[..., tuple[Tensor | None, ...]]

    @classmethod
    def keep_inputs(cls, ctx: Any, inputs: tuple[Any, ...], *extra: Tensor) -> None:
        """Save tensor inputs (for the reference) and what the fast backward wants besides."""
        ctx.constants = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.is_tensor = [isinstance(value, Tensor) for value in inputs]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)), *extra)

    @classmethod
    def backward(cls, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = list(ctx.saved_tensors)
        inputs = [saved.pop(0) if tensor else value for tensor, value in zip(ctx.is_tensor, ctx.constants, strict=True)]
        if not torch.is_grad_enabled():
            with torch.no_grad():
                return cls.fast_backward(ctx, inputs, saved, grads)
        # Through fresh aliases: where one input was computed from another, only the direct dependence counts here.
        inputs = [value.view_as(value) if isinstance(value, Tensor) else value for value in inputs]
        wanted = [value for value, need in zip(inputs, ctx.needs_input_grad, strict=True) if need]
        outputs = cls.reference(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None]
        slopes = iter(
            torch.autograd.grad(
                [out for out, _ in pairs], wanted, [g for _, g in pairs], create_graph=True, allow_unused=True
            )
        )
        return tuple(next(slopes) if need else None for need in ctx.needs_input_grad)


class Native(Fused):
    """torch's own kernel, which cannot be differentiated twice, with the reference behind it for that."""

    native: Callable[..., tuple[Tensor, ...]]

    @classmethod
    def forward(cls, ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        ctx.leaves = [
            value.detach().requires_grad_(need) if isinstance(value, Tensor) else value
            for value, need in zip(inputs, ctx.needs_input_grad, strict=True)
        ]
        with torch.enable_grad():
            ctx.inner = cls.native(*ctx.leaves)
        cls.keep_inputs(ctx, inputs)
        return tuple(value.detach() for value in ctx.inner)

    @staticmethod
    def fast_backward(ctx: Any, inputs: list[Any], saved: list[Tensor], grads: tuple[Any, ...]) -> tuple[Any, ...]:
        pairs = [(out, grad) for out, grad in zip(ctx.inner, grads, strict=True) if grad is not None]
        wanted = [leaf for leaf, need in zip(ctx.leaves, ctx.needs_input_grad, strict=True) if need]
        slopes = iter(
            torch.autograd.grad(
                [out for out, _ in pairs], wanted, [grad for _, grad in pairs], retain_graph=True, allow_unused=True
            )
        )
        return tuple(next(slopes) if need else None for need in ctx.needs_input_grad)
