"""What is done to each number alone: tanh, sigmoid, decay, and the pointwise parts of a block with their gradients.

The plain reference of skip, gates and their order is `core.fused.ssm_block.block_reference`; `tests/core/test_fused.py` compares
both forwards and backwards, and `tests/core/test_kernels.py` each function against torch in double precision.
"""

from __future__ import annotations

import numba
import numpy as np

from core.kernels.jit import JIT, f32


@numba.njit(**JIT)
def tanh_ratio(x):  # pragma: no cover (compiled)
    """Eigen's rational tanh for x in [-9, 9]: numerator and denominator, without a call, so that loops vectorise."""
    q = x * x
    p = f32(-2.76076847742355e-16)
    p = p * q + f32(2.00018790482477e-13)
    p = p * q + f32(-8.60467152213735e-11)
    p = p * q + f32(5.12229709037114e-08)
    p = p * q + f32(1.48572235717979e-05)
    p = p * q + f32(6.37261928875436e-04)
    p = p * q + f32(4.89352455891786e-03)
    d = f32(1.19825839466702e-06)
    d = d * q + f32(1.18534705686654e-04)
    d = d * q + f32(2.26843463243900e-03)
    d = d * q + f32(4.89352518554385e-03)
    return x * p, d


@numba.njit(**JIT)
def tanh(x):  # pragma: no cover (compiled)
    """tanh to 3e-7, through Eigen's rational one, which vectorises."""
    top, bottom = tanh_ratio(min(max(x, f32(-9.0)), f32(9.0)))
    return top / bottom


@numba.njit(**JIT)
def sigmoid(x):  # pragma: no cover (compiled)
    """1 / (1 + exp(-x)) to 2e-7, through Eigen's rational tanh: no call to exp, so that the loop vectorises."""
    top, bottom = tanh_ratio(min(max(x * f32(0.5), f32(-9.0)), f32(9.0)))
    return f32(0.5) + f32(0.5) * (top / bottom)


@numba.njit(**JIT)
def decay(x):  # pragma: no cover (compiled)
    """exp(x) for x <= 0 to 2e-7: (1 + tanh(x/2)) / (1 - tanh(x/2)) of Eigen's rational tanh, one division, no exp."""
    top, bottom = tanh_ratio(max(x * f32(0.5), f32(-9.0)))
    return max((bottom + top) / (bottom - top), f32(0))


# Matrices are walked as flat memory in stretches of TILE rows, with vectors of the width repeated TILE times: a row of
# 64 numbers is too short for its loop's start to pay. A loop that reads and writes more than four or five arrays is
# not vectorised (too many alias checks), hence several short loops over a stretch that stays in the nearest cache.
TILE = 8


@numba.njit(**JIT)
def tiled(vector):  # pragma: no cover (compiled)
    """The vector TILE times, as the functions below want it."""
    out = np.empty(TILE * vector.size, f32)
    for start in range(0, out.size, vector.size):
        out[start : start + vector.size] = vector
    return out


@numba.njit(**JIT)
def skip_silu(y, u, skip, out):  # pragma: no cover (compiled)
    """y += skip u in place, out = silu(y) = y sigmoid(y); skip tiled."""
    size, stretch = y.size, skip.size
    for start in range(0, size, stretch):
        end = min(start + stretch, size)
        yi, ui, oi = y[start:end], u[start:end], out[start:end]
        for j in range(end - start):
            yi[j] += skip[j] * ui[j]
        for j in range(end - start):
            oi[j] = yi[j] * sigmoid(yi[j])


@numba.njit(**JIT)
def skip_silu_backward(grad, pre, u, skip, base, add_base, grad_u, grad_skip):  # pragma: no cover (compiled)
    """Gradients of `skip_silu`; pre is y + skip u, which it left in y's place.

        out = p s(p), p = y + skip u, s = sigmoid, s' = s (1 - s)
        dp = dout (s + p s') = dout s (1 + p (1 - s));   dy = dp,   du = skip dp,   dskip = sum over rows of dp u

    grad: dout, overwritten by dy. grad_u: du, with `base` (what reaches u past the block) added where add_base. grad_skip
    (tiled) is added to.
    """
    size, stretch = pre.size, skip.size
    for start in range(0, size, stretch):
        end = min(start + stretch, size)
        gi, pi, ui, bi = grad[start:end], pre[start:end], u[start:end], base[start:end]
        di = grad_u[start:end]
        for j in range(end - start):
            s = sigmoid(pi[j])
            gi[j] *= s * (f32(1) + pi[j] * (f32(1) - s))
        if add_base:
            for j in range(end - start):
                di[j] = bi[j] + skip[j] * gi[j]
        else:
            for j in range(end - start):
                di[j] = skip[j] * gi[j]
        for j in range(end - start):
            grad_skip[j] += gi[j] * ui[j]


