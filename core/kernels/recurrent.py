"""LSTM and GRU over sequences, forward and back: one layer each, whose states meet a whole matrix at every step.

Shapes: B sequences, T steps, H width; U the recurrent weights, transposed or as torch has them, so that a product walks rows of memory.
The plain references are `core.recurrent.lstm_reference` and `gru_reference`; tests/core/test_recurrent.py holds values and gradients
against them, the gradients in double precision too, and against torch's own.
"""

from __future__ import annotations

import functools

import numba
import numpy as np

from core.kernels.jit import JIT, f32
from core.kernels.pointwise import sigmoid, tanh


@numba.njit(**JIT)
def add_row(left, right, out):  # pragma: no cover (compiled)
    """out (M,) += left (K,) @ right (K, M)."""
    inner, columns = right.shape
    whole = inner // 4 * 4
    for j in range(0, whole, 4):
        a, b, c, d = left[j], left[j + 1], left[j + 2], left[j + 3]
        w, x, y, z = right[j], right[j + 1], right[j + 2], right[j + 3]
        for n in range(columns):
            out[n] += a * w[n] + b * x[n] + c * y[n] + d * z[n]
    for j in range(whole, inner):
        a, w = left[j], right[j]
        for n in range(columns):
            out[n] += a * w[n]


@numba.njit(**JIT)
def add_rows(left, second, right, out, other):  # pragma: no cover (compiled)
    """out += left @ right and other += second @ right: `right`, larger than the nearest cache, is read once for both."""
    inner, columns = right.shape
    whole = inner // 4 * 4
    for j in range(0, whole, 4):
        a, b, c, d = left[j], left[j + 1], left[j + 2], left[j + 3]
        e, f, g, h = second[j], second[j + 1], second[j + 2], second[j + 3]
        w, x, y, z = right[j], right[j + 1], right[j + 2], right[j + 3]
        for n in range(columns):
            p, q, r, s = w[n], x[n], y[n], z[n]
            out[n] += a * p + b * q + c * r + d * s
            other[n] += e * p + f * q + g * r + h * s
    for j in range(whole, inner):
        a, e, w = left[j], second[j], right[j]
        for n in range(columns):
            out[n] += a * w[n]
            other[n] += e * w[n]


@numba.njit(**JIT)
def remember(past, keep, previous, t):  # pragma: no cover (compiled)
    """previous (B, T, H) of step t: k_t times the state before it, past (B, H) at the start and (B, T, H) of the steps after."""
    start, states = past
    batch, _, width = previous.shape
    for b in range(batch):
        k, before = keep[b, t], previous[b, t]
        state = start[b] if t == 0 else states[b, t - 1]
        for n in range(width):
            before[n] = k * state[n]


# ----------------------------------------------------------------------------------------------------------------- LSTM
@numba.njit(**JIT)
def lstm_scan(gates, bias, recurrent, h0, c0, keep, previous, cells, squashed, out):  # pragma: no cover (compiled)
    """gates (B, T, 4H) holds p = W x and then [i | f | g | o]; bias (4H,) of both maps, recurrent U^T (H, 4H), h0 and c0 (B, H), keep (B, T).

        q = k_t h_{t-1},   [i | f | g | o] = [s | s | tanh | s](p + b + U q),   c_t = f k_t c_{t-1} + i g,   h_t = o tanh(c_t)

    Fills previous, q, cells, c, squashed, tanh(c), and out, h, each (B, T, H).
    """
    batch, time, width = out.shape
    for t in range(time):
        remember((h0, out), keep, previous, t)
        for b in range(batch):
            row = gates[b, t]
            for n in range(4 * width):
                row[n] += bias[n]
        for b in range(0, batch - 1, 2):
            add_rows(previous[b, t], previous[b + 1, t], recurrent, gates[b, t], gates[b + 1, t])
        if batch % 2:
            add_row(previous[batch - 1, t], recurrent, gates[batch - 1, t])
        for b in range(batch):
            k, row, now, s, y = keep[b, t], gates[b, t], cells[b, t], squashed[b, t], out[b, t]
            cell = c0[b] if t == 0 else cells[b, t - 1]
            for n in range(2 * width):
                row[n] = sigmoid(row[n])
            for n in range(2 * width, 3 * width):
                row[n] = tanh(row[n])
            for n in range(3 * width, 4 * width):
                row[n] = sigmoid(row[n])
            for n in range(width):
                now[n] = k * row[width + n] * cell[n] + row[n] * row[2 * width + n]
            for n in range(width):
                s[n] = tanh(now[n])
            for n in range(width):
                y[n] = row[3 * width + n] * s[n]


