"""Memories that are matrices: one recurrence, and the residual block around it that mlstm, ssd and gated-deltanet share.

For each head, with keys and queries k, q (K,) and values v (V,), all read from the input; c is 0 or 1:

    M_t = a_t M_{t-1} + b_t (v_t - c a_t M_{t-1} k_t) k_t^T,    M (V, K)
    y_t = M_t q_t

What a cell is made of decides a, b, c and what is done to q, k and v (`core.cells.matrix_cells`). A reset makes a_t zero. The state is
the matrix of every head, N V K = H K numbers, however short the keys; a product with outer products would need T of them.

The block is ours and the same for the three, so that they differ in the recurrence alone:

    [v | o | ...] = W x + b,    x' = x + s(o) tanh(y)           s the sigmoid

What a block adds is in (-1, 1), so a stack reads at most its depth above its input; therefore there is no norm, and no map after
the heads: the next block, or the policy's heads, mix them. The papers have a causal convolution in front of q, k and v, and a norm of each
head behind, both left out. A memory is a polynomial of degree 3 in what it reads, which is held at LARGEST.

Glossary: H hidden_dim, N heads, V = H / N values of a head, K keys of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from core.cells.mingru import TimeConstantsConfig
from core.config import search
from core.fused.autograd import Fused, fused_allowed
from core.kernels.jit import as_numpy
from core.kernels.matrix_memory import memory_scan, memory_scan_backward
from core.sequence_model import linear
from core.stack import BlockStack

LARGEST = 1e3
"""Beyond this a block reads no further, as Mamba without a norm."""
LARGEST_STATE = 2**18
"""Numbers of state of one sequence: 1 MiB in single precision, which a backward pass holds for every step."""


class MatrixMemoryConfig(TimeConstantsConfig):
    """What memories that are matrices share."""

    heads: int = Field(default=4, ge=1, le=64, json_schema_extra=search(choices=(2, 4, 8)))
    """Matrices side by side, each with its own forgetting; hidden_dim must be a multiple of it."""
    key_dim: int = Field(default=16, ge=1, le=256, json_schema_extra=search(choices=(8, 16, 32)))
    """Size of a key: how many values a head tells apart. A layer carries hidden_dim times key_dim numbers of state."""

    @model_validator(mode="after")
    def _heads_divide(self) -> MatrixMemoryConfig:
        if self.hidden_dim % self.heads:
            raise ValueError(f"hidden_dim {self.hidden_dim} must be a multiple of heads {self.heads}")
        numbers = self.num_layers * self.hidden_dim * self.key_dim
        if numbers > LARGEST_STATE:
            raise ValueError(
                f"num_layers times hidden_dim times key_dim is {numbers} numbers of state for each sequence: at most {LARGEST_STATE}"
            )
        return self

    @property
    def width_multiple(self) -> int:
        """The width must be a multiple of this."""
        return self.heads


# ------------------------------------------------------------------------------------------------------- the recurrence
def memory_reference(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, corrects: bool
) -> tuple[Tensor, Tensor]:
    """y (B, T, N, V) and the last M, one step at a time.

    q and k (B, T, N or 1, K), v (B, T, N, V), a and b (B, T, N), state (B, N, V, K); corrects: whether c is 1.
    """
    reads = []
    for t in range(v.shape[1]):
        kept, key, value = a[:, t, :, None, None] * state, k[:, t].unsqueeze(-2), v[:, t].unsqueeze(-1)
        if corrects:
            value = value - (kept * key).sum(-1, keepdim=True)
        state = kept + b[:, t, :, None, None] * value * key
        reads.append((state * q[:, t].unsqueeze(-2)).sum(-1))
    return torch.stack(reads, 1), state


class _Memory(Fused):
    """`memory_reference` without ever holding all matrices of all sequences."""

    reference = staticmethod(memory_reference)

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        q, k, v, a, b, state, corrects = inputs
        y, last = torch.empty(v.shape), torch.empty(state.shape)
        ctx.numbers = (as_numpy(q), as_numpy(k), as_numpy(v), as_numpy(a), as_numpy(b), as_numpy(state), corrects)
        memory_scan(*ctx.numbers, y.numpy(), last.numpy())
        _Memory.keep_inputs(ctx, inputs)
        return y, last

    @staticmethod
    def fast_backward(ctx: Any, inputs: list[Any], saved: list[Tensor], grads: tuple[Any, ...]) -> tuple[Any, ...]:
        q, k, v, a, b, state, _ = inputs
        grad_y, grad_last = (
            torch.zeros(like.shape) if g is None else g for g, like in zip(grads, (v, state), strict=True)
        )
        grad_q, grad_k = torch.zeros(q.shape), torch.zeros(k.shape)
        grad_v, grad_a, grad_b, grad_state = (torch.empty(value.shape) for value in (v, a, b, state))
        results = (grad_q, grad_k, grad_v, grad_a, grad_b, grad_state)
        memory_scan_backward(*ctx.numbers, *(as_numpy(value) for value in (grad_y, grad_last, *results)))
        return *results, None


def memory(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, *, corrects: bool
) -> tuple[Tensor, Tensor]:
    """`memory_reference`, compiled where it can be."""
    run = _Memory.apply if fused_allowed(v) else memory_reference
    return run(q, k, v, a, b, state, corrects)  # pyright: ignore[reportReturnType]


# ------------------------------------------------------------------------------------------------------------- the block
class MatrixBlock(nn.Module):
    """x + s(o) tanh(y), y what `remember` reads of a matrix of each head. The state of a sequence is the matrices, then `extra` numbers.

    Subclasses say how many numbers follow [v | o] in the projection (`parts`), where among these the N are that set how long a head
    remembers (`forgets`), and what the recurrence is (`remember`).
    """

    extra_rows = 0
    """Rows of a head's matrix beyond its values."""
    extra = 0
    """Numbers of state of a head beside its matrix."""

    def __init__(self, config: MatrixMemoryConfig, generator: torch.Generator) -> None:
        super().__init__()
        width = config.hidden_dim
        self.heads, self.keys, self.values = config.heads, config.key_dim, width // config.heads
        self.matrix = (self.heads, self.values + self.extra_rows, self.keys)
        self.state_size = math.prod(self.matrix) + self.extra * self.heads
        self.sizes = [width, width, *self.parts()]
        self.project = linear(width, sum(self.sizes), generator)
        # One head in each of N equal stretches of [ln tau_min, ln tau_max]: log-uniform together, however few they are.
        low, span = math.log(config.tau_min), math.log(config.tau_max / config.tau_min)
        place = torch.arange(self.heads) + torch.rand(self.heads, generator=generator, dtype=torch.float64)
        tau = torch.exp(low + span * place / self.heads)
        # softplus(z) = 1 / tau, so exp(-softplus(z)) is what a step keeps.
        with torch.no_grad():
            self.start(self.project.bias.split(self.sizes)[2:], torch.log(torch.expm1(1 / tau)).float())

    def parts(self) -> list[int]:
        """Sizes of what follows [v | o] in the projection."""
        raise NotImplementedError

    def start(self, biases: tuple[Tensor, ...], z: Tensor) -> None:
        """Fill the biases of `parts`, zeros so far, such that a head keeps exp(-softplus(z)) in a step."""
        raise NotImplementedError

    def remember(
        self, v: Tensor, parts: list[Tensor], matrix: Tensor, extra: Tensor, keep: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """y (B, T, N, V), the last matrices and the last `extra`: v (B, T, N, V), parts (B, T, ...), matrix (B, N, ., K), extra (B, E)."""
        raise NotImplementedError

    def per_head(self, z: Tensor) -> Tensor:
        """(B, T, N .) to (B, T, N, .)."""
        return z.unflatten(-1, (self.heads, -1))

    def forward(self, x: Tensor, state: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, T, H), state (B, S) to the same shapes."""
        v, o, *parts = self.project(x.clamp(-LARGEST, LARGEST)).split(self.sizes, -1)
        matrix, extra = state.tensor_split([math.prod(self.matrix)], 1)
        y, matrix, extra = self.remember(self.per_head(v), parts, matrix.unflatten(1, self.matrix), extra, keep)
        return x + o.sigmoid() * y.flatten(2).tanh(), torch.cat([matrix.flatten(1), extra], 1)

    def prepare_step(self) -> None:
        """Nothing."""

    def step(self, x: Tensor, state: Tensor, prepared: None) -> tuple[Tensor, Tensor]:
        """x (B, H), state (B, S), no gradients."""
        out, state = self(x.unsqueeze(1), state, None)
        return out.squeeze(1), state


def kept(rate: Tensor, keep: Tensor | None) -> Tensor:
    """k_t exp(-rate): rate (B, T, N) of 0 or more, keep (B, T)."""
    a = (-rate).exp()
    return a if keep is None else a * keep.unsqueeze(-1)


class MatrixStack(BlockStack):
    """hidden is every block's state side by side, (B, num_layers * state_size)."""

    def __init__(
        self, config: MatrixMemoryConfig, input_dim: int, output_dim: int, *, generator: torch.Generator
    ) -> None:
        super().__init__(config, input_dim, output_dim, [(config.kind, config)] * config.num_layers, generator)
