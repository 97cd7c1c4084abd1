"""Probe of the State-Modeling agent: how far back a cell remembers, measured on the untrained model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from core.config import FrozenConfig
from core.errors import InputError
from experiments.vocabulary import Arm
from multi_agent.tools.tool import ArmArguments, Param, Tool, ToolContext, Values, values_dict

if TYPE_CHECKING:
    from core.sequence_model import SequenceModelConfig

LAGS = (0, 1, 2, 5, 10, 20, 50, 100, 199)


class MemoryArguments(ArmArguments):
    """A sequence model to probe."""

    values: Values = Field(default_factory=list[Param])
    """Hyperparameters of the model to set; the others keep their defaults."""


class MemoryProbe(FrozenConfig):
    """What the untrained model passes on from its past."""

    kind: str
    parameters: int
    state_size: int
    """Real numbers carried from step to step for one sequence."""
    lags: tuple[int, ...]
    """Steps back in time."""
    sensitivity: tuple[float, ...]
    """Norm of the gradient of the last output with respect to the input that many steps back, largest = 1."""
    memory_steps: int
    """Longest of these lags whose sensitivity is at least 0.01."""


def memory_length(context: ToolContext, arguments: MemoryArguments) -> MemoryProbe:
    """Measure how far back an untrained sequence model remembers: gradient of its last output by the lag of its input."""
    import torch

    from core.sequence_model import build_model, count_parameters

    config = model_config(context, arguments.arm, arguments.values)
    generator = torch.Generator().manual_seed(0)
    model = build_model(config, 16, 16, generator=generator)
    x = torch.randn(4, LAGS[-1] + 1, 16, generator=generator, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x)[0][:, -1].square().sum(), x)
    by_lag = gradient.norm(dim=(0, 2)).flip(0)[list(LAGS)].double()
    largest = float(by_lag.max())
    relative = [float(v) / largest if largest > 0 and math.isfinite(largest) else 0.0 for v in by_lag]
    return MemoryProbe(
        kind=config.kind,
        parameters=count_parameters(model),
        state_size=model.hidden_size,
        lags=LAGS,
        sensitivity=tuple(round(v, 6) for v in relative),
        memory_steps=max((lag for lag, v in zip(LAGS, relative, strict=True) if v >= 0.01), default=0),
    )


def model_config(context: ToolContext, arm: Arm, given: list[Param]) -> SequenceModelConfig:
    """The sequence model of one arm with `given` set and the other fields at their defaults. InputError if infeasible."""
    from core.sequence_model import parse_model_config

    values = values_dict(given)
    space = context.lab.describe_search_space(arm, "state-modeling")
    chosen = {p.name: p.default for p in space.parameters} | values
    kind = {name: chosen[name] for name in ("model.kind",) if name in chosen}
    problems = context.lab.check_feasibility(arm, kind | values).problems
    if problems:
        raise InputError("; ".join(str(problem) for problem in problems))
    fields = {name.removeprefix("model."): v for name, v in chosen.items() if name.startswith("model.")}
    fields.setdefault("kind", getattr(context.lab.question, arm).kinds[0])
    config_fields = type(parse_model_config(fields["kind"])).model_fields
    return parse_model_config({name: v for name, v in fields.items() if name in config_fields})


MEMORY_LENGTH = Tool("memory_length", MemoryArguments, memory_length, measures=True, writes="nothing")