@numba.njit(**JIT)
def lstm_scan_backward(
    gates, recurrent, c0, keep, cells, squashed, grad, carry_h, carry_c, grad_bias
):  # pragma: no cover (compiled)
    """Gradients of `lstm_scan`: grad (B, T, H) is dh of the output; gates (B, T, 4H) become dp; recurrent U (4H, H).

    With lh = dL/dh_t and lc = dL/dc_t, what comes from the output and from step t + 1:

        h = o tanh(c):                 do = lh tanh(c),   lc += lh o (1 - tanh(c)^2)
        c = f k c_{t-1} + i g:         df = lc k c_{t-1},   di = lc g,   dg = lc i,   what reaches c_{t-1} is lc f k
        [i | f | g | o] of p + b + U q:   dp = [di i (1 - i) | df f (1 - f) | dg (1 - g^2) | do o (1 - o)],   db = sum over rows of dp
        q = k_t h_{t-1}:               what reaches h_{t-1} is k_t U^T dp

    dW and dU are products of dp with x and q: the caller's. carry_h and carry_c (B, H): dL/d(last state) in, dL/d(first one) out.
    grad_bias (4H,) is added to.
    """
    batch, time, width = grad.shape
    one, kind = f32(1), grad.dtype
    dh, di, df, do = np.empty(width, kind), np.empty(width, kind), np.empty(width, kind), np.empty(width, kind)
    for reverse in range(time):
        t = time - 1 - reverse
        for b in range(batch):
            k, row, s, g, lc, lh = keep[b, t], gates[b, t], squashed[b, t], grad[b, t], carry_c[b], carry_h[b]
            cell = c0[b] if t == 0 else cells[b, t - 1]
            for n in range(width):
                dh[n] = g[n] + lh[n]
            for n in range(width):
                o = row[3 * width + n]
                lc[n] += dh[n] * o * (one - s[n] * s[n])
                do[n] = dh[n] * s[n] * o * (one - o)
            for n in range(width):
                i = row[n]
                di[n] = lc[n] * row[2 * width + n] * i * (one - i)
            for n in range(width):
                f = row[width + n]
                df[n] = lc[n] * k * cell[n] * f * (one - f)
            for n in range(width):
                y = row[2 * width + n]
                row[2 * width + n] = lc[n] * row[n] * (one - y * y)
            for n in range(width):
                lc[n] *= k * row[width + n]
            for n in range(width):
                row[n] = di[n]
            for n in range(width):
                row[width + n] = df[n]
            for n in range(width):
                row[3 * width + n] = do[n]
            for n in range(4 * width):
                grad_bias[n] += row[n]
            for n in range(width):
                lh[n] = f32(0)
        for b in range(0, batch - 1, 2):
            add_rows(gates[b, t], gates[b + 1, t], recurrent, carry_h[b], carry_h[b + 1])
        if batch % 2:
            add_row(gates[batch - 1, t], recurrent, carry_h[batch - 1])
        for b in range(batch):
            k, lh = keep[b, t], carry_h[b]
            for n in range(width):
                lh[n] *= k


