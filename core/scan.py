"""The linear recurrence h_t = a_t * h_{t-1} + x_t: fast on CPU and GPU, real and complex, differentiable twice.

Shapes: B batch, T time, N states. Complex numbers travel as real tensors of twice the width in split layout,
[real parts | imaginary parts], because contiguous halves vectorise and a hidden state stays one real tensor.

    forward   h_t = k_t a_t h_{t-1} + x_t                        h_{-1} = h0, k_t = 1 - reset_t
    backward  l_t = g_t + conj(k_{t+1} a_{t+1}) l_{t+1}          the same recurrence, reversed
              dx_t = l_t,  da_t = k_t conj(h_{t-1}) l_t,  dh0 = conj(k_0 a_0) l_0

The backward is written with the same differentiable scan, so that it can be differentiated again (second-order MAML),
and batched by `torch.func.vmap`; where no graph is being built it runs as one fused kernel.
On CPU a compiled kernel walks the sequence (`core.kernels.recurrence`); elsewhere a log-depth scan of torch operations does (Hillis and Steele, 1986;
Blelloch, 1990). `scan_loop` is the plain reference that the tests compare both with.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from core.errors import bad_value
from core.kernels.jit import as_numpy
from core.kernels.recurrence import complex_scan, complex_scan_backward, real_scan, real_scan_backward


# ------------------------------------------------------------------------------------------- the differentiable scan
class _Scan(torch.autograd.Function):
    """scan(a, x, h0, keep, is_complex, reverse) -> h; see the module's text for the mathematics.

    In reverse, x is g, h0 is ignored, and the result is l; its own derivative is again a forward scan.
    """

    @staticmethod
    def forward(a: Tensor, x: Tensor, h0: Tensor, keep: Tensor, is_complex: bool, reverse: bool) -> Tensor:
        if x.device.type == "cpu":
            out = torch.empty(x.shape, dtype=x.dtype)
            kernel = complex_scan if is_complex else real_scan
            kernel(as_numpy(a), as_numpy(x), as_numpy(h0), as_numpy(keep), reverse, out.numpy())
            return out
        return scan_parallel(a, x, h0, keep, is_complex, reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a, _, h0, keep, ctx.is_complex, ctx.reverse = inputs
        ctx.save_for_backward(a, h0, keep, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, h0, keep, h = ctx.saved_tensors
        (g,) = grads
        if not ctx.reverse and _fused_backward_allowed(g, h):
            dx, da, dh0 = torch.empty_like(h), torch.zeros_like(a), torch.empty_like(h0)
            kernel = complex_scan_backward if ctx.is_complex else real_scan_backward
            kernel(*(as_numpy(value) for value in (a, h, h0, keep, g, dx, da, dh0)))
            return da, dx, dh0, None, None, None
        times = _conj_times if ctx.is_complex else torch.mul
        if not ctx.reverse:
            adjoint = _Scan.apply(a, g, h0, keep, ctx.is_complex, True)
            previous = torch.cat([h0.unsqueeze(1), h[:, :-1]], 1)
            da = times(previous, adjoint) * keep.unsqueeze(-1)
            dh0 = times(a[:, 0], adjoint[:, 0]) * keep[:, :1]
            return _sum_to(da, a.shape), adjoint, dh0, None, None, None
        # l_t = g_t + conj(k a)_{t+1} l_{t+1} is, to its own gradient m, m_t = g'_t + (k a)_t m_{t-1}: a forward scan.
        adjoint = _Scan.apply(a, g, torch.zeros_like(h0), keep, ctx.is_complex, False)
        before, after = adjoint[:, :-1], h[:, 1:]
        # d/da of conj(a_s) l_s, paired with m_{s-1}: conj(conj(m)) l, that is conj(m_{s-1}) l_s as above.
        da = torch.cat([torch.zeros_like(h[:, :1]), times(before, after) * keep[:, 1:].unsqueeze(-1)], 1)
        return _sum_to(da, a.shape), adjoint, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        """Fold the mapped axis into the batch."""
        count = info.batch_size
        a, x, h0, keep, is_complex, reverse = args

        def front(tensor: Tensor, dim: int | None) -> Tensor:
            return tensor.expand(count, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

        x, h0, keep = (
            front(tensor, dim).flatten(0, 1) for tensor, dim in zip((x, h0, keep), in_dims[1:4], strict=True)
        )
        if in_dims[0] is not None:
            a = a.movedim(in_dims[0], 0)
            if a.shape[1] == 1:
                a = a.expand(count, x.shape[0] // count, *a.shape[2:])
            a = a.flatten(0, 1)
        elif a.shape[0] > 1:
            a = front(a, None).flatten(0, 1)
        out = _Scan.apply(a, x, h0, keep, is_complex, reverse)
        return out.unflatten(0, (count, -1)), 0


def _fused_backward_allowed(g: Tensor, h: Tensor) -> bool:
    """The fused kernel makes no graph: not for double backward, not under a torch.func transform, CPU only."""
    return (
        not torch.is_grad_enabled()
        and h.device.type == "cpu"
        and not is_functorch_wrapped_tensor(g)
        and not is_functorch_wrapped_tensor(h)
    )


def _conj_times(left: Tensor, right: Tensor) -> Tensor:
    """conj(left) * right in split layout."""
    l_re, l_im = left.chunk(2, -1)
    r_re, r_im = right.chunk(2, -1)
    return torch.cat([l_re * r_re + l_im * r_im, l_re * r_im - l_im * r_re], -1)


def _times(left: Tensor, right: Tensor) -> Tensor:
    """left * right in split layout."""
    l_re, l_im = left.chunk(2, -1)
    r_re, r_im = right.chunk(2, -1)
    return torch.cat([l_re * r_re - l_im * r_im, l_re * r_im + l_im * r_re], -1)


def _sum_to(value: Tensor, shape: torch.Size) -> Tensor:
    """Sum the axes along which a coefficient was shared."""
    axes = [axis for axis in (0, 1) if shape[axis] == 1 and value.shape[axis] > 1]
    return value.sum(axes, keepdim=True) if axes else value


def scan_parallel(a: Tensor, x: Tensor, h0: Tensor, keep: Tensor, is_complex: bool, reverse: bool = False) -> Tensor:
    """The scan in ceil(log2 T) passes of torch operations, for devices where a loop over T would crawl.

    After pass p every entry holds the composition of 2^p steps (Hillis and Steele, 1986). Arguments as `_Scan`.
    """
    times = _times if is_complex else torch.mul
    steps = x.shape[1]
    coefficient = (a * keep.unsqueeze(-1)).expand(x.shape)
    if reverse:
        if is_complex:
            re, im = coefficient.chunk(2, -1)
            coefficient = torch.cat([re, -im], -1)
        # In flipped time step i carries with the coefficient of step i - 1 of the flipped order; the first has none.
        coefficient = torch.cat([torch.zeros_like(coefficient[:, :1]), coefficient.flip(1)[:, :-1]], 1)
        state = x.flip(1)
    else:
        state = torch.cat([x[:, :1] + times(coefficient[:, :1], h0.unsqueeze(1)), x[:, 1:]], 1)
    shift = 1
    while shift < steps:
        carried = times(coefficient[:, shift:], state[:, :-shift])
        state = torch.cat([state[:, :shift], state[:, shift:] + carried], 1)
        composed = times(coefficient[:, shift:], coefficient[:, :-shift])
        coefficient = torch.cat([coefficient[:, :shift], composed], 1)
        shift *= 2
    return state.flip(1) if reverse else state


def scan_loop(a: Tensor, x: Tensor, h0: Tensor, keep: Tensor, is_complex: bool) -> Tensor:
    """The recurrence as it is written, one step at a time: the reference."""
    times = _times if is_complex else torch.mul
    coefficient = (a * keep.unsqueeze(-1)).expand(x.shape)
    states = []
    for t in range(x.shape[1]):
        h0 = times(coefficient[:, t], h0) + x[:, t]
        states.append(h0)
    return torch.stack(states, 1)


def split_scan(
    a: Tensor,
    x: Float[Tensor, "B T N"],
    h0: Tensor | None = None,
    keep: Tensor | None = None,
    *,
    is_complex: bool,
) -> Float[Tensor, "B T N"]:
    """All states h (B, T, N). a is (1 or B, 1 or T, N): constant, per step, per sequence or both.

    h0 (B, N), zeros if None; keep (B, T) = 1 - resets, ones if None. No broadcast but a's two axes.
    is_complex: N counts real numbers in split layout [re | im].
    Raises InputError for any other shape.
    """
    batch, time, width = x.shape
    if a.shape[2] != width or a.shape[0] not in (1, batch) or a.shape[1] not in (1, time):
        raise bad_value("a", tuple(a.shape), f"(1 or {batch}, 1 or {time}, {width})")
    if h0 is None:
        h0 = x.new_zeros(batch, width)
    if keep is None:
        keep = x.new_ones(batch, time)
    if h0.shape != (batch, width) or keep.shape != (batch, time):
        raise bad_value("h0, keep", (tuple(h0.shape), tuple(keep.shape)), f"{(batch, width)}, {(batch, time)}")
    if not a.dtype == x.dtype == h0.dtype == keep.dtype:
        raise bad_value("a, x, h0, keep", (a.dtype, x.dtype, h0.dtype, keep.dtype), "one dtype")
    return _Scan.apply(a, x, h0, keep, is_complex, False)  # pyright: ignore[reportReturnType]


def scan(
    a: Tensor, x: Tensor, h0: Tensor | None = None, resets: Tensor | None = None
) -> Float[Tensor, "B T N"] | Complex[Tensor, "B T N"]:
    """h_t = a_t h_{t-1} + x_t, all of them, (B, T, N), for x (B, T, N). Real or complex by the dtypes.

    a: (N,) constant or (B, T, N) per step. h0: (B, N), zeros if None. resets: (B, T), 1 clears h before step t.
    Raises InputError for other shapes or mixed dtypes.
    """
    if x.ndim != 3:
        raise bad_value("x", tuple(x.shape), "(B, T, N)")
    if a.shape != x.shape and a.shape != x.shape[-1:]:
        raise bad_value("a", tuple(a.shape), f"{tuple(x.shape[-1:])} or {tuple(x.shape)}")
    if a.dtype != x.dtype:
        raise bad_value("a", a.dtype, f"{x.dtype}, as x")
    if resets is not None and resets.shape != x.shape[:2]:
        raise bad_value("resets", tuple(resets.shape), f"{tuple(x.shape[:2])}")
    if h0 is not None and (h0.shape != (x.shape[0], x.shape[2]) or h0.dtype != x.dtype):
        raise bad_value("h0", (tuple(h0.shape), h0.dtype), f"{(x.shape[0], x.shape[2])} {x.dtype}")
    a = a if a.ndim == 3 else a.reshape(1, 1, -1)
    keep = None if resets is None else 1 - resets.to(x.real.dtype)
    if not x.is_complex():
        return split_scan(a, x, h0, keep, is_complex=False)
    split = [None if value is None else torch.cat([value.real, value.imag], -1) for value in (a, x, h0)]
    re, im = split_scan(split[0], split[1], split[2], keep, is_complex=True).chunk(2, -1)  # pyright: ignore[reportArgumentType]
    return torch.complex(re.contiguous(), im.contiguous())
