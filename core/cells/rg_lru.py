"""RG-LRU, the real-gated linear recurrent unit of Griffin (De et al. 2024, arXiv 2402.19427, section 2.4, equations 1 to 4).

    r_t = s(W_a v_t + b_a)                                      recurrence gate
    i_t = s(W_x v_t + b_x)                                      input gate
    a_t = a^(c r_t),  a = s(Lambda),  c = 8
    h_t = k_t a_t h_{t-1} + sqrt(1 - a_t^2) (i_t v_t)           k_t = 1 - reset_t

in the paper's recurrent block (figure 2), one a layer: out = x + W_out (h * gelu(W_2 n)), v = W_1 n, n = norm(x). Lambda starts so that
a^c is uniform in [decay_min, decay_max]. Left out are the convolution in front of the unit and the MLP blocks between; the gates' maps are
dense. There is always a norm: a block multiplies two maps of its input, so without one a stack of L is of degree 2^L in it.
Logarithms throughout: ln a_t = -c r_t softplus(-Lambda), and 1 - a_t^2 = -expm1(2 ln a_t).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field, model_validator
from torch import Tensor, nn

from core.config import search
from core.scan import split_scan
from core.sequence_model import SequenceModelConfig, linear, register_model
from core.stack import BLOCKS, BlockStack, LayerNorm

C = 8.0
SMALLEST = 1e-12  # of 1 - a^2: the derivative of its root stays finite where the recurrence gate closes


class RGLRUConfig(SequenceModelConfig):
    """RG-LRU (De et al. 2024): a linear recurrence whose decay is gated by the input, in Griffin's recurrent block."""

    kind: Literal["rg-lru"] = "rg-lru"
    decay_min: float = Field(default=0.9, ge=1e-3, le=1 - 1e-6, json_schema_extra=search(choices=(0.5, 0.8, 0.9)))
    """Smallest initial a^c: what a state keeps in a step while its recurrence gate is open."""
    decay_max: float = Field(default=0.999, ge=1e-3, le=1 - 1e-6, json_schema_extra=search(choices=(0.99, 0.999)))
    """Largest initial a^c."""
    norm: Literal["layer", "rms"] = "rms"
    """Normalisation in front of each block."""

    @model_validator(mode="after")
    def _range(self) -> RGLRUConfig:
        if self.decay_min > self.decay_max:
            raise ValueError(f"decay_min {self.decay_min} must be at most decay_max {self.decay_max}")
        return self


def gated_decay(gates: Tensor, rate: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """a_t and sqrt(1 - a_t^2) i_t v_t, from gates (..., 2H) = [r | i] before the sigmoid, rate (H,) = softplus(-Lambda), v (..., H)."""
    r, i = gates.sigmoid().chunk(2, -1)
    log_a = -C * rate * r
    return log_a.exp(), (-torch.expm1(2 * log_a)).clamp_min(SMALLEST).sqrt() * i * v


@BLOCKS.register("rg-lru")
class RGLRUBlock(nn.Module):
    """Griffin's recurrent block; the state of a sequence is h (H,)."""

    dynamics = ("Lambda",)

    def __init__(self, config: RGLRUConfig, generator: torch.Generator) -> None:
        super().__init__()
        width = config.hidden_dim
        self.state_size = width
        self.norm = LayerNorm(width) if config.norm == "layer" else nn.RMSNorm(width)
        self.project = linear(width, 2 * width, generator)
        self.gates = linear(width, 2 * width, generator)
        self.merge = linear(width, width, generator)
        low, high = config.decay_min, config.decay_max
        draw = torch.rand(width, generator=generator, dtype=torch.float64)
        log_a = torch.log(low + (high - low) * draw) / C
        # a = s(Lambda): Lambda = ln a - ln(1 - a).
        self.Lambda = nn.Parameter((log_a - torch.log(-torch.expm1(log_a))).float())

    def forward(self, x: Tensor, state: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, T, H), state (B, H) to the same shapes."""
        v, side = self.project(self.norm(x)).chunk(2, -1)
        a, drive = gated_decay(self.gates(v), F.softplus(-self.Lambda), v)
        states = split_scan(a, drive, state, keep, is_complex=False)
        return x + self.merge(states * F.gelu(side)), states[:, -1]

    def prepare_step(self) -> Tensor:
        """softplus(-Lambda)."""
        return F.softplus(-self.Lambda)

    def step(self, x: Tensor, state: Tensor, prepared: Any) -> tuple[Tensor, Tensor]:
        """x (B, H), state (B, H), no gradients."""
        v, side = self.project(self.norm(x)).chunk(2, -1)
        a, drive = gated_decay(self.gates(v), prepared, v)
        state = torch.addcmul(drive, a, state)
        return x + self.merge(state * F.gelu(side)), state


@register_model("rg-lru", RGLRUConfig)
class RGLRU(BlockStack):
    """hidden is every block's state side by side, (B, num_layers * hidden_dim)."""

    def __init__(self, config: RGLRUConfig, input_dim: int, output_dim: int, *, generator: torch.Generator) -> None:
        super().__init__(config, input_dim, output_dim, [("rg-lru", config)] * config.num_layers, generator)
