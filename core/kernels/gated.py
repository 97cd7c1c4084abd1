"""A gated linear recurrence with a bounded output (minGRU, minLSTM): one layer over sequences, and a policy's whole memory of such layers.

A layer reads p = W u, G H numbers a row, from u (R, D): [v | z | o] of a minGRU (G = 3), [v | i | f | o] of a minLSTM (G = 4); k_t = 1 - reset_t:

    c = tanh(v + b_v),   q = sigmoid(o + b_o)
    g = sigmoid(z + b_z),   or   g = sigmoid(i + b_i) / (sigmoid(i + b_i) + sigmoid(f + b_f))
    h_t = k_t (1 - g_t) h_{t-1} + g_t c_t,   s = tanh(h),   y = q s

The plain references are `core.cells.mingru.mingru_reference` and `core.cells.minlstm.minlstm_reference`; tests/core/test_gated_cells.py holds
layer and gradient against them, the gradient in double precision too. Shapes: B sequences, T steps, R = B T rows, D inputs, H width; flat
memory and names as in `core.kernels.layout`. Where G = 3, `pre` is `gates` itself and `shut` is empty.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numba
import numpy as np

from core.kernels.blas import N, T, product
from core.kernels.jit import JIT, f32
from core.kernels.layout import Activations, Sequences, Sizes, Slopes
from core.kernels.pointwise import decay, sigmoid, tanh
from core.kernels.policy import encode, heads

GATED_PLACES = np.dtype([("weight", np.int64), ("bias", np.int64), ("inputs", np.int64)])
"""Where a layer's W (G H, D) and b (G H,) start in the flat vectors, and D."""


class GatedTrace(NamedTuple):
    """What the layers compute, and their backward wants. A row a layer."""

    pre: np.ndarray
    """(L, R G H) p; in the backward its gradients take its place. The same memory as gates where G = 3."""
    gates: np.ndarray
    """(L, R 3H) [c | g | q]."""
    shut: np.ndarray
    """(L, R 2H) [1 - sigmoid(i) | 1 - sigmoid(f)] of a minLSTM; (L, 0) of a minGRU."""
    states: np.ndarray
    """(L, R H) h."""
    squashed: np.ndarray
    """(L, R H) s."""
    out: np.ndarray
    """(L, R H) y."""


class GatedStep(NamedTuple):
    """What one acting step of B worlds needs of the memory."""

    state: np.ndarray
    """(L, B H), changed in place."""
    pre: np.ndarray
    """(B G H)."""
    out: np.ndarray
    """(B H) what the next layer or the heads read."""


@numba.njit(**JIT)
def share(i, f):  # pragma: no cover (compiled)
    """sigmoid(i) / (sigmoid(i) + sigmoid(f)) = (1 + e^-f) / (2 + e^-f + e^-i), over the largest of its terms, so that nothing overflows."""
    most = max(max(-i, -f), f32(0))
    one = decay(-most)
    top = one + decay(-f - most)
    return top / (top + one + decay(-i - most))


@numba.njit(**JIT)
def open_gates(pre, bias, gates, shut):  # pragma: no cover (compiled)
    """A row: pre (G H) to gates (3H), and shut (2H) where G = 4; in place where G = 3, which a loop over two names would not vectorise."""
    width = gates.size // 3
    if shut.size == 0:
        for n in range(width):
            pre[n] = tanh(pre[n] + bias[n])
        for n in range(width, 3 * width):
            pre[n] = sigmoid(pre[n] + bias[n])
        return
    for n in range(width):
        gates[n] = tanh(pre[n] + bias[n])
    for n in range(width, 2 * width):
        gates[n] = share(pre[n] + bias[n], pre[n + width] + bias[n + width])
    for n in range(width, 3 * width):
        shut[n - width] = sigmoid(-pre[n] - bias[n])
    for n in range(2 * width, 3 * width):
        gates[n] = sigmoid(pre[n + width] + bias[n + width])


@numba.njit(**JIT)
def gated_scan(pre, gates, shut, bias, h0, keep, states, squashed, out):  # pragma: no cover (compiled)
    """pre (B, T, G H) to gates (B, T, 3H) and shut (B, T, 2H or 0); h0 (B, H), keep (B, T); states, squashed and out (B, T, H)."""
    batch, time, width = out.shape
    h = np.empty(width, out.dtype)
    for b in range(batch):
        for n in range(width):
            h[n] = h0[b, n]
        for t in range(time):
            k = keep[b, t]
            open_gates(pre[b, t], bias, gates[b, t], shut[b, t])
            for n in range(width):
                g = gates[b, t, width + n]
                h[n] = k * (f32(1) - g) * h[n] + g * gates[b, t, n]
            for n in range(width):
                states[b, t, n] = h[n]
            for n in range(width):
                squashed[b, t, n] = tanh(h[n])
            for n in range(width):
                out[b, t, n] = gates[b, t, 2 * width + n] * squashed[b, t, n]


