"""What other programs get of the ledger, read back with their own readers and held against the rows."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest

import main
from core.errors import InputError
from experiments.ledger import Ledger
from experiments.metrics import WATCHED
from experiments.runs.runner import RUNG_SCORE
from experiments.serving.studies import INSTALL, Studies, dashboard
from experiments.serving.tensorboard import INSTALL as TENSORBOARD
from experiments.serving.tensorboard import scalars, write_event_files

ARMS = {"challenger": ["r-0003", "r-0004"], "baseline": ["r-0001", "r-0005"]}
"""The search runs of the stored campaign, in the order of their trials."""


@pytest.fixture
def file(old_ledger) -> Path:
    return old_ledger("0001")


def _change(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        for (trigger,) in connection.execute("select name from sqlite_master where type = 'trigger'").fetchall():
            connection.execute(f"drop trigger {trigger}")
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def _rows(file: Path, statement: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(statement).fetchall()


# ---- Optuna -------------------------------------------------------------------------------------------------------


def test_optunas_studies_hold_every_trial_as_its_rows_say(file: Path, tmp_path: Path, capsys) -> None:
    _change(
        file,
        "update runs set status = 'pruned', score = null where id = 4",
        f"insert into metrics (run_id, name, env_steps, value, kind) values (4, '{RUNG_SCORE}', 1280, -21.5, 'finite')",
        "update runs set status = 'failed', cause = 'out of luck', score = null where id = 5",
    )
    out = tmp_path / "new" / "studies.db"
    words = ["export", "--format", "optuna", "--out", str(out), "--json", "--ledger", f"sqlite:///{file}"]
    assert main.main(words) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(out), "trials": 4}
    for arm, runs in ARMS.items():
        study = optuna.load_study(study_name=f"c-0001 {arm}", storage=f"sqlite:///{out}")
        assert (study.direction.name, study.user_attrs["goal"]) == ("MAXIMIZE", "beat LSTM on point-robot")
        assert [t.user_attrs["run"] for t in study.trials] == runs
        for trial, run in zip(study.trials, runs, strict=True):
            ((status, score, spec),) = _rows(file, f"select status, score, spec from runs where id = {int(run[2:])}")
            state = {"done": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}[status]
            assert (trial.state.name, trial.value) == (state, score)
            slices = _rows(file, f'select "values" from proposals where campaign_id = 1 and arm = \'{arm}\' and trial = {trial.number} and not superseded')  # fmt: skip
            proposed = {name: value for (values,) in slices for name, value in json.loads(values).items()}
            proposed.pop("model.state_dim", None)  # then still scaled with the width
            assert {name: trial.params[name] for name in proposed} == proposed
            trained = json.loads(spec)["learner"]
            own = {name: value for name, value in trial.params.items() if name.startswith("learner.")}
            assert own == {name: trained[name.partition(".")[2]] for name in own}
            assert len(own) > 2
    pruned = optuna.load_study(study_name="c-0001 challenger", storage=f"sqlite:///{out}").trials[1]
    assert pruned.intermediate_values == {1280: -21.5}
    assert optuna.load_study(study_name="c-0001 baseline", storage=f"sqlite:///{out}").best_value == pytest.approx(
        -17.9, abs=0.05
    )


def test_a_study_takes_in_what_has_finished_since(file: Path) -> None:
    _change(file, "update runs set status = 'running', score = null where id = 4")
    ledger = Ledger(f"sqlite:///{file}", read_only=True)
    studies = Studies(ledger, 1, optuna.storages.InMemoryStorage())
    assert studies.refresh() == 3
    _change(file, "update runs set status = 'done', score = -18.25 where id = 4")
    assert (studies.refresh(), studies.refresh()) == (4, 4)
    assert studies.studies["challenger"].trials[1].value == -18.25
    ledger.close()


def test_a_program_that_is_not_installed_is_named_with_the_line_that_installs_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setitem(__import__("sys").modules, "optuna_dashboard", None)
    ledger = Ledger(f"sqlite:///{file}", read_only=True)
    with pytest.raises(InputError, match=INSTALL.replace("[", r"\[").replace("]", r"\]")):
        dashboard(ledger, 1)
    ledger.close()


@pytest.mark.skipif(importlib.util.find_spec("optuna_dashboard") is None, reason=f"optuna-dashboard is not installed: {INSTALL}")  # fmt: skip
def test_optunas_dashboard_shows_the_studies(file: Path) -> None:
    from starlette.testclient import TestClient

    ledger = Ledger(f"sqlite:///{file}", read_only=True)
    answer = TestClient(dashboard(ledger, 1)).get("/api/studies")
    assert sorted(study["study_name"] for study in answer.json()["study_summaries"]) == [
        "c-0001 baseline",
        "c-0001 challenger",
    ]
    ledger.close()


@pytest.mark.parametrize(
    "words", [["--table", "evals"], ["--where", "model=s5"], ["--campaign", "c-0009"], ["--out", "/proc/no/such.db"]]
)
def test_an_export_to_optuna_that_cannot_be_is_one_sentence(words: list[str], file: Path, capsys) -> None:
    assert main.main(["export", "--format", "optuna", *words, "--ledger", f"sqlite:///{file}"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


# ---- TensorBoard --------------------------------------------------------------------------------------------------


def _events(folder: Path) -> list[Any]:
    """Every event of a run's one file: records of a length, its checksum, the data and theirs (the TFRecord format)."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportMissingImports]
    from tensorboardX.record_writer import masked_crc32c  # pyright: ignore[reportMissingImports]

    (file,) = folder.iterdir()
    data, place, events = file.read_bytes(), 0, []
    while place < len(data):
        (length, check) = struct.unpack_from("<QI", data, place)
        content = data[place + 12 : place + 12 + length]
        (of_content,) = struct.unpack_from("<I", data, place + 12 + length)
        assert (check, of_content) == (masked_crc32c(data[place : place + 8]), masked_crc32c(content))
        events.append(Event.FromString(content))
        place += 16 + length
    return events


