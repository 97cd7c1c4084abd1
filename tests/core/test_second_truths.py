"""Each cell against another way to compute it, written from its paper's equations."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from core.errors import InputError
from core.mamba import MambaBlock, MambaConfig
from core.sequence_model import build_model, parse_model_config
from core.ssm import (
    DiagonalCell,
    LRUConfig,
    S4DCell,
    S4DConfig,
    S5Cell,
    S5Config,
    SSMBlock,
    StateSpaceModel,
    hippo_legs_eigenvalues,
)

TIME, WIDTH = 12, 6


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def block_output(block: SSMBlock, u: torch.Tensor) -> torch.Tensor:
    """What the block's linear system gave, recovered from a block without gate: silu is undone by its own reference."""
    return block(u, u.new_zeros(u.shape[0], block.state_size), None)[0]


def through_block(y: torch.Tensor, u: torch.Tensor, block: SSMBlock) -> torch.Tensor:
    """What the block makes of a linear system's output C h."""
    return u + F.silu(y + block.cell.D * u)


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
def test_s5_is_the_convolution_with_its_kernel(method: str) -> None:
    config = S5Config(hidden_dim=WIDTH, state_dim=8, gating="none", discretization=method, hippo_blocks=1)  # pyright: ignore
    block = SSMBlock(config, generator())
    cell = block.cell
    assert isinstance(cell, S5Cell)
    u = torch.randn(2, TIME, WIDTH, generator=generator(1))
    eigenvalue = (-cell.log_decay.exp() + 1j * cell.frequency).detach().to(torch.complex128)
    dt = cell.log_dt.exp().detach().double()
    if method == "zoh":
        a, gain = (eigenvalue * dt).exp(), ((eigenvalue * dt).exp() - 1) / eigenvalue
    else:
        a, gain = (1 + eigenvalue * dt / 2) / (1 - eigenvalue * dt / 2), dt / (1 - eigenvalue * dt / 2)
    b = torch.complex(*cell.B.detach().double().chunk(2))
    c_re, c_im = cell.C.detach().double().chunk(2, 1)
    c = torch.complex(c_re, -c_im)  # the stored matrix holds the sign of i * i
    # K_j = Re(C A^j gain B), y_t = sum_j K_j u_{t-j}.
    kernel = torch.stack([((c * a**j) @ (gain.unsqueeze(1) * b)).real for j in range(TIME)])
    y = torch.stack(
        [sum(u[:, t - j].double() @ kernel[j].T for j in range(t + 1)) for t in range(TIME)],  # pyright: ignore
        1,
    )
    assert torch.allclose(block_output(block, u), through_block(y.float(), u, block), atol=1e-5)


@pytest.mark.parametrize("init", ["legs", "lin"])
def test_s4d_is_the_convolution_of_each_channel_with_its_kernel(init: str) -> None:
    config = S4DConfig(hidden_dim=WIDTH, state_dim=4 * WIDTH, gating="none", init=init)  # pyright: ignore
    block = SSMBlock(config, generator())
    cell = block.cell
    assert isinstance(cell, S4DCell)
    u = torch.randn(2, TIME, WIDTH, generator=generator(1))
    kernel = np.zeros((TIME, WIDTH))
    for channel in range(WIDTH):
        for pair in range(2):
            eigenvalue = complex(-cell.log_decay[pair, channel].exp().item(), cell.frequency[pair, channel].item())
            a = cmath.exp(eigenvalue * cell.log_dt[channel].exp().item())
            c = complex(*cell.C[:, pair, channel].tolist())
            for j in range(TIME):
                kernel[j, channel] += 2 * (c * (a - 1) / eigenvalue * a**j).real
    y = np.zeros((2, TIME, WIDTH))
    for t in range(TIME):
        for j in range(t + 1):
            y[:, t] += kernel[j] * u[:, t - j].numpy()
    assert torch.allclose(block_output(block, u), through_block(torch.from_numpy(y).float(), u, block), atol=1e-5)


