"""Recurrences that are nonlinear in their state, each number or complex pair of it by itself: loops over time, forward and back.

`diag_gru_scan` is a GRU whose state feeds back through a vector, `tanh_ring_scan` a complex diagonal recurrence inside a tanh. The plain
references are `core.cells.diag_gru.diag_gru_reference` and `core.cells.rtu.tanh_ring_reference`; tests/core/test_feedback_cells.py holds
values and gradients against them, the gradients in double precision too. Shapes: B sequences, T steps, H width, N = H / 2 complex pairs.
"""

from __future__ import annotations

import numba
import numpy as np

from core.kernels.jit import JIT, f32
from core.kernels.pointwise import sigmoid, tanh


# ------------------------------------------------------------------------------------------------- GRU with a diagonal state
@numba.njit(**JIT)
def diag_gru_scan(gates, bias, feedback, h0, keep, out):  # pragma: no cover (compiled)
    """gates (B, T, 3H) holds p = W u and then [z | r | n]; feedback (3, H), h0 (B, H), keep (B, T); out (B, T, H) is h.

    q = k_t h_{t-1},  z = s(p_z + b_z + u_z q),  r = s(p_r + b_r + u_r q),  n = tanh(p_n + b_n + r u_n q),  h = n + z (q - n)
    """
    batch, time, width = out.shape
    q, n = np.empty(width, out.dtype), np.empty(width, out.dtype)
    for b in range(batch):
        for t in range(time):
            k = keep[b, t]
            past = h0[b] if t == 0 else out[b, t - 1]
            for j in range(width):
                q[j] = k * past[j]
            for j in range(width):
                gates[b, t, j] = sigmoid(gates[b, t, j] + bias[j] + feedback[0, j] * q[j])
            for j in range(width):
                i = width + j
                gates[b, t, i] = sigmoid(gates[b, t, i] + bias[i] + feedback[1, j] * q[j])
            for j in range(width):
                i = 2 * width + j
                n[j] = tanh(gates[b, t, i] + bias[i] + gates[b, t, width + j] * feedback[2, j] * q[j])
            for j in range(width):
                gates[b, t, 2 * width + j] = n[j]
            for j in range(width):
                out[b, t, j] = n[j] + gates[b, t, j] * (q[j] - n[j])


@numba.njit(**JIT)
def diag_gru_scan_backward(
    gates, out, feedback, h0, keep, grad, grad_last, slopes, grad_bias, grad_feedback
):  # pragma: no cover (compiled)
    """Gradients of `diag_gru_scan`: grad (B, T, H) is dy; slopes (B, T, 3H) becomes dp, and may be gates' memory.

    l = dL/dh_t is what comes from the output and from step t + 1. With q = k_t h_{t-1}:

        h = n + z (q - n):                   dz = l (q - n),   dn = l (1 - z),   dq = l z at first
        n = tanh(p_n + b_n + r u_n q):       dp_n = dn (1 - n^2),   dr = dp_n u_n q,   dq += dp_n r u_n,   du_n += dp_n r q
        r = s(p_r + b_r + u_r q):            dp_r = dr r (1 - r),   dq += dp_r u_r,   du_r += dp_r q;   likewise z
        q = k_t h_{t-1}:                     what reaches h_{t-1} is k_t dq;   db = sum over rows of dp

    grad_last (B, H) is overwritten by dh0; grad_bias (3H,) and grad_feedback (3, H) are added to.
    """
    batch, time, width = grad.shape
    one, kind = f32(1), grad.dtype
    flow, q, z, r, n = (np.empty(width, kind), np.empty(width, kind), np.empty(width, kind), np.empty(width, kind), np.empty(width, kind))  # fmt: skip
    for b in range(batch):
        for j in range(width):
            flow[j] = grad_last[b, j]
        for i in range(time):
            t = time - 1 - i
            k = keep[b, t]
            past = h0[b] if t == 0 else out[b, t - 1]
            for j in range(width):
                q[j] = k * past[j]
            for j in range(width):
                z[j], r[j], n[j] = gates[b, t, j], gates[b, t, width + j], gates[b, t, 2 * width + j]
            for j in range(width):
                flow[j] += grad[b, t, j]
            for j in range(width):
                slopes[b, t, j] = flow[j] * (q[j] - n[j]) * z[j] * (one - z[j])
            for j in range(width):
                slopes[b, t, 2 * width + j] = flow[j] * (one - z[j]) * (one - n[j] * n[j])
            for j in range(width):
                slopes[b, t, width + j] = slopes[b, t, 2 * width + j] * feedback[2, j] * q[j] * r[j] * (one - r[j])
            for j in range(width):
                grad_feedback[0, j] += slopes[b, t, j] * q[j]
                grad_feedback[1, j] += slopes[b, t, width + j] * q[j]
            for j in range(width):
                grad_feedback[2, j] += slopes[b, t, 2 * width + j] * r[j] * q[j]
            for j in range(width):
                flow[j] = flow[j] * z[j] + slopes[b, t, 2 * width + j] * r[j] * feedback[2, j]
            for j in range(width):
                flow[j] += slopes[b, t, j] * feedback[0, j] + slopes[b, t, width + j] * feedback[1, j]
            for j in range(width):
                flow[j] *= k
            for j in range(3 * width):
                grad_bias[j] += slopes[b, t, j]
        for j in range(width):
            grad_last[b, j] = flow[j]


