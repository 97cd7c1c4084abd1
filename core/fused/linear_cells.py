"""The linear systems inside a state space block, y = C h: one dense system (S5, LRU), or one for each channel (S4D).

Each is a `LinearCell` of three functions: the plain reference, and a forward and backward on tensors without gradients that
`core.fused.ssm_block` runs. Shapes: u (B, T, H), state and last (B, S), mask (B, T) = 1 - resets, y (R, H) with R = B T.
tests/core/test_fused.py compares forward and backward with the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from core.fused.discretization import Discretized, discretize, discretize_arrays, split
from core.kernels.discretization import scale_rows, scale_rows_backward
from core.kernels.jit import as_numpy, f32
from core.kernels.recurrence import channel_scan, channel_scan_backward, complex_scan, complex_scan_backward
from core.scan import split_scan

Tensors = tuple[Tensor, ...]


class Computed(NamedTuple):
    """What a cell's forward gives."""

    y: Tensor
    """(R, H)."""
    last: Tensor
    """(B, S) the state after the last step."""
    states: Tensor | None
    """(B, T, S) all states, where the backward wants them."""
    kept: Any
    """What else it wants: `DenseKept` or `ChannelKept`."""


class LinearCell(NamedTuple):
    """A cell's functions. The backward adds into grad_u (R, H), and may overwrite grad_y and `spare`."""

    reference: Callable[..., tuple[Tensor, Tensor]]
    """(u, state, keep, method, *parameters) -> y (B, T, H), last."""
    forward: Callable[[Tensor, Tensor, np.ndarray, str, Tensors], Computed]
    """(u, state, mask, method, parameters)."""
    backward: Callable[..., tuple[Tensor, Tensors]]
    """(grad_y, grad_last, grad_u, u, state, mask, parameters, states, kept, spare) -> grad_state, parameters' gradients."""


