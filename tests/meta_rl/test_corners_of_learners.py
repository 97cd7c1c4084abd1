"""At every end of what its configuration allows, a learner's weights stay finite, or it says that it diverged."""

from __future__ import annotations

import pytest
import torch
from corners import alone_and_mixed
from pydantic import ValidationError

from core.errors import InputError
from core.policy import PolicyConfig
from env_runner.task_distributions import get_family
from meta_rl.learner import LEARNERS, DivergedError, build_learner, parse_learner_config
from meta_rl.meta_maml import MAMLConfig, MetaMAML

POLICY = PolicyConfig.model_validate(
    {"model": {"kind": "lru", "hidden_dim": 2, "state_dim": 2, "num_layers": 1}, "encoder_dim": 2, "head_dim": 2}
)


def live(kind: str, mixtures: int, seed: int) -> None:
    config_type = LEARNERS[kind].config_type
    sizes = dict.fromkeys(config_type.size_fields, 1)
    few = {name: 2 for name in ("epochs", "minibatches") if name in config_type.model_fields}
    for fields in alone_and_mixed(config_type, mixtures, seed, **sizes, **few):
        fields |= {name: min(fields.get(name, 1), 2) for name in (*sizes, *few)}
        try:
            config = parse_learner_config({"kind": kind, **fields})
            steps = config.iteration_steps(get_family("point-robot").horizon)
            learner = build_learner("point-robot", POLICY, config, env_steps=2 * steps, seed=seed)
            reports = list(learner.train())
        except (InputError, DivergedError):
            continue
        assert reports, config
        assert all(torch.isfinite(value).all() for value in learner._state()[0].values()), config


@pytest.mark.parametrize("kind", sorted(LEARNERS))
def test_a_learner_at_the_ends_of_its_configuration_stays_finite_or_says_that_it_diverged(kind: str) -> None:
    live(kind, 6, 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(LEARNERS))
def test_many_mixtures_of_ends_stay_finite_or_are_said_to_diverge(kind: str) -> None:
    for seed in range(3):
        live(kind, 60, seed)


def test_a_meta_gradient_at_the_ends_of_its_configuration_is_finite_or_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    task = tuple(torch.randn(3, 2, generator=generator) for _ in range(4))
    for seed, fields in enumerate(alone_and_mixed(MAMLConfig, 20)):
        width = 2 + fields.get("context_dim", 5) * (fields.get("variant") == "cavia")
        torch.manual_seed(seed)
        network = torch.nn.Sequential(torch.nn.Linear(width, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
        try:
            maml = MetaMAML(network, config=MAMLConfig.model_validate(fields))
            loss, gradient = maml.meta_gradient([task])  # pyright: ignore[reportArgumentType]
        except (InputError, ValidationError):
            continue
        assert torch.isfinite(torch.tensor(loss)), fields
        assert all(torch.isfinite(value).all() for value in gradient.values()), fields