needs_tensorboard = pytest.mark.skipif(importlib.util.find_spec("tensorboardX") is None, reason=f"tensorboardX is not installed: {TENSORBOARD}")  # fmt: skip


@needs_tensorboard
def test_event_files_hold_every_number_of_a_run_at_its_env_steps(file: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "events"
    words = [
        "export",
        "--format",
        "tensorboard",
        "--where",
        "run=r-0003",
        "--out",
        str(out),
        "--json",
        "--ledger",
        f"sqlite:///{file}",
    ]
    for _ in range(2):  # the second takes the first one's place
        assert main.main(words) == 0
        assert json.loads(capsys.readouterr().out) == {"folder": str(out), "runs": 1}
    assert [path.name for path in out.iterdir()] == ["r-0003"]
    events = _events(out / "r-0003")
    found = {(v.tag, e.step): v.simple_value for e in events for v in e.summary.value if v.WhichOneof("value") == "simple_value"}  # fmt: skip
    rows = _rows(file, "select name, env_steps, value from metrics where run_id = 3")
    rows += _rows(file, "select 'eval/' || name || '_episode_' || (episode + 1), 2560, avg(value) from evals where run_id = 3 group by name, episode")  # fmt: skip
    assert ("rollout/ep_rew_mean", 1280) in found or ("rollout/ep_rew_mean", 2560) in found
    assert ("eval/return_episode_1", 2560) in found
    assert found == {(name, step): pytest.approx(value, rel=1e-6) for name, step, value in rows}
    times = [e.wall_time for e in events[1:] if e.HasField("summary") and e.step]
    ((began, ended),) = _rows(file, "select unixepoch(started_at), unixepoch(ended_at) from runs where id = 3")
    assert all(began <= moment <= ended + 1 for moment in times)


@needs_tensorboard
def test_an_event_file_has_the_hyperparameters_and_what_they_came_to(file: Path, tmp_path: Path) -> None:
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData  # pyright: ignore[reportMissingImports]

    ledger = Ledger(f"sqlite:///{file}", read_only=True)
    out = tmp_path / "events"
    assert write_event_files(ledger, out, campaign=1) == 17
    assert len(list(out.iterdir())) == 17
    contents = [HParamsPluginData.FromString(v.metadata.plugin_data.content) for e in _events(out / "r-0003") for v in e.summary.value if v.metadata.plugin_data.plugin_name == "hparams"]  # fmt: skip
    said = {name: getattr(value, value.WhichOneof("kind")) for content in contents for name, value in content.session_start_info.hparams.items()}  # fmt: skip
    ((spec,),) = _rows(file, "select spec from runs where id = 3")
    trained = json.loads(spec)
    assert (said["policy.model.kind"], said["learner.gamma"], said["seed"]) == (
        "s5",
        trained["learner"]["gamma"],
        trained["seed"],
    )
    assert [m.name.tag for content in contents for m in content.experiment.metric_infos] == ["eval/return_episode_1"]
    ledger.close()


def test_no_score_is_handed_over_before_its_verdict(file: Path) -> None:
    ledger = Ledger(f"sqlite:///{file}", read_only=True)

    def tags() -> set[str]:
        return {tag for tag, _, _ in scalars(ledger, ledger.get_run(8)) if tag.startswith("eval/")}

    assert "eval/return_episode_1" in tags()
    _change(
        file,
        "delete from verdicts",
        f"insert into metrics (run_id, name, env_steps, value, kind) values (8, '{WATCHED}', 5120, -1, 'finite')",
    )
    assert tags() == set()
    ledger.close()