# ------------------------------------------------------------------------------------------------------ a dense cell
def dense_system(log_decay: Tensor, frequency: Tensor, third: Tensor, b: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Split a (S,) and the discrete input matrix (S, H), gain included, of a dense cell."""
    a, gain = discretize(log_decay, frequency, third, method)
    b_re, b_im = b.chunk(2)
    re, im = gain.real.unsqueeze(1), gain.imag.unsqueeze(1)
    return split(a), torch.cat([re * b_re - im * b_im, re * b_im + im * b_re])


def dense_reference(
    u: Tensor, state: Tensor, keep: Tensor | None, method: str, *parameters: Tensor
) -> tuple[Tensor, Tensor]:
    """h_t = a h_{t-1} + gain B u_t, y = C h; parameters are (log_decay, frequency, third, B (S, H), C (H, S))."""
    a, b_bar = dense_system(*parameters[:4], method=method)
    states = split_scan(a.reshape(1, 1, -1), F.linear(u, b_bar), state, keep, is_complex=True)
    return F.linear(states, parameters[4]), states[:, -1]


class DenseKept(NamedTuple):
    """Of a dense cell's forward."""

    a: np.ndarray
    """(1, 1, S) split."""
    gain: np.ndarray
    """(2, N) split."""
    matrix: Tensor
    """(S, H) gain times B, split."""
    discretized: Discretized


def dense_forward(u: Tensor, state: Tensor, mask: np.ndarray, method: str, parameters: Tensors) -> Computed:
    """`dense_reference` with the drive's memory reused for the states."""
    log_decay, frequency, third, b, c = parameters
    batch, time, width = u.shape
    discretized = discretize_arrays(as_numpy(log_decay), as_numpy(frequency), as_numpy(third), method)
    half = discretized.a.shape[0]
    gain = np.stack([discretized.b.real, discretized.b.imag]).astype(f32)
    matrix = torch.empty(2 * half, width)
    shape = (2, half, width)
    scale_rows(gain, as_numpy(b).reshape(shape), matrix.numpy().reshape(shape))
    a = np.concatenate([discretized.a.real, discretized.a.imag]).astype(f32).reshape(1, 1, -1)
    states = torch.mm(u.reshape(batch * time, width), matrix.T).view(batch, time, 2 * half)
    complex_scan(a, states.numpy(), as_numpy(state), mask, False, states.numpy())  # the drive becomes states
    y = torch.mm(states.view(batch * time, -1), c.T)
    return Computed(y, states[:, -1].clone(), states, DenseKept(a, gain, matrix, discretized))


def dense_backward(
    grad_y: Tensor, grad_last: Tensor | None, grad_u: Tensor, u: Tensor, state: Tensor, mask: np.ndarray,
    parameters: Tensors, states: Tensor, kept: DenseKept, spare: Tensor | None,
) -> tuple[Tensor, Tensors]:  # fmt: skip
    """Gradients of `dense_forward`, as `core.kernels.ssm_memory.memory_backward` derives them:

    y = C h:      dC = dy^T h,   dh = dy C (and dlast on top of the last step's)
    scan:         l, da, dstate by `complex_scan_backward`
    x = M u:      du += l M,   dM = l^T u;   M = gain B:  [dgain, dB] by `scale_rows_backward`
    dynamics:     from da and dgain by `Discretized.pull_back`
    """
    *_, b, c = parameters
    rows, half = grad_y.shape[0], kept.gain.shape[1]
    # The gradient of the states, then in its place that of the drive; in memory that is done with, where it fits.
    needed = rows * 2 * half
    target = spare.view(-1)[:needed] if spare is not None and spare.numel() >= needed else torch.empty(needed)
    flow = torch.mm(grad_y, c, out=target.view(rows, 2 * half))
    grad_states = flow.view(states.shape)
    grad_c = torch.mm(grad_y.T, states.view(rows, -1))
    if grad_last is not None:
        grad_states[:, -1] += grad_last
    grad_a, grad_state, drive = np.zeros_like(kept.a), torch.empty_like(state), grad_states.numpy()
    complex_scan_backward(
        kept.a, states.numpy(), as_numpy(state), mask, drive, drive, grad_a, grad_state.numpy()
    )  # fmt: skip
    grad_u.addmm_(flow, kept.matrix)
    grad_matrix = torch.mm(flow.T, u.reshape(rows, -1))
    grad_gain, grad_b = np.empty_like(kept.gain), torch.empty_like(b)
    shape = (2, half, -1)
    scale_rows_backward(
        kept.gain, as_numpy(b).reshape(shape), grad_matrix.numpy().reshape(shape), grad_gain,
        grad_b.numpy().reshape(shape),
    )  # fmt: skip
    dynamics = kept.discretized.pull_back(
        grad_a[0, 0, :half] + 1j * grad_a[0, 0, half:], grad_gain[0] + 1j * grad_gain[1]
    )
    return grad_state, (*(torch.from_numpy(value.astype(f32, copy=False)) for value in dynamics), grad_b, grad_c)


# ---------------------------------------------------------------------------------------------- a cell each channel
def channel_system(
    log_decay: Tensor, frequency: Tensor, log_dt: Tensor, c: Tensor, method: str
) -> tuple[Tensor, Tensor]:
    """a and the readout (2, pairs, H) of S4D with y = sum r1 h_re + r2 h_im: the input gain folds into C (2, pairs, H)."""
    a, gain = discretize(log_decay, frequency, log_dt, method)
    readout = 2 * torch.complex(c[0], c[1]) * gain
    return torch.stack([a.real, a.imag]), torch.stack([readout.real, -readout.imag])


def channel_reference(
    u: Tensor, state: Tensor, keep: Tensor | None, method: str, *parameters: Tensor
) -> tuple[Tensor, Tensor]:
    """h_t = a h_{t-1} + u_t, y = 2 Re(C gain h); parameters are (log_decay, frequency, log_dt, C)."""
    a, readout = channel_system(*parameters, method=method)
    pairs = a.shape[1]
    drive = torch.cat([u.repeat(1, 1, pairs), torch.zeros_like(u).repeat(1, 1, pairs)], -1)
    states = split_scan(a.reshape(1, 1, -1), drive, state, keep, is_complex=True)
    return (states.unflatten(-1, (2 * pairs, u.shape[-1])) * readout.flatten(0, 1)).sum(-2), states[:, -1]


class ChannelKept(NamedTuple):
    """Of a channel cell's forward, all (2, pairs, H) split or (pairs, H) complex."""

    a: np.ndarray
    readout: np.ndarray
    c: np.ndarray
    discretized: Discretized


def channel_forward(u: Tensor, state: Tensor, mask: np.ndarray, method: str, parameters: Tensors) -> Computed:
    """`channel_reference` without holding all states."""
    log_decay, frequency, log_dt, c_split = parameters
    discretized = discretize_arrays(as_numpy(log_decay), as_numpy(frequency), as_numpy(log_dt), method)
    c_array = as_numpy(c_split)
    c = c_array[0] + 1j * c_array[1]
    readout = 2 * c * discretized.b
    a = np.stack([discretized.a.real, discretized.a.imag]).astype(f32)
    readout = np.stack([readout.real, -readout.imag]).astype(f32)
    y, last = torch.empty(u.shape), torch.empty(state.shape)
    shape = (state.shape[0], *a.shape)
    before, after = as_numpy(state).reshape(shape), last.numpy().reshape(shape)
    channel_scan(a, readout, as_numpy(u), before, mask, y.numpy(), after)
    return Computed(y.view(-1, u.shape[-1]), last, None, ChannelKept(a, readout, c, discretized))


def channel_backward(
    grad_y: Tensor, grad_last: Tensor | None, grad_u: Tensor, u: Tensor, state: Tensor, mask: np.ndarray,
    parameters: Tensors, states: Tensor | None, kept: ChannelKept, spare: Tensor | None,
) -> tuple[Tensor, Tensors]:  # fmt: skip
    """Gradients of `channel_forward`: [du, da, dr, dstate] by `channel_scan_backward`; with r = 2 C gain and

        y = r1 Re h + r2 Im h = Re(2 C gain h), so that d(C gain) = 2 (dr1 - i dr2) = z:   dC = conj(gain) z,  dgain = conj(C) z

    and the dynamics from da and dgain by `Discretized.pull_back`.
    """
    shape = (state.shape[0], *kept.a.shape)
    grad_a, grad_readout, grad_state = np.zeros_like(kept.a), np.zeros_like(kept.a), torch.empty(state.shape)
    grad_last = torch.zeros(state.shape) if grad_last is None else grad_last
    channel_scan_backward(
        kept.a, kept.readout, as_numpy(u), as_numpy(state).reshape(shape), mask, grad_y.numpy().reshape(u.shape),
        as_numpy(grad_last).reshape(shape), grad_u.numpy().reshape(u.shape), grad_a, grad_readout,
        grad_state.numpy().reshape(shape),
    )  # fmt: skip
    grad = 2 * (grad_readout[0] - 1j * grad_readout[1])
    grad_c = grad * kept.discretized.b.conj()
    dynamics = kept.discretized.pull_back(grad_a[0] + 1j * grad_a[1], grad * kept.c.conj())
    grads = (*dynamics, np.stack([grad_c.real, grad_c.imag]))
    return grad_state, tuple(torch.from_numpy(value.astype(f32, copy=False)) for value in grads)


CELLS = {
    "dense": LinearCell(dense_reference, dense_forward, dense_backward),
    "channel": LinearCell(channel_reference, channel_forward, channel_backward),
}
