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
from torch.func import grad, vjp

Params = dict[str, Tensor]


def _dot(a: Params, b: Params) -> Tensor:
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def conjugate_gradient(
    multiply: Callable[[Params], Params], target: Params, *, steps: int, tolerance: float = 1e-20
) -> Params:
    """Solve A x = target for a symmetric positive A given as `multiply`, by `steps` products.

    Source: Hestenes and Stiefel 1952. It goes no further once the squared residual is below `tolerance` times the target's,
    or where it meets a direction along which A is not positive (Steihaug 1983): there the system has no minimum to go to.
    If that is the first direction, the answer is `target` itself, the step of steepest descent. No branch depends on a value,
    so it runs under vmap.
    """
    x = {name: torch.zeros_like(value) for name, value in target.items()}
    residual = {name: value.clone() for name, value in target.items()}
    direction = dict(residual)
    squared = _dot(residual, residual)
    enough = tolerance * squared
    going = squared > enough
    moved = ~going  # a target of zero is solved by zero
    for _ in range(steps):
        product = multiply(direction)
        curvature = _dot(direction, product)
        going = going & (curvature > 0) & (squared > enough)
        moved = moved | going
        step = torch.where(going, squared / torch.where(going, curvature, 1.0), 0.0)
        x = {name: x[name] + step * direction[name] for name in x}
        residual = {name: residual[name] - step * product[name] for name in x}
        fresh = _dot(residual, residual)
        growth = torch.where(going, fresh / torch.where(going, squared, 1.0), 0.0)
        direction = {name: residual[name] + growth * direction[name] for name in x}
        squared = fresh
    return {name: torch.where(moved, x[name], target[name]) for name in x}


def implicit_gradient(
    hessian_times: Callable[[Params], Params], query_gradient: Params, *, lam: float, cg_steps: int
) -> Params:
    """(I + H / lam)^-1 query_gradient, with H the support loss's Hessian where the inner loop ended."""

    def multiply(vector: Params) -> Params:
        product = hessian_times(vector)
        return {name: vector[name] + product[name] / lam for name in vector}

    return conjugate_gradient(multiply, query_gradient, steps=cg_steps)


def hessian_by_graph(loss_of: Callable[[Params], Tensor], phi: Params) -> Callable[[Params], Params]:
    """v -> H v at `phi` through the ordinary graph, whose one gradient is kept for all products."""
    phi = {name: value.detach().requires_grad_() for name, value in phi.items()}
    with torch.enable_grad():
        gradients = torch.autograd.grad(loss_of(phi), list(phi.values()), create_graph=True, allow_unused=True)
    used = [(name, g) for name, g in zip(phi, gradients, strict=True) if g is not None and g.requires_grad]

    def times(vector: Params) -> Params:
        products: tuple[Tensor | None, ...] = (None,) * len(phi)
        if used:  # a loss that is linear in the weights has no second derivative
            products = torch.autograd.grad(
                [g for _, g in used],
                list(phi.values()),
                grad_outputs=[vector[name] for name, _ in used],
                retain_graph=True,
                allow_unused=True,
            )
        return {n: torch.zeros_like(vector[n]) if p is None else p for n, p in zip(phi, products, strict=True)}

    return times


def hessian_by_transform(loss_of: Callable[[Params], Tensor], phi: Params) -> Callable[[Params], Params]:
    """The same by function transforms, which vmap can see through (H is symmetric, so v H is H v)."""
    pull_back = vjp(grad(loss_of), phi)[1]
    return lambda vector: pull_back(vector)[0]