@numba.njit(**JIT)
def gated_scan_backward(
    gates, shut, states, squashed, h0, keep, grad, grad_last, slopes, grad_pre, grad_bias
):  # pragma: no cover (compiled)
    """Gradients of `gated_scan`: grad (B, T, H) is dy; slopes (B, T, 3H) becomes [dv | dz | do], and may be gates' memory; grad_pre (B, T, G H)
    becomes dp, which is slopes itself where G = 3.

    y = q s, s = tanh(h):   dq = dy s,   and dy q (1 - s^2) reaches h_t from outside
    h_t goes on through h_{t+1} = k_{t+1} (1 - g_{t+1}) h_t + ..., so its whole derivative l_t is a recurrence from the end:

        l_t = dy_t q_t (1 - s_t^2) + k_{t+1} (1 - g_{t+1}) l_{t+1},   l_T = dlast
        dg_t = l_t (c_t - k_t h_{t-1}),   dc_t = l_t g_t,   dh0 = k_0 (1 - g_0) l_0

    c = tanh(v), g = sigmoid(z), q = sigmoid(o):   dv = dc (1 - c^2),   dz = dg g (1 - g),   do = dq q (1 - q);   db = sum over rows
    G = 4: z stands for ln s(i) - ln s(f), whose sigmoid g is:   di = dz (1 - s(i)),   df = -dz (1 - s(f))

    grad_last (B, H) is overwritten by dh0; grad_bias (G H,) is added to.
    """
    batch, time, width = grad.shape
    flow, before, gate = np.empty(width, grad.dtype), np.empty(width, grad.dtype), np.empty(width, grad.dtype)
    one = f32(1)
    for b in range(batch):
        for n in range(width):
            flow[n] = grad_last[b, n]
        for i in range(time):
            t = time - 1 - i
            k = keep[b, t]
            for n in range(width):
                s = squashed[b, t, n]
                before[n] = grad[b, t, n] * gates[b, t, 2 * width + n]  # dy q
                flow[n] += before[n] * (one - s * s)
            for n in range(width):
                slopes[b, t, 2 * width + n] = before[n] * squashed[b, t, n] * (one - gates[b, t, 2 * width + n])
            if t > 0:
                for n in range(width):
                    before[n] = gates[b, t, n] - k * states[b, t - 1, n]
            else:
                for n in range(width):
                    before[n] = gates[b, t, n] - k * h0[b, n]
            for n in range(width):
                gate[n] = gates[b, t, width + n]
            for n in range(width):
                slopes[b, t, width + n] = flow[n] * before[n] * gate[n] * (one - gate[n])
            for n in range(width):
                c = gates[b, t, n]
                slopes[b, t, n] = flow[n] * gate[n] * (one - c * c)
            for n in range(width):
                flow[n] *= k * (one - gate[n])
            if shut.shape[2]:
                for n in range(width):
                    grad_pre[b, t, n] = slopes[b, t, n]
                for n in range(width):
                    grad_pre[b, t, width + n] = slopes[b, t, width + n] * shut[b, t, n]
                for n in range(width):
                    grad_pre[b, t, 2 * width + n] = -slopes[b, t, width + n] * shut[b, t, width + n]
                for n in range(width):
                    grad_pre[b, t, 3 * width + n] = slopes[b, t, 2 * width + n]
            for n in range(grad_bias.size):
                grad_bias[n] += grad_pre[b, t, n]
        for n in range(width):
            grad_last[b, n] = flow[n]


