"""Test-time adaptation on HalfCheetah: what a joint failure and a change of target in mid-episode cost, and what is mended.

How it is measured. A trained RL2 policy runs `halfcheetah-vel`; at step 100 of 200 either a motor dies (the front thigh's)
or the target velocity changes. Three tables, each with 95 % intervals over episodes:

1. One-step prediction error of a dynamics model (next observation and reward, standardized; it learned on the sound body with
   one target) while the policy acts: frozen; with each choice of what adapts, an update after every step on the last 16 steps,
   its rate chosen of RATES on episodes of their own; and the oracle, which learned on the failed body or on the new target.
   For the change of target the error is the reward's, since nothing else changes.
2. Return after the event by what the policy's memory does: goes on; is wiped at the event; stays what it was at the event,
   which is no adaptation; the oracle policy, which is the same policy trained on with the motor dead from the first step, or,
   for the change of target, one that has lived on the new target from the first step.
3. Return after the event with a look-ahead: the policy's actions and noisy variants of them are tried in the model for a few
   steps, and weighted by the return that it predicts. The model is frozen, adapts, or is the oracle.

Run: `python main.py bench adapt [--policy CHECKPOINT ...] [--events NAME ...] [--episodes N] [--quick] [--json]`. Without a checkpoint a policy is
trained first, with the preset of `halfcheetah-vel`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from adaptation.dynamics import (
    DynamicsModel,
    Episodes,
    OnlineDynamics,
    adapt_through_episode,
    prediction_errors,
    train_dynamics,
)
from adaptation.test_time_adaptation import AdaptationConfig
from core.config import FrozenConfig
from core.errors import InputError, bad_value
from core.policy import PolicyInput
from core.seeding import numpy_stream, torch_stream
from core.sequence_model import parse_model_config
from env_runner.task_family import EnvOptions, TaskVectorEnv, with_changes
from experiments.bench.registered import register_bench
from experiments.presets import preset
from meta_rl.learner import Learner, build_learner
from meta_rl.rl2 import RL2

FAMILY, EVENT_STEP, SETTLED = "halfcheetah-vel", 100, 120
TARGET, NEW_TARGET, MOTOR = 1.5, 0.5, 3
MODEL = {"kind": "lru", "hidden_dim": 64, "state_dim": 64, "num_layers": 2, "norm": "layer"}
CHOICES = ("head", "norm", "low-rank", "all")
RATES = (1e-3, 3e-3, 1e-2)
CANDIDATES, LOOKAHEAD, NOISE, TEMPERATURE = 32, 8, 0.3, 0.05
Event = Literal["joint failure", "new target"]
EVENTS: tuple[Event, ...] = ("joint failure", "new target")
Memory = Literal["goes on", "wiped", "stays"]


class AdaptRow(FrozenConfig):
    """One arm of one table."""

    table: Literal["prediction error", "return, memory", "return, look-ahead"]
    """Which table."""
    event: Event
    """What happens at step 100."""
    arm: str
    """What adapts, or what stands in for it."""
    before: float
    """Prediction error in steps 50 to 99, or return of steps 0 to 99."""
    after: float
    """Prediction error in steps 120 to 199, or return of steps 100 to 199."""
    before_half: float
    """Half of the 95 % t interval over episodes."""
    after_half: float
    """Half of the 95 % t interval over episodes."""
    episodes: int
    """How many."""


@dataclass(frozen=True)
class Scale:
    """How much work is done."""

    worlds: int = 64
    updates: int = 250
    tuning: int = 1
    episodes: int = 4
    policy_steps: int = 3_000_000
    oracle_steps: int = 1_000_000


QUICK = Scale(worlds=32, updates=60, tuning=1, episodes=2, policy_steps=64_000, oracle_steps=32_000)


def bench_adapt(
    policies: Sequence[RL2],
    scale: Scale,
    *,
    seed: int = 0,
    events: Sequence[Event] = EVENTS,
    listener: Callable[[str], None] = lambda line: None,
) -> list[AdaptRow]:
    """All tables; every policy is a repetition, with models and episodes of its own. The listener hears of each arm."""
    found: dict[tuple[str, Event, str], list[tuple[np.ndarray, np.ndarray]]] = {}
    for number, learner in enumerate(policies):
        for table, event, arm, before, after in _measure(learner, scale, seed + number, events):
            listener(f"{event}, {table}, {arm}: {before.mean():.3f} before, {after.mean():.3f} after")
            found.setdefault((table, event, arm), []).append((before, after))
    rows = []
    for (table, event, arm), parts in found.items():
        before, after = (np.concatenate([part[i] for part in parts]) for i in range(2))
        rows.append(
            AdaptRow.model_validate(
                {
                    "table": table,
                    "event": event,
                    "arm": arm,
                    "before": before.mean(),
                    "after": after.mean(),
                    "before_half": _half(before),
                    "after_half": _half(after),
                    "episodes": len(after),
                }
            )
        )
    return rows


Measured = tuple[str, Event, str, np.ndarray, np.ndarray]


def _measure(learner: RL2, scale: Scale, seed: int, events: Sequence[Event]) -> Iterator[Measured]:
    """Every arm of every table for one policy: errors or returns by episode, before and after the event."""
    trained = _train(learner, scale, seed, TARGET, None)
    for event in events:
        failed = EnvOptions(failure_step=0, failed_actuator=MOTOR)
        oracle = (
            _train(learner, scale, seed, TARGET, failed)
            if event == "joint failure"
            else _train(learner, scale, seed, NEW_TARGET, None)
        )
        choices = yield from _prediction(learner, trained, oracle, event, scale, seed)
        yield from _memory(learner, event, scale, seed)
        yield from _look_ahead(learner, trained, oracle, event, choices, scale, seed)


# 1. Prediction ---------------------------------------------------------------------------------------------------------
def _prediction(
    learner: RL2, trained: DynamicsModel, oracle: DynamicsModel, event: Event, scale: Scale, seed: int
) -> Iterator[Measured]:
    """Yields the table's arms; returns the best choice's adaptation."""
    lived = _deploy(learner, event, scale.episodes, numpy_stream(seed, "deploy", event))
    coordinates = slice(None) if event == "joint failure" else slice(-1, None)

    def split(errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        chosen = errors[:, :, coordinates].mean(-1)
        return chosen[:, EVENT_STEP // 2 : EVENT_STEP].mean(1), chosen[:, SETTLED:].mean(1)

    yield "prediction error", event, "none", *split(prediction_errors(trained, lived))
    tuning = _deploy(learner, event, scale.tuning, numpy_stream(seed, "tuning", event))
    best: list[tuple[float, AdaptationConfig]] = []
    for choice in CHOICES:
        rated = []
        for rate in RATES:
            config = AdaptationConfig.model_validate(
                {"learning_rate": rate, "optimizer": "adam", "parameters": choice, "max_grad_norm": None}
            )
            rated.append((float(split(_adapted(trained, config, tuning))[1].mean()), config))
        config = min(rated, key=lambda pair: pair[0])[1]
        best.append(min(rated, key=lambda pair: pair[0]))
        yield (
            "prediction error",
            event,
            choice,
            *split(_adapted(trained, config, lived)),
        )
    yield "prediction error", event, "oracle", *split(prediction_errors(oracle, lived))
    return min(best, key=lambda pair: pair[0])[1]


def _adapted(model: DynamicsModel, config: AdaptationConfig, lived: Episodes) -> np.ndarray:
    """Errors (N, T, D) of adapting through each episode alone."""
    pairs = zip(lived.obs, lived.actions, strict=True)
    return np.stack([adapt_through_episode(model, config, obs, actions).adapted for obs, actions in pairs])


def _options(event: Event) -> EnvOptions:
    if event == "joint failure":
        return EnvOptions(failure_step=EVENT_STEP, failed_actuator=MOTOR)
    return EnvOptions(switch_step=EVENT_STEP, switch_task=(NEW_TARGET,))


def _train(learner: RL2, scale: Scale, seed: int, target: float, options: EnvOptions | None) -> DynamicsModel:
    """A dynamics model that learned on exploring episodes; the reward it sees is that of `target`."""
    rng = numpy_stream(seed, "explore", str(target), str(options))
    worlds = learner.family.make(scale.worlds, options=options)
    tasks = learner.family.sample_tasks(rng, scale.worlds)
    # How far each world strays from the policy: from not at all to mostly noise, so that the model knows both.
    episodes = _live(learner, worlds, tasks, rng, noise=rng.uniform(0, 0.6, (scale.worlds, 1)), reward_of=target)
    model = DynamicsModel(parse_model_config(MODEL), 18, 6, torch_stream(seed, "dynamics"))
    train_dynamics(model, episodes, updates=scale.updates, generator=torch_stream(seed, "batches"))
    return model


def _deploy(learner: RL2, event: Event, episodes: int, rng: np.random.Generator) -> Episodes:
    """Episodes of the policy itself, with a little noise, through the event."""
    worlds = learner.family.make(episodes, options=_options(event))
    return _live(learner, worlds, np.full((episodes, 1), TARGET), rng, noise=np.full((episodes, 1), 0.05))


def _live(
    learner: RL2,
    worlds: TaskVectorEnv,
    tasks: np.ndarray,
    rng: np.random.Generator,
    *,
    noise: np.ndarray,
    reward_of: float | None = None,
) -> Episodes:
    """Episodes with the reward as the last coordinate of what is seen: the worlds' own, or that of the target `reward_of`."""
    acting = Acting(learner, worlds, tasks, int(rng.integers(2**31 - 1)))
    seen, done, wander = [acting.seen()], [], np.zeros((len(tasks), 6))
    for _ in range(learner.family.horizon - 1):
        wander = 0.7 * wander + 0.7 * rng.normal(size=wander.shape)
        action = np.clip(acting.propose().numpy() + noise * wander, -1, 1).astype(np.float32)
        acting.take(torch.from_numpy(action))
        if reward_of is not None:
            acting.reward = -np.abs(acting.velocity - reward_of) - 0.05 * np.square(action.astype(np.float64)).sum(1)
        seen.append(acting.seen())
        done.append(torch.from_numpy(action))
    worlds.close()
    return Episodes(torch.stack(seen, 1), torch.stack(done, 1))


