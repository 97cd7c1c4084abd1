"""What holds for every registered learner: it says what it costs, repeats, resumes, survives divergence, learns with the right sign.

The suite is for learners from elsewhere too (`docs/extending.md`): their file's `LEARNS` says what they learn.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.errors import InputError
from core.policy import PolicyConfig
from env_runner.task_distributions import get_family
from env_runner.task_family import FAMILIES
from meta_rl.learner import (
    LEARNERS,
    DivergedError,
    Learner,
    LearnerConfig,
    TrainReport,
    build_learner,
    parse_learner_config,
)

SMALL = PolicyConfig.model_validate(
    {"model": {"kind": "lru", "hidden_dim": 8, "state_dim": 8, "num_layers": 1}, "encoder_dim": 8, "head_dim": 8}
)
TINY = {
    "rl2": {"kind": "rl2", "num_worlds": 4, "epochs": 2, "minibatches": 2},
    "maml-ppo": {"kind": "maml-ppo", "tasks_per_update": 2, "episodes_per_task": 2, "epochs": 2},
}
"""By kind: settings with which an iteration costs milliseconds; any other learner is made small by its size fields."""
EVERY = sorted(LEARNERS)
ITERATIONS = 4


def tiny(kind: str) -> LearnerConfig:
    sizes = dict.fromkeys(LEARNERS[kind].config_type.size_fields, 2)
    return parse_learner_config(TINY.get(kind, {"kind": kind, **sizes}))


def make(kind: str, iterations: int = ITERATIONS, seed: int = 0) -> Learner:
    config = tiny(kind)
    steps = config.iteration_steps(get_family("point-robot").horizon)
    return build_learner("point-robot", SMALL, config, env_steps=iterations * steps, seed=seed)


def state_of(learner: Learner) -> tuple[dict[str, torch.Tensor], dict]:
    tensors, meta = learner._state()
    return {name: value.clone() for name, value in tensors.items()}, dict(meta)


def same_state(a: tuple[dict, dict], b: tuple[dict, dict]) -> bool:
    return a[1] == b[1] and a[0].keys() == b[0].keys() and all(torch.equal(a[0][n], b[0][n]) for n in a[0])


def numbers(report: TrainReport) -> dict[str, float]:
    return {name: value for name, value in report.metrics.items() if not name.startswith("time/")}


def test_every_file_with_a_learner_can_be_imported():
    assert LEARNERS.failures == {}


@pytest.mark.parametrize("kind", EVERY)
def test_one_iteration_lives_the_env_steps_that_its_configuration_says_and_less_is_refused(kind: str):
    config, family = tiny(kind), get_family("point-robot")
    steps = config.iteration_steps(family.horizon)
    with pytest.raises(InputError, match=f"env_steps: got {steps - 1}, allowed: {steps} or more"):
        build_learner("point-robot", SMALL, config, env_steps=steps - 1, seed=0)
    assert [report.env_steps for report in make(kind, 1).train()] == [steps]
    assert [report.env_steps for report in make(kind, 3).train()] == [steps, 2 * steps, 3 * steps]


@pytest.mark.parametrize("kind", EVERY)
def test_fewer_of_its_size_fields_make_an_iteration_shorter_and_their_choices_are_known(kind: str):
    config_type = LEARNERS[kind].config_type
    config = config_type(kind=kind)
    assert config_type.size_fields
    for name in config_type.size_fields:
        value = getattr(config, name)
        larger = config.model_copy(update={name: 2 * value})
        assert config.iteration_steps(10) < larger.iteration_steps(10)
        extra = config_type.model_fields[name].json_schema_extra
        marked: Any = extra.get("search") if isinstance(extra, dict) else None
        assert marked is None or all(isinstance(choice, int) for choice in marked["choices"])


@pytest.mark.parametrize("kind", EVERY)
def test_a_unit_is_whole_iterations_of_every_choice_and_nothing_smaller_is(kind: str):
    config = tiny(kind)
    choices = {name: (1, 2, 3) for name in config.size_fields}
    sizes = [
        config.model_copy(update=dict(zip(choices, values, strict=True))).iteration_steps(7)
        for values in itertools.product(*choices.values())
    ]
    unit = config.unit_steps(7, choices)
    assert unit == next(steps for steps in range(max(sizes), 10**6) if all(steps % size == 0 for size in sizes))
    assert config.unit_steps(7, {}) == config.iteration_steps(7)


@pytest.mark.parametrize("kind", EVERY)
def test_an_evaluation_has_the_columns_that_show_what_it_was_trained_for(kind: str):
    learner = make(kind, 1)
    tasks = get_family("point-robot").eval_tasks("search")[:2]
    for episodes in {1, learner.config.evaluation_episodes}:
        result = learner.evaluate(tasks, episodes=episodes, seed=0)
        assert result.returns.shape == (2, episodes)
        assert all(values.shape == (2, episodes) for values in result.extras.values())


@pytest.mark.parametrize("kind", EVERY)
def test_the_same_seed_twice_is_bit_equal_and_another_seed_is_not(kind: str):
    first, second, other = make(kind), make(kind), make(kind, seed=1)
    reports = [[numbers(report) for report in learner.train()] for learner in (first, second, other)]
    assert len(reports[0]) == ITERATIONS
    assert reports[0] == reports[1]
    assert reports[0] != reports[2]
    assert same_state(state_of(first), state_of(second))
    assert not same_state(state_of(first), state_of(other))


@pytest.mark.parametrize("kind", EVERY)
def test_stopping_at_half_and_resuming_from_the_file_equals_an_uninterrupted_run(kind: str, tmp_path: Path):
    whole, part = make(kind), make(kind)
    all_reports = [numbers(report) for report in whole.train()]
    training = part.train()
    for _ in range(ITERATIONS // 2):
        next(training)
    training.close()
    part.save(tmp_path / "half")
    resumed = Learner.load(tmp_path / "half")
    assert [numbers(report) for report in resumed.train()] == all_reports[ITERATIONS // 2 :]
    assert same_state(state_of(whole), state_of(resumed))
    tasks = get_family("point-robot").eval_tasks("search")[:3]
    scores = [learner.evaluate(tasks, episodes=2, seed=5).returns for learner in (whole, resumed)]
    assert np.array_equal(scores[0], scores[1])


RESUME = """
import hashlib, json, sys
import torch
torch.set_num_threads(1)
from meta_rl.learner import Learner
digests = {}
for path in sys.argv[1:]:
    learner = Learner.load(path)
    for _ in learner.train():
        pass
    tensors, _ = learner._state()
    digests[learner.kind] = hashlib.sha256(b"".join(tensors[n].numpy().tobytes() for n in sorted(tensors))).hexdigest()
