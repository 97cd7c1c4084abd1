"""Living whole trials: a memory policy acts in N worlds for T steps, and everything is kept as one frozen value.

A trial is a stretch of T control steps on one task in which memory is never cleared; worlds begin a new episode inside it
by themselves. Letters: N worlds, T steps, D observation size, A action size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from core.fused.policy import CompiledActing, covered
from core.policy import ActionSpec, PolicyInput, PolicyOutput, RecurrentPolicy, log_prob, mode, sample
from env_runner.task_family import TaskFamily
from meta_rl.adapting import PolicyAdapter
from meta_rl.normalize import Normalizer

SUCCESS = "success"
"""What worlds that have a goal say of a step, 1 where it is reached; an episode is a success where a step is (Yu et al. 2019, arXiv
1910.10897, section 4.3)."""


@runtime_checkable
class Worlds(Protocol):
    """What a rollout needs of `env_runner`'s TaskVectorEnv: SAME_STEP autoreset, `final_obs` in infos."""

    num_envs: int

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]: ...

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]: ...


@dataclass(frozen=True)
class Trajectory:
    """N trials of T steps, batch first.

    inputs: what the policy read, normalised, (N, T+1, ...); the last column is what it would read after the last step.
    actions: (N, T, A) float32 before clipping, or (N, T) int64. log_prob: (N, T). values: (N, T+1), in scaled units.
    obs: (N, T, D) as the worlds gave it. rewards: (N, T) as the worlds gave it.
    terminated, truncated: (N, T) bool, as in Gymnasium. infos: per-step quantities (N, T) of the worlds.
    privileged: (N, P) task parameters when the critic was given them, else None. tasks: (N, T, P), those in force in each step.
    """

    inputs: PolicyInput
    actions: Tensor
    log_prob: Tensor
    values: Tensor
    obs: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    tasks: np.ndarray
    infos: Mapping[str, np.ndarray] = field(default_factory=dict)
    privileged: Tensor | None = None


class ActionMap:
    """From what the policy emits to what the worlds take, and to what the policy reads back one step later.

    Continuous: clipped to [-1, 1], then stretched to the bounds of the action space. Discrete: the index; one-hot back.
    """

    def __init__(self, spec: ActionSpec, action_space: object) -> None:
        self.spec = spec
        low, high = getattr(action_space, "low", None), getattr(action_space, "high", None)
        self._stretch = None
        if spec.kind == "categorical" or low is None or high is None:
            return
        low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        finite = bool(np.isfinite(low).all() and np.isfinite(high).all())
        if finite and not (np.allclose(low, -1.0) and np.allclose(high, 1.0)):
            self._stretch = ((high - low) / 2.0, (high + low) / 2.0)

    def __call__(self, action: Tensor) -> tuple[np.ndarray, Tensor]:
        """actions (N, A) or (N,) to (what the worlds take, what the policy reads: (N, A) float32)."""
        if self.spec.kind == "categorical":
            return action.numpy(), torch.nn.functional.one_hot(action, self.spec.size).to(torch.float32)
        clipped = action.clamp(-1.0, 1.0)
        taken = clipped.numpy()
        if self._stretch is not None:
            taken = taken * self._stretch[0] + self._stretch[1]
        return taken, clipped


