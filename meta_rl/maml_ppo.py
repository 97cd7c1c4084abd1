"""MAML for control: a few policy-gradient steps adapt a policy to a task, PPO teaches it where to start from.

For each task i, with theta_o the weights that collected the data:
    inner   phi_i = theta + alpha grad_theta  mean[ pi_theta(a|s) / pi_theta_o(a|s)  A_pre ]
    outer   max_theta  mean_i  clip-PPO( pi_phi_i(a|s) / pi_phi_i,old(a|s), A_post )  -  eta KL(pi_theta_o, pi_theta)
The inner loss is a likelihood ratio, so that its gradient's gradient is right (ProMP: Rothfuss et al. 2019,
arXiv 1810.06784, equations 9 and 11, algorithm 1; MAML-RL: Finn et al. 2017, section 5.3). "e-maml" adds the credit that
the adapted return gives to the samples that adapted it (Stadie et al. 2018, arXiv 1803.01118, equation 5). alpha may be learned
with theta (Meta-SGD, MAML++: as in `meta_rl/meta_maml.py`).
Advantages: GAE over a linear feature baseline fitted to each task (Duan et al. 2016, arXiv 1604.06778, section 4).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.func import functional_call

from core.config import search
from core.errors import InputError, bad_value
from core.policy import PolicyConfig, PolicyInput, RecurrentPolicy, log_prob
from core.seeding import numpy_stream, torch_stream
from meta_rl.evaluate import check_tasks, summarize
from meta_rl.learner import DivergedError, EvalResult, Learner, LearnerConfig, TrainReport, register_learner
from meta_rl.losses import approx_kl, clip_fraction, clipped_policy_loss, generalized_advantages, standardize
from meta_rl.meta_maml import initial_rates, rate_of
from meta_rl.normalize import Normalizer, scaled_rewards
from meta_rl.ppo import HORIZON
from meta_rl.rollout import Trajectory, episode_returns, episode_successes, family_action, rollout
from meta_rl.training_state import restore_optimizer, restore_policy, training_tensors

Params = dict[str, Tensor]


class MAMLPPOConfig(LearnerConfig):
    """Settings of MAML with a PPO outer loop."""

    size_fields: ClassVar[tuple[str, ...]] = ("tasks_per_update", "episodes_per_task", "inner_steps")
    shot: ClassVar[str] = "gradient step on episodes of its own"
    models: ClassVar[tuple[str, ...]] = ("mlp", "lstm", "s5", "gru", "lru")

    kind: Literal["maml-ppo"] = "maml-ppo"
    tasks_per_update: int = Field(
        default=8, ge=1, le=1000, json_schema_extra=search(choices=(4, 8), role="environment")
    )
    """Tasks in a meta-batch."""
    episodes_per_task: int = Field(
        default=4, ge=1, le=1000, json_schema_extra=search(choices=(2, 4, 8), role="adaptation")
    )
    """Episodes lived on a task before each inner step, and after the last."""
    inner_steps: int = Field(default=1, ge=1, le=20, json_schema_extra=search(choices=(1, 3), role="adaptation"))
    """Policy-gradient steps of the inner loop."""
    inner_lr: float = Field(default=0.1, gt=0, le=1e38, json_schema_extra=search(low=0.01, high=1.0, log=True))
    """Step size of the inner loop; where rates are learned, that of all of them at the start."""
    inner_rates: Literal["fixed", "meta-sgd", "maml++"] = Field(
        default="fixed",
        exclude_if=lambda kind: kind == "fixed",
        json_schema_extra=search(choices=("fixed", "meta-sgd", "maml++"), since=2),
    )
    """Whether the inner rate stays, or the outer loop learns one for every number (Meta-SGD) or for every tensor and step
    (MAML++)."""
    first_order: bool = Field(default=False, json_schema_extra=search(choices=(False, True)))
    """Take the inner gradient as a constant."""
    correction: Literal["none", "e-maml"] = "none"
    """Whether samples are credited for the adaptation that they led to."""
    learning_rate: float = Field(default=1e-3, gt=0, le=1, json_schema_extra=search(low=2e-4, high=5e-3, log=True))
    """Adam's step size in the outer loop."""
    epochs: int = Field(default=5, ge=1, le=100, json_schema_extra=search(choices=(3, 5, 8)))
    """Outer steps on one batch of data."""
    clip: float = Field(default=0.3, gt=0, lt=1)
    """Epsilon of the clipped objective."""
    kl_coef: float = Field(default=5e-4, ge=0)
    """Eta: how strongly theta is held near the weights that collected the data."""
    max_grad_norm: float = Field(default=0.5, gt=0)
    """Norm above which an outer gradient is scaled down."""
    gamma: float = Field(default=0.97, ge=0, le=1, json_schema_extra=search(choices=(0.95, 0.97, 0.99), family=HORIZON))
    """Discount a step."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Lambda of generalized advantage estimation."""

    def iteration_steps(self, horizon: int) -> int:
        """Env steps of a meta-update: every task's episodes before each inner step and after the last."""
        return self.tasks_per_update * self.episodes_per_task * (self.inner_steps + 1) * horizon

    def column_in_words(self, column: int) -> str:
        """Before and after its gradient steps."""
        return "before adapting" if column == 0 else f"after {column} gradient step{'s' * (column > 1)}"

    @property
    def why_no_adaptation(self) -> str:
        """What it is meta-trained for is not done a second time."""
        return "it adapts by gradient steps of its own, which its evaluation shows (after K gradient steps)"

    @property
    def evaluation_episodes(self) -> int:
        """Zero-shot, and after each inner step."""
        return self.inner_steps + 1

    @property
    def scored_by(self) -> str:
        """After the inner steps that it is trained for: before them a policy knows nothing of its task."""
        return f"return_after_{self.inner_steps}"


