"""One gradient of PPO's loss without autograd: the same numbers as `meta_rl.ppo`'s plain path, in a third of the time.

Encoder, heads and loss run compiled for every policy that `core.fused.policy.covered` allows; so does a memory of state space
blocks, of minGRU's or minLSTM's layers, an LSTM, a GRU or a diagonal GRU.
Any other memory keeps autograd for itself and takes part through its input and output.
"""

from __future__ import annotations

import numpy as np
import torch

from core.fused.policy import CompiledPolicy, covered
from core.fused.recurrent_layers import Memory
from core.kernels.adam import norm
from core.kernels.gated import GatedTrace, gated_backward, gated_forward
from core.kernels.jit import as_flat, f32
from core.kernels.layout import Activations, Scratch, Sequences, Sizes, Slopes, Targets, Trace
from core.kernels.policy import encode, encode_backward, heads, heads_backward
from core.kernels.ppo_loss import (
    ENTROPY,
    NORM,
    POLICY_LOSS,
    VALUE_LOSS,
    categorical_loss,
    gather,
    gaussian_loss,
    value_loss,
)
from core.kernels.ssm_memory import discretize_layers, memory_backward, memory_forward
from core.policy import PolicyInput, RecurrentPolicy
from meta_rl.auxiliary import Auxiliary
from meta_rl.auxiliary import Targets as AuxiliaryTargets
from meta_rl.flat_adam import FlatAdam


class Minibatch:
    """Buffers for minibatches of `count` sequences of `steps` steps, R rows in all, of a batch's parts (N, T numbers).

    gated: how many layers of minGRU or minLSTM the memory has, and how many widths W of each.
    """

    def __init__(
        self, sizes: Sizes, gated: tuple[int, int], batch: tuple[np.ndarray, ...], count: int, steps: int
    ) -> None:
        def rows_of(numbers: int, layers: int | None = None) -> np.ndarray:
            size = count * steps * numbers
            return np.empty(size if layers is None else (layers, size), f32)

        self.parts = tuple(np.empty(count * part.shape[1], part.dtype) for part in batch)
        self.seen, *targets = self.parts
        self.targets = Targets(*targets)
        self.activations = Activations(
            encoded=rows_of(sizes.encoder),
            hidden=rows_of(2 * sizes.head),
            mean=rows_of(sizes.actions),
            value=rows_of(1),
        )
        self.slopes = Slopes(
            encoded=rows_of(sizes.encoder),
            hidden=rows_of(2 * sizes.head),
            mean=rows_of(sizes.actions),
            value=rows_of(1),
            memory=rows_of(sizes.width),
        )
        self.trace = Trace(
            states=rows_of(sizes.state if sizes.dense else 0, sizes.layers),
            linear=rows_of(sizes.width, sizes.layers),
            active=rows_of(sizes.width, sizes.layers),
            mixed=rows_of(2 * sizes.width, sizes.layers),
            out=rows_of(sizes.width, sizes.layers),
        )
        layers, parts = gated
        pre = rows_of(parts * sizes.width, layers)
        self.gated = GatedTrace(
            pre=pre,
            gates=pre if parts == 3 else rows_of(3 * sizes.width, layers),
            shut=rows_of(2 * (parts - 3) * sizes.width, layers),
            states=rows_of(sizes.width, layers),
            squashed=rows_of(sizes.width, layers),
            out=rows_of(sizes.width, layers),
        )
        self.scratch = Scratch(below=rows_of(sizes.width), linear=rows_of(sizes.width), mixed=rows_of(2 * sizes.width))
        self.sequences = Sequences(keep=np.ones((count, steps), f32), zeros=np.zeros((count, sizes.state), f32))


