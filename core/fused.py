"""Fast paths of a state space block on the CPU in float32: few passes over memory, gradients written by hand.

Each fused function has a reference in plain differentiable operations that computes the same numbers. The fused one
runs where it can (CPU, float32, no torch.func transform); a second derivative is taken through the reference, so
nothing is lost to speed. The tests compare both, forwards and backwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from core.scan import JIT, as_numpy, complex_backward_kernel, complex_kernel, split_scan
from core.sequence_model import transforms_active

f32 = np.float32


def fused_allowed(x: Tensor) -> bool:
    """Whether the fused kernels may stand in for the reference."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and not transforms_active()


class Fused(torch.autograd.Function):
    """Base of the fused functions. Subclasses give `reference` and `fast_backward(ctx, saved, grads)`.

    A backward that must itself be differentiated (create_graph) replays the reference on the saved inputs.
    """

    reference: Callable[..., Any]
    fast_backward: Callable[..., tuple[Tensor | None, ...]]

    @classmethod
    def keep_inputs(cls, ctx: Any, inputs: tuple[Any, ...], *extra: Tensor) -> None:
        """Save tensor inputs (for the reference) and what the fast backward wants besides."""
        ctx.constants = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.is_tensor = [isinstance(value, Tensor) for value in inputs]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)), *extra)

    @classmethod
    def backward(cls, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = list(ctx.saved_tensors)
        inputs = [saved.pop(0) if tensor else value for tensor, value in zip(ctx.is_tensor, ctx.constants, strict=True)]
        if not torch.is_grad_enabled():
            with torch.no_grad():
                return cls.fast_backward(ctx, inputs, saved, grads)
        # Through fresh aliases: where one input was computed from another, only the direct dependence counts here.
        inputs = [value.view_as(value) if isinstance(value, Tensor) else value for value in inputs]
        wanted = [value for value, need in zip(inputs, ctx.needs_input_grad, strict=True) if need]
        outputs = cls.reference(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None]
        found = iter(
            torch.autograd.grad(
                [out for out, _ in pairs], wanted, [g for _, g in pairs], create_graph=True, allow_unused=True
            )
        )
        return tuple(next(found) if need else None for need in ctx.needs_input_grad)


class Native(Fused):
    """torch's own kernel, which cannot be differentiated twice, with the reference behind it for that."""

    native: Callable[..., tuple[Tensor, ...]]

    @classmethod
    def forward(cls, ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        ctx.leaves = [
            value.detach().requires_grad_(need) if isinstance(value, Tensor) else value
            for value, need in zip(inputs, ctx.needs_input_grad, strict=True)
        ]
        with torch.enable_grad():
            ctx.inner = cls.native(*ctx.leaves)
        cls.keep_inputs(ctx, inputs)
        return tuple(value.detach() for value in ctx.inner)

    @staticmethod
    def fast_backward(ctx: Any, inputs: list[Any], saved: list[Tensor], grads: tuple[Any, ...]) -> tuple[Any, ...]:
        pairs = [(out, grad) for out, grad in zip(ctx.inner, grads, strict=True) if grad is not None]
        wanted = [leaf for leaf, need in zip(ctx.leaves, ctx.needs_input_grad, strict=True) if need]
        found = iter(
            torch.autograd.grad(
                [out for out, _ in pairs], wanted, [grad for _, grad in pairs], retain_graph=True, allow_unused=True
            )
        )
        return tuple(next(found) if need else None for need in ctx.needs_input_grad)


# -------------------------------------------------------------------------------------- the pointwise part of a block
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
def _skip_silu(y, u, skip, out):  # pragma: no cover (compiled)
    """y += skip * u in place, out = silu(y)."""
    size, stretch = y.size, skip.size
    for start in range(0, size, stretch):
        end = min(start + stretch, size)
        yi, ui, oi = y[start:end], u[start:end], out[start:end]
        for j in range(end - start):
            yi[j] += skip[j] * ui[j]
        for j in range(end - start):
            oi[j] = yi[j] * sigmoid(yi[j])


@numba.njit(**JIT)
def _skip_silu_backward(grad, pre, u, skip, base, add_base, grad_u, grad_skip):  # pragma: no cover (compiled)
    """Gradients of `_skip_silu`: y's in place of `grad`; grad_u gets `base` added where add_base; grad_skip grows."""
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
def _glu(v, bias, residual, out):  # pragma: no cover (compiled)
    """out = residual + (v1 + b1) sigmoid(v2 + b2), matrices, v = [v1 | v2]."""
    rows, width = out.shape
    for i in range(rows):
        for j in range(width):
            out[i, j] = residual[i, j] + (v[i, j] + bias[j]) * sigmoid(v[i, width + j] + bias[width + j])


@numba.njit(**JIT)
def _glu_backward(grad, v, bias, grad_v, grad_bias):  # pragma: no cover (compiled)
    """Gradients of `_glu` but the residual's; grad_bias is added to."""
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
def _half_gate(v, bias, value, residual, out):  # pragma: no cover (compiled)
    """out = residual + value sigmoid(v + bias)."""
    size, stretch = v.size, bias.size
    for start in range(0, size, stretch):
        end = min(start + stretch, size)
        vi, hi, ri, oi = v[start:end], value[start:end], residual[start:end], out[start:end]
        for j in range(end - start):
            oi[j] = ri[j] + hi[j] * sigmoid(vi[j] + bias[j])


@numba.njit(**JIT)
def _half_gate_backward(grad, v, bias, value, grad_v, grad_value, grad_bias):  # pragma: no cover (compiled)
    """Gradients of `_half_gate` but the residual's; grad_bias is added to."""
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


def _tiled(vector: Tensor) -> np.ndarray:
    """A vector of the width, repeated for a stretch."""
    return np.concatenate((as_numpy(vector),) * TILE)


def _untiled(gradient: np.ndarray) -> Tensor:
    """The sum over a stretch's rows."""
    return torch.from_numpy(np.add.reduce(gradient.reshape(TILE, -1)))


def _flat(tensor: Tensor) -> np.ndarray:
    """All numbers in a row, sharing memory where it can."""
    return as_numpy(tensor).reshape(-1)


# ------------------------------------------------------------------------------------------------- the S4D recurrence
@numba.njit(**JIT)
def _channels(a, c, u, state, keep, y, last):  # pragma: no cover (compiled)
    """h = k a h + u and y = sum_p c1 h_re + c2 h_im for every channel; a, c (2, pairs, H), state (B, 2, pairs, H)."""
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
def _channels_backward(
    a, c, u, state, keep, grad_y, grad_last, grad_u, grad_a, grad_c, grad_state
):  # pragma: no cover (compiled)
    """Gradients of `_channels`; grad_u and grad_a, grad_c are added to. States are computed again, not stored."""
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


# ---------------------------------------------------------------------------------- discretisation, with its gradient
def discretize(log_decay: Tensor, frequency: Tensor, third: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Complex transition a and input gain b of lambda = -exp(log_decay) + i w.

    zoh: a = exp(lambda dt), b = (a - 1) / lambda, dt = exp(third) (S4D, section 2.2; S5, equation 6).
    bilinear: a = (1 + lambda dt / 2) / (1 - lambda dt / 2), b = dt / (1 - lambda dt / 2). For both w = frequency.
    exponential (LRU, section 3): a = exp(lambda), w = exp(frequency), b = exp(third).
    """
    decay, scale = -log_decay.exp(), third.exp()
    if method == "exponential":
        return torch.complex(decay, frequency.exp()).exp(), torch.complex(scale, torch.zeros_like(scale))
    eigenvalue = torch.complex(decay, frequency)
    if method == "zoh":
        shifted = torch.expm1(eigenvalue * scale)
        return shifted + 1, shifted / eigenvalue
    half = eigenvalue * (scale / 2)
    return (1 + half) / (1 - half), scale / (1 - half)


def _discretize_numpy(log_decay: np.ndarray, frequency: np.ndarray, third: np.ndarray, method: str) -> tuple[Any, ...]:
    """a, b and a closure from their gradients to the parameters'. Gradients of complex z are dL/dRe z + i dL/dIm z."""
    decay, scale = np.exp(log_decay), np.exp(third)
    if method == "exponential":
        w = np.exp(frequency)
        a: Any = np.exp(-decay + 1j * w)

        def pull_back_lru(grad_a: Any, grad_b: Any) -> tuple[np.ndarray, ...]:
            grad = grad_a * a.conj()
            return -grad.real * decay, grad.imag * w, grad_b.real * scale

        return a, scale + 0j * a, pull_back_lru
    value = -decay + 1j * frequency
    if method == "zoh":
        shifted = np.expm1(value * scale)
        a, b = shifted + 1, shifted / value
        a_value, a_scale, b_value, b_scale = scale * a, value * a, (scale * a - b) / value, a
    else:
        q = 1 / (1 - value * (scale / 2))
        a, b = (1 + value * (scale / 2)) * q, scale * q
        a_value, a_scale, b_value, b_scale = scale * q * q, value * q * q, scale * scale / 2 * q * q, q * q

    def pull_back(grad_a: Any, grad_b: Any) -> tuple[np.ndarray, ...]:
        grad = grad_a * a_value.conj() + grad_b * b_value.conj()
        grad_third = (grad_a * a_scale.conj() + grad_b * b_scale.conj()).real * scale
        return -grad.real * decay, grad.imag, grad_third.reshape(-1, *third.shape).sum(0)

    return a, b, pull_back


def split(value: Tensor, dim: int = -1) -> Tensor:
    """Complex numbers as [re | im] along `dim`."""
    return torch.cat([value.real, value.imag], dim)


# --------------------------------------------------------------------------------- cells: reference, forward, backward
# Each fused cell is a pair of functions on tensors without gradients:
#   forward(u, state, mask, method, parameters) -> y (rows, H), last (B, S), kept
#   backward(grad_y, grad_last, grad_u, u, state, mask, parameters, kept, spare) -> grad_state, parameter gradients;
# the backward adds into grad_u (rows, H) and may overwrite `spare`.
def dense_system(log_decay: Tensor, frequency: Tensor, third: Tensor, b: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Split a (S,) and the discrete input matrix (S, H), gain included, of a dense cell."""
    a, gain = discretize(log_decay, frequency, third, method)
    b_re, b_im = b.chunk(2)
    re, im = gain.real.unsqueeze(1), gain.imag.unsqueeze(1)
    return split(a), torch.cat([re * b_re - im * b_im, re * b_im + im * b_re])


def _dense_reference(
    u: Tensor, state: Tensor, keep: Tensor | None, method: str, *parameters: Tensor
) -> tuple[Tensor, Tensor]:
    a, b_bar = dense_system(*parameters[:4], method=method)
    states = split_scan(a.reshape(1, 1, -1), F.linear(u, b_bar), state, keep, is_complex=True)
    return F.linear(states, parameters[4]), states[:, -1]


@numba.njit(**JIT)
def _scale_rows(gain, b, out):  # pragma: no cover (compiled)
    """out = gain * b, split complex: gain (2, N), b and out (2, N, H)."""
    for n in range(b.shape[1]):
        g_re, g_im = gain[0, n], gain[1, n]
        b_re, b_im, o_re, o_im = b[0, n], b[1, n], out[0, n], out[1, n]
        for j in range(b.shape[2]):
            o_re[j] = g_re * b_re[j] - g_im * b_im[j]
            o_im[j] = g_re * b_im[j] + g_im * b_re[j]


@numba.njit(**JIT)
def _scale_rows_backward(gain, b, grad, grad_gain, grad_b):  # pragma: no cover (compiled)
    """Gradients of `_scale_rows`."""
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


def _dense_forward(
    u: Tensor, state: Tensor, mask: np.ndarray, method: str, parameters: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Any]:
    *dynamics, b, c = parameters
    batch, time, width = u.shape
    a, gain, pull_back = _discretize_numpy(*(as_numpy(value) for value in dynamics), method=method)
    half = a.shape[0]
    gain_split = np.stack([gain.real, gain.imag]).astype(f32)
    b_split = torch.empty(2 * half, width)
    shape = (2, half, width)
    _scale_rows(gain_split, as_numpy(b).reshape(shape), b_split.numpy().reshape(shape))
    a_split = np.concatenate([a.real, a.imag]).astype(f32).reshape(1, 1, -1)
    states = torch.mm(u.reshape(batch * time, width), b_split.T).view(batch, time, 2 * half)
    complex_kernel(a_split, states.numpy(), as_numpy(state), mask, False, states.numpy())  # the drive becomes states
    y = torch.mm(states.view(batch * time, -1), c.T)
    return y, states[:, -1].clone(), (states, (a_split, gain_split, b_split, pull_back))


def _dense_backward(
    grad_y: Tensor, grad_last: Tensor | None, grad_u: Tensor, u: Tensor, state: Tensor, mask: np.ndarray,
    parameters: tuple[Tensor, ...], kept: Any, spare: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
    states, (a_split, gain_split, b_split, pull_back) = kept
    *_, b, c = parameters
    rows, half = grad_y.shape[0], gain_split.shape[1]
    # The gradient of the states, then in its place that of the drive; in memory that is done with, where it fits.
    needed = rows * 2 * half
    target = spare.view(-1)[:needed] if spare is not None and spare.numel() >= needed else torch.empty(needed)
    flat = torch.mm(grad_y, c, out=target.view(rows, 2 * half))
    grad_states = flat.view(states.shape)
    grad_c = torch.mm(grad_y.T, states.view(rows, -1))
    if grad_last is not None:
        grad_states[:, -1] += grad_last
    grad_a = np.zeros_like(a_split)
    grad_state = torch.empty_like(state)
    drive = grad_states.numpy()
    numbers = (a_split, states.numpy(), as_numpy(state), mask)
    complex_backward_kernel(*numbers, drive, drive, grad_a, grad_state.numpy())
    grad_u.addmm_(flat, b_split)
    grad_bar = torch.mm(flat.T, u.reshape(rows, -1))
    grad_gain, grad_b = np.empty_like(gain_split), torch.empty_like(b)
    shape = (2, half, -1)
    _scale_rows_backward(
        gain_split, as_numpy(b).reshape(shape), grad_bar.numpy().reshape(shape), grad_gain,
        grad_b.numpy().reshape(shape),
    )  # fmt: skip
    dynamics = pull_back(grad_a[0, 0, :half] + 1j * grad_a[0, 0, half:], grad_gain[0] + 1j * grad_gain[1])
    return grad_state, (*(torch.from_numpy(value.astype(f32, copy=False)) for value in dynamics), grad_b, grad_c)


def channel_system(
    log_decay: Tensor, frequency: Tensor, log_dt: Tensor, c: Tensor, method: str
) -> tuple[Tensor, Tensor]:
    """a and the readout (2, pairs, H) of S4D with y = sum r1 h_re + r2 h_im: the input gain folds into C (2, pairs, H)."""
    a, gain = discretize(log_decay, frequency, log_dt, method)
    readout = 2 * torch.complex(c[0], c[1]) * gain
    return torch.stack([a.real, a.imag]), torch.stack([readout.real, -readout.imag])


def _channel_reference(
    u: Tensor, state: Tensor, keep: Tensor | None, method: str, *parameters: Tensor
) -> tuple[Tensor, Tensor]:
    a, readout = channel_system(*parameters, method=method)
    pairs = a.shape[1]
    drive = torch.cat([u.repeat(1, 1, pairs), torch.zeros_like(u).repeat(1, 1, pairs)], -1)
    states = split_scan(a.reshape(1, 1, -1), drive, state, keep, is_complex=True)
    return (states.unflatten(-1, (2 * pairs, u.shape[-1])) * readout.flatten(0, 1)).sum(-2), states[:, -1]


def _channel_forward(
    u: Tensor, state: Tensor, mask: np.ndarray, method: str, parameters: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Any]:
    *dynamics, c = parameters
    a, gain, pull_back = _discretize_numpy(*(as_numpy(value) for value in dynamics), method=method)
    c_array = as_numpy(c)
    c_complex = c_array[0] + 1j * c_array[1]
    readout = 2 * c_complex * gain
    a_split = np.stack([a.real, a.imag]).astype(f32)
    readout_split = np.stack([readout.real, -readout.imag]).astype(f32)
    y, last = torch.empty(u.shape), torch.empty(state.shape)
    shape = (state.shape[0], *a_split.shape)
    _channels(
        a_split,
        readout_split,
        as_numpy(u),
        as_numpy(state).reshape(shape),
        mask,
        y.numpy(),
        last.numpy().reshape(shape),
    )
    return y.view(-1, u.shape[-1]), last, (None, (a_split, readout_split, gain, c_complex, pull_back))


def _channel_backward(
    grad_y: Tensor, grad_last: Tensor | None, grad_u: Tensor, u: Tensor, state: Tensor, mask: np.ndarray,
    parameters: tuple[Tensor, ...], kept: Any, spare: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
    _, (a_split, readout_split, gain, c_complex, pull_back) = kept
    shape = (state.shape[0], *a_split.shape)
    grad_a, grad_readout, grad_state = np.zeros_like(a_split), np.zeros_like(a_split), torch.empty(state.shape)
    grad_last = torch.zeros(state.shape) if grad_last is None else grad_last
    _channels_backward(
        a_split, readout_split, as_numpy(u), as_numpy(state).reshape(shape), mask, grad_y.numpy().reshape(u.shape),
        as_numpy(grad_last).reshape(shape), grad_u.numpy().reshape(u.shape), grad_a, grad_readout,
        grad_state.numpy().reshape(shape),
    )  # fmt: skip
    grad = 2 * (grad_readout[0] - 1j * grad_readout[1])
    grad_c = grad * gain.conj()
    dynamics = pull_back(grad_a[0] + 1j * grad_a[1], grad * c_complex.conj())
    grads = (*dynamics, np.stack([grad_c.real, grad_c.imag]))
    return grad_state, tuple(torch.from_numpy(value.astype(f32, copy=False)) for value in grads)


CELLS = {
    "dense": (_dense_reference, _dense_forward, _dense_backward),
    "channel": (_channel_reference, _channel_forward, _channel_backward),
}


# --------------------------------------------------------------------------------------------------- the whole block
def _block_reference(
    form: str,
    method: str,
    u: Tensor,
    residual: Tensor | None,
    state: Tensor,
    keep: Tensor | None,
    skip: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *parameters: Tensor,
) -> tuple[Tensor, Tensor]:
    y, last = CELLS[form][0](u, state, keep, method, *parameters)
    value = F.silu(torch.addcmul(y, u, skip))
    residual = u if residual is None else residual
    if weight is None:
        return residual + value, last
    mixed = F.linear(value, weight, bias)
    if mixed.shape[-1] == value.shape[-1]:
        return residual + value * torch.sigmoid(mixed), last
    return residual + F.glu(mixed), last


class _Block(Fused):
    """`ssm_block` as one function: saves passes over memory, additions of gradients and Python's own cost."""

    reference = staticmethod(_block_reference)

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        form, method, u, residual, state, keep, skip, weight, bias, *parameters = inputs
        u = u.contiguous()
        rows, width = u.shape[0] * u.shape[1], u.shape[2]
        mask = np.ones(u.shape[:2], f32) if keep is None else as_numpy(keep)
        y, last, (states, ctx.kept) = CELLS[form][1](u, state, mask, method, tuple(parameters))
        value, out = torch.empty(rows, width), torch.empty(u.shape)
        _skip_silu(_flat(y), _flat(u), _tiled(skip), _flat(value))
        pre = y
        base = u if residual is None else residual
        v = None
        if weight is None:
            torch.add(base, value.view(u.shape), out=out)
        else:
            v = torch.mm(value, weight.T)
            if weight.shape[0] == width:
                _half_gate(_flat(v), _tiled(bias), _flat(value), _flat(base), _flat(out))
            else:
                _glu(v.numpy(), as_numpy(bias), _rows(base), _rows(out))
        ctx.extra = [value is not None for value in (states, pre, value, v)]
        _Block.keep_inputs(ctx, inputs, *(value for value in (states, pre, value, v) if value is not None))
        return out, last

    @staticmethod
    def fast_backward(ctx: Any, inputs: list[Any], saved: list[Tensor], grads: tuple[Any, ...]) -> tuple[Any, ...]:
        form, _, u, residual, state, keep, skip, weight, bias, *parameters = inputs
        extra = iter(saved)
        states, pre, value, v = (next(extra) if present else None for present in ctx.extra)
        assert pre is not None
        assert value is not None
        grad, grad_last = grads
        grad = torch.zeros(u.shape) if grad is None else grad.contiguous()
        mask = np.ones(u.shape[:2], f32) if keep is None else as_numpy(keep)
        grad_weight = grad_bias = None
        grad_v = None
        if v is None:
            grad_value = grad.reshape(pre.shape).clone()  # it is overwritten below, and `grad` is not ours
        else:
            grad_v = torch.empty_like(v)
            if weight.shape[0] == pre.shape[1]:
                grad_value = torch.empty_like(pre)
                tiled = _tiled(bias)
                sums = np.zeros_like(tiled)
                _half_gate_backward(_flat(grad), _flat(v), tiled, _flat(value), _flat(grad_v), _flat(grad_value), sums)
                grad_bias = _untiled(sums)
                grad_value.addmm_(grad_v, weight)
            else:
                grad_bias = torch.zeros_like(bias)
                _glu_backward(_rows(grad), v.numpy(), as_numpy(bias), grad_v.numpy(), grad_bias.numpy())
                grad_value = torch.mm(grad_v, weight)
            grad_weight = torch.mm(grad_v.T, value)
        grad_u = torch.empty_like(pre)
        u = u.contiguous()
        tiled = _tiled(skip)
        sums = np.zeros_like(tiled)
        base = _flat(grad)
        _skip_silu_backward(_flat(grad_value), _flat(pre), _flat(u), tiled, base, residual is None, _flat(grad_u), sums)
        grad_skip = _untiled(sums)
        grad_state, grad_parameters = CELLS[form][2](
            grad_value, grad_last, grad_u, u, state, mask, tuple(parameters), (states, ctx.kept), grad_v
        )
        grad_residual = None if residual is None else grad
        ends = (grad_u.view(u.shape), grad_residual, grad_state, None, grad_skip, grad_weight, grad_bias)
        return None, None, *ends, *grad_parameters


def _rows(tensor: Tensor) -> np.ndarray:
    """(..., H) as a C-contiguous matrix that shares memory where it can."""
    return as_numpy(tensor).reshape(-1, tensor.shape[-1])


def ssm_block(
    form: str,
    method: str,
    u: Tensor,
    residual: Tensor | None,
    state: Tensor,
    keep: Tensor | None,
    skip: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *parameters: Tensor,
) -> tuple[Tensor, Tensor]:
    """residual + gate(silu(y + skip * u)) (B, T, H), and the last state (B, S); y = C h of a linear cell.

    form: "dense" with parameters (log_decay, frequency, third, B, C), or "channel" with (log_decay, frequency,
    log_dt, C). residual None means u. weight (2H, H): GLU of both halves; (H, H): value * sigmoid(weight value + bias);
    None: no gate.
    """
    run = _Block.apply if fused_allowed(u) else _block_reference
    return run(form, method, u, residual, state, keep, skip, weight, bias, *parameters)
