"""RL2: a policy with memory learns, by PPO on whole trials, to find out its task and act on it without any gradient step.

A trial is `episodes_per_trial` episodes on one task drawn afresh; memory lives through it. The policy reads the
observation, its previous action, the previous reward and whether an episode just ended. PPO maximises the return of
the trial as a whole, so exploring in one episode is paid for by the next.
Source: Duan et al. 2016 (arXiv 1611.02779), section 3; Wang et al. 2016 (arXiv 1611.05763). Differences: PPO in place of
TRPO, standardized inputs, and the current observation skips past the memory into both heads (Beck et al. 2023,
arXiv 2309.14970, on why that matters).
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from adaptation.policy_adaptation import PolicyAdaptation
from core.config import search
from core.errors import bad_value
from core.policy import PolicyConfig, PolicyInput, RecurrentPolicy
from core.seeding import numpy_stream, torch_stream
from meta_rl.adapting import Objective, PolicyAdapter
from meta_rl.auxiliary import Auxiliary, Predicted
from meta_rl.evaluate import check_tasks, evaluate_in_context
from meta_rl.learner import DivergedError, EvalResult, Learner, LearnerConfig, TrainReport, register_learner
from meta_rl.losses import explained_variance, generalized_advantages
from meta_rl.normalize import Normalizer, scaled_rewards
from meta_rl.ppo import PPOBatch, PPOConfig, make_optimizer, next_lr_factor, ppo_update, set_learning_rate
from meta_rl.rollout import Trajectory, episode_returns, episode_successes, family_action, rollout
from meta_rl.training_state import restore_policy, training_tensors


class RL2Config(PPOConfig):
    """Settings of RL2 with recurrent PPO."""

    size_fields: ClassVar[tuple[str, ...]] = ("num_worlds", "episodes_per_trial")

    kind: Literal["rl2"] = "rl2"
    num_worlds: int = Field(
        default=32, ge=1, le=4096, json_schema_extra=search(choices=(16, 32, 64), role="environment")
    )
    """Worlds stepped together; each lives one trial an iteration."""
    episodes_per_trial: int = Field(
        default=1, ge=1, le=100, json_schema_extra=search(choices=(1, 2), role="adaptation")
    )
    """Episodes lived on one task with memory kept."""
    short_trials: float = Field(default=0.0, ge=0, le=0.95)
    """Share of the env steps spent on iterations whose trials end half-way. Most return is lost while the task is being
    found out and the body accelerates, so short trials show twice as many beginnings; the value function stands for the
    rest, as at any time limit (Pardo et al. 2018, arXiv 1712.00378). Short and whole ones alternate, so that what comes
    late in a trial never becomes strange; the last tenth is whole as far as whole ones reach. 0: never."""
    advantage_border: Literal["cross", "cut"] = "cut"
    """What an early ending inside a trial does: "cut" counts it as the end of all reward, so falling is costly;
    "cross" lets the next episode's value flow back, the pure objective of a trial. Time limits are always crossed."""
    privileged_critic: bool = False
    """Give the task's parameters to the critic (never to the actor) while training."""
    aux: Predicted = Field(
        default="none",
        exclude_if=lambda aux: aux == "none",
        json_schema_extra=search(choices=("none", "reward", "next_observation", "task"), since=2),
    )
    """What a linear head has to predict from the memory while training: nothing, the reward or the observation that follows the
    action, or the task. The head plays no part in acting and is not counted among the policy's parameters."""
    aux_weight: float = Field(
        default=0.1,
        gt=0,
        le=100,
        exclude_if=lambda weight: weight == 0.1,
        json_schema_extra=search(
            low=0.01, high=1.0, log=True, since=2, only_if=("aux", ("reward", "next_observation", "task"))
        ),
    )
    """Weight of that prediction's squared error in the loss."""

    def iteration_steps(self, horizon: int) -> int:
        """Env steps of an iteration of whole trials."""
        return self.num_worlds * self.episodes_per_trial * horizon

    @property
    def why_no_adaptation(self) -> str | None:
        """Only with a critic that is told the task: it cannot judge what is lived where nobody tells."""
        return "its critic is told the task, and nobody tells it in an evaluation" if self.privileged_critic else None

    @property
    def predicts(self) -> str | None:
        """What the auxiliary head predicts."""
        return None if self.aux == "none" else self.aux

    @property
    def evaluation_episodes(self) -> int:
        """A whole trial."""
        return self.episodes_per_trial


LAST_WHOLE = 0.1  # share of the iterations, at the end, whose trials are all whole