# ------------------------------------------------------------------------------------------------------------------ GRU
@numba.njit(**JIT)
def gru_scan(gates, bias, hidden_bias, recurrent, h0, keep, previous, heard, out):  # pragma: no cover (compiled)
    """gates (B, T, 3H) holds p = W x and then [r | z | n]; bias and hidden_bias (3H,), recurrent U^T (H, 3H), h0 (B, H), keep (B, T).

        q = k_t h_{t-1},   a = U q + b_h,   r, z = s(p + b + a),   n = tanh(p_n + b_n + r a_n),   h_t = n + z (q - n)

    Fills previous, q, heard, a_n, and out, h, each (B, T, H).
    """
    batch, time, width = out.shape
    sums = np.empty((batch, 3 * width), out.dtype)
    for t in range(time):
        remember((h0, out), keep, previous, t)
        for b in range(batch):
            a = sums[b]
            for n in range(3 * width):
                a[n] = hidden_bias[n]
        for b in range(0, batch - 1, 2):
            add_rows(previous[b, t], previous[b + 1, t], recurrent, sums[b], sums[b + 1])
        if batch % 2:
            add_row(previous[batch - 1, t], recurrent, sums[batch - 1])
        for b in range(batch):
            a, row, kept, q, y = sums[b], gates[b, t], heard[b, t], previous[b, t], out[b, t]
            for n in range(2 * width):
                row[n] = sigmoid(row[n] + bias[n] + a[n])
            for n in range(width):
                kept[n] = a[2 * width + n]
            for n in range(width):
                a[n] = row[n] * kept[n]
            for n in range(width):
                row[2 * width + n] = tanh(row[2 * width + n] + bias[2 * width + n] + a[n])
            for n in range(width):
                a[n] = row[2 * width + n]
            for n in range(width):
                y[n] = a[n] + row[width + n] * (q[n] - a[n])


@numba.njit(**JIT)
def gru_scan_backward(
    gates, recurrent, keep, previous, heard, grad, carry, grad_bias, grad_hidden_bias
):  # pragma: no cover (compiled)
    """Gradients of `gru_scan`: grad (B, T, H) is dh of the output; gates (B, T, 3H) become dp, heard (B, T, H) da_n; recurrent U (3H, H).

    With l = dL/dh_t, what comes from the output and from step t + 1:

        h = n + z (q - n):             dn = l (1 - z),   dz = l (q - n),   dq = l z at first
        n = tanh(p_n + b_n + r a_n):   dp_n = dn (1 - n^2),   dr = dp_n a_n,   da_n = dp_n r
        r, z = s(p + b + a):           dp_r = da_r = dr r (1 - r);   likewise z
        a = U q + b_h:                 db_h = sum over rows of da,   dq += U^T da
        q = k_t h_{t-1}:               what reaches h_{t-1} is k_t dq;   db = sum over rows of dp

    dW = dp^T x and dU = da^T q are the caller's. carry (B, H): dL/d(last h) in, dL/dh0 out. grad_bias and grad_hidden_bias (3H,) are
    added to.
    """
    batch, time, width = grad.shape
    one, two = f32(1), 2 * width
    dn, dr, slopes = np.empty(width, grad.dtype), np.empty(width, grad.dtype), np.empty((batch, 3 * width), grad.dtype)
    for reverse in range(time):
        t = time - 1 - reverse
        for b in range(batch):
            row, a, q, g, flow, da = gates[b, t], heard[b, t], previous[b, t], grad[b, t], carry[b], slopes[b]
            for n in range(width):
                flow[n] += g[n]
            for n in range(width):
                dn[n] = row[two + n]
            for n in range(width):
                z = row[width + n]
                da[width + n] = flow[n] * (q[n] - dn[n]) * z * (one - z)
            for n in range(width):
                dn[n] = flow[n] * (one - row[width + n]) * (one - dn[n] * dn[n])
            for n in range(width):
                flow[n] *= row[width + n]
            for n in range(width):
                r = row[n]
                dr[n] = dn[n] * a[n] * r * (one - r)
                a[n] = dn[n] * r
            for n in range(width):
                da[n] = dr[n]
            for n in range(width):
                da[two + n] = a[n]
            for n in range(two):
                row[n] = da[n]
            for n in range(width):
                row[two + n] = dn[n]
            for n in range(3 * width):
                grad_bias[n] += row[n]
            for n in range(3 * width):
                grad_hidden_bias[n] += da[n]
        for b in range(0, batch - 1, 2):
            add_rows(slopes[b], slopes[b + 1], recurrent, carry[b], carry[b + 1])
        if batch % 2:
            add_row(slopes[batch - 1], recurrent, carry[batch - 1])
        for b in range(batch):
            k, flow = keep[b, t], carry[b]
            for n in range(width):
                flow[n] *= k


@functools.cache
def load_recurrent() -> None:
    """Compile or load by themselves the products that the kernels above share; see `core.kernels.ssm_memory.load_shared`."""
    row, square, other = np.zeros(1, f32), np.zeros((1, 1), f32), np.zeros(1, f32)
    add_row(row, square, other)
    add_rows(row, row, square, other, other.copy())
