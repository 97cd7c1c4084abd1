"""A causal transformer with a sliding window, whose cache is the hidden state: one step equals the sequence.

Each query sees the last `context` steps, itself included, back to the last reset. Positions enter as a penalty on
distance, a slope for each head (ALiBi, Press et al. 2022, arXiv 2108.12409, section 3), which needs no absolute position
and so lets the cache roll. Sequences are walked in stretches of `context` steps, each with the cache of the one before:
memory and time grow linearly with T.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field, model_validator
from torch import Tensor, nn

from core.config import search
from core.fused.autograd import Native, fused_allowed
from core.kernels.attention import attend_step
from core.kernels.jit import as_numpy
from core.mlp import MLPConfig
from core.sequence_model import SequenceModelConfig, linear, register_model, transforms_active
from core.stack import BLOCKS, BlockStack, LayerNorm


class TransformerConfig(SequenceModelConfig):
    """Pre-norm causal transformer (Vaswani et al. 2017; Xiong et al. 2020) with a rolling window."""

    kind: Literal["transformer"] = "transformer"
    num_heads: int = Field(default=4, ge=1, le=64)
    """Attention heads; hidden_dim must be a multiple of it."""
    context: int = Field(default=200, ge=1, le=8192, json_schema_extra=search(choices=(50, 100, 200)))
    """How many steps a query sees; the cache holds as many keys and values."""
    expansion: int = Field(default=4, ge=1, le=16)
    """Width of the pointwise part, in hidden_dims."""

    @model_validator(mode="after")
    def _heads_divide(self) -> TransformerConfig:
        if self.hidden_dim % self.num_heads:
            raise ValueError(f"hidden_dim {self.hidden_dim} must be a multiple of num_heads {self.num_heads}")
        return self

    @property
    def width_multiple(self) -> int:
        """The width must be a multiple of this."""
        return self.num_heads


def attention_reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor]:
    """softmax(q k^T / sqrt(d) + mask) v (Vaswani et al. 2017, equation 1)."""
    return (((q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + mask).softmax(-1)) @ v,)


def attention_native(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor]:
    """The same through torch's kernel, which does not hold all weights."""
    return (F.scaled_dot_product_attention(q, k, v, attn_mask=mask),)


class _Attention(Native):
    reference = staticmethod(attention_reference)
    native = staticmethod(attention_native)