@register_learner("rl2", RL2Config)
class RL2(Learner):
    """RL2 over any sequence model and any family. See the module's docstring."""

    config: RL2Config

    def __init__(
        self, family_id: str, policy: PolicyConfig, config: LearnerConfig, *, env_steps: int, seed: int
    ) -> None:
        super().__init__(family_id, policy, config, env_steps=env_steps, seed=seed)
        self.trial_steps = self.config.episodes_per_trial * self.family.horizon
        self.steps_per_iteration = self.config.iteration_steps(self.family.horizon)
        self.short_steps = max(self.trial_steps // 2, 1)
        if self.env_steps < self.steps_per_iteration:
            raise bad_value(
                "env_steps",
                env_steps,
                f"{self.steps_per_iteration} or more ({self.config.num_worlds} worlds x {self.trial_steps} steps)",
            )
        whole = max(math.ceil(self.env_steps * (1.0 - self.config.short_trials) / self.steps_per_iteration), 1)
        whole = min(whole, self.env_steps // self.steps_per_iteration)
        left = self.env_steps - whole * self.steps_per_iteration
        short = left // (self.config.num_worlds * self.short_steps) if self.config.short_trials else 0
        self.iterations = short + whole
        self.mixed_whole = max(whole - math.ceil(LAST_WHOLE * self.iterations), 0)
        """Whole iterations among the first `mixed` ones; all that follow are whole."""
        self.mixed = short + self.mixed_whole
        self.policy = RecurrentPolicy(
            self.family.obs_dim,
            family_action(self.family),
            policy,
            generator=torch_stream(seed, "policy", "init"),
            privileged_dim=self.family.num_params if self.config.privileged_critic else 0,
        )
        self.auxiliary = (
            None
            if self.config.aux == "none"
            else Auxiliary(
                self.config.aux,
                self.config.aux_weight,
                self.policy,
                self.family,
                torch_stream(seed, "auxiliary", "init"),
            )
        )
        self.optimizer = make_optimizer(self.policy, self.config, self.auxiliary)
        self.normalizer = Normalizer(self.family.obs_dim, self.config.gamma)
        self.iteration = 0
        self.lr_factor = 1.0

    def train(self) -> Generator[TrainReport, None, None]:
        """One report an iteration: collect one trial a world, update, measure."""
        worlds = self.family.make(self.config.num_worlds)
        try:
            while self.iteration < self.iterations:
                yield self._iterate(worlds)
        finally:
            worlds.close()

    def _iterate(self, worlds: Any) -> TrainReport:
        start = time.perf_counter()
        config, step = self.config, self.iteration
        progress = self.steps_after(step) / self.steps_after(self.iterations)
        rate = set_learning_rate(self.optimizer, config, progress, self.lr_factor)

        # Every iteration's randomness is a function of (seed, iteration) alone: stopping and resuming changes nothing.
        trajectory = rollout(
            self.policy,
            self.normalizer,
            worlds,
            self.family.sample_tasks(numpy_stream(self.seed, "tasks", step), config.num_worlds),
            num_steps=self.short_steps if self.is_short(step) else self.trial_steps,
            seed=int(numpy_stream(self.seed, "worlds", step).integers(2**31 - 1)),
            generator=torch_stream(self.seed, "actions", step),
            privileged=config.privileged_critic,
        )
        collected = time.perf_counter()

        before = {name: value.clone() for name, value in self._state()[0].items()}
        self.normalizer.update(trajectory.obs, trajectory.rewards, trajectory.terminated)
        batch = self._batch(trajectory)
        try:
            shuffled = torch_stream(self.seed, "minibatches", step)
            measured = ppo_update(self.policy, self.optimizer, batch, config, shuffled, self.auxiliary)
        except DivergedError:
            self._restore(before, {"iteration": step, "lr_factor": self.lr_factor})
            raise
        self.iteration += 1
        self.lr_factor = next_lr_factor(self.lr_factor, measured["train/approx_kl"], config.kl_ceiling)
        wall = time.perf_counter() - start

        returns = episode_returns(trajectory)
        finished = np.array([value for world in returns for value in world])
        if self.is_short(step):  # as if the unseen half of the trial went on like the half that was lived
            episodes = config.episodes_per_trial * self.short_steps / self.trial_steps
            mean_return = float(trajectory.rewards.sum(1).mean()) / episodes
        else:
            mean_return = float(finished.mean()) if len(finished) else float("nan")
        metrics = {
            "rollout/ep_rew_mean": mean_return,
            "rollout/unstable_worlds": float(getattr(worlds, "unstable_count", 0)),
            **measured,
            "train/explained_variance": float(explained_variance(trajectory.values[:, :-1], batch.returns)),
            "train/learning_rate": rate,
            "time/fps": trajectory.rewards.size / wall,
            "time/collect_s": collected - start,
            "time/update_s": wall - (collected - start),
        }
        if len(finished):
            metrics["rollout/ep_rew_first"] = float(np.mean([world[0] for world in returns if world]))
            metrics["rollout/ep_rew_last"] = float(np.mean([world[-1] for world in returns if world]))
        if reached := episode_successes(trajectory):
            metrics["rollout/success_rate"] = float(np.mean(reached))
        return TrainReport(self.iteration, self.steps_after(self.iteration), wall, metrics)

    def steps_after(self, iterations: int) -> int:
        """Env steps that the first so many iterations live."""
        whole = self._whole_in(iterations)
        return self.config.num_worlds * (whole * self.trial_steps + (iterations - whole) * self.short_steps)

    def is_short(self, iteration: int) -> bool:
        """Whether the trials of an iteration, counted from 0, end half-way."""
        return self._whole_in(iteration + 1) == self._whole_in(iteration)

    def _whole_in(self, iterations: int) -> int:
        """How many of the first iterations are whole: evenly spread over the mixed ones."""
        if iterations > self.mixed:
            return self.mixed_whole + iterations - self.mixed
        return iterations * self.mixed_whole // max(self.mixed, 1)

    def _batch(self, trajectory: Trajectory) -> PPOBatch:
        ends = trajectory.terminated.astype(np.float32)
        if self.config.advantage_border == "cross":
            ends[:, :-1] = 0.0
        advantages = generalized_advantages(
            scaled_rewards(trajectory.rewards, self.normalizer.return_scale),
            trajectory.values,
            torch.from_numpy(ends),
            gamma=self.config.gamma,
            lam=self.config.gae_lambda,
        )
        return PPOBatch(
            inputs=PolicyInput(*(part[:, :-1].contiguous() for part in trajectory.inputs)),
            actions=trajectory.actions,
            old_log_prob=trajectory.log_prob,
            advantages=advantages,
            returns=advantages + trajectory.values[:, :-1],
            hints=trajectory.privileged,
            aux=None if self.auxiliary is None else self.auxiliary.targets(trajectory),
        )

    def evaluate(self, tasks: np.ndarray, *, episodes: int, seed: int, deterministic: bool = True) -> EvalResult:
        """Column e: the e-th episode on the task with memory kept; no gradient steps, normalisers frozen."""
        return evaluate_in_context(
            self.policy,
            self.normalizer,
            self.family,
            tasks,
            episodes=episodes,
            seed=seed,
            deterministic=deterministic,
            auxiliary=self.auxiliary,
        )

    def adapt_and_evaluate(
        self, tasks: np.ndarray, adaptation: PolicyAdaptation, *, episodes: int, seed: int, deterministic: bool = True
    ) -> EvalResult:
        """The same with copies of the policy that go on learning by PPO's loss; with all its noise where not deterministic."""
        config = self.config
        objective = Objective(
            clip=config.clip,
            value_coef=config.value_coef,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
            crosses_endings=config.advantage_border == "cross",
            reward_scale=self.normalizer.return_scale,
        )
        worlds, noise = len(check_tasks(tasks, self.family)), adaptation.exploration if deterministic else 1.0
        adapter = PolicyAdapter(self.policy, adaptation, worlds, objective, noise=noise)
        return evaluate_in_context(
            self.policy, self.normalizer, self.family, tasks, episodes=episodes, seed=seed, adapting=adapter
        )

    def _state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        tensors = training_tensors(self.policy, self.normalizer, self.optimizer, self._optimized())
        if self.auxiliary is not None:
            tensors |= self.auxiliary.tensors()
        return tensors, {"iteration": self.iteration, "lr_factor": self.lr_factor}

    def _restore(self, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
        restore_policy(self.policy, self.normalizer, tensors)
        if self.auxiliary is not None:
            self.auxiliary.restore(tensors)
        for index, parameter in enumerate(self._optimized()):  # its moments are views, changed in place
            for name, value in self.optimizer.state[parameter].items():
                kept = tensors.get(f"optimizer.{index}.{name}")
                value.zero_() if kept is None else value.copy_(kept)
        self.iteration, self.lr_factor = int(meta["iteration"]), float(meta["lr_factor"])

    def _optimized(self) -> list[torch.nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
