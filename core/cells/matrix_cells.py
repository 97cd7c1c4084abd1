"""mLSTM, Mamba-2's SSD and the gated delta rule, as cells of one matrix memory (`core.cells.matrix_memory`).

k_t = 1 - reset_t stands in front of every decay; s is the sigmoid. Of each head, from the input's projection:

**mlstm**, xLSTM (Beck et al. 2024, arXiv 2405.04517, equations 19 to 27, stabilised by 15 to 17):

    C_t = f_t C_{t-1} + i_t v_t k_t^T,   n_t = f_t n_{t-1} + i_t k_t,   i = exp(i~),   f = s(f~),   k = W_k x / sqrt(K)
    y_t = C_t q_t / max(|n_t q_t|, 1)
    m_t = max(ln f_t + m_{t-1}, ln i_t, 0):   a_t = exp(ln f_t + m_{t-1} - m_t),   b_t = exp(ln i_t - m_t)

The state holds C e^{-m} and n e^{-m} in one matrix, n as a row whose value is 1, and y_t = (C e^{-m}) q / max(|(n e^{-m}) q|, e^{-m}). That is
the same for every m, hence the zero in the maximum, ours: e^{-m} never overflows where all gates stay shut; and hence m carries no
gradient, which changes none. At the start ln i = ln(1 - f), so that C is a mean of what was read and y is small.

**ssd**, Mamba-2 (Dao and Gu 2024, arXiv 2405.21060, section 7.1): one decay a head, B and C shared by all heads:

    delta = softplus(delta~),   a_t = exp(-delta_t exp(A_log))
    h_t = a_t h_{t-1} + delta_t x_t B_t^T,   y_t = h_t C_t + D x_t           x, B, C = silu of the projection

**gated-deltanet** (Yang et al. 2024, arXiv 2412.06464, equation 10), with a_t as above and b = s(b~):

    S_t = a_t S_{t-1} (I - b_t k_t k_t^T) + b_t v_t k_t^T,   y_t = S_t q_t   v = silu, q and k = silu, then of length 1
        = a_t S_{t-1} + b_t (v_t - a_t S_{t-1} k_t) k_t^T

A head keeps exp(-1 / tau) a step at the start, tau log-uniform from tau_min to tau_max steps.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from core.cells.matrix_memory import MatrixBlock, MatrixMemoryConfig, MatrixStack, kept, memory
from core.fused.autograd import fused_allowed
from core.kernels.jit import as_numpy
from core.kernels.matrix_memory import stabilise
from core.sequence_model import register_model
from core.stack import BLOCKS


# --------------------------------------------------------------------------------------------------------------- mlstm
class MLSTMConfig(MatrixMemoryConfig):
    """mLSTM (Beck et al. 2024): a matrix written with exponential input gates, read as a mean that its gates weigh."""

    kind: Literal["mlstm"] = "mlstm"


def stabilisers(log_f: Tensor, log_i: Tensor, start: Tensor, keep: Tensor | None) -> Tensor:
    """m_t = max(ln f_t + k_t m_{t-1}, ln i_t, 0) without gradient: log_f and log_i (B, T, N), start (B, N) to (B, T, N)."""
    log_f, log_i, m = log_f.detach(), log_i.detach(), start.detach()
    keep = torch.ones_like(log_f[:, :, 0]) if keep is None else keep
    if fused_allowed(log_f):
        out = torch.empty(log_f.shape)
        stabilise(as_numpy(log_f), as_numpy(log_i), as_numpy(m), as_numpy(keep), out.numpy())
        return out
    steps = []
    for t in range(log_f.shape[1]):
        m = torch.maximum(log_f[:, t] + keep[:, t, None] * m, log_i[:, t]).clamp_min(0)
        steps.append(m)
    return torch.stack(steps, 1)


@BLOCKS.register("mlstm")
class MLSTMBlock(MatrixBlock):
    """The state of a sequence is [C | n] e^{-m} of each head, (N, V + 1, K), and m (N,)."""

    extra_rows, extra = 1, 1

    def parts(self) -> list[int]:
        """[q | k | i~ | f~]."""
        return [self.heads * self.keys, self.heads * self.keys, self.heads, self.heads]

    def start(self, biases: tuple[Tensor, ...], z: Tensor) -> None:
        """ln f = -softplus(z), and ln i = ln(1 - f)."""
        biases[2][:], biases[3][:] = F.logsigmoid(z), -z

    def remember(
        self, v: Tensor, parts: list[Tensor], matrix: Tensor, extra: Tensor, keep: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """extra is m (B, N)."""
        q, k, log_i, f = parts
        log_f = F.logsigmoid(f)
        m = stabilisers(log_f, log_i, extra, keep)
        before = torch.cat([extra.unsqueeze(1), m[:, :-1]], 1)
        if keep is not None:
            before = before * keep.unsqueeze(-1)
        # In this order the argument is exactly zero where m_t is ln f_t + m_{t-1}, however large m is.
        a, b = kept(m - (log_f + before), keep), (log_i - m).exp()
        q, k = self.per_head(q), self.per_head(k) / self.keys**0.5
        read, matrix = memory(q, k, F.pad(v, (0, 1), value=1.0), a, b, matrix, corrects=False)
        y, weight = read.split((self.values, 1), -1)
        return y / torch.maximum(weight.abs(), (-m).exp().unsqueeze(-1)), matrix, m[:, -1]


register_model("mlstm", MLSTMConfig)(MatrixStack)


# ----------------------------------------------------------------------------------------------------------------- ssd
class SSDConfig(MatrixMemoryConfig):
    """SSD, Mamba-2's layer (Dao and Gu 2024): selective state spaces with one decay a head, so that a state is a matrix."""

    kind: Literal["ssd"] = "ssd"


