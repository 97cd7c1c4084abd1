"""The linear recurrence h_t = k_t a_t h_{t-1} + x_t and its gradient: real, complex, and S4D's one for each channel.

Shapes: B batch, T time, N states. Complex numbers are split, [re | im]. k_t = 1 - reset_t, given as keep (B, T). `core.scan` has
the differentiable function around these, its derivation and the plain reference `scan_loop`; tests/core/test_scan.py compares
them, and the gradients with finite differences.

The carried state lives in small local arrays and elements are indexed directly: a slice of an array costs an atomic
reference count, which at 64 states a step is more than the arithmetic. Loops with few arrays vectorise, hence several.
"""

from __future__ import annotations

import numba
import numpy as np

from core.kernels.jit import JIT, f32


@numba.njit(**JIT)
def real_scan(a, x, h0, keep, reverse, out):  # pragma: no cover (compiled)
    """out_t = k a h + x over T. a (Ba, Ta, N) with Ba in {1, B}, Ta in {1, T}; reverse: from the end, a shifted."""
    batch, time, width = x.shape
    per_batch, per_step = a.shape[0] > 1, a.shape[1] > 1
    h = np.empty(width, x.dtype)
    for b in range(batch):
        ab = b if per_batch else 0
        for n in range(width):
            h[n] = h0[b, n]
        for i in range(time):
            t = time - 1 - i if reverse else i
            s = t + 1 if reverse and i > 0 else t  # whose coefficient carries the state into t
            k = x.dtype.type(0) if reverse and i == 0 else keep[b, s]
            at = s if per_step else 0
            for n in range(width):
                h[n] = k * a[ab, at, n] * h[n] + x[b, t, n]
            for n in range(width):
                out[b, t, n] = h[n]


@numba.njit(**JIT)
def complex_scan(a, x, h0, keep, reverse, out):  # pragma: no cover (compiled)
    """The same for split complex numbers; reverse uses the conjugate of a."""
    batch, time, width = x.shape
    half = width // 2
    per_batch, per_step = a.shape[0] > 1, a.shape[1] > 1
    sign = x.dtype.type(-1.0 if reverse else 1.0)
    re, im = np.empty(half, x.dtype), np.empty(half, x.dtype)
    for b in range(batch):
        ab = b if per_batch else 0
        for n in range(half):
            re[n] = h0[b, n]
            im[n] = h0[b, half + n]
        for i in range(time):
            t = time - 1 - i if reverse else i
            s = t + 1 if reverse and i > 0 else t
            k = x.dtype.type(0) if reverse and i == 0 else keep[b, s]
            at = s if per_step else 0
            for n in range(half):
                a_re, a_im = k * a[ab, at, n], sign * k * a[ab, at, half + n]
                h_re, h_im = re[n], im[n]
                re[n] = a_re * h_re - a_im * h_im + x[b, t, n]
                im[n] = a_re * h_im + a_im * h_re + x[b, t, half + n]
            for n in range(half):
                out[b, t, n] = re[n]
            for n in range(half):
                out[b, t, half + n] = im[n]


@numba.njit(**JIT)
def real_scan_backward(a, h, h0, keep, g, dx, da, dh0):  # pragma: no cover (compiled)
    """Gradients of `real_scan` in one reversed pass; g (B, T, N) is dL/dh as it reaches each step from outside.

    h_t reaches the loss itself and through h_{t+1} = k_{t+1} a_{t+1} h_t + x_{t+1}, so its whole derivative l_t follows a
    recurrence of the same kind, from the end:

        l_t = g_t + k_{t+1} a_{t+1} l_{t+1},   l_T = 0
        dx_t = l_t,   da_t = k_t h_{t-1} l_t (summed over what shares a),   dh0 = k_0 a_0 l_0

    da has the shape of a, is zeroed by the caller and added to. dx may be g's memory.
    """
    batch, time, width = h.shape
    per_batch, per_step = a.shape[0] > 1, a.shape[1] > 1
    flow, before, total = np.empty(width, h.dtype), np.empty(width, h.dtype), np.empty(width, h.dtype)
    for b in range(batch):
        ab = b if per_batch else 0
        for n in range(width):
            flow[n] = total[n] = 0
        for i in range(time):
            t = time - 1 - i
            k, at = keep[b, t], t if per_step else 0
            for n in range(width):
                flow[n] += g[b, t, n]
            for n in range(width):
                dx[b, t, n] = flow[n]
            if t > 0:
                for n in range(width):
                    before[n] = k * h[b, t - 1, n]
            else:
                for n in range(width):
                    before[n] = k * h0[b, n]
            if per_step:
                for n in range(width):
                    da[ab, t, n] += before[n] * flow[n]
            else:
                for n in range(width):
                    total[n] += before[n] * flow[n]
            for n in range(width):
                flow[n] *= k * a[ab, at, n]
        for n in range(width):
            dh0[b, n] = flow[n]
        if not per_step:
            for n in range(width):
                da[ab, 0, n] += total[n]


