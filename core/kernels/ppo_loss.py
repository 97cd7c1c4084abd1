"""PPO's loss and its gradient in what a policy gives out.

`meta_rl.ppo.ppo_loss` (plain operations, `meta_rl.losses`) is the reference; tests/meta_rl/test_fused_ppo.py compares loss, measures
and every parameter's gradient with it in double precision. Names and letters: `core.kernels.layout`.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from core.kernels.jit import JIT, f32
from core.kernels.layout import Targets

LOG_2PI = math.log(2 * math.pi)
POLICY_LOSS, VALUE_LOSS, ENTROPY, KL, CLIPPED, NORM = range(6)
"""Places in `measured`: what the plain path measures a step, and the gradient's norm."""


@numba.njit(**JIT)
def gather(rows, source, out):  # pragma: no cover (compiled)
    """The chosen rows of source (N, M), one after the other."""
    width = source.shape[1]
    for i in range(rows.size):
        out[i * width : (i + 1) * width] = source[rows[i]]


@numba.njit(**JIT)
def sample_loss(log_ratio, advantage, clip, measured):  # pragma: no cover (compiled)
    """Adds one sample's surrogate, KL and clipping to the measures; returns the loss's slope in log pi.

    Schulman et al. 2017, equation 7: L = -min(r A, held(r) A), r = pi / pi_old, held to [1 - clip, 1 + clip]. dr / dlog pi = r, so
    the slope is -r A where the first is the smaller, and 0 where the second is, since r is held there. KL: Schulman's
    estimator r - 1 - log r.
    """
    ratio = math.exp(log_ratio)
    held = min(max(ratio, f32(1) - clip), f32(1) + clip)
    free, bound = ratio * advantage, held * advantage
    measured[POLICY_LOSS] -= min(free, bound)
    measured[KL] += ratio - f32(1) - log_ratio
    measured[CLIPPED] += abs(ratio - f32(1)) > clip
    # Where the bound is the smaller one and holds, the objective is flat.
    return f32(0) if bound < free else -free


@numba.njit(**JIT)
def value_loss(value, returns, coefficient, grad, measured):  # pragma: no cover (compiled)
    """The mean over R rows of (V - returns)^2 / 2; its slope, coefficient (V - returns) / R."""
    for r in range(value.size):
        gap = value[r] - returns[r]
        measured[VALUE_LOSS] += f32(0.5) * gap * gap
        grad[r] = coefficient * gap / f32(value.size)


@numba.njit(**JIT)
def gaussian_loss(
    mean, log_std, targets, clip, entropy_coef, grad_mean, grad_log_std, measured
):  # pragma: no cover (compiled)
    """PPO's loss but the critic's for a Gaussian: slopes in mean (R, A), and in log_std (A,), which are added to.

    z = (action - mean) / std,   log pi = -sum_j (z_j^2 / 2 + log_std_j + log(2 pi) / 2)
    dlog pi / dmean_j = z_j / std_j,   dlog pi / dlog_std_j = z_j^2 - 1
    entropy = sum_j (log_std_j + (1 + log(2 pi)) / 2):   dentropy / dlog_std_j = 1, weighed by -entropy_coef
    """
    targets = Targets(*targets)
    actions, old, advantages = targets.actions, targets.old_log_prob, targets.advantages
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
        slope = f32(sample_loss(log_ratio, advantages[r], clip, measured) / rows)
        for j in range(size):
            grad_mean[r * size + j] = slope * z[j] * inverse[j]
            grad_log_std[j] += slope * (z[j] * z[j] - f32(1))
    entropy = f32(0.5 * (1 + LOG_2PI) * size)
    for j in range(size):
        entropy += log_std[j]
        grad_log_std[j] -= entropy_coef
    measured[ENTROPY] += entropy * rows


@numba.njit(**JIT)
def categorical_loss(logits, size, targets, clip, entropy_coef, grad_logits, measured):  # pragma: no cover (compiled)
    """The same for a choice of `size`: slopes in logits (R, A).

    p = softmax(logits):   dlog p_c / dlogits_j = [j = c] - p_j
    entropy H = -sum_j p_j log p_j:   dH / dlogits_j = -p_j (log p_j + H), weighed by -entropy_coef
    """
    targets = Targets(*targets)
    actions, old, advantages = targets.actions, targets.old_log_prob, targets.advantages
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
        slope = f32(sample_loss(log_p[chosen] - old[r], advantages[r], clip, measured) / rows)
        spread = f32(entropy_coef / rows)
        for j in range(size):
            grad_logits[first + j] = spread * p[j] * (log_p[j] + entropy) - slope * p[j]
        grad_logits[first + chosen] += slope