print(json.dumps(digests))
"""


@pytest.mark.timeout(900)
def test_a_fresh_process_resumes_every_learner_to_the_same_bits(tmp_path: Path):
    import hashlib

    expected, paths = {}, []
    for kind in EVERY:
        whole, part = make(kind), make(kind)
        list(whole.train())
        tensors, _ = whole._state()
        data = b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))
        expected[kind] = hashlib.sha256(data).hexdigest()
        training = part.train()
        next(training)
        training.close()
        part.save(tmp_path / kind)
        paths.append(str(tmp_path / kind))
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", RESUME, *paths], cwd=root, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == expected


@pytest.mark.parametrize("kind", EVERY)
def test_a_run_that_diverges_says_so_and_its_last_good_checkpoint_trains_on(kind: str, tmp_path: Path):
    learner, twin = make(kind), make(kind)
    training = learner.train()
    next(training)
    good = state_of(learner)

    def poison(optimizer: object, args: object, kwargs: object) -> None:
        with torch.no_grad():
            learner.policy.actor.weight.fill_(float("nan"))  # pyright: ignore[reportAttributeAccessIssue]

    handle = learner.optimizer.register_step_post_hook(poison)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(DivergedError):
        next(training)
    handle.remove()
    assert same_state(good, state_of(learner))
    learner.save(tmp_path / "good")
    restored = Learner.load(tmp_path / "good")
    assert len(list(restored.train())) == ITERATIONS - 1
    list(twin.train())
    assert same_state(state_of(twin), state_of(restored))


@pytest.mark.parametrize("rate", [1e6, 1e30])
def test_an_inner_rate_of_maml_ppo_that_explodes_is_a_divergence_too(rate: float):
    config = parse_learner_config({**TINY["maml-ppo"], "inner_lr": rate, "inner_steps": 3})
    learner = build_learner("point-robot", SMALL, config, env_steps=1280, seed=0)
    before = state_of(learner)
    training = learner.train()
    try:
        for _ in range(4):
            report = next(training)
            assert all(np.isfinite(value) for value in report.metrics.values())
            before = state_of(learner)
    except DivergedError:
        assert same_state(before, state_of(learner))
    except StopIteration:
        pass
    assert all(bool(torch.isfinite(value).all()) for value in state_of(learner)[0].values())


# Learning, and that it needs the right sign ------------------------------------------------------------------------------
LEARNING = {
    "rl2": (
        "point-robot",
        {"kind": "rl2", "num_worlds": 32, "epochs": 4, "minibatches": 2, "learning_rate": 3e-3, "gamma": 0.9},
        38_400,
    ),
    "maml-ppo": (
        "point-robot",
        {
            "kind": "maml-ppo",
            "tasks_per_update": 5,
            "episodes_per_task": 6,
            "epochs": 3,
            "learning_rate": 5e-3,
            "inner_lr": 0.5,
            "gamma": 0.9,
        },
        7_200,
    ),
}
"""By kind: family, settings and env steps within which it learns; any other learner's file says so in `LEARNS`."""


