"""The state space memory of a policy in flat memory: all layers forwards over sequences, backwards, and one acting step.

A layer is `core.ssm.SSMBlock` with a full gate and no norm, from u (R, H) to its output (R, H):

    h_t = a h_{t-1} + x_t,  x_t = M u_t,  M = gain B     dense: S5, LRU; S4D has h_t = a h_{t-1} + u_t in each channel
    p = C h + D u                                        S4D: p = r1 Re h + r2 Im h + D u, r = 2 C gain
    s = silu(p),  v = W s,  out = u + (v1 + b1) sigmoid(v2 + b2)

The plain reference is `core.policy.RecurrentPolicy` (by `core.fused.ssm_block.block_reference`); tests/meta_rl/test_fused_ppo.py
compares gradients with autograd in double precision, and acting steps with the sequence. Names and letters:
`core.kernels.layout`.
"""

from __future__ import annotations

import functools

import numba
import numpy as np

from core.kernels.blas import N, T, product
from core.kernels.discretization import discretize_backward, scale_rows, scale_rows_backward, transition
from core.kernels.jit import JIT, f32
from core.kernels.layout import Places, Scratch, Sequences, Sizes, Slopes, System, Trace, layer_of
from core.kernels.pointwise import TILE, glu, glu_backward, sigmoid, skip_silu, skip_silu_backward, tiled
from core.kernels.recurrence import channel_scan, channel_scan_backward, complex_scan, complex_scan_backward


@numba.njit(**JIT)
def discretize_layers(weights, sizes, places, system):  # pragma: no cover (compiled)
    """Fill `system` from the parameters of every layer."""
    sizes, places, system = Sizes(*sizes), Places(*places), System(*system)
    half, width = sizes.state // 2, sizes.width
    for layer in range(sizes.layers):
        parameters = layer_of(weights, sizes, places, layer)
        a, gain, matrix = system.a[layer], system.gain[layer], system.matrix[layer]
        log_decay, frequency, third, c = parameters.log_decay, parameters.frequency, parameters.third, parameters.C
        for n in range(half):
            _, _, a_n, gain_n = transition(sizes.method, log_decay[n], frequency[n], third[n % sizes.thirds])
            a[0, n], a[1, n] = a_n.real, a_n.imag
            gain[0, n], gain[1, n] = gain_n.real, gain_n.imag
        if sizes.dense:
            shape = (2, half, width)
            scale_rows(gain, parameters.B.reshape(shape), matrix.reshape(shape))
        else:
            for n in range(half):
                c_re, c_im = c[n], c[half + n]
                g_re, g_im = gain[0, n], gain[1, n]
                matrix[n] = f32(2) * (c_re * g_re - c_im * g_im)
                matrix[half + n] = f32(-2) * (c_re * g_im + c_im * g_re)