def test_lru_is_its_complex_loop() -> None:
    block = SSMBlock(LRUConfig(hidden_dim=WIDTH, state_dim=8, gating="none"), generator())
    cell = block.cell
    u = torch.randn(2, TIME, WIDTH, generator=generator(1))
    values = {name: parameter.detach().double().numpy() for name, parameter in cell.named_parameters()}
    a = np.exp(-np.exp(values["log_nu"]) + 1j * np.exp(values["log_theta"]))
    b = values["B"][:4] + 1j * values["B"][4:]
    c = values["C"][:, :4] - 1j * values["C"][:, 4:]
    y = np.zeros((2, TIME, WIDTH))
    for sequence in range(2):
        h = np.zeros(4, complex)
        for t in range(TIME):
            h = a * h + np.exp(values["log_gamma"]) * (b @ u[sequence, t].numpy())
            y[sequence, t] = (c @ h).real
    assert torch.allclose(block_output(block, u), through_block(torch.from_numpy(y).float(), u, block), atol=1e-5)


@pytest.mark.parametrize("gating", ["half", "full"])
def test_the_gate_is_what_it_says(gating: str) -> None:
    blocks = [
        SSMBlock(S5Config(hidden_dim=WIDTH, state_dim=8, gating=g), generator())  # pyright: ignore[reportArgumentType]
        for g in ("none", gating)
    ]
    u = torch.randn(2, TIME, WIDTH, generator=generator(1))
    value = block_output(blocks[0], u) - u
    gate = blocks[1].gate
    assert gate is not None
    if gating == "half":
        wanted = value * torch.sigmoid(gate(value))
    else:
        left, right = gate(value).chunk(2, -1)
        wanted = left * torch.sigmoid(right)
    assert torch.allclose(block_output(blocks[1], u), u + wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["s5", "lru"])
def test_a_bounded_output_is_a_gate_of_the_input_times_a_squashed_reading_of_the_state(kind: str) -> None:
    config = parse_model_config({"kind": kind, "hidden_dim": WIDTH, "state_dim": 8, "gating": "bounded"})
    block = SSMBlock(config, generator())  # pyright: ignore[reportArgumentType]
    assert isinstance(block.cell, DiagonalCell)
    assert block.gate is not None
    matrix, u, state = block.cell.step_matrix(), torch.randn(2, TIME, WIDTH, generator=generator(1)), torch.zeros(2, 8)
    wanted = []
    for t in range(TIME):
        state, y = (torch.cat([state, u[:, t]], 1) @ matrix).split((8, WIDTH), 1)
        wanted.append(torch.sigmoid(block.gate(u[:, t])) * torch.tanh(y))
    assert torch.allclose(block_output(block, u), torch.stack(wanted, 1), atol=1e-5)


@pytest.mark.parametrize(
    "fields", [{"kind": "s5"}, {"kind": "s5", "discretization": "bilinear"}, {"kind": "lru"}], ids=str
)
def test_an_integrator_adds_and_forgets_nothing_and_training_leaves_it_one(fields: dict[str, str]) -> None:
    model = build_model(
        parse_model_config(
            {**fields, "hidden_dim": 64, "state_dim": 64, "num_layers": 1, "integrators": 0.25, "gating": "none"}
        ),
        64,
        64,
    )
    assert isinstance(model, StateSpaceModel)
    cell = model.blocks[0].cell
    assert isinstance(cell, DiagonalCell)
    sums = torch.tensor([*range(24, 32), *range(56, 64)])  # real and imaginary parts of the last eight of 32
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    model(torch.randn(4, 20, 64, generator=generator()))[0].square().sum().backward()
    optimizer.step()
    held = torch.randn(1, 64, generator=generator(1))
    kept = model(torch.zeros(1, 1000, 64), held)[1]
    assert torch.equal(kept[:, sums], held[:, sums])
    assert (kept - held).abs().max() > 0.01  # the others fade
    with torch.no_grad():
        kept = model(torch.zeros(1, 64), held)[1]
    assert torch.equal(kept[:, sums], held[:, sums])
    third = getattr(cell, cell.dynamics[2]).detach().exp()[24:]
    weights = torch.cat([third, third]).unsqueeze(1) * cell.B.detach()[sums]
    x = torch.randn(3, 50, 64, generator=generator(2))
    assert torch.allclose(model(x)[1][:, sums], x.sum(1) @ weights.T, atol=1e-4)


