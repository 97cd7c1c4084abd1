"""The one contract of every memory in the project: `output, next_hidden = model(x, hidden, resets)`.

One step repeated T times equals one call on the sequence, for every registered model. The hidden state is one real
tensor (B, S) whatever the model is, so learners store, mask and copy it without knowing what remembers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack

from core.checkpoint import load_checkpoint, save_checkpoint
from core.config import FrozenConfig, search
from core.errors import InputError, bad_value
from core.registry import ConfigOf, Registry

ModelT = TypeVar("ModelT", bound="SequenceModel")
SelfT = TypeVar("SelfT", bound="SequenceModel")  # typing.Self is not understood by the tests' shape checker


DTYPES = (torch.float32, torch.float64)
"""What a sequence model computes in."""


class SequenceModelConfig(FrozenConfig):
    """What every sequence model has: a kind, a width and a depth. Each kind adds its own fields."""

    kind: str
    """Which model: a name of the registry, such as "s5" or "lstm"."""
    hidden_dim: int = Field(default=64, ge=1, le=4096)
    """Width of the residual stream, or of the recurrent layer."""
    num_layers: int = Field(default=2, ge=1, le=32, json_schema_extra=search(choices=(1, 2, 3)))
    """Depth: how many layers or blocks are stacked."""


@dataclass(frozen=True)
class ModelEntry:
    """What the registry knows of a kind."""

    config_type: type[SequenceModelConfig]
    build: Callable[..., SequenceModel]


MODELS: Registry[ModelEntry] = Registry("model", "models", package=("core", "core.cells"))


def register_model(kind: str, config_type: type[SequenceModelConfig]) -> Callable[[type[ModelT]], type[ModelT]]:
    """Class decorator: makes a model buildable as `build_model(config, ...)` under the name `kind`.

    The class is called as `cls.from_config(config, input_dim, output_dim, generator)`.
    """

    def add(cls: type[ModelT]) -> type[ModelT]:
        MODELS.register(kind)(ModelEntry(config_type, cls.from_config))
        return cls

    return add


_ANY = ConfigOf(MODELS, SequenceModelConfig)
AnyModelConfig = Annotated[SequenceModelConfig, _ANY]
"""Pydantic field type: any registered model's configuration, validated through the registry, JSON round trip."""


def parse_model_config(value: object) -> SequenceModelConfig:
    """A configuration from a configuration, a kind's name, or a dict with a "kind". Raises InputError."""
    return _ANY.read(value)


def default_config(kind: str) -> SequenceModelConfig:
    """The default configuration of a registered kind. Raises InputError for an unknown name."""
    return MODELS[kind].config_type(kind=kind)


def build_model(
    config: SequenceModelConfig, input_dim: int, output_dim: int, *, generator: torch.Generator | None = None
) -> SequenceModel:
    """Build a model on the CPU. The same generator state gives the same weights; None means a fixed seed 0."""
    return MODELS[config.kind].build(config, input_dim, output_dim, generator=generator or default_generator())


def default_generator() -> torch.Generator:
    """The generator used where none is given: a fixed seed, so nothing depends on global state."""
    return torch.Generator().manual_seed(0)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable numbers."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def transforms_active() -> bool:
    """Whether a torch.func transform (vmap, grad, functional jacobians) is running: then no caching, no `.item()`."""
    return peek_interpreter_stack() is not None


