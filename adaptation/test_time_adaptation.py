"""Test-time adaptation: a trained model goes on learning from what it meets, and can always go back.

An `Adapter` holds a model, the part of it that may move, and the trained weights. Each `update_step` makes a few gradient
steps on the newest data; where a guard is on, steps that make the loss on the recent window worse are undone.
Sources: test-time training, Sun et al. 2020 (arXiv 1909.13231); self-supervised use in control (predict what follows),
Hansen et al. 2021, "PAD" (arXiv 2007.04309); moving only norms and gains, Wang et al. 2021, "TENT" (arXiv 2006.10726);
low-rank moves W + A B^T, Hu et al. 2021 (arXiv 2106.09685), equation 3. The guard is ours.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from core.config import FrozenConfig
from core.errors import bad_value

LossFn = Callable[[Tensor, Tensor], Tensor]
NORM_WORDS = ("norm", "gain", "scale")  # parts of the names under which normalisations and gains go


class AdaptationConfig(FrozenConfig):
    """What moves, how fast, and when it is undone."""

    learning_rate: float = Field(default=0.01, gt=0)
    """Step size."""
    num_steps: int = Field(default=1, ge=1, le=1000)
    """Gradient steps an `update_step`."""
    every: int = Field(default=1, ge=1)
    """Control steps from one `update_step` to the next, where something is lived step by step (`OnlineDynamics`)."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Plain gradient descent, or Adam."""
    parameters: Literal["all", "head", "norm", "low-rank"] = "all"
    """What moves: all weights; the output head; one-dimensional gains and norms; a low-rank part of every matrix."""
    head: str | None = None
    """For "head": prefix of the parameters. None: the module of the last parameter."""
    rank: int = Field(default=2, ge=1)
    """For "low-rank": rank of the change of every matrix."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Norm above which a gradient is scaled down. None: never."""
    guard: bool = False
    """Undo an `update_step` that made the loss on the recent window worse."""
    guard_window: int = Field(default=8, ge=1)
    """How many recent `update_step` inputs the guard looks at."""
    guard_tolerance: float = Field(default=0.0, ge=0)
    """Share by which the window's loss may grow before the guard acts."""


