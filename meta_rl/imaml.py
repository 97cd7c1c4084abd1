"""Implicit MAML's meta-gradient: what follows from where the inner loop ended, not from how it got there.

With phi = argmin_phi L_support(phi) + lambda/2 |phi - theta|^2, the implicit function theorem gives

    d L_query(phi) / d theta = (I + H / lambda)^-1 grad L_query(phi),   H = Hessian of L_support at phi,

solved by conjugate gradients with Hessian-vector products, so memory does not grow with the inner steps.
Source: Rajeswaran, Finn, Kakade, Levine 2019 (arXiv 1909.04630), equations 4 to 7 and algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Params = dict[str, Tensor]


def _dot(a: Params, b: Params) -> Tensor:
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def conjugate_gradient(
    multiply: Callable[[Params], Params], target: Params, *, steps: int, tolerance: float = 1e-20
) -> Params:
    """Solve A x = target for a symmetric positive A given as `multiply`, in at most `steps` products.

    Source: Hestenes and Stiefel 1952. Stops early once the squared residual is below `tolerance` times the target's.
    """
    x = {name: torch.zeros_like(value) for name, value in target.items()}
    residual = {name: value.clone() for name, value in target.items()}
    direction = dict(residual)
    squared = _dot(residual, residual)
    enough = tolerance * squared
    for _ in range(steps):
        if not bool(squared > enough):
            break
        product = multiply(direction)
        step = squared / _dot(direction, product)
        x = {name: x[name] + step * direction[name] for name in x}
        residual = {name: residual[name] - step * product[name] for name in x}
        fresh = _dot(residual, residual)
        direction = {name: residual[name] + (fresh / squared) * direction[name] for name in x}
        squared = fresh
    return x


def implicit_gradient(
    support_loss: Callable[[Params], Tensor], phi: Params, query_gradient: Params, *, lam: float, cg_steps: int
) -> Params:
    """(I + H / lam)^-1 query_gradient at `phi`; `phi` are leaves that require grad."""
    names = list(phi)
    gradients = torch.autograd.grad(support_loss(phi), list(phi.values()), create_graph=True, allow_unused=True)
    used = [(n, g) for n, g in zip(names, gradients, strict=True) if g is not None and g.requires_grad]

    def multiply(vector: Params) -> Params:
        if not used:
            return dict(vector)
        products = torch.autograd.grad(
            [g for _, g in used],
            list(phi.values()),
            grad_outputs=[vector[n] for n, _ in used],
            retain_graph=True,
            allow_unused=True,
        )
        return {
            n: vector[n] if p is None else vector[n] + p.detach() / lam for n, p in zip(names, products, strict=True)
        }

    return conjugate_gradient(multiply, query_gradient, steps=cg_steps)