# ------------------------------------------------------------------------------------------------ a ring inside a tanh
@numba.njit(**JIT)
def tanh_ring_scan(a, drive, h0, keep, out):  # pragma: no cover (compiled)
    """h_t = tanh(k_t a h_{t-1} + x_t), tanh of real and imaginary parts apart; a (2N,), drive x and out h (B, T, 2N), split."""
    batch, time, width = out.shape
    half = width // 2
    c = np.empty(width, out.dtype)
    for b in range(batch):
        for t in range(time):
            k = keep[b, t]
            past, x = h0[b] if t == 0 else out[b, t - 1], drive[b, t]
            for j in range(half):
                c[j] = k * (a[j] * past[j] - a[half + j] * past[half + j]) + x[j]
            for j in range(half):
                c[half + j] = k * (a[half + j] * past[j] + a[j] * past[half + j]) + x[half + j]
            for j in range(width):
                out[b, t, j] = tanh(c[j])


@numba.njit(**JIT)
def tanh_ring_scan_backward(a, out, h0, keep, grad, grad_last, slopes, grad_a):  # pragma: no cover (compiled)
    """Gradients of `tanh_ring_scan`: grad (B, T, 2N) is dh of the output; slopes becomes dx, and may be grad's memory.

    With l = dL/dh_t, what comes from the output and from step t + 1, and c = k_t a h_{t-1} + x_t:

        h = tanh(c), parts apart:       dx = dc = l (1 - h^2)
        c = k_t a h_{t-1} + x_t:        da += k_t conj(h_{t-1}) dc,   what reaches h_{t-1} is k_t conj(a) dc

    grad_last (B, 2N) is overwritten by dh0; grad_a (2N,) is added to.
    """
    batch, time, width = grad.shape
    half, one = width // 2, f32(1)
    flow, d = np.empty(width, grad.dtype), np.empty(width, grad.dtype)
    for b in range(batch):
        for j in range(width):
            flow[j] = grad_last[b, j]
        for i in range(time):
            t = time - 1 - i
            k = keep[b, t]
            past = h0[b] if t == 0 else out[b, t - 1]
            for j in range(width):
                h = out[b, t, j]
                d[j] = (flow[j] + grad[b, t, j]) * (one - h * h)
            for j in range(half):
                grad_a[j] += k * (past[j] * d[j] + past[half + j] * d[half + j])
            for j in range(half):
                grad_a[half + j] += k * (past[j] * d[half + j] - past[half + j] * d[j])
            for j in range(half):
                flow[j] = k * (a[j] * d[j] + a[half + j] * d[half + j])
            for j in range(half):
                flow[half + j] = k * (a[j] * d[half + j] - a[half + j] * d[j])
            for j in range(width):
                slopes[b, t, j] = d[j]
        for j in range(width):
            grad_last[b, j] = flow[j]
