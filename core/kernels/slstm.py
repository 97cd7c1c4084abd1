"""sLSTM's layer over sequences (Beck et al. 2024): a loop over time, forward and back.

The plain reference is `core.cells.slstm.slstm_reference`; tests/core/test_feedback_cells.py holds values and gradients against it, the
gradient in double precision too. Shapes: B sequences, T steps, H width, heads of d = H / heads units; a state is [c | n | m | h], 4H numbers,
and a head's mixing matrix R (d, 4d) has the columns [z | i | f | o].
"""

from __future__ import annotations

import math

import numba
import numpy as np

from core.kernels.jit import JIT, f32
from core.kernels.pointwise import decay, sigmoid, tanh


@numba.njit(**JIT)
def slstm_scan(gates, bias, mixing, state0, keep, exponential, stays, states):  # pragma: no cover (compiled)
    """gates (B, T, 4H) holds p = W u and then [tanh z | e | d ln f / df | s(o)]; mixing (heads, d, 4d), state0 (B, 4H), keep (B, T).

    With q the state before, times k_t:  p += b + R q_h,  m = max(ln f + q_m, i), or i where q_n = 0,  v = exp(ln f + q_m - m),  e = exp(i - m),
    c = v q_c + e tanh z,  n = v q_n + e,  h = s(o) c / n. Keeps stays (B, T, H), v, and states (B, T, 4H) for the backward.
    """
    heads, inner, _ = mixing.shape
    batch, time, width = stays.shape
    one, zero = f32(1), f32(0)
    q, p = np.empty(4 * width, stays.dtype), np.empty(4 * width, stays.dtype)
    for b in range(batch):
        for t in range(time):
            k = keep[b, t]
            past = state0[b] if t == 0 else states[b, t - 1]
            for j in range(4 * width):
                q[j] = k * past[j]
                p[j] = gates[b, t, j] + bias[j]
            for head in range(heads):
                for i in range(inner):
                    heard, row = q[3 * width + head * inner + i], mixing[head, i]
                    for g in range(4):
                        place = g * width + head * inner
                        for j in range(inner):
                            p[place + j] += heard * row[g * inner + j]
            for j in range(width):
                f, kept = p[2 * width + j], q[2 * width + j]
                if exponential:
                    gates[b, t, 2 * width + j] = one
                    kept += f
                else:
                    gates[b, t, 2 * width + j] = sigmoid(-f)
                    kept += min(f, zero) - math.log1p(decay(-abs(f)))
                i = p[width + j]
                m = i if q[width + j] == 0 else max(kept, i)
                states[b, t, 2 * width + j] = m
                p[2 * width + j] = min(kept - m, zero)
                p[width + j] = i - m
            for j in range(width):
                gates[b, t, j] = tanh(p[j])
            for j in range(width):
                gates[b, t, width + j] = decay(p[width + j])
            for j in range(width):
                gates[b, t, 3 * width + j] = sigmoid(p[3 * width + j])
            for j in range(width):
                stays[b, t, j] = decay(p[2 * width + j])
            for j in range(width):
                states[b, t, j] = stays[b, t, j] * q[j] + gates[b, t, width + j] * gates[b, t, j]
            for j in range(width):
                states[b, t, width + j] = stays[b, t, j] * q[width + j] + gates[b, t, width + j]
            for j in range(width):
                mean = states[b, t, j] / states[b, t, width + j]
                states[b, t, 3 * width + j] = gates[b, t, 3 * width + j] * mean


@numba.njit(**JIT)
def slstm_scan_backward(
    gates, stays, states, mixing, state0, keep, grad, grad_last, slopes, grad_bias, grad_mixing
):  # pragma: no cover (compiled)
    """Gradients of `slstm_scan`: grad (B, T, H) is dh of the output; slopes (B, T, 4H) becomes dp.

    With [lc | ln | lm | lh] = dL/d(state t), what comes from the output and from step t + 1, w = s(o), y = tanh z:

        h = w c / n:                    do = lh (c / n) w (1 - w),   dc = lc + lh w / n,   dn = ln - lh w c / n^2
        c = v q_c + e y:                dz = dc e (1 - y^2),   dq_c = dc v
        n = v q_n + e:                  dq_n = dn v
        v = exp(ln f + q_m - m):        dK = (dc q_c + dn q_n) v, which is d(ln f + q_m)
        e = exp(i - m):                 di = (dc y + dn) e
        m = max(ln f + q_m, i):         dm = lm - dK - di goes to i where that is the larger (e = 1), and to dK where it is not
        df = dK d ln f / df,   dq_m = dK
        p = W u + b + R q_h:            dq_h = R dp,   dR = sum of q_h dp^T over rows;   db = sum of dp
        q = k_t (state t - 1):          what reaches the state before is k_t dq

    grad_last (B, 4H) is overwritten by the derivative in state0; grad_bias (4H,) and grad_mixing (heads, d, 4d) are added to.
    """
    heads, inner, _ = mixing.shape
    batch, time, width = grad.shape
    one = f32(1)
    q, d, flow = np.empty(4 * width, grad.dtype), np.empty(4 * width, grad.dtype), np.empty(4 * width, grad.dtype)
    for b in range(batch):
        for j in range(4 * width):
            flow[j] = grad_last[b, j]
        for reverse in range(time):
            t = time - 1 - reverse
            k = keep[b, t]
            past = state0[b] if t == 0 else states[b, t - 1]
            for j in range(4 * width):
                q[j] = k * past[j]
            for j in range(width):
                y, e, w, v = gates[b, t, j], gates[b, t, width + j], gates[b, t, 3 * width + j], stays[b, t, j]
                n = states[b, t, width + j]
                mean, lh = states[b, t, j] / n, flow[3 * width + j] + grad[b, t, j]
                dc, dn = flow[j] + lh * w / n, flow[width + j] - lh * w * mean / n
                to_kept, to_i = (dc * q[j] + dn * q[width + j]) * v, (dc * y + dn) * e
                to_m = flow[2 * width + j] - to_kept - to_i
                if e == one:
                    to_i += to_m
                else:
                    to_kept += to_m
                d[j] = dc * e * (one - y * y)
                d[width + j] = to_i
                d[2 * width + j] = to_kept * gates[b, t, 2 * width + j]
                d[3 * width + j] = lh * mean * w * (one - w)
                flow[j], flow[width + j], flow[2 * width + j] = k * dc * v, k * dn * v, k * to_kept
            for head in range(heads):
                for i in range(inner):
                    place = 3 * width + head * inner + i
                    heard, row, grad_row, total = q[place], mixing[head, i], grad_mixing[head, i], f32(0) * k
                    for g in range(4):
                        start = g * width + head * inner
                        for j in range(inner):
                            total += row[g * inner + j] * d[start + j]
                        for j in range(inner):
                            grad_row[g * inner + j] += heard * d[start + j]
                    flow[place] = k * total
            for j in range(4 * width):
                slopes[b, t, j] = d[j]
                grad_bias[j] += d[j]
        for j in range(4 * width):
            grad_last[b, j] = flow[j]
