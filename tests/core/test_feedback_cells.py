"""Cells whose recurrence is nonlinear, and the ring of trace units, against loops; their kernels against autograd."""

from __future__ import annotations

import cmath
import math
from typing import Any

import numpy as np
import pytest
import torch

from core.cells.diag_gru import _DiagGRU, diag_gru_reference
from core.cells.rtu import RTU, _TanhRing, tanh_ring_reference
from core.cells.slstm import _SLSTM, SLSTM, slstm_reference
from core.kernels.feedback import (
    diag_gru_scan,
    diag_gru_scan_backward,
    tanh_ring_scan,
    tanh_ring_scan_backward,
)
from core.kernels.slstm import slstm_scan, slstm_scan_backward
from core.sequence_model import build_model, parse_model_config

TIME, WIDTH, INPUT = 12, 6, 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


KEEP = (torch.rand(3, TIME, generator=generator(3)) > 0.25).double()


def test_diag_gru_is_its_loop() -> None:
    model = build_model(parse_model_config({"kind": "diag-gru", "hidden_dim": WIDTH, "feedback": 2}), INPUT, WIDTH)
    x, u = draw(TIME, INPUT, seed=1), draw(TIME, INPUT, seed=1).numpy()
    reset = torch.zeros(1, TIME)
    reset[0, 7] = 1
    for layer, feedback in enumerate(model.double().feedback.detach().numpy()):  # pyright: ignore
        w, b = (p.detach().numpy() for p in model.layers[layer].parameters())  # pyright: ignore
        h, outputs = np.zeros(WIDTH), []
        for t in range(TIME):
            h = (1 - reset[0, t].item()) * h
            z, r, n = np.split(w @ u[t] + b, 3)
            z, r = sigmoid(z + feedback[0] * h), sigmoid(r + feedback[1] * h)
            h = (1 - z) * np.tanh(n + r * (feedback[2] * h)) + z * h
            outputs.append(h)
        u = np.stack(outputs)
    assert np.allclose(model(x[None], None, reset)[0][0].detach().numpy(), u, atol=1e-12)


@pytest.mark.parametrize("kind", ["rtu", "rtu-tanh"])
def test_a_trace_unit_is_a_loop_in_complex_numbers(kind: str) -> None:
    model = build_model(parse_model_config({"kind": kind, "hidden_dim": WIDTH, "num_layers": 1}), INPUT, WIDTH).double()
    assert isinstance(model, RTU)
    weight, bias, log_nu, log_theta = (p.detach().numpy() for p in next(model.weights()))
    x = draw(1, TIME, INPUT, seed=1)
    half, wanted = WIDTH // 2, np.zeros((TIME, WIDTH))
    for n in range(half):
        radius, h = math.exp(-math.exp(log_nu[n])), 0j
        a = radius * cmath.exp(1j * math.exp(log_theta[n]))
        for t in range(TIME):
            u = x[0, t].numpy()
            drive = complex(weight[n] @ u + bias[n], weight[half + n] @ u + bias[half + n])
            h = a * h * (t != 7) + math.sqrt(1 - radius**2) * drive
            squashed = complex(math.tanh(h.real), math.tanh(h.imag))
            h = squashed if kind == "rtu-tanh" else h
            wanted[t, n], wanted[t, half + n] = squashed.real, squashed.imag
    resets = torch.zeros(1, TIME)
    resets[0, 7] = 1
    assert np.allclose(model(x, None, resets)[0][0].detach().numpy(), wanted, atol=1e-12)


def test_trace_units_start_uniform_on_the_disc() -> None:
    model = build_model(parse_model_config({"kind": "rtu", "hidden_dim": 4096, "num_layers": 1}), 1, 1)
    assert isinstance(model, RTU)
    area, phase = torch.exp(-2 * model.log_nu.detach().exp()), model.log_theta.detach().exp()
    for value, high in ((area, 1), (phase, 2 * math.pi)):
        assert float(value.mean()) == pytest.approx(high / 2, rel=0.03)
        assert float(value.std()) == pytest.approx(high / math.sqrt(12), rel=0.03)


