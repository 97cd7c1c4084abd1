"""The contract that every registered sequence model keeps, whatever is inside."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.func import functional_call, vmap

from core.errors import InputError
from core.sequence_model import (
    MODELS,
    SequenceModel,
    SequenceModelConfig,
    build_model,
    count_parameters,
    default_config,
    parse_model_config,
    size_to_budget,
)

SMALL = {
    "transformer": {"context": 6, "num_heads": 2},
    "hybrid": {"blocks": ("s5", "attention", "lru", "mamba", "s4d", "mlp"), "context": 5, "state_dim": 32},
    "s4d": {"state_dim": 32},
    "s5": {"state_dim": 16},
    "lru": {"state_dim": 16},
}
INPUT, OUTPUT, BATCH, TIME = 5, 3, 4, 17


def config_of(kind: str) -> SequenceModelConfig:
    return parse_model_config({"kind": kind, "hidden_dim": 16, **SMALL.get(kind, {})})


def model_of(kind: str, seed: int = 0) -> SequenceModel:
    return build_model(config_of(kind), INPUT, OUTPUT, generator=torch.Generator().manual_seed(seed))


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_resets(seed: int = 2) -> torch.Tensor:
    return torch.rand(BATCH, TIME, generator=torch.Generator().manual_seed(seed)) < 0.2


def unrolled(
    model: SequenceModel, x: torch.Tensor, hidden: torch.Tensor | None, resets: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    outputs = []
    for t in range(x.shape[1]):
        y, hidden = model(x[:, t], hidden, None if resets is None else resets[:, t])
        outputs.append(y)
    assert hidden is not None
    return torch.stack(outputs, 1), hidden


kinds = pytest.mark.parametrize("kind", MODELS.names())


def test_every_file_with_a_model_can_be_imported() -> None:
    assert MODELS.failures == {}


@kinds
@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_one_step_repeated_equals_the_sequence(kind: str, with_resets: bool, gradients: bool) -> None:
    model, resets = model_of(kind), random_resets() if with_resets else None
    start = model(draw(BATCH, 9, INPUT, seed=3))[1].detach()
    x = draw(BATCH, TIME, INPUT)
    output, hidden = model(x, start, resets)
    with torch.set_grad_enabled(gradients):
        step_output, step_hidden = unrolled(model, x, start, resets)
    assert torch.allclose(output, step_output, atol=1e-5, rtol=1e-5)
    assert torch.allclose(hidden, step_hidden, atol=1e-5, rtol=1e-5)


@kinds
def test_a_reset_forgets_exactly_what_came_before(kind: str) -> None:
    model, x = model_of(kind), draw(BATCH, TIME, INPUT)
    resets = torch.zeros(BATCH, TIME)
    resets[:, 8] = 1
    output, hidden = model(x, model(draw(BATCH, 5, INPUT, seed=4))[1], resets)
    fresh, fresh_hidden = model(x[:, 8:])
    assert torch.allclose(output[:, 8:], fresh, atol=1e-5)
    assert torch.allclose(hidden, fresh_hidden, atol=1e-5)


@kinds
def test_a_sequence_cut_in_two_equals_the_whole(kind: str) -> None:
    model, x, resets = model_of(kind), draw(BATCH, TIME, INPUT), random_resets()
    whole, end = model(x, None, resets)
    first, middle = model(x[:, :7], None, resets[:, :7])
    second, cut_end = model(x[:, 7:], middle, resets[:, 7:])
    assert torch.allclose(whole, torch.cat([first, second], 1), atol=1e-5)
    assert torch.allclose(end, cut_end, atol=1e-5)


@kinds
def test_saving_and_loading_changes_nothing(kind: str, tmp_path) -> None:
    model, x, resets = model_of(kind), draw(BATCH, TIME, INPUT), random_resets()
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model")
    assert loaded.config == model.config
    with torch.no_grad():
        for got, wanted in zip(loaded(x, None, resets), model(x, None, resets), strict=True):
            assert torch.equal(got, wanted)
        got, wanted = unrolled(loaded, x, None, resets), unrolled(model, x, None, resets)
    assert torch.equal(got[0], wanted[0])


@kinds
def test_sequences_of_a_batch_do_not_see_each_other(kind: str) -> None:
    model, x = model_of(kind), draw(BATCH, TIME, INPUT)
    changed = x.clone()
    changed[1] += 1
    output, other = model(x)[0], model(changed)[0]
    rest = [0, 2, 3]
    assert torch.allclose(output[rest], other[rest], atol=1e-6)
    assert not torch.allclose(output[1], other[1], atol=1e-3)
    assert torch.allclose(output[:1], model(x[:1])[0], atol=1e-5)


@kinds
def test_a_later_input_never_changes_an_earlier_output(kind: str) -> None:
    model, x = model_of(kind), draw(BATCH, TIME, INPUT)
    changed = x.clone()
    changed[:, 10] += 1
    output, other = model(x)[0], model(changed)[0]
    assert torch.allclose(output[:, :10], other[:, :10], atol=1e-6)
    assert not torch.allclose(output[:, 10], other[:, 10], atol=1e-3)


@kinds
def test_an_earlier_input_changes_later_outputs_unless_the_model_has_no_memory(kind: str) -> None:
    model, x = model_of(kind), draw(BATCH, TIME, INPUT)
    changed = x.clone()
    changed[:, 10] += 1
    reaches = not torch.allclose(model(x)[0][:, 12:], model(changed)[0][:, 12:], atol=1e-4)
    assert reaches == (model.hidden_size > 0)


@kinds
def test_every_parameter_the_input_and_the_state_get_finite_gradients(kind: str) -> None:
    model, x = model_of(kind), draw(BATCH, TIME, INPUT).requires_grad_()
    start = model(draw(BATCH, 9, INPUT, seed=3))[1].detach().requires_grad_()
    output, hidden = model(x, start)
    (output.square().sum() + hidden.square().sum()).backward()
    tensors = [x, *([start] if model.hidden_size else []), *model.parameters()]
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in tensors)
    assert sum(bool(tensor.grad.abs().sum() > 0) for tensor in tensors if tensor.grad is not None) == len(tensors)


@kinds
def test_gradients_in_float32_agree_with_the_float64_reference(kind: str) -> None:
    model, x, resets = model_of(kind), draw(BATCH, TIME, INPUT), random_resets()
    start = model(draw(BATCH, 9, INPUT, seed=3))[1].detach()

    def gradients(network: SequenceModel, create_graph: bool, dtype: torch.dtype) -> list[torch.Tensor]:
        inputs = [x.to(dtype).requires_grad_(), start.to(dtype).requires_grad_()]
        output, hidden = network(*inputs, resets)
        loss = output.square().sum() + hidden.pow(3).mean() if model.hidden_size else output.square().sum()
        wanted = [inputs[0], *network.parameters()]
        return list(torch.autograd.grad(loss, wanted, create_graph=create_graph))

    truth = gradients(copy.deepcopy(model).double(), False, torch.float64)
    for create_graph in (False, True):
        for got, wanted in zip(gradients(model, create_graph, torch.float32), truth, strict=True):
            assert (got - wanted).abs().max() <= 2e-4 * wanted.abs().max() + 1e-5


@kinds
def test_second_derivatives_agree_with_finite_differences_of_the_first(kind: str) -> None:
    model, x = model_of(kind).double(), draw(2, 6, INPUT).double()
    names, values = zip(*model.named_parameters(), strict=True)
    directions = [draw(*value.shape, seed=i).double() for i, value in enumerate(values)]

    def slope(scale: float, create_graph: bool = False) -> tuple[torch.Tensor, list[torch.Tensor]]:
        moved = [(v + scale * d).detach().requires_grad_() for v, d in zip(values, directions, strict=True)]
        loss = functional_call(model, dict(zip(names, moved, strict=True)), (x,))[0].square().mean()
        grads = torch.autograd.grad(loss, moved, create_graph=create_graph)
        return sum((g * d).sum() for g, d in zip(grads, directions, strict=True)), moved  # pyright: ignore

    directional, moved = slope(0.0, create_graph=True)
    product = torch.autograd.grad(directional, moved)
    second = sum((h * d).sum() for h, d in zip(product, directions, strict=True))
    numeric = (slope(1e-5)[0] - slope(-1e-5)[0]) / 2e-5
    assert torch.allclose(second, numeric, rtol=1e-4, atol=1e-8)  # pyright: ignore[reportArgumentType]


@kinds
def test_functional_call_and_vmap_over_parameters_equal_separate_models(kind: str) -> None:
    models = [model_of(kind, seed) for seed in range(3)]
    stacked = {
        name: torch.stack([dict(model.named_parameters())[name].detach() for model in models])
        for name in dict(models[0].named_parameters())
    }
    x = draw(3, 2, 7, INPUT)

    def loss(parameters: dict[str, torch.Tensor], sequence: torch.Tensor) -> torch.Tensor:
        return functional_call(models[0], parameters, (sequence,))[0].square().sum()

    got = vmap(torch.func.grad(loss))(stacked, x)
    for i, model in enumerate(models):
        model(x[i])[0].square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            assert torch.allclose(got[name][i], parameter.grad, rtol=1e-3, atol=1e-4), name


@kinds
def test_acting_steps_follow_every_way_that_parameters_change(kind: str) -> None:
    model, x = model_of(kind), draw(BATCH, INPUT)

    def agrees() -> bool:
        with torch.no_grad():
            step = model(x)[0]
        return torch.allclose(step, model(x.unsqueeze(1))[0][:, 0], atol=1e-5)

    assert agrees()
    for fused in (False, True):
        optimizer = torch.optim.Adam(model.parameters(), 0.1, fused=fused)
        model(x.unsqueeze(1))[0].square().sum().backward()
        optimizer.step()
        assert agrees()
    with torch.no_grad():
        model(x)
        for parameter in model.parameters():
            parameter.mul_(0.9)
        step = model(x)[0]
    assert torch.allclose(step, model(x.unsqueeze(1))[0][:, 0], atol=1e-5)
    with torch.no_grad():
        model(x)
        model.load_state_dict(model_of(kind, seed=5).state_dict())
        assert torch.allclose(model(x)[0], model_of(kind, seed=5)(x)[0])
        swapped = dict(model_of(kind, seed=6).named_parameters())
        assert torch.allclose(functional_call(model, swapped, (x,))[0], model_of(kind, seed=6)(x)[0])
        assert torch.allclose(model(x)[0], model_of(kind, seed=5)(x)[0])


@kinds
def test_the_same_seed_gives_the_same_model_and_no_global_randomness_is_used(kind: str) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second, other = model_of(kind), model_of(kind), model_of(kind, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    x = draw(BATCH, TIME, INPUT)
    assert torch.equal(first(x)[0], second(x)[0])
    assert not torch.equal(first(x)[0], other(x)[0])


@kinds
def test_the_hidden_state_starts_at_zero_and_has_the_announced_size(kind: str) -> None:
    model = model_of(kind)
    hidden = model.init_hidden(BATCH)
    assert hidden.shape == (BATCH, model.hidden_size)
    assert not hidden.any()
    assert model(draw(BATCH, INPUT))[1].shape == (BATCH, model.hidden_size)
    assert torch.allclose(model(draw(BATCH, INPUT), hidden)[0], model(draw(BATCH, INPUT))[0])


@kinds
def test_float64_models_work_step_by_step_and_as_sequences(kind: str) -> None:
    model, x = model_of(kind).double(), draw(BATCH, TIME, INPUT).double()
    with torch.no_grad():
        assert torch.allclose(
            unrolled(model, x, None, random_resets())[0], model(x, None, random_resets())[0], atol=1e-10
        )


@kinds
def test_input_and_output_may_have_the_width_of_the_model(kind: str) -> None:
    model = build_model(config_of(kind), 16, 16)
    x = draw(BATCH, TIME, 16)
    with torch.no_grad():
        assert torch.allclose(unrolled(model, x, None, None)[0], model(x)[0], atol=1e-5)


@kinds
def test_a_configuration_survives_json(kind: str) -> None:
    config = config_of(kind)
    assert parse_model_config(type(config).model_validate_json(config.model_dump_json()).model_dump()) == config
    assert parse_model_config(kind) == default_config(kind)


@kinds
def test_sizing_to_a_budget_comes_near_it(kind: str) -> None:
    for budget in (20_000, 60_000):
        sized = size_to_budget(default_config(kind), 19, 64, budget)
        assert sized.kind == kind
        assert count_parameters(build_model(sized, 19, 64)) == pytest.approx(budget, rel=0.1)


@kinds
def test_parameter_groups_hold_every_parameter_once(kind: str) -> None:
    model = model_of(kind)
    groups = model.parameter_groups()
    ids = [id(parameter) for group in groups.values() for parameter in group]
    assert len(ids) == len(set(ids)) == len(list(model.parameters()))
    marked = ("s4d", "s5", "lru", "mamba", "rg-lru", "rtu", "rtu-tanh", "ssd", "gated-deltanet", "hybrid")
    if MODELS.plugin_of(kind) is None:  # a plugin's model marks what it likes
        assert bool(groups["dynamics"]) == (kind in marked)


@kinds
def test_wrong_input_is_refused_by_name(kind: str) -> None:
    model, x = model_of(kind), draw(BATCH, TIME, INPUT)
    hidden = model.init_hidden(BATCH)
    nan = x.clone()
    nan[0, 0, 0] = float("nan")
    wrong = {
        "x": [
            (x[..., :3], None, None),
            (x[0, 0], None, None),
            (x.unsqueeze(0), None, None),
            (x[:, :0], None, None),
            (x.double(), None, None),
            (x.long(), None, None),
            (nan, None, None),
            (x / 0, None, None),
        ],
        "hidden": [
            (x, model.init_hidden(BATCH - 1), None),
            (x, torch.zeros(1, model.hidden_size), None),
            (x, torch.zeros(BATCH, model.hidden_size + 1), None),
            (x, hidden.double(), None),
        ],
        "resets": [
            (x, hidden, torch.zeros(BATCH)),
            (x, hidden, torch.zeros(BATCH, TIME, 1)),
            (x[:, 0], hidden, torch.zeros(BATCH, 1)),
        ],
    }
    for name, calls in wrong.items():
        for call in calls:
            with pytest.raises(InputError, match=f"^{name}: got .* allowed: "):
                model(*call)


def test_an_unknown_kind_is_answered_with_the_nearest_and_the_list() -> None:
    with pytest.raises(InputError, match=r"unknown model 'lstn'. Did you mean 'lstm'\? Allowed: diag-gru, .*gru, .*s5"):
        default_config("lstn")
    with pytest.raises(InputError, match="kind"):
        parse_model_config({"hidden_dim": 3})
    with pytest.raises(InputError, match="batch_size"):
        model_of("s5").init_hidden(0)
    with pytest.raises(InputError, match="input_dim: got 0"):
        build_model(default_config("mlp"), 0, 1)
    with pytest.raises(InputError, match="num_parameters"):
        size_to_budget(default_config("lstm"), 19, 64, 10)


def test_a_large_finite_input_is_not_mistaken_for_infinity() -> None:
    x = torch.full((2, 3, INPUT), 3e38)
    model = model_of("mlp")
    model._check(x, None, None)


def test_a_damaged_or_missing_file_is_refused(tmp_path) -> None:
    model = model_of("lru")
    model.save(tmp_path / "model")
    with pytest.raises(InputError, match="does not exist"):
        SequenceModel.load(tmp_path / "other")
    with pytest.raises(InputError, match="a saved MLP"):
        type(model_of("mlp")).load(tmp_path / "model")
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(bytes(data))
    with pytest.raises(InputError, match="hash"):
        SequenceModel.load(tmp_path / "model")
