"""One step of attention over a rolling cache: what a transformer does while acting.

The plain reference is the rest of `core.transformer.AttentionBlock.step`, and the sequence itself; the contract tests
(tests/core/test_sequence_models.py) hold steps against sequences. There is no gradient: acting needs none.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from core.kernels.jit import JIT, f32
from core.kernels.pointwise import decay


@numba.njit(**JIT)
def attend_step(projected, state, penalty, window, after, out):  # pragma: no cover (compiled)
    """One step of attention: projected [q | k | v] (B, 3H), the cache moved up by one into `after`, out (B, H).

    Only filled entries are looked at. penalty (heads, W), oldest first.
    """
    batch, width = out.shape
    heads = penalty.shape[0]
    size, values = width // heads, 1 + window * width
    scale = f32(1 / math.sqrt(size))
    scores, total = np.empty((heads, window), f32), np.empty(width, f32)
    for b in range(batch):
        count = min(int(state[b, 0]) + 1, window)
        after[b, 0] = count
        for i in range(1, 1 + (window - 1) * width):
            after[b, i] = state[b, i + width]
        for i in range(values, values + (window - 1) * width):
            after[b, i] = state[b, i + width]
        for j in range(width):
            after[b, values - width + j] = projected[b, width + j]
            after[b, values + (window - 1) * width + j] = projected[b, 2 * width + j]
        for j in range(width):
            total[j] = 0
        for head in range(heads):
            highest = f32(-np.inf)
            for w in range(window - count, window):
                score, base = f32(0), 1 + w * width + head * size
                for j in range(size):
                    score += projected[b, head * size + j] * after[b, base + j]
                scores[head, w] = score * scale + penalty[head, w]
                highest = max(highest, scores[head, w])
            weight = f32(0)
            for w in range(window - count, window):
                scores[head, w] = decay(scores[head, w] - highest)
                weight += scores[head, w]
            for w in range(window - count, window):
                p, base = scores[head, w] / weight, values + w * width + head * size
                for j in range(size):
                    total[head * size + j] += p * after[b, base + j]
        for j in range(width):
            out[b, j] = total[j]