class SequenceModel(nn.Module):
    """A causal map from a sequence of vectors to a sequence of vectors, with an explicit state.

    Subclasses set `config`, `input_dim`, `output_dim`, `hidden_size` and implement `_sequence`, and `_step` where one
    step without gradients can be cheaper than a sequence of length one.
    """

    config: SequenceModelConfig
    input_dim: int
    output_dim: int
    hidden_size: int

    def __init__(self, config: SequenceModelConfig, input_dim: int, output_dim: int) -> None:
        super().__init__()
        for name, value in (("input_dim", input_dim), ("output_dim", output_dim)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise bad_value(name, value, "an integer of 1 or more")
        self.config, self.input_dim, self.output_dim = config, input_dim, output_dim

    @classmethod
    def from_config(
        cls: type[SelfT], config: Any, input_dim: int, output_dim: int, *, generator: torch.Generator
    ) -> SelfT:
        """Build from a configuration, as `build_model` does."""
        return cls(config, input_dim, output_dim, generator=generator)  # pyright: ignore[reportCallIssue]

    def init_hidden(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "B S"]:
        """The state before the first step: zeros (B, S), on the model's device and in its dtype unless told."""
        if batch_size < 1:
            raise bad_value("batch_size", batch_size, "1 or more")
        like = next(self.parameters())
        return torch.zeros(batch_size, self.hidden_size, device=device or like.device, dtype=dtype or like.dtype)

    def forward(self, x: Tensor, hidden: Tensor | None = None, resets: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x (B, D) to (B, output_dim), or x (B, T, D) to (B, T, output_dim), and the state (B, S) to the next.

        hidden: (B, S), the state before the first step; None means zeros.
        resets: (B,) for a step, (B, T) for a sequence, bool or 0/1: resets[b, t] = 1 clears the state before step t.
        Raises InputError for a wrong shape, dtype or device, and for x that is not finite.
        """
        self._check(x, hidden, resets)
        if x.ndim == 2:
            if hidden is None:
                hidden = x.new_zeros(x.shape[0], self.hidden_size)
            elif resets is not None:
                hidden = hidden * (1 - resets.to(x.dtype)).unsqueeze(1)
            if not torch.is_grad_enabled() and not transforms_active():
                return self._step(x, hidden)
            output, hidden = self._sequence(x.unsqueeze(1), hidden, None)
            return output.squeeze(1), hidden
        if hidden is None:
            hidden = x.new_zeros(x.shape[0], self.hidden_size)
        keep = None if resets is None else 1 - resets.to(x.dtype)
        return self._sequence(x, hidden, keep)

    def _sequence(self, x: Tensor, hidden: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, T, D), hidden (B, S), keep (B, T): 1 - resets, in x's dtype, or None for ones."""
        raise NotImplementedError

    def _step(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, D), hidden (B, S), no gradients: must equal `_sequence` of length one."""
        output, hidden = self._sequence(x.unsqueeze(1), hidden, None)
        return output.squeeze(1), hidden

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by the care they need: "dynamics" are state transitions (lower rate, no decay), "other" the rest.

        A module marks its own with an attribute `dynamics: tuple[str, ...]` of parameter names.
        """
        dynamics = {id(getattr(module, name)) for module in self.modules() for name in getattr(module, "dynamics", ())}
        groups: dict[str, list[nn.Parameter]] = {"dynamics": [], "other": []}
        for parameter in self.parameters():
            groups["dynamics" if id(parameter) in dynamics else "other"].append(parameter)
        return groups

    def save(self, path: str | Path) -> str:
        """Write weights (.safetensors) and configuration (.json) at `path`; returns the weights' SHA-256."""
        meta = {
            "model": self.config.model_dump(mode="json"),
            "input_dim": self.input_dim,
            "output_dim": self.output_dim,
        }
        return save_checkpoint(path, self.state_dict(), meta)

    @classmethod
    def load(cls: type[SelfT], path: str | Path, device: torch.device | str = "cpu") -> SelfT:
        """Read what `save` wrote. Raises InputError where it is missing, damaged, or another kind of model."""
        tensors, meta = load_checkpoint(path)
        try:
            config = parse_model_config(meta["model"])
            model = build_model(config, int(meta["input_dim"]), int(meta["output_dim"]))
        except (KeyError, InputError) as error:
            raise InputError(f"path: {path} does not hold a sequence model: {error}") from error
        if not isinstance(model, cls):
            raise bad_value("path", str(path), f"a saved {cls.__name__}; it holds a {type(model).__name__}")
        first = next(iter(tensors.values()))
        model.to(dtype=first.dtype).load_state_dict(tensors)
        return model.to(check_device(device))

    def _check(self, x: Tensor, hidden: Tensor | None, resets: Tensor | None) -> None:
        """Refuse what would broadcast, mix or poison. Costs a few microseconds; one reduction for the NaN check."""
        if x.ndim not in (2, 3) or x.shape[-1] != self.input_dim or x.shape[0] < 1:
            raise bad_value("x", tuple(x.shape), f"shape (B, {self.input_dim}) or (B, T, {self.input_dim})")
        if x.ndim == 3 and x.shape[1] < 1:
            raise bad_value("x", tuple(x.shape), "at least one time step")
        like = next(self.parameters())
        if like.dtype not in DTYPES:  # half precision has no complex numbers, and a recurrence loses what it holds
            raise bad_value("x", f"a model in {like.dtype}", " or ".join(str(dtype) for dtype in DTYPES))
        if x.dtype != like.dtype or x.device != like.device:
            raise bad_value("x", f"{x.dtype} on {x.device}", f"the model's {like.dtype} on {like.device}")
        if hidden is not None:
            if hidden.shape != (x.shape[0], self.hidden_size):
                raise bad_value("hidden", tuple(hidden.shape), f"shape {(x.shape[0], self.hidden_size)}")
            if hidden.dtype != x.dtype or hidden.device != x.device:
                raise bad_value("hidden", f"{hidden.dtype} on {hidden.device}", f"{x.dtype} on {x.device}, as x")
        if resets is not None:
            if resets.shape != x.shape[:-1]:
                raise bad_value("resets", tuple(resets.shape), f"shape {tuple(x.shape[:-1])}")
            if resets.device != x.device:
                raise bad_value("resets", str(resets.device), f"{x.device}, as x")
        # A sum is one cheap pass that any NaN or infinity spoils; a finite x whose sum overflows is looked at twice.
        if not transforms_active() and not math.isfinite(x.detach().sum().item()) and not bool(x.isfinite().all()):
            raise bad_value("x", "values that are NaN or infinite", "finite numbers")


class StepCache:
    """Keeps what acting steps share while a module's parameters stay as they are.

    A parameter is unchanged when it is the same tensor with the same version counter and memory. Writing through
    `.data` or a NumPy view escapes the counter; a forward pass with gradients therefore also clears the cache.
    """

    def __init__(self) -> None:
        self.value: Any = None

    def get(self, module: nn.Module, compute: Callable[[], Any]) -> Any:
        """What `compute` gave for the module's present parameters."""
        if self.value is None:
            # The dicts that hold the parameters, not the parameters: functional_call swaps what is in them.
            self.dicts = [part._parameters for part in module.modules() if part._parameters]
            self.holders: list[nn.Parameter | None] = []
            self.key: tuple[Any, ...] = ()
        holders = [parameter for held in self.dicts for parameter in held.values()]
        key = tuple([(id(p), p._version, p.data_ptr()) for p in holders if p is not None])
        if key != self.key:
            with torch.no_grad():
                self.value = compute()
            self.key, self.holders = key, holders  # held, so that an id cannot be given to another tensor
        return self.value

    def clear(self) -> None:
        """Forget."""
        self.value = None

    def __deepcopy__(self, memo: dict) -> StepCache:
        return StepCache()

    def __reduce__(self) -> tuple[type, tuple]:
        return StepCache, ()


def check_device(device: torch.device | str) -> torch.device:
    """The device, or InputError where this machine does not have it."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        present = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        raise bad_value("device", str(device), ", ".join(present)) from error


def size_to_budget(
    config: SequenceModelConfig, input_dim: int, output_dim: int, num_parameters: int
) -> SequenceModelConfig:
    """The same model with the width whose parameter count comes nearest to `num_parameters`.

    Fields that must follow the width (such as S4D's state_dim) follow through the configuration's `with_width`.
    Raises InputError where even the narrowest model is larger than 1.25 times the budget.
    """

    def size(width: int) -> int:
        return count_parameters(build_model(with_width(config, width), input_dim, output_dim))

    step = width_multiple(config)
    low, high = step, step
    while size(high) < num_parameters:
        low, high = high, high * 2
    while high - low > step:
        middle = (low + high) // 2 // step * step
        low, high = (middle, high) if size(middle) <= num_parameters else (low, middle)
    best = min((low, high), key=lambda width: abs(size(width) - num_parameters))
    if size(best) > 1.25 * num_parameters:
        raise bad_value("num_parameters", num_parameters, f"{size(best)} or more for {config.kind!r}")
    return with_width(config, best)


def width_multiple(config: SequenceModelConfig) -> int:
    """The width must be a multiple of this (heads of an attention layer); 1 where any width goes."""
    return int(getattr(config, "width_multiple", 1))


def with_width(config: SequenceModelConfig, width: int) -> SequenceModelConfig:
    """`config` with another hidden_dim; a state_dim keeps its ratio to the width, as far as its rules allow.

    Raises InputError for a width that the configuration cannot have.
    """
    changes: dict[str, Any] = {"hidden_dim": width}
    ratio_rule = getattr(config, "state_dim_for_width", None)
    if ratio_rule is not None:
        changes["state_dim"] = ratio_rule(width)
    return parse_model_config({**config.model_dump(), **changes})


def linear(
    in_features: int, out_features: int, generator: torch.Generator, *, bias: bool = True, gain: float = 1.0
) -> nn.Linear:
    """A linear map with weights N(0, gain^2 / in_features) drawn from `generator` and bias zero (LeCun, 1998)."""
    layer = nn.Linear(in_features, out_features, bias=bias, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.normal_(0.0, gain / math.sqrt(in_features), generator=generator)
        if bias:
            layer.bias.zero_()
    return layer