@BLOCKS.register("attention")
class AttentionBlock(nn.Module):
    """x + W_o attention(norm(x)) over a sliding window.

    State of a sequence: [count | K (W, H) | V (W, H)], newest last; count is how many entries are filled.
    """

    def __init__(self, config: TransformerConfig, generator: torch.Generator) -> None:
        super().__init__()
        width, heads, context = config.hidden_dim, config.num_heads, config.context
        self.width, self.heads, self.context = width, heads, context
        self.state_size = 1 + 2 * context * width
        self.norm = LayerNorm(width)
        self.project = linear(width, 3 * width, generator)
        self.merge = linear(width, width, generator)
        slopes = 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)
        self.slopes: Tensor
        self.register_buffer("slopes", slopes, persistent=False)

    def forward(self, x: Tensor, state: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, T, H), state (B, 1 + 2 W H) to the same shapes."""
        outputs = []
        for start in range(0, x.shape[1], self.context):
            part = slice(start, start + self.context)
            y, state = self._stretch(x[:, part], state, None if keep is None else keep[:, part])
            outputs.append(y)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1), state

    def _stretch(self, x: Tensor, state: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """At most W steps: queries against the cache and against each other."""
        batch, time, width = x.shape
        window = self.context
        count, cache = state[:, 0], state[:, 1:].unflatten(1, (2, window, width))
        q, k, v = self.project(self.norm(x)).chunk(3, -1)
        keys, values = torch.cat([cache[:, 0], k], 1), torch.cat([cache[:, 1], v], 1)
        steps = torch.arange(window + time, device=x.device)
        filled = (steps >= window - count.unsqueeze(1)) | (steps >= window)
        age = steps[window:, None] - steps  # (T, W + T)
        near = (age >= 0) & (age < window)
        penalty = -self.slopes.view(-1, 1, 1) * age
        if keep is not None and not transforms_active() and bool((keep == 1).all()):
            keep = None
        known = keep is None and not transforms_active()
        alive = filled
        if known and not bool(count.any()):
            # Nothing is cached and nothing is reset: the new steps alone, one mask for all sequences.
            y = self._attend(q, k, v, penalty.masked_fill(~near, -math.inf)[None, :, :, window:])
        elif known and bool(filled.all()):
            y = self._attend(q, keys, values, penalty.masked_fill(~near, -math.inf)[None])
        else:
            # Segments: how often a sequence was reset so far. The cache is segment 0.
            segment = x.new_zeros(batch, time) if keep is None else (1 - keep).cumsum(1)
            key_segment = torch.cat([segment.new_zeros(batch, window), segment], 1)
            seen = (segment.unsqueeze(2) == key_segment.unsqueeze(1)) & filled.unsqueeze(1) & near
            y = self._attend(q, keys, values, penalty.masked_fill(~seen.unsqueeze(1), -math.inf))
            alive = (key_segment == segment[:, -1:]) & filled
        # What is left of the cache: the last W entries, of the last segment only, zeros elsewhere as after a reset.
        kept = torch.stack([keys, values], 1)[:, :, -window:] * alive[:, None, -window:, None]
        state = torch.cat([alive[:, -window:].sum(1, keepdim=True).to(x.dtype), kept.flatten(1)], 1)
        return x + self.merge(y), state

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """q (B, T, H), k and v (B, K, H), mask (1 or B, heads, T, K) to be added, to (B, T, H)."""
        q, k, v = (z.unflatten(-1, (self.heads, -1)).transpose(1, 2) for z in (q, k, v))
        run = attention_reference
        if not transforms_active():
            run = _Attention.apply if torch.is_grad_enabled() else attention_native
        return run(q, k, v, mask)[0].transpose(1, 2).flatten(2)

    def prepare_step(self) -> Tensor:
        """The distance penalties (heads, W), oldest first."""
        age = torch.arange(self.context - 1, -1, -1, device=self.slopes.device)
        return -self.slopes.unsqueeze(1) * age

    def step(self, x: Tensor, state: Tensor, prepared: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, H), state (B, 1 + 2 W H): roll the cache by one and look at all of it."""
        window, width = self.context, self.width
        projected = self.project(self.norm(x))
        if fused_allowed(x):
            after, y = torch.empty(state.shape), torch.empty(x.shape)
            attend_step(as_numpy(projected), as_numpy(state), prepared.numpy(), window, after.numpy(), y.numpy())
            return x + F.linear(y, self.merge.weight, self.merge.bias), after
        q, k, v = projected.chunk(3, -1)
        count = (state[:, :1] + 1).clamp_(max=window)
        oldest = slice(1 + width, 1 + window * width), slice(1 + (window + 1) * width, None)
        state = torch.cat([count, state[:, oldest[0]], k, state[:, oldest[1]], v], 1)
        keys, values = state[:, 1:].unflatten(1, (2, window, self.heads, -1)).unbind(1)
        query = q.unflatten(1, (self.heads, -1))
        scores = torch.einsum("bhd,bwhd->bhw", query, keys) / math.sqrt(query.shape[-1]) + prepared
        empty = torch.arange(window, device=x.device) < window - count
        weights = scores.masked_fill(empty.unsqueeze(1), -math.inf).softmax(-1)
        y = torch.einsum("bhw,bwhd->bhd", weights, values).flatten(1)
        return x + F.linear(y, self.merge.weight, self.merge.bias), state


@register_model("transformer", TransformerConfig)
class Transformer(BlockStack):
    """Alternating attention and pointwise blocks; num_layers counts pairs. hidden holds the caches."""

    def __init__(
        self, config: TransformerConfig, input_dim: int, output_dim: int, *, generator: torch.Generator
    ) -> None:
        pointwise = MLPConfig(hidden_dim=config.hidden_dim, num_layers=1, expansion=config.expansion, norm="layer")
        pair = [("attention", config), ("mlp", pointwise)]
        super().__init__(config, input_dim, output_dim, pair * config.num_layers, generator)
