"""Each kernel against torch in double precision, and what keeps kernels apart from the rest."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

import core.kernels
from core.fused.discretization import discretize, discretize_arrays
from core.kernels import pointwise
from core.kernels.discretization import METHODS, discretize_backward, scale_rows, scale_rows_backward, transition
from core.kernels.layout import LAYER_PLACES, Layer, Places, Sizes, layer_of
from core.mamba import _Conv, _Selective, conv_reference, selective_reference

ROWS, WIDTH = 21, 6
FOLDER = Path(core.kernels.__file__).parent


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients(output: Tensor, slope: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad((output * slope.double()).sum(), inputs))


def close(found: np.ndarray, true: Tensor, tolerance: float = 2e-6) -> None:
    truth = true.detach().numpy().reshape(found.shape)
    assert np.abs(found - truth).max(initial=0) <= tolerance * max(1.0, np.abs(truth).max(initial=0))


# ------------------------------------------------------------------------------------------------------------- alone
def test_kernels_import_nothing_of_the_project_outside_their_folder() -> None:
    """So the hash of the folder in the cache's name (`experiments.runs.paths`) covers all that is compiled."""
    for file in sorted(FOLDER.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            own = [name for name in names if name.split(".")[0] in ("core", "meta_rl", "env_runner", "adaptation")]
            assert all(name.startswith("core.kernels.") for name in own), (file.name, own)


def test_the_cache_folders_name_changes_with_any_kernel_and_with_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments.runs import paths

    kernels = tmp_path / "core" / "kernels"
    kernels.mkdir(parents=True)
    monkeypatch.setattr(paths, "CHECKOUT", tmp_path)
    names = []
    for file, text in (("core/kernels/a.py", "1"), ("core/kernels/deep/b.py", "1"), ("core/ssm.py", "1")):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
        paths._kernels.cache_clear()
        names.append(paths._kernels())
    paths._kernels.cache_clear()
    assert names[0] != names[1]
    assert names[1] == names[2]


# --------------------------------------------------------------------------------------------------------- pointwise
def test_rational_functions_are_those_of_torch_to_their_stated_error() -> None:
    for value in np.linspace(-20, 20, 401, dtype=np.float32):
        x = torch.tensor(value, dtype=torch.float64)
        assert abs(pointwise.tanh(value) - float(x.tanh())) <= 3e-7
        assert abs(pointwise.sigmoid(value) - float(x.sigmoid())) <= 2e-7
        if value <= 0:
            assert abs(pointwise.decay(value) - float(x.exp())) <= 2e-7


def test_tanh_with_a_bias_has_torchs_gradient() -> None:
    x, bias, slope = draw(ROWS, WIDTH), draw(WIDTH, seed=1), draw(ROWS, WIDTH, seed=2)
    leaves = [x.double().requires_grad_(), bias.double().requires_grad_()]
    truth = torch.tanh(leaves[0] + leaves[1])
    out, grad, grad_bias = x.numpy().reshape(-1).copy(), slope.numpy().reshape(-1).copy(), np.zeros(WIDTH, np.float32)
    pointwise.bias_tanh(out, bias.numpy())
    pointwise.bias_tanh_backward(grad, out, grad_bias)
    close(out, truth)
    for found, true in zip((grad, grad_bias), gradients(truth, slope, leaves), strict=True):
        close(found, true)


def test_skip_and_silu_have_torchs_gradient() -> None:
    y, u, skip, slope = draw(ROWS, WIDTH), draw(ROWS, WIDTH, seed=1), draw(WIDTH, seed=2), draw(ROWS, WIDTH, seed=3)
    leaves = [value.double().requires_grad_() for value in (y, u, skip)]
    truth = F.silu(leaves[0] + leaves[2] * leaves[1])
    tiled, base = pointwise.tiled(skip.numpy()), draw(ROWS * WIDTH, seed=4).numpy()
    pre, inputs = y.numpy().reshape(-1).copy(), u.numpy().reshape(-1)
    out, grad_u, sums = np.empty_like(pre), np.empty_like(pre), np.zeros_like(tiled)
    pointwise.skip_silu(pre, inputs, tiled, out)
    close(out, truth)
    true_y, true_u, true_skip = gradients(truth, slope, leaves)
    for add_base in (False, True):
        grad, sums = slope.numpy().reshape(-1).copy(), np.zeros_like(tiled)
        pointwise.skip_silu_backward(grad, pre, inputs, tiled, base, add_base, grad_u, sums)
        close(grad, true_y)
        close(grad_u, true_u.reshape(-1) + (torch.from_numpy(base) if add_base else 0))
        close(sums.reshape(-1, WIDTH).sum(0), true_skip)


def test_both_gates_have_torchs_gradient() -> None:
    residual, slope = draw(ROWS, WIDTH).numpy(), draw(ROWS, WIDTH, seed=1)
    v, bias, value = draw(ROWS, 2 * WIDTH, seed=2), draw(2 * WIDTH, seed=3), draw(ROWS, WIDTH, seed=4)
    out = np.empty((ROWS, WIDTH), np.float32)

    leaves = [v.double().requires_grad_(), bias.double().requires_grad_()]
    truth = F.glu(leaves[0] + leaves[1])
    grad_v, grad_bias = np.empty_like(v.numpy()), np.zeros(2 * WIDTH, np.float32)
    pointwise.glu(v.numpy(), bias.numpy(), residual, out)
    pointwise.glu_backward(slope.numpy(), v.numpy(), bias.numpy(), grad_v, grad_bias)
    close(out - residual, truth)
    for found, true in zip((grad_v, grad_bias), gradients(truth, slope, leaves), strict=True):
        close(found, true)

    half, half_bias = v[:, :WIDTH].contiguous(), bias[:WIDTH]
    leaves = [part.double().requires_grad_() for part in (half, half_bias, value)]
    truth = leaves[2] * torch.sigmoid(leaves[0] + leaves[1])
    tiled, flat = pointwise.tiled(half_bias.numpy()), out.reshape(-1)
    grad_v, grad_value, sums = np.empty_like(flat), np.empty_like(flat), np.zeros_like(tiled)
    given = (half.numpy().reshape(-1), tiled, value.numpy().reshape(-1))
    pointwise.half_gate(*given, residual.reshape(-1), flat)
    pointwise.half_gate_backward(slope.numpy().reshape(-1), *given, grad_v, grad_value, sums)
    close(out - residual, truth)
    found = (grad_v, sums.reshape(-1, WIDTH).sum(0), grad_value)
    for one, true in zip(found, gradients(truth, slope, leaves), strict=True):
        close(one, true)


# ---------------------------------------------------------------------------------------------------- discretisation
SYSTEMS = [("exponential", False), *((method, shared) for method in ("zoh", "bilinear") for shared in (False, True))]


@pytest.mark.parametrize(("method", "shared"), SYSTEMS)
def test_discretised_systems_and_their_gradients_are_torchs_in_double_precision(method: str, shared: bool) -> None:
    """By state as the compiled policy does it, and on whole arrays as the fused block does; S4D's pairs share a step."""
    pairs, width = 3, WIDTH
    log_decay, frequency = draw(pairs, width, seed=1) - 1, draw(pairs, width, seed=2)
    third = draw(width, seed=3) - 2 if shared else draw(pairs, width, seed=3) - 2
    leaves = [part.double().requires_grad_() for part in (log_decay, frequency, third)]
    values = [leaf.detach().float().numpy() for leaf in leaves]
    a, b = discretize(*leaves, method=method)
    to_a, to_b = draw(2, pairs, width, seed=4), draw(2, pairs, width, seed=5)
    loss = (a.real * to_a[0] + a.imag * to_a[1] + b.real * to_b[0] + b.imag * to_b[1]).sum()
    truth = torch.autograd.grad(loss, leaves)

    flat = [value.reshape(-1) for value in values]
    steps = [
        transition(METHODS[method], flat[0][n], flat[1][n], flat[2][n % flat[2].size]) for n in range(pairs * width)
    ]
    close(np.array([step[2] for step in steps]), a.flatten())
    close(np.array([step[3] for step in steps]), b.flatten())
    slopes = [np.zeros_like(value) for value in flat]
    discretize_backward(METHODS[method], *flat, to_a.numpy().reshape(2, -1), to_b.numpy().reshape(2, -1), *slopes)
    arrays = discretize_arrays(values[0], values[1], values[2], method)
    close(arrays.a, a, 5e-6)
    close(arrays.b, b, 5e-6)
    on_arrays = arrays.pull_back(to_a[0].numpy() + 1j * to_a[1].numpy(), to_b[0].numpy() + 1j * to_b[1].numpy())
    for one, other, true in zip(slopes, on_arrays, truth, strict=True):
        close(one, true, 1e-5)
        close(other, true, 1e-5)


def test_a_gain_times_rows_has_torchs_gradient() -> None:
    gain, b, slope = draw(2, 4), draw(2, 4, WIDTH, seed=1), draw(2, 4, WIDTH, seed=2)
    leaves = [gain.double().requires_grad_(), b.double().requires_grad_()]
    product = torch.complex(*leaves[0]).unsqueeze(1) * torch.complex(*leaves[1])
    truth = torch.stack([product.real, product.imag])
    out, grad_gain, grad_b = np.empty_like(b.numpy()), np.empty_like(gain.numpy()), np.empty_like(b.numpy())
    scale_rows(gain.numpy(), b.numpy(), out)
    scale_rows_backward(gain.numpy(), b.numpy(), slope.numpy(), grad_gain, grad_b)
    close(out, truth)
    for found, true in zip((grad_gain, grad_b), gradients(truth, slope, leaves), strict=True):
        close(found, true)


# ------------------------------------------------------------------------------------------------------------- mamba
def compared(fused: Any, reference: Any, inputs: list[Tensor | None], reset: bool) -> None:
    """Outputs and gradients of a fused function in single precision, and of its reference in double."""
    results = []
    for run, dtype in ((fused.apply, torch.float32), (reference, torch.float64)):
        given = [None if value is None else value.to(dtype).requires_grad_() for value in inputs]
        keep = (torch.rand(3, 9, generator=torch.Generator().manual_seed(9)) > 0.25).to(dtype) if reset else None
        position = next(i for i, value in enumerate(inputs) if value is None)
        leaves = [value for value in given if value is not None]
        output, last = run(*given[:position], keep, *given[position + 1 :])
        loss = (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum() + last.square().sum()
        results.append([output, last, *torch.autograd.grad(loss, leaves)])
    for found, true in zip(*results, strict=True):
        close(found.detach().numpy(), true, 1e-5)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("taps", [1, 4])
def test_mambas_convolution_equals_its_reference_forwards_and_backwards(taps: int, reset: bool) -> None:
    x, past = draw(3, 9, WIDTH), draw(3, taps - 1, WIDTH, seed=1)
    compared(_Conv, conv_reference, [x, past, None, draw(taps, WIDTH, seed=2), draw(WIDTH, seed=3)], reset)


@pytest.mark.parametrize("reset", [False, True])
def test_the_selective_scan_equals_its_reference_forwards_and_backwards(reset: bool) -> None:
    count = 3
    x, delta, a_log = draw(3, 9, WIDTH), F.softplus(draw(3, 9, WIDTH, seed=1)), draw(count, WIDTH, seed=2)
    b, c, skip = draw(3, 9, count, seed=3), draw(3, 9, count, seed=4), draw(WIDTH, seed=5)
    compared(_Selective, selective_reference, [x, delta, a_log, b, c, skip, draw(3, count, WIDTH, seed=6), None], reset)


# ------------------------------------------------------------------------------------------------------ flat memory
@pytest.mark.parametrize("dense", [1, 0])
def test_a_layers_views_have_the_places_and_sizes_of_its_parameters(dense: int) -> None:
    width, state, layers = 4, 16, 2
    thirds = state // 2 if dense else width
    sizes = Sizes(
        inputs=1, encoder=4, width=width, state=state, head=1, actions=1, layers=layers, skip=0, dense=dense, method=0,
        thirds=thirds,
    )  # fmt: skip
    square = state * width if dense else state
    lengths = {"log_decay": state // 2, "frequency": state // 2, "third": thirds, "B": square if dense else 0,
               "C": square, "D": width, "gate": 2 * width * width, "gate_bias": 2 * width}  # fmt: skip
    assert tuple(lengths) == Layer._fields == LAYER_PLACES.names
    places, start = np.zeros(layers, LAYER_PLACES), 0
    for layer in range(layers):
        for name, length in lengths.items():
            places[layer][name] = start
            start += length
    flat = np.arange(start, dtype=np.float32)
    named = Places(*[-1] * 9, layers=places)
    for layer in range(layers):
        for name, view in layer_of(flat, sizes, named, layer)._asdict().items():
            first = places[layer][name]
            assert view.tolist() == list(range(first, first + lengths[name])), name
