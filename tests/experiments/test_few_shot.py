"""The table of a kept model's zero-shot and few-shot returns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from core.errors import InputError
from core.policy import PolicyConfig
from experiments.runs.few_shot import few_shot_table
from meta_rl.evaluate import few_shot
from meta_rl.learner import build_learner
from meta_rl.rl2 import RL2Config

SMALL = PolicyConfig.model_validate(
    {"model": {"kind": "lru", "hidden_dim": 8, "state_dim": 8, "num_layers": 1}, "encoder_dim": 8, "head_dim": 8}
)


def test_it_shows_the_raw_returns_of_every_task_and_shot_and_their_mean(tmp_path: Path) -> None:
    learner = build_learner("point-robot", SMALL, RL2Config(num_worlds=4), env_steps=80, seed=0)
    learner.save(tmp_path / "kept" / "model")
    table = few_shot_table(tmp_path / "kept", shots=(0, 2), seed=3)
    assert table.columns == ("goal_angle", "0 shots", "2 shots")
    tasks = learner.family.eval_tasks("search")  # pyright: ignore[reportAttributeAccessIssue]
    expected = few_shot(learner, tasks, shots=(0, 2), seed=3).returns
    shown = np.array([row[1:] for row in table.rows], dtype=float)
    assert len(shown) == len(tasks) + 2
    np.testing.assert_allclose(shown[: len(tasks), 1], expected[2], atol=0.006)
    np.testing.assert_allclose(shown[len(tasks)], [expected[0].mean(), expected[2].mean()], atol=0.006)
    assert "search pool" in table.note


def test_a_model_that_is_not_there_and_shots_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ls saved_models"):
        few_shot_table(tmp_path / "nothing")
    learner = build_learner("point-robot", SMALL, RL2Config(num_worlds=4), env_steps=80, seed=0)
    learner.save(tmp_path / "model")
    with pytest.raises(InputError, match="shots"):
        few_shot_table(tmp_path / "model", shots=(-1,))
    with pytest.raises(InputError, match="seed"):
        few_shot_table(tmp_path / "model", seed=-1)
