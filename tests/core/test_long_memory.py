"""Memory that matters: a symbol shown at the start, asked for 256 steps later. A model without memory stays at chance."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from core.sequence_model import build_model, parse_model_config

LENGTH, SYMBOLS = 256, 4
CONFIGS = {
    "s5": {"state_dim": 32, "dt_min": 0.001, "dt_max": 0.1},
    "lru": {"state_dim": 32, "r_max": 0.999},
    "s4d": {"state_dim": 128, "dt_min": 0.001, "dt_max": 0.1},
    "mamba": {"states_per_channel": 2, "dt_min": 0.003, "dt_max": 0.3},
    "mlp": {},
}


def recall_accuracy(kind: str, updates: int, learning_rate: float = 3e-3) -> float:
    """Selective copy of one symbol: it comes at a random step of the first 32, among noise, and is asked for at the end.

    Accuracy over the last quarter of the updates, on sequences that were never seen before.
    """
    generator = torch.Generator().manual_seed(0)
    config = parse_model_config({"kind": kind, "hidden_dim": 32, **CONFIGS[kind]})
    model = build_model(config, SYMBOLS + 1, SYMBOLS, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    correct = []
    for _ in range(updates):
        symbol = torch.randint(SYMBOLS, (16,), generator=generator)
        place = torch.randint(32, (16,), generator=generator)
        x = torch.zeros(16, LENGTH, SYMBOLS + 1)
        x[..., :SYMBOLS] = 0.1 * torch.randn(16, LENGTH, SYMBOLS, generator=generator)
        x[torch.arange(16), place, :SYMBOLS] = F.one_hot(symbol, SYMBOLS).float()
        x[torch.arange(16), place, SYMBOLS] = 1
        logits = model(x)[0][:, -1]
        loss = F.cross_entropy(logits, symbol)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        correct.append((logits.argmax(-1) == symbol).float().mean().item())
    late = correct[-updates // 4 :]
    return sum(late) / len(late)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["s5", "lru", "s4d"])
def test_every_linear_cell_learns_to_recall_over_256_steps(kind: str) -> None:
    assert recall_accuracy(kind, 600) > 0.9


@pytest.mark.slow
def test_mamba_learns_to_recall_over_256_steps() -> None:
    assert recall_accuracy("mamba", 1200, learning_rate=6e-3) > 0.9


@pytest.mark.slow
def test_an_mlp_stays_at_chance() -> None:
    assert abs(recall_accuracy("mlp", 200) - 1 / SYMBOLS) < 0.08
