"""LSTM and GRU: the compiled kernels against the references, autograd in double precision, and torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from core.kernels.recurrent import add_row, add_rows, gru_scan, gru_scan_backward, lstm_scan, lstm_scan_backward
from core.recurrent import _GRU, _LSTM, GRU, LSTM, _NativeGRU, _NativeLSTM, gru_reference, lstm_reference
from core.sequence_model import build_model, parse_model_config

BATCH, TIME, INPUT, WIDTH = 3, 9, 5, 7


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


KEEP = (torch.rand(BATCH, TIME, generator=torch.Generator().manual_seed(3)) > 0.25).double()
CELLS: dict[str, tuple[int, int, type, type, Callable[..., Any]]] = {
    "lstm": (4, 2, _LSTM, _NativeLSTM, lstm_reference),
    "gru": (3, 1, _GRU, _NativeGRU, gru_reference),
}


@pytest.mark.parametrize("inner", [1, 3, 4, 7, 8])
def test_rows_are_added_as_a_product_adds_them(inner: int) -> None:
    left, second, right = draw(0, inner).numpy(), draw(1, inner).numpy(), draw(2, inner, 6).numpy()
    out, other, alone = draw(4, 6).numpy(), draw(5, 6).numpy(), draw(4, 6).numpy()
    wanted = out + left @ right, other + second @ right
    add_rows(left, second, right, out, other)
    add_row(left, right, alone)
    for found, truth in zip((out, other, alone), (*wanted, wanted[0]), strict=True):
        np.testing.assert_allclose(found, truth, rtol=1e-12)


def test_the_lstms_hand_written_gradient_equals_autograd_in_double_precision() -> None:
    p, h0, c0 = draw(0, BATCH, TIME, 4 * WIDTH), draw(1, BATCH, WIDTH), draw(2, BATCH, WIDTH)
    recurrent, bias = draw(4, 4 * WIDTH, WIDTH), draw(5, 4 * WIDTH)
    leaves = [part.requires_grad_() for part in (p, h0, c0, recurrent, bias)]
    gates, previous, cells, hs, h, c = [], [], [], [], h0, c0
    for t in range(TIME):
        q, before = KEEP[:, t, None] * h, KEEP[:, t, None] * c
        i, f, g, o = (p[:, t] + q @ recurrent.T + bias).chunk(4, -1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = f * before + i * g
        h = o * c.tanh()
        for kept, value in zip((gates, previous, cells, hs), (torch.cat([i, f, g, o], -1), q, c, h), strict=True):
            kept.append(value)
    gates, previous, cells, hs = (torch.stack(parts, 1) for parts in (gates, previous, cells, hs))
    upstream, last_h, last_c = draw(6, BATCH, TIME, WIDTH), draw(7, BATCH, WIDTH), draw(8, BATCH, WIDTH)
    loss = (hs * upstream).sum() + (h * last_h).sum() + (c * last_c).sum()
    truth = torch.autograd.grad(loss, leaves)
    slopes, grad_bias = gates.detach().numpy().copy(), np.zeros(4 * WIDTH)
    carry_h, carry_c = last_h.numpy().copy(), last_c.numpy().copy()
    lstm_scan_backward(
        slopes, recurrent.detach().numpy(), c0.detach().numpy(), KEEP.numpy(), cells.detach().numpy(),
        cells.tanh().detach().numpy(), upstream.numpy(), carry_h, carry_c, grad_bias,
    )  # fmt: skip
    grad_recurrent = slopes.reshape(-1, 4 * WIDTH).T @ previous.detach().numpy().reshape(-1, WIDTH)
    for found, wanted in zip((slopes, carry_h, carry_c, grad_recurrent, grad_bias), truth, strict=True):
        assert np.abs(found - wanted.numpy()).max() < 1e-10

    made = [np.empty((BATCH, TIME, WIDTH)) for _ in range(4)]
    arrays = [part.detach().numpy() for part in (bias, recurrent.T.contiguous(), h0, c0)]
    lstm_scan(p.detach().numpy().copy(), *arrays, KEEP.numpy(), *made)
    for found, wanted in zip(made, (previous, cells, cells.tanh(), hs), strict=True):
        assert np.abs(found - wanted.detach().numpy()).max() < 2e-6  # the kernels' tanh is a rational one


def test_the_grus_hand_written_gradient_equals_autograd_in_double_precision() -> None:
    p, h0, recurrent = draw(0, BATCH, TIME, 3 * WIDTH), draw(1, BATCH, WIDTH), draw(4, 3 * WIDTH, WIDTH)
    bias, hidden_bias = draw(5, 3 * WIDTH), draw(9, 3 * WIDTH)
    leaves = [part.requires_grad_() for part in (p, h0, recurrent, bias, hidden_bias)]
    gates, previous, heard, hs, h = [], [], [], [], h0
    for t in range(TIME):
        q = KEEP[:, t, None] * h
        (p_r, p_z, p_n), (a_r, a_z, a_n) = (p[:, t] + bias).chunk(3, -1), (q @ recurrent.T + hidden_bias).chunk(3, -1)
        r, z = (p_r + a_r).sigmoid(), (p_z + a_z).sigmoid()
        n = (p_n + r * a_n).tanh()
        h = n + z * (q - n)
        for kept, value in zip((gates, previous, heard, hs), (torch.cat([r, z, n], -1), q, a_n, h), strict=True):
            kept.append(value)
    gates, previous, heard, hs = (torch.stack(parts, 1) for parts in (gates, previous, heard, hs))
    upstream, last = draw(6, BATCH, TIME, WIDTH), draw(7, BATCH, WIDTH)
    truth = torch.autograd.grad((hs * upstream).sum() + (h * last).sum(), leaves)
    slopes, slopes_heard, carry = gates.detach().numpy().copy(), heard.detach().numpy().copy(), last.numpy().copy()
    grad_bias, grad_hidden = np.zeros(3 * WIDTH), np.zeros(3 * WIDTH)
    q = previous.detach().numpy()
    gru_scan_backward(
        slopes,
        recurrent.detach().numpy(),
        KEEP.numpy(),
        q,
        slopes_heard,
        upstream.numpy(),
        carry,
        grad_bias,
        grad_hidden,
    )
    da = np.concatenate([slopes[:, :, : 2 * WIDTH], slopes_heard], -1).reshape(-1, 3 * WIDTH)
    found = slopes, carry, da.T @ q.reshape(-1, WIDTH), grad_bias, grad_hidden
    for one, wanted in zip(found, truth, strict=True):
        assert np.abs(one - wanted.numpy()).max() < 1e-10

    made = [np.empty((BATCH, TIME, WIDTH)) for _ in range(3)]
    arrays = [part.detach().numpy() for part in (bias, hidden_bias, recurrent.T.contiguous(), h0)]
    gru_scan(p.detach().numpy().copy(), *arrays, KEEP.numpy(), *made)
    for one, wanted in zip(made, (previous, heard, hs), strict=True):
        assert np.abs(one - wanted.detach().numpy()).max() < 2e-6


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("reset", [False, True])
def test_a_layer_equals_its_reference_and_torchs_forwards_and_backwards(kind: str, reset: bool) -> None:
    gates, states, fused, native, reference = CELLS[kind]
    drawn = [(BATCH, TIME, INPUT), *[(BATCH, WIDTH)] * states, (gates * WIDTH, INPUT), (gates * WIDTH, WIDTH)]
    drawn += [(gates * WIDTH,)] * 2
    results = []
    for run, dtype in ((fused.apply, torch.float32), (native.apply, torch.float32), (reference, torch.float64)):
        inputs = [draw(i, *shape, dtype=torch.float32).to(dtype).requires_grad_() for i, shape in enumerate(drawn)]
        y, *last = run(*inputs[: 1 + states], KEEP.to(dtype) if reset else None, *inputs[1 + states :])
        loss = (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() + sum(state.square().sum() for state in last)
        results.append([y, *last, *torch.autograd.grad(loss, inputs)])
    for found in results[:2]:
        for one, wanted in zip(found, results[2], strict=True):
            assert (one - wanted).abs().max() <= 1e-5 * wanted.abs().max() + 1e-6


@pytest.mark.parametrize(("kind", "theirs"), [("lstm", torch.nn.LSTM), ("gru", torch.nn.GRU)])
def test_lstm_and_gru_equal_torch_with_the_same_weights(kind: str, theirs: type[torch.nn.RNNBase]) -> None:
    model = build_model(parse_model_config({"kind": kind, "hidden_dim": WIDTH, "num_layers": 2}), INPUT, WIDTH)
    assert isinstance(model, LSTM | GRU)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(draw(4, *parameter.shape, dtype=torch.float32), alpha=0.3)
    rival = theirs(INPUT, WIDTH, 2, batch_first=True)
    rival.load_state_dict(model.core.state_dict())
    x = draw(1, BATCH, TIME, INPUT, dtype=torch.float32)
    assert torch.allclose(model(x)[0], rival(x)[0], atol=1e-6)
