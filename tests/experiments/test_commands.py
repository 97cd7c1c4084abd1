"""The commands that read and tidy the ledger, as a person calls them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import main

READING = {
    "runs": ["runs"],
    "runs in groups": ["runs", "--group", "variant", "--sort", "-score"],
    "runs by condition": ["runs", "--where", "task=point-robot and status=done", "--limit", "3"],
    "compare": ["compare", "r-0008", "r-0009"],
    "diff": ["diff", "r-0001", "r-0002"],
    "diff of everything": ["diff", "r-0001", "r-0002", "--all"],
    "status": ["status"],
    "sql": ["sql", "select model, count(*) as n from runs group by model order by model"],
    "notes": ["note"],
    "tags": ["tag"],
    "gc": ["gc"],
}


@pytest.fixture
def data(old_ledger, tmp_path: Path) -> Path:
    """A data folder with the stored small campaign."""
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.move(old_ledger("0001"), folder / "ledger.db")
    return folder


def _call(capsys: pytest.CaptureFixture[str], data: Path, *arguments: str, code: int = 0) -> str:
    found = main.main([*arguments, "--data-dir", str(data)])
    output = capsys.readouterr()
    assert found == code, output.out + output.err
    return output.out + output.err


@pytest.mark.parametrize("arguments", READING.values(), ids=READING)
def test_every_reading_command_prints_words_and_json_and_writes_nothing(arguments, data: Path, capsys) -> None:
    before = (data / "ledger.db").read_bytes()
    assert _call(capsys, data, *arguments).strip()
    json.loads(_call(capsys, data, *arguments, "--json"))
    assert (data / "ledger.db").read_bytes() == before


def test_a_comparison_says_what_differs_and_by_how_much(data: Path, capsys) -> None:
    words = _call(capsys, data, "compare", "r-0008", "r-0009")
    assert "r-0008 minus r-0009 over 40 tasks: +" in words
    assert "over 5 shared seeds: +" in words
    assert "95 % interval [" in words
    assert "spec.policy.model.state_dim" in words
    assert "spec.learner.gamma" not in words
    assert "spec.learner.gamma" in _call(capsys, data, "compare", "r-0008", "r-0009", "--all")
    found = json.loads(_call(capsys, data, "compare", "r-0008", "r-0009", "--json"))
    verdict = json.loads(_call(capsys, data, "show", "v-0001", "--json"))
    assert found["by_seed"]["difference"] == pytest.approx(verdict["effect"])  # the same rows, the same number
    assert found["by_seed"]["interval"] == pytest.approx(verdict["interval"])


def test_a_note_a_tag_and_the_archive_are_kept_and_undone(data: Path, capsys) -> None:
    assert "r-0003" in _call(capsys, data, "note", "r-0003", "looks [bold]odd[/bold]")
    assert "looks [bold]odd[/bold]" in _call(capsys, data, "note", "r-0003")
    assert json.loads(_call(capsys, data, "show", "r-0003", "--json"))["notes"][0]["text"] == "looks [bold]odd[/bold]"
    _call(capsys, data, "tag", "r-0003", "good")
    assert "good" in _call(capsys, data, "tag")
    _call(capsys, data, "tag", "r-0003", "good", "--remove")
    assert "No tags." in _call(capsys, data, "tag", "r-0003")
    _call(capsys, data, "archive", "r-0003", "r-0004")
    names = [row["run"] for row in json.loads(_call(capsys, data, "runs", "--json"))]
    assert len(names) == 15
    assert "r-0003" not in names
    assert len(json.loads(_call(capsys, data, "runs", "--all", "--json"))) == 17
    _call(capsys, data, "archive", "r-0003", "r-0004", "--undo")
    assert len(json.loads(_call(capsys, data, "runs", "--json"))) == 17


def test_an_export_goes_to_the_data_folder_or_where_it_is_told(data: Path, tmp_path: Path, capsys) -> None:
    assert "rows: 17" in _call(capsys, data, "export")
    assert (data / "exports" / "runs.csv").is_file()
    out = tmp_path / "e.jsonl"
    call = ("export", "--table", "evals", "--format", "jsonl", "--where", "arm=baseline", "--out", str(out), "--json")
    assert json.loads(_call(capsys, data, *call)) == {"file": str(out), "rows": len(out.read_text().splitlines())}


def test_gc_removes_only_with_yes(data: Path, capsys) -> None:
    model = data / "models" / "r-0001.safetensors"
    model.parent.mkdir()
    model.write_bytes(b"x" * 1_500_000)
    assert "Nothing to remove." in _call(capsys, data, "gc")
    _call(capsys, data, "archive", "r-0001")
    assert "1.5 MB of 1 runs can go" in _call(capsys, data, "gc")
    assert model.is_file()
    assert "Removed 1.5 MB" in _call(capsys, data, "gc", "--yes")
    assert not model.exists()
    assert json.loads(_call(capsys, data, "gc", "--json")) == {"removed": False, "bytes": 0, "runs": []}


def test_doctor_names_problems_with_exit_code_1_and_is_content_with_a_sound_ledger(data: Path, capsys) -> None:
    words = _call(capsys, data, "doctor", code=1)  # the models were not stored with the campaign
    assert "models/r-0001.safetensors is missing" in words
    _call(capsys, data, "archive", "c-0001")
    for number in range(1, 18):
        (data / "logs").mkdir(exist_ok=True)
        (data / "logs" / f"r-{number:04d}.log").touch()
    _call(capsys, data, "gc", "--yes")
    assert "in order" in _call(capsys, data, "doctor")
    assert json.loads(_call(capsys, data, "doctor", "--json")) == []
    (data / "ledger.db").write_bytes(b"broken" * 1000)
    assert "damaged or is no SQLite database" in _call(capsys, data, "doctor", code=1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["runs", "--where", "colour=red"], "unknown column in --where 'colour'"),
        (["runs", "--sort", "-colour"], "unknown column in --sort 'colour'"),
        (["runs", "--group", "colour"], "unknown column in --group 'colour'"),
        (["compare", "r-0001", "r-0099"], "no run r-0099"),
        (["diff", "r-0001", "c-0001"], "two runs (r-0001 r-0002) or two campaigns"),
        (["sql", "delete from runs"], "sql only reads"),
        (["note", "r-0099", "x"], "no run r-0099"),
        (["archive"], "archive: got nothing"),
        (["export", "--format", "xls"], "unknown format 'xls'"),
        (["export", "--table", "run"], "Did you mean 'runs'"),
        (["bench", "nothing"], "nothing"),
    ],
)
def test_a_mistake_is_answered_in_words_with_exit_code_2(arguments, words: str, data: Path, capsys) -> None:
    output = _call(capsys, data, *arguments, code=2)
    assert words in output
    assert "Traceback" not in output


@pytest.mark.parametrize("arguments", [["status"], ["compare", "r-1", "r-2"], ["note", "r-0001", "x"], ["archive", "r-1"], ["gc"]])  # fmt: skip
def test_without_a_ledger_they_say_how_to_start_and_create_none(arguments, tmp_path: Path, capsys) -> None:
    assert "Start one with" in _call(capsys, tmp_path / "none", *arguments, code=2)
    assert not (tmp_path / "none").exists()


def test_the_ledgers_benchmark_prints_its_figures(capsys) -> None:
    assert main.main(["bench", "ledger", "--runs", "10", "--rows", "2000"]) == 0
    words = capsys.readouterr().out
    assert "10 runs; inserting 2,000 metric rows" in words
    assert "metric rows/s" in words
    assert "python main.py runs, start to end" in words
