"""Compiled functions on arrays, by what they compute. numba lives here alone, and nothing here knows the rest of `core`.

numba keeps compiled code as long as the function's own file stays as it is; it does not look at the functions that it calls.
So the cache folder's name holds a hash of this folder (`experiments.runs.paths`), and everything that is compiled into a
kernel must lie in it.

    jit             flags, and how a tensor's memory reaches a kernel
    blas            matrix products by the library that torch uses
    pointwise       tanh, sigmoid, decay; biases, skips and gates, with their gradients
    recurrence      linear scans, real, complex, and S4D's
    discretization  from continuous to discrete systems, with its gradient
    gru             the gated recurrent unit
    selective       Mamba's convolution and selective scan
    gated           minGRU's layer, and a policy's memory of such layers
    matrix_memory   matrices written by outer products: mLSTM's, Mamba-2's and the gated delta rule's
    feedback        recurrences that are nonlinear in their state, unit by unit
    slstm           sLSTM's layer
    attention       one step over a rolling cache
    layout          sizes, places and buffers of a policy in flat memory, by name
    policy          encoder and heads
    ssm_memory      the state space memory between them
    ppo_loss        PPO's loss and its gradient
    adam            Adam on a flat vector

A backward's docstring derives it. Glossary of all derivations: dX is the derivative of the loss L in X; complex numbers travel as
[re | im], and the derivative in a complex z = x + iy is dz = dL/dx + i dL/dy, so that w = f(z), holomorphic, gives dz = conj(f'(z)) dw.
"""