@dataclass(frozen=True)
class TaskBatch:
    """One task's episodes: inputs (K, H, ...), actions, the log-probability of whoever acted, advantages (K, H)."""

    inputs: PolicyInput
    actions: Tensor
    old_log_prob: Tensor
    advantages: Tensor
    mean_return: float


def linear_baseline(obs: np.ndarray, rewards: np.ndarray, terminated: np.ndarray, gamma: float) -> np.ndarray:
    """Values (K, H + 1) of a ridge regression of discounted returns on [o, o^2, t, t^2, t^3, 1]; the last column is 0's
    bootstrap: the last value repeated, because an episode's end is a time limit unless it terminated.

    obs (K, H, D) standardized. Source: Duan et al. 2016, section 4; the regulariser grows until the solve is finite.
    """
    episodes, horizon, _ = obs.shape
    returns = np.zeros((episodes, horizon + 1))
    for t in reversed(range(horizon)):
        returns[:, t] = rewards[:, t] + gamma * returns[:, t + 1] * ~terminated[:, t]
    time_left = np.broadcast_to(np.arange(horizon)[None, :, None] / 100.0, (episodes, horizon, 1))
    clipped = np.clip(obs, -10, 10)
    powers = [clipped, clipped**2, time_left, time_left**2, time_left**3, np.ones_like(time_left)]
    features = np.concatenate(powers, -1)
    flat = features.reshape(-1, features.shape[-1])
    target = returns[:, :-1].reshape(-1)
    gram = flat.T @ flat
    for ridge in (1e-5, 1e-3, 1e-1, 10.0):
        weights = np.linalg.lstsq(gram + ridge * np.eye(len(gram)), flat.T @ target, rcond=None)[0]
        if np.isfinite(weights).all():
            break
    values = features @ weights
    return np.concatenate([values, values[:, -1:]], 1)


