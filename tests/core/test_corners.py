"""At every end of what its configuration allows, a model computes with finite numbers, or the configuration is refused."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from corners import alone_and_mixed, ends

from core.errors import InputError
from core.policy import ActionSpec, PolicyConfig, PolicyInput, RecurrentPolicy, entropy, log_prob
from core.sequence_model import (
    MODELS,
    SequenceModel,
    SequenceModelConfig,
    build_model,
    default_config,
    parse_model_config,
    with_width,
)

kinds = pytest.mark.parametrize("kind", MODELS.names())
SMALL = {"hidden_dim": 4, "num_layers": 2}


def configurations(kind: str, mixtures: int, seed: int = 0) -> list[SequenceModelConfig]:
    """Those that are allowed. What is not must be refused in words, by InputError."""
    allowed = []
    config_type = MODELS[kind].config_type
    small = SMALL | ({"state_dim": 16} if "state_dim" in config_type.model_fields else {})
    for fields in alone_and_mixed(config_type, mixtures, seed, **small):
        with contextlib.suppress(InputError):
            allowed.append(parse_model_config({"kind": kind, **fields}))
    assert len(allowed) > mixtures // 20
    return allowed


def finite(model: torch.nn.Module, *values: torch.Tensor) -> bool:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return all(bool(value.isfinite().all()) for value in (*model.parameters(), *gradients, *values))


def check(config: SequenceModelConfig, seed: int) -> None:
    """Weights, outputs, state and one gradient in float32; steps against the sequence in float64, where rounding is small."""
    generator = torch.Generator().manual_seed(seed)
    model = build_model(config, 3, 2, generator=generator)
    x = torch.randn(2, 12, 3, generator=generator)
    resets = torch.rand(2, 12, generator=generator) < 0.1
    output, hidden = model(x, None, resets)
    (output * torch.randn(output.shape, generator=generator)).sum().add(hidden.sum()).backward()
    assert finite(model, output, hidden), config
    exact: SequenceModel = copy.deepcopy(model).double()
    with torch.no_grad():
        wide = x.double()
        output, hidden = exact(wide, None, resets)
        state, stepped, single = None, [], None
        for t in range(x.shape[1]):
            y, state = exact(wide[:, t], state, None if state is None else resets[:, t])
            _, single = model(x[:, t], single)
            assert single.isfinite().all(), config
            stepped.append(y)
    for one, two in ((output, torch.stack(stepped, 1)), (hidden, state)):
        if one.numel():
            assert two is not None
            assert (one - two).abs().max() <= 1e-5 * (1 + one.abs().max()), config


@kinds
def test_a_model_at_the_ends_of_its_configuration_is_finite_and_its_steps_are_its_sequence(kind: str) -> None:
    for seed, config in enumerate(configurations(kind, 12)):
        check(config, seed)


@pytest.mark.slow
@kinds
@pytest.mark.parametrize("seed", range(4))
def test_many_mixtures_of_ends_are_finite(kind: str, seed: int) -> None:
    for draw, config in enumerate(configurations(kind, 300, seed + 1)):
        check(config, 1000 * seed + draw)


@pytest.mark.slow
@kinds
def test_the_largest_size_of_each_field_alone_is_finite(kind: str) -> None:
    fields = MODELS[kind].config_type.model_fields
    for name, field in fields.items():
        if field.annotation is int:
            sizes = {"hidden_dim": 2, "num_layers": 1, **({"state_dim": 4} if "state_dim" in fields else {})}
            largest = ends(name, field, largest=4096)[-1]
            try:
                config = parse_model_config({"kind": kind, **sizes, name: largest})
            except InputError:
                continue
            check(config, 0)


@pytest.mark.parametrize("gaussian", [True, False])
def test_a_policy_at_the_ends_of_its_configuration_is_finite(gaussian: bool) -> None:
    action = ActionSpec("gaussian" if gaussian else "categorical", 1 if gaussian else 2)
    for seed, fields in enumerate(alone_and_mixed(PolicyConfig, 12)):
        model = parse_model_config({"kind": "lru", "hidden_dim": 1, "state_dim": 2})
        generator = torch.Generator().manual_seed(seed)
        policy = RecurrentPolicy(
            1, action, PolicyConfig.model_validate({**fields, "model": model}), generator=generator
        )
        inputs = PolicyInput(
            *(torch.randn(2, 5, *size, generator=generator) for size in ((1,), (action.size,), (), ()))
        )
        output = policy(inputs)
        actions = torch.randn(2, 5, 1, generator=generator) if gaussian else torch.zeros(2, 5, dtype=torch.int64)
        loss = log_prob(output, actions).mean() + output.value.mean() + entropy(output).mean()
        loss.backward()
        assert finite(policy, loss, output.mean_or_logits, output.next_hidden)


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused_with_the_types_that_are_allowed(kind: str, dtype: torch.dtype) -> None:
    model = build_model(default_config(kind), 3, 2)
    for shape in ((2, 3), (2, 4, 3)):
        with pytest.raises(InputError, match=f"^x: got .*{dtype}.* allowed: .*float32"):
            model(torch.zeros(shape, dtype=dtype))
    model.to(dtype)
    for given in (dtype, torch.float32):
        for shape in ((2, 3), (2, 4, 3)):
            with pytest.raises(InputError, match=f"{dtype}.* allowed: torch.float32 or torch.float64"):
                model(torch.zeros(shape, dtype=given))


def test_a_width_that_heads_do_not_divide_is_refused_as_any_other_value() -> None:
    for wrong in (
        lambda: parse_model_config({"kind": "transformer", "hidden_dim": 1}),
        lambda: with_width(default_config("transformer"), 1),
    ):
        with pytest.raises(InputError, match="hidden_dim 1 must be a multiple of num_heads 4"):
            wrong()
    with pytest.raises(InputError, match="hidden_dim, got 0: "):
        with_width(default_config("lstm"), 0)


def test_a_range_that_ends_before_it_begins_is_refused() -> None:
    for kind in ("s5", "s4d", "mamba"):
        with pytest.raises(InputError, match=r"dt_min 0.2 must be at most dt_max 0.1"):
            parse_model_config({"kind": kind, "dt_min": 0.2, "dt_max": 0.1})
    with pytest.raises(InputError, match=r"r_min 0.9 must be less than r_max 0.9"):
        parse_model_config({"kind": "lru", "r_min": 0.9, "r_max": 0.9})


def test_a_mamba_stack_reads_a_stream_beyond_its_bound_as_the_bound() -> None:
    model = build_model(parse_model_config({"kind": "mamba", "hidden_dim": 4, "num_layers": 1}), 4, 4)
    x = torch.tensor([[[2e3, -1.0, 2.0, -5e4]]])
    held = x.clamp(-1e3, 1e3)
    assert torch.allclose(model(x)[0] - x, model(held)[0] - held, rtol=1e-3)
