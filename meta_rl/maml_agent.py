"""An agent that adapts to a task by MAML's inner loop, and forgets it at the next trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptation.adaptation_agent import check_parameters, chosen_actions
from core.agent import AdaptReport, Agent
from core.errors import InputError, bad_value
from core.policy import ActionSpec
from meta_rl.meta_maml import LossFn, MetaMAML, Task


class MetaMAMLAgent(Agent):
    """Acts with the fast weights of a `MetaMAML`; `adapt` makes them, `start` drops them, `meta_update` learns theta.

    action: how the output becomes an action: as it is (gaussian: the mean; where none is given), or the index of the largest
    (categorical). num_steps: inner steps of one `adapt`. loss_fn: of the inner and the outer loop; mean squared error by default.
    """

    def __init__(
        self,
        maml: MetaMAML,
        action: ActionSpec | None = None,
        *,
        name: str = "maml",
        num_steps: int = 1,
        loss_fn: LossFn | None = None,
    ) -> None:
        if num_steps < 1:
            raise bad_value("num_steps", num_steps, "1 or more")
        self.name, self.maml, self.action = name, maml, action
        self.num_steps, self.loss_fn = num_steps, loss_fn or torch.nn.functional.mse_loss
        self.hidden: Tensor | None = None
        self.weights: Mapping[str, Tensor] = maml.start()

    def start(self, batch_size: int) -> None:
        """The meta-learned weights, zero memory."""
        if batch_size < 1:
            raise bad_value("batch_size", batch_size, "1 or more")
        model: Any = self.maml.model
        self.batch_size, self.weights = batch_size, self.maml.start()
        self.hidden = model.init_hidden(batch_size) if self.maml.stateful else None

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Actions for observations (N, D): float (N, A), or int (N,)."""
        if not self.batch_size:
            raise InputError(f"agent {self.name!r}: call start(batch_size) before act")
        if obs.ndim != 2 or len(obs) != self.batch_size:
            raise bad_value("obs", obs.shape, f"({self.batch_size}, D)")
        with torch.no_grad():
            x = torch.as_tensor(obs, dtype=torch.float32)
            output, self.hidden = self.maml.functional_forward(x, self.hidden, self.weights)
        return chosen_actions(output, self.action)

    def observe(self, reward: np.ndarray, done: np.ndarray) -> None:
        """Clear the memory of worlds whose episode ended; the reward is not used."""
        if np.shape(reward) != (self.batch_size,) or np.shape(done) != (self.batch_size,):
            raise bad_value("reward, done", (np.shape(reward), np.shape(done)), f"shape ({self.batch_size},) each")
        if self.hidden is not None:
            self.hidden = self.hidden * (1.0 - torch.as_tensor(np.asarray(done), dtype=self.hidden.dtype)).unsqueeze(1)

    def adapt(self, *data: Any) -> AdaptReport:
        """Inner steps from the meta-learned weights on (support_x, support_y) or (support_x, support_y, hidden_state).

        The loss reported is the one on the support set after adapting.
        """
        if len(data) not in (2, 3):
            raise bad_value("data", f"{len(data)} values", "support_x, support_y and optionally hidden_state")
        support_x, support_y = data[0], data[1]
        hidden = data[2] if len(data) == 3 else None
        adapted = self.maml.adapt_task(support_x, support_y, hidden, self.loss_fn, self.num_steps)
        self.weights = {name: value.detach() for name, value in adapted.items()}
        loss = self.maml.loss(self.weights, support_x, support_y, hidden, self.loss_fn)
        return {"status": "adapted", "loss": loss, "steps": self.num_steps}

    def meta_update(self, tasks: Sequence[Task], initial_hidden_state: Tensor | None = None) -> float:
        """One outer step; returns the mean query loss. Fast weights are dropped: they belong to the old start."""
        loss = self.maml.meta_update(tasks, initial_hidden_state, self.loss_fn)
        self.weights = self.maml.start()
        return loss

    def update(self, parameters: Mapping[str, Tensor]) -> None:
        """Copy parameters into the model, all of them or some; fast weights are dropped."""
        own = dict(self.maml.model.named_parameters())
        check_parameters(parameters, own)
        with torch.no_grad():
            for name, value in parameters.items():
                own[name].copy_(value)
        self.weights = self.maml.start()