@pytest.mark.parametrize("forget", ["sigmoid", "exponential"])
@pytest.mark.parametrize("scale", [1, 300])
def test_slstm_is_its_equations_without_a_stabiliser_and_finite_where_those_overflow(forget: str, scale: float) -> None:
    fields = {"kind": "slstm", "hidden_dim": WIDTH, "num_layers": 1, "num_heads": 2, "forget": forget}
    model = build_model(parse_model_config(fields), INPUT, WIDTH).double()
    assert isinstance(model, SLSTM)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, scale, generator=generator(2))
    w, b, mixing, _ = (p.detach().numpy() if isinstance(p, torch.Tensor) else p for p in next(model.weights()))
    x = draw(1, TIME, INPUT, seed=1)
    output, hidden = model(x)
    if scale > 1:
        assert output.abs().max() <= 1
        assert hidden.isfinite().all()
        output.sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        return
    c, n, h, wanted = np.zeros(WIDTH), np.zeros(WIDTH), np.zeros(WIDTH), []
    for t in range(TIME):
        heard = np.zeros((4, WIDTH))
        for head in range(2):
            own = slice(3 * head, 3 * head + 3)
            heard[:, own] = (h[own] @ mixing[head]).reshape(4, 3)
        z, i, f, o = (w @ x[0, t].numpy() + b).reshape(4, WIDTH) + heard
        f = np.exp(f) if forget == "exponential" else sigmoid(f)
        c, n = f * c + np.exp(i) * np.tanh(z), f * n + np.exp(i)
        h = sigmoid(o) * c / n
        wanted.append(h)
    assert np.allclose(output[0].detach().numpy(), np.stack(wanted), atol=1e-10)
    stored = [part.detach().numpy() for part in hidden[0].chunk(4)]
    assert np.allclose(stored[0] * np.exp(stored[2]), c)
    assert np.allclose(stored[1] * np.exp(stored[2]), n)


@pytest.mark.parametrize("kind", ["diag-gru", "slstm"])
@pytest.mark.parametrize("forget", ["sigmoid", "exponential"])
def test_a_state_that_reads_nothing_fades_with_the_time_constant_it_was_started_with(kind: str, forget: str) -> None:
    config = {"kind": kind, "hidden_dim": 8, "num_layers": 1, "tau_min": 5, "tau_max": 5}
    if kind == "slstm":
        config["forget"] = forget
    model = build_model(parse_model_config(config), 2, 8)
    state = torch.ones(1, 8)
    if kind == "slstm":  # a full memory: n is where it rests, f n + 1
        state = torch.cat([state, torch.full((1, 8), 1 / (1 - math.exp(-0.2))), torch.zeros(1, 16)], 1)
    held = state[:, :8]
    with torch.no_grad():
        for _ in range(5):
            state = model(torch.zeros(1, 2), state)[1]
    assert torch.allclose(state[:, :8] / held, torch.full((1, 8), math.exp(-1)), atol=1e-5)


def test_diag_grus_hand_written_gradient_equals_autograd_in_double_precision() -> None:
    p, bias, feedback = draw(3, TIME, 3 * WIDTH), draw(3 * WIDTH, seed=1), draw(3, WIDTH, seed=2)
    h0, grad, last = draw(3, WIDTH, seed=3), draw(3, TIME, WIDTH, seed=4), draw(3, WIDTH, seed=5)
    wanted = [value.requires_grad_() for value in (p, bias, feedback, h0)]
    out, end = diag_gru_reference(p, h0, KEEP, torch.eye(3 * WIDTH, dtype=torch.float64), bias, feedback)
    truth = torch.autograd.grad((out * grad).sum() + (end * last).sum(), wanted)
    arrays = [value.detach().numpy() for value in (bias, feedback, h0, KEEP)]
    forward, found = p.detach().numpy().copy(), np.empty((3, TIME, WIDTH))
    diag_gru_scan(forward, *arrays, found)
    assert np.abs(found - out.detach().numpy()).max() < 1e-6  # the kernels' tanh is a rational one
    before = torch.cat([h0[:, None], out[:, :-1]], 1) * KEEP[..., None]
    z, r, n = (p + bias).chunk(3, -1)
    z, r = (z + feedback[0] * before).sigmoid(), (r + feedback[1] * before).sigmoid()
    gates = torch.cat([z, r, (n + r * feedback[2] * before).tanh()], -1).detach().numpy()
    carried, slopes = last.numpy().copy(), np.empty_like(gates)
    grad_bias, grad_feedback = np.zeros(3 * WIDTH), np.zeros((3, WIDTH))
    diag_gru_scan_backward(
        gates, out.detach().numpy(), *arrays[1:], grad.numpy(), carried, slopes, grad_bias, grad_feedback
    )  # fmt: skip
    for got, value in zip((slopes, grad_bias, grad_feedback, carried), truth, strict=True):
        assert np.abs(got - value.numpy()).max() < 1e-10


