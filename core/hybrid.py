"""Hybrid stacks: an architecture as a typed value, a list of block kinds that people, optimizers and agents compose."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from core.sequence_model import MODELS, SequenceModelConfig, register_model
from core.stack import BlockStack

BlockKind = Literal["s5", "lru", "s4d", "mamba", "attention", "mlp"]


class HybridConfig(SequenceModelConfig):
    """Blocks of different kinds in one residual stream. A field means to every block what it means to its own kind."""

    kind: Literal["hybrid"] = "hybrid"
    num_layers: int = Field(default=1, ge=1, le=32)
    """How often the list of blocks is repeated."""
    blocks: tuple[BlockKind, ...] = Field(default=("lru", "attention", "mlp"), min_length=1, max_length=32)
    """Block kinds in order; attention looks back over a sliding window of `context` steps."""
    state_dim: int = Field(default=128, ge=2, le=65536)
    """Real numbers of state of each s5, lru and s4d block; with s4d a multiple of 2 * hidden_dim."""
    gating: Literal["none", "half", "full"] = "full"
    """Pointwise part of s5, lru and s4d blocks."""
    norm: Literal["none", "layer", "rms"] = "none"
    """Normalisation in front of every block but attention, which always has one."""
    num_heads: int = Field(default=4, ge=1, le=64)
    """Attention heads; hidden_dim must be a multiple of it."""
    context: int = Field(default=32, ge=1, le=8192)
    """How many steps an attention block sees."""
    expansion: int = Field(default=2, ge=1, le=16)
    """Inner width of mlp blocks, in hidden_dims."""
    states_per_channel: int = Field(default=8, ge=1, le=256)
    """States of each channel of a mamba block."""

    @model_validator(mode="after")
    def _every_block_is_valid(self) -> HybridConfig:
        for kind in set(self.blocks):
            self.block_config(kind)
        return self

    def block_config(self, kind: str) -> Any:
        """The configuration of one block: this one's values for all fields that its kind has."""
        config_type = MODELS["transformer" if kind == "attention" else kind].config_type
        own = {name: getattr(self, name) for name in type(self).model_fields if name in config_type.model_fields}
        return config_type.model_validate({**own, "kind": config_type.model_fields["kind"].default, "num_layers": 1})

    @property
    def width_multiple(self) -> int:
        """The width must be a multiple of this."""
        return self.num_heads if "attention" in self.blocks else 1

    def state_dim_for_width(self, width: int) -> int:
        """The state size that keeps the present ratio to hidden_dim at another width."""
        multiple = 2 * width if "s4d" in self.blocks else 2
        return max(1, round(self.state_dim * width / self.hidden_dim / multiple)) * multiple


@register_model("hybrid", HybridConfig)
class Hybrid(BlockStack):
    """hidden is every block's state side by side."""

    def __init__(self, config: HybridConfig, input_dim: int, output_dim: int, *, generator: torch.Generator) -> None:
        blocks = [(kind, config.block_config(kind)) for kind in config.blocks] * config.num_layers
        super().__init__(config, input_dim, output_dim, blocks, generator)
