"""The model benchmark measures every model at what it says, and its memory column tells linear growth from quadratic."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from core.errors import InputError
from core.sequence_model import MODELS
from experiments.bench import models as bench


@pytest.fixture(scope="module")
def measured() -> bench.ModelBenchmark:
    return bench.bench_models(widths=(16,), lengths=(8, 32), batch=2, worlds=2, quick=True)


def test_every_model_has_a_row_for_each_comparison_and_length(measured: bench.ModelBenchmark) -> None:
    seen = {(row.model.split()[0], row.match, row.length) for row in measured.training}
    wanted = {(kind, match, length) for kind in MODELS for match in ("width", "parameters") for length in (8, 32)}
    assert wanted <= seen
    assert {(row.model.split()[0], row.match) for row in measured.acting} >= {(k, m) for k, m, _ in wanted}


def test_what_is_said_to_be_equal_is_equal(measured: bench.ModelBenchmark) -> None:
    rival = next(row.parameters for row in measured.training if row.model == bench.RIVAL)
    for row in measured.training:
        if row.match == "width":
            assert row.width == 16
        else:
            assert row.parameters == pytest.approx(rival, rel=0.25)  # whole widths, at sixteen


def test_the_yardstick_is_one_and_all_numbers_are_positive(measured: bench.ModelBenchmark) -> None:
    for row in (*measured.training, *measured.acting):
        assert row.speedup > 0
        assert row.model != bench.RIVAL or row.speedup == 1


def test_kept_memory_grows_linearly_with_the_length_for_every_model(measured: bench.ModelBenchmark) -> None:
    memory = {(row.model, row.match, row.length): row.activations_mb for row in measured.training}
    for (model, match, length), value in memory.items():
        # torch's own LSTM keeps a workspace besides; a transformer grows quadratically up to its window.
        if length == 32 and model not in (bench.RIVAL, "lstm", "transformer", "hybrid"):
            assert 2.5 < value / memory[model, match, 8] < 4.5, model


def test_the_memory_column_sees_a_quadratic_model() -> None:
    class Quadratic(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return ((x @ x.transpose(1, 2)).exp() @ x,)

    short, long = (torch.randn(1, time, 4, requires_grad=True) for time in (16, 64))
    assert bench._activations_mb(Quadratic(), long) > 10 * bench._activations_mb(Quadratic(), short)


def test_the_text_has_a_line_for_every_model_and_json_survives(measured: bench.ModelBenchmark) -> None:
    text = bench.as_text(measured)
    assert all(text.count(f"\n{kind} ") >= 2 for kind in MODELS)
    assert bench.ModelBenchmark.model_validate_json(measured.model_dump_json()) == measured


def test_wrong_arguments_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="device"):
        bench.bench_models(device="cuda:77")
    with pytest.raises(InputError, match="widths"):
        bench.bench_models(widths=())
    with pytest.raises(InputError, match="lengths"):
        bench.bench_models(lengths=(0,))