def test_the_rings_hand_written_gradient_equals_autograd_in_double_precision() -> None:
    a, drive, h0 = 0.6 * draw(WIDTH), draw(3, TIME, WIDTH, seed=1), draw(3, WIDTH, seed=2)
    grad, last = draw(3, TIME, WIDTH, seed=4), draw(3, WIDTH, seed=5)
    wanted = [value.requires_grad_() for value in (a, drive, h0)]
    out = tanh_ring_reference(a, drive, h0, KEEP)
    truth = torch.autograd.grad((out * grad).sum() + (out[:, -1] * last).sum(), wanted)
    a_, drive_, h_, keep, states = (value.detach().numpy() for value in (a, drive, h0, KEEP, out))
    found = np.empty_like(states)
    tanh_ring_scan(a_, drive_, h_, keep, found)
    assert np.abs(found - states).max() < 1e-6
    grad_a, slopes, carried = np.zeros(WIDTH), np.empty_like(states), last.numpy().copy()
    tanh_ring_scan_backward(a_, states, h_, keep, grad.numpy(), carried, slopes, grad_a)
    for got, value in zip((grad_a, slopes, carried), truth, strict=True):
        assert np.abs(got - value.numpy()).max() < 1e-10


@pytest.mark.parametrize("exponential", [False, True])
def test_slstms_hand_written_gradient_equals_autograd_in_double_precision(exponential: bool) -> None:
    p, bias, mixing = draw(3, TIME, 4 * WIDTH), draw(4 * WIDTH, seed=1), draw(2, 3, 12, seed=2)
    grad, last = draw(3, TIME, WIDTH, seed=4), draw(3, 4 * WIDTH, seed=5)
    eye = torch.eye(4 * WIDTH, dtype=torch.float64)
    state = slstm_reference(draw(3, 4, 4 * WIDTH, seed=3), torch.zeros(3, 4 * WIDTH).double(), None, eye, bias, mixing, exponential)[1]  # fmt: skip
    wanted = [value.detach().requires_grad_() for value in (p, bias, mixing, state)]
    p, bias, mixing, state = wanted
    states, gates, stays = [state], [], []
    for t in range(TIME):  # step by step, for what the kernel keeps
        before = states[-1] * KEEP[:, t, None]
        states.append(slstm_reference(p[:, t : t + 1], before, None, eye, bias, mixing, exponential)[1])
        heard = torch.einsum("bhd,hdge->bghe", before[:, 3 * WIDTH :].view(3, 2, 3), mixing.view(2, 3, 4, 3))
        z, i, f, o = (p[:, t] + bias + heard.reshape(3, -1)).chunk(4, -1)
        m = states[-1][:, 2 * WIDTH : 3 * WIDTH]
        slope = torch.ones_like(f) if exponential else torch.sigmoid(-f)
        gates.append(torch.cat([z.tanh(), (i - m).exp(), slope, o.sigmoid()], 1))
        kept = before[:, 2 * WIDTH : 3 * WIDTH] + (f if exponential else torch.nn.functional.logsigmoid(f))
        stays.append((kept - m).clamp_max(0).exp())
    kept_states, kept_gates, kept_stays = (torch.stack(v, 1).detach().numpy() for v in (states[1:], gates, stays))
    out, end = slstm_reference(p, state, KEEP, eye, bias, mixing, exponential)
    truth = torch.autograd.grad((out * grad).sum() + (end * last).sum(), wanted)
    arrays = [value.detach().numpy() for value in (bias, mixing, state, KEEP)]
    forward, found = p.detach().numpy().copy(), [np.empty((3, TIME, WIDTH)), np.empty((3, TIME, 4 * WIDTH))]
    slstm_scan(forward, *arrays, exponential, *found)
    for got, value in zip((forward, *found), (kept_gates, kept_stays, kept_states), strict=True):
        assert np.abs(got - value).max() < 1e-5  # the kernels' exponential is a rational one
    slopes, carried = np.empty_like(forward), last.numpy().copy()
    grad_bias, grad_mixing = np.zeros(4 * WIDTH), np.zeros((2, 3, 12))
    slstm_scan_backward(
        kept_gates, kept_stays, kept_states, *arrays[1:], grad.numpy(), carried, slopes, grad_bias, grad_mixing
    )  # fmt: skip
    for got, value in zip((slopes, grad_bias, grad_mixing, carried), truth, strict=True):
        assert np.abs(got - value.numpy()).max() < 1e-10


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    ("run", "reference", "shapes"),
    [
        (_DiagGRU.apply, diag_gru_reference, [(3, TIME, INPUT), (3, WIDTH), None, (3 * WIDTH, INPUT), (3 * WIDTH,), (3, WIDTH)]),
        (_SLSTM.apply, slstm_reference, [(3, TIME, INPUT), "zeros", None, (4 * WIDTH, INPUT), (4 * WIDTH,), (2, 3, 12), False]),
        (_SLSTM.apply, slstm_reference, [(3, TIME, INPUT), "zeros", None, (4 * WIDTH, INPUT), (4 * WIDTH,), (2, 3, 12), True]),
        (_TanhRing.apply, tanh_ring_reference, [(WIDTH,), (3, TIME, WIDTH), (3, WIDTH), None]),
    ],
)  # fmt: skip
def test_the_compiled_loops_equal_their_references_forwards_and_backwards(
    run: Any, reference: Any, shapes: list[Any], reset: bool
) -> None:
    results = []
    for function, dtype in ((run, torch.float32), (reference, torch.float64)):
        keep = KEEP.to(dtype) if reset else None
        drawn: list[Any] = [
            draw(*s, seed=i).to(dtype).requires_grad_() if isinstance(s, tuple)
            else {None: keep, "zeros": torch.zeros(3, 4 * WIDTH, dtype=dtype)}.get(s, s)
            for i, s in enumerate(shapes)
        ]  # fmt: skip
        outputs = function(*drawn)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = sum((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() + y.square().sum() for y in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, [v for v in drawn if getattr(v, "requires_grad", False)])])  # pyright: ignore
    for found, wanted in zip(*results, strict=True):
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max() + 1e-6


