"""Tuning several models with equal effort."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

import main
from core.errors import InputError
from experiments.ledger.models import Run
from experiments.ledger.store import Ledger, now
from experiments.presets import named_preset
from experiments.runs.tuning import TunedModel, effort_text, keep_preset, tune, tuning_spaces, tuning_table
from experiments.spec import RunSpec

ONLY = ["learner.learning_rate", "model.dt_min"]
BEST_RATE = 1e-3


def _spaces():
    return tuning_spaces("point-robot", ["s5", "mlp"], like=named_preset("halfcheetah-vel.s5"), only=ONLY)


class Trainer:
    """Ends queued runs with a score that only the learning rate decides, the best at BEST_RATE."""

    def __init__(self, ledger: Ledger, stop_after: int | None = None) -> None:
        self.ledger, self.rounds, self.stop_after = ledger, [], stop_after

    def __call__(self, numbers: Sequence[int]) -> None:
        if len(self.rounds) == self.stop_after:
            raise KeyboardInterrupt
        self.rounds.append(list(numbers))
        for number in numbers:
            with self.ledger.session() as session:
                run = session.get_one(Run, number)
                assert (run.purpose, run.pool, run.status) == ("manual", "search", "queued")
                run.score = -abs(math.log(run.spec["learner"]["learning_rate"] / BEST_RATE))
                run.status, run.ended_at = "done", now()


def _tune(ledger: Ledger, trainer: Trainer, trials: int = 6) -> list[TunedModel]:
    return tune(ledger, _spaces(), trainer, trials=trials, env_steps=12_800, seed=3)


def test_every_model_gets_the_same_effort_from_the_same_start(file_ledger: Ledger) -> None:
    found = _tune(file_ledger, Trainer(file_ledger))
    assert [one.model for one in found] == ["s5", "mlp"]
    runs = [[file_ledger.get_run(int(name[2:])) for name in one.runs] for one in found]
    assert {len(mine) for mine in runs} == {6}
    assert {(run.seed, run.spec["env_steps"], run.pool) for mine in runs for run in mine} == {(3, 12_800, "search")}
    first = [RunSpec.model_validate(mine[0].spec) for mine in runs]
    start = named_preset("halfcheetah-vel.s5")
    assert first[0].learner == first[1].learner == start.learner
    assert {one.policy.model.num_layers for one in first} == {start.policy.model.num_layers}
    # Only the named fields vary.
    for mine in runs:
        for run in mine:
            spec, start = json.loads(json.dumps(run.spec)), json.loads(json.dumps(mine[0].spec))
            for one in (spec, start):
                one["learner"].pop("learning_rate")
                one["policy"]["model"].pop("dt_min", None)
            assert spec == start
    for one, mine in zip(found, runs, strict=True):
        scores = [run.score or -math.inf for run in mine]
        assert one.best is not None
        assert list(one.scores) == scores
        assert scores[one.best] == max(scores) > scores[0]
        assert set(one.changes) <= set(ONLY)


def test_the_same_command_goes_on_and_takes_what_is_recorded(file_ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _tune(file_ledger, Trainer(file_ledger, stop_after=2))
    rest = Trainer(file_ledger)
    resumed = _tune(file_ledger, rest)
    assert [len(numbers) for numbers in rest.rounds] == [2, 2, 2, 2]  # the third round's rows are queued anew
    nothing = Trainer(file_ledger)
    assert _tune(file_ledger, nothing) == resumed
    assert nothing.rounds == []
    other = Ledger(f"sqlite:///{tmp_path / 'other.db'}")
    whole = _tune(other, Trainer(other))
    other.close()
    assert [(one.scores, one.spec, one.changes) for one in whole] == [
        (one.scores, one.spec, one.changes) for one in resumed
    ]


def test_what_is_found_is_kept_as_a_preset_with_its_effort(file_ledger: Ledger, tmp_path: Path) -> None:
    found = _tune(file_ledger, Trainer(file_ledger))
    for one in found:
        effort = effort_text(one, like="halfcheetah-vel.s5", models=["s5", "mlp"], only=ONLY)
        assert "6 trials of 12,800 env steps" in effort
        content = json.loads(keep_preset(one, effort, tmp_path / "new").read_text())
        assert content["effort"].startswith("Tuned")
        spec = RunSpec(
            task="point-robot", policy=content["policy"], learner=content["learner"], env_steps=12_800, seed=3
        )
        assert spec == one.spec
    rows = tuning_table(found).rows
    assert [row[0] for row in rows] == ["s5", "mlp"]


def test_a_trial_that_fails_counts_as_a_trial_and_is_named(file_ledger: Ledger) -> None:
    def fail_once(numbers: Sequence[int]) -> None:
        if first:
            Trainer(file_ledger)(numbers)
            return
        first.append(True)
        for number in numbers:
            with file_ledger.session() as session:
                run = session.get_one(Run, number)
                run.status, run.cause, run.ended_at = "failed", "no memory left", now()

    first: list[bool] = []
    found = tune(file_ledger, _spaces(), fail_once, trials=3, env_steps=12_800, seed=3)
    assert [one.scores[0] for one in found] == [None, None]
    assert all(one.best in (1, 2) and len(one.scores) == 3 for one in found)
    assert found[0].failures == ("r-0001: failed (no memory left)",)
    assert "r-0001: failed (no memory left)" in tuning_table(found).note
    again = Trainer(file_ledger)
    assert all(
        None not in one.scores for one in tune(file_ledger, _spaces(), again, trials=3, env_steps=12_800, seed=3)
    )
    assert len(again.rounds[0]) == 2


def test_bad_names_are_refused_before_anything_is_queued(file_ledger: Ledger) -> None:
    with pytest.raises(InputError, match="lstm"):
        tuning_spaces("point-robot", ["lstn"])
    with pytest.raises(InputError, match=r"learner\.learning_rate"):
        tuning_spaces("point-robot", ["s5"], only=["learner.lr"])
    with pytest.raises(InputError, match="--trials: got 0"):
        _tune(file_ledger, Trainer(file_ledger), trials=0)
    assert file_ledger.runs() == []


def test_the_command_trains_prints_and_keeps(tmp_path: Path, capsys) -> None:
    arguments = ["tune", "point-robot", "--models", "mlp", "--trials", "2", "--env-steps", "1280", "--quiet"]
    arguments += ["--like", "halfcheetah-vel.s5", "--only", "learner.learning_rate", "--keep", str(tmp_path / "kept")]
    assert main.main([*arguments, "--data-dir", str(tmp_path)]) == 0
    words = capsys.readouterr().out
    assert "mlp" in words
    assert "point-robot.mlp.json" in words
    assert main.main([*arguments, "--data-dir", str(tmp_path), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["models"][0]["runs"] == ["r-0001", "r-0002"]
    assert main.main(["tune", "point-robt", "--models", "mlp", "--data-dir", str(tmp_path)]) == 2
    assert "point-robot" in capsys.readouterr().err
