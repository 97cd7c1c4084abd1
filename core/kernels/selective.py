"""Mamba's causal convolution and selective scan over a sequence, and one step of both (Gu and Dao 2023).

Letters as in `core.mamba`: B batch, T time, E inner width, N states a channel, K taps. The plain references are
`core.mamba.conv_reference` and `selective_reference`; tests/core/test_kernels.py compares values and gradients, and
tests/core/test_second_truths.py holds the whole block against the paper's algorithm.
"""

from __future__ import annotations

import numba
import numpy as np

from core.kernels.jit import JIT, f32
from core.kernels.pointwise import decay, sigmoid


@numba.njit(**JIT)
def conv_silu(extended, reach, weight, bias, pre, out):  # pragma: no cover (compiled)
    """extended (B, K - 1 + T, E), reach (B, T, K) in {0, 1}: pre = bias + sum weight x, out = silu(pre)."""
    batch, time, width = pre.shape
    taps = weight.shape[0]
    p = np.empty(width, f32)
    for b in range(batch):
        for t in range(time):
            for n in range(width):
                p[n] = bias[n] + weight[0, n] * extended[b, t + taps - 1, n]
            for j in range(1, taps):
                if reach[b, t, j] != f32(0):
                    for n in range(width):
                        p[n] += weight[j, n] * extended[b, t + taps - 1 - j, n]
            for n in range(width):
                pre[b, t, n] = p[n]
            for n in range(width):
                out[b, t, n] = p[n] * sigmoid(p[n])


@numba.njit(**JIT)
def conv_silu_backward(
    grad, pre, extended, reach, weight, grad_extended, grad_weight, grad_bias
):  # pragma: no cover (compiled)
    """Gradients of `conv_silu`; all three results are added to.

    out_t = silu(p_t),  p_t = bias + sum_j reach_tj w_j x_{t-j}
    dp_t = dout_t s (1 + p_t (1 - s)),  s = sigmoid(p_t)
    dbias = sum_t dp_t,   dw_j = sum_t reach_tj x_{t-j} dp_t,   dx_{t-j} += reach_tj w_j dp_t
    """
    batch, time, width = pre.shape
    taps = weight.shape[0]
    d = np.empty(width, f32)
    for b in range(batch):
        for t in range(time):
            for n in range(width):
                s = sigmoid(pre[b, t, n])
                d[n] = grad[b, t, n] * s * (f32(1) + pre[b, t, n] * (f32(1) - s))
            for n in range(width):
                grad_bias[n] += d[n]
            for j in range(taps):
                if j == 0 or reach[b, t, j] != f32(0):
                    for n in range(width):
                        grad_extended[b, t + taps - 1 - j, n] += weight[j, n] * d[n]
                    for n in range(width):
                        grad_weight[j, n] += extended[b, t + taps - 1 - j, n] * d[n]


@numba.njit(**JIT)
def conv_silu_step(projected, state, taps, bias, after, v):  # pragma: no cover (compiled)
    """v = silu(bias + sum of taps, oldest first, times the last inputs); the inputs move up by one in `after`."""
    batch, width = v.shape
    last = taps.shape[0] - 1
    total = np.empty(width, f32)
    for b in range(batch):
        for e in range(width):
            total[e] = bias[e] + taps[last, e] * projected[b, e]
        for j in range(last):
            for e in range(width):
                total[e] += taps[j, e] * state[b, j * width + e]
        for e in range(width):
            v[b, e] = total[e] * sigmoid(total[e])
        if last > 0:
            for e in range((last - 1) * width):
                after[b, e] = state[b, width + e]
            for e in range(width):
                after[b, (last - 1) * width + e] = projected[b, e]


@numba.njit(**JIT)
def selective_scan(x, delta, a, b, c, skip, state, keep, y, last):  # pragma: no cover (compiled)
    """h_t = k_t exp(delta_t a) h_{t-1} + b_t delta_t x_t and y_t = c_t h_t + skip x_t, for every channel; a = -exp(a_log).

    x, delta, y (B, T, E), a (N, E), b, c (B, T, N), skip (E,), state and last (B, N, E).
    """
    batch, time, width = x.shape
    count = a.shape[0]
    gain, out, dt = np.empty(width, f32), np.empty(width, f32), np.empty(width, f32)
    for i in range(batch):
        for n in range(count):
            for e in range(width):
                last[i, n, e] = state[i, n, e]
        for t in range(time):
            k = keep[i, t]
            for e in range(width):
                dt[e] = delta[i, t, e]
            for e in range(width):
                gain[e] = dt[e] * x[i, t, e]
            for e in range(width):
                out[e] = skip[e] * x[i, t, e]
            for n in range(count):
                bn, cn = b[i, t, n], c[i, t, n]
                for e in range(width):
                    h = k * decay(dt[e] * a[n, e]) * last[i, n, e] + bn * gain[e]
                    last[i, n, e] = h
                    out[e] += cn * h
            for e in range(width):
                y[i, t, e] = out[e]