@pytest.mark.parametrize("kind", ["diag-gru", "rtu", "rtu-tanh", "slstm", "s5", "lru", "s4d"])
def test_every_output_is_bounded_whatever_it_reads(kind: str) -> None:
    form = {"state_dim": 16, "gating": "bounded"} if kind in ("s5", "lru", "s4d") else {}
    model = build_model(parse_model_config({"kind": kind, "hidden_dim": 8, "num_layers": 4, **form}), 8, 8)
    output, hidden = model(1e6 * draw(2, 50, 8).float())
    assert output.abs().max() <= 1
    assert hidden.isfinite().all()


def test_a_unit_that_feeds_back_keeps_a_bit_for_ever_and_one_that_does_not_forgets_it() -> None:
    for feedback, kept in ((4.0, True), (0.0, False)):
        model = build_model(
            parse_model_config({"kind": "diag-gru", "hidden_dim": 2, "num_layers": 1, "tau_max": 4}), 1, 2
        )
        with torch.no_grad():
            model.feedback[:, 2] = feedback  # pyright: ignore
            state = torch.tensor([[0.5, -0.5]])
            for _ in range(1000):
                state = model(torch.zeros(1, 1), state)[1]
        assert (state[0, 0] > 0.5 and state[0, 1] < -0.5) == kept