@numba.njit(**JIT)
def memory_forward(blas, weights, sizes, places, system, sequences, encoded, trace):  # pragma: no cover (compiled)
    """Every layer of `trace` from encoded (R H) and zero states."""
    sizes, places, system = Sizes(*sizes), Places(*places), System(*system)
    sequences, trace = Sequences(*sequences), Trace(*trace)
    width, size = sizes.width, sizes.state
    half, rows, keep, zeros = size // 2, encoded.size // width, sequences.keep, sequences.zeros
    count, steps = keep.shape
    for layer in range(sizes.layers):
        parameters, a, matrix = layer_of(weights, sizes, places, layer), system.a[layer], system.matrix[layer]
        u = encoded if layer == 0 else trace.out[layer - 1]
        p = trace.linear[layer]
        if sizes.dense:
            h = trace.states[layer]
            product(blas, N, T, rows, width, size, u, width, matrix, width, f32(0), h, size)
            path = h.reshape((count, steps, size))
            complex_scan(a.reshape((1, 1, size)), path, zeros, keep, False, path)
            product(blas, N, T, rows, size, width, h, size, parameters.C, size, f32(0), p, width)
        else:
            shape, form = (count, steps, width), (2, half // width, width)
            last = np.empty((count, 2, half // width, width), f32)
            channel_scan(
                a.reshape(form), matrix.reshape(form), u.reshape(shape), zeros.reshape(last.shape), keep,
                p.reshape(shape), last,
            )  # fmt: skip
        s, v = trace.active[layer], trace.mixed[layer]
        skip_silu(p, u, tiled(parameters.D), s)
        product(blas, N, T, rows, width, 2 * width, s, width, parameters.gate, width, f32(0), v, 2 * width)
        square, out = (rows, width), trace.out[layer]
        glu(v.reshape((rows, 2 * width)), parameters.gate_bias, u.reshape(square), out.reshape(square))


@numba.njit(**JIT)
def memory_backward(
    blas, weights, gradients, sizes, places, system, sequences, encoded, trace, scratch, slopes
):  # pragma: no cover (compiled)
    """Gradients of `memory_forward`: parameters' into `gradients`; slopes.memory (R H), the last output's, is used up, and what
    reaches the input is added to slopes.encoded.

    For each layer, from the last to the first, with dout given:

        gate      [dv, db] of the GLU (`glu_backward`),   dW = dv^T s,   ds = dv W
        silu      [dp, dD] and du = dout + D dp (`skip_silu_backward`; out = u + ... gives the first term)
        dense     p = C h:  dC = dp^T h,  dh = dp C;   l, da by the reversed scan (`complex_scan_backward`), dx = l
                  x = M u:  du += l M,  dM = l^T u;   M = gain B:  [dgain, dB] (`scale_rows_backward`)
        S4D       [du, da, dr] (`channel_scan_backward`);   p = Re(2 C gain h) + ..., so with z = 2 (dr1 - i dr2):
                  dC = conj(gain) z,   dgain = conj(C) z
        dynamics  from da and dgain (`discretize_backward`)

    and du is the layer below's dout.
    """
    sizes, places, system = Sizes(*sizes), Places(*places), System(*system)
    sequences, trace, scratch, slopes = Sequences(*sequences), Trace(*trace), Scratch(*scratch), Slopes(*slopes)
    width, size = sizes.width, sizes.state
    half, rows, keep, zeros = size // 2, encoded.size // width, sequences.keep, sequences.zeros
    count, steps = keep.shape
    double, square, wide = 2 * width, (rows, width), (rows, 2 * width)
    grad, below, grad_p, grad_v = slopes.memory, scratch.below, scratch.linear, scratch.mixed
    for reverse in range(sizes.layers):
        layer = sizes.layers - 1 - reverse
        parameters, a, matrix = layer_of(weights, sizes, places, layer), system.a[layer], system.matrix[layer]
        wanted, gain = layer_of(gradients, sizes, places, layer), system.gain[layer]
        u = encoded if layer == 0 else trace.out[layer - 1]
        p, s, v = trace.linear[layer], trace.active[layer], trace.mixed[layer]
        glu_backward(
            grad.reshape(square), v.reshape(wide), parameters.gate_bias, grad_v.reshape(wide), wanted.gate_bias
        )
        product(blas, T, N, double, rows, width, grad_v, double, s, width, f32(0), wanted.gate, width)
        product(blas, N, N, rows, double, width, grad_v, double, parameters.gate, width, f32(0), grad_p, width)
        sums, grad_skip = np.zeros(TILE * width, f32), wanted.D
        skip_silu_backward(grad_p, p, u, tiled(parameters.D), grad, True, below, sums)
        for tile in range(TILE):
            for j in range(width):
                grad_skip[j] += sums[tile * width + j]
        grad_a, grad_gain = np.zeros((2, half), f32), np.zeros((2, half), f32)
        if sizes.dense:
            flow = grad_v[: rows * size] if size <= 2 * width else np.empty(rows * size, f32)
            h = trace.states[layer]
            product(blas, N, N, rows, width, size, grad_p, width, parameters.C, size, f32(0), flow, size)
            product(blas, T, N, width, rows, size, grad_p, width, h, size, f32(0), wanted.C, size)
            shape = (count, steps, size)
            path, first = flow.reshape(shape), np.empty((count, size), f32)
            complex_scan_backward(
                a.reshape((1, 1, size)), h.reshape(shape), zeros, keep, path, path, grad_a.reshape((1, 1, size)), first
            )
            product(blas, N, N, rows, size, width, flow, size, matrix, width, f32(1), below, width)
            grad_matrix = np.empty(size * width, f32)
            product(blas, T, N, size, rows, width, flow, size, u, width, f32(0), grad_matrix, width)
            form = (2, half, width)
            scale_rows_backward(
                gain, parameters.B.reshape(form), grad_matrix.reshape(form), grad_gain, wanted.B.reshape(form)
            )
        else:
            path, form = (count, steps, width), (2, half // width, width)
            states = (count, 2, half // width, width)
            first, last = np.empty(states, f32), np.zeros(states, f32)
            grad_readout, c, grad_c = np.zeros((2, half), f32), parameters.C, wanted.C
            channel_scan_backward(
                a.reshape(form), matrix.reshape(form), u.reshape(path), zeros.reshape(states), keep,
                grad_p.reshape(path), last, below.reshape(path), grad_a.reshape(form), grad_readout.reshape(form), first,
            )  # fmt: skip
            for n in range(half):
                slope = complex(f32(2) * grad_readout[0, n], f32(-2) * grad_readout[1, n])
                to_c = slope * complex(gain[0, n], -gain[1, n])
                to_gain = slope * complex(c[n], -c[half + n])
                grad_c[n], grad_c[half + n] = to_c.real, to_c.imag
                grad_gain[0, n], grad_gain[1, n] = to_gain.real, to_gain.imag
        discretize_backward(
            sizes.method, parameters.log_decay, parameters.frequency, parameters.third, grad_a, grad_gain,
            wanted.log_decay, wanted.frequency, wanted.third,
        )  # fmt: skip
        grad, below = below, grad
    grad_encoded = slopes.encoded
    for j in range(grad.size):
        grad_encoded[j] += grad[j]


@numba.njit(**JIT)
def memory_step(blas, weights, sizes, places, system, encoded, step):  # pragma: no cover (compiled)
    """One step of every layer: encoded (B H) to step.out (B H); step.state changes in place. Nothing is kept: acting learns nothing."""
    width, size, dense = sizes.width, sizes.state, sizes.dense
    half, rows, p, v = size // 2, encoded.size // width, step.linear, step.mixed
    for layer in range(sizes.layers):
        parameters, a, matrix = layer_of(weights, sizes, places, layer), system.a[layer], system.matrix[layer]
        u = encoded if layer == 0 else step.out
        h, skip = step.state[layer], parameters.D
        if dense:
            for r in range(rows):
                row = h[r * size : (r + 1) * size]
                for n in range(half):
                    re, im = row[n], row[half + n]
                    row[n] = a[0, n] * re - a[1, n] * im
                    row[half + n] = a[0, n] * im + a[1, n] * re
            product(blas, N, T, rows, width, size, u, width, matrix, width, f32(1), h, size)
            product(blas, N, T, rows, size, width, h, size, parameters.C, size, f32(0), p, width)
        else:
            pairs = half // width
            for r in range(rows):
                y = p[r * width : (r + 1) * width]
                y[:] = f32(0)
                for pair in range(pairs):
                    for j in range(width):
                        n = pair * width + j
                        re, im = h[r * size + n], h[r * size + half + n]
                        new_re = a[0, n] * re - a[1, n] * im + u[r * width + j]
                        new_im = a[0, n] * im + a[1, n] * re
                        h[r * size + n], h[r * size + half + n] = new_re, new_im
                        y[j] += matrix[n] * new_re + matrix[half + n] * new_im
        for r in range(rows):
            y, ui = p[r * width : (r + 1) * width], u[r * width : (r + 1) * width]
            for j in range(width):
                y[j] += skip[j] * ui[j]
            for j in range(width):
                y[j] *= sigmoid(y[j])
        product(blas, N, T, rows, width, 2 * width, p, width, parameters.gate, width, f32(0), v, 2 * width)
        square = (rows, width)
        glu(v.reshape((rows, 2 * width)), parameters.gate_bias, u.reshape(square), step.out.reshape(square))


@functools.cache
def load_shared() -> None:
    """Compile or load by themselves, once a process, the kernels that the ones above call and that are called alone too.

    With a compiled function numba's cache keeps copies of those that it calls, optimised in their new place, and the copy that a
    process loads first serves all callers. Without this the last bits of a run would depend on whether its kernels were compiled
    or came from the cache, and the rerun of a first run would drift.
    """
    path, row, keep = np.zeros((1, 1, 2), f32), np.zeros((1, 2), f32), np.ones((1, 1), f32)
    complex_scan(path, path, row, keep, False, path.copy())
    complex_scan_backward(path, path, row, keep, path, path.copy(), path.copy(), row.copy())
    gain, matrix = np.zeros((2, 1), f32), np.zeros((2, 1, 1), f32)
    scale_rows(gain, matrix, matrix.copy())
    scale_rows_backward(gain, matrix, matrix, gain.copy(), matrix.copy())