def check_fit(run: Callable[[], Tensor], x: Tensor, y: Tensor, *, compare: bool = True) -> None:
    """Raise InputError where the model refuses x, or gives another shape than y's (which a loss would silently broadcast).

    run: the model's output for x. compare: whether the output's shape must be y's.
    """
    try:
        output = run()
    except (RuntimeError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise bad_value("x", tuple(x.shape), f"what the model takes; it says: {reason}") from error
    if compare and output.shape != y.shape:
        raise bad_value("y", tuple(y.shape), f"the shape of the model's output, {tuple(output.shape)}")


@contextmanager
def kept_buffers(model: nn.Module) -> Iterator[set[str]]:
    """Puts back at the end what the model's buffers held, such as batch norm's statistics; gives the names of those written to."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    written: set[str] = set()
    try:
        yield written
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if not torch.equal(buffer, before[name]):
                    written.add(name)
                    buffer.copy_(before[name])


class Adapter:
    """Adapts `model` in place, one call of `update_step` at a time.

    model: `model(x)`, or with memory `model(x, hidden) -> (output, next_hidden)`. device: where it is moved to.
    After each call `hidden_state` is the next hidden state under the adapted weights, detached; it is what a call
    without a hidden state goes on from. `rollbacks` counts what the guard undid. Frozen parameters never move; buffers, such as
    batch norm's statistics, follow the data of the steps taken and go back with the weights.
    Raises InputError for a choice of parameters that selects none that may move, for a device that is absent, and for data of a size
    that the model does not take or give.
    """

    def __init__(
        self,
        model: nn.Module,
        config: AdaptationConfig | None = None,
        device: torch.device | str = "cpu",
        loss_fn: LossFn | None = None,
    ) -> None:
        try:
            self.device = torch.empty(0, device=device).device
        except (RuntimeError, AssertionError):
            raise bad_value("device", str(device), "cpu, or a device that this machine has") from None
        self.config = config or AdaptationConfig()
        self.model = model.to(self.device)
        self.loss_fn: LossFn = loss_fn or nn.functional.mse_loss
        self.stateful = hasattr(model, "init_hidden")
        self.hidden_state: Tensor | None = None
        self.rollbacks = 0
        self._compare_shapes = loss_fn is None
        self._fitting: set[tuple] = set()
        self._trained = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
        self._window: deque[tuple[Tensor, Tensor, Tensor | None]] = deque(maxlen=self.config.guard_window)
        self._start()

    def update_step(self, x: Tensor, y: Tensor, hidden_state: Tensor | None = None) -> tuple[float, int]:
        """Make `num_steps` gradient steps towards y from (x, hidden_state); returns (loss, steps taken).

        x (B, D) or (B, T, D), y as the model's output. The loss is the one before the last step taken, so with one step
        it is the loss before adapting. Fewer steps are taken where a loss is not finite, and none where the guard
        undid them; then the weights are as before.
        """
        if x.numel() == 0 or len(x) != len(y):
            raise bad_value("x, y", (tuple(x.shape), tuple(y.shape)), "the same number of rows, one or more")
        x, y = x.detach().to(self.device), y.detach().to(self.device)
        hidden = self._incoming(hidden_state, len(x))
        if (x.shape, y.shape) not in self._fitting:
            with kept_buffers(self.model), torch.no_grad():
                check_fit(lambda: self._forward(x, hidden), x, y, compare=self._compare_shapes)
            self._fitting.add((x.shape, y.shape))
        self._window.append((x, y, hidden))
        before = self._snapshot() if self.config.guard else None
        window_before = self._window_loss() if self.config.guard else 0.0

        loss_value, taken = math.nan, 0
        for _ in range(self.config.num_steps):
            with torch.enable_grad():
                loss = self.loss_fn(self._forward(x, hidden), y)
                gradients = torch.autograd.grad(loss, self._moving, allow_unused=True)
            loss_value = float(loss.detach())
            used = [g for g in gradients if g is not None]
            if not math.isfinite(loss_value) or not all(bool(torch.isfinite(g).all()) for g in used):
                break
            for parameter, gradient in zip(self._moving, gradients, strict=True):
                parameter.grad = gradient
            if self.config.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self._moving, self.config.max_grad_norm)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            self._write_low_rank()
            taken += 1

        if before is not None and taken:
            allowed = window_before * (1.0 + self.config.guard_tolerance)
            if not self._window_loss() <= allowed:
                self._put_back(before)
                self.rollbacks += 1
                taken = 0
        if self.stateful:
            with kept_buffers(self.model), torch.no_grad():
                self.hidden_state = self.model(x, hidden)[1].detach()
        return loss_value, taken

    def reset(self) -> None:
        """Go back to the trained weights; forget the optimiser's state, the window and the hidden state."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self._trained[name])
            for name, buffer in self.model.named_buffers():
                buffer.copy_(self._buffers[name])
        self.hidden_state, self.rollbacks = None, 0
        self._window.clear()
        self._start()

    def set_trained(self, parameters: Mapping[str, Tensor]) -> None:
        """Make these the trained weights, in the model and for every later `reset`; other parameters stay."""
        for name, value in parameters.items():
            self._trained[name] = value.detach().to(self._trained[name]).clone()
        self.reset()

    def _start(self) -> None:
        """Choose what moves, and make its optimiser."""
        self._low_rank: dict[str, tuple[Tensor, Tensor]] = {}
        named = dict(self.model.named_parameters())
        if self.config.parameters == "low-rank":
            generator = torch.Generator().manual_seed(0)  # B's start; A starts at zero, so nothing moves at first
            for name, weight in named.items():
                if weight.ndim == 2 and weight.requires_grad:
                    rows, columns = weight.shape
                    rank = min(self.config.rank, rows, columns)
                    b = torch.randn(columns, rank, generator=generator).to(weight) / math.sqrt(columns)
                    self._low_rank[name] = (weight.new_zeros(rows, rank).requires_grad_(), b.requires_grad_())
            self._moving = [factor for pair in self._low_rank.values() for factor in pair]
        else:
            self._moving = [named[name] for name in self._selected(list(named)) if named[name].requires_grad]
        if not self._moving:
            raise bad_value(
                "parameters", self.config.parameters, "a choice that this model has parameters for that are not frozen"
            )
        kind = torch.optim.Adam if self.config.optimizer == "adam" else torch.optim.SGD
        self._optimizer = kind(self._moving, lr=self.config.learning_rate)

    def _selected(self, names: list[str]) -> list[str]:
        named = dict(self.model.named_parameters())
        if self.config.parameters == "head":
            head = self.config.head if self.config.head is not None else names[-1].rpartition(".")[0]
            return [name for name in names if name == head or name.startswith(f"{head}.")]
        if self.config.parameters == "norm":
            return [n for n in names if named[n].ndim <= 1 and any(word in n.lower() for word in NORM_WORDS)]
        return names

    def _incoming(self, hidden: Tensor | None, batch: int) -> Tensor | None:
        if not self.stateful:
            return None
        if hidden is None:
            hidden = self.hidden_state
        if hidden is None or len(hidden) != batch:
            return self.model.init_hidden(batch)  # pyright: ignore[reportCallIssue]
        return hidden.detach().to(self.device)

    def _forward(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        inputs = (x, hidden) if self.stateful else (x,)
        if self._low_rank:
            weights = {name: self._trained[name] + a @ b.T for name, (a, b) in self._low_rank.items()}
            output = functional_call(self.model, weights, inputs)
        else:
            output = self.model(*inputs)
        return output[0] if self.stateful else output

    def _write_low_rank(self) -> None:
        """Put the sum into the model, so that whoever holds it sees the adapted weights."""
        if self._low_rank:
            named = dict(self.model.named_parameters())
            with torch.no_grad():
                for name, (a, b) in self._low_rank.items():
                    named[name].copy_(self._trained[name] + a @ b.T)

    def _window_loss(self) -> float:
        with kept_buffers(self.model), torch.no_grad():
            losses = [float(self.loss_fn(self._forward(x, hidden), y)) for x, y, hidden in self._window]
        return sum(losses) / len(losses)

    def _snapshot(self) -> tuple[list[Tensor], dict[str, Tensor], dict]:
        state = self._optimizer.state_dict()
        copied = {
            k: {n: v.clone() if isinstance(v, Tensor) else v for n, v in s.items()} for k, s in state["state"].items()
        }
        buffers = {name: b.detach().clone() for name, b in self.model.named_buffers()}
        return [p.detach().clone() for p in self._moving], buffers, {**state, "state": copied}

    def _put_back(self, snapshot: tuple[list[Tensor], dict[str, Tensor], dict]) -> None:
        values, buffers, state = snapshot
        with torch.no_grad():
            for parameter, value in zip(self._moving, values, strict=True):
                parameter.copy_(value)
            for name, buffer in self.model.named_buffers():
                buffer.copy_(buffers[name])
        self._optimizer.load_state_dict(state)
        self._write_low_rank()
