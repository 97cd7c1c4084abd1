"""What the presets reach on held-out tasks: rows are kept, a second call trains nothing, the table says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from core.errors import InputError
from env_runner.task_distributions import get_family
from experiments.bench.learning import MARKS, learning_table, main, read_rows, train_once
from experiments.presets import preset


def test_a_row_ends_with_the_score_on_the_held_out_tasks_that_the_learner_itself_gives() -> None:
    from meta_rl.learner import build_learner

    spec = preset("point-robot", "mlp", "rl2").model_copy(update={"env_steps": 12_800, "seed": 3})
    row = train_once(spec, "here")
    learner = build_learner(spec.task, spec.policy, spec.learner, env_steps=spec.env_steps, seed=spec.seed)
    for _ in learner.train():
        pass
    tasks = get_family("point-robot").eval_tasks("confirmation")
    assert row.points[-1].returns == tuple(learner.evaluate(tasks, episodes=1, seed=0).returns[:, 0])
    assert [p.env_steps for p in row.points] == sorted(p.env_steps for p in row.points)
    assert MARKS <= len(row.points) <= MARKS + 1
    shown = dict(zip(learning_table([row]).columns, learning_table([row]).rows[0], strict=True))
    assert shown["return"] == pytest.approx(np.mean(row.points[-1].returns), abs=0.05)
    assert shown["95 %"] == "one seed"


def test_a_second_call_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    spec = preset("point-robot", "mlp", "rl2").model_copy(update={"env_steps": 6_400, "seed": 900_000_001})
    file.write_text(train_once(spec, "here").model_dump_json() + "\n")
    before = file.read_text()
    command = ["--tasks", "point-robot", "--models", "mlp", "--seeds", "1", "--env-steps", "6400", "--out", str(file), "--json"]  # fmt: skip
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)[0]["config_hash"] == spec.config_hash
    assert file.read_text() == before


def test_bad_input_is_named_before_any_training(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="line 1"):
        read_rows(tmp_path / "rows.jsonl")
    with pytest.raises(InputError, match="lstm"):
        main(["--models", "lstmm"])
    with pytest.raises(InputError, match="halfcheetah-vel"):
        main(["--tasks", "halfcheetah-vell"])
    with pytest.raises(InputError, match="1 or more"):
        main(["--seeds", "0"])
