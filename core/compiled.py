"""A whole policy as compiled functions on flat memory: forward over sequences, backward, and one acting step.

Autograd costs more than the arithmetic where a batch is a few hundred rows: a training step of two sequences of 200 steps
is 0.8 ms of matrix products, and was 3.5 ms in all. Here parameters and gradients are two flat vectors, activations live
in buffers made once, and the backward is written out. `core.policy.RecurrentPolicy` says what is computed and is the
truth that the tests hold this file against; what is not covered here (see `covered`) runs there.

Glossary: R rows (sequences x steps), I numbers read, E encoder_dim, H width of the memory, S state numbers a layer,
L layers, K head_dim, A actions. Matrices are flat, row by row. `w` are the parameters, `g` their gradients, `at` where
each one starts in both, `dims` the sizes.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from core.blas import N, T, product, sgemm_address
from core.fused import (
    TILE,
    _channels,
    _channels_backward,
    _glu,
    _glu_backward,
    _scale_rows,
    _scale_rows_backward,
    _skip_silu,
    _skip_silu_backward,
    f32,
    sigmoid,
)
from core.policy import RecurrentPolicy
from core.recurrent import tanh
from core.scan import JIT, complex_backward_kernel, complex_kernel
from core.ssm import DiagonalCell, StateSpaceModel

# Entries of `at`: where each parameter starts. A layer has LAYER of its own from FIRST on.
ENCODER, ENCODER_BIAS, HIDDEN, HIDDEN_BIAS, ACTOR, ACTOR_BIAS, CRITIC, CRITIC_BIAS, LOG_STD, FIRST = range(10)
DYNAMICS, INPUT, OUTPUT, SKIP, GATE, GATE_BIAS, LAYER = 0, 3, 4, 5, 6, 7, 8
METHODS = {"exponential": 0, "zoh": 1, "bilinear": 2}
ALIGNED = 16  # numbers: a parameter starts at a cache line


def covered(policy: RecurrentPolicy) -> bool:
    """Whether the encoder and the heads can run compiled: plain float32 on the CPU, one hidden layer in both heads."""
    return policy.shared and all(p.dtype == torch.float32 and p.device.type == "cpu" for p in policy.parameters())


def memory_covered(policy: RecurrentPolicy) -> bool:
    """Whether the memory can as well: state space blocks with a full gate and no norm, as wide as the encoder."""
    memory = policy.memory
    return (
        isinstance(memory, StateSpaceModel)
        and memory.encoder is None
        and memory.decoder is None
        and all(getattr(b, "gating", "") == "full" and getattr(b, "norm", b) is None for b in memory.blocks)
    )


def flat_layout(parameters: Sequence[Tensor]) -> tuple[list[int], int]:
    """Where each parameter starts in a flat vector, and the vector's size."""
    starts, size = [], 0
    for parameter in parameters:
        starts.append(size)
        size += -(-parameter.numel() // ALIGNED) * ALIGNED
    return starts, size


# ------------------------------------------------------------------------------------------------ encoder and heads
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
    """grad becomes that of the argument; grad_bias grows."""
    width = grad_bias.size
    for start in range(0, grad.size, width):
        gi, oi = grad[start : start + width], out[start : start + width]
        for j in range(width):
            gi[j] *= f32(1) - oi[j] * oi[j]
        for j in range(width):
            grad_bias[j] += gi[j]


@numba.njit(**JIT)
def encode(blas, w, at, dims, seen, encoded):  # pragma: no cover (compiled)
    """encoded (R, E) = tanh(W seen + b)."""
    inputs, width = dims[0], dims[1]
    rows = encoded.size // width
    product(blas, N, T, rows, inputs, width, seen, inputs, w[at[ENCODER] :], inputs, f32(0), encoded, width)
    bias_tanh(encoded, w[at[ENCODER_BIAS] : at[ENCODER_BIAS] + width])


@numba.njit(**JIT)
def encode_backward(blas, g, at, dims, seen, encoded, grad):  # pragma: no cover (compiled)
    """Gradients of the encoder's parameters; grad (R, E) is overwritten."""
    inputs, width = dims[0], dims[1]
    rows = encoded.size // width
    bias_tanh_backward(grad, encoded, g[at[ENCODER_BIAS] : at[ENCODER_BIAS] + width])
    product(blas, T, N, width, rows, inputs, grad, width, seen, inputs, f32(0), g[at[ENCODER] :], inputs)


@numba.njit(**JIT)
def heads(blas, w, at, dims, memory, encoded, hidden, mean, value):  # pragma: no cover (compiled)
    """hidden (R, 2K), mean (R, A), value (R,) from memory (R, H) and, where it skips, encoded (R, E)."""
    wide, width, inner, actions = dims[1], dims[2], dims[4], dims[5]
    features, rows = width + dims[7] * wide, value.size
    product(blas, N, T, rows, width, 2 * inner, memory, width, w[at[HIDDEN] :], features, f32(0), hidden, 2 * inner)
    if dims[7]:
        part = w[at[HIDDEN] + width :]
        product(blas, N, T, rows, wide, 2 * inner, encoded, wide, part, features, f32(1), hidden, 2 * inner)
    bias_tanh(hidden, w[at[HIDDEN_BIAS] : at[HIDDEN_BIAS] + 2 * inner])
    product(blas, N, T, rows, inner, actions, hidden, 2 * inner, w[at[ACTOR] :], inner, f32(0), mean, actions)
    bias, critic = w[at[ACTOR_BIAS] : at[ACTOR_BIAS] + actions], w[at[CRITIC] : at[CRITIC] + inner]
    offset = w[at[CRITIC_BIAS]]
    for r in range(rows):
        for j in range(actions):
            mean[r * actions + j] += bias[j]
        row = hidden[(2 * r + 1) * inner : (2 * r + 2) * inner]
        total = f32(0)
        for j in range(inner):
            total += row[j] * critic[j]
        value[r] = total + offset


@numba.njit(**JIT)
def heads_backward(
    blas, w, g, at, dims, memory, encoded, hidden, grad_mean, grad_value, grad_hidden, grad_memory, grad_encoded
):  # pragma: no cover (compiled)
    """Gradients of `heads`: of its parameters into g, grad_memory (R, H) and grad_encoded (R, E) overwritten."""
    wide, width, inner, actions = dims[1], dims[2], dims[4], dims[5]
    features, rows = width + dims[7] * wide, grad_value.size
    product(blas, T, N, actions, rows, inner, grad_mean, actions, hidden, 2 * inner, f32(0), g[at[ACTOR] :], inner)
    product(blas, N, N, rows, actions, inner, grad_mean, actions, w[at[ACTOR] :], inner, f32(0), grad_hidden, 2 * inner)
    critic, grad_critic = w[at[CRITIC] : at[CRITIC] + inner], g[at[CRITIC] : at[CRITIC] + inner]
    grad_bias = g[at[ACTOR_BIAS] : at[ACTOR_BIAS] + actions]
    offset = f32(0)
    for r in range(rows):
        slope = grad_value[r]
        offset += slope
        for j in range(actions):
            grad_bias[j] += grad_mean[r * actions + j]
        row, out = (
            hidden[(2 * r + 1) * inner : (2 * r + 2) * inner],
            grad_hidden[(2 * r + 1) * inner : (2 * r + 2) * inner],
        )
        for j in range(inner):
            grad_critic[j] += slope * row[j]
        for j in range(inner):
            out[j] = slope * critic[j]
    g[at[CRITIC_BIAS]] = offset
    bias_tanh_backward(grad_hidden, hidden, g[at[HIDDEN_BIAS] : at[HIDDEN_BIAS] + 2 * inner])
    double = 2 * inner
    product(blas, T, N, double, rows, width, grad_hidden, double, memory, width, f32(0), g[at[HIDDEN] :], features)
    product(blas, N, N, rows, double, width, grad_hidden, double, w[at[HIDDEN] :], features, f32(0), grad_memory, width)
    if dims[7]:
        part = at[HIDDEN] + width
        product(blas, T, N, double, rows, wide, grad_hidden, double, encoded, wide, f32(0), g[part:], features)
        product(blas, N, N, rows, double, wide, grad_hidden, double, w[part:], features, f32(0), grad_encoded, wide)
    else:
        grad_encoded[:] = f32(0)


# -------------------------------------------------------------------------------------------- the state space memory
@numba.njit(**JIT)
def _transition(method, log_decay, frequency, third):  # pragma: no cover (compiled)
    """One complex state of `core.fused.discretize`: lambda, scale, a, b, in double precision."""
    decay, scale = math.exp(log_decay), math.exp(third)
    if method == 0:
        value = complex(-decay, math.exp(frequency))
        return value, scale, cmath.exp(value), complex(scale, 0.0)
    value = complex(-decay, float(frequency))
    if method == 1:
        x, y = value.real * scale, value.imag * scale
        rise, sine = math.expm1(x), math.sin(y / 2)
        shifted = complex(rise * math.cos(y) - 2 * sine * sine, (rise + 1) * math.sin(y))
        return value, scale, shifted + 1, shifted / value
    q = 1 / (1 - value * (scale / 2))
    return value, scale, (1 + value * (scale / 2)) * q, scale * q


@numba.njit(**JIT)
def prepare(w, at, dims, system, gain, matrix):  # pragma: no cover (compiled)
    """Discretise every layer: system (L, 2, S/2) a, gain (L, 2, S/2), matrix (L, S*H): gain * B, or S4D's readout."""
    width, size, dense, method, thirds = dims[2], dims[3], dims[8], dims[9], dims[10]
    half = size // 2
    for layer in range(dims[6]):
        base = FIRST + layer * LAYER
        one, two, three = at[base], at[base + 1], at[base + 2]
        for n in range(half):
            _, _, a, b = _transition(method, w[one + n], w[two + n], w[three + n % thirds])
            system[layer, 0, n], system[layer, 1, n] = a.real, a.imag
            gain[layer, 0, n], gain[layer, 1, n] = b.real, b.imag
        if dense:
            start = at[base + INPUT]
            shape = (2, half, width)
            b_stored = w[start : start + size * width].reshape(shape)
            _scale_rows(gain[layer], b_stored, matrix[layer].reshape(shape))
        else:
            start = at[base + OUTPUT]
            for n in range(half):
                c_re, c_im = w[start + n], w[start + half + n]
                g_re, g_im = gain[layer, 0, n], gain[layer, 1, n]
                matrix[layer, n] = f32(2) * (c_re * g_re - c_im * g_im)
                matrix[layer, half + n] = f32(-2) * (c_re * g_im + c_im * g_re)


@numba.njit(**JIT)
def _pull_back(w, g, at, dims, layer, grad_a, grad_gain):  # pragma: no cover (compiled)
    """Gradients of the three dynamics parameters from those of a and gain (2, S/2)."""
    method, thirds = dims[9], dims[10]
    base = FIRST + layer * LAYER
    one, two, three = at[base], at[base + 1], at[base + 2]
    for n in range(grad_a.shape[1]):
        value, scale, a, b = _transition(method, w[one + n], w[two + n], w[three + n % thirds])
        to_a, to_b = complex(grad_a[0, n], grad_a[1, n]), complex(grad_gain[0, n], grad_gain[1, n])
        if method == 0:
            slope = to_a * a.conjugate()
            g[one + n] = slope.real * value.real
            g[two + n] = slope.imag * value.imag
            g[three + n % thirds] += to_b.real * scale
            continue
        if method == 1:
            a_value, a_scale, b_value, b_scale = scale * a, value * a, (scale * a - b) / value, a
        else:
            q = b / scale
            a_value, a_scale, b_value, b_scale = scale * q * q, value * q * q, scale * scale / 2 * q * q, q * q
        slope = to_a * a_value.conjugate() + to_b * b_value.conjugate()
        g[one + n] = slope.real * value.real
        g[two + n] = slope.imag
        g[three + n % thirds] += (to_a * a_scale.conjugate() + to_b * b_scale.conjugate()).real * scale


@numba.njit(**JIT)
def _tiled(vector):  # pragma: no cover (compiled)
    """The vector TILE times, as the pointwise kernels want it."""
    out = np.empty(TILE * vector.size, f32)
    for start in range(0, out.size, vector.size):
        out[start : start + vector.size] = vector
    return out


@numba.njit(**JIT)
def memory_forward(
    blas, w, at, dims, steps, system, matrix, encoded, keep, zeros, states, before, value, mixed, out
):  # pragma: no cover (compiled)
    """out (L, R H) of every layer and all that the backward wants, from encoded (R H) and zero states."""
    width, size, dense = dims[2], dims[3], dims[8]
    half, rows = size // 2, encoded.size // width
    count = rows // steps
    for layer in range(dims[6]):
        base = FIRST + layer * LAYER
        u = encoded if layer == 0 else out[layer - 1, : rows * width]
        y = before[layer, : rows * width]
        if dense:
            h = states[layer, : rows * size]
            product(blas, N, T, rows, width, size, u, width, matrix[layer], width, f32(0), h, size)
            path = h.reshape((count, steps, size))
            complex_kernel(system[layer].reshape((1, 1, size)), path, zeros[:count], keep[:count], False, path)
            product(blas, N, T, rows, size, width, h, size, w[at[base + OUTPUT] :], size, f32(0), y, width)
        else:
            shape, form = (count, steps, width), (2, half // width, width)
            last = np.empty((count, 2, half // width, width), f32)
            _channels(
                system[layer].reshape(form), matrix[layer, :size].reshape(form), u.reshape(shape),
                zeros[:count].reshape(last.shape), keep[:count], y.reshape(shape), last,
            )  # fmt: skip
        s = value[layer, : rows * width]
        _skip_silu(y, u, _tiled(w[at[base + SKIP] : at[base + SKIP] + width]), s)
        v = mixed[layer, : 2 * rows * width]
        product(blas, N, T, rows, width, 2 * width, s, width, w[at[base + GATE] :], width, f32(0), v, 2 * width)
        bias = w[at[base + GATE_BIAS] : at[base + GATE_BIAS] + 2 * width]
        shape2 = (rows, width)
        _glu(v.reshape((rows, 2 * width)), bias, u.reshape(shape2), out[layer, : rows * width].reshape(shape2))


@numba.njit(**JIT)
def memory_backward(
    blas, w, g, at, dims, steps, system, gain, matrix, encoded, keep, zeros, states, before, value, mixed, out,
    grad_mixed, grad, spare, third, grad_encoded,
):  # fmt: skip  # pragma: no cover (compiled)
    """Gradients of `memory_forward`: parameters' into g; grad (R H) of the last output in; added to grad_encoded."""
    width, size, dense = dims[2], dims[3], dims[8]
    half, rows = size // 2, encoded.size // width
    count = rows // steps
    matrix_shape = (rows, width)
    for reverse in range(dims[6]):
        layer = dims[6] - 1 - reverse
        base = FIRST + layer * LAYER
        u = encoded if layer == 0 else out[layer - 1, : rows * width]
        s, y, v = value[layer, : rows * width], before[layer, : rows * width], mixed[layer, : 2 * rows * width]
        bias = w[at[base + GATE_BIAS] : at[base + GATE_BIAS] + 2 * width]
        grad_bias = g[at[base + GATE_BIAS] : at[base + GATE_BIAS] + 2 * width]
        wide = (rows, 2 * width)
        _glu_backward(grad.reshape(matrix_shape), v.reshape(wide), bias, grad_mixed.reshape(wide), grad_bias)
        product(
            blas, T, N, 2 * width, rows, width, grad_mixed, 2 * width, s, width, f32(0), g[at[base + GATE] :], width
        )
        product(
            blas, N, N, rows, 2 * width, width, grad_mixed, 2 * width, w[at[base + GATE] :], width, f32(0), spare, width
        )
        start = at[base + SKIP]
        sums = np.zeros(TILE * width, f32)
        _skip_silu_backward(spare, y, u, _tiled(w[start : start + width]), grad, True, third, sums)
        for tile in range(TILE):
            for j in range(width):
                g[start + j] += sums[tile * width + j]
        grad_a, grad_gain = np.zeros((2, half), f32), np.zeros((2, half), f32)
        if dense:
            flow = grad_mixed[: rows * size] if size <= 2 * width else np.empty(rows * size, f32)
            h = states[layer, : rows * size]
            product(blas, N, N, rows, width, size, spare, width, w[at[base + OUTPUT] :], size, f32(0), flow, size)
            product(blas, T, N, width, rows, size, spare, width, h, size, f32(0), g[at[base + OUTPUT] :], size)
            shape = (count, steps, size)
            path, first = flow.reshape(shape), np.empty((count, size), f32)
            complex_backward_kernel(
                system[layer].reshape((1, 1, size)), h.reshape(shape), zeros[:count], keep[:count], path, path,
                grad_a.reshape((1, 1, size)), first,
            )  # fmt: skip
            product(blas, N, N, rows, size, width, flow, size, matrix[layer], width, f32(1), third, width)
            bar = np.empty(size * width, f32)
            product(blas, T, N, size, rows, width, flow, size, u, width, f32(0), bar, width)
            form = (2, half, width)
            start = at[base + INPUT]
            stop = start + size * width
            _scale_rows_backward(
                gain[layer], w[start:stop].reshape(form), bar.reshape(form), grad_gain, g[start:stop].reshape(form)
            )
        else:
            shape3, form3 = (count, steps, width), (2, half // width, width)
            first4, end = (
                np.empty((count, 2, half // width, width), f32),
                np.zeros((count, 2, half // width, width), f32),
            )
            grad_readout = np.zeros((2, half), f32)
            _channels_backward(
                system[layer].reshape(form3), matrix[layer, :size].reshape(form3), u.reshape(shape3),
                zeros[:count].reshape(first4.shape), keep[:count], spare.reshape(shape3), end,
                third.reshape(shape3), grad_a.reshape(form3), grad_readout.reshape(form3), first4,
            )  # fmt: skip
            start = at[base + OUTPUT]
            for n in range(half):
                slope = complex(f32(2) * grad_readout[0, n], f32(-2) * grad_readout[1, n])
                to_c = slope * complex(gain[layer, 0, n], -gain[layer, 1, n])
                to_gain = slope * complex(w[start + n], -w[start + half + n])
                g[start + n], g[start + half + n] = to_c.real, to_c.imag
                grad_gain[0, n], grad_gain[1, n] = to_gain.real, to_gain.imag
        _pull_back(w, g, at, dims, layer, grad_a, grad_gain)
        grad, third = third, grad
    for j in range(grad.size):
        grad_encoded[j] += grad[j]


@numba.njit(**JIT)
def memory_step(blas, w, at, dims, system, matrix, encoded, state, spare, mixed, out):  # pragma: no cover (compiled)
    """One step of every layer: encoded (B H) to out (B H); state (L, B S) changes in place."""
    width, size, dense = dims[2], dims[3], dims[8]
    half, rows = size // 2, encoded.size // width
    for layer in range(dims[6]):
        base = FIRST + layer * LAYER
        u = encoded if layer == 0 else out
        h = state[layer]
        if dense:
            for r in range(rows):
                row = h[r * size : (r + 1) * size]
                for n in range(half):
                    re, im = row[n], row[half + n]
                    row[n] = system[layer, 0, n] * re - system[layer, 1, n] * im
                    row[half + n] = system[layer, 0, n] * im + system[layer, 1, n] * re
            product(blas, N, T, rows, width, size, u, width, matrix[layer], width, f32(1), h, size)
            product(blas, N, T, rows, size, width, h, size, w[at[base + OUTPUT] :], size, f32(0), spare, width)
        else:
            pairs = half // width
            for r in range(rows):
                y = spare[r * width : (r + 1) * width]
                y[:] = f32(0)
                for p in range(pairs):
                    for j in range(width):
                        n = p * width + j
                        re, im = h[r * size + n], h[r * size + half + n]
                        new_re = system[layer, 0, n] * re - system[layer, 1, n] * im + u[r * width + j]
                        new_im = system[layer, 0, n] * im + system[layer, 1, n] * re
                        h[r * size + n], h[r * size + half + n] = new_re, new_im
                        y[j] += matrix[layer, n] * new_re + matrix[layer, half + n] * new_im
        skip = w[at[base + SKIP] : at[base + SKIP] + width]
        for r in range(rows):
            y, ui = spare[r * width : (r + 1) * width], u[r * width : (r + 1) * width]
            for j in range(width):
                y[j] += skip[j] * ui[j]
            for j in range(width):
                y[j] *= sigmoid(y[j])
        product(blas, N, T, rows, width, 2 * width, spare, width, w[at[base + GATE] :], width, f32(0), mixed, 2 * width)
        bias = w[at[base + GATE_BIAS] : at[base + GATE_BIAS] + 2 * width]
        shape = (rows, width)
        _glu(mixed.reshape((rows, 2 * width)), bias, u.reshape(shape), out.reshape(shape))


# --------------------------------------------------------------------------------------------- what Python holds of it
class CompiledPolicy:
    """A policy's sizes and the places of its parameters in flat memory, for the functions above.

    starts: where each parameter of the policy starts, by id. Raises nothing; ask `covered` first.
    """

    def __init__(self, policy: RecurrentPolicy, starts: Mapping[int, int]) -> None:
        self.blas = sgemm_address()
        self.whole = memory_covered(policy)
        spec, config = policy.action, policy.config
        inputs = policy.obs_dim + spec.size + 2
        size = layers = thirds = dense = method = 0
        at = [
            policy.encoder.weight, policy.encoder.bias, policy.heads_hidden.weight, policy.heads_hidden.bias,
            policy.actor.weight, policy.actor.bias, policy.critic.weight, policy.critic.bias, policy.log_std,
        ]  # fmt: skip
        if self.whole:
            blocks: list[Any] = list(policy.memory.blocks)  # pyright: ignore[reportArgumentType]
            cell = blocks[0].cell
            size, layers, dense = cell.state_size, len(blocks), int(isinstance(cell, DiagonalCell))
            method, thirds = METHODS[cell.method], getattr(cell, cell.dynamics[2]).numel()
            for block in blocks:
                cell = block.cell
                dynamics = [getattr(cell, name) for name in cell.dynamics]
                at += [*dynamics, cell.B if dense else None, cell.C, cell.D, block.gate.weight, block.gate.bias]
        self.at = np.array([-1 if part is None else starts[id(part)] for part in at], dtype=np.int64)
        width = config.model.hidden_dim
        self.dims = np.array(
            [inputs, config.encoder_dim, width, size, config.head_dim, spec.size, layers, config.skip, dense, method,
             max(thirds, 1)],
            dtype=np.int64,
        )  # fmt: skip
        self.system = np.zeros((layers, 2, size // 2), f32)
        self.gain = np.zeros((layers, 2, size // 2), f32)
        self.matrix = np.zeros((layers, size * (width if dense else 1)), f32)


@numba.njit(**JIT)
def _act(
    blas, w, at, dims, system, matrix, seen, encoded, state, spare, mixed, memory, hidden, mean, value
):  # pragma: no cover (compiled)
    """One acting step of the whole policy."""
    encode(blas, w, at, dims, seen, encoded)
    memory_step(blas, w, at, dims, system, matrix, encoded, state, spare, mixed, memory)
    heads(blas, w, at, dims, memory, encoded, hidden, mean, value)


class CompiledActing:
    """A policy acting step by step in `count` worlds, from zero memory, with the parameters it has now.

    Parameters are copied once: make a new object after they change.
    """

    def __init__(self, policy: RecurrentPolicy, count: int) -> None:
        parameters = list(policy.parameters())
        starts, size = flat_layout(parameters)
        self.policy, self.compiled = policy, CompiledPolicy(policy, dict(zip(map(id, parameters), starts, strict=True)))
        self.weights = np.zeros(size, f32)
        for parameter, start in zip(parameters, starts, strict=True):
            self.weights[start : start + parameter.numel()] = parameter.detach().numpy().reshape(-1)
        c = self.compiled
        _, wide, width, states, inner, actions, layers, *_ = c.dims.tolist()
        self.encoded, self.memory, self.spare, self.mixed, self.hidden = (
            np.empty(count * numbers, f32) for numbers in (wide, width, width, 2 * width, 2 * inner)
        )
        self.mean, self.value = np.empty((count, actions), f32), np.empty(count, f32)
        if c.whole:
            self.state = np.zeros((layers, count * states), f32)
            prepare(self.weights, c.at, c.dims, c.system, c.gain, c.matrix)
        else:
            self.carried = policy.init_hidden(count)

    def __call__(self, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """seen (B, I) float32: observation, last action, reward, done. Fresh mean or logits (B, A) and value (B,)."""
        c = self.compiled
        base, seen, mean = (c.blas, self.weights, c.at, c.dims), seen.reshape(-1), self.mean.reshape(-1)
        if c.whole:
            _act(
                *base, c.system, c.matrix, seen, self.encoded, self.state, self.spare, self.mixed, self.memory,
                self.hidden, mean, self.value,
            )  # fmt: skip
        else:
            encode(*base, seen, self.encoded)
            encoded = torch.from_numpy(self.encoded).view(self.value.size, -1)
            out, self.carried = self.policy.memory(encoded, self.carried)
            heads(*base, out.contiguous().numpy().reshape(-1), self.encoded, self.hidden, mean, self.value)
        return self.mean.copy(), self.value.copy()
