"""A stack of residual blocks between an input and an output map: state space models, transformers, MLPs and hybrids.

A block is an nn.Module with
    state_size                                        real numbers of state for one sequence
    forward(x, state, keep) -> (x, state)             x (B, T, H), state (B, state_size), keep (B, T) = 1 - resets or None
    prepare_step() -> anything                        what only parameters decide, computed once for many steps
    step(x, state, prepared) -> (x, state)            x (B, H): the same for one step, without gradients
A hybrid is a stack whose blocks are a typed list that people, optimizers and agents compose.
A block's norm, where it has one, is `LayerNorm` below or torch's RMSNorm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from core.config import search
from core.registry import Registry
from core.sequence_model import (
    MODELS,
    SequenceModel,
    SequenceModelConfig,
    StepCache,
    linear,
    register_model,
    transforms_active,
    width_multiple,
)

BLOCKS: Registry[Callable[[Any, torch.Generator], nn.Module]] = Registry("block")
"""Block kinds: called as BLOCKS[kind](config, generator), config being the configuration of that kind."""


class LayerNorm(nn.LayerNorm):
    """y = (x - E[x]) / sqrt(Var[x] + eps) * weight + bias over the last dimension (Ba et al. 2016, equation 4).

    torch's own kernel otherwise; under a torch.func transform plain operations, because there the second derivative of
    torch's kernel takes mean and deviation as constants (seen in 2.13: a meta-gradient 0.2 % off, without an error).
    """

    def forward(self, input: Tensor) -> Tensor:
        """x and y: (..., D)."""
        if not transforms_active():
            return super().forward(input)
        centred = input - input.mean(-1, keepdim=True)
        scaled = centred * (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        if self.weight is not None:
            scaled = scaled * self.weight
        return scaled if self.bias is None else scaled + self.bias


class BlockStack(SequenceModel):
    """Encoder, blocks, decoder; encoder and decoder are the identity where the widths agree.

    blocks: kind and configuration of each, in order. `hidden` is every block's state side by side.
    """

    def __init__(
        self,
        config: SequenceModelConfig,
        input_dim: int,
        output_dim: int,
        blocks: list[tuple[str, Any]],
        generator: torch.Generator,
    ) -> None:
        super().__init__(config, input_dim, output_dim)
        width = config.hidden_dim
        self.encoder = None if input_dim == width else linear(input_dim, width, generator)
        self.blocks = nn.ModuleList(BLOCKS[kind](block_config, generator) for kind, block_config in blocks)
        self.decoder = None if output_dim == width else linear(width, output_dim, generator)
        self.sizes = [int(block.state_size) for block in self.blocks]  # pyright: ignore[reportArgumentType]
        self.hidden_size = sum(self.sizes)
        self._cache = StepCache()

    def _sequence(self, x: Tensor, hidden: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            self._cache.clear()
        x = x if self.encoder is None else self.encoder(x)
        states = []
        for block, state in zip(self.blocks, hidden.split(self.sizes, 1), strict=True):
            x, state = block(x, state, keep)
            states.append(state)
        return x if self.decoder is None else self.decoder(x), _side_by_side(states)

    def _step(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        prepared: list[Any] = self._cache.get(self.blocks, lambda: [block.prepare_step() for block in self.blocks])  # pyright: ignore[reportCallIssue]
        x = x if self.encoder is None else self.encoder(x)
        states = []
        for block, state, ready in zip(self.blocks, hidden.split(self.sizes, 1), prepared, strict=True):
            x, state = block.step(x, state, ready)  # pyright: ignore[reportCallIssue]
            states.append(state)
        return x if self.decoder is None else self.decoder(x), _side_by_side(states)


def _side_by_side(states: list[Tensor]) -> Tensor:
    """All states in one (B, S), without a copy where only one block has any."""
    filled = [state for state in states if state.shape[1]]
    return filled[0] if len(filled) == 1 else torch.cat(filled or states, 1)


# ------------------------------------------------------------------------------- stacks of different blocks
BlockKind = Literal["s5", "lru", "s4d", "mamba", "rg-lru", "mlstm", "ssd", "gated-deltanet", "attention", "mlp"]


class HybridConfig(SequenceModelConfig):
    """Blocks of different kinds in one residual stream. A field means to every block what it means to its own kind."""

    kind: Literal["hybrid"] = "hybrid"
    num_layers: int = Field(default=1, ge=1, le=32)
    """How often the list of blocks is repeated."""
    blocks: tuple[BlockKind, ...] = Field(
        default=("lru", "attention", "mlp"),
        min_length=1,
        max_length=32,
        json_schema_extra=search(choices=get_args(BlockKind), slots=6, since=3),
    )
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

    @field_validator("blocks", mode="before")
    @classmethod
    def _written_as_a_sum(cls, blocks: Any) -> Any:
        """A list may be written in one word: s5/attention."""
        return tuple(part.strip() for part in blocks.split("/")) if isinstance(blocks, str) else blocks

    @model_validator(mode="after")
    def _every_block_is_valid(self) -> HybridConfig:
        for kind in set(self.blocks):
            self.block_config(kind)
        depth = self.num_layers * len(self.blocks)
        if (
            self.norm == "none" and depth > 32
        ):  # as deep as any other kind goes; each block doubles the stream at the start
            raise ValueError(f"num_layers times blocks is {depth}: more than 32 need a norm, layer or rms")
        return self

    def block_config(self, kind: str) -> Any:
        """The configuration of one block: this one's values for all fields that its kind has."""
        config_type = MODELS["transformer" if kind == "attention" else kind].config_type
        own = {name: getattr(self, name) for name in type(self).model_fields if name in config_type.model_fields}
        if kind == "rg-lru" and self.norm == "none":  # which always has one
            del own["norm"]
        return config_type.model_validate({**own, "kind": config_type.model_fields["kind"].default, "num_layers": 1})

    @property
    def width_multiple(self) -> int:
        """The width must be a multiple of this."""
        return math.lcm(*(width_multiple(self.block_config(kind)) for kind in self.blocks))

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