@pytest.mark.parametrize("kind", ["s5", "lru"])
def test_a_sum_of_white_noise_reaches_unit_variance_with_the_slowest_state(kind: str) -> None:
    fields = {"kind": kind, "hidden_dim": 64, "state_dim": 256, "num_layers": 1, "integrators": 0.5}
    model = build_model(parse_model_config(fields), 64, 64)
    gain = -math.expm1(-0.01) if kind == "s5" else 1 - 0.995**2  # gamma^2 by the default dt_min and r_max
    with torch.no_grad():
        hidden = model(torch.randn(64, round(1 / gain), 64, generator=generator()))[1].view(64, 2, 2, 64)
    ring, sums = hidden.square().mean((0, 1, 3))
    assert float(sums) == pytest.approx(float(ring), rel=0.25)


SELECTIVE = [{"kind": "s5"}, {"kind": "s5", "discretization": "bilinear"}, {"kind": "lru"}]


def selective_pair(fields: dict[str, str], gating: str = "full") -> list[StateSpaceModel]:
    """A selective model and the one without selection that has the same other parameters."""
    sizes = {"hidden_dim": WIDTH, "state_dim": 8, "num_layers": 2, "gating": gating}
    chosen, plain = (
        build_model(parse_model_config({**fields, **sizes, "selective": selective}), 5, 3)
        for selective in (True, False)
    )
    plain.load_state_dict({n: v for n, v in chosen.state_dict().items() if "pace" not in n})
    assert isinstance(chosen, StateSpaceModel)
    assert isinstance(plain, StateSpaceModel)
    return [chosen, plain]


def paces(model: StateSpaceModel) -> list[torch.nn.Linear]:
    return [block.cell.pace for block in model.blocks if block.cell.pace is not None]


@pytest.mark.parametrize("fields", SELECTIVE, ids=str)
@pytest.mark.parametrize("gating", ["full", "half", "none", "bounded"])
def test_a_selective_model_at_a_pace_of_one_is_the_model_without_selection(fields: dict[str, str], gating: str) -> None:
    chosen, plain = selective_pair(fields, gating)
    for pace in paces(chosen):
        torch.nn.init.zeros_(pace.weight)
    x = torch.randn(2, TIME, 5, generator=generator())
    assert torch.allclose(chosen(x)[0], plain(x)[0], atol=1e-5)
    assert torch.allclose(chosen(x)[1], plain(x)[1], atol=1e-5)


@pytest.mark.parametrize("fields", SELECTIVE, ids=str)
def test_a_selective_model_stops_its_time_where_its_pace_is_zero_and_gives_one_step_at_a_time_what_it_gives_at_once(
    fields: dict[str, str],
) -> None:
    chosen, _ = selective_pair(fields)
    x = torch.randn(2, TIME, 5, generator=generator())
    resets = torch.rand(2, TIME, generator=generator(4)) < 0.3
    whole, last = chosen(x, None, resets)
    hidden, steps = None, []
    with torch.no_grad():
        for t in range(TIME):
            y, hidden = chosen(x[:, t], hidden, resets[:, t])
            steps.append(y)
    assert hidden is not None
    assert torch.allclose(torch.stack(steps, 1), whole, atol=1e-5)
    assert torch.allclose(hidden, last, atol=1e-5)
    for pace in paces(chosen):
        torch.nn.init.zeros_(pace.weight)
        torch.nn.init.constant_(pace.bias, -30.0)
    assert torch.allclose(chosen(x, hidden)[1], hidden, atol=0.02)  # LRU's gain falls with the root of the pace


