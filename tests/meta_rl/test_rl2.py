"""RL2: it learns, it repeats bit for bit, it resumes, it fails clearly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.errors import InputError
from core.policy import PolicyConfig
from env_runner.task_distributions import get_family
from meta_rl.evaluate import few_shot
from meta_rl.learner import (
    LEARNERS,
    DivergedError,
    Learner,
    build_learner,
    parse_learner_config,
)
from meta_rl.rl2 import RL2, RL2Config
from meta_rl.rollout import rollout

FAMILY = "point-robot"
SMALL = PolicyConfig.model_validate(
    {"model": {"kind": "lru", "hidden_dim": 16, "state_dim": 16, "num_layers": 1}, "encoder_dim": 16, "head_dim": 16}
)
# Few optimiser steps of many samples each: a toy's update is all overhead.
FAST = RL2Config(num_worlds=32, epochs=4, minibatches=4, learning_rate=2e-3, gamma=0.9)


def make(steps: int = 5 * 640, seed: int = 0, config: RL2Config = FAST, policy: PolicyConfig = SMALL) -> RL2:
    learner = build_learner(FAMILY, policy, config, env_steps=steps, seed=seed)
    assert isinstance(learner, RL2)
    return learner


def weights(learner: RL2) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learner.policy.parameters()])


def same_metrics(a, b) -> bool:
    return all(a.metrics[name] == b.metrics[name] for name in a.metrics if not name.startswith("time/"))


def test_it_learns_to_find_a_hidden_goal_from_reward_alone_within_seconds():
    learner = make(steps=120 * 640)
    tasks = learner.family.eval_tasks("search")
    before = learner.evaluate(tasks, episodes=1, seed=0).returns.mean()
    reports = list(learner.train())
    after = learner.evaluate(tasks, episodes=1, seed=0).returns.mean()
    assert before < -18.0
    # Without knowing the goal the best fixed direction earns about -14: above it, the goal was inferred.
    assert after > -9.0
    assert reports[-1].env_steps == 120 * 640


def test_with_the_reward_negated_it_learns_to_flee_so_the_sign_matters(monkeypatch: pytest.MonkeyPatch):
    learner = make(steps=20 * 640)
    scaled = "meta_rl.rl2.scaled_rewards"
    monkeypatch.setattr(scaled, lambda rewards, scale: torch.from_numpy((-rewards * scale).astype(np.float32)))
    reports = list(learner.train())
    assert reports[-1].metrics["rollout/ep_rew_mean"] < reports[0].metrics["rollout/ep_rew_mean"] - 2.0


def test_the_same_seed_gives_the_same_numbers_and_another_seed_does_not():
    first, second, other = make(), make(), make(seed=1)
    pairs = list(zip(first.train(), second.train(), strict=True))
    list(other.train())
    assert all(same_metrics(a, b) for a, b in pairs)
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


@pytest.mark.parametrize("episodes_per_trial", [1, 2])
def test_stopping_and_resuming_equals_an_uninterrupted_run(tmp_path, episodes_per_trial: int):
    config = FAST.model_copy(update={"episodes_per_trial": episodes_per_trial, "num_worlds": 16})
    whole, part = make(config=config), make(config=config)
    whole_reports = list(whole.train())
    training = part.train()
    next(training)
    training.close()
    part.save(tmp_path / "half")
    resumed = Learner.load(tmp_path / "half")
    assert isinstance(resumed, RL2)
    rest = list(resumed.train())
    assert [r.iteration for r in rest] == [r.iteration for r in whole_reports[1:]]
    assert all(same_metrics(a, b) for a, b in zip(whole_reports[1:], rest, strict=True))
    assert torch.equal(weights(whole), weights(resumed))


def test_a_saved_learner_evaluates_as_before_and_evaluation_changes_nothing(tmp_path):
    learner = make()
    list(learner.train())
    tasks = learner.family.eval_tasks("search")
    frozen = weights(learner)
    first = learner.evaluate(tasks, episodes=2, seed=3, deterministic=False)
    learner.save(tmp_path / "model")
    again = Learner.load(tmp_path / "model").evaluate(tasks, episodes=2, seed=3, deterministic=False)
    assert first.returns.shape == (len(tasks), 2)
    assert first.returns.dtype == np.float64
    assert (first.returns == again.returns).all()
    assert torch.equal(frozen, weights(learner))


def test_evaluation_reports_the_last_distance_of_every_episode_and_its_length():
    learner = make()
    extras = learner.evaluate(learner.family.eval_tasks("search"), episodes=2, seed=0).extras
    assert (extras["episode_length"] == 20).all()
    assert extras["final_distance"].shape == (20, 2)


def test_a_diverging_run_raises_and_leaves_the_last_good_state(tmp_path):
    learner = make(config=FAST.model_copy(update={"num_worlds": 4}))
    training = learner.train()
    next(training)
    good = weights(learner)

    def poison(optimizer, args, kwargs):
        with torch.no_grad():
            learner.policy.actor.weight.fill_(float("nan"))

    handle = learner.optimizer.register_step_post_hook(poison)
    with pytest.raises(DivergedError):
        next(training)
    handle.remove()
    assert torch.equal(good, weights(learner))
    assert learner.iteration == 1
    learner.save(tmp_path / "good")


def test_memory_lives_through_the_episodes_of_a_trial_and_episode_ends_are_marked():
    learner = make()
    worlds = learner.family.make(3)
    tasks = learner.family.eval_tasks("search")[:3]
    trajectory = rollout(
        learner.policy,
        learner.normalizer,
        worlds,
        tasks,
        num_steps=40,
        seed=0,
        generator=torch.Generator().manual_seed(0),
    )
    assert trajectory.truncated.sum(1).tolist() == [2, 2, 2]
    assert trajectory.inputs.prev_done[:, 20].tolist() == [1.0, 1.0, 1.0]
    assert trajectory.inputs.prev_done.sum().item() == 3.0  # and not after the last step: the trial is cut, not ended
    whole = learner.policy(trajectory.inputs)
    torch.testing.assert_close(whole.value, trajectory.values, atol=1e-5, rtol=1e-4)
    # The last column is the final observation of the second episode, not the first of a third.
    moved = trajectory.obs[:, -1] + 0.1 * trajectory.actions[:, -1].clamp(-1, 1).numpy()
    np.testing.assert_allclose(trajectory.inputs.obs[:, -1].numpy(), learner.normalizer.observe(moved), atol=1e-5)


def test_the_probability_kept_while_acting_is_the_one_of_the_whole_sequence():
    from core.policy import PolicyInput, log_prob

    learner = make()
    trajectory = rollout(
        learner.policy,
        learner.normalizer,
        learner.family.make(4),
        learner.family.eval_tasks("search")[:4],
        num_steps=20,
        seed=0,
        generator=torch.Generator().manual_seed(0),
    )
    out = learner.policy(PolicyInput(*(part[:, :-1] for part in trajectory.inputs)))
    torch.testing.assert_close(log_prob(out, trajectory.actions), trajectory.log_prob, atol=1e-4, rtol=1e-4)


def test_a_privileged_critic_trains_and_its_actor_never_sees_the_task():
    learner = make(config=FAST.model_copy(update={"privileged_critic": True, "num_worlds": 8}), steps=3 * 160)
    list(learner.train())
    worlds = learner.family.make(2)
    same = {"num_steps": 1, "seed": 0, "deterministic": True, "privileged": True}
    tasks = learner.family.eval_tasks("search")
    one = rollout(learner.policy, learner.normalizer, worlds, tasks[:2], **same)
    two = rollout(learner.policy, learner.normalizer, worlds, tasks[-2:], **same)
    assert torch.equal(one.actions, two.actions)
    assert not torch.equal(one.values[:, 0], two.values[:, 0])


def test_few_shot_takes_any_shots_from_one_evaluation():
    result = few_shot(make(), get_family(FAMILY).eval_tasks("search"), shots=(0, 2), seed=0)
    assert list(result.returns) == [0, 2]
    assert result.returns[2].shape == (20,)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"env_steps": 0}, "env_steps"), ({"env_steps": 639}, "640"), ({"seed": -1}, "seed")],
)
def test_a_budget_or_seed_that_cannot_work_is_refused_before_any_work(change: dict, word: str):
    arguments = {"env_steps": 640, "seed": 0, **change}
    with pytest.raises(InputError, match=word):
        build_learner(FAMILY, SMALL, FAST, **arguments)


def test_unknown_names_and_shapes_are_answered_with_what_is_allowed():
    with pytest.raises(InputError, match="Did you mean 'rl2'"):
        parse_learner_config("rl3")
    with pytest.raises(InputError, match="point-robot"):
        build_learner("point-robo", SMALL, FAST, env_steps=640, seed=0)
    with pytest.raises(InputError, match=r"\(M, 1\)"):
        make().evaluate(np.zeros((3, 5)), episodes=1, seed=0)
    with pytest.raises(InputError, match="shots"):
        few_shot(make(), np.zeros((1, 1)), shots=(), seed=0)


def test_learner_configs_round_trip_json_through_the_registry():
    config = parse_learner_config({"kind": "rl2", "gamma": 0.5})
    assert parse_learner_config(config.model_dump(mode="json")) == config
    assert "rl2" in LEARNERS


def test_the_step_size_falls_while_an_update_moves_too_far_and_recovers_after():
    from meta_rl.ppo import next_lr_factor

    assert next_lr_factor(1.0, 0.1, None) == 1.0
    falling = next_lr_factor(1.0, 0.1, 0.02)
    assert falling < 1.0
    assert next_lr_factor(falling, 0.02, 0.02) == falling
    assert next_lr_factor(falling, 0.001, 0.02) == pytest.approx(1.0)
    assert next_lr_factor(1e-3, 1.0, 0.02) == 1e-3


def test_a_kl_ceiling_holds_the_policys_change_near_it():
    free = make(steps=12 * 640)
    held = make(steps=12 * 640, config=FAST.model_copy(update={"kl_ceiling": 0.0005}))
    mean_kl = lambda learner: np.mean([r.metrics["train/approx_kl"] for r in list(learner.train())[6:]])  # noqa: E731
    assert mean_kl(held) < 0.7 * mean_kl(free)


def test_categorical_actions_train_on_cartpole():
    config = FAST.model_copy(update={"num_worlds": 8})
    horizon = get_family("CartPole-v1").horizon
    learner = build_learner("CartPole-v1", SMALL, config, env_steps=2 * 8 * horizon, seed=0)
    assert isinstance(learner, RL2)
    reports = list(learner.train())
    assert len(reports) == 2
    result = learner.evaluate(learner.family.eval_tasks("search"), episodes=2, seed=0)
    assert (result.returns >= 1).all()
    assert (result.extras["episode_length"] == result.returns).all()  # one point a step, whatever the length


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("iterations_worth", [1, 2, 7, 100, 100.7])
def test_short_and_whole_trials_share_the_budget_as_asked(share: float, iterations_worth: float):
    budget = int(640 * iterations_worth)
    learner = make(steps=budget, config=FAST.model_copy(update={"short_trials": share}))
    short = [learner.is_short(i) for i in range(learner.iterations)]
    steps = np.cumsum([320 if is_short else 640 for is_short in short])
    assert [learner.steps_after(i + 1) for i in range(learner.iterations)] == steps.tolist()
    assert budget - 640 < steps[-1] <= budget
    tail = min(len(short) // 10, len(short) - sum(short))  # whole trials come last, even where they are few
    assert not any(short[len(short) - tail :])
    if iterations_worth >= 100:
        assert 320 * sum(short) / budget == pytest.approx(share, abs=0.02)
        whole = np.flatnonzero(~np.array(short[: len(short) - tail]))
        gaps = np.diff(whole)
        assert share == 0.95 or gaps.max() - gaps.min() <= 1, "they are not evenly spread"


def test_training_with_short_trials_resumes_to_the_same_bits(tmp_path):
    config = FAST.model_copy(update={"short_trials": 0.6})
    straight, stopped = make(config=config), make(config=config)
    reports = list(straight.train())
    assert [r.env_steps for r in reports] == [straight.steps_after(i + 1) for i in range(straight.iterations)]
    running = stopped.train()
    for _ in range(3):
        next(running)
    stopped.save(tmp_path / "half")
    resumed = Learner.load(tmp_path / "half")
    assert isinstance(resumed, RL2)
    list(resumed.train())
    assert torch.equal(weights(resumed), weights(straight))
