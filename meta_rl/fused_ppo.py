"""One gradient of PPO's loss without autograd: the same numbers as `meta_rl.ppo`'s plain path, in a third of the time.

Encoder, heads and loss run compiled for every policy that `core.compiled.covered` allows; so does a state space memory.
Any other memory keeps autograd for itself and takes part through its input and output.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch

from core.compiled import (
    LOG_STD,
    CompiledPolicy,
    covered,
    encode,
    encode_backward,
    heads,
    heads_backward,
    memory_backward,
    memory_forward,
    prepare,
)
from core.fused import f32
from core.policy import LOG_2PI, PolicyInput, RecurrentPolicy
from core.scan import JIT
from meta_rl.flat_adam import FlatAdam, norm

POLICY_LOSS, VALUE_LOSS, ENTROPY, KL, CLIPPED, NORM = range(6)
"""Places in `measured`: what the plain path measures a step, and the gradient's norm."""


@numba.njit(**JIT)
def _gather(rows, source, out):  # pragma: no cover (compiled)
    """The chosen rows of source (N, M), one after the other."""
    width = source.shape[1]
    for i in range(rows.size):
        out[i * width : (i + 1) * width] = source[rows[i]]


@numba.njit(**JIT)
def _sample_loss(log_ratio, advantage, clip, measured):  # pragma: no cover (compiled)
    """Adds one sample's surrogate, KL and clipping to the measures; returns the surrogate's slope in log pi."""
    ratio = math.exp(log_ratio)
    held = min(max(ratio, f32(1) - clip), f32(1) + clip)
    free, bound = ratio * advantage, held * advantage
    measured[POLICY_LOSS] -= min(free, bound)
    measured[KL] += ratio - f32(1) - log_ratio
    measured[CLIPPED] += abs(ratio - f32(1)) > clip
    # Where the bound is the smaller one and holds, the objective is flat.
    return f32(0) if bound < free else -free


@numba.njit(**JIT)
def _value_loss(value, returns, coefficient, grad, measured):  # pragma: no cover (compiled)
    """Half the squared error, and its slope."""
    for r in range(value.size):
        gap = value[r] - returns[r]
        measured[VALUE_LOSS] += f32(0.5) * gap * gap
        grad[r] = coefficient * gap / f32(value.size)


@numba.njit(**JIT)
def gaussian_loss(
    mean, log_std, actions, old, advantages, clip, entropy_coef, grad_mean, grad_log_std, measured
):  # pragma: no cover (compiled)
    """PPO's loss but the critic's for a Gaussian: slopes in mean (R, A), and in log_std (A,), which grow."""
    size, rows = log_std.size, old.size
    inverse, z = np.empty(size, f32), np.empty(size, f32)
    constant = f32(0.5 * LOG_2PI * size)
    for j in range(size):
        inverse[j] = math.exp(-log_std[j])
        constant += log_std[j]
    for r in range(rows):
        total = f32(0)
        for j in range(size):
            z[j] = (actions[r * size + j] - mean[r * size + j]) * inverse[j]
            total += z[j] * z[j]
        log_ratio = (f32(-0.5) * total - constant) - old[r]
        slope = f32(_sample_loss(log_ratio, advantages[r], clip, measured) / rows)
        for j in range(size):
            grad_mean[r * size + j] = slope * z[j] * inverse[j]
            grad_log_std[j] += slope * (z[j] * z[j] - f32(1))
    entropy = f32(0.5 * (1 + LOG_2PI) * size)
    for j in range(size):
        entropy += log_std[j]
        grad_log_std[j] -= entropy_coef
    measured[ENTROPY] += entropy * rows


@numba.njit(**JIT)
def categorical_loss(
    logits, size, actions, old, advantages, clip, entropy_coef, grad_logits, measured
):  # pragma: no cover (compiled)
    """The same for a choice of `size`: slopes in logits (R, A)."""
    rows = old.size
    p, log_p = np.empty(size, f32), np.empty(size, f32)
    for r in range(rows):
        first = r * size
        top = logits[first]
        for j in range(size):
            top = max(top, logits[first + j])
        total = f32(0)
        for j in range(size):
            p[j] = math.exp(logits[first + j] - top)
            total += p[j]
        shift, entropy = top + f32(math.log(total)), f32(0)
        for j in range(size):
            p[j] /= total
            log_p[j] = logits[first + j] - shift
            entropy -= p[j] * log_p[j]
        measured[ENTROPY] += entropy
        chosen = actions[r]
        slope = f32(_sample_loss(log_p[chosen] - old[r], advantages[r], clip, measured) / rows)
        spread = f32(entropy_coef / rows)
        for j in range(size):
            grad_logits[first + j] = spread * p[j] * (log_p[j] + entropy) - slope * p[j]
        grad_logits[first + chosen] += slope


