"""Auxiliary losses on RL2's memory: the compiled gradient is autograd's, targets are what was lived, runs resume, none is as before."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from core.errors import InputError
from core.policy import ActionSpec, PolicyConfig, PolicyInput, RecurrentPolicy, log_prob
from env_runner.task_distributions import get_family
from env_runner.task_family import EnvOptions, with_changes
from meta_rl.auxiliary import Auxiliary, Targets
from meta_rl.fused_ppo import FusedLoss
from meta_rl.learner import Learner, build_learner, parse_learner_config
from meta_rl.ppo import PPOBatch, PPOConfig, make_optimizer, ppo_loss
from meta_rl.rl2 import RL2
from meta_rl.rollout import Trajectory, rollout

N, T = 6, 11
MODELS = {
    "s5": {"kind": "s5", "hidden_dim": 16, "state_dim": 12},  # compiled as a whole
    "mingru": {"kind": "mingru", "hidden_dim": 24},
    "lstm": {"kind": "lstm", "hidden_dim": 16},  # through autograd
    "half": {"kind": "lru", "hidden_dim": 16, "state_dim": 32, "gating": "half"},
}
PREDICTED = ("reward", "next_observation", "task")


def learner_of(
    aux: str = "none", *, family: str = "point-robot", model: str = "s5", iterations: int = 3, **fields
) -> RL2:
    policy = PolicyConfig.model_validate({"model": MODELS[model], "encoder_dim": 16, "head_dim": 16})
    config = parse_learner_config(
        {"kind": "rl2", "num_worlds": 8, "epochs": 2, "minibatches": 2, "gamma": 0.9, "aux": aux, **fields}
    )
    steps = iterations * config.iteration_steps(get_family(family).horizon)
    learner = build_learner(family, policy, config, env_steps=steps, seed=0)
    assert isinstance(learner, RL2)
    return learner


def lived(learner: RL2, episodes: int = 2) -> Trajectory:
    worlds = learner.family.make(5)
    tasks = learner.family.eval_tasks("search")[:5]
    generator = torch.Generator().manual_seed(0)
    steps = episodes * learner.family.horizon
    return rollout(learner.policy, learner.normalizer, worlds, tasks, num_steps=steps, seed=0, generator=generator)


@pytest.mark.parametrize("predicts", PREDICTED)
@pytest.mark.parametrize("action", ["gaussian", "categorical"])
@pytest.mark.parametrize("model", MODELS)
def test_the_compiled_gradient_with_a_head_equals_autograd_in_double_precision(
    model: str, action: str, predicts: str
) -> None:
    family = get_family("point-robot" if action == "gaussian" else "bandit")
    config = PolicyConfig.model_validate({"model": MODELS[model], "encoder_dim": 16, "head_dim": 24})
    policy = RecurrentPolicy(
        family.obs_dim, ActionSpec(action, family.action.size), config, generator=torch.Generator().manual_seed(1)
    )  # pyright: ignore
    size, dim = family.action.size, family.obs_dim
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    inputs = PolicyInput(draw(N, T, dim), draw(N, T, size), draw(N, T), (draw(N, T) > 1).float())
    actions = draw(N, T, size) if action == "gaussian" else torch.randint(size, (N, T), generator=g)
    with torch.no_grad():
        old = log_prob(policy(inputs), actions) + 0.3 * draw(N, T)
    auxiliary = Auxiliary(predicts, 0.7, policy, family, torch.Generator().manual_seed(3))  # pyright: ignore
    beside, wanted = (0, family.num_params) if predicts == "task" else (size, 1 if predicts == "reward" else dim)
    targets = Targets(draw(N, T, beside), draw(N, T, wanted), (draw(N, T) > 0).float())
    advantages, returns = draw(N, T), draw(N, T)
    truth, true_head = copy.deepcopy(policy).double(), copy.deepcopy(auxiliary)
    true_head.head.double()

    optimizer = make_optimizer(policy, PPOConfig(kind="ppo"), auxiliary)
    fused = FusedLoss(policy, optimizer, inputs, actions, old, advantages, returns, auxiliary=(auxiliary, targets))
    fused(torch.tensor([0, 1, 2, 3]), 0.2, 0.5, 0.01, np.zeros(6))
    rows, measured = torch.tensor([5, 2, 0]), np.zeros(6)
    loss, norm = fused(rows, 0.2, 0.5, 0.01, measured)

    as_double = lambda x: x[rows] if x.dtype == torch.int64 else x[rows].double()  # noqa: E731
    chosen = PPOBatch(
        PolicyInput(*map(as_double, inputs)), *map(as_double, (actions, old, advantages, returns)), None,
        Targets(*map(as_double, targets)),
    )  # fmt: skip
    true_loss, _ = ppo_loss(truth, chosen, chosen.advantages, 0.2, 0.5, 0.01, true_head)
    true_loss.backward()
    assert loss == pytest.approx(float(true_loss.detach()), rel=1e-4, abs=1e-5)
    mine = [*policy.parameters(), *auxiliary.head.parameters()]
    other = [*truth.parameters(), *true_head.head.parameters()]
    true_norm = torch.cat([p.grad.flatten() for p in other if p.grad is not None]).norm()
    assert norm == pytest.approx(float(true_norm), rel=1e-4)
    for one, two in zip(mine, other, strict=True):
        assert one.grad is not None
        assert two.grad is not None
        error = (one.grad - two.grad).abs().max().item()
        assert error <= 1e-4 * two.grad.abs().max().item() + 1e-6


def test_the_targets_are_what_followed_each_step_and_no_observation_crosses_an_episodes_end() -> None:
    for aux in PREDICTED:
        learner = learner_of(aux)
        assert learner.auxiliary is not None
        trajectory = lived(learner)
        targets = learner.auxiliary.targets(trajectory)
        horizon, steps = learner.family.horizon, trajectory.rewards.shape[1]
        for t in range(steps):
            border = t % horizon == horizon - 1 and t < steps - 1
            if aux == "reward":
                read = learner.normalizer.read_reward(trajectory.rewards[:, t])
                np.testing.assert_allclose(targets.wanted[:, t, 0].numpy(), read)
            elif aux == "next_observation" and t < steps - 1:
                following = learner.normalizer.observe(trajectory.obs[:, t + 1])
                np.testing.assert_allclose(targets.wanted[:, t].numpy(), following)
            counted = 0.0 if aux == "next_observation" and border else 1.0
            assert targets.counts[:, t].tolist() == [counted] * 5
        if aux == "task":
            assert targets.beside.shape == (5, steps, 0)
            tasks = trajectory.tasks[:, 0, 0]
            np.testing.assert_allclose(
                targets.wanted[:, 0, 0].numpy(), (tasks - np.pi / 2) / (np.pi / 12**0.5), atol=0.05
            )
        else:
            taken = trajectory.actions.clamp(-1, 1)
            torch.testing.assert_close(targets.beside, taken)


def test_the_task_to_be_predicted_is_the_one_in_force_where_the_target_switches() -> None:
    learner = learner_of("task")
    learner.family = with_changes(learner.family, EnvOptions(switch_step=7, switch_task=(0.5,)))
    tasks = lived(learner).tasks[..., 0]
    horizon = learner.family.horizon
    for t in range(tasks.shape[1]):
        assert (tasks[:, t] == 0.5).all() == (t % horizon >= 7)


@pytest.mark.parametrize("aux", PREDICTED)
def test_a_head_learns_to_predict_and_its_run_resumes_bit_for_bit(aux: str, tmp_path) -> None:
    fields = {"iterations": 20, "num_worlds": 32, "epochs": 4, "learning_rate": 3e-3, "aux_weight": 1.0}
    whole, part = learner_of(aux, **fields), learner_of(aux, **fields)
    reports = list(whole.train())
    errors = [report.metrics["train/aux_loss"] for report in reports]
    assert np.mean(errors[-5:]) < 0.9 * np.mean(errors[:5])
    training = part.train()
    for _ in range(5):
        next(training)
    training.close()
    part.save(tmp_path / "part")
    resumed = Learner.load(tmp_path / "part")
    assert isinstance(resumed, RL2)
    rest = [report.metrics["train/aux_loss"] for report in resumed.train()]
    assert rest == errors[5:]
    pairs = zip(whole._state()[0].items(), resumed._state()[0].items(), strict=True)
    assert all(name == other and torch.equal(one, two) for (name, one), (other, two) in pairs)


def test_its_gradient_reaches_the_memory_and_no_head_is_as_before() -> None:
    states = {aux: learner_of(aux) for aux in ("none", *PREDICTED)}
    for learner in states.values():
        list(learner.train())
    plain = states.pop("none")
    assert not [name for name in plain._state()[0] if name.startswith("auxiliary")]
    assert "aux" not in plain.config.model_dump(mode="json")
    assert "aux_weight" not in plain.config.model_dump(mode="json")
    for learner in states.values():
        assert [n for n, _ in learner.policy.named_parameters()] == [n for n, _ in plain.policy.named_parameters()]
        memories = zip(learner.policy.memory.parameters(), plain.policy.memory.parameters(), strict=True)
        assert any(not torch.equal(one, two) for one, two in memories)
        assert learner.config.model_dump(mode="json")["aux"] == learner.config.aux


def test_the_task_of_a_family_that_has_a_single_one_is_not_worth_predicting() -> None:
    with pytest.raises(
        InputError, match=r"learner\.aux: got 'task', allowed: another: the tasks of .* are all the same"
    ):
        learner_of("task", family="CartPole-v1")
