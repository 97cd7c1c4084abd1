"""Policies: shapes, distributions against torch's own, steps against sequences, bad input."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical, Normal

from core.errors import InputError
from core.policy import (
    ActionSpec,
    PolicyConfig,
    PolicyInput,
    PolicyOutput,
    RecurrentPolicy,
    entropy,
    log_prob,
    mode,
    sample,
)

BATCH, TIME, OBS = 3, 6, 4


def policy_of(kind: str = "gaussian", **changes) -> RecurrentPolicy:
    privileged = changes.pop("privileged_dim", 0)
    config = PolicyConfig(model={"kind": "lru", "hidden_dim": 16, "state_dim": 8}, **{"encoder_dim": 12, **changes})
    return RecurrentPolicy(OBS, ActionSpec(kind, 2), config, privileged_dim=privileged)  # pyright: ignore


def inputs_of(*lead: int) -> PolicyInput:
    generator = torch.Generator().manual_seed(0)
    sizes = ((*lead, OBS), (*lead, 2), lead, lead)
    return PolicyInput(*(torch.randn(*size, generator=generator) for size in sizes))


@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
@pytest.mark.parametrize("changes", [{}, {"skip": False}, {"head_dim": 0}, {"privileged_dim": 5}])
def test_steps_equal_the_sequence(kind: str, changes: dict) -> None:
    policy, inputs = policy_of(kind, **changes), inputs_of(BATCH, TIME)
    privileged = torch.randn(BATCH, TIME, 5) if "privileged_dim" in changes else None
    resets = torch.zeros(BATCH, TIME)
    resets[1, 3] = 1
    whole = policy(inputs, None, resets, privileged)
    assert whole.mean_or_logits.shape == (BATCH, TIME, 2)
    assert whole.value.shape == (BATCH, TIME)
    assert (whole.log_std is None) == (kind == "categorical")
    hidden = policy.init_hidden(BATCH)
    assert hidden.shape == (BATCH, policy.hidden_size)
    for t in range(TIME):
        now = PolicyInput(*(value[:, t] for value in inputs))
        with torch.no_grad():
            step = policy(now, hidden, resets[:, t], None if privileged is None else privileged[:, t])
        hidden = step.next_hidden
        assert torch.allclose(step.mean_or_logits, whole.mean_or_logits[:, t], atol=1e-5)
        assert torch.allclose(step.value, whole.value[:, t], atol=1e-5)


def test_the_actor_never_sees_privileged_information() -> None:
    policy, inputs = policy_of(privileged_dim=5), inputs_of(BATCH, TIME)
    one, other = (policy(inputs, None, None, torch.full((BATCH, TIME, 5), value)) for value in (0.0, 1.0))
    assert torch.equal(one.mean_or_logits, other.mean_or_logits)
    assert not torch.allclose(one.value, other.value)


def test_gaussian_functions_equal_torch_distributions() -> None:
    output = PolicyOutput(
        torch.randn(BATCH, TIME, 2), torch.tensor([-0.5, 0.3]), torch.zeros(BATCH, TIME), torch.zeros(0)
    )
    assert output.log_std is not None
    truth = Normal(output.mean_or_logits, output.log_std.exp())
    action = sample(output, torch.Generator().manual_seed(0))
    assert torch.allclose(log_prob(output, action), truth.log_prob(action).sum(-1), atol=1e-5)
    assert torch.allclose(entropy(output), truth.entropy().sum(-1), atol=1e-5)
    assert torch.equal(mode(output), output.mean_or_logits)


def test_categorical_functions_equal_torch_distributions() -> None:
    output = PolicyOutput(torch.randn(BATCH, TIME, 5), None, torch.zeros(BATCH, TIME), torch.zeros(0))
    truth = Categorical(logits=output.mean_or_logits)
    action = sample(output, torch.Generator().manual_seed(0))
    assert action.shape == (BATCH, TIME)
    assert torch.allclose(log_prob(output, action), truth.log_prob(action), atol=1e-5)
    assert torch.allclose(entropy(output), truth.entropy(), atol=1e-5)
    assert torch.equal(mode(output), output.mean_or_logits.argmax(-1))


def test_samples_have_the_announced_distribution() -> None:
    logits, generator = torch.tensor([0.0, 1.0, -1.0]), torch.Generator().manual_seed(0)
    draws = sample(PolicyOutput(logits.expand(20000, 3), None, logits, logits), generator)
    assert torch.allclose(torch.bincount(draws) / 20000, logits.softmax(-1), atol=0.015)
    mean, log_std = torch.tensor([1.0, -2.0]), torch.tensor([0.5, -1.0])
    draws = sample(PolicyOutput(mean.expand(20000, 2), log_std, mean, mean), generator)
    assert torch.allclose(draws.mean(0), mean, atol=0.04)
    assert torch.allclose(draws.std(0), log_std.exp(), atol=0.03)


def test_the_same_generator_state_gives_the_same_actions() -> None:
    output = policy_of()(inputs_of(BATCH))
    one, other = (sample(output, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one, other)


def test_parameter_groups_hold_every_parameter_once() -> None:
    policy = policy_of()
    groups = policy.parameter_groups()
    assert len(groups["dynamics"]) == 6
    assert sorted(map(id, groups["dynamics"] + groups["other"])) == sorted(map(id, policy.parameters()))


def test_a_configuration_survives_json_and_has_a_schema() -> None:
    config = PolicyConfig(model={"kind": "hybrid", "blocks": ["s5", "attention"], "context": 9})  # pyright: ignore
    assert PolicyConfig.model_validate_json(config.model_dump_json()) == config
    schema = PolicyConfig.model_json_schema()
    assert len(schema["properties"]["model"]["anyOf"]) >= 9


def test_wrong_input_is_refused_by_name() -> None:
    policy, right = policy_of(), inputs_of(BATCH, TIME)
    wrong = {
        "obs": right._replace(obs=right.obs[..., :2]),
        "prev_action": right._replace(prev_action=right.prev_action[..., :1]),
        "prev_reward, prev_done": right._replace(prev_reward=right.prev_reward[:, :2]),
    }
    for name, inputs in wrong.items():
        with pytest.raises(InputError, match=f"^{name}: got"):
            policy(inputs)
    with pytest.raises(InputError, match="privileged"):
        policy(right, None, None, torch.zeros(BATCH, TIME, 1))
    with pytest.raises(InputError, match="privileged"):
        policy_of(privileged_dim=2)(right)
    with pytest.raises(InputError, match="action: got"):
        log_prob(policy(right), torch.zeros(BATCH, TIME))
    with pytest.raises(InputError, match=r"action\.size"):
        ActionSpec("gaussian", 0)
    with pytest.raises(InputError, match="obs_dim"):
        RecurrentPolicy(0, ActionSpec("gaussian", 1), PolicyConfig())
