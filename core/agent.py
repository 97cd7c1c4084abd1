"""An agent: something that acts on observations, remembers what came of it, adapts to a task, and takes new parameters.

`PolicyAgent` is the agent of the recurrent policies of this project: it adapts in its memory while it acts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor

from core.errors import InputError, bad_value
from core.policy import PolicyInput, RecurrentPolicy, mode, sample


class AdaptReport(TypedDict):
    """What adapting did. status: adapted (parameters changed), in_context (memory only), rolled_back (it got worse)."""

    status: Literal["adapted", "in_context", "rolled_back"]
    loss: float | None
    steps: int


class Agent(ABC):
    """The contract between an agent and whoever runs it. Arrays are (N, ...): N worlds at once."""

    name: str
    batch_size: int = 0
    """N of the present trial; 0 before the first `start`."""

    @abstractmethod
    def start(self, batch_size: int) -> None:
        """Begin a trial in N worlds, on tasks that the agent does not know: forget what the last one taught."""

    @abstractmethod
    def act(self, obs: np.ndarray) -> np.ndarray:
        """Actions (N, A) or (N,) for observations (N, D)."""

    @abstractmethod
    def observe(self, reward: np.ndarray, done: np.ndarray) -> None:
        """What came of the last actions: reward (N,), done (N,)."""

    @abstractmethod
    def adapt(self, *data: Any) -> AdaptReport:
        """Adapt to the present task, from data or from what was observed."""

    @abstractmethod
    def update(self, parameters: Mapping[str, Tensor]) -> None:
        """Take over parameters by name. Raises InputError for unknown names and wrong shapes, changing nothing."""


class PolicyAgent(Agent):
    """A recurrent policy that acts, with its memory, its last action and its last reward.

    deterministic: take the most probable action; otherwise draw from `generator`.
    reset_on_done: clear the memory at an episode's end (one episode is one trial); by default it is kept over the
    episodes of a trial, as RL2 needs (Duan et al. 2016).
    reward_scale: what rewards are multiplied with before the policy sees them, as in its training.
    """

    def __init__(
        self,
        name: str,
        policy: RecurrentPolicy,
        *,
        deterministic: bool = True,
        reset_on_done: bool = False,
        reward_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        if policy.privileged_dim:
            raise bad_value("policy", f"privileged_dim={policy.privileged_dim}", "a policy without a privileged critic")
        if not deterministic and generator is None:
            raise bad_value("generator", None, "a torch.Generator where deterministic is False")
        self.name, self.policy = name, policy
        self.deterministic, self.reset_on_done, self.reward_scale = deterministic, reset_on_done, reward_scale
        self.generator = generator

    def start(self, batch_size: int) -> None:
        """Zero memory, no last action, no last reward."""
        self.hidden = self.policy.init_hidden(batch_size)
        self.batch_size = batch_size
        self.last_action = self.hidden.new_zeros(batch_size, self.policy.action.size)
        self.last_reward, self.last_done = self.hidden.new_zeros(batch_size), self.hidden.new_zeros(batch_size)

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Actions for observations (N, D); float (N, A), or int (N,) for a categorical policy."""
        if not self.batch_size:
            raise InputError(f"agent {self.name!r}: call start(batch_size) before act")
        if obs.shape != (self.batch_size, self.policy.obs_dim):
            raise bad_value("obs", obs.shape, f"shape {(self.batch_size, self.policy.obs_dim)}")
        with torch.no_grad():
            seen = torch.as_tensor(obs, dtype=self.hidden.dtype, device=self.hidden.device)
            inputs = PolicyInput(seen, self.last_action, self.last_reward, self.last_done)
            resets = self.last_done if self.reset_on_done else None
            output = self.policy(inputs, self.hidden, resets)
            action = mode(output) if self.deterministic else sample(output, self.generator)
            self.hidden = output.next_hidden
            if self.policy.action.kind == "categorical":
                self.last_action = torch.nn.functional.one_hot(action, self.policy.action.size).to(seen.dtype)
            else:
                self.last_action = action
        return action.cpu().numpy()

    def observe(self, reward: np.ndarray, done: np.ndarray) -> None:
        """Remember reward and done for the next act."""
        for label, value in (("reward", reward), ("done", done)):
            if np.shape(value) != (self.batch_size,):
                raise bad_value(label, np.shape(value), f"shape {(self.batch_size,)}")
        like = self.hidden
        self.last_reward = torch.as_tensor(reward, dtype=like.dtype, device=like.device) * self.reward_scale
        self.last_done = torch.as_tensor(done, dtype=like.dtype, device=like.device)

    def adapt(self, *data: Any) -> AdaptReport:
        """Nothing to do: this agent adapts in its memory at every step. Data are refused rather than ignored."""
        if data:
            raise bad_value("data", f"{len(data)} values", "none: this agent adapts in its memory while it acts")
        return {"status": "in_context", "loss": None, "steps": 0}

    def update(self, parameters: Mapping[str, Tensor]) -> None:
        """Copy parameters into the policy, all of them or some; the memory stays."""
        own = dict(self.policy.named_parameters())
        for name, value in parameters.items():
            if name not in own:
                raise bad_value("parameters", name, f"names of the policy's {len(own)} parameters")
            if value.shape != own[name].shape:
                raise bad_value(f"parameters[{name!r}]", tuple(value.shape), f"shape {tuple(own[name].shape)}")
        with torch.no_grad():
            for name, value in parameters.items():
                own[name].copy_(value)
