"""A whole policy as compiled functions on flat memory: which ones can be, where their parameters lie, and acting by them.

Autograd costs more than the arithmetic where a batch is a few hundred rows: a training step of two sequences of 200 steps
is 0.8 ms of matrix products, and was 3.5 ms in all. So parameters and gradients are two flat vectors, activations live
in buffers made once, and the backward is written out (`core.kernels.policy`, `core.kernels.ssm_memory`, `core.kernels.gated`,
`core.fused.recurrent_layers`).
`core.policy.RecurrentPolicy` says what is computed and is the truth that the tests hold these functions against; what is not
covered here (see `covered`) runs there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core.cells.mingru import LinearGates
from core.fused.recurrent_layers import Memory, recurrent_layers
from core.kernels.blas import sgemm_address
from core.kernels.discretization import METHODS
from core.kernels.gated import GATED_PLACES, GatedStep, gated_act, load_gated
from core.kernels.jit import as_flat, f32
from core.kernels.layout import LAYER_PLACES, Activations, Places, Sizes, Step, System
from core.kernels.policy import act, encode, heads
from core.kernels.recurrent import load_recurrent
from core.kernels.ssm_memory import discretize_layers, load_shared
from core.policy import RecurrentPolicy
from core.ssm import DiagonalCell, SSMBlock, StateSpaceModel

ALIGNED = 16  # numbers: a parameter starts at a cache line


def covered(policy: RecurrentPolicy) -> bool:
    """Whether the encoder and the heads can run compiled: plain float32 on the CPU, one hidden layer in both heads."""
    return policy.shared and all(p.dtype == torch.float32 and p.device.type == "cpu" for p in policy.parameters())


def compiled_blocks(policy: RecurrentPolicy) -> list[SSMBlock]:
    """The memory's blocks where they can as well: plain state space blocks (a full gate, no norm, no integrators, not selective), as wide
    as the encoder.

    Nothing where one of them cannot.
    """
    memory = policy.memory
    if not isinstance(memory, StateSpaceModel) or memory.encoder is not None or memory.decoder is not None:
        return []
    blocks = [block for block in memory.blocks if isinstance(block, SSMBlock)]
    plain = all(
        block.gating == "full" and block.norm is None and not block.cell.integrators and block.cell.pace is None
        for block in blocks
    )
    return blocks if plain and len(blocks) == len(memory.blocks) else []


def gated_layers(policy: RecurrentPolicy) -> list[nn.Linear]:
    """The maps of a minGRU's or minLSTM's memory, layer by layer: its recurrence runs compiled at any width. Nothing for any other memory."""
    memory = policy.memory
    if not isinstance(memory, LinearGates) or memory.decoder is not None:
        return []
    return [layer for layer in memory.layers if isinstance(layer, nn.Linear)]


def training_path(policy: RecurrentPolicy) -> str:
    """How `meta_rl.fused_ppo` trains it, in words: compiled, its memory alone by autograd, or all of it by autograd."""
    if not covered(policy):
        return "by autograd"
    starts = {id(parameter): 0 for parameter in policy.parameters()}
    whole = compiled_blocks(policy) or gated_layers(policy) or recurrent_layers(policy.memory, starts)
    return "compiled" if whole else "memory by autograd"


def flat_layout(parameters: Sequence[Tensor]) -> tuple[list[int], int]:
    """Where each parameter starts in a flat vector, and the vector's size."""
    starts, size = [], 0
    for parameter in parameters:
        starts.append(size)
        size += -(-parameter.numel() // ALIGNED) * ALIGNED
    return starts, size


class CompiledPolicy:
    """A policy's sizes and the places of its parameters in flat memory, for the kernels.

    starts: where each parameter of the policy starts, by id. Raises nothing; ask `covered` first.
    """

    def __init__(self, policy: RecurrentPolicy, starts: Mapping[int, int]) -> None:
        self.blas = sgemm_address()
        blocks = compiled_blocks(policy)
        self.whole = bool(blocks)
        """Whether the memory is a compiled stack of state space blocks."""
        gated = gated_layers(policy)
        self.gated = np.zeros(len(gated), GATED_PLACES)
        """The places of a compiled gated memory's layers; empty for any other memory."""
        self.parts = getattr(policy.memory, "parts", 3) if gated else 3
        """How many widths such a layer's W has."""
        self.recurrent = recurrent_layers(policy.memory, starts)
        """The layers of a compiled memory that hears its own state; empty for any other memory."""
        if blocks:
            load_shared()
        if gated:
            load_gated()
        if self.recurrent:
            load_recurrent()

        def place(parameter: Tensor | None) -> int:
            return -1 if parameter is None else starts[id(parameter)]

        layers = np.full(len(blocks), -1, LAYER_PLACES)
        for row, block in zip(layers, blocks, strict=True):
            cell = block.cell
            assert block.gate is not None
            log_decay, frequency, third = (getattr(cell, name) for name in cell.dynamics)
            parts = {
                "log_decay": log_decay, "frequency": frequency, "third": third, "B": getattr(cell, "B", None),
                "C": cell.C, "D": cell.D, "gate": block.gate.weight, "gate_bias": block.gate.bias,
            }  # fmt: skip
            for name, parameter in parts.items():
                row[name] = place(parameter)
        for row, layer in zip(self.gated, gated, strict=True):
            row["weight"], row["bias"], row["inputs"] = place(layer.weight), place(layer.bias), layer.in_features
        self.places = Places(
            encoder=place(policy.encoder.weight),
            encoder_bias=place(policy.encoder.bias),
            hidden=place(policy.heads_hidden.weight),
            hidden_bias=place(policy.heads_hidden.bias),
            actor=place(policy.actor.weight),
            actor_bias=place(policy.actor.bias),
            critic=place(policy.critic.weight),
            critic_bias=place(policy.critic.bias),
            log_std=place(policy.log_std),
            layers=layers,
        )
        cell: Any = blocks[0].cell if blocks else None
        config = policy.config
        self.sizes = Sizes(
            inputs=policy.obs_dim + policy.action.size + 2,
            encoder=config.encoder_dim,
            width=config.model.hidden_dim,
            state=cell.state_size if blocks else config.model.hidden_dim if gated else 0,
            head=config.head_dim,
            actions=policy.action.size,
            layers=len(blocks),
            skip=int(config.skip),
            dense=int(isinstance(cell, DiagonalCell)),
            method=METHODS[cell.method] if blocks else 0,
            thirds=getattr(cell, cell.dynamics[2]).numel() if blocks else 1,
        )
        half, width = self.sizes.state // 2, self.sizes.width
        self.system = System(
            a=np.zeros((len(blocks), 2, half), f32),
            gain=np.zeros((len(blocks), 2, half), f32),
            matrix=np.zeros((len(blocks), self.sizes.state * (width if self.sizes.dense else 1)), f32),
        )


class CompiledActing:
    """A policy acting step by step in `count` worlds, from zero memory, with the parameters it has now.

    Parameters are copied once: make a new object after they change.
    """

    def __init__(self, policy: RecurrentPolicy, count: int) -> None:
        parameters = list(policy.parameters())
        starts, size = flat_layout(parameters)
        compiled = CompiledPolicy(policy, dict(zip(map(id, parameters), starts, strict=True)))
        weights = np.zeros(size, f32)
        for parameter, start in zip(parameters, starts, strict=True):
            weights[start : start + parameter.numel()] = as_flat(parameter)
        sizes = compiled.sizes
        self.whole, self.gated, self.memory, self.size = compiled.whole, None, policy.memory, (count, sizes.actions)
        self.recurrent: Memory | None = None
        self.activations = Activations(
            encoded=np.empty(count * sizes.encoder, f32),
            hidden=np.empty(count * 2 * sizes.head, f32),
            mean=np.empty(count * sizes.actions, f32),
            value=np.empty(count, f32),
        )
        self.policy = (compiled.blas, weights, tuple(sizes), tuple(compiled.places))
        """What every kernel takes first; tuples without names, as `core.kernels.layout` says."""
        self.buffers: tuple[Any, ...] = (tuple(self.activations),)
        if compiled.whole:
            step = Step(
                state=np.zeros((sizes.layers, count * sizes.state), f32),
                linear=np.empty(count * sizes.width, f32),
                mixed=np.empty(count * 2 * sizes.width, f32),
                out=np.empty(count * sizes.width, f32),
            )
            system = tuple(compiled.system)
            discretize_layers(weights, tuple(sizes), tuple(compiled.places), system)
            self.buffers = (system, tuple(step), tuple(self.activations))
        elif compiled.gated.size:
            step = GatedStep(
                state=np.zeros((compiled.gated.size, count * sizes.width), f32),
                pre=np.empty(count * compiled.parts * sizes.width, f32),
                out=np.empty(count * sizes.width, f32),
            )
            self.gated = (compiled.gated, tuple(step), tuple(self.activations))
        elif compiled.recurrent:
            self.recurrent = Memory(compiled.recurrent, compiled.blas, count, 1)
            self.derived = self.recurrent.derived(weights)
        else:
            self.carried = policy.init_hidden(count)

    def __call__(self, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """seen (B, I) float32: observation, last action, reward, done. Fresh mean or logits (B, A) and value (B,)."""
        seen = seen.reshape(-1)
        if self.whole:
            act(*self.policy, *self.buffers, seen)  # pyright: ignore[reportCallIssue]
        elif self.gated is not None:
            gated_act(*self.policy, *self.gated, seen)
        else:
            encoded = self.activations.encoded
            encode(*self.policy, seen, encoded)
            if self.recurrent is not None:
                memory = self.recurrent.forward(self.policy[1], self.derived, encoded)
                self.recurrent.go_on()
            else:
                out, self.carried = self.memory(torch.from_numpy(encoded).view(self.size[0], -1), self.carried)
                memory = as_flat(out)
            heads(*self.policy, memory, *self.buffers)
        return self.activations.mean.reshape(self.size).copy(), self.activations.value.copy()