@numba.njit(**JIT)
def selective_scan_backward(
    x, delta, a, b, c, skip, state, keep, grad_y, grad_last, grad_x, grad_delta, grad_a, grad_b, grad_c, grad_skip,
    grad_state,
):  # fmt: skip  # pragma: no cover (compiled)
    """Gradients of `selective_scan`. States of one sequence are computed again (`trail`) and kept only for that sequence.

    With d_t = k_t exp(delta_t a) and g_t = delta_t x_t, so that h_t = d_t h_{t-1} + b_t g_t and y_t = sum_n c_t h_t + skip x_t;
    `flow` is l_t = dL/dh_t, from the end, with dL/d last on top of the last step's:

        l_t = c_t dy_t + d_{t+1} l_{t+1}
        dc_t = sum_e dy_t h_t,   db_t = sum_e l_t g_t,   dg_t = sum_n b_t l_t
        exp's argument:   d(delta_t a) = l_t d_t h_{t-1},   so   da = sum_t delta_t d(delta_t a),
        ddelta_t = sum_n a d(delta_t a) + dg_t x_t,   dx_t = dg_t delta_t + skip dy_t,   dskip = sum_t dy_t x_t
        dstate = d_0 l_0

    grad_a and grad_skip are added to; da_log = a da is the caller's.
    """
    batch, time, width = x.shape
    count = a.shape[0]
    trail = np.empty((time + 1, count, width), f32)  # states
    decays = np.empty((time, count, width), f32)
    gain, d_gain, d_delta = np.empty(width, f32), np.empty(width, f32), np.empty(width, f32)
    dt, gy, flow = np.empty(width, f32), np.empty(width, f32), np.empty((count, width), f32)
    for i in range(batch):
        for n in range(count):
            for e in range(width):
                trail[0, n, e] = state[i, n, e]
                flow[n, e] = grad_last[i, n, e]
        for t in range(time):
            k = keep[i, t]
            for e in range(width):
                dt[e] = delta[i, t, e]
            for e in range(width):
                gain[e] = dt[e] * x[i, t, e]
            for n in range(count):
                bn = b[i, t, n]
                for e in range(width):
                    decays[t, n, e] = k * decay(dt[e] * a[n, e])
                for e in range(width):
                    trail[t + 1, n, e] = decays[t, n, e] * trail[t, n, e] + bn * gain[e]
        for s in range(time):
            t = time - 1 - s
            for e in range(width):
                dt[e] = delta[i, t, e]
                d_gain[e] = f32(0)
                d_delta[e] = f32(0)
            for e in range(width):
                gy[e] = grad_y[i, t, e]
                gain[e] = dt[e] * x[i, t, e]
            for n in range(count):
                bn, cn = b[i, t, n], c[i, t, n]
                sum_b = sum_c = f32(0)
                for e in range(width):
                    sum_c += gy[e] * trail[t + 1, n, e]
                    flow[n, e] += cn * gy[e]
                for e in range(width):
                    sum_b += flow[n, e] * gain[e]
                    d_gain[e] += bn * flow[n, e]
                for e in range(width):
                    back = flow[n, e] * decays[t, n, e]  # what flows to h_{t-1}
                    work = back * trail[t, n, e]  # dL / d(delta a)
                    flow[n, e] = back
                    d_delta[e] += work * a[n, e]
                for e in range(width):
                    grad_a[n, e] += flow[n, e] * trail[t, n, e] * dt[e]
                grad_b[i, t, n], grad_c[i, t, n] = sum_b, sum_c
            for e in range(width):
                grad_delta[i, t, e] = d_delta[e] + d_gain[e] * x[i, t, e]
            for e in range(width):
                grad_x[i, t, e] = d_gain[e] * dt[e] + skip[e] * gy[e]
            for e in range(width):
                grad_skip[e] += gy[e] * x[i, t, e]
        for n in range(count):
            for e in range(width):
                grad_state[i, n, e] = flow[n, e]


@numba.njit(**JIT)
def selective_step(v, projected, delta, selected, a, skip, state, taps, after):  # pragma: no cover (compiled)
    """One step of `selective_scan`, gated by silu(z): v becomes y silu(z); selected is [delta | B | C], projected [x | z]."""
    batch, width = v.shape
    count, first = a.shape[0], (taps - 1) * width
    out, gain = np.empty(width, f32), np.empty(width, f32)
    for b in range(batch):
        for e in range(width):
            gain[e] = delta[b, e] * v[b, e]
            out[e] = skip[e] * v[b, e]
        for n in range(count):
            bn, cn, base = selected[b, width + n], selected[b, width + count + n], first + n * width
            for e in range(width):
                h = decay(delta[b, e] * a[n, e]) * state[b, base + e] + bn * gain[e]
                after[b, base + e] = h
                out[e] += cn * h
        for e in range(width):
            z = projected[b, width + e]
            v[b, e] = out[e] * z * sigmoid(z)
