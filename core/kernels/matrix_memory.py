"""A memory that is a matrix, written by outer products and read by a product: mLSTM's, Mamba-2's and the gated delta rule's.

    w_t = b_t (v_t - c a_t M_{t-1} k_t)            c = 1: the delta rule writes what the memory does not return yet; c = 0: all
    M_t = a_t M_{t-1} + w_t k_t^T,   y_t = M_t q_t

Shapes: B sequences, T steps, N heads, V values, K keys; q and k (B, T, N or 1, K), 1 where all heads share them; v (B, T, N, V);
a and b (B, T, N), with a = 0 where a sequence begins anew; M (B, N, V, K). A row of M never meets another one.
The plain reference is `core.cells.matrix_memory.memory_reference`; tests/core/test_matrix_cells.py compares values and gradients.
"""

from __future__ import annotations

import numba
import numpy as np

from core.kernels.jit import JIT, f32


@numba.njit(**JIT)
def memory_scan(q, k, v, a, b, state, corrects, y, last):  # pragma: no cover (compiled)
    """y (B, T, N, V), and in `last` (B, N, V, K) the matrices after the last step."""
    batch, time, heads, values = v.shape
    keys, shared = q.shape[3], q.shape[2] == 1
    qt, kt = np.empty(keys, v.dtype), np.empty(keys, v.dtype)
    memory = np.empty((values, keys), v.dtype)
    for i in range(batch):
        for n in range(heads):
            own = 0 if shared else n
            for r in range(values):
                for j in range(keys):
                    memory[r, j] = state[i, n, r, j]
            for t in range(time):
                for j in range(keys):
                    qt[j] = q[i, t, own, j]
                    kt[j] = k[i, t, own, j]
                decay, strength = a[i, t, n], b[i, t, n]
                for r in range(values):
                    write = v[i, t, n, r]
                    if corrects:
                        known = f32(0)
                        for j in range(keys):
                            known += memory[r, j] * kt[j]
                        write -= decay * known
                    write *= strength
                    read = f32(0)
                    for j in range(keys):
                        m = decay * memory[r, j] + write * kt[j]
                        memory[r, j] = m
                        read += m * qt[j]
                    y[i, t, n, r] = read
            for r in range(values):
                for j in range(keys):
                    last[i, n, r, j] = memory[r, j]


@numba.njit(**JIT)
def memory_scan_backward(
    q, k, v, a, b, state, corrects, grad_y, grad_last, grad_q, grad_k, grad_v, grad_a, grad_b, grad_state
):  # pragma: no cover (compiled)
    """Gradients of `memory_scan`. The matrices of one head of one sequence are computed again (`trail`) and kept for it alone.

    With s_t = M_{t-1} k_t, e_t = v_t - c a_t s_t and w_t = b_t e_t; G_t = dL/dM_t, from the end, with dL/d last on top of the
    last step's; F_t is what G_t is before it flows on:

        F_t = G_t + dy_t q_t^T,   dq_t = M_t^T dy_t
        M_t = a_t M_{t-1} + w_t k_t^T:   dw_t = F_t k_t,   dk_t = F_t^T w_t,   da_t = <F_t, M_{t-1}>
        w_t = b_t e_t:                   db_t = <dw_t, e_t>,   dv_t = de_t = b_t dw_t
        e_t = v_t - c a_t M_{t-1} k_t:   da_t -= c <de_t, s_t>,   dk_t -= c a_t M_{t-1}^T de_t
        G_{t-1} = a_t (F_t - c de_t k_t^T),   dstate = G_{-1}

    grad_q and grad_k are added to, since heads may share q and k.
    """
    batch, time, heads, values = v.shape
    keys, shared = q.shape[3], q.shape[2] == 1
    qt, kt = np.empty(keys, v.dtype), np.empty(keys, v.dtype)
    dq, dk, da = np.empty(keys, v.dtype), np.empty(keys, v.dtype), np.empty(keys, v.dtype)
    trail = np.empty((time + 1, values, keys), v.dtype)
    errors = np.empty((time, values), v.dtype)
    flow = np.empty((values, keys), v.dtype)
    for i in range(batch):
        for n in range(heads):
            own = 0 if shared else n
            for r in range(values):
                for j in range(keys):
                    trail[0, r, j] = state[i, n, r, j]
                    flow[r, j] = grad_last[i, n, r, j]
            for t in range(time):
                for j in range(keys):
                    kt[j] = k[i, t, own, j]
                    dq[j] = f32(0)
                decay, strength = a[i, t, n], b[i, t, n]
                for r in range(values):
                    error = v[i, t, n, r]
                    if corrects:
                        known = f32(0)
                        for j in range(keys):
                            known += trail[t, r, j] * kt[j]
                        error -= decay * known
                    errors[t, r] = error
                    write = strength * error
                    gy = grad_y[i, t, n, r]
                    for j in range(keys):
                        m = decay * trail[t, r, j] + write * kt[j]
                        trail[t + 1, r, j] = m
                        dq[j] += gy * m
                for j in range(keys):
                    grad_q[i, t, own, j] += dq[j]
            for s in range(time):
                t = time - 1 - s
                for j in range(keys):
                    qt[j] = q[i, t, own, j]
                    kt[j] = k[i, t, own, j]
                    dk[j] = f32(0)
                    da[j] = f32(0)
                decay, strength = a[i, t, n], b[i, t, n]
                d_strength = f32(0)
                for r in range(values):
                    gy, error = grad_y[i, t, n, r], errors[t, r]
                    d_write = f32(0)
                    for j in range(keys):
                        f = flow[r, j] + gy * qt[j]
                        flow[r, j] = f
                        d_write += f * kt[j]
                    d_strength += d_write * error
                    d_error = strength * d_write
                    grad_v[i, t, n, r] = d_error
                    write = strength * error
                    # <F, M> - c <de, M k> is <F - c de k^T, M>: what flows on, against the matrix before.
                    if corrects:
                        back = decay * d_error
                        for j in range(keys):
                            f, m = flow[r, j], trail[t, r, j]
                            dk[j] += write * f - back * m
                            f -= d_error * kt[j]
                            da[j] += f * m
                            flow[r, j] = decay * f
                    else:
                        for j in range(keys):
                            f = flow[r, j]
                            dk[j] += write * f
                            da[j] += f * trail[t, r, j]
                            flow[r, j] = decay * f
                d_decay = f32(0)
                for j in range(keys):
                    d_decay += da[j]
                    grad_k[i, t, own, j] += dk[j]
                grad_a[i, t, n], grad_b[i, t, n] = d_decay, d_strength
            for r in range(values):
                for j in range(keys):
                    grad_state[i, n, r, j] = flow[r, j]


@numba.njit(**JIT)
def stabilise(log_f, log_i, start, keep, m):  # pragma: no cover (compiled)
    """m_t = max(ln f_t + k_t m_{t-1}, ln i_t, 0): log_f, log_i and m (B, T, N), start (B, N), keep (B, T)."""
    batch, time, heads = m.shape
    for i in range(batch):
        for n in range(heads):
            now = start[i, n]
            for t in range(time):
                now = max(log_f[i, t, n] + keep[i, t] * now, log_i[i, t, n], f32(0))
                m[i, t, n] = now
