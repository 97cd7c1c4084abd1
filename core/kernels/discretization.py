"""From continuous to discrete diagonal systems, state by state, with the gradient; and a gain times the input matrix.

`core.fused.discretization.discretize` says what is computed and is the reference; tests/core/test_kernels.py compares values and
gradients of all methods with it in double precision.
"""

from __future__ import annotations

import cmath
import math

import numba

from core.kernels.jit import JIT, f32

EXPONENTIAL, ZOH, BILINEAR = range(3)
METHODS = {"exponential": EXPONENTIAL, "zoh": ZOH, "bilinear": BILINEAR}


@numba.njit(**JIT)
def transition(method, log_decay, frequency, third):  # pragma: no cover (compiled)
    """lambda, exp(third), a and b of one complex state; see `core.fused.discretization.discretize`."""
    decay, scale = math.exp(log_decay), math.exp(third)
    if method == EXPONENTIAL:
        value = complex(-decay, math.exp(frequency))
        return value, scale, cmath.exp(value), complex(scale, 0.0)
    value = complex(-decay, float(frequency))
    if method == ZOH:
        # expm1 of a complex number, whose real part would cancel where written as exp(z) - 1.
        x, y = value.real * scale, value.imag * scale
        rise, sine = math.expm1(x), math.sin(y / 2)
        shifted = complex(rise * math.cos(y) - 2 * sine * sine, (rise + 1) * math.sin(y))
        return value, scale, shifted + 1, shifted / value
    q = 1 / (1 - value * (scale / 2))
    return value, scale, (1 + value * (scale / 2)) * q, scale * q


@numba.njit(**JIT)
def partial_derivatives(method, value, scale, a, b, q):  # pragma: no cover (compiled)
    """da/dlambda, da/dt, db/dlambda, db/dt of zoh or bilinear, lambda = value, t = scale; q = 1 / (1 - lambda t / 2).

        zoh        a = exp(lambda t), b = (a - 1) / lambda:      t a,   lambda a,   (t a - b) / lambda,   a
        bilinear   a = (1 + lambda t / 2) q, b = t q, and dq/dlambda = t q^2 / 2, dq/dt = lambda q^2 / 2, so that
                   da/dlambda = t q / 2 + (1 + lambda t / 2) t q^2 / 2 = t q^2 ((1 - lambda t / 2) + (1 + lambda t / 2)) / 2:
                                                                 t q^2,   lambda q^2,   t^2 q^2 / 2,   q^2

    As plain Python (`.py_func`) it serves numpy arrays too.
    """
    if method == ZOH:
        return scale * a, value * a, (scale * a - b) / value, a
    return scale * q * q, value * q * q, scale * scale / 2 * q * q, q * q


@numba.njit(**JIT)
def discretize_backward(
    method, log_decay, frequency, third, grad_a, grad_b, grad_log_decay, grad_frequency, grad_third
):  # pragma: no cover (compiled)
    """Gradients of a layer's three dynamics parameters (N,) from those of a and b (2, N), split.

    With lambda = -exp(log_decay) + i w and t = exp(third), each complex step pulls back by the conjugate of its derivative:

        dlambda = conj(da/dlambda) da + conj(db/dlambda) db
        dlog_decay = Re(dlambda) Re(lambda), since d Re(lambda) / d log_decay = -exp(log_decay) = Re(lambda);   dw = Im(dlambda)
        dthird = t Re(conj(da/dt) da + conj(db/dt) db)

    exponential (LRU): a = exp(lambda), so dlambda = conj(a) da; w = exp(frequency), so dfrequency = Im(dlambda) w;
    b = exp(third), so dthird = Re(db) b. S4D's channels share their step among pairs: `third` is shorter than the others,
    and grad_third is added to.
    """
    thirds = third.size
    for n in range(log_decay.size):
        value, scale, a, b = transition(method, log_decay[n], frequency[n], third[n % thirds])
        to_a, to_b = complex(grad_a[0, n], grad_a[1, n]), complex(grad_b[0, n], grad_b[1, n])
        if method == EXPONENTIAL:
            slope = to_a * a.conjugate()
            grad_log_decay[n] = slope.real * value.real
            grad_frequency[n] = slope.imag * value.imag
            grad_third[n % thirds] += to_b.real * scale
            continue
        a_value, a_scale, b_value, b_scale = partial_derivatives(method, value, scale, a, b, b / scale)
        slope = to_a * a_value.conjugate() + to_b * b_value.conjugate()
        grad_log_decay[n] = slope.real * value.real
        grad_frequency[n] = slope.imag
        grad_third[n % thirds] += (to_a * a_scale.conjugate() + to_b * b_scale.conjugate()).real * scale


@numba.njit(**JIT)
def scale_rows(gain, b, out):  # pragma: no cover (compiled)
    """out = gain * b, split complex: gain (2, N), b and out (2, N, H)."""
    for n in range(b.shape[1]):
        g_re, g_im = gain[0, n], gain[1, n]
        b_re, b_im, o_re, o_im = b[0, n], b[1, n], out[0, n], out[1, n]
        for j in range(b.shape[2]):
            o_re[j] = g_re * b_re[j] - g_im * b_im[j]
            o_im[j] = g_re * b_im[j] + g_im * b_re[j]


@numba.njit(**JIT)
def scale_rows_backward(gain, b, grad, grad_gain, grad_b):  # pragma: no cover (compiled)
    """Gradients of `scale_rows`: out_nj = g_n b_nj, so dg_n = sum_j conj(b_nj) dout_nj and db_nj = conj(g_n) dout_nj."""
    for n in range(b.shape[1]):
        g_re, g_im = gain[0, n], gain[1, n]
        b_re, b_im, o_re, o_im, d_re, d_im = b[0, n], b[1, n], grad[0, n], grad[1, n], grad_b[0, n], grad_b[1, n]
        re = im = f32(0)
        for j in range(b.shape[2]):
            re += b_re[j] * o_re[j] + b_im[j] * o_im[j]
            im += b_re[j] * o_im[j] - b_im[j] * o_re[j]
        grad_gain[0, n], grad_gain[1, n] = re, im
        for j in range(b.shape[2]):
            d_re[j] = g_re * o_re[j] + g_im * o_im[j]
            d_im[j] = g_re * o_im[j] - g_im * o_re[j]
