"""Memories of layers that hear their own state (LSTM, GRU, diagonal GRU) as part of a policy in flat memory.

A layer reads p = W x, one product for all steps, and then goes through time by a kernel; back from the end it makes dp of the gates, and
two products are left: dW = dp^T x, dx = dp W. What differs from cell to cell is in the classes below; the cells themselves
(`core.recurrent`, `core.cells.diag_gru`) are the reference that tests/meta_rl/test_fused_ppo.py holds all of it against.
Shapes: B sequences, T steps, R = B T rows, D inputs, H width, G widths in p.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from core.cells.diag_gru import DiagGRU
from core.kernels.blas import N, T, product
from core.kernels.feedback import diag_gru_scan, diag_gru_scan_backward
from core.kernels.jit import f32
from core.kernels.recurrent import gru_scan, gru_scan_backward, lstm_scan, lstm_scan_backward
from core.recurrent import GRU, LSTM

Arrays = tuple[np.ndarray, ...]


class Place(NamedTuple):
    """Where a parameter lies in a flat vector."""

    start: int
    shape: tuple[int, ...]


class Layer:
    """Where one layer's parameters start in the flat vectors, and its kernels. The first parameter is W (G H, D)."""

    parts: int
    """G."""
    states = 1
    """How many states (B, H) it carries from step to step."""
    traced: int
    """How many buffers (B, T, H) its kernels want, the output last."""
    kernel: Callable[..., None]
    """Forward through time: p, what is derived of the parameters, the states at the start, keep, and the buffers."""

    def __init__(self, places: list[Place]) -> None:
        self.places, shape = places, places[0].shape
        self.start, self.inputs, self.width = places[0].start, shape[1], shape[0] // self.parts

    def of(self, flat: np.ndarray) -> list[np.ndarray]:
        """This layer's parameters, or their gradients: views of a flat vector."""
        return [flat[place.start : place.start + math.prod(place.shape)].reshape(place.shape) for place in self.places]

    def derived(self, weights: np.ndarray) -> Arrays:
        """What `scan` wants of the parameters: decided by them alone, computed once for many steps."""
        raise NotImplementedError

    def scan(self, derived: Arrays, gates: np.ndarray, traced: Arrays, start: Arrays, keep: np.ndarray) -> None:
        """gates (B, T, G H) holds p; from the states `start` through all steps."""
        type(self).kernel(gates, *derived, *start, keep, *traced)

    def last(self, traced: Arrays) -> Arrays:
        """The states after the last step, each (B, H)."""
        return (traced[-1][:, -1],)

    def slopes(
        self, weights: np.ndarray, gradients: np.ndarray, gates: np.ndarray, traced: Arrays, start: Arrays,
        keep: np.ndarray, grad: np.ndarray, blas: int,
    ) -> None:  # fmt: skip
        """gates become dp, from grad (B, T, H) in the output; all parameters' gradients but W's."""
        raise NotImplementedError


def outer(blas: int, left: np.ndarray, columns: int, right: np.ndarray, out: np.ndarray) -> None:
    """out (M, H) = left^T right for left (B, T, C), of which the first M = `columns` count, and right (B, T, H)."""
    rows = left.shape[0] * left.shape[1]
    width = right.shape[2]
    product(
        blas, T, N, columns, rows, width, left.reshape(-1), left.shape[2], right.reshape(-1), width, f32(0),
        out.reshape(-1), width,
    )  # fmt: skip


class LSTMLayer(Layer):
    """`core.recurrent.lstm_reference`; traced: q, c, tanh(c), h."""

    parts, states, traced, kernel = 4, 2, 4, staticmethod(lstm_scan)

    def derived(self, weights: np.ndarray) -> Arrays:
        _, recurrent, bias, other = self.of(weights)
        return bias + other, np.ascontiguousarray(recurrent.T)

    def last(self, traced: Arrays) -> Arrays:
        return traced[3][:, -1], traced[1][:, -1]

    def slopes(
        self, weights: np.ndarray, gradients: np.ndarray, gates: np.ndarray, traced: Arrays, start: Arrays,
        keep: np.ndarray, grad: np.ndarray, blas: int,
    ) -> None:  # fmt: skip
        _, grad_recurrent, grad_bias, grad_other = self.of(gradients)
        previous, cells, squashed, _ = traced
        carried = [np.zeros_like(state) for state in start]
        lstm_scan_backward(gates, self.of(weights)[1], start[1], keep, cells, squashed, grad, *carried, grad_bias)  # pyright: ignore[reportCallIssue]
        grad_other[:] = grad_bias
        outer(blas, gates, gates.shape[2], previous, grad_recurrent)


class GRULayer(Layer):
    """`core.recurrent.gru_reference`; traced: q, a_n, h."""

    parts, traced, kernel = 3, 3, staticmethod(gru_scan)

    def derived(self, weights: np.ndarray) -> Arrays:
        _, recurrent, bias, other = self.of(weights)
        return bias, other, np.ascontiguousarray(recurrent.T)

    def slopes(
        self, weights: np.ndarray, gradients: np.ndarray, gates: np.ndarray, traced: Arrays, start: Arrays,
        keep: np.ndarray, grad: np.ndarray, blas: int,
    ) -> None:  # fmt: skip
        _, grad_recurrent, grad_bias, grad_other = self.of(gradients)
        previous, heard, _ = traced
        recurrent, carried, two = self.of(weights)[1], np.zeros_like(start[0]), 2 * self.width
        gru_scan_backward(gates, recurrent, keep, previous, heard, grad, carried, grad_bias, grad_other)
        # r and z hear U q as they hear W x; n hears it through r.
        outer(blas, gates, two, previous, grad_recurrent[:two])
        outer(blas, heard, self.width, previous, grad_recurrent[two:])


