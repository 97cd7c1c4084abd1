"""A policy in flat memory, by name: its sizes, where each parameter starts, and the buffers of a forward and backward pass.

Parameters and gradients are two flat vectors with the same places; matrices are flat, row by row. Letters: R rows (sequences x
steps), B sequences, T steps, I numbers read, E width of the encoder, H width of the memory, S state numbers a layer (N = S / 2
complex ones), L layers, K width of a head's hidden layer, A actions.

numba takes a named tuple from Python three times as slowly as a plain one, and an acting step has no microseconds to spare. So
functions that Python calls take `tuple(sizes)`, `tuple(places)`, ... and begin by naming them again; all others take the named ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from core.kernels.jit import JIT


class Sizes(NamedTuple):
    """What decides every loop and product. All of one type, so that numba sees a tuple of integers."""

    inputs: int
    """I: observation, last action, reward, done."""
    encoder: int
    """E."""
    width: int
    """H."""
    state: int
    """S; H of a gated memory; 0 where the memory is not compiled."""
    head: int
    """K."""
    actions: int
    """A."""
    layers: int
    """L of a state space memory; 0 for any other, whose layers have places of their own."""
    skip: int
    """1 where the encoded input also goes straight into the heads."""
    dense: int
    """1 for dense input and output matrices (S5, LRU), 0 for S4D's channels."""
    method: int
    """An entry of `core.kernels.discretization.METHODS`."""
    thirds: int
    """Numbers in a layer's third dynamics parameter: N, or H where S4D's pairs share a step."""


class Places(NamedTuple):
    """Where each parameter starts in the flat vectors; -1 where the policy has none."""

    encoder: int
    encoder_bias: int
    hidden: int
    """The heads' hidden layers in one matrix (2K, H or H + E): the actor's rows, then the critic's."""
    hidden_bias: int
    actor: int
    actor_bias: int
    critic: int
    critic_bias: int
    log_std: int
    layers: np.ndarray
    """(L,) of LAYER_PLACES."""


class Layer(NamedTuple):
    """Views of one layer's parameters, or of their gradients."""

    log_decay: np.ndarray
    """(N,) log of -Re lambda."""
    frequency: np.ndarray
    """(N,) Im lambda; its log for LRU."""
    third: np.ndarray
    """log_dt (N,) of S5, (H,) of S4D; log_gamma (N,) of LRU."""
    B: np.ndarray
    """(S, H) of a dense layer; S4D has none."""
    C: np.ndarray
    """(H, S) of a dense layer, (S,) of S4D."""
    D: np.ndarray
    """(H,)."""
    gate: np.ndarray
    """(2H, H)."""
    gate_bias: np.ndarray
    """(2H,)."""


LAYER_PLACES = np.dtype([(name, np.int64) for name in Layer._fields])


class System(NamedTuple):
    """The discretised layers: decided by parameters alone, computed once for many steps."""

    a: np.ndarray
    """(L, 2, N) transition."""
    gain: np.ndarray
    """(L, 2, N) what the input is multiplied by."""
    matrix: np.ndarray
    """(L, S H) gain times B of a dense layer; (L, S) S4D's readout, C times gain."""


class Activations(NamedTuple):
    """What encoder and heads compute, and their backward wants."""

    encoded: np.ndarray
    """(R E)."""
    hidden: np.ndarray
    """(R 2K): the actor's K, then the critic's."""
    mean: np.ndarray
    """(R A): means or logits."""
    value: np.ndarray
    """(R,)."""


class Slopes(NamedTuple):
    """The loss's derivatives in the activations of the same names, and in the memory's output (R H)."""

    encoded: np.ndarray
    hidden: np.ndarray
    mean: np.ndarray
    value: np.ndarray
    memory: np.ndarray


class Trace(NamedTuple):
    """What the memory's layers compute, and their backward wants. A row a layer."""

    states: np.ndarray
    """(L, R S) h of a dense layer; S4D computes them again."""
    linear: np.ndarray
    """(L, R H) p = C h + D u."""
    active: np.ndarray
    """(L, R H) s = silu(p)."""
    mixed: np.ndarray
    """(L, R 2H) v = W s."""
    out: np.ndarray
    """(L, R H) u + GLU(v + b)."""


class Scratch(NamedTuple):
    """What the memory's backward needs besides."""

    below: np.ndarray
    """(R H) a layer's gradient in its input; it takes turns with the one in its output."""
    linear: np.ndarray
    """(R H) in p."""
    mixed: np.ndarray
    """(R 2H) in v, and then in the states where they fit."""


class Sequences(NamedTuple):
    """How rows are sequences that start from nothing."""

    keep: np.ndarray
    """(B, T) ones: nothing is reset inside a sequence."""
    zeros: np.ndarray
    """(B, S) states before the first step."""


class Step(NamedTuple):
    """What one acting step of B worlds needs of the memory."""

    state: np.ndarray
    """(L, B S), changed in place."""
    linear: np.ndarray
    """(B H) p, then s in its place."""
    mixed: np.ndarray
    """(B 2H) v."""
    out: np.ndarray
    """(B H) what the heads read."""


class Targets(NamedTuple):
    """What the loss compares with."""

    actions: np.ndarray
    """(R A) float32 for a Gaussian, (R,) int64 for a choice."""
    old_log_prob: np.ndarray
    """(R,) nats, when the actions were taken."""
    advantages: np.ndarray
    """(R,)."""
    returns: np.ndarray
    """(R,)."""


@numba.njit(**JIT)
def layer_of(flat, sizes, places, layer):  # pragma: no cover (compiled)
    """One layer's views of a flat vector."""
    start, width, half = places.layers[layer], sizes.width, sizes.state // 2
    square = sizes.state * width
    return Layer(
        log_decay=flat[start.log_decay : start.log_decay + half],
        frequency=flat[start.frequency : start.frequency + half],
        third=flat[start.third : start.third + sizes.thirds],
        B=flat[start.B : start.B + square] if sizes.dense else flat[:0],
        C=flat[start.C : start.C + square] if sizes.dense else flat[start.C : start.C + sizes.state],
        D=flat[start.D : start.D + width],
        gate=flat[start.gate : start.gate + 2 * width * width],
        gate_bias=flat[start.gate_bias : start.gate_bias + 2 * width],
    )