@numba.njit(**JIT)
def complex_scan_backward(a, h, h0, keep, g, dx, da, dh0):  # pragma: no cover (compiled)
    """The same for split complex numbers, where a product's derivative is the conjugate of its other factor:

    l_t = g_t + k_{t+1} conj(a_{t+1}) l_{t+1}
    dx_t = l_t,   da_t = k_t conj(h_{t-1}) l_t,   dh0 = k_0 conj(a_0) l_0
    """
    batch, time, width = h.shape
    half = width // 2
    per_batch, per_step = a.shape[0] > 1, a.shape[1] > 1
    re, im = np.empty(half, h.dtype), np.empty(half, h.dtype)
    b_re, b_im = np.empty(half, h.dtype), np.empty(half, h.dtype)
    total_re, total_im = np.empty(half, h.dtype), np.empty(half, h.dtype)
    for b in range(batch):
        ab = b if per_batch else 0
        for n in range(half):
            re[n] = im[n] = total_re[n] = total_im[n] = 0
        for i in range(time):
            t = time - 1 - i
            k, at = keep[b, t], t if per_step else 0
            for n in range(half):
                re[n] += g[b, t, n]
                im[n] += g[b, t, half + n]
            for n in range(half):
                dx[b, t, n] = re[n]
            for n in range(half):
                dx[b, t, half + n] = im[n]
            if t > 0:
                for n in range(half):
                    b_re[n] = k * h[b, t - 1, n]
                    b_im[n] = k * h[b, t - 1, half + n]
            else:
                for n in range(half):
                    b_re[n] = k * h0[b, n]
                    b_im[n] = k * h0[b, half + n]
            if per_step:
                for n in range(half):
                    da[ab, t, n] += b_re[n] * re[n] + b_im[n] * im[n]
                for n in range(half):
                    da[ab, t, half + n] += b_re[n] * im[n] - b_im[n] * re[n]
            else:
                for n in range(half):
                    total_re[n] += b_re[n] * re[n] + b_im[n] * im[n]
                    total_im[n] += b_re[n] * im[n] - b_im[n] * re[n]
            for n in range(half):
                a_re, a_im = k * a[ab, at, n], k * a[ab, at, half + n]
                l_re, l_im = re[n], im[n]
                re[n] = a_re * l_re + a_im * l_im
                im[n] = a_re * l_im - a_im * l_re
        for n in range(half):
            dh0[b, n] = re[n]
            dh0[b, half + n] = im[n]
        if not per_step:
            for n in range(half):
                da[ab, 0, n] += total_re[n]
                da[ab, 0, half + n] += total_im[n]


@numba.njit(**JIT)
def channel_scan(a, c, u, state, keep, y, last):  # pragma: no cover (compiled)
    """S4D's recurrence, h = k a h + u, and its readout, y = sum_p c1 h_re + c2 h_im, for every channel, without keeping h.

    a, c (2, pairs, H), u and y (B, T, H), state and last (B, 2, pairs, H). Plain reference:
    `core.fused.linear_cells.channel_reference`.
    """
    batch, time, width = u.shape
    pairs = a.shape[1]
    out = np.empty(width, f32)
    for b in range(batch):
        for p in range(pairs):
            for n in range(width):
                last[b, 0, p, n] = state[b, 0, p, n]
                last[b, 1, p, n] = state[b, 1, p, n]
        for t in range(time):
            k = keep[b, t]
            for n in range(width):
                out[n] = 0
            for p in range(pairs):
                for n in range(width):
                    re, im = k * last[b, 0, p, n], k * last[b, 1, p, n]
                    last[b, 0, p, n] = a[0, p, n] * re - a[1, p, n] * im + u[b, t, n]
                    last[b, 1, p, n] = a[0, p, n] * im + a[1, p, n] * re
                for n in range(width):
                    out[n] += c[0, p, n] * last[b, 0, p, n] + c[1, p, n] * last[b, 1, p, n]
            for n in range(width):
                y[b, t, n] = out[n]


