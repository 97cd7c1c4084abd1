"""From a continuous diagonal system to a discrete one: lambda = -exp(log_decay) + i w to transition a and input gain b."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from core.kernels.discretization import METHODS, partial_derivatives

Array = Any  # a numpy array, real or complex


def discretize(log_decay: Tensor, frequency: Tensor, third: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Complex transition a and input gain b of lambda = -exp(log_decay) + i w.

    zoh: a = exp(lambda dt), b = (a - 1) / lambda, dt = exp(third) (S4D, section 2.2; S5, equation 6).
    bilinear: a = (1 + lambda dt / 2) / (1 - lambda dt / 2), b = dt / (1 - lambda dt / 2). For both w = frequency.
    exponential (LRU, section 3): a = exp(lambda), w = exp(frequency), b = exp(third).
    Where `third` is longer than the others the rest are exact integrators: lambda = 0, so that a = 1 and b = exp(third) by every method.
    """
    count = log_decay.shape[-1]
    if third.shape[-1] > count:
        a, b = discretize(log_decay, frequency, third[:count], method)
        added = third[count:].exp()
        return torch.cat([a, torch.ones_like(added)]), torch.cat([b, added.to(b.dtype)])
    decay, scale = -log_decay.exp(), third.exp()
    if method == "exponential":
        return torch.complex(decay, frequency.exp()).exp(), torch.complex(scale, torch.zeros_like(scale))
    eigenvalue = torch.complex(decay, frequency)
    if method == "zoh":
        shifted = torch.expm1(eigenvalue * scale)
        return shifted + 1, shifted / eigenvalue
    half = eigenvalue * (scale / 2)
    return (1 + half) / (1 - half), scale / (1 - half)


class Discretized(NamedTuple):
    """a and b (N,) or (pairs, H), complex, and what takes their gradients to those of the three parameters."""

    a: Array
    b: Array
    pull_back: Callable[[Array, Array], tuple[Array, ...]]


def discretize_arrays(log_decay: Array, frequency: Array, third: Array, method: str) -> Discretized:
    """`discretize` on whole arrays in single precision, with its gradient; `core.kernels.discretization` derives that.

    The compiled policy discretises state by state, rounded otherwise (numpy's float32 functions and numba's scalar ones differ
    in the last bit of six numbers in ten), and what was trained by either must stay what it was: hence both, around the
    same `partial_derivatives`.
    """
    count = log_decay.shape[-1]
    if third.shape[-1] > count:
        ring, added = discretize_arrays(log_decay, frequency, third[:count], method), np.exp(third[count:])

        def pull_back_ring(grad_a: Array, grad_b: Array) -> tuple[Array, ...]:
            *grads, grad_third = ring.pull_back(grad_a[:count], grad_b[:count])
            return *grads, np.concatenate([grad_third, grad_b[count:].real * added])

        return Discretized(np.concatenate([ring.a, 1 + 0j * added]), np.concatenate([ring.b, added]), pull_back_ring)
    decay, scale = np.exp(log_decay), np.exp(third)
    if method == "exponential":
        w = np.exp(frequency)
        a: Array = np.exp(-decay + 1j * w)

        def pull_back_exponential(grad_a: Array, grad_b: Array) -> tuple[Array, ...]:
            grad = grad_a * a.conj()
            return -grad.real * decay, grad.imag * w, grad_b.real * scale

        return Discretized(a, scale + 0j * a, pull_back_exponential)
    value = -decay + 1j * frequency
    q = None
    if method == "zoh":
        shifted = np.expm1(value * scale)
        a, b = shifted + 1, shifted / value
    else:
        q = 1 / (1 - value * (scale / 2))
        a, b = (1 + value * (scale / 2)) * q, scale * q
    slopes = partial_derivatives.py_func(METHODS[method], value, scale, a, b, q)
    a_value, a_scale, b_value, b_scale = (slope.conj() for slope in slopes)

    def pull_back(grad_a: Array, grad_b: Array) -> tuple[Array, ...]:
        grad = grad_a * a_value + grad_b * b_value
        grad_third = (grad_a * a_scale + grad_b * b_scale).real * scale
        return -grad.real * decay, grad.imag, grad_third.reshape(-1, *third.shape).sum(0)

    return Discretized(a, b, pull_back)


def split(value: Tensor, dim: int = -1) -> Tensor:
    """Complex numbers as [re | im] along `dim`."""
    return torch.cat([value.real, value.imag], dim)