class FusedLoss:
    """Gradients of PPO's loss for minibatches of whole sequences, into the optimizer's flat gradient.

    inputs (N, T, ...), actions (N, T, A) or (N, T), old_log_prob, advantages, returns (N, T): the whole batch.
    most: sequences in the largest minibatch. Buffers are made once; use one object for an update.
    """

    def __init__(
        self,
        policy: RecurrentPolicy,
        optimizer: FlatAdam,
        inputs: PolicyInput,
        actions: torch.Tensor,
        old_log_prob: torch.Tensor,
        advantages: torch.Tensor,
        returns: torch.Tensor,
        *,
        most: int,
    ) -> None:
        self.policy, self.optimizer = policy, optimizer
        self.compiled = compiled = CompiledPolicy(policy, optimizer.starts)
        count, self.steps = old_log_prob.shape
        seen = torch.cat(
            [inputs.obs, inputs.prev_action, inputs.prev_reward[..., None], inputs.prev_done[..., None]], -1
        )
        whole = (seen, actions, old_log_prob, advantages, returns)
        self.batch = [np.ascontiguousarray(part.detach().numpy()).reshape(count, -1) for part in whole]
        _, wide, width, size, inner, choices, layers, *_ = compiled.dims.tolist()
        rows = most * self.steps
        self.parts = [np.empty(most * part.shape[1], part.dtype) for part in self.batch]
        sizes = (wide, wide, 2 * inner, 2 * inner, choices, choices, 1, 1, width, width, width, 2 * width)
        self.buffers = [np.empty(rows * numbers, f32) for numbers in sizes]
        stored = (size if compiled.dims[8] else 0, width, width, 2 * width, width)
        self.layers = [np.empty((layers, rows * numbers), f32) for numbers in stored]
        self.keep, self.zeros = np.ones((most, self.steps), f32), np.zeros((most, size), f32)

    @staticmethod
    def allowed(policy: RecurrentPolicy, optimizer: torch.optim.Optimizer, hints: torch.Tensor | None) -> bool:
        """Whether this class can stand in for the plain path."""
        return isinstance(optimizer, FlatAdam) and hints is None and covered(policy)

    def __call__(
        self, rows: torch.Tensor, clip: float, value_coef: float, entropy_coef: float, measured: np.ndarray
    ) -> tuple[float, float]:
        """Gradients for the sequences `rows` (M,): the loss and the gradient's norm; adds means to measured (6,)."""
        c, w, g = self.compiled, self.optimizer.weights, self.optimizer.gradients
        index = rows.numpy()
        parts = [part[: index.size * source.shape[1]] for part, source in zip(self.parts, self.batch, strict=True)]
        for source, part in zip(self.batch, parts, strict=True):
            _gather(index, source, part)
        seen, actions, old, advantages, returns = parts
        count = old.size
        encoded, grad_encoded, hidden, grad_hidden, mean, grad_mean, value, grad_value, *passing = (
            buffer[: buffer.size // (self.keep.size) * count] for buffer in self.buffers
        )
        grad_memory, spare, third, grad_mixed = passing
        base = (c.blas, w, c.at, c.dims)
        back = (c.blas, w, g, c.at, c.dims)
        g.fill(0)
        encode(*base, seen, encoded)
        leaf = out = None
        if c.whole:
            prepare(*base[1:], c.system, c.gain, c.matrix)
            kept = (encoded, self.keep, self.zeros, *self.layers)
            memory_forward(*base, self.steps, c.system, c.matrix, *kept)
            memory = self.layers[-1][-1, : grad_memory.size]
        else:
            leaf = torch.from_numpy(encoded).view(index.size, self.steps, -1).requires_grad_()
            out = self.policy.memory(leaf)[0]
            memory = out.detach().contiguous().numpy().reshape(-1)
        heads(*base, memory, encoded, hidden, mean, value)
        now = np.zeros(6)
        _value_loss(value, returns, f32(value_coef), grad_value, now)
        size = c.dims[5]
        if c.at[LOG_STD] >= 0:
            place = slice(c.at[LOG_STD], c.at[LOG_STD] + size)
            gaussian_loss(
                mean, w[place], actions, old, advantages, f32(clip), f32(entropy_coef), grad_mean, g[place], now
            )
        else:
            categorical_loss(mean, size, actions, old, advantages, f32(clip), f32(entropy_coef), grad_mean, now)
        heads_backward(*back, memory, encoded, hidden, grad_mean, grad_value, grad_hidden, grad_memory, grad_encoded)
        if leaf is None or out is None:
            memory_backward(
                *back,
                self.steps,
                c.system,
                c.gain,
                c.matrix,
                *kept,
                grad_mixed,
                grad_memory,
                spare,
                third,
                grad_encoded,
            )
        else:
            out.backward(torch.from_numpy(grad_memory).view(out.shape))
            assert leaf.grad is not None
            grad_encoded += leaf.grad.numpy().reshape(-1)
        encode_backward(c.blas, g, c.at, c.dims, seen, encoded, grad_encoded)
        now /= count
        now[NORM] = norm(g)
        measured += now
        loss = now[POLICY_LOSS] + value_coef * now[VALUE_LOSS] - entropy_coef * now[ENTROPY]
        return float(loss), float(now[NORM])