@numba.njit(**JIT)
def gated_step(pre, bias, state, out):  # pragma: no cover (compiled)
    """One step: pre (B, G H); state (B, H) moves on in place; out (B, H)."""
    batch, width = out.shape
    opened, shut = np.empty(3 * width, out.dtype), np.empty(2 * width * (pre.shape[1] // width - 3), out.dtype)
    for b in range(batch):
        gates = opened if shut.size else pre[b]
        open_gates(pre[b], bias, gates, shut)
        for n in range(width):
            g = gates[width + n]
            state[b, n] = (f32(1) - g) * state[b, n] + g * gates[n]
        for n in range(width):
            out[b, n] = gates[2 * width + n] * tanh(state[b, n])


# --------------------------------------------------------------------------------------- a policy's memory, in flat memory
@numba.njit(**JIT)
def gated_forward(blas, weights, sizes, layers, sequences, encoded, trace):  # pragma: no cover (compiled)
    """Every layer of `trace` from encoded (R E) and zero states; `layers` (L,) of GATED_PLACES."""
    sizes, sequences, trace = Sizes(*sizes), Sequences(*sequences), GatedTrace(*trace)
    width, keep, zeros = sizes.width, sequences.keep, sequences.zeros
    count, steps = keep.shape
    rows, path = count * steps, (count, steps, width)
    parts, doubled = trace.pre.shape[1] // rows, trace.shut.shape[1] // rows
    for layer in range(layers.size):
        place = layers[layer]
        u = encoded if layer == 0 else trace.out[layer - 1]
        p, inputs = trace.pre[layer], place.inputs
        product(blas, N, T, rows, inputs, parts, u, inputs, weights[place.weight :], inputs, f32(0), p, parts)
        gated_scan(
            p.reshape((count, steps, parts)), trace.gates[layer].reshape((count, steps, 3 * width)),
            trace.shut[layer].reshape((count, steps, doubled)), weights[place.bias : place.bias + parts], zeros, keep,
            trace.states[layer].reshape(path), trace.squashed[layer].reshape(path), trace.out[layer].reshape(path),
        )  # fmt: skip


@numba.njit(**JIT)
def gated_backward(
    blas, weights, gradients, sizes, layers, sequences, encoded, trace, spare, slopes
):  # pragma: no cover (compiled)
    """Gradients of `gated_forward`: parameters' into `gradients`; slopes.memory (R H), the last output's, is used up, and what
    reaches the input is added to slopes.encoded. spare (R H).

    For each layer, from the last to the first, with dy given: dp and db by `gated_scan_backward`;  p = u W^T:  dW = dp^T u,
    du = dp W, which is the layer below's dy.
    """
    sizes, sequences, trace = Sizes(*sizes), Sequences(*sequences), GatedTrace(*trace)
    slopes = Slopes(*slopes)
    width, keep, zeros = sizes.width, sequences.keep, sequences.zeros
    count, steps = keep.shape
    rows, path = count * steps, (count, steps, width)
    parts, doubled = trace.pre.shape[1] // rows, trace.shut.shape[1] // rows
    grad, below = slopes.memory, spare
    for reverse in range(layers.size):
        layer = layers.size - 1 - reverse
        place = layers[layer]
        u = encoded if layer == 0 else trace.out[layer - 1]
        p, inputs, last = trace.pre[layer], place.inputs, np.zeros((count, width), f32)
        gates = trace.gates[layer].reshape((count, steps, 3 * width))
        gated_scan_backward(
            gates, trace.shut[layer].reshape((count, steps, doubled)), trace.states[layer].reshape(path),
            trace.squashed[layer].reshape(path), zeros, keep, grad.reshape(path), last, gates,
            p.reshape((count, steps, parts)), gradients[place.bias : place.bias + parts],
        )  # fmt: skip
        product(blas, T, N, parts, rows, inputs, p, parts, u, inputs, f32(0), gradients[place.weight :], inputs)
        weight = weights[place.weight :]
        if layer == 0:
            product(blas, N, N, rows, parts, inputs, p, parts, weight, inputs, f32(1), slopes.encoded, inputs)
        else:
            product(blas, N, N, rows, parts, inputs, p, parts, weight, inputs, f32(0), below, inputs)
        grad, below = below, grad


@numba.njit(**JIT)
def gated_act(blas, weights, sizes, places, layers, step, activations, seen):  # pragma: no cover (compiled)
    """One acting step of a whole policy, as `core.kernels.policy.act`: the state moves on."""
    named, step, acted = Sizes(*sizes), GatedStep(*step), Activations(*activations)
    width, rows = named.width, acted.value.size
    parts = step.pre.size // rows
    encode(blas, weights, sizes, places, seen, acted.encoded)
    for layer in range(layers.size):
        place = layers[layer]
        u, inputs = acted.encoded if layer == 0 else step.out, place.inputs
        product(blas, N, T, rows, inputs, parts, u, inputs, weights[place.weight :], inputs, f32(0), step.pre, parts)
        gated_step(
            step.pre.reshape((rows, parts)), weights[place.bias : place.bias + parts],
            step.state[layer].reshape((rows, width)), step.out.reshape((rows, width)),
        )  # fmt: skip
    heads(blas, weights, sizes, places, step.out, activations)


@functools.cache
def load_gated() -> None:
    """Compile or load by themselves what is called both alone and by the kernels above; see `core.kernels.ssm_memory.load_shared`."""
    path, row, keep = np.zeros((1, 1, 1), f32), np.zeros((1, 1), f32), np.ones((1, 1), f32)
    pre, shut, bias = np.zeros((1, 1, 3), f32), np.zeros((1, 1, 0), f32), np.zeros(3, f32)
    gated_scan(pre, pre, shut, bias, row, keep, path, path.copy(), path.copy())
    gated_scan_backward(pre, shut, path, path, row, keep, path, row.copy(), pre, pre, bias.copy())
    gated_step(pre[0], bias, row, row.copy())