@numba.njit(**JIT)
def channel_scan_backward(
    a, c, u, state, keep, grad_y, grad_last, grad_u, grad_a, grad_c, grad_state
):  # pragma: no cover (compiled)
    """Gradients of `channel_scan`. States of one sequence are computed again (`trail`) and kept only for that sequence.

    With y_t = c1 Re h_t + c2 Im h_t, what reaches h_t from outside is (c1 + i c2) dy_t; `flow` is l_t, from the end:

        l_t = (c1 + i c2) dy_t + k_{t+1} conj(a) l_{t+1},   with dL/d last on top of the last step's
        dc1 += dy_t Re h_t,   dc2 += dy_t Im h_t,   du_t += Re l_t (u is real, and drives every pair of its channel)
        da += k_t conj(h_{t-1}) l_t,   dstate = k_0 conj(a) l_0

    grad_u, grad_a and grad_c are added to.
    """
    batch, time, width = u.shape
    pairs = a.shape[1]
    trail, flow = np.empty((time + 1, 2, pairs, width), f32), np.empty((2, pairs, width), f32)
    for b in range(batch):
        for p in range(pairs):
            for n in range(width):
                trail[0, 0, p, n] = state[b, 0, p, n]
                trail[0, 1, p, n] = state[b, 1, p, n]
        for t in range(time):
            k = keep[b, t]
            for p in range(pairs):
                for n in range(width):
                    re, im = k * trail[t, 0, p, n], k * trail[t, 1, p, n]
                    trail[t + 1, 0, p, n] = a[0, p, n] * re - a[1, p, n] * im + u[b, t, n]
                for n in range(width):
                    re, im = k * trail[t, 0, p, n], k * trail[t, 1, p, n]
                    trail[t + 1, 1, p, n] = a[0, p, n] * im + a[1, p, n] * re
        for p in range(pairs):
            for n in range(width):
                flow[0, p, n] = grad_last[b, 0, p, n]
                flow[1, p, n] = grad_last[b, 1, p, n]
        for i in range(time):
            t = time - 1 - i
            k = keep[b, t]
            for p in range(pairs):
                for n in range(width):
                    grad_c[0, p, n] += grad_y[b, t, n] * trail[t + 1, 0, p, n]
                for n in range(width):
                    grad_c[1, p, n] += grad_y[b, t, n] * trail[t + 1, 1, p, n]
                for n in range(width):
                    flow[0, p, n] += c[0, p, n] * grad_y[b, t, n]
                for n in range(width):
                    flow[1, p, n] += c[1, p, n] * grad_y[b, t, n]
                for n in range(width):
                    grad_u[b, t, n] += flow[0, p, n]
                for n in range(width):
                    flow[0, p, n], flow[1, p, n] = k * flow[0, p, n], k * flow[1, p, n]
                for n in range(width):
                    grad_a[0, p, n] += trail[t, 0, p, n] * flow[0, p, n] + trail[t, 1, p, n] * flow[1, p, n]
                for n in range(width):
                    grad_a[1, p, n] += trail[t, 0, p, n] * flow[1, p, n] - trail[t, 1, p, n] * flow[0, p, n]
                for n in range(width):
                    re, im = flow[0, p, n], flow[1, p, n]
                    flow[0, p, n] = a[0, p, n] * re + a[1, p, n] * im
                    flow[1, p, n] = a[0, p, n] * im - a[1, p, n] * re
        for p in range(pairs):
            for n in range(width):
                grad_state[b, 0, p, n] = flow[0, p, n]
                grad_state[b, 1, p, n] = flow[1, p, n]
