"""Cells whose memory is a matrix against their papers' equations, and their kernel against autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from core.cells.matrix_cells import (
    GatedDeltaNetBlock,
    SSDBlock,
    stabilisers,
)
from core.cells.matrix_memory import LARGEST, MatrixBlock, memory, memory_reference
from core.errors import InputError
from core.kernels.matrix_memory import memory_scan, memory_scan_backward
from core.sequence_model import build_model, default_config, parse_model_config, with_width
from core.stack import BLOCKS, BlockStack

BATCH, TIME, HEADS, VALUES, KEYS = 2, 9, 3, 4, 5
WIDTH = HEADS * VALUES
KINDS = ("mlstm", "ssd", "gated-deltanet")
SIZES = {"hidden_dim": WIDTH, "heads": HEADS, "key_dim": KEYS}
kinds = pytest.mark.parametrize("kind", KINDS)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numbers(shared: bool, reset: bool) -> list[Tensor]:
    """q, k, v, a, b and the first matrices of a recurrence."""
    heads = 1 if shared else HEADS
    q, k, v = (
        draw(BATCH, TIME, heads, KEYS),
        draw(BATCH, TIME, heads, KEYS, seed=1),
        draw(BATCH, TIME, HEADS, VALUES, seed=2),
    )
    k = F.normalize(k, dim=-1)
    a, b = draw(BATCH, TIME, HEADS, seed=3).sigmoid(), draw(BATCH, TIME, HEADS, seed=4).sigmoid()
    if reset:
        a[0, 4] = 0
    return [q, k, v, a, b, draw(BATCH, HEADS, VALUES, KEYS, seed=5)]  # fmt: skip


def block_of(kind: str, **fields: float) -> MatrixBlock:
    """A block in double precision with every bias drawn."""
    config = parse_model_config({"kind": kind, **SIZES, **fields})
    block = BLOCKS[kind](config, torch.Generator().manual_seed(0))
    assert isinstance(block, MatrixBlock)
    with torch.no_grad():
        block.project.bias.add_(0.3 * draw(len(block.project.bias), seed=6).float())
        for name in ("A_log", "D"):
            if hasattr(block, name):
                getattr(block, name).add_(0.3 * draw(HEADS, seed=7).float())
    return block.double()


def read(block: MatrixBlock, x: Tensor) -> list[np.ndarray]:
    """What the projection of x (1, T, H) gives, a part each, (T, ...)."""
    return [part[0].detach().numpy() for part in block.project(x).split(block.sizes, -1)]


def out(x: Tensor, o: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x[0].numpy() + sigmoid(o) * np.tanh(y.reshape(len(o), WIDTH))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


# ------------------------------------------------------------------------------------------------------- the recurrence
@pytest.mark.parametrize("corrects", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_the_matrix_kernels_hand_written_gradient_equals_autograd_in_double_precision(
    shared: bool, corrects: bool
) -> None:
    values = [value.requires_grad_() for value in numbers(shared, reset=True)]
    y, last = memory_reference(*values, corrects)
    up, up_last = draw(*y.shape, seed=8), draw(*last.shape, seed=9)
    truth = torch.autograd.grad((y * up).sum() + (last * up_last).sum(), values)
    arrays = [value.detach().numpy() for value in values]
    found = [np.empty(y.shape), np.empty(last.shape)]
    memory_scan(*arrays, corrects, *found)
    for got, wanted in zip(found, (y, last), strict=True):
        assert np.abs(got - wanted.detach().numpy()).max() < 1e-12
    slopes = [np.zeros(value.shape) for value in arrays]
    memory_scan_backward(*arrays, corrects, up.numpy(), up_last.numpy(), *slopes)
    for got, wanted in zip(slopes, truth, strict=True):
        assert np.abs(got - wanted.numpy()).max() < 1e-10


@pytest.mark.parametrize("corrects", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_the_matrix_memory_in_single_precision_is_its_reference_and_so_are_both_derivatives(
    shared: bool, corrects: bool
) -> None:
    results = []
    for run, dtype in ((memory, torch.float32), (memory_reference, torch.float64)):
        values = [value.to(dtype).requires_grad_() for value in numbers(shared, reset=True)]
        y, last = run(*values, corrects=corrects)
        loss = (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() + last.square().sum()
        first = torch.autograd.grad(loss, values, retain_graph=True)
        again = torch.autograd.grad(loss, values, create_graph=True)
        second = torch.autograd.grad(sum((slope.square().sum() for slope in again), loss * 0), values)
        results.append([y, last, *first, *again, *second])
    for found, wanted in zip(*results, strict=True):
        assert (found - wanted).abs().max() <= 2e-5 * wanted.abs().max() + 1e-6


@pytest.mark.parametrize("corrects", [False, True])
def test_the_matrix_references_derivatives_are_those_of_finite_differences(corrects: bool) -> None:
    q, k, v, a, b, state = numbers(shared=False, reset=False)
    values = [
        q[:1, :3, :2, :2],
        k[:1, :3, :2, :2],
        v[:1, :3, :2, :2],
        a[:1, :3, :2],
        b[:1, :3, :2],
        state[:1, :2, :2, :2],
    ]
    inputs = [value.clone().requires_grad_() for value in values]
    assert torch.autograd.gradcheck(lambda *z: memory_reference(*z, corrects), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *z: memory_reference(*z, corrects), inputs, fast_mode=True)


# ------------------------------------------------------------------------------------------------------------- the cells
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_mlstm_is_its_papers_loop_also_where_its_gates_explode(scale: float) -> None:
    block = block_of("mlstm")
    gates = sum(block.sizes[:-2])
    with torch.no_grad():
        block.project.weight[gates:] *= scale
    x = draw(1, 40, WIDTH, seed=1)
    v, o, q, k, log_i, f = read(block, x)
    v, q, k = (z.reshape(40, HEADS, -1) for z in (v, q, k))
    reset = 17
    y, raw = np.zeros((40, HEADS, VALUES)), np.zeros((40, HEADS, VALUES))
    for head in range(HEADS):
        c, n, m = np.zeros((VALUES, KEYS)), np.zeros(KEYS), 0.0
        big_c, big_n = np.zeros((VALUES, KEYS), np.longdouble), np.zeros(KEYS, np.longdouble)
        for t in range(40):
            if t == reset:
                c, n, m, big_c, big_n = 0 * c, 0 * n, 0.0, 0 * big_c, 0 * big_n
            log_f, i = -np.logaddexp(0, -f[t, head]), log_i[t, head]
            key = k[t, head] / np.sqrt(KEYS)
            before, m = m, max(log_f + m, i)  # equation 15
            kept, new = np.exp(log_f + before - m), np.exp(i - m)  # equations 16 and 17
            c, n = kept * c + new * np.outer(v[t, head], key), kept * n + new * key
            y[t, head] = c @ q[t, head] / max(abs(n @ q[t, head]), np.exp(min(-m, 700)))
            if scale == 1:  # the cell before it is stabilised
                big_c = np.exp(log_f) * big_c + np.exp(i) * np.outer(v[t, head], key)
                big_n = np.exp(log_f) * big_n + np.exp(i) * key
                raw[t, head] = big_c @ q[t, head] / max(abs(big_n @ q[t, head]), 1)
    resets = torch.zeros(1, 40)
    resets[0, reset] = 1
    got, _ = block(x, torch.zeros(1, block.state_size, dtype=torch.float64), 1 - resets.double())
    assert np.abs(log_i).max() > 100 * (scale > 1)
    assert np.allclose(got[0].detach().numpy(), out(x, o, y), atol=1e-9)
    if scale == 1:
        assert np.allclose(y, raw, atol=1e-9)
    single, last = block.float()(x.float(), torch.zeros(1, block.state_size), 1 - resets)
    assert single.isfinite().all()
    assert last.isfinite().all()
    (single.sum() + last.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


def test_ssd_is_its_dual_a_masked_attention() -> None:
    block = block_of("ssd")
    assert isinstance(block, SSDBlock)
    x = draw(1, TIME, WIDTH, seed=1)
    v, o, c, b, raw = read(block, x)
    v, c, b, delta = silu(v).reshape(TIME, HEADS, VALUES), silu(c), silu(b), np.logaddexp(0, raw)
    y = np.empty((TIME, HEADS, VALUES))
    segment = np.arange(TIME) >= 4  # a reset before step 4
    for head in range(HEADS):
        total = np.cumsum(-delta[:, head] * np.exp(block.A_log[head].item()))
        mask = np.tril(np.exp(total[:, None] - total[None, :])) * (segment[:, None] == segment[None, :])
        y[:, head] = (mask * (c @ b.T)) @ (delta[:, head, None] * v[:, head]) + block.D[head].item() * v[:, head]
    keep = torch.ones(1, TIME, dtype=torch.float64)
    keep[0, 4] = 0
    got = block(x, torch.zeros(1, block.state_size, dtype=torch.float64), keep)[0]
    assert np.allclose(got[0].detach().numpy(), out(x, o, y), atol=1e-12)


def test_gated_deltanet_is_its_loop_with_the_matrices_of_the_paper() -> None:
    block = block_of("gated-deltanet")
    assert isinstance(block, GatedDeltaNetBlock)
    x = draw(1, TIME, WIDTH, seed=1)
    v, o, q, k, raw, b = read(block, x)
    v, q, k = (silu(z).reshape(TIME, HEADS, -1) for z in (v, q, k))
    q, k = (z / np.sqrt((z**2).sum(-1, keepdims=True) + 1e-6) for z in (q, k))
    a, b = np.exp(-np.logaddexp(0, raw) * np.exp(block.A_log.detach().numpy())), sigmoid(b)
    y, start = np.empty((TIME, HEADS, VALUES)), draw(HEADS, VALUES, KEYS, seed=3)
    for head in range(HEADS):
        s = start[head].numpy()
        for t in range(TIME):
            key = k[t, head]
            s = (t != 4) * a[t, head] * s @ (np.eye(KEYS) - b[t, head] * np.outer(key, key))
            s = s + b[t, head] * np.outer(v[t, head], key)
            y[t, head] = s @ q[t, head]
    keep = torch.ones(1, TIME, dtype=torch.float64)
    keep[0, 4] = 0
    got = block(x, start.reshape(1, -1), keep)[0]
    assert np.allclose(got[0].detach().numpy(), out(x, o, y), atol=1e-12)


def test_gated_deltanet_returns_the_value_that_was_written_last_for_a_key() -> None:
    keys = torch.eye(KEYS, dtype=torch.float64)[[0, 1, 0]].view(1, 3, 1, KEYS)
    values, ones = draw(1, 3, 1, VALUES), torch.ones(1, 3, 1, dtype=torch.float64)
    _, state = memory(keys, keys, values, ones, ones, torch.zeros(1, 1, VALUES, KEYS).double(), corrects=True)
    assert torch.allclose(state[0, 0, :, 0], values[0, 2, 0])
    assert torch.allclose(state[0, 0, :, 1], values[0, 1, 0])


# -------------------------------------------------------------------------------------------------------------- the start
@kinds
def test_a_matrix_that_reads_nothing_fades_with_the_time_constant_it_was_started_with(kind: str) -> None:
    config = {"kind": kind, "hidden_dim": 8, "num_layers": 1, "tau_min": 5, "tau_max": 5}
    model = build_model(parse_model_config(config), 8, 8)
    size = 4 * 2 * 16
    state = torch.zeros(1, model.hidden_size)
    state[:, :size] = 1
    matrix = state
    with torch.no_grad():
        for _ in range(5):
            matrix = model(torch.zeros(1, 8), matrix)[1]
        whole = model(torch.zeros(1, 5, 8), state)[1]
    for got in (matrix, whole):
        assert torch.allclose(got[:, :size], torch.full((1, size), float(np.exp(-1))), atol=1e-5)


@kinds
def test_matrices_start_with_time_constants_log_uniform_one_in_each_equal_stretch(kind: str) -> None:
    config = parse_model_config(
        {"kind": kind, "hidden_dim": 64, "heads": 64, "key_dim": 1, "tau_min": 2, "tau_max": 128}
    )
    block = BLOCKS[kind](config, torch.Generator().manual_seed(0))
    assert isinstance(block, MatrixBlock)
    parts = block.project.bias.detach().double().split(block.sizes)
    rate = F.softplus(-parts[-1]) if kind == "mlstm" else F.softplus(parts[4])
    place = torch.log2(1 / rate / 2) / 6 * 64  # of 64 heads in [log 2, log 128]
    assert torch.equal(place.floor(), torch.arange(64.0).double())
    if kind == "mlstm":  # a mean at the start: i = 1 - f
        assert torch.allclose(parts[-2].exp(), -torch.expm1(-rate), rtol=1e-5)


@kinds
def test_a_matrix_block_adds_less_than_one_whatever_it_reads(kind: str) -> None:
    model = build_model(parse_model_config({"kind": kind, "hidden_dim": 8, "num_layers": 3}), 8, 8)
    assert isinstance(model, BlockStack)
    for scale in (1e-3, 1.0, 1e3, 1e30):
        x = scale * draw(2, 50, 8).float()
        output, hidden = model(x)
        assert ((output - x).abs() <= 3 + 1e-6 * x.abs()).all()
        assert hidden.isfinite().all()
    far = torch.full((1, 3, 8), 1e20)
    block = model.blocks[0]
    start = torch.zeros(1, model.sizes[0])
    assert torch.equal(block(far, start, None)[1], block(far.clamp_max(LARGEST), start, None)[1])


@kinds
def test_a_sequence_cut_in_two_gives_the_wholes_gradient_through_the_state(kind: str) -> None:
    block = block_of(kind)
    with torch.no_grad():
        block.project.bias[-2 * HEADS : -HEADS] += 2  # input gates beyond 1, so that mlstm's m is not zero
    x, start = draw(BATCH, 12, WIDTH), torch.zeros(BATCH, block.state_size, dtype=torch.float64)
    keep = (draw(BATCH, 12, seed=1) < 1).double()
    first, middle = block(x[:, :7], start, keep[:, :7])
    second, _ = block(x[:, 7:], middle, keep[:, 7:])
    whole, _ = block(x, start, keep)
    parameters = list(block.parameters())
    cut = torch.autograd.grad((first.square().sum() + second.square().sum()), parameters)
    for got, wanted in zip(cut, torch.autograd.grad(whole.square().sum(), parameters), strict=True):
        assert torch.allclose(got, wanted, rtol=1e-9, atol=1e-12)


def test_the_stabiliser_is_the_largest_of_what_is_kept_and_what_is_new_and_of_zero() -> None:
    log_f, log_i = -draw(2, 30, HEADS).abs(), 5 * draw(2, 30, HEADS, seed=1)
    keep, m0 = (draw(2, 30, seed=2) < 1).double(), draw(2, HEADS, seed=3).abs()
    m = stabilisers(log_f, log_i, m0, keep)
    assert torch.allclose(stabilisers(log_f.float(), log_i.float(), m0.float(), keep.float()).double(), m, atol=1e-5)
    before = torch.cat([m0.unsqueeze(1), m[:, :-1]], 1) * keep.unsqueeze(-1)
    assert torch.equal(m, torch.stack([log_f + before, log_i, torch.zeros_like(m)]).amax(0))


# --------------------------------------------------------------------------------------------------------------- learning
def told_and_asked(generator: torch.Generator, count: int = 4, batch: int = 64) -> tuple[Tensor, Tensor]:
    """Every key with a value that is drawn anew, then every key alone; and the values that are asked for, (B, count)."""
    keys, order = (torch.rand(batch, count, generator=generator).argsort(1) for _ in range(2))
    values = torch.randint(0, count, (batch, count), generator=generator)
    one = torch.eye(count)
    told = torch.cat([one[keys], one[values]], 2)
    asked = torch.cat([one[keys.gather(1, order)], torch.zeros(batch, count, count)], 2)
    return torch.cat([told, asked], 1), values.gather(1, order)


@pytest.mark.parametrize(("kind", "learns"), [*((kind, True) for kind in KINDS), ("lstm", False)])
def test_a_matrix_learns_in_eighty_steps_to_return_the_value_of_a_key_as_a_vector_does_not(
    kind: str, learns: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    model = build_model(parse_model_config({"kind": kind, "num_layers": 1, "hidden_dim": 32}), 8, 4)
    optimizer, right = torch.optim.Adam(model.parameters(), 0.01), []
    for _ in range(80):
        x, values = told_and_asked(generator)
        logits = model(x)[0][:, 4:]
        loss = F.cross_entropy(logits.flatten(0, 1), values.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right.append(float((logits.argmax(-1) == values).float().mean()))
    assert (np.mean(right[-5:]) > 0.95) == learns


# -------------------------------------------------------------------------------------------------------------- bad input
@kinds
def test_a_matrix_that_cannot_be_is_refused_in_words(kind: str) -> None:
    for fields, words in (
        ({"heads": 3}, "hidden_dim 64 must be a multiple of heads 3"),
        ({"hidden_dim": 2}, "hidden_dim 2 must be a multiple of heads 4"),
        ({"key_dim": 0}, "key_dim, got 0: .*greater than or equal to 1"),
        ({"hidden_dim": 4096, "key_dim": 256}, "2097152 numbers of state for each sequence: at most 262144"),
        ({"tau_min": 9, "tau_max": 3}, "tau_min 9.0 must be at most tau_max 3.0"),
        ({"head": 2}, "head, got 2: no such field"),
    ):
        with pytest.raises(InputError, match=words):
            parse_model_config({"kind": kind, **fields})
    with pytest.raises(InputError, match="hidden_dim 30 must be a multiple of heads 4"):
        with_width(default_config(kind), 30)


def test_a_matrix_layers_state_is_heads_times_values_times_keys() -> None:
    sizes = [BLOCKS[kind](parse_model_config({"kind": kind, **SIZES}), torch.Generator()).state_size for kind in KINDS]
    assert sizes == [HEADS * (VALUES + 1) * KEYS + HEADS, WIDTH * KEYS, WIDTH * KEYS]