@pytest.mark.parametrize("fields", SELECTIVE, ids=str)
def test_a_selective_state_is_the_recurrence_of_its_equations(fields: dict[str, str]) -> None:
    chosen, _ = selective_pair(fields)
    cell = chosen.blocks[0].cell
    assert isinstance(cell, DiagonalCell)
    assert cell.pace is not None
    u = torch.randn(1, TIME, WIDTH, generator=generator(1))
    first, frequency, third = (getattr(cell, name).detach().double().numpy() for name in cell.dynamics)
    paced = torch.nn.functional.softplus(cell.pace(u))[0].detach().double().numpy()
    re, im = (u[0] @ cell.B.T).detach().double().numpy().reshape(TIME, 2, -1).transpose(1, 0, 2)
    h, states = np.zeros(len(first), dtype=complex), []
    for t in range(TIME):
        if cell.method == "exponential":
            rate = -np.exp(first) + 1j * np.exp(frequency)
            a, whole = np.exp(rate * paced[t]), np.exp(rate)
            gain = np.exp(third) * np.sqrt((1 - np.abs(a) ** 2) / (1 - np.abs(whole) ** 2))
        else:
            rate = -np.exp(first) + 1j * frequency
            step = np.exp(third) * paced[t]
            if cell.method == "zoh":
                a = np.exp(rate * step)
                gain = (a - 1) / rate
            else:
                a, gain = (1 + rate * step / 2) / (1 - rate * step / 2), step / (1 - rate * step / 2)
        h = a * h + gain * (re[t] + 1j * im[t])
        states.append(np.concatenate([h.real, h.imag]))
    _, last = cell.selective(u, torch.zeros(1, 8), None)
    assert np.allclose(last[0].detach().numpy(), states[-1], atol=1e-4)


def test_a_selective_lru_whose_radius_has_reached_one_has_finite_gradients_and_steps() -> None:
    chosen, _ = selective_pair({"kind": "lru"})
    with torch.no_grad():
        chosen.blocks[0].cell.log_nu.fill_(-200.0)
    output, hidden = chosen(torch.randn(2, TIME, 5, generator=generator()))
    (output.sum() + hidden.sum()).backward()
    values = (output, hidden, *(p.grad for p in chosen.parameters()))
    assert all(value is not None and value.isfinite().all() for value in values)


def test_a_selective_model_with_integrators_is_refused() -> None:
    with pytest.raises(InputError, match="a selective model has no integrators"):
        parse_model_config({"kind": "lru", "selective": True, "integrators": 0.25})


def test_mamba_is_algorithm_2_step_by_step() -> None:
    config = MambaConfig(hidden_dim=WIDTH, expand=1.5, states_per_channel=3, conv_width=4, norm="rms")
    block = MambaBlock(config, generator())
    with torch.no_grad():
        block.conv_bias.normal_(generator=generator(2))
        block.D.normal_(generator=generator(3))
    u = torch.randn(1, TIME, WIDTH, generator=generator(1))
    p = {name: parameter.detach().double().numpy() for name, parameter in block.named_parameters()}
    inner, count, rank = 9, 3, 1
    h = np.zeros((inner, count))
    inputs = np.zeros((TIME + 3, inner))
    wanted = []
    for t in range(TIME):
        x = u[0, t].double().numpy()
        normal = x / np.sqrt(np.mean(x**2) + np.finfo(np.float32).eps) * p["norm.weight"]
        projected = p["project.weight"] @ normal
        inputs[t + 3], z = projected[:inner], projected[inner:]
        v = p["conv_bias"] + sum(p["conv_weight"][j] * inputs[t + 3 - j] for j in range(4))
        v = v / (1 + np.exp(-v))
        selected = p["select.weight"] @ v
        delta = np.log1p(np.exp(p["dt_weight"] @ selected[:rank] + p["dt_bias"]))
        b, c = selected[rank : rank + count], selected[rank + count :]
        a = -np.exp(p["A_log"]).T  # (E, N)
        for channel in range(inner):
            for n in range(count):
                decay = math.exp(delta[channel] * a[channel, n])
                h[channel, n] = decay * h[channel, n] + delta[channel] * b[n] * v[channel]
        y = h @ c + p["D"] * v
        wanted.append(x + p["merge.weight"] @ (y * z / (1 + np.exp(-z))))
    got = block(u, torch.zeros(1, block.state_size), None)[0][0]
    assert np.allclose(got.detach().numpy(), np.stack(wanted), atol=1e-5)


