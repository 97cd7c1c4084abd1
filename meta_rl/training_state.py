"""What a learner with a policy, a normalizer and one optimizer keeps of its training, as named tensors for a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from meta_rl.normalize import Normalizer


def training_tensors(
    policy: nn.Module, normalizer: Normalizer, optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]
) -> dict[str, Tensor]:
    """All of them: `policy.*`, `normalizer.*`, and `optimizer.I.*` of the I-th of `parameters`."""
    tensors = {f"policy.{name}": value for name, value in policy.state_dict().items()}
    tensors |= normalizer.tensors()
    for index, parameter in enumerate(parameters):
        for name, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{index}.{name}"] = value
    return tensors


def restore_policy(policy: nn.Module, normalizer: Normalizer, tensors: dict[str, Tensor]) -> None:
    """Put back the policy and the normalizer that `training_tensors` gave."""
    policy.load_state_dict({k.removeprefix("policy."): v for k, v in tensors.items() if k.startswith("policy.")})
    normalizer.restore(tensors)


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], tensors: dict[str, Tensor]
) -> None:
    """Put back the moments that `training_tensors` gave; a parameter without any has made no step yet."""
    optimizer.state.clear()
    for index, parameter in enumerate(parameters):
        prefix = f"optimizer.{index}."
        state = {name.removeprefix(prefix): value.clone() for name, value in tensors.items() if name.startswith(prefix)}
        if state:
            optimizer.state[parameter] = state