@numba.njit(**JIT)
def glu(v, bias, residual, out):  # pragma: no cover (compiled)
    """out (R, H) = residual + (v1 + b1) sigmoid(v2 + b2), v (R, 2H) = [v1 | v2] (Dauphin et al. 2017, equation 1)."""
    rows, width = out.shape
    for i in range(rows):
        for j in range(width):
            out[i, j] = residual[i, j] + (v[i, j] + bias[j]) * sigmoid(v[i, width + j] + bias[width + j])


@numba.njit(**JIT)
def glu_backward(grad, v, bias, grad_v, grad_bias):  # pragma: no cover (compiled)
    """Gradients of `glu`, but the residual's, which is `grad` itself.

        out = r + l s(m), l = v1 + b1, m = v2 + b2, s = sigmoid
        dv1 = dout s(m);   dv2 = dout l s(m) (1 - s(m)) = dv1 l (1 - s(m));   db = sum over rows of [dv1 | dv2]

    grad_bias is added to.
    """
    rows, width = grad.shape
    gate = np.empty(width, f32)
    for i in range(rows):
        for j in range(width):
            gate[j] = sigmoid(v[i, width + j] + bias[width + j])
        for j in range(width):
            grad_v[i, j] = grad[i, j] * gate[j]
        for j in range(width):
            gate[j] = (v[i, j] + bias[j]) * (f32(1) - gate[j])
        for j in range(width):
            grad_v[i, width + j] = grad_v[i, j] * gate[j]
        for j in range(2 * width):
            grad_bias[j] += grad_v[i, j]


@numba.njit(**JIT)
def half_gate(v, bias, value, residual, out):  # pragma: no cover (compiled)
    """out = residual + value sigmoid(v + bias); bias tiled."""
    size, stretch = v.size, bias.size
    for start in range(0, size, stretch):
        end = min(start + stretch, size)
        vi, hi, ri, oi = v[start:end], value[start:end], residual[start:end], out[start:end]
        for j in range(end - start):
            oi[j] = ri[j] + hi[j] * sigmoid(vi[j] + bias[j])


@numba.njit(**JIT)
def half_gate_backward(grad, v, bias, value, grad_v, grad_value, grad_bias):  # pragma: no cover (compiled)
    """Gradients of `half_gate`, but the residual's, which is `grad` itself.

        out = r + h s(m), m = v + b, s = sigmoid
        dh = dout s(m);   dv = dout h s(m) (1 - s(m)) = dh h (1 - s(m));   db = sum over rows of dv

    v comes from h by the gate's matrix: that share of dh is the caller's. grad_bias (tiled) is added to.
    """
    size, stretch = v.size, bias.size
    for start in range(0, size, stretch):
        end = min(start + stretch, size)
        gi, vi, hi = grad[start:end], v[start:end], value[start:end]
        di, ei = grad_v[start:end], grad_value[start:end]
        for j in range(end - start):
            di[j] = sigmoid(vi[j] + bias[j])
        for j in range(end - start):
            s = di[j]
            e = gi[j] * s
            ei[j] = e
            di[j] = e * hi[j] * (f32(1) - s)
        for j in range(end - start):
            grad_bias[j] += di[j]


@numba.njit(**JIT)
def bias_tanh(x, bias):  # pragma: no cover (compiled)
    """x = tanh(x + bias) in place, x flat in rows of bias.size."""
    width = bias.size
    for start in range(0, x.size, width):
        row = x[start : start + width]
        for j in range(width):
            row[j] = tanh(row[j] + bias[j])


@numba.njit(**JIT)
def bias_tanh_backward(grad, out, grad_bias):  # pragma: no cover (compiled)
    """Gradients of `bias_tanh`; out is y.

        y = tanh(x + b):   dx = dy (1 - y^2),   db = sum over rows of dx

    grad: dy, overwritten by dx. grad_bias is added to.
    """
    width = grad_bias.size
    for start in range(0, grad.size, width):
        gi, oi = grad[start : start + width], out[start : start + width]
        for j in range(width):
            gi[j] *= f32(1) - oi[j] * oi[j]
        for j in range(width):
            grad_bias[j] += gi[j]
