"""A stack of residual blocks between an input and an output map: state space models, transformers, MLPs and hybrids.

A block is an nn.Module with
    state_size                                        real numbers of state for one sequence
    forward(x, state, keep) -> (x, state)             x (B, T, H), state (B, state_size), keep (B, T) = 1 - resets or None
    prepare_step() -> anything                        what only parameters decide, computed once for many steps
    step(x, state, prepared) -> (x, state)            x (B, H): the same for one step, without gradients
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from core.registry import Registry
from core.sequence_model import SequenceModel, SequenceModelConfig, StepCache, linear

BLOCKS: Registry[Callable[[Any, torch.Generator], nn.Module]] = Registry("block")
"""Block kinds: called as BLOCKS[kind](config, generator), config being the configuration of that kind."""


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