class Acting:
    """A policy's side of N worlds, one step at a time."""

    def __init__(self, learner: RL2, worlds: TaskVectorEnv, tasks: np.ndarray, seed: int) -> None:
        self.policy, self.normalizer, self.worlds = learner.policy, learner.normalizer, worlds
        self.obs, _ = worlds.reset(seed=seed, options={"tasks": tasks})
        n = len(tasks)
        self.hidden, self.next_hidden = self.policy.init_hidden(n), self.policy.init_hidden(n)
        self.last_action, self.read_reward = torch.zeros(n, 6), torch.zeros(n)
        self.reward = self.velocity = np.zeros(n)
        self.tasks = tasks

    def seen(self) -> Tensor:
        """Observation and reward side by side, (N, 18)."""
        return torch.from_numpy(np.concatenate([self.obs, self.reward[:, None]], 1).astype(np.float32))

    @torch.no_grad()
    def propose(self) -> Tensor:
        """The policy's action (N, 6)."""
        read = torch.from_numpy(self.normalizer.observe(self.obs))
        inputs = PolicyInput(read, self.last_action, self.read_reward, torch.zeros(len(read)))
        out = self.policy(inputs, self.hidden)
        self.next_hidden = out.next_hidden
        return out.mean_or_logits.clamp(-1, 1)

    def take(self, action: Tensor) -> np.ndarray:
        """Do it; returns the rewards (N,)."""
        self.hidden, self.last_action = self.next_hidden, action
        self.obs, self.reward, _, _, infos = self.worlds.step(action.numpy())
        self.velocity, self.tasks = infos["x_velocity"], infos.get("tasks", self.tasks)
        self.read_reward = torch.from_numpy(self.normalizer.read_reward(self.reward))
        return self.reward


