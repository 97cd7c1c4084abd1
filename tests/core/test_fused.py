"""The compiled block against its plain reference, in every form, where they may be told apart."""

from __future__ import annotations

import itertools

import pytest
import torch

from core.fused.autograd import fused_allowed
from core.fused.bounded_block import BoundedBlock, bounded_reference
from core.fused.ssm_block import FusedBlock, block_reference
from core.sequence_model import build_model, parse_model_config
from core.ssm import StateSpaceModel

KINDS = ("s5", "lru", "s4d")
FORMS = [*itertools.product(KINDS, ("none", "half", "full"), ("none", "rms")), *((k, "bounded", "none") for k in KINDS)]


@pytest.mark.parametrize(("kind", "gating", "norm"), FORMS)
@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
def test_the_fused_block_equals_the_reference_forwards_and_backwards(
    kind: str, gating: str, norm: str, discretization: str
) -> None:
    fields = {"kind": kind, "hidden_dim": 8, "state_dim": 32, "gating": gating, "norm": norm, "num_layers": 1}
    if kind != "lru":
        fields["discretization"] = discretization
    if gating == "bounded" and kind != "s4d":
        fields["integrators"] = 0.25
    model = build_model(parse_model_config(fields), 8, 8)
    assert isinstance(model, StateSpaceModel)
    block = model.blocks[0]
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(3, 11, 8, generator=generator, requires_grad=True)
    residual = None if norm == "none" else torch.randn(3, 11, 8, generator=generator, requires_grad=True)
    state = torch.randn(3, 32, generator=generator, requires_grad=True)
    keep = (torch.rand(3, 11, generator=generator) > 0.2).float()
    gate = block.gate
    weight, bias = (None, None) if gate is None else (gate.weight, gate.bias)  # pyright: ignore
    cell = block.cell  # pyright: ignore
    parameters = cell.parameters_for()  # pyright: ignore
    runs, added = (FusedBlock.apply, block_reference), (residual,)
    if gating == "bounded":
        runs, added = (BoundedBlock.apply, bounded_reference), ()
    inputs = (cell.form, cell.method, u, *added, state, keep, cell.D, weight, bias, *parameters)  # pyright: ignore
    wanted = [value for value in inputs if isinstance(value, torch.Tensor) and value.requires_grad]
    results = []
    for run in runs:
        output, last = run(*inputs)
        upstream = torch.linspace(-1, 1, output.numel()).view_as(output)
        slopes = torch.autograd.grad((output * upstream).sum() + last.square().sum(), wanted)
        results.append([output, last, *slopes])
    for fused, plain in zip(*results, strict=True):
        assert (fused - plain).abs().max() <= 2e-5 * plain.abs().max() + 1e-6


def test_only_one_output_may_be_used() -> None:
    model = build_model(parse_model_config({"kind": "s4d", "hidden_dim": 4, "state_dim": 16}), 4, 4)
    x = torch.randn(2, 5, 4, requires_grad=True)
    for pick in (0, 1):
        model(x)[pick].sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()


def test_backward_may_run_twice_on_a_kept_graph() -> None:
    for kind in ("s5", "s4d", "mamba", "gru", "lstm", "transformer"):
        model = build_model(parse_model_config({"kind": kind, "hidden_dim": 8, "num_layers": 1}) if kind != "s4d" else
                            parse_model_config({"kind": kind, "hidden_dim": 8, "state_dim": 16}), 3, 2)  # fmt: skip
        x = torch.randn(2, 5, 3, requires_grad=True)
        loss = model(x)[0].square().sum()
        first = torch.autograd.grad(loss, x, retain_graph=True)[0]
        assert torch.equal(first, torch.autograd.grad(loss, x)[0])


def test_inputs_that_are_not_contiguous_are_read_right() -> None:
    for kind in ("s5", "s4d", "mamba", "gru", "lstm", "transformer", "mlp"):
        fields = {"kind": kind, "hidden_dim": 8, **({"state_dim": 16} if kind in ("s5", "s4d") else {})}
        model = build_model(parse_model_config(fields), 8, 8)
        x = torch.randn(5, 8, 3).permute(2, 0, 1)
        output, hidden = model(x, model.init_hidden(6)[::2])
        plain, plain_hidden = model(x.contiguous())
        assert torch.allclose(output, plain, atol=1e-6)
        assert torch.allclose(hidden, plain_hidden, atol=1e-6)
        with torch.no_grad():
            assert torch.allclose(model(x[:, 0])[0], output[:, 0], atol=1e-5)
        output.transpose(0, 1).square().sum().backward()


def test_the_fused_path_is_left_where_it_would_be_wrong() -> None:
    assert fused_allowed(torch.zeros(1))
    assert not fused_allowed(torch.zeros(1, dtype=torch.float64))
    seen = []
    torch.func.vmap(lambda x: seen.append(fused_allowed(x)) or x)(torch.zeros(2))
    assert seen == [False]
