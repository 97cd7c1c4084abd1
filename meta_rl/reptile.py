"""Reptile's meta-gradient: towards where plain training on the task went.

    g = (theta - phi) / alpha,   phi = theta after k >= 2 steps of SGD with rate alpha on the task.

Source: Nichol, Achiam, Schulman 2018 (arXiv 1803.02999), algorithm 1 and section 3: theta - phi divided by the inner
rate is a gradient for Adam. With k = 1 it is joint training on all tasks.
"""

from __future__ import annotations

from torch import Tensor

Params = dict[str, Tensor]


def reptile_gradient(theta: Params, phi: Params, inner_lr: float) -> Params:
    """(theta - phi) / inner_lr for every parameter, detached."""
    return {name: (theta[name].detach() - phi[name].detach()) / inner_lr for name in theta}