@torch.inference_mode()
def rollout(
    policy: RecurrentPolicy,
    normalizer: Normalizer,
    worlds: Worlds,
    tasks: np.ndarray,
    *,
    num_steps: int,
    seed: int,
    generator: torch.Generator | None = None,
    deterministic: bool = False,
    privileged: bool = False,
    adapting: PolicyAdapter | None = None,
) -> Trajectory:
    """Live one trial of `num_steps` on each of the tasks (N, P), memory kept from the first step to the last.

    seed sets the worlds' start states, generator the actions' noise (none is drawn where deterministic).
    privileged: give the tasks to the critic. adapting: copies of the policy that learn as they live, and act in its place.
    """
    spec = policy.action
    to_world = ActionMap(spec, getattr(worlds, "single_action_space", None))
    n = worlds.num_envs
    obs, _ = worlds.reset(seed=seed, options={"tasks": tasks})
    hints = torch.from_numpy(np.asarray(tasks, dtype=np.float32)) if privileged else None
    acting = CompiledActing(policy, n) if hints is None and covered(policy) else None
    hidden = policy.init_hidden(n)

    def forward(inp: PolicyInput) -> PolicyOutput:
        if acting is None:
            return policy(inp, hidden, privileged=hints)
        parts = (inp.obs, inp.prev_action, inp.prev_reward.unsqueeze(1), inp.prev_done.unsqueeze(1))
        mean, value = acting(torch.cat(parts, 1).numpy())
        return PolicyOutput(torch.from_numpy(mean), policy.log_std, torch.from_numpy(value), hidden)

    seen = torch.from_numpy(normalizer.observe(obs))
    prev_action, prev_reward, prev_done = torch.zeros(n, spec.size), torch.zeros(n), torch.zeros(n)

    raw_obs = np.empty((n, num_steps, obs.shape[1]))
    rewards = np.empty((n, num_steps))
    terminated = np.empty((n, num_steps), dtype=bool)
    truncated = np.empty((n, num_steps), dtype=bool)
    infos: dict[str, np.ndarray] = {}
    in_force = np.broadcast_to(np.asarray(tasks)[:, None], (n, num_steps, np.shape(tasks)[1]))
    read: list[PolicyInput] = []
    heads, values, actions = [], [], []
    log_std = None
    last_obs = obs
    for t in range(num_steps):
        inp = PolicyInput(obs=seen, prev_action=prev_action, prev_reward=prev_reward, prev_done=prev_done)
        out = forward(inp)
        if adapting is not None:
            out = adapting.act(inp, out)
        action = mode(out) if deterministic else sample(out, generator)
        hidden, log_std = out.next_hidden, out.log_std
        read.append(inp)
        heads.append(out.mean_or_logits)
        values.append(out.value)
        actions.append(action)
        raw_obs[:, t] = obs
        taken, prev_action = to_world(action)
        obs, reward, ended, cut, info = worlds.step(taken)
        rewards[:, t], terminated[:, t], truncated[:, t] = reward, ended, cut
        if adapting is not None:
            adapting.live(action, torch.from_numpy(reward), torch.from_numpy(ended))
        done = ended | cut
        last_obs = np.where(done[:, None], info["final_obs"], obs) if done.any() else obs
        if "tasks" in info:  # of worlds whose target switches
            in_force = in_force if in_force.flags.writeable else in_force.copy()
            in_force[:, t] = info["tasks"]
        for name, value in info.items():
            measured = isinstance(value, np.ndarray) and value.dtype == np.float64 and value.shape == (n,)
            if measured and not name.startswith(("_", "final_")):
                infos.setdefault(name, np.zeros((n, num_steps)))[:, t] = value
        seen = torch.from_numpy(normalizer.observe(obs))
        prev_reward = torch.from_numpy(normalizer.read_reward(reward))
        prev_done = torch.from_numpy(done.astype(np.float32))

    # The state after the last step, read as if the episode went on: a trial's end is a time limit, not an ending.
    after = PolicyInput(
        obs=torch.from_numpy(normalizer.observe(last_obs)),
        prev_action=prev_action,
        prev_reward=prev_reward,
        prev_done=torch.zeros(n),
    )
    read.append(after)
    values.append(forward(after).value)
    stacked = torch.stack(actions, 1)
    out = PolicyOutput(torch.stack(heads, 1), log_std, torch.stack(values[:-1], 1), hidden)
    return Trajectory(
        inputs=PolicyInput(
            obs=torch.stack([i.obs for i in read], 1),
            prev_action=torch.stack([i.prev_action for i in read], 1),
            prev_reward=torch.stack([i.prev_reward for i in read], 1),
            prev_done=torch.stack([i.prev_done for i in read], 1),
        ),
        actions=stacked,
        log_prob=log_prob(out, stacked),
        values=torch.stack(values, 1),
        obs=raw_obs,
        rewards=rewards,
        terminated=terminated,
        truncated=truncated,
        tasks=in_force,
        infos=infos,
        privileged=hints,
    )


def episode_bounds(trajectory: Trajectory, world: int) -> list[tuple[int, int]]:
    """First and one-past-last step of every episode that ended in one world's trial."""
    ends: list[int] = (np.flatnonzero(trajectory.terminated[world] | trajectory.truncated[world]) + 1).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True)) if ends else []


def episode_returns(trajectory: Trajectory) -> list[list[float]]:
    """Undiscounted returns of the episodes that ended, a list for each world in the order lived."""
    return [
        [float(trajectory.rewards[world, start:end].sum()) for start, end in episode_bounds(trajectory, world)]
        for world in range(len(trajectory.rewards))
    ]


def episode_successes(trajectory: Trajectory) -> list[float]:
    """1 for each episode that ended, of whichever world, in which the goal was reached at any step, else 0; none where no goal is told
    of. Yu et al. 2019 (arXiv 1910.10897), section 4.3."""
    reached = trajectory.infos.get(SUCCESS)
    if reached is None:
        return []
    worlds = range(len(reached))
    return [float(reached[w, start:end].max()) for w in worlds for start, end in episode_bounds(trajectory, w)]


def family_action(family: TaskFamily) -> ActionSpec:
    """The family's action space as the policy's specification."""
    kind, size = family.action
    return ActionSpec(kind=kind, size=size)
