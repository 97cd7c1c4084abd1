"""The compiled gradient of PPO's loss against autograd, and the flat Adam against torch's."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from core.fused.policy import CompiledActing
from core.policy import ActionSpec, PolicyConfig, PolicyInput, RecurrentPolicy, log_prob
from meta_rl.fused_ppo import FusedLoss
from meta_rl.ppo import PPOBatch, PPOConfig, make_optimizer, ppo_loss, ppo_update

N, T, D, A = 6, 11, 5, 3
MODELS = {
    "s5": {"kind": "s5", "hidden_dim": 16, "state_dim": 12},
    "s5-wide": {"kind": "s5", "hidden_dim": 16, "state_dim": 40, "discretization": "bilinear"},
    "lru": {"kind": "lru", "hidden_dim": 16, "state_dim": 32, "num_layers": 3},
    "s4d": {"kind": "s4d", "hidden_dim": 16, "state_dim": 64},
    "s4d-bilinear": {"kind": "s4d", "hidden_dim": 16, "state_dim": 32, "discretization": "bilinear", "num_layers": 1},
    "normed": {"kind": "lru", "hidden_dim": 16, "state_dim": 32, "norm": "layer"},
    "half": {"kind": "s5", "hidden_dim": 16, "state_dim": 12, "gating": "half"},
    "bounded": {"kind": "lru", "hidden_dim": 16, "state_dim": 32, "gating": "bounded"},
    "integrators": {"kind": "s5", "hidden_dim": 16, "state_dim": 16, "integrators": 0.25},
    "selective": {"kind": "s5", "hidden_dim": 16, "state_dim": 12, "selective": True},
    "another width": {"kind": "lru", "hidden_dim": 24, "state_dim": 12},
    "lstm": {"kind": "lstm", "hidden_dim": 16},
    "lstm, wider and deeper": {"kind": "lstm", "hidden_dim": 22, "num_layers": 3},
    "gru": {"kind": "gru", "hidden_dim": 24},
    "gru, narrower and deeper": {"kind": "gru", "hidden_dim": 15, "num_layers": 2},
    "diag-gru": {"kind": "diag-gru", "hidden_dim": 16},
    "diag-gru, wider and deeper": {"kind": "diag-gru", "hidden_dim": 24, "num_layers": 3},
    "mingru": {"kind": "mingru", "hidden_dim": 16},
    "minlstm": {"kind": "minlstm", "hidden_dim": 16},
    "minlstm, wider and deeper": {"kind": "minlstm", "hidden_dim": 24, "num_layers": 3},
    "mingru, wider and deeper": {"kind": "mingru", "hidden_dim": 24, "num_layers": 3},
    "slstm": {"kind": "slstm", "hidden_dim": 16},
    "transformer": {"kind": "transformer", "hidden_dim": 16},
}


def policy_of(model: dict, action: str = "gaussian", **changes) -> RecurrentPolicy:
    config = PolicyConfig.model_validate(
        {"model": model, "encoder_dim": 16, "head_dim": 24, "log_std_init": -0.7, **changes}
    )
    policy = RecurrentPolicy(D, ActionSpec(action, A), config, generator=torch.Generator().manual_seed(1))  # pyright: ignore
    with torch.no_grad():  # a fresh actor is nearly zero: its gradients would hide errors
        policy.actor.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(2))
    return policy


def batch_of(policy: RecurrentPolicy) -> PPOBatch:
    g = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(*size, generator=g)  # noqa: E731
    inputs = PolicyInput(draw(N, T, D), draw(N, T, A), draw(N, T), (draw(N, T) > 1).float())
    actions = draw(N, T, A) if policy.log_std is not None else torch.randint(A, (N, T), generator=g)
    with torch.no_grad():
        old = log_prob(policy(inputs), actions) + 0.3 * draw(N, T)  # many ratios outside the clip, on both sides
    return PPOBatch(inputs, actions, old, draw(N, T), draw(N, T), None)


def double(batch: PPOBatch) -> PPOBatch:
    actions = batch.actions if batch.actions.dtype == torch.int64 else batch.actions.double()
    inputs = PolicyInput(*(part.double() for part in batch.inputs))
    return PPOBatch(
        inputs, actions, batch.old_log_prob.double(), batch.advantages.double(), batch.returns.double(), None
    )


CASES = [(model, True, "gaussian") for model in MODELS] + [
    (model, skip, action)
    for model in ("s5", "lstm")
    for skip, action in ((False, "gaussian"), (True, "categorical"), (False, "categorical"))
]


@pytest.mark.parametrize(("model", "skip", "action"), CASES)
def test_the_compiled_gradient_equals_autograd_in_double_precision(model: str, skip: bool, action: str) -> None:
    policy = policy_of(MODELS[model], action, skip=skip)
    truth = copy.deepcopy(policy)
    batch = batch_of(policy)
    optimizer = make_optimizer(policy, PPOConfig(kind="ppo"))
    whole = (batch.inputs, batch.actions, batch.old_log_prob, batch.advantages, batch.returns)
    assert FusedLoss.allowed(policy, optimizer, None)
    fused = FusedLoss(policy, optimizer, *whole)
    # Buffers hold what an earlier and larger minibatch left.
    fused(torch.tensor([0, 1, 2, 3]), 0.2, 0.5, 0.01, np.zeros(6))
    rows, measured = torch.tensor([5, 2, 0]), np.zeros(6)
    loss, norm = fused(rows, 0.2, 0.5, 0.01, measured)

    # The plain path in double precision, where its kernels are plain operations too.
    chosen = double(batch)
    chosen = PPOBatch(
        PolicyInput(*(part[rows] for part in chosen.inputs)), chosen.actions[rows], chosen.old_log_prob[rows],
        chosen.advantages[rows], chosen.returns[rows], None,
    )  # fmt: skip
    true_loss, expected = ppo_loss(truth.double(), chosen, chosen.advantages, 0.2, 0.5, 0.01)
    true_loss.backward()
    true_norm = torch.cat([p.grad.flatten() for p in truth.parameters() if p.grad is not None]).norm()
    assert loss == pytest.approx(float(true_loss.detach()), rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(measured, [*expected.tolist(), float(true_norm)], rtol=1e-4, atol=1e-5)
    assert norm == measured[-1]
    for (name, one), other in zip(policy.named_parameters(), truth.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        error = (one.grad - other.grad).abs().max().item()
        assert error <= 1e-4 * other.grad.abs().max().item() + 1e-6, name
        assert other.grad.abs().max() > 0, name


@pytest.mark.parametrize(("model", "skip"), [(model, True) for model in MODELS] + [("s5", False)])
@torch.no_grad()
def test_compiled_acting_steps_equal_the_policy_on_the_sequence(model: str, skip: bool) -> None:
    policy = policy_of(MODELS[model], skip=skip)
    inputs = batch_of(policy).inputs
    truth = policy(inputs)
    seen = torch.cat([inputs.obs, inputs.prev_action, inputs.prev_reward[..., None], inputs.prev_done[..., None]], -1)
    acting = CompiledActing(policy, N)
    steps = [acting(np.ascontiguousarray(seen[:, t].numpy())) for t in range(T)]
    for t, (mean, value) in enumerate(steps):
        np.testing.assert_allclose(mean, truth.mean_or_logits[:, t].numpy(), atol=2e-5)
        np.testing.assert_allclose(value, truth.value[:, t].numpy(), atol=2e-5)


@pytest.mark.parametrize("kind", ["lru", "lstm", "gru", "diag-gru", "mingru", "minlstm"])
def test_a_whole_update_equals_the_same_one_by_autograd(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PPOConfig(kind="ppo", epochs=3, minibatches=4, learning_rate=1e-3)
    results = []
    for fused in (True, False):
        policy = policy_of(MODELS[kind])
        batch, optimizer = batch_of(policy), make_optimizer(policy, config)
        monkeypatch.setattr(FusedLoss, "allowed", staticmethod(lambda *_, answer=fused: answer))
        measured = ppo_update(policy, optimizer, batch, config, torch.Generator().manual_seed(0))
        results.append((measured, torch.cat([p.detach().flatten() for p in policy.parameters()])))
    (one, moved), (two, other) = results
    assert one == pytest.approx(two, rel=1e-3, abs=1e-5)
    assert (moved - other).abs().max() < 1e-4


def test_flat_adam_equals_torch_adam_and_keeps_its_groups() -> None:
    policy = policy_of(MODELS["s5"])
    twin = copy.deepcopy(policy)
    ours = make_optimizer(policy, PPOConfig(kind="ppo", dynamics_lr_scale=0.3))
    groups = twin.parameter_groups()
    theirs = torch.optim.Adam([{"params": groups["other"]}, {"params": groups["dynamics"]}], lr=1e-3, eps=1e-5)
    generator = torch.Generator().manual_seed(0)
    for step in range(5):
        for group, copied in zip(ours.param_groups, theirs.param_groups, strict=True):
            group["lr"] = copied["lr"] = 1e-3 * group["lr_scale"] / (1 + step)
            for one, two in zip(group["params"], copied["params"], strict=True):
                two.grad = torch.randn(two.shape, generator=generator)
                one.grad.copy_(2 * two.grad)
        ours.advance(0.5)
        theirs.step()
    for one, two in zip(policy.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)
    for one, two in zip(
        ours.parameters, theirs.param_groups[0]["params"] + theirs.param_groups[1]["params"], strict=True
    ):
        torch.testing.assert_close(dict(ours.state[one]), dict(theirs.state[two]), rtol=1e-4, atol=1e-7)


def test_the_whole_memory_learns_at_its_own_rate_and_everything_once() -> None:
    policy = policy_of(MODELS["s5"])
    optimizer = make_optimizer(policy, PPOConfig(kind="ppo", dynamics_lr_scale=0.5, memory_lr_scale=0.1))
    rates = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in optimizer.param_groups) == len(list(policy.parameters()))
    dynamics = {id(p) for p in policy.parameter_groups()["dynamics"]}
    memory = {id(p) for p in policy.memory.parameters()}
    for p in policy.parameters():
        assert rates[id(p)] == (0.05 if id(p) in dynamics else 0.1 if id(p) in memory else 1.0)
    plain = make_optimizer(policy_of(MODELS["s5"]), PPOConfig(kind="ppo", dynamics_lr_scale=0.5))
    assert [group["lr_scale"] for group in plain.param_groups] == [1.0, 0.5]


def test_parameters_that_were_replaced_become_views_again_with_their_values() -> None:
    policy = policy_of(MODELS["lru"])
    optimizer = make_optimizer(policy, PPOConfig(kind="ppo"))
    policy.actor.weight.data = policy.actor.weight.detach() + 1
    policy.actor.weight.grad = None
    expected = policy.actor.weight.detach().clone()
    optimizer.attach()
    assert torch.equal(policy.actor.weight, expected)
    optimizer.weights.fill(3)
    optimizer.gradients.fill(4)
    assert policy.actor.weight.grad is not None
    assert (policy.actor.weight == 3).all()
    assert (policy.actor.weight.grad == 4).all()


def test_what_acting_keeps_is_computed_again_after_a_compiled_step() -> None:
    policy = policy_of(MODELS["lru"])
    batch, config = batch_of(policy), PPOConfig(kind="ppo", epochs=1, minibatches=2)
    optimizer = make_optimizer(policy, config)
    now = PolicyInput(*(part[:, 0] for part in batch.inputs))
    with torch.no_grad():
        before = policy(now).mean_or_logits
        ppo_update(policy, optimizer, batch, config, torch.Generator().manual_seed(0))
        after = policy(now).mean_or_logits
        sequence = policy(PolicyInput(*(part[:, :1] for part in batch.inputs))).mean_or_logits[:, 0]
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, sequence, atol=1e-5, rtol=1e-4)
