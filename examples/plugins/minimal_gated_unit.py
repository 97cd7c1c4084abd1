"""A sequence model in one file: the minimal gated unit, a GRU with a single gate.

    f_t = sig(W_f x_t + U_f h_{t-1} + b_f)
    c_t = tanh(W_c x_t + U_c (f_t * h_{t-1}) + b_c)
    h_t = (1 - f_t) * h_{t-1} + f_t * c_t

Source: Zhou et al. 2016 (arXiv 1603.09420), equations 6 to 8. Plain torch, one step after another.

    python main.py --plugin examples/plugins/minimal_gated_unit.py --goal "beat LSTM with mgu on point-robot"
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from core.config import search
from core.sequence_model import SequenceModel, SequenceModelConfig, linear, register_model


class MinimalGatedUnitConfig(SequenceModelConfig):
    """Minimal gated unit (Zhou et al. 2016)."""

    kind: Literal["mgu"] = "mgu"
    num_layers: int = Field(default=1, ge=1, le=32, json_schema_extra=search(choices=(1, 2)))
    """Depth: how many layers are stacked."""
    gate_bias: float = Field(default=-1.0, ge=-5, le=5, json_schema_extra=search(choices=(-2.0, -1.0, 0.0)))
    """Initial bias of the gate; below 0 the unit keeps its memory at the start of training."""


class Layer(nn.Module):
    """One layer: x (B, T, D) and h (B, H) to the outputs (B, T, H) and the last of them."""

    def __init__(self, input_dim: int, width: int, gate_bias: float, generator: torch.Generator) -> None:
        super().__init__()
        self.gate_input = linear(input_dim, width, generator)
        self.gate_state = linear(width, width, generator, bias=False)
        self.candidate_input = linear(input_dim, width, generator)
        self.candidate_state = linear(width, width, generator, bias=False)
        with torch.no_grad():
            self.gate_input.bias.fill_(gate_bias)

    def forward(self, x: Tensor, h: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        gates, candidates, outputs = self.gate_input(x), self.candidate_input(x), []
        for t in range(x.shape[1]):
            if keep is not None:
                h = h * keep[:, t, None]
            f = torch.sigmoid(gates[:, t] + self.gate_state(h))
            h = (1 - f) * h + f * torch.tanh(candidates[:, t] + self.candidate_state(f * h))
            outputs.append(h)
        return torch.stack(outputs, 1), h


@register_model("mgu", MinimalGatedUnitConfig)
class MinimalGatedUnit(SequenceModel):
    """hidden is the state of each layer side by side, (B, num_layers * hidden_dim)."""

    def __init__(
        self, config: MinimalGatedUnitConfig, input_dim: int, output_dim: int, *, generator: torch.Generator
    ) -> None:
        super().__init__(config, input_dim, output_dim)
        self.width, self.hidden_size = config.hidden_dim, config.num_layers * config.hidden_dim
        widths = [input_dim, *[self.width] * (config.num_layers - 1)]
        self.layers = nn.ModuleList(Layer(width, self.width, config.gate_bias, generator) for width in widths)
        self.decoder = nn.Identity() if output_dim == self.width else linear(self.width, output_dim, generator)

    def _sequence(self, x: Tensor, hidden: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        states = []
        for layer, h in zip(self.layers, hidden.split(self.width, 1), strict=True):
            x, h = layer(x, h, keep)
            states.append(h)
        return self.decoder(x), torch.cat(states, 1)