@BLOCKS.register("ssd")
class SSDBlock(MatrixBlock):
    """The state of a sequence is h of each head, (N, V, K)."""

    dynamics = ("A_log",)

    def __init__(self, config: SSDConfig, generator: torch.Generator) -> None:
        super().__init__(config, generator)
        self.A_log = nn.Parameter(torch.zeros(self.heads))
        self.D = nn.Parameter(torch.ones(self.heads))

    def parts(self) -> list[int]:
        """[C | B | delta~]."""
        return [self.keys, self.keys, self.heads]

    def start(self, biases: tuple[Tensor, ...], z: Tensor) -> None:
        """delta = softplus(z), and A = -1."""
        biases[2][:] = z

    def remember(
        self, v: Tensor, parts: list[Tensor], matrix: Tensor, extra: Tensor, keep: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """extra is empty."""
        c, b, delta = parts
        v, delta = F.silu(v), F.softplus(delta)
        q, k = (F.silu(z).unsqueeze(2) for z in (c, b))
        y, matrix = memory(q, k, v, kept(delta * self.A_log.exp(), keep), delta, matrix, corrects=False)
        return y + self.D.unsqueeze(-1) * v, matrix, extra


register_model("ssd", SSDConfig)(MatrixStack)


# ------------------------------------------------------------------------------------------------------ gated delta rule
class GatedDeltaNetConfig(MatrixMemoryConfig):
    """Gated DeltaNet (Yang et al. 2024): a matrix that decays, and that replaces what it holds for a key by a new value."""

    kind: Literal["gated-deltanet"] = "gated-deltanet"


def unit(z: Tensor) -> Tensor:
    """z / sqrt(|z|^2 + 1e-6) over the last dimension: of length 1, and zero at zero."""
    return z * (z.square().sum(-1, keepdim=True) + 1e-6).rsqrt()


@BLOCKS.register("gated-deltanet")
class GatedDeltaNetBlock(MatrixBlock):
    """The state of a sequence is S of each head, (N, V, K)."""

    dynamics = ("A_log",)

    def __init__(self, config: GatedDeltaNetConfig, generator: torch.Generator) -> None:
        super().__init__(config, generator)
        self.A_log = nn.Parameter(torch.zeros(self.heads))

    def parts(self) -> list[int]:
        """[q | k | delta~ | b~]."""
        return [self.heads * self.keys, self.heads * self.keys, self.heads, self.heads]

    def start(self, biases: tuple[Tensor, ...], z: Tensor) -> None:
        """delta = softplus(z), and A = -1."""
        biases[2][:] = z

    def remember(
        self, v: Tensor, parts: list[Tensor], matrix: Tensor, extra: Tensor, keep: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """extra is empty."""
        q, k, delta, b = parts
        q, k = (unit(F.silu(self.per_head(z))) for z in (q, k))
        a = kept(F.softplus(delta) * self.A_log.exp(), keep)
        y, matrix = memory(q, k, F.silu(v), a, b.sigmoid(), matrix, corrects=True)
        return y, matrix, extra


register_model("gated-deltanet", GatedDeltaNetConfig)(MatrixStack)
