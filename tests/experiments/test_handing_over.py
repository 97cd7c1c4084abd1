"""What other programs get of the ledger, read back with their own readers and held against the rows."""

from __future__ import annotations

import base64
import importlib.util
import json
import sqlite3
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import optuna
import pytest
import yaml
from scipy import stats

import main
from core.errors import InputError
from experiments.ledger import Ledger
from experiments.metrics import WATCHED
from experiments.runs.runner import RUNG_SCORE
from experiments.serving.hub import FILES
from experiments.serving.studies import INSTALL, Studies, dashboard, write_studies
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


def test_a_trial_that_is_not_finished_holds_no_later_one_back(file: Path, tmp_path: Path) -> None:
    _change(file, "update runs set status = 'running', score = null where id = 3")  # the challenger's trial 0
    ledger = Ledger(f"sqlite:///{file}", read_only=True)
    assert write_studies(ledger, 1, tmp_path / "s.db") == 3
    studies = Studies(ledger, 1, optuna.storages.InMemoryStorage())
    assert [t.user_attrs["trial"] for t in studies.studies["challenger"].trials] == [1]
    _change(file, "update runs set status = 'done', score = -18.25 where id = 3")
    assert (studies.refresh(), studies.refresh()) == (4, 4)
    assert {t.user_attrs["trial"]: t.value for t in studies.studies["challenger"].trials}[0] == -18.25
    ledger.close()


def test_a_study_that_a_person_deletes_or_renames_stops_no_other_and_a_deleted_one_is_made_again(file: Path) -> None:
    ledger = Ledger(f"sqlite:///{file}", read_only=True)
    storage = optuna.storages.InMemoryStorage()
    studies = Studies(ledger, 1, storage)
    storage.delete_study(studies.studies["challenger"]._study_id)
    storage.delete_study(
        studies.studies["baseline"]._study_id
    )  # and renamed: the dashboard copies it under the new name
    renamed = optuna.create_study(storage=storage, study_name="c-0001 baseline")
    assert studies.refresh() == 4
    names = {
        study.study_name: len(study.get_trials()) for study in map(storage_study(storage), storage.get_all_studies())
    }
    assert names == {"c-0001 challenger": 2, "c-0001 baseline": 0, "c-0001 baseline'": 2}
    assert renamed.trials == []
    ledger.close()


def storage_study(storage: optuna.storages.BaseStorage) -> Callable[[Any], optuna.Study]:
    return lambda kept: optuna.load_study(study_name=kept.study_name, storage=storage)


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


