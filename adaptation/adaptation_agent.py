"""An agent whose model goes on learning at test time: it acts with a model's output and adapts by gradient steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptation.test_time_adaptation import Adapter
from core.agent import AdaptReport, Agent
from core.errors import InputError, bad_value
from core.policy import ActionSpec


class AdaptationAgent(Agent):
    """Acts with the model of an `Adapter`, `model(obs)` or with memory `model(obs, hidden)`, and adapts it.

    action: how the output becomes an action: as it is (gaussian: the mean; where none is given), or the index of the largest
    (categorical). Memory is cleared where an episode ends; adapted weights are kept until `start`.
    """

    def __init__(self, adapter: Adapter, action: ActionSpec | None = None, *, name: str = "adaptation") -> None:
        self.name, self.action, self.adapter = name, action, adapter
        self.hidden: Tensor | None = None

    def start(self, batch_size: int) -> None:
        """The trained weights again, zero memory."""
        if batch_size < 1:
            raise bad_value("batch_size", batch_size, "1 or more")
        self.adapter.reset()
        self.batch_size = batch_size
        model: Any = self.adapter.model
        self.hidden = model.init_hidden(batch_size) if self.adapter.stateful else None

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Actions for observations (N, D): float (N, A), or int (N,)."""
        if not self.batch_size:
            raise InputError(f"agent {self.name!r}: call start(batch_size) before act")
        if obs.ndim != 2 or len(obs) != self.batch_size:
            raise bad_value("obs", obs.shape, f"({self.batch_size}, D)")
        with torch.no_grad():
            x = torch.as_tensor(obs, dtype=torch.float32, device=self.adapter.device)
            if self.adapter.stateful:
                output, self.hidden = self.adapter.model(x, self.hidden)
            else:
                output = self.adapter.model(x)
        return chosen_actions(output, self.action)

    def observe(self, reward: np.ndarray, done: np.ndarray) -> None:
        """Clear the memory of worlds whose episode ended; the reward is not used."""
        if np.shape(reward) != (self.batch_size,) or np.shape(done) != (self.batch_size,):
            raise bad_value("reward, done", (np.shape(reward), np.shape(done)), f"shape ({self.batch_size},) each")
        if self.hidden is not None:
            keep = 1.0 - torch.as_tensor(np.asarray(done), dtype=self.hidden.dtype, device=self.hidden.device)
            self.hidden = self.hidden * keep.unsqueeze(1)

    def adapt(self, *data: Any) -> AdaptReport:
        """Adapt to (x, y) or (x, y, hidden_state), as `Adapter.update_step` takes them."""
        if len(data) not in (2, 3):
            raise bad_value("data", f"{len(data)} values", "x, y and optionally hidden_state")
        before = self.adapter.rollbacks
        loss, steps = self.adapter.update_step(*data)
        undone = self.adapter.rollbacks > before or steps == 0
        return {"status": "rolled_back" if undone else "adapted", "loss": loss, "steps": steps}

    def update(self, parameters: Mapping[str, Tensor]) -> None:
        """Take over parameters as the new trained weights, all of them or some."""
        own = dict(self.adapter.model.named_parameters())
        check_parameters(parameters, own)
        self.adapter.set_trained(parameters)


def chosen_actions(output: Tensor, action: ActionSpec | None) -> np.ndarray:
    """Actions (N, A), or (N,) of a categorical one, for a model's output (N, A); InputError where its size is not the action's."""
    if action is not None and output.shape[-1] != action.size:
        raise bad_value("model", f"{output.shape[-1]} outputs", f"{action.size}, the size of the action space")
    categorical = action is not None and action.kind == "categorical"
    return (output.argmax(-1) if categorical else output).cpu().numpy()


def check_parameters(parameters: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise InputError for a name that is not in `own` or a shape that differs."""
    for name, value in parameters.items():
        if name not in own:
            raise bad_value(
                "parameters", name, f"names of the model's {len(own)} parameters, such as {next(iter(own))}"
            )
        if value.shape != own[name].shape:
            raise bad_value(f"parameters[{name!r}]", tuple(value.shape), f"shape {tuple(own[name].shape)}")
