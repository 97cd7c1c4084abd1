"""Encoder and heads of a policy in flat memory, with their gradients, and one acting step of a whole policy.

`core.policy.RecurrentPolicy` says what is computed and is the reference; tests/meta_rl/test_fused_ppo.py compares gradients with
autograd in double precision, and acting steps with the sequence. Names and letters: `core.kernels.layout`.
"""

from __future__ import annotations

import numba

from core.kernels.blas import N, T, product
from core.kernels.jit import JIT, f32
from core.kernels.layout import Activations, Places, Sizes, Slopes, Step, System
from core.kernels.pointwise import bias_tanh, bias_tanh_backward
from core.kernels.ssm_memory import memory_step


@numba.njit(**JIT)
def encode(blas, weights, sizes, places, seen, encoded):  # pragma: no cover (compiled)
    """encoded (R, E) = tanh(W seen + b), seen (R, I)."""
    sizes, places = Sizes(*sizes), Places(*places)
    inputs, width = sizes.inputs, sizes.encoder
    rows = encoded.size // width
    matrix, bias = weights[places.encoder :], weights[places.encoder_bias : places.encoder_bias + width]
    product(blas, N, T, rows, inputs, width, seen, inputs, matrix, inputs, f32(0), encoded, width)
    bias_tanh(encoded, bias)


@numba.njit(**JIT)
def encode_backward(blas, gradients, sizes, places, seen, encoded, grad):  # pragma: no cover (compiled)
    """Gradients of the encoder's parameters, from grad (R, E) in its output, which is overwritten.

    e = tanh(z), z = W x + b:   dz = de (1 - e^2),   dW = dz^T x,   db = sum over rows of dz
    """
    sizes, places = Sizes(*sizes), Places(*places)
    inputs, width = sizes.inputs, sizes.encoder
    rows = encoded.size // width
    matrix, bias = gradients[places.encoder :], gradients[places.encoder_bias : places.encoder_bias + width]
    bias_tanh_backward(grad, encoded, bias)
    product(blas, T, N, width, rows, inputs, grad, width, seen, inputs, f32(0), matrix, inputs)


@numba.njit(**JIT)
def heads(blas, weights, sizes, places, memory, activations):  # pragma: no cover (compiled)
    """hidden, mean and value of the activations, from memory (R, H) and, where it skips, encoded (R, E).

    hidden = tanh(V [memory | encoded] + c) = [actor's K | critic's K],   mean = M hidden_actor + m,   value = k hidden_critic + n
    """
    sizes, places, activations = Sizes(*sizes), Places(*places), Activations(*activations)
    wide, width, inner, actions = sizes.encoder, sizes.width, sizes.head, sizes.actions
    encoded, hidden, mean, value = activations.encoded, activations.hidden, activations.mean, activations.value
    features, double, rows = width + sizes.skip * wide, 2 * inner, value.size
    first = weights[places.hidden :]
    product(blas, N, T, rows, width, double, memory, width, first, features, f32(0), hidden, double)
    if sizes.skip:
        rest = weights[places.hidden + width :]
        product(blas, N, T, rows, wide, double, encoded, wide, rest, features, f32(1), hidden, double)
    bias_tanh(hidden, weights[places.hidden_bias : places.hidden_bias + double])
    product(blas, N, T, rows, inner, actions, hidden, double, weights[places.actor :], inner, f32(0), mean, actions)
    bias = weights[places.actor_bias : places.actor_bias + actions]
    critic, offset = weights[places.critic : places.critic + inner], weights[places.critic_bias]
    for r in range(rows):
        for j in range(actions):
            mean[r * actions + j] += bias[j]
        row = hidden[(2 * r + 1) * inner : (2 * r + 2) * inner]
        total = f32(0)
        for j in range(inner):
            total += row[j] * critic[j]
        value[r] = total + offset


@numba.njit(**JIT)
def heads_backward(blas, weights, gradients, sizes, places, memory, activations, slopes):  # pragma: no cover (compiled)
    """Gradients of `heads`, from slopes.mean and slopes.value: parameters' into `gradients`, and the slopes of what it read.

        mean = M a + m, a the actor's part of hidden:     dM = dmean^T a,  dm = sum over rows of dmean,  da = dmean M
        value = k c + n, c the critic's part:             dk = dvalue^T c,  dn = sum of dvalue,  dc = dvalue k
        hidden = tanh(V [memory | encoded] + b):          dz = [da | dc] (1 - hidden^2),  dV = dz^T [memory | encoded],
                                                          db = sum over rows of dz,  [dmemory | dencoded] = dz V

    slopes.hidden, slopes.memory (R, H) and slopes.encoded (R, E) are overwritten. Biases' and the critic's gradients are added to.
    """
    sizes, places, activations, slopes = Sizes(*sizes), Places(*places), Activations(*activations), Slopes(*slopes)
    wide, width, inner, actions = sizes.encoder, sizes.width, sizes.head, sizes.actions
    hidden, encoded = activations.hidden, activations.encoded
    grad_mean, grad_value, grad_hidden = slopes.mean, slopes.value, slopes.hidden
    features, double, rows = width + sizes.skip * wide, 2 * inner, grad_value.size
    actor, grad_actor = weights[places.actor :], gradients[places.actor :]
    product(blas, T, N, actions, rows, inner, grad_mean, actions, hidden, double, f32(0), grad_actor, inner)
    product(blas, N, N, rows, actions, inner, grad_mean, actions, actor, inner, f32(0), grad_hidden, double)
    critic, grad_critic = (
        weights[places.critic : places.critic + inner],
        gradients[places.critic : places.critic + inner],
    )
    grad_bias = gradients[places.actor_bias : places.actor_bias + actions]
    offset = f32(0)
    for r in range(rows):
        slope = grad_value[r]
        offset += slope
        for j in range(actions):
            grad_bias[j] += grad_mean[r * actions + j]
        row, out = (
            hidden[(2 * r + 1) * inner : (2 * r + 2) * inner],
            grad_hidden[(2 * r + 1) * inner : (2 * r + 2) * inner],
        )
        for j in range(inner):
            grad_critic[j] += slope * row[j]
        for j in range(inner):
            out[j] = slope * critic[j]
    gradients[places.critic_bias] = offset
    bias_tanh_backward(grad_hidden, hidden, gradients[places.hidden_bias : places.hidden_bias + double])
    first, grad_first = weights[places.hidden :], gradients[places.hidden :]
    product(blas, T, N, double, rows, width, grad_hidden, double, memory, width, f32(0), grad_first, features)
    product(blas, N, N, rows, double, width, grad_hidden, double, first, features, f32(0), slopes.memory, width)
    if sizes.skip:
        rest, grad_rest = weights[places.hidden + width :], gradients[places.hidden + width :]
        product(blas, T, N, double, rows, wide, grad_hidden, double, encoded, wide, f32(0), grad_rest, features)
        product(blas, N, N, rows, double, wide, grad_hidden, double, rest, features, f32(0), slopes.encoded, wide)
    else:
        slopes.encoded[:] = f32(0)


@numba.njit(**JIT)
def act(blas, weights, sizes, places, system, step, activations, seen):  # pragma: no cover (compiled)
    """One acting step of a whole policy: mean and value of the activations from seen (B, I); the state moves on."""
    sizes, places, step, activations = Sizes(*sizes), Places(*places), Step(*step), Activations(*activations)
    encode(blas, weights, sizes, places, seen, activations.encoded)
    memory_step(blas, weights, sizes, places, System(*system), activations.encoded, step)
    heads(blas, weights, sizes, places, step.out, activations)
