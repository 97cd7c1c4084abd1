"""Adam and the norm of a gradient on flat vectors. torch's Adam is the reference; tests/meta_rl/test_fused_ppo.py compares."""

from __future__ import annotations

import numba
import numpy as np

from core.kernels.jit import JIT, f32


@numba.njit(**JIT)
def adam(w, g, m, v, scale, rate, beta1, beta2, root, eps):  # pragma: no cover (compiled)
    """One step for gradients g * scale (Kingma and Ba 2015, algorithm 1), all in place.

        m += (1 - beta1) (g - m),   v = beta2 v + (1 - beta2) g^2,   w -= rate m / (sqrt(v) / root + eps)

    rate = alpha / (1 - beta1^t) and root = sqrt(1 - beta2^t) carry the bias corrections.
    """
    rest1, rest2, inverse = f32(1) - beta1, f32(1) - beta2, f32(1) / root
    for i in range(w.size):
        slope = g[i] * scale
        m[i] += rest1 * (slope - m[i])
        v[i] = beta2 * v[i] + rest2 * slope * slope
        w[i] -= rate * m[i] / (np.sqrt(v[i]) * inverse + eps)


@numba.njit(**JIT)
def norm(g):  # pragma: no cover (compiled)
    """Euclidean norm."""
    total = f32(0)
    for i in range(g.size):
        total += g[i] * g[i]
    return np.sqrt(total)