def test_hippo_eigenvalues_are_those_of_the_matrix_in_the_paper() -> None:
    size = 8
    a = np.zeros((size, size))
    for n in range(size):
        for k in range(size):
            root = math.sqrt((2 * n + 1) * (2 * k + 1)) / 2
            a[n, k] = -0.5 if n == k else -root if n > k else root
    values, vectors = hippo_legs_eigenvalues(size)
    assert np.allclose(values.real, -0.5)
    assert (values.imag > 0).all()
    assert np.allclose(a @ vectors, vectors * values)


def test_every_cell_starts_stable_with_time_constants_from_a_few_steps_to_an_episode() -> None:
    for kind in ("s5", "lru", "s4d"):
        config = parse_model_config({"kind": kind})
        block = SSMBlock(config, generator())  # pyright: ignore[reportArgumentType]
        if isinstance(block.cell, S4DCell):
            a_re, a_im, _ = block.cell.step_system()
            modulus = (a_re.square() + a_im.square()).sqrt()
        else:
            matrix = block.cell.step_matrix()
            half = block.state_size // 2
            states = matrix[: 2 * half, : 2 * half]
            modulus = (states[:half, :half].diag().square() + states[:half, half:].diag().square()).sqrt()
        constants = -1 / modulus.log()
        assert (modulus < 1).all()
        assert constants.max() > 50
        assert constants.min() < 10


@pytest.mark.parametrize(("cell", "state_dim"), [("s5", 128), ("lru", 128), ("s4d", 128), ("mamba", 512)])
def test_one_layer_of_state_space_model_carries_state_dim_numbers(cell: str, state_dim: int, tmp_path) -> None:
    model = StateSpaceModel(state_dim, 17, 6, hidden_dim=64, device="cpu", cell=cell)
    output, hidden = model(torch.zeros(4, 17), model.init_hidden(4))
    assert output.shape == (4, 6)
    assert hidden.shape == (4, state_dim)
    assert model(torch.zeros(4, 9, 17), hidden)[0].shape == (4, 9, 6)
    model.save(tmp_path / "m")
    assert StateSpaceModel.load(tmp_path / "m").hidden_size == state_dim


def test_a_state_space_model_that_cannot_be_is_refused_by_name() -> None:
    wrong = [
        ((127, 5, 3), {}, "state_dim: got 127, allowed: a multiple of 2"),
        ((64, 5, 3), {"cell": "s4d", "hidden_dim": 64}, "state_dim: got 64, allowed: a multiple of 128"),
        ((0, 5, 3), {}, "state_dim: got 0"),
        ((8, 5, 3), {"hidden_dim": -1}, "hidden_dim: got -1"),
        ((8, 5, 3), {"num_layers": 0}, "num_layers: got 0"),
        ((8, 5, 3), {"cell": "lstm"}, "unknown cell 'lstm'"),
        ((8, 5, 3), {"cell": "s55"}, "Did you mean 's5'"),
        ((8, 5, 3), {"device": "cuda:99"}, "device: got 'cuda:99', allowed: cpu"),
        ((100, 5, 3), {"cell": "mamba"}, "state_dim: got 100"),
    ]
    for positional, named, message in wrong:
        with pytest.raises(InputError, match=message.replace("(", r"\(")):
            StateSpaceModel(*positional, **named)
    with pytest.raises(ValueError, match="multiple of"):
        parse_model_config({"kind": "hybrid", "blocks": ["s4d"], "state_dim": 64, "hidden_dim": 64})