class DiagGRULayer(Layer):
    """`core.cells.diag_gru.diag_gru_reference`; traced: h."""

    parts, traced, kernel = 3, 1, staticmethod(diag_gru_scan)

    def derived(self, weights: np.ndarray) -> Arrays:
        return tuple(self.of(weights)[1:])

    def slopes(
        self, weights: np.ndarray, gradients: np.ndarray, gates: np.ndarray, traced: Arrays, start: Arrays,
        keep: np.ndarray, grad: np.ndarray, blas: int,
    ) -> None:  # fmt: skip
        _, grad_bias, grad_feedback = self.of(gradients)
        carried, feedback = np.zeros_like(start[0]), self.of(weights)[2]
        diag_gru_scan_backward(gates, traced[0], feedback, *start, keep, grad, carried, gates, grad_bias, grad_feedback)  # pyright: ignore[reportCallIssue]


def recurrent_layers(memory: nn.Module, starts: Mapping[int, int]) -> list[Layer]:
    """The layers of a memory that runs compiled here, from where each parameter starts by id; nothing for any other memory."""

    def places(*parameters: Tensor) -> list[Place]:
        return [Place(starts[id(p)], tuple(p.shape)) for p in parameters]

    if not isinstance(memory, LSTM | GRU | DiagGRU) or memory.decoder is not None:
        return []
    if isinstance(memory, DiagGRU):
        (whole,) = places(memory.feedback)
        size = math.prod(whole.shape[1:])
        feedback = [Place(whole.start + index * size, whole.shape[1:]) for index in range(whole.shape[0])]
        return [
            DiagGRULayer([*places(*layer.parameters()), one])
            for layer, one in zip(memory.layers, feedback, strict=True)
        ]
    kind = LSTMLayer if isinstance(memory, LSTM) else GRULayer
    return [kind(places(*memory.weights(layer))) for layer in range(memory.layers)]


class Memory:
    """A stack of layers over B sequences of T steps that start from nothing, or over one step of B worlds after another."""

    def __init__(self, layers: list[Layer], blas: int, count: int, steps: int) -> None:
        self.layers, self.blas, self.keep = layers, blas, np.ones((count, steps), f32)
        width = layers[0].width
        self.gates = [np.empty((count, steps, layer.parts * width), f32) for layer in layers]
        self.traced = [tuple(np.empty((count, steps, width), f32) for _ in range(layer.traced)) for layer in layers]
        self.start = [tuple(np.zeros((count, width), f32) for _ in range(layer.states)) for layer in layers]
        self.below = np.empty((count, steps, width), f32)

    def derived(self, weights: np.ndarray) -> list[Arrays]:
        """What `forward` wants of the parameters."""
        return [layer.derived(weights) for layer in self.layers]

    def forward(self, weights: np.ndarray, derived: list[Arrays], encoded: np.ndarray) -> np.ndarray:
        """The last layer's output (R H), from encoded (R D)."""
        u, rows = encoded, self.keep.size
        for layer, made, gates, traced, start in zip(
            self.layers, derived, self.gates, self.traced, self.start, strict=True
        ):
            weight, columns = weights[layer.start :], gates.shape[2]
            product(
                self.blas, N, T, rows, layer.inputs, columns, u, layer.inputs, weight, layer.inputs, f32(0), gates.reshape(-1), columns
            )  # fmt: skip
            layer.scan(made, gates, traced, start, self.keep)
            u = traced[-1].reshape(-1)
        return u

    def go_on(self) -> None:
        """Begin the next step where the last one ended."""
        for layer, traced, start in zip(self.layers, self.traced, self.start, strict=True):
            for state, after in zip(start, layer.last(traced), strict=True):
                state[:] = after

    def backward(
        self,
        weights: np.ndarray,
        gradients: np.ndarray,
        encoded: np.ndarray,
        grad: np.ndarray,
        grad_encoded: np.ndarray,
    ) -> None:
        """Gradients of `forward`: all parameters' into `gradients`, zeros so far; grad (R H) is used up, and what reaches the input is
        added to grad_encoded (R D)."""
        rows, below = self.keep.size, self.below.reshape(-1)
        for index in range(len(self.layers) - 1, -1, -1):
            layer, gates, traced = self.layers[index], self.gates[index], self.traced[index]
            u = self.traced[index - 1][-1].reshape(-1) if index else encoded
            layer.slopes(
                weights,
                gradients,
                gates,
                traced,
                self.start[index],
                self.keep,
                grad.reshape(self.below.shape),
                self.blas,
            )
            p, columns, inputs, place = gates.reshape(-1), gates.shape[2], layer.inputs, layer.start
            product(self.blas, T, N, columns, rows, inputs, p, columns, u, inputs, f32(0), gradients[place:], inputs)
            into, beta = (below, f32(0)) if index else (grad_encoded, f32(1))
            product(self.blas, N, N, rows, columns, inputs, p, columns, weights[place:], inputs, beta, into, inputs)
            grad, below = below, grad
