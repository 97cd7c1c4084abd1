"""The adapter: it learns at test time, moves only what it may, and can always go back."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import nn

from adaptation.test_time_adaptation import AdaptationConfig, Adapter
from core.errors import InputError
from core.ssm import StateSpaceModel


def network() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator))
    return net


def data(rows: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 3, generator=generator), torch.randn(rows, 2, generator=generator)


def copy_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def moved(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def test_the_public_example_adapts_a_state_space_model_and_returns_loss_and_steps():
    model = StateSpaceModel(state_dim=64, input_dim=32, output_dim=32, device="cpu")
    adapter = Adapter(model=model, config=AdaptationConfig(learning_rate=0.01, num_steps=5), device="cpu")
    before, generator = copy_of(model), torch.Generator().manual_seed(0)
    x, y = torch.randn(1, 32, generator=generator), torch.randn(1, 32, generator=generator)
    hidden = model.init_hidden(batch_size=1)
    losses = []
    for _ in range(10):
        loss, steps_taken = adapter.update_step(x=x, y=y, hidden_state=hidden)
        assert isinstance(loss, float)
        assert steps_taken == 5
        losses.append(loss)
    assert losses[-1] < losses[0]
    assert moved(model, before)
    assert adapter.hidden_state is not None
    assert not adapter.hidden_state.requires_grad


def test_one_sgd_step_is_the_gradient_times_the_rate():
    model, (x, y) = network(), data()
    before = copy_of(model)
    loss = nn.functional.mse_loss(model(x), y)
    gradients = dict(zip(before, torch.autograd.grad(loss, list(model.parameters())), strict=True))
    config = AdaptationConfig(learning_rate=0.1, max_grad_norm=None)
    value, steps = Adapter(model, config).update_step(x, y)
    assert (value, steps) == (pytest.approx(loss.item()), 1)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - 0.1 * gradients[name])


def test_a_gradient_above_the_norm_is_scaled_down_to_it():
    model, (x, y) = network(), data()
    before = copy_of(model)
    Adapter(model, AdaptationConfig(learning_rate=1.0, max_grad_norm=1e-3)).update_step(x, y)
    step = math.sqrt(sum(float((p.detach() - before[n]).square().sum()) for n, p in model.named_parameters()))
    assert step == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ("all", {"0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"}),
        ("head", {"3.weight", "3.bias"}),
        ("low-rank", {"0.weight", "3.weight"}),
    ],
)
def test_only_the_chosen_parameters_move(parameters: str, names: set[str]):
    model, (x, y) = network(), data()
    before = copy_of(model)
    adapter = Adapter(model, AdaptationConfig.model_validate({"parameters": parameters, "num_steps": 3}))
    adapter.update_step(x, y)
    assert moved(model, before) == names


def test_norms_are_found_by_their_names():
    model = nn.ModuleDict({"norm": nn.LayerNorm(3), "map": nn.Linear(3, 2)})
    forward = nn.Sequential(model["norm"], model["map"])

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.map = model["norm"], model["map"]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return forward(x)

    net, (x, y) = Net(), data()
    before = copy_of(net)
    Adapter(net, AdaptationConfig(parameters="norm")).update_step(x, y)
    assert moved(net, before) == {"norm.weight", "norm.bias"}


def test_a_low_rank_change_has_at_most_that_rank_and_lowers_the_loss():
    model, (x, y) = network(), data()
    before = copy_of(model)
    config = AdaptationConfig(parameters="low-rank", rank=1, learning_rate=0.5, num_steps=50, max_grad_norm=None)
    adapter = Adapter(model, config)
    first = nn.functional.mse_loss(model(x), y).item()
    last, _ = adapter.update_step(x, y)
    assert last < 0.8 * first
    change = dict(model.named_parameters())["0.weight"].detach() - before["0.weight"]
    assert torch.linalg.matrix_rank(change, atol=1e-4) == 1


def test_reset_puts_back_the_trained_weights_bit_for_bit():
    for parameters in ("all", "low-rank"):
        model, (x, y) = network(), data()
        before = copy_of(model)
        config = AdaptationConfig.model_validate({"parameters": parameters, "optimizer": "adam", "num_steps": 4})
        adapter = Adapter(model, config)
        first = adapter.update_step(x, y)
        assert moved(model, before)
        adapter.reset()
        assert not moved(model, before)
        assert adapter.update_step(x, y) == first  # the optimiser's state was forgotten too


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_guard_undoes_a_step_that_makes_the_recent_window_worse(optimizer: str):
    model, (x, y) = network(), data()
    before = copy_of(model)
    config = AdaptationConfig.model_validate(
        {"learning_rate": 50.0, "max_grad_norm": None, "guard": True, "optimizer": optimizer}
    )
    adapter = Adapter(model, config)
    loss, steps = adapter.update_step(x, y)
    assert steps == 0
    assert adapter.rollbacks == 1
    assert not moved(model, before)
    assert math.isfinite(loss)


def test_the_guard_lets_a_good_step_through():
    model, (x, y) = network(), data()
    before = copy_of(model)
    adapter = Adapter(model, AdaptationConfig(learning_rate=0.01, guard=True))
    assert adapter.update_step(x, y)[1] == 1
    assert adapter.rollbacks == 0
    assert moved(model, before)


def test_the_guard_protects_what_was_learned_on_earlier_data_from_a_misleading_sample():
    model, (x, y) = network(), data(32)
    adapter = Adapter(model, AdaptationConfig(learning_rate=0.05, num_steps=20, guard=True, guard_window=4))
    for rows in x.split(8):
        adapter.update_step(rows, y[: len(rows)])
    weights = copy_of(model)
    adapter.update_step(x[:1], 100.0 * torch.ones(1, 2))
    kept = nn.functional.mse_loss(model(x[:8]), y[:8]).item()
    if adapter.rollbacks:
        assert not moved(model, weights)
    assert math.isfinite(kept)


def test_a_loss_that_is_not_finite_takes_no_step():
    model, (x, y) = network(), data()
    before = copy_of(model)
    loss, steps = Adapter(model).update_step(x, torch.full_like(y, float("nan")))
    assert math.isnan(loss)
    assert steps == 0
    assert not moved(model, before)


def test_without_a_given_hidden_state_it_goes_on_from_its_own():
    generator = torch.Generator().manual_seed(0)
    model = StateSpaceModel(state_dim=8, input_dim=3, output_dim=3, hidden_dim=8)
    adapter = Adapter(model, AdaptationConfig(learning_rate=1e-12, max_grad_norm=None))
    xs = torch.randn(1, 5, 3, generator=generator)
    for t in range(5):
        adapter.update_step(xs[:, t], torch.zeros(1, 3))
    with torch.no_grad():
        whole = model(xs)[1]
    assert adapter.hidden_state is not None
    torch.testing.assert_close(adapter.hidden_state, whole, atol=1e-4, rtol=1e-4)


def test_the_same_data_give_bit_equal_adaptation():
    results = []
    for _ in range(2):
        model, (x, y) = network(), data()
        adapter = Adapter(model, AdaptationConfig(num_steps=3, parameters="low-rank"))
        results.append((adapter.update_step(x, y), copy_of(model)))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[0][1][n], results[1][1][n]) for n in results[0][1])


def test_bad_input_is_refused_by_name():
    with pytest.raises(InputError, match="parameters"):
        Adapter(nn.Linear(1, 1), AdaptationConfig(parameters="norm"))
    with pytest.raises(InputError, match="device"):
        Adapter(nn.Linear(1, 1), device="cuda:99")
    with pytest.raises(InputError, match="x, y"):
        Adapter(nn.Linear(1, 1)).update_step(torch.zeros(0, 1), torch.zeros(0, 1))
    with pytest.raises(InputError, match="x, y"):
        Adapter(nn.Linear(1, 1)).update_step(torch.zeros(2, 1), torch.zeros(3, 1))
    with pytest.raises(InputError, match=r"x: got \(2, 3\)"):
        Adapter(nn.Linear(1, 1)).update_step(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(InputError, match=r"y: got \(2,\)"):
        Adapter(nn.Linear(1, 1)).update_step(torch.zeros(2, 1), torch.zeros(2))
    with pytest.raises(ValueError, match="learning_rate"):
        AdaptationConfig(learning_rate=0.0)


def normalised() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_reset_puts_back_the_statistics_of_batch_norm():
    model = normalised()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapter = Adapter(model, AdaptationConfig(num_steps=3))
    adapter.update_step(torch.randn(6, 3) + 2.0, torch.randn(6, 2))
    assert not torch.equal(model.state_dict()["1.running_mean"], before["1.running_mean"])
    adapter.reset()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_step_that_the_guard_undoes_leaves_no_trace_in_the_statistics():
    model = normalised()
    adapter = Adapter(model, AdaptationConfig(learning_rate=1e3, num_steps=2, guard=True, max_grad_norm=None))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _, taken = adapter.update_step(torch.randn(6, 3), torch.randn(6, 2))
    assert (taken, adapter.rollbacks) == (0, 1)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("parameters", ["all", "low-rank"])
def test_frozen_parameters_never_move(parameters: Literal["all", "low-rank"]):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _, taken = Adapter(model, AdaptationConfig(parameters=parameters, learning_rate=0.1)).update_step(
        torch.randn(6, 3), torch.randn(6, 2)
    )
    assert taken == 1
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("1.") for name in moved)


def test_a_model_that_is_frozen_whole_is_refused():
    with pytest.raises(InputError, match="not frozen"):
        Adapter(nn.Linear(3, 2).requires_grad_(False))