class FusedLoss:
    """Gradients of PPO's loss for minibatches of whole sequences, into the optimizer's flat gradient.

    inputs (N, T, ...), actions (N, T, A) or (N, T), old_log_prob, advantages, returns (N, T): the whole batch. auxiliary: a head that
    reads the memory, with what it has to say; its own gradient is autograd's, and meets the heads' where it enters the memory.
    Buffers are made once for each size of minibatch; use one object for an update.
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
        auxiliary: tuple[Auxiliary, AuxiliaryTargets] | None = None,
    ) -> None:
        self.policy, self.optimizer, self.auxiliary = policy, optimizer, auxiliary
        self.compiled = CompiledPolicy(policy, optimizer.starts)
        count, self.steps = old_log_prob.shape
        seen = torch.cat(
            [inputs.obs, inputs.prev_action, inputs.prev_reward[..., None], inputs.prev_done[..., None]], -1
        )
        whole = (seen, actions, old_log_prob, advantages, returns)
        self.batch = tuple(np.ascontiguousarray(part.detach().numpy()).reshape(count, -1) for part in whole)
        self.minibatches: dict[int, Minibatch] = {}
        self.memories: dict[int, Memory] = {}

    @staticmethod
    def allowed(policy: RecurrentPolicy, optimizer: torch.optim.Optimizer, hints: torch.Tensor | None) -> bool:
        """Whether this class can stand in for the plain path."""
        return isinstance(optimizer, FlatAdam) and hints is None and covered(policy)

    def __call__(
        self, rows: torch.Tensor, clip: float, value_coef: float, entropy_coef: float, measured: np.ndarray
    ) -> tuple[float, float]:
        """Gradients for the sequences `rows` (M,): the loss and the gradient's norm; adds means to measured (6,)."""
        index, compiled = rows.numpy(), self.compiled
        buffers = self.minibatches.get(index.size)
        if buffers is None:
            gated = (compiled.gated.size, compiled.parts)
            buffers = Minibatch(compiled.sizes, gated, self.batch, index.size, self.steps)
            self.minibatches[index.size] = buffers
            if compiled.recurrent:
                self.memories[index.size] = Memory(compiled.recurrent, compiled.blas, index.size, self.steps)
        for source, part in zip(self.batch, buffers.parts, strict=True):
            gather(index, source, part)
        # Kernels take tuples without names, as `core.kernels.layout` says.
        blas, weights, gradients = compiled.blas, self.optimizer.weights, self.optimizer.gradients
        sizes, places, system = tuple(compiled.sizes), tuple(compiled.places), tuple(compiled.system)
        activations, slopes, targets = tuple(buffers.activations), tuple(buffers.slopes), tuple(buffers.targets)
        sequences, trace = tuple(buffers.sequences), tuple(buffers.trace)
        encoded, grad_encoded = buffers.activations.encoded, buffers.slopes.encoded

        gradients.fill(0)
        encode(blas, weights, sizes, places, buffers.seen, encoded)
        leaf, out, recurrent = None, None, self.memories.get(index.size)
        if compiled.whole:
            discretize_layers(weights, sizes, places, system)
            memory_forward(blas, weights, sizes, places, system, sequences, encoded, trace)
            memory = buffers.trace.out[-1]
        elif compiled.gated.size:
            gated_trace = tuple(buffers.gated)
            gated_forward(blas, weights, sizes, compiled.gated, sequences, encoded, gated_trace)
            memory = buffers.gated.out[-1]
        elif recurrent is not None:
            memory = recurrent.forward(weights, recurrent.derived(weights), encoded)
        else:
            leaf = torch.from_numpy(encoded).view(index.size, self.steps, -1).requires_grad_()
            out = self.policy.memory(leaf)[0]
            memory = as_flat(out)
        heads(blas, weights, sizes, places, memory, activations)
        now = np.zeros(6)
        value_loss(buffers.activations.value, buffers.targets.returns, f32(value_coef), buffers.slopes.value, now)
        mean, grad_mean = buffers.activations.mean, buffers.slopes.mean
        start, end = compiled.places.log_std, compiled.places.log_std + compiled.sizes.actions
        if start >= 0:
            log_std, grad_log_std = weights[start:end], gradients[start:end]
            gaussian_loss(mean, log_std, targets, f32(clip), f32(entropy_coef), grad_mean, grad_log_std, now)
        else:
            categorical_loss(mean, end - start, targets, f32(clip), f32(entropy_coef), grad_mean, now)
        heads_backward(blas, weights, gradients, sizes, places, memory, activations, slopes)
        helped = 0.0 if self.auxiliary is None else self._help(self.auxiliary, rows, memory, buffers.slopes.memory)
        if compiled.whole:
            scratch = tuple(buffers.scratch)
            memory_backward(blas, weights, gradients, sizes, places, system, sequences, encoded, trace, scratch, slopes)
        elif compiled.gated.size:
            spare, gated_trace = buffers.scratch.below, tuple(buffers.gated)
            gated_backward(
                blas, weights, gradients, sizes, compiled.gated, sequences, encoded, gated_trace, spare, slopes
            )
        elif recurrent is not None:
            recurrent.backward(weights, gradients, encoded, buffers.slopes.memory, grad_encoded)
        else:
            assert leaf is not None
            assert out is not None
            out.backward(torch.from_numpy(buffers.slopes.memory).view(out.shape))
            assert leaf.grad is not None
            grad_encoded += leaf.grad.numpy().reshape(-1)
        encode_backward(blas, gradients, sizes, places, buffers.seen, encoded, grad_encoded)
        now /= self.steps * index.size
        now[NORM] = norm(gradients)
        measured += now
        loss = now[POLICY_LOSS] + value_coef * now[VALUE_LOSS] - entropy_coef * now[ENTROPY]
        return float(loss) + helped, float(now[NORM])

    def _help(
        self, auxiliary: tuple[Auxiliary, AuxiliaryTargets], rows: torch.Tensor, memory: np.ndarray, slope: np.ndarray
    ) -> float:
        """Add an auxiliary head's gradient to its own and to the memory's; its loss."""
        head, targets = auxiliary
        leaf = torch.from_numpy(memory).view(rows.numel(), self.steps, -1).detach().requires_grad_()
        loss = head.loss(leaf, targets.of(rows))
        loss.backward()
        assert leaf.grad is not None
        slope += leaf.grad.numpy().reshape(-1)
        return float(loss.detach())
