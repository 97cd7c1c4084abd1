"""The gated linear cells against their papers' equations, written as loops, and their kernel against autograd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from core.cells.mingru import MinGRU, MinGRUConfig, _MinGRU, gate_biases, mingru_reference
from core.cells.minlstm import MinLSTM, _MinLSTM, minlstm_reference
from core.cells.rg_lru import RGLRUBlock, RGLRUConfig
from core.kernels.gated import gated_scan, gated_scan_backward, share
from core.sequence_model import build_model, parse_model_config

TIME, WIDTH, INPUT = 12, 6, 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_mingru_is_its_loop() -> None:
    model = build_model(parse_model_config({"kind": "mingru", "hidden_dim": WIDTH}), INPUT, WIDTH)
    assert isinstance(model, MinGRU)
    x = torch.randn(1, TIME, INPUT, generator=generator(1))
    resets = torch.zeros(1, TIME)
    resets[0, 7] = 1
    u = x[0].double().numpy()
    for layer in model.layers:
        w, b = (p.detach().double().numpy() for p in layer.parameters())
        h, outputs = np.zeros(WIDTH), []
        for t in range(TIME):
            v, z, o = np.split(w @ u[t] + b, 3)
            h = (1 - resets[0, t].item()) * (1 - sigmoid(z)) * h + sigmoid(z) * np.tanh(v)
            outputs.append(sigmoid(o) * np.tanh(h))
        u = np.stack(outputs)
    assert np.allclose(model(x, None, resets)[0][0].detach().numpy(), u, atol=1e-5)


CELLS = {"mingru": (3, _MinGRU, mingru_reference), "minlstm": (4, _MinLSTM, minlstm_reference)}


@pytest.mark.parametrize("kind", CELLS)
def test_the_hand_written_gradient_equals_autograd_in_double_precision(kind: str) -> None:
    batch, parts = 3, CELLS[kind][0]
    p = 2 * torch.randn(batch, TIME, parts * WIDTH, generator=generator(), dtype=torch.float64)
    bias = torch.randn(parts * WIDTH, generator=generator(1), dtype=torch.float64).requires_grad_()
    h0 = torch.randn(batch, WIDTH, generator=generator(2), dtype=torch.float64).requires_grad_()
    keep = (torch.rand(batch, TIME, generator=generator(3)) > 0.25).double()
    p.requires_grad_()
    v, *middle, o = (p + bias).chunk(parts, -1)
    opened = [part.sigmoid() for part in middle]
    g = opened[0] if parts == 3 else opened[0] / (opened[0] + opened[1])
    shut = torch.cat([p.new_empty(batch, TIME, 0)] if parts == 3 else [1 - part for part in opened], -1)
    c, q = v.tanh(), o.sigmoid()
    states, h = [], h0
    for t in range(TIME):
        h = keep[:, t, None] * (1 - g[:, t]) * h + g[:, t] * c[:, t]
        states.append(h)
    states = torch.stack(states, 1)
    squashed = states.tanh()
    upstream = torch.randn(batch, TIME, WIDTH, generator=generator(4), dtype=torch.float64)
    last = torch.randn(batch, WIDTH, generator=generator(5), dtype=torch.float64)
    truth = torch.autograd.grad((q * squashed * upstream).sum() + (states[:, -1] * last).sum(), [p, bias, h0])
    gates, closed = torch.cat([c, g, q], -1).detach().numpy(), shut.detach().numpy()
    slopes, grad_bias, carried = np.empty_like(gates), np.zeros(parts * WIDTH), last.numpy().copy()
    grad_p = slopes if parts == 3 else np.empty((batch, TIME, parts * WIDTH))
    arrays = [a.detach().numpy() for a in (states, squashed, h0, keep, upstream)]
    gated_scan_backward(gates, closed, *arrays, carried, slopes, grad_p, grad_bias)
    for found, wanted in zip((grad_p, grad_bias, carried), truth, strict=True):
        assert np.abs(found - wanted.numpy()).max() < 1e-10
    again = gates if parts == 3 else grad_p
    gated_scan_backward(gates, closed, *arrays, last.numpy().copy(), gates, again, np.zeros(parts * WIDTH))
    assert np.array_equal(gates, slopes)  # their gradients may take the gates' place
    pre = p.detach().numpy().copy()
    forward = pre if parts == 3 else np.empty_like(gates)
    made = [np.empty((batch, TIME, WIDTH)) for _ in range(3)]
    gated_scan(pre, forward, np.empty_like(closed), bias.detach().numpy(), arrays[2], keep.numpy(), *made)
    for found, wanted in zip(made, (states, squashed, q * squashed), strict=True):
        assert np.abs(found - wanted.detach().numpy()).max() < 2e-6  # the kernels' tanh is a rational one


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("reset", [False, True])
def test_a_layer_equals_its_reference_forwards_and_backwards(kind: str, reset: bool) -> None:
    parts, fused, reference = CELLS[kind]
    keep = (torch.rand(3, TIME, generator=generator(3)) > 0.25).float() if reset else None
    drawn = [(3, TIME, INPUT), (3, WIDTH), (parts * WIDTH, INPUT), (parts * WIDTH,)]
    results = []
    for run, dtype in ((fused.apply, torch.float32), (reference, torch.float64)):
        u, h, weight, bias = (
            torch.randn(*shape, generator=generator(i)).to(dtype).requires_grad_() for i, shape in enumerate(drawn)
        )
        y, last = run(u, h, None if keep is None else keep.to(dtype), weight, bias)
        loss = (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() + last.square().sum()
        results.append([y, last, *torch.autograd.grad(loss, [u, h, weight, bias])])
    for found, wanted in zip(*results, strict=True):
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max() + 1e-6


def test_minlstms_share_of_the_new_input_is_right_however_far_both_gates_are_shut() -> None:
    i, f = np.meshgrid(np.linspace(-200, 200, 81), np.linspace(-200, 200, 81))
    found = np.array([share(a, b) for a, b in zip(i.ravel(), f.ravel(), strict=True)])
    softplus = np.logaddexp(0, -f) - np.logaddexp(0, -i)
    assert np.abs(found - sigmoid(softplus).ravel()).max() < 1e-6


def test_mingru_starts_with_time_constants_log_uniform_in_the_range_that_was_asked_for() -> None:
    bias = gate_biases(4000, 2.0, 100.0, generator())
    tau = -1 / torch.log1p(-torch.sigmoid(bias.double()))
    assert 2.0 - 1e-4 < tau.min() < 2.1
    assert 95 < tau.max() < 100.01
    assert float(tau.log().mean()) == pytest.approx(np.log(200) / 2, abs=0.05)  # the middle of [log 2, log 100]
    model = build_model(MinGRUConfig(hidden_dim=8, tau_min=3, tau_max=3), 2, 8)
    with torch.no_grad():
        state = model(torch.zeros(1, 2), torch.ones(1, model.hidden_size))[1]
    assert torch.allclose(state[:, :8], torch.full((1, 8), float(np.exp(-1 / 3))), atol=1e-5)


def test_every_output_of_mingru_is_bounded_whatever_it_reads() -> None:
    model = build_model(parse_model_config({"kind": "mingru", "hidden_dim": 8, "num_layers": 4}), 8, 8)
    output, hidden = model(1e6 * torch.randn(2, 50, 8, generator=generator()))
    assert output.abs().max() <= 1
    assert hidden.abs().max() <= 1


def test_minlstm_is_its_loop() -> None:
    model = build_model(parse_model_config({"kind": "minlstm", "hidden_dim": WIDTH}), INPUT, WIDTH)
    assert isinstance(model, MinLSTM)
    x = torch.randn(1, TIME, INPUT, generator=generator(1))
    resets = torch.zeros(1, TIME)
    resets[0, 7] = 1
    u = x[0].double().numpy()
    for layer in model.layers:
        w, b = (p.detach().double().numpy() for p in layer.parameters())
        h, outputs = np.zeros(WIDTH), []
        for t in range(TIME):
            v, i, f, o = np.split(w @ u[t] + b, 4)
            total = sigmoid(f) + sigmoid(i)
            h = (1 - resets[0, t].item()) * sigmoid(f) / total * h + sigmoid(i) / total * np.tanh(v)
            outputs.append(sigmoid(o) * np.tanh(h))
        u = np.stack(outputs)
    assert np.allclose(model(x, None, resets)[0][0].detach().numpy(), u, atol=1e-5)


@pytest.mark.parametrize("kind", ["mingru", "minlstm"])
def test_a_state_that_reads_nothing_fades_with_the_time_constant_it_was_started_with(kind: str) -> None:
    config = {"kind": kind, "hidden_dim": 8, "num_layers": 1, "tau_min": 5, "tau_max": 5}
    model = build_model(parse_model_config(config), 2, 8)
    state = torch.ones(1, 8)
    with torch.no_grad():
        for _ in range(5):
            state = model(torch.zeros(1, 2), state)[1]
    assert torch.allclose(state, torch.full((1, 8), float(np.exp(-1))), atol=1e-5)


def test_rg_lru_is_griffins_recurrent_block_step_by_step() -> None:
    block = RGLRUBlock(RGLRUConfig(hidden_dim=WIDTH), generator())
    with torch.no_grad():
        for layer in (block.project, block.gates, block.merge):
            layer.bias.normal_(generator=generator(2))
    x = torch.randn(1, TIME, WIDTH, generator=generator(1))
    p = {name: parameter.detach().double().numpy() for name, parameter in block.named_parameters()}
    a, h, wanted = sigmoid(p["Lambda"]), np.zeros(WIDTH), []
    for t in range(TIME):
        u = x[0, t].double().numpy()
        n = u / np.sqrt(np.mean(u**2) + np.finfo(np.float32).eps) * p["norm.weight"]
        v, side = np.split(p["project.weight"] @ n + p["project.bias"], 2)
        r, i = np.split(sigmoid(p["gates.weight"] @ v + p["gates.bias"]), 2)
        decay = a ** (8 * r)
        h = decay * h + np.sqrt(1 - decay**2) * (i * v)
        gelu = side * 0.5 * (1 + np.array([math.erf(value / math.sqrt(2)) for value in side]))
        wanted.append(u + p["merge.weight"] @ (h * gelu) + p["merge.bias"])
    got = block(x, torch.zeros(1, WIDTH), None)[0][0]
    assert np.allclose(got.detach().numpy(), np.stack(wanted), atol=1e-5)


def test_rg_lru_starts_with_decays_uniform_in_the_range_that_was_asked_for() -> None:
    block = RGLRUBlock(RGLRUConfig(hidden_dim=2000), generator())
    decay = torch.sigmoid(block.Lambda.detach().double()) ** 8
    assert 0.9 - 1e-5 < decay.min() < 0.901
    assert 0.998 < decay.max() < 0.999 + 1e-5
    assert float(decay.mean()) == pytest.approx(0.9495, abs=2e-3)