# 2. The policy's memory --------------------------------------------------------------------------------------------------
def _memory(learner: RL2, event: Event, scale: Scale, seed: int) -> Iterator[Measured]:
    tasks = learner.family.eval_tasks("search")
    drawn = EnvOptions(switch_step=EVENT_STEP) if event == "new target" else _options(event)
    start = int(numpy_stream(seed, "memory", event).integers(2**31 - 1))
    new_tasks = tasks
    for memory in ("goes on", "wiped", "stays"):
        rewards, new_tasks = _remember(learner, learner.family.make(len(tasks), options=drawn), tasks, start, memory)
        name = {"stays": "none (memory stays as at the event)"}.get(memory, f"memory {memory}")
        yield "return, memory", event, name, rewards[:, :EVENT_STEP].sum(1), rewards[:, EVENT_STEP:].sum(1)
    if event == "new target":
        rewards, _ = _remember(learner, learner.family.make(len(tasks)), new_tasks, start, "goes on")
    else:
        expert = _trained_on(learner, EnvOptions(failure_step=0, failed_actuator=MOTOR), scale.oracle_steps, seed)
        rewards, _ = _remember(expert, learner.family.make(len(tasks), options=drawn), tasks, start, "goes on")
    yield "return, memory", event, "oracle policy", rewards[:, :EVENT_STEP].sum(1), rewards[:, EVENT_STEP:].sum(1)


