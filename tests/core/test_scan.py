"""The scan against the plain loop, against finite differences, and in all its forms."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from core.errors import InputError
from core.scan import _Scan, scan, scan_loop, scan_parallel, split_scan

BATCH, TIME, WIDTH = 3, 7, 4
SHAPES = list(itertools.product((1, BATCH), (1, TIME)))
forms = pytest.mark.parametrize(("is_complex", "shape"), list(itertools.product((False, True), SHAPES)))


def numbers(shape: tuple[int, int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(*shape, WIDTH, dtype=dtype, generator=generator) * 0.7
    x = torch.randn(BATCH, TIME, WIDTH, dtype=dtype, generator=generator)
    h0 = torch.randn(BATCH, WIDTH, dtype=dtype, generator=generator)
    keep = (torch.rand(BATCH, TIME, generator=generator) > 0.3).to(dtype)
    return a, x, h0, keep


@forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_and_the_parallel_form_equal_the_loop(
    is_complex: bool, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    a, x, h0, keep = numbers(shape, dtype)
    truth = scan_loop(a, x, h0, keep, is_complex)
    assert torch.allclose(split_scan(a, x, h0, keep, is_complex=is_complex), truth, atol=1e-6)
    assert torch.allclose(scan_parallel(a, x, h0, keep, is_complex), truth, atol=1e-6)


@forms
def test_the_reversed_forms_agree(is_complex: bool, shape: tuple[int, int]) -> None:
    a, x, h0, keep = numbers(shape)
    assert torch.allclose(
        _Scan.apply(a, x, h0, keep, is_complex, True), scan_parallel(a, x, h0, keep, is_complex, True)
    )


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("time", [1, 2, 3, 8, 31, 64, 100])
def test_the_parallel_form_holds_at_every_length(is_complex: bool, time: int) -> None:
    generator = torch.Generator().manual_seed(time)
    a, x = (torch.randn(2, time, WIDTH, dtype=torch.float64, generator=generator) * 0.6 for _ in range(2))
    h0, keep = torch.ones(2, WIDTH, dtype=torch.float64), torch.ones(2, time, dtype=torch.float64)
    truth = scan_loop(a, x, h0, keep, is_complex)
    assert torch.allclose(scan_parallel(a, x, h0, keep, is_complex), truth)


@forms
def test_first_and_second_derivatives_equal_finite_differences(is_complex: bool, shape: tuple[int, int]) -> None:
    a, x, h0, keep = numbers(shape)
    inputs = tuple(value.requires_grad_() for value in (a, x, h0))

    def run(a: Tensor, x: Tensor, h0: Tensor) -> Tensor:
        return split_scan(a, x, h0, keep, is_complex=is_complex)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@forms
def test_the_fused_backward_equals_the_differentiable_one(is_complex: bool, shape: tuple[int, int]) -> None:
    a, x, h0, keep = numbers(shape)
    inputs = [value.requires_grad_() for value in (a, x, h0)]
    loss = split_scan(*inputs, keep, is_complex=is_complex).pow(3).sum()
    fused = torch.autograd.grad(loss, inputs, retain_graph=True)
    plain = torch.autograd.grad(loss, inputs, create_graph=True)
    assert all(torch.allclose(one, other) for one, other in zip(fused, plain, strict=True))


@forms
@pytest.mark.parametrize("mapped", [(0, 0, 0), (None, 0, 0), (0, None, None), (1, 2, None)])
def test_vmap_equals_a_loop_over_the_mapped_axis(
    is_complex: bool, shape: tuple[int, int], mapped: tuple[int | None, ...]
) -> None:
    a, x, h0, keep = numbers(shape)
    batches = [
        value if axis is None else torch.stack([value, 0.5 * value, -value], axis)
        for value, axis in zip((a, x, h0), mapped, strict=True)
    ]

    def run(a: Tensor, x: Tensor, h0: Tensor) -> Tensor:
        return split_scan(a, x, h0, keep, is_complex=is_complex)

    def loss(a: Tensor, x: Tensor, h0: Tensor) -> Tensor:
        return run(a, x, h0).square().sum()

    got, slopes = vmap(run, mapped)(*batches), vmap(grad(loss, (0, 1, 2)), mapped)(*batches)
    for i in range(3):
        one = [v if axis is None else v.select(axis, i) for v, axis in zip(batches, mapped, strict=True)]
        assert torch.allclose(got[i], run(*one))
        leaves = [value.detach().requires_grad_() for value in one]
        for slope, truth in zip(slopes, torch.autograd.grad(loss(*leaves), leaves), strict=True):
            assert torch.allclose(slope[i], truth)


def test_complex_numbers_follow_the_recurrence_as_written() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, TIME, WIDTH, dtype=torch.complex128, generator=generator)
    h0 = torch.randn(BATCH, WIDTH, dtype=torch.complex128, generator=generator)
    resets = torch.rand(BATCH, TIME, generator=generator) < 0.3
    for a in (torch.randn(WIDTH, dtype=torch.complex128), torch.randn(BATCH, TIME, WIDTH, dtype=torch.complex128)):
        h, states = h0, []
        for t in range(TIME):
            h = (a if a.ndim == 1 else a[:, t]) * torch.where(resets[:, t, None], 0, h) + x[:, t]
            states.append(h)
        assert torch.allclose(scan(a, x, h0, resets), torch.stack(states, 1))


def test_a_real_scan_starts_from_zero_by_default() -> None:
    x = torch.ones(1, 4, 2)
    assert torch.allclose(scan(torch.tensor([0.5, 1.0]), x)[0, -1], torch.tensor([1.875, 4.0]))


def test_wrong_shapes_and_mixed_dtypes_are_refused() -> None:
    a, x, h0 = torch.ones(WIDTH), torch.ones(BATCH, TIME, WIDTH), torch.ones(BATCH, WIDTH)
    wrong = {
        "a": [(torch.ones(WIDTH + 1), x), (torch.ones(TIME, WIDTH), x), (a.double(), x)],
        "x": [(a, x[0])],
        "h0": [(a, x, h0[:1]), (a, x, h0.double())],
        "resets": [(a, x, h0, torch.ones(BATCH)), (a, x, h0, torch.ones(1, TIME))],
    }
    for name, calls in wrong.items():
        for call in calls:
            with pytest.raises(InputError, match=f"^{name}: got"):
                scan(*call)
    with pytest.raises(InputError, match="a: got"):
        split_scan(torch.ones(2, 1, WIDTH), x, is_complex=False)
    with pytest.raises(InputError, match="h0, keep: got"):
        split_scan(torch.ones(1, 1, WIDTH), x, h0[:2], is_complex=False)
    with pytest.raises(InputError, match="one dtype"):
        split_scan(torch.ones(1, 1, WIDTH), x, h0.double(), is_complex=False)