# ---- the Hugging Face Hub -----------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as a push needs; `asked` holds every request, `refuse` is the code that it answers with instead."""

    asked: ClassVar[list[tuple[str, str, bytes]]] = []
    refuse: ClassVar[int] = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.asked.append((self.path, self.headers.get("authorization", ""), body))
        answer: dict[str, Any] = {}
        here = f"http://127.0.0.1:{self.server.server_address[1]}/someone/small"
        if self.path.endswith("/repos/create"):
            answer = {"url": here, "name": "someone/small"}
        elif "/preupload/" in self.path:
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]}  # fmt: skip
        elif "/commit/" in self.path:
            answer = {"success": True, "commitOid": "0" * 40, "commitUrl": f"{here}/commit/{'0' * 40}"}
        content = json.dumps(answer).encode()
        self.send_response(self.refuse or 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.do_POST()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def kept(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder in which every run has a kept model."""
    data = tmp_path / "data"
    (data / "models").mkdir(parents=True)
    file.rename(data / "ledger.db")
    for number in range(1, 18):
        for suffix in ("safetensors", "json"):
            (data / "models" / f"r-{number:04d}.{suffix}").write_text(f"{number} {suffix}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return data


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    Hub.asked, Hub.refuse = [], 0
    yield Hub
    server.shutdown()
    server.server_close()


def _push(data: Path, *words: str) -> int:
    return main.main(["push", *words, "--data-dir", str(data)])


def test_a_pushed_model_has_its_files_and_a_card_of_what_its_rows_say(kept: Path, hub: type[Hub], capsys) -> None:
    assert _push(kept, "r-0008", "--to", "someone/small", "--private", "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["pushed"].endswith("/someone/small/commit/" + "0" * 40)
    assert "hf_secret" not in said.out + said.err
    (made,) = [json.loads(body) for path, _, body in hub.asked if path.endswith("/repos/create")]
    assert (made["name"], made["organization"]) == ("small", "someone")
    assert made.get("private") or made.get("visibility") == "private"
    assert {token for _, token, _ in hub.asked} <= {"Bearer hf_secret", ""}
    (commit,) = [body for path, _, body in hub.asked if "/commit/" in path]
    parts = [json.loads(line)["value"] for line in commit.splitlines() if json.loads(line)["key"] == "file"]
    files = {part["path"]: base64.b64decode(part["content"]).decode() for part in parts}
    assert set(files) == set(FILES)
    assert (files["model.safetensors"], files["model.json"]) == ("8 safetensors", "8 json")
    ((spec, score),) = _rows(kept / "ledger.db", "select spec, score from runs where id = 8")
    assert json.loads(files["spec.json"]) == json.loads(spec)
    card = files["README.md"]
    ids = [
        number
        for (number,) in _rows(
            kept / "ledger.db", "select id from runs where pool = 'confirmation' and arm = 'challenger'"
        )
    ]
    scores = [
        value
        for (value,) in _rows(
            kept / "ledger.db", "select score from runs where pool = 'confirmation' and arm = 'challenger'"
        )
    ]
    low, high = stats.t.interval(0.95, len(scores) - 1, np.mean(scores), stats.sem(scores))
    assert f"| {score:.2f} | r-0008 |" in card
    assert f"| {np.mean(scores):.2f}, 95 % interval [{low:.2f}, {high:.2f}] |" in card
    assert all(f"r-{number:04d}" in card for number in ids)
    assert "Verdict v-0001: **inconclusive**" in card
    assert "Claim k-0001" in card
    metadata = yaml.safe_load(card.split("---")[1])
    (result,) = metadata["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == f"{np.mean(scores):.2f} +/- {(high - low) / 2:.2f}"
    assert "reinforcement-learning" in metadata["tags"]


def test_a_dry_push_writes_the_folder_and_speaks_to_nobody(kept: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # fmt: skip
    monkeypatch.delenv("HF_TOKEN")
    assert _push(kept, "r-0003", "--to", "someone/small", "--dry-run", "--json") == 0
    folder = Path(json.loads(capsys.readouterr().out)["folder"])
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert "One seed" in (folder / "README.md").read_text()
    assert _push(kept, str(folder), "--to", "someone/again", "--dry-run") == 0  # a folder of saved_models looks so
    assert hub.asked == []


@pytest.mark.parametrize(("words", "code", "said"), [
    (["r-0003", "--to", "no-user"], 0, "user/repo"), (["r-0003", "--to", "a/../b"], 0, "--to"), (["r-0099", "--to", "a/b"], 0, "The nearest is"),
    (["nothing", "--to", "a/b"], 0, "no folder of saved_models"), (["r-0003", "--to", "a/b"], 401, "does not know this token"),
    (["r-0003", "--to", "a/b"], 403, "may not write"), (["r-0003", "--to", "a/b"], -1, "cannot be reached"), (["r-0003", "--to", "a/b"], -2, "hf auth login"),
])  # fmt: skip
def test_a_push_that_cannot_be_is_one_sentence(words: list[str], code: int, said: str, kept: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # fmt: skip
    hub.refuse = max(code, 0)
    if code == -1:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    if code == -2:
        monkeypatch.delenv("HF_TOKEN")
    assert _push(kept, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert "hf_secret" not in error


def test_no_model_is_pushed_before_its_verdict(kept: Path, hub: type[Hub], capsys) -> None:
    _change(kept / "ledger.db", "delete from verdicts")
    assert _push(kept, "r-0008", "--to", "someone/small") == 2
    assert "before the verdict" in capsys.readouterr().err
    assert hub.asked == []