def _remember(
    learner: RL2, worlds: TaskVectorEnv, tasks: np.ndarray, seed: int, memory: str
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards (N, T) of one episode a task, and the tasks in force at its end."""
    acting, rewards, kept = Acting(learner, worlds, tasks, seed), [], None
    for step in range(learner.family.horizon):
        if step == EVENT_STEP and memory == "wiped":
            acting.hidden = torch.zeros_like(acting.hidden)
        if step == EVENT_STEP and memory == "stays":
            kept = acting.hidden
        if kept is not None:
            acting.hidden = kept
        rewards.append(acting.take(acting.propose()))
    worlds.close()
    return np.stack(rewards, 1), acting.tasks


def _trained_on(learner: RL2, options: EnvOptions, env_steps: int, seed: int) -> RL2:
    """The same policy after more training in worlds with these changes."""
    expert = build_learner(FAMILY, learner.policy_config, learner.config, env_steps=env_steps, seed=seed)
    assert isinstance(expert, RL2)
    expert.policy.load_state_dict(learner.policy.state_dict())
    expert.normalizer.restore(learner.normalizer.tensors())
    expert.family = with_changes(expert.family, options)
    for _ in expert.train():
        pass
    return expert


# 3. Looking ahead in the model -------------------------------------------------------------------------------------------
def _look_ahead(
    learner: RL2,
    trained: DynamicsModel,
    oracle: DynamicsModel,
    event: Event,
    config: AdaptationConfig,
    scale: Scale,
    seed: int,
) -> Iterator[Measured]:
    start = int(numpy_stream(seed, "look-ahead", event).integers(2**31 - 1))
    arms: dict[str, tuple[DynamicsModel, AdaptationConfig | None] | None] = {
        "policy alone": None,
        "no adaptation": (trained, None),
        "adapts, best choice": (trained, config),
        "oracle model": (oracle, None),
    }
    for arm, chosen in arms.items():
        rewards = np.stack([_plan(learner, event, chosen, start + i) for i in range(scale.episodes)])
        yield "return, look-ahead", event, arm, rewards[:, :EVENT_STEP].sum(1), rewards[:, EVENT_STEP:].sum(1)


def _plan(
    learner: RL2, event: Event, chosen: tuple[DynamicsModel, AdaptationConfig | None] | None, seed: int
) -> np.ndarray:
    """Rewards (T,) of one episode."""
    worlds = learner.family.make(1, options=_options(event))
    acting = Acting(learner, worlds, np.full((1, 1), TARGET), seed)
    generator, rewards = torch_stream(seed, "look-ahead"), []
    online = None if chosen is None else OnlineDynamics(chosen[0], chosen[1])
    for _ in range(learner.family.horizon - 1):
        seen, action = acting.seen(), acting.propose()
        if online is not None:
            action = _weigh(learner, online, seen, action, acting.next_hidden, generator)
        rewards.append(float(acting.take(action)[0]))
        if online is not None:
            online.step(seen[0], action[0], acting.seen()[0])
    if online is not None:
        online.close()
    worlds.close()
    return np.array(rewards)


@torch.no_grad()
def _weigh(
    learner: RL2, online: OnlineDynamics, seen: Tensor, action: Tensor, hidden: Tensor, generator: torch.Generator
) -> Tensor:
    """The mean of the first actions of all candidates, weighted by exp(predicted return / TEMPERATURE); (1, 6).

    Source: model predictive path integral control, Williams et al. 2017 (arXiv 1707.02342), equation 30; that the candidates
    stray from a policy that is rolled out in the model is ours.
    """
    model, policy, normalizer = online.model, learner.policy, learner.normalizer
    state, memory = online.hidden.expand(CANDIDATES, -1), hidden.expand(CANDIDATES, -1)
    imagined, act = seen.expand(CANDIDATES, -1), action.expand(CANDIDATES, -1)
    noise, first, total = torch.zeros(CANDIDATES, 6), act, torch.zeros(CANDIDATES)
    for ahead in range(LOOKAHEAD):
        fresh = NOISE * torch.randn(CANDIDATES, 6, generator=generator)
        noise = 0.7 * noise + 0.71 * fresh if ahead else fresh
        noise[0] = 0.0  # one candidate is the policy itself
        act = (act + noise).clamp(-1, 1)
        first = first if ahead else act
        change, state = model(torch.cat([imagined, act], -1), state)
        imagined = imagined + change / model.change_scale + model.change_mean
        total = total + imagined[:, -1]
        if ahead < LOOKAHEAD - 1:
            numbers = imagined.numpy()
            read = torch.from_numpy(normalizer.observe(numbers[:, :-1]))
            reward = torch.from_numpy(normalizer.read_reward(numbers[:, -1]))
            out = policy(PolicyInput(read, act, reward, torch.zeros(CANDIDATES)), memory)
            memory, act = out.next_hidden, out.mean_or_logits.clamp(-1, 1)
    weights = torch.softmax(total / TEMPERATURE, 0)
    return (weights.unsqueeze(1) * first).sum(0, keepdim=True)


# Output ------------------------------------------------------------------------------------------------------------------
def _half(values: np.ndarray) -> float:
    """Half of the 95 % t interval; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def as_text(rows: Sequence[AdaptRow]) -> str:
    """The tables as Markdown."""
    lines: list[str] = []
    for table in dict.fromkeys(row.table for row in rows):
        digits = 3 if table == "prediction error" else 1
        lines += [
            "",
            f"{table[0].upper()}{table[1:]}",
            "",
            "| event | arm | before | after | episodes |",
            "|---|---|---|---|---|",
        ]
        for row in (row for row in rows if row.table == table):
            before = f"{row.before:.{digits}f} ± {row.before_half:.{digits}f}"
            after = f"{row.after:.{digits}f} ± {row.after_half:.{digits}f}"
            lines.append(f"| {row.event} | {row.arm} | {before} | {after} | {row.episodes} |")
    return "\n".join(lines[1:])


def load_policies(paths: Sequence[str], scale: Scale, seed: int) -> list[RL2]:
    """RL2 learners of halfcheetah-vel from checkpoints, or one trained here where none is given."""
    learners: list[RL2] = []
    for path in paths:
        learner = Learner.load(path)
        if not isinstance(learner, RL2) or learner.family_id != FAMILY:
            raise bad_value("--policy", path, f"a checkpoint of an rl2 learner on {FAMILY}")
        learners.append(learner)
    if not learners:
        spec = preset(FAMILY, "s5", RL2.kind)
        learner = build_learner(FAMILY, spec.policy, spec.learner, env_steps=scale.policy_steps, seed=seed)
        assert isinstance(learner, RL2)
        for _ in learner.train():
            pass
        learners.append(learner)
    return learners


@register_bench("adapt")
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench adapt", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policy", nargs="+", default=[], help="checkpoints of rl2 learners; each is a repetition")
    parser.add_argument("--episodes", type=int, help="episodes an arm of the first and third table")
    parser.add_argument("--events", nargs="+", choices=EVENTS, default=EVENTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="small models and few episodes, for a first look")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    scale = QUICK if options.quick else Scale()
    if options.episodes is not None:
        if options.episodes < 1:
            raise InputError(f"--episodes: got {options.episodes}, allowed: 1 or more.")
        scale = replace(scale, episodes=options.episodes)
    rows = bench_adapt(
        load_policies(options.policy, scale, options.seed),
        scale,
        seed=options.seed,
        events=options.events,
        listener=lambda line: print(line, file=sys.stderr, flush=True),  # a long run shows that it moves
    )
    print("[" + ",\n".join(row.model_dump_json() for row in rows) + "]" if options.json else as_text(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
