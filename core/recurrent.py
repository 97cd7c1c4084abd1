"""LSTM under the common contract: the baseline that a state space model has to beat."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from core.config import search
from core.sequence_model import SequenceModel, SequenceModelConfig, linear, register_model


class LSTMConfig(SequenceModelConfig):
    """LSTM (Hochreiter and Schmidhuber 1997), torch's gates and layout."""

    kind: Literal["lstm"] = "lstm"
    num_layers: int = Field(default=1, ge=1, le=32, json_schema_extra=search(choices=(1, 2)))
    """Depth: how many layers are stacked."""
    forget_bias: float = Field(default=1.0, ge=-5, le=5, json_schema_extra=search(choices=(0.0, 1.0, 2.0)))
    """Initial bias of the forget gate; 1 keeps memory at the start (Jozefowicz et al. 2015)."""


@register_model("lstm", LSTMConfig)
class LSTM(SequenceModel):
    """torch's LSTM. hidden is [h | c] of each layer side by side, (B, 2 * num_layers * hidden_dim)."""

    def __init__(self, config: LSTMConfig, input_dim: int, output_dim: int, *, generator: torch.Generator) -> None:
        super().__init__(config, input_dim, output_dim)
        width, layers = config.hidden_dim, config.num_layers
        # Made on the meta device: torch's own initialisation would draw from the global generator.
        self.core = nn.LSTM(input_dim, width, layers, batch_first=True, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            for name, parameter in self.core.named_parameters():
                if name.startswith("weight_hh"):
                    for gate in parameter.chunk(4):
                        nn.init.orthogonal_(gate, generator=generator)
                elif name.startswith("weight_ih"):
                    parameter.normal_(0.0, 1 / math.sqrt(parameter.shape[1]), generator=generator)
                else:
                    parameter.zero_()
                    if name.startswith("bias_ih"):
                        parameter[width : 2 * width] = config.forget_bias
        self.decoder = None if output_dim == width else linear(width, output_dim, generator)
        self.width, self.layers, self.hidden_size = width, layers, 2 * layers * width

    def _sequence(self, x: Tensor, hidden: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        h, c = hidden.unflatten(1, (self.layers, 2, self.width)).permute(2, 1, 0, 3).contiguous().unbind(0)
        if keep is None:
            cuts = [0]
        else:
            h, c = h * keep[:, 0, None], c * keep[:, 0, None]
            cuts = [0, *((keep[:, 1:] != 1).any(0).nonzero().flatten() + 1).tolist()]
        outputs = []
        for start, end in zip(cuts, [*cuts[1:], x.shape[1]], strict=True):
            if start:
                assert keep is not None
                h, c = h * keep[:, start, None], c * keep[:, start, None]
            y, (h, c) = self.core(x[:, start:end], (h, c))
            outputs.append(y)
        y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
        hidden = torch.stack([h, c], 2).permute(1, 0, 2, 3).flatten(1)
        return y if self.decoder is None else self.decoder(y), hidden

    def _step(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        states = hidden.split(self.width, 1)
        parts = []
        for i in range(self.layers):
            weights = [getattr(self.core, f"{name}_l{i}") for name in NAMES]
            x, c = torch.lstm_cell(x, (states[2 * i], states[2 * i + 1]), *weights)
            parts += [x, c]
        return x if self.decoder is None else self.decoder(x), torch.cat(parts, 1)


NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
