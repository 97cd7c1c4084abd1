"""minLSTM with a bounded output: forget and input gates read the input alone and are normalised to sum to one.

For each layer, from u (B, T, D); k_t = 1 - reset_t, s the sigmoid, all products elementwise:

    [v, i, f, o] = W u + b
    f' = s(f) / (s(f) + s(i)),   i' = s(i) / (s(f) + s(i))
    h_t = k_t f'_t h_{t-1} + i'_t tanh(v_t)
    y_t = s(o_t) tanh(h_t)

Source: Feng et al. 2024 (arXiv 2410.01201), section 3.2, whose minLSTM is the recurrence with v in place of tanh(v) and y = h. Ours are the
two tanh and the output gate of the LSTM, and the start: time constants -1 / ln f' log-uniform in [tau_min, tau_max] steps. It is trained and
acts compiled (`core.kernels.gated`). In the reference i' is computed as s(softplus(-f) - softplus(-i)), which neither gate's vanishing spoils.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from core.cells.mingru import FusedGates, LinearGates, TimeConstantsConfig
from core.scan import split_scan
from core.sequence_model import register_model


class MinLSTMConfig(TimeConstantsConfig):
    """minLSTM (Feng et al. 2024) with a bounded output: normalised gates that read the input alone."""

    kind: Literal["minlstm"] = "minlstm"


def minlstm_reference(u: Tensor, h: Tensor, keep: Tensor | None, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """One layer: u (B, T, D), h (B, H), keep (B, T), weight (4H, D), bias (4H,) to y (B, T, H) and the last h (B, H)."""
    v, i, f, o = F.linear(u, weight, bias).chunk(4, -1)
    share = F.softplus(-f) - F.softplus(-i)  # ln s(i) - ln s(f)
    states = split_scan(torch.sigmoid(-share), torch.sigmoid(share) * torch.tanh(v), h, keep, is_complex=False)
    return torch.sigmoid(o) * torch.tanh(states), states[:, -1]


class _MinLSTM(FusedGates):
    """`minlstm_reference`."""

    reference = staticmethod(minlstm_reference)

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        return _MinLSTM.run(ctx, inputs)


@register_model("minlstm", MinLSTMConfig)
class MinLSTM(LinearGates):
    """minLSTM; see the module's docstring."""

    parts, reference, fused = 4, staticmethod(minlstm_reference), _MinLSTM

    def _start(self, biases: Tensor, gate: Tensor) -> None:
        biases[1], biases[2] = gate, -gate  # s(b) / s(-b) = e^b: the odds of the new input, as with one gate
