"""Runs several agents on one environment: step all, send all of them new parameters, play whole episodes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from core.agent import Agent
from core.errors import InputError, bad_value, unknown_name


@runtime_checkable
class EnvironmentLike(Protocol):
    """What the coordinator needs of an environment: N worlds if batch_size > 1, or one without the leading axis."""

    batch_size: int

    def reset(self) -> np.ndarray: ...

    def step(self, action: Any, /) -> tuple[np.ndarray, Any, Any, Any]: ...


@dataclass(frozen=True)
class EpisodeResult:
    """returns (E,): the sum of rewards of each finished episode, in the order world by world; lengths (E,): its steps."""

    returns: np.ndarray
    lengths: np.ndarray


class AgentCoordinator:
    """A named set of agents that are run together."""

    def __init__(self) -> None:
        self.agents: dict[str, Agent] = {}

    def register_agent(self, agent: Agent, name: str | None = None) -> None:
        """Add an agent, under a name of its own where none is given. Raises InputError where the name is taken."""
        if not isinstance(agent, Agent):
            raise bad_value("agent", type(agent).__name__, "a core.agent.Agent")
        name = agent.name if name is None else name
        if name in self.agents:
            raise bad_value("name of an agent", name, f"a name that is not taken; taken: {', '.join(self.agents)}")
        self.agents[name] = agent

    def run_step_all(self, observations: np.ndarray | Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every agent's action: on the same observations, or on its own where a mapping by name is given.

        Observations (N, D) of N worlds give actions (N, A) or (N,); (D,) of one world gives the action without the leading
        axis, as `Environment` takes it. An agent that was not started yet begins its trial in these worlds.
        """
        if not self.agents:
            raise InputError("coordinator: no agent is registered; call register_agent first")
        if isinstance(observations, Mapping):
            missing = sorted(set(self.agents) - set(observations))
            if missing:
                raise bad_value(
                    "observations", sorted(observations), f"one for each agent; missing: {', '.join(missing)}"
                )
            return {name: _act(agent, observations[name]) for name, agent in self.agents.items()}
        return {name: _act(agent, observations) for name, agent in self.agents.items()}

    def broadcast_update(self, parameters: Mapping[str, Tensor], names: list[str] | None = None) -> None:
        """Send parameters to all agents, or to the named ones."""
        for name in self.agents if names is None else names:
            if name not in self.agents:
                raise unknown_name("agent", name, self.agents)
        for name in self.agents if names is None else names:
            self.agents[name].update(parameters)

    def run_episodes(self, environment: EnvironmentLike, episodes: int) -> dict[str, EpisodeResult]:
        """Each agent in turn plays `episodes` episodes, shared evenly by the worlds; one trial an agent.

        Every world finishes the same number of episodes, ceil(episodes / N), so that short episodes are not
        overrepresented; a world that is done early goes on unrecorded until all are.
        """
        if episodes < 1:
            raise bad_value("episodes", episodes, "1 or more")
        if not self.agents:
            raise InputError("coordinator: no agent is registered; call register_agent first")
        return {name: _play(agent, environment, episodes) for name, agent in self.agents.items()}


def _act(agent: Agent, observations: np.ndarray) -> np.ndarray:
    seen = np.asarray(observations)
    single = seen.ndim == 1
    if not agent.batch_size:
        agent.start(1 if single else len(seen))
    actions = agent.act(seen[None] if single else seen)
    return actions[0] if single else actions


def _play(agent: Agent, environment: EnvironmentLike, episodes: int) -> EpisodeResult:
    worlds, single = environment.batch_size, environment.batch_size == 1
    share = math.ceil(episodes / worlds)
    returns, lengths = np.zeros((worlds, share)), np.zeros((worlds, share), np.int64)
    finished = np.zeros(worlds, np.int64)
    agent.start(worlds)
    obs = np.asarray(environment.reset())
    while (finished < share).any():
        actions = agent.act(obs[None] if single else obs)
        obs, reward, done, _ = environment.step(actions[0] if single else actions)
        reward, done = np.atleast_1d(np.asarray(reward, np.float64)), np.atleast_1d(np.asarray(done, bool))
        agent.observe(reward, done)
        counted = np.flatnonzero(finished < share)
        returns[counted, finished[counted]] += reward[counted]
        lengths[counted, finished[counted]] += 1
        finished += done
        if single and done[0]:
            obs = environment.reset()  # one world shows its last observation at done; many start again by themselves
        obs = np.asarray(obs)
    return EpisodeResult(returns.reshape(-1)[:episodes], lengths.reshape(-1)[:episodes])
