"""The gated recurrent unit over a sequence (Cho et al. 2014, in the form of torch and cuDNN).

Shapes: T time, B batch, H width; time comes first, so that a step's rows lie together. The plain reference is
`core.recurrent.gru_reference`; tests/core/test_second_truths.py compares them, gradients included, and torch's own GRU too.
"""

from __future__ import annotations

import numba
import numpy as np

from core.kernels.jit import JIT, f32
from core.kernels.pointwise import tanh


@numba.njit(**JIT)
def rows_product(left, right, out):  # pragma: no cover (compiled)
    """out = left @ right in groups of rows: the BLAS behind np.dot starts threads for larger products, and a few
    microseconds of work each step are not worth a thread's start."""
    rows = max(4, 262144 // (right.shape[0] * right.shape[1]) // 4 * 4)
    for start in range(0, left.shape[0], rows):
        np.dot(left[start : start + rows], right, out[start : start + rows])


@numba.njit(**JIT)
def gru_scan(projected, w_hh_t, b_hh, h0, keep, out, gates, previous):  # pragma: no cover (compiled)
    """projected (T, B, 3H) = W x + b to out (T, B, H); p = k_t h_{t-1} is the state before a step, after resets.

        r = s(x_r + U_r p + b_r),  z = s(x_z + U_z p + b_z),  q = U_n p + b_n,  n = tanh(x_n + r q),  h = n + z (p - n)

    Keeps gates [r | z | n | q] (T, B, 4H) and previous, p (T, B, H), for the backward.
    """
    time, batch, width = out.shape
    product, n = np.empty((batch, 3 * width), f32), np.empty(width, f32)
    for t in range(time):
        past = h0 if t == 0 else out[t - 1]
        before = previous[t]
        for b in range(batch):
            k = keep[t, b]
            for j in range(width):
                before[b, j] = k * past[b, j]
        rows_product(before, w_hh_t, product)
        for b in range(batch):
            for j in range(2 * width):
                gates[t, b, j] = f32(0.5) + f32(0.5) * tanh(f32(0.5) * (projected[t, b, j] + product[b, j] + b_hh[j]))
            for j in range(width):
                gates[t, b, 3 * width + j] = product[b, 2 * width + j] + b_hh[2 * width + j]
            for j in range(width):
                n[j] = tanh(projected[t, b, 2 * width + j] + gates[t, b, j] * gates[t, b, 3 * width + j])
            for j in range(width):
                gates[t, b, 2 * width + j] = n[j]
            for j in range(width):
                out[t, b, j] = n[j] + gates[t, b, width + j] * (before[b, j] - n[j])


@numba.njit(**JIT)
def gru_scan_backward(grad_y, w_hh, keep, gates, previous, d_x, d_h, carry):  # pragma: no cover (compiled)
    """Gradients of `gru_scan`: d_x (T, B, 3H) in W x + b, d_h (T, B, 3H) in U p + b; carry (B, H) in and out.

    With f = dL/dh_t, what comes from the output and from step t + 1, and s' = s (1 - s), tanh' = 1 - tanh^2:

        h = n + z (p - n):      dn = f (1 - z),  dz = f (p - n),  dp = f z at first
        n = tanh(x_n + r q):    dx_n = dn (1 - n^2),  dr = dx_n q,  dq = dx_n r
        r = s(x_r + U_r p):     dx_r = dr r (1 - r);   likewise   dx_z = dz z (1 - z)
        U p + b = [x_r's and x_z's partners | q]:   d_h = [dx_r | dx_z | dq],   dp += U^T d_h
        p = k_t h_{t-1}:        what reaches h_{t-1} is k_t dp

    The gradients of W, U and both biases are products of d_x and d_h with what they were multiplied by: the caller's.
    carry: dL/d(last h) in, dL/dh0 out.
    """
    time, batch, width = previous.shape
    product = np.empty((batch, width), f32)
    dn, flow = np.empty(width, f32), np.empty(width, f32)
    two, three = 2 * width, 3 * width
    for i in range(time):
        t = time - 1 - i
        for b in range(batch):
            for j in range(width):
                flow[j] = carry[b, j] + grad_y[t, b, j]
            for j in range(width):
                n = gates[t, b, two + j]
                dn[j] = flow[j] * (f32(1) - gates[t, b, width + j]) * (f32(1) - n * n)
            for j in range(width):
                d_x[t, b, two + j] = dn[j]
            for j in range(width):
                z = gates[t, b, width + j]
                d_x[t, b, width + j] = flow[j] * (previous[t, b, j] - gates[t, b, two + j]) * z * (f32(1) - z)
            for j in range(width):
                r = gates[t, b, j]
                d_x[t, b, j] = dn[j] * gates[t, b, three + j] * r * (f32(1) - r)
            for j in range(width):
                d_h[t, b, two + j] = dn[j] * gates[t, b, j]
            for j in range(two):
                d_h[t, b, j] = d_x[t, b, j]
            for j in range(width):
                carry[b, j] = flow[j] * gates[t, b, width + j]
        rows_product(d_h[t], w_hh, product)
        for b in range(batch):
            k = keep[t, b]
            for j in range(width):
                carry[b, j] = k * (carry[b, j] + product[b, j])