def returns_before_and_after(kind: str, sign: float, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    """Mean return by shot before and after training, with the rewards that it learns from times `sign`."""
    family_id, settings, env_steps = LEARNING.get(kind) or sys.modules[LEARNERS[kind].learner.__module__].LEARNS
    learner = build_learner(family_id, SMALL, parse_learner_config(settings), env_steps=env_steps, seed=0)
    module = sys.modules[type(learner).__module__]
    scaled = module.scaled_rewards
    with monkeypatch.context() as patch:
        patch.setattr(module, "scaled_rewards", lambda rewards, scale: scaled(sign * rewards, scale))
        tasks = get_family(family_id).eval_tasks("search")[::4]
        before = learner.evaluate(tasks, episodes=2, seed=0).returns.mean(0)
        for _ in learner.train():
            pass
        return before, learner.evaluate(tasks, episodes=2, seed=0).returns.mean(0)


@pytest.mark.parametrize("kind", EVERY)
def test_it_learns_a_toy_family_and_with_the_reward_flipped_it_does_not(kind: str, monkeypatch: pytest.MonkeyPatch):
    def learns(sign: float) -> bool:
        before, after = returns_before_and_after(kind, sign, monkeypatch)
        return bool(after[0] > before[0] + 2.0)

    assert learns(1.0)
    assert not learns(-1.0)


def test_one_inner_step_of_maml_ppo_helps_and_with_the_reward_flipped_it_does_not(monkeypatch: pytest.MonkeyPatch):
    def helps(sign: float) -> bool:
        _, after = returns_before_and_after("maml-ppo", sign, monkeypatch)
        return bool(after[1] > after[0] + 2.0)

    assert helps(1.0)
    assert not helps(-1.0)


# MAML for control on every family ----------------------------------------------------------------------------------------
NO_EXTRA = sorted(name for name in FAMILIES if not name.startswith("metaworld"))


@pytest.mark.parametrize("family_id", NO_EXTRA)
def test_maml_ppo_runs_on_every_family_that_needs_no_extra(family_id: str, monkeypatch: pytest.MonkeyPatch):
    family = get_family(family_id)
    if family.horizon > 100:  # the length of an episode changes no code path
        monkeypatch.setattr(family, "horizon", 20, raising=False)
    config = parse_learner_config({"kind": "maml-ppo", "tasks_per_update": 1, "episodes_per_task": 2, "epochs": 1})
    learner = build_learner(family_id, SMALL, config, env_steps=4 * family.horizon, seed=0)
    (report,) = learner.train()
    assert all(np.isfinite(value) for value in report.metrics.values())
    result = learner.evaluate(family.eval_tasks("search")[:1], episodes=2, seed=0)
    assert result.returns.shape == (1, 2)
    assert np.isfinite(result.returns).all()
