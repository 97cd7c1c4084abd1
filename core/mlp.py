"""An MLP under the common contract: the model without memory, so that an ablation of memory is a fair one."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field
from torch import Tensor, nn

from core.config import search
from core.sequence_model import SequenceModelConfig, linear, register_model
from core.stack import BLOCKS, BlockStack, LayerNorm


class MLPConfig(SequenceModelConfig):
    """Residual two-layer maps, applied at each time step alone."""

    kind: Literal["mlp"] = "mlp"
    expansion: int = Field(default=2, ge=1, le=16, json_schema_extra=search(choices=(1, 2, 4)))
    """Width of a block's inner layer, in hidden_dims."""
    norm: Literal["none", "layer", "rms"] = "none"
    """Normalisation in front of each block."""


@BLOCKS.register("mlp")
class MLPBlock(nn.Module):
    """x + W2 silu(W1 norm(x)): no state."""

    state_size = 0

    def __init__(self, config: MLPConfig, generator: torch.Generator) -> None:
        super().__init__()
        width, expansion = config.hidden_dim, config.expansion
        self.norm = LayerNorm(width) if config.norm == "layer" else nn.RMSNorm(width) if config.norm == "rms" else None
        self.inner = linear(width, width * expansion, generator)
        self.outer = linear(width * expansion, width, generator)

    def forward(self, x: Tensor, state: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (..., H), state (B, 0) to the same shapes."""
        return x + self.outer(F.silu(self.inner(x if self.norm is None else self.norm(x)))), state

    def prepare_step(self) -> None:
        """Nothing to prepare."""

    def step(self, x: Tensor, state: Tensor, prepared: None) -> tuple[Tensor, Tensor]:
        """One step is the same map."""
        return self.forward(x, state, None)


@register_model("mlp", MLPConfig)
class MLP(BlockStack):
    """hidden is (B, 0): nothing is carried."""

    def __init__(self, config: MLPConfig, input_dim: int, output_dim: int, *, generator: torch.Generator) -> None:
        super().__init__(config, input_dim, output_dim, [("mlp", config)] * config.num_layers, generator)
