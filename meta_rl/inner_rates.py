"""Step sizes of an inner loop that are meta-learned with the weights: shared by MAML for any module and for control.

"meta-sgd": one for every number (Li et al. 2017, arXiv 1707.09835, equation 2). "maml++": one for every tensor and inner step
(Antoniou et al. 2019, arXiv 1810.09502, section 4, "Learning Per-Layer Per-Step Learning Rates and Gradient Directions").
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def initial_rates(kind: str, parameters: Mapping[str, Tensor], inner_lr: float, steps: int) -> dict[str, Tensor]:
    """`rate.NAME` of each parameter, all `inner_lr`: as the parameter for "meta-sgd", (steps,) for "maml++"; none for another kind."""
    if kind == "meta-sgd":
        return {f"rate.{n}": torch.full_like(p, inner_lr).requires_grad_() for n, p in parameters.items()}
    if kind == "maml++":
        return {f"rate.{n}": p.new_full((steps,), inner_lr).requires_grad_() for n, p in parameters.items()}
    return {}


def rate_of(kind: str, rates: Mapping[str, Tensor], name: str, step: int, inner_lr: float) -> Tensor | float:
    """The rate of a parameter in an inner step, counted from 0; steps past the learned ones go on at the last one's."""
    if kind == "meta-sgd":
        return rates[f"rate.{name}"]
    if kind == "maml++":
        own = rates[f"rate.{name}"]
        return own[min(step, len(own) - 1)]
    return inner_lr