@register_learner("maml-ppo", MAMLPPOConfig)
class MAMLPPO(Learner):
    """Gradient-based meta-RL over any policy and family. Column e of an evaluation is after e inner steps."""

    config: MAMLPPOConfig

    def __init__(
        self, family_id: str, policy: PolicyConfig, config: LearnerConfig, *, env_steps: int, seed: int
    ) -> None:
        super().__init__(family_id, policy, config, env_steps=env_steps, seed=seed)
        self.steps_per_iteration = self.config.iteration_steps(self.family.horizon)
        self.iterations = self.env_steps // self.steps_per_iteration
        if self.iterations < 1:
            raise bad_value("env_steps", env_steps, f"{self.steps_per_iteration} or more")
        action = family_action(self.family)
        self.policy = RecurrentPolicy(
            self.family.obs_dim, action, policy, generator=torch_stream(seed, "policy", "init")
        )
        self._actor = copy.deepcopy(self.policy)  # carries adapted weights while it acts
        self.rates = initial_rates(
            self.config.inner_rates, dict(self.policy.named_parameters()), self.config.inner_lr, self.config.inner_steps
        )
        self.optimizer = torch.optim.Adam(self._learned(), lr=self.config.learning_rate, eps=1e-5)
        self.normalizer = Normalizer(self.family.obs_dim, self.config.gamma)
        self.iteration = 0

    # Training ---------------------------------------------------------------------------------------------------------
    def train(self) -> Generator[TrainReport, None, None]:
        """One report a meta-update."""
        worlds = self.family.make(self.config.episodes_per_task)
        try:
            while self.iteration < self.iterations:
                yield self._iterate(worlds)
        finally:
            worlds.close()

    def _iterate(self, worlds: Any) -> TrainReport:
        start, config, step = time.perf_counter(), self.config, self.iteration
        tasks = self.family.sample_tasks(numpy_stream(self.seed, "tasks", step), config.tasks_per_update)
        before = {name: value.clone() for name, value in self._state()[0].items()}
        theta: Params = dict(self.policy.named_parameters())
        lived: list[Trajectory] = []
        data: list[list[TaskBatch]] = []
        for index, task in enumerate(tasks):
            params, batches = theta, []
            for stage in range(config.inner_steps + 1):
                if stage:
                    adapted = self.inner_loop_adapt(params, batches[-1], stage - 1)
                    params = {n: p.detach().requires_grad_() for n, p in adapted.items()}
                try:
                    trajectory = self._live(params, worlds, task, step, index, stage)
                except InputError as error:  # the worlds refuse actions that are not numbers
                    raise DivergedError(f"the adapted policy's actions are not finite: {error}") from error
                lived.append(trajectory)
                batches.append(self._batch(trajectory))
            data.append(batches)
        try:
            measured = self.meta_update(data)
        except DivergedError:
            self._restore(before, {"iteration": step})
            raise
        for trajectory in lived:
            self.normalizer.update(trajectory.obs, trajectory.rewards, trajectory.terminated)
        self.iteration += 1
        wall = time.perf_counter() - start
        by_stage = [float(np.mean([task[s].mean_return for task in data])) for s in range(config.inner_steps + 1)]
        metrics = {
            "rollout/ep_rew_mean": by_stage[-1],
            "rollout/ep_rew_first": by_stage[0],
            "rollout/ep_rew_last": by_stage[-1],
            **measured,
            "time/fps": self.steps_per_iteration / wall,
        }
        adapted = lived[config.inner_steps :: config.inner_steps + 1]  # every task's episodes after its last inner step
        if reached := [success for trajectory in adapted for success in episode_successes(trajectory)]:
            metrics["rollout/success_rate"] = float(np.mean(reached))
        return TrainReport(self.iteration, self.iteration * self.steps_per_iteration, wall, metrics)

    def inner_loop_adapt(
        self, params: Params, batch: TaskBatch, step: int = 0, *, create_graph: bool = False
    ) -> Params:
        """Inner step number `step`, from 0, on one task's data; differentiable in `params` and in the learned rates, in the former
        through the gradient too where `create_graph`.

        Raises DivergedError when the inner gradient is not finite, before a model is run with what it would give.
        """
        surrogate, _ = self._surrogate(params, batch, None)
        inner_lr = self.config.inner_lr
        names, kind = list(params), self.config.inner_rates
        graph = create_graph and not self.config.first_order
        grads = torch.autograd.grad(surrogate, list(params.values()), create_graph=graph, allow_unused=True)
        if not bool(torch.stack([g.detach().sum() for g in grads if g is not None]).isfinite().all()):
            raise DivergedError("an inner gradient is not finite")
        return {
            name: params[name] if g is None else params[name] - rate_of(kind, self.rates, name, step, inner_lr) * g
            for name, g in zip(names, grads, strict=True)
        }

    def meta_update(self, data: list[list[TaskBatch]]) -> dict[str, float]:
        """Outer steps on the data of all tasks, each a list of one batch before every inner step and one after the last.

        Raises DivergedError when the loss or the gradient is not finite.
        """
        config = self.config
        theta: Params = dict(self.policy.named_parameters())
        sums = np.zeros(4)
        for _ in range(config.epochs):
            self.optimizer.zero_grad(set_to_none=True)
            for batches in data:
                params, kl = theta, torch.zeros(())
                for step, pre in enumerate(batches[:-1]):
                    if params is theta:
                        kl = approx_kl(self._surrogate(theta, pre, None)[1])
                    params = self.inner_loop_adapt(params, pre, step, create_graph=True)
                outer, log_ratio = self._surrogate(params, batches[-1], config.clip)
                loss = outer + config.kl_coef * kl
                if config.correction == "e-maml":
                    # Each sample taken before adapting earns what the adapted policy gained over the start.
                    gain = batches[-1].mean_return - batches[0].mean_return
                    spread = 1.0 + abs(batches[0].mean_return)
                    ratio = self._surrogate(theta, batches[0], None)[1].exp().mean()
                    loss = loss - ratio * gain / spread
                (loss / len(data)).backward()
                share = config.epochs * len(data)
                measured = (outer, kl, approx_kl(log_ratio), clip_fraction(log_ratio, config.clip))
                sums += np.array([float(m.detach()) for m in measured]) / share
            norm = torch.nn.utils.clip_grad_norm_(self._learned(), config.max_grad_norm)
            if not np.isfinite(sums).all() or not bool(torch.isfinite(norm)):
                raise DivergedError("the outer loss or its gradient is not finite")
            self.optimizer.step()
        names = ("train/policy_loss", "train/start_kl", "train/approx_kl", "train/clip_fraction")
        return dict(zip(names, sums.tolist(), strict=True))

    def _surrogate(self, params: Params, batch: TaskBatch, clip: float | None) -> tuple[Tensor, Tensor]:
        """The negated likelihood-ratio objective, clipped where `clip` is given, and the log ratio."""
        out = functional_call(self.policy, params, (batch.inputs,))
        current = log_prob(out, batch.actions)
        if clip is not None:
            return clipped_policy_loss(current, batch.old_log_prob, batch.advantages, clip)
        log_ratio = current - batch.old_log_prob
        return -(log_ratio.exp() * batch.advantages).mean(), log_ratio

    def _live(self, params: Params, worlds: Any, task: np.ndarray, *stream: int) -> Trajectory:
        """Episodes with these weights on one task, one in each world."""
        self._load(params)
        return rollout(
            self._actor,
            self.normalizer,
            worlds,
            np.repeat(task[None], worlds.num_envs, 0),
            num_steps=self.family.horizon,
            seed=int(numpy_stream(self.seed, "worlds", *stream).integers(2**31 - 1)),
            generator=torch_stream(self.seed, "actions", *stream),
        )

    def _load(self, params: Params) -> None:
        with torch.no_grad():
            for name, parameter in self._actor.named_parameters():
                parameter.copy_(params[name])

    def _batch(self, trajectory: Trajectory) -> TaskBatch:
        rewards = scaled_rewards(trajectory.rewards, self.normalizer.return_scale)
        seen = trajectory.inputs.obs[:, :-1].numpy()
        values = linear_baseline(seen, rewards.numpy(), trajectory.terminated, self.config.gamma)
        advantages = generalized_advantages(
            rewards,
            torch.from_numpy(values.astype(np.float32)),
            torch.from_numpy(trajectory.terminated.astype(np.float32)),
            gamma=self.config.gamma,
            lam=self.config.gae_lambda,
        )
        returns = [value for world in episode_returns(trajectory) for value in world]
        return TaskBatch(
            inputs=PolicyInput(*(part[:, :-1].clone() for part in trajectory.inputs)),
            actions=trajectory.actions.clone(),
            old_log_prob=trajectory.log_prob.clone(),
            advantages=standardize(advantages),
            mean_return=float(np.mean(returns)),
        )

    # Evaluation and state ---------------------------------------------------------------------------------------------
    def evaluate(self, tasks: np.ndarray, *, episodes: int, seed: int, deterministic: bool = True) -> EvalResult:
        """Column e: one episode after e inner steps, each on `episodes_per_task` exploring episodes of its own."""
        tasks = check_tasks(tasks, self.family)
        if episodes < 1:
            raise bad_value("episodes", episodes, "1 or more")
        explore, score = self.family.make(self.config.episodes_per_task), self.family.make(1)
        try:
            rows = [
                self._evaluate_task(task, index, explore, score, episodes, seed, deterministic)
                for index, task in enumerate(tasks)
            ]
        finally:
            explore.close()
            score.close()
        names = rows[0][0].extras
        return EvalResult(
            np.array([[cell.returns[0, 0] for cell in row] for row in rows]),
            {name: np.array([[cell.extras[name][0, 0] for cell in row] for row in rows]) for name in names},
        )

    def _evaluate_task(
        self, task: np.ndarray, index: int, explore: Any, score: Any, episodes: int, seed: int, deterministic: bool
    ) -> list[EvalResult]:
        params: Params = {n: p.detach().requires_grad_() for n, p in self.policy.named_parameters()}
        cells = []
        for column in range(episodes):
            if column:
                trajectory = self._live_for_evaluation(params, explore, task, seed, (index, column, "explore"), False)
                adapted = self.inner_loop_adapt(params, self._batch(trajectory), column - 1)
                params = {n: p.detach().requires_grad_() for n, p in adapted.items()}
            scored = self._live_for_evaluation(params, score, task, seed, (index, column, "score"), deterministic)
            cells.append(summarize(scored, 1))
        return cells

    def _live_for_evaluation(
        self, params: Params, worlds: Any, task: np.ndarray, seed: int, names: tuple, deterministic: bool
    ) -> Trajectory:
        self._load(params)
        return rollout(
            self._actor,
            self.normalizer,
            worlds,
            np.repeat(task[None], worlds.num_envs, 0),
            num_steps=self.family.horizon,
            seed=int(numpy_stream(seed, "evaluate", "worlds", *names).integers(2**31 - 1)),
            generator=torch_stream(seed, "evaluate", "actions", *names),
            deterministic=deterministic,
        )

    def _learned(self) -> list[Tensor]:
        """What the outer loop moves, in the optimizer's order."""
        return [*self.policy.parameters(), *self.rates.values()]

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = training_tensors(self.policy, self.normalizer, self.optimizer, self._learned())
        return tensors | {name: rate.detach() for name, rate in self.rates.items()}, {"iteration": self.iteration}

    def _restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        restore_policy(self.policy, self.normalizer, tensors)
        restore_optimizer(self.optimizer, self._learned(), tensors)
        with torch.no_grad():
            for name, rate in self.rates.items():
                rate.copy_(tensors[name])
        self.iteration = int(meta["iteration"])
