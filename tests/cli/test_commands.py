"""The commands that read and tidy the ledger, as a person calls them."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

import main
from core.errors import InputError
from experiments.ledger import Ledger
from experiments.ledger.models import Campaign
from experiments.ledger.store import now
from experiments.runs.paths import CHECKOUT, Paths

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
    "campaigns": ["campaigns"],
    "show a run": ["show", "r-0008"],
    "show a campaign": ["show", "c@last"],
    "show a verdict": ["show", "v-0001"],
    "a dry rerun": ["rerun", "@best", "--seeds", "2", "--dry-run"],
    "runs of the last campaign": ["runs", "--where", "campaign=@last and score>-100"],
}


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


def test_a_run_that_would_end_on_held_out_tasks_waits_for_a_verdict_that_is_due(tmp_path: Path, capsys) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    values = {"goal": "beat LSTM on point-robot", "question": {"task": "point-robot"}, "plan": {}, "stage": "search"}
    ledger.add(Campaign(**values, seed=0, status="paused", llm="offline", provenance={}, created_at=now()))
    words = ["run", "--preset", "point-robot.lstm", "--env-steps", "64k", "--out", str(tmp_path / "folder")]
    assert "c-0001 will be judged on the confirmation tasks" in _call(capsys, tmp_path, *words, code=2)
    assert ledger.runs(None) == []


def test_a_model_that_cannot_be_kept_costs_neither_report_nor_verdict(data: Path, monkeypatch, capsys) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("experiments.reading.report.keep_model", full)
    said = _call(capsys, data, "resume", "c-0001", code=2)
    assert "INCONCLUSIVE" in said or "CONFIRMED" in said or "REFUTED" in said
    assert "the better model was not kept: [Errno 28] No space left on device" in said
    assert list(data.rglob("*.html"))


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


def test_figures_are_drawn_as_svg_png_or_html_with_the_rows_they_show(data: Path, tmp_path: Path, capsys) -> None:
    for what in ("curves", "differences", "tasks", "profile", "shots"):
        out = tmp_path / f"{what}.svg"
        found = json.loads(_call(capsys, data, "plot", "c-0001", "--what", what, "--out", str(out), "--json"))
        assert found["figures"][0]["rows"].endswith("of r-0008 to r-0017")
        assert out.read_text().startswith("<svg")
    _call(capsys, data, "plot", "--out", str(tmp_path / "all.html"))
    page = (tmp_path / "all.html").read_text()
    assert page.count("<svg") == page.count("r-0008 to r-0017") == 5
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace("http://creativecommons.org", "")  # fmt: skip
    out = tmp_path / "runs.png"
    words = _call(capsys, data, "plot", "r-0008", "r-0010", "r-0009", "--what", "shots", "--out", str(out))
    assert "evals of r-0008 to r-0010" in words
    assert out.read_bytes().startswith(b"\x89PNG")
    assert "plots/c-0001-curves.svg" in _call(capsys, data, "plot", "--quiet")


def test_a_dry_rerun_names_fresh_seeds_of_the_runs_own_pool(data: Path, capsys) -> None:
    for run, offset in (("r-0003", 0), ("r-0006", 100_000_000), ("r-0008", 200_000_000)):
        found = json.loads(_call(capsys, data, "rerun", run, "--seeds", "4", "--dry-run", "--json"))
        recorded = {row["seed"] for row in json.loads(_call(capsys, data, "runs", "--json"))}
        assert all(offset <= seed < offset + 100_000_000 and seed not in recorded for seed in found["seeds"])
        assert len(set(found["seeds"])) == 4
        assert found["expected_s"] > 0
    assert len(json.loads(_call(capsys, data, "runs", "--json"))) == 17


@pytest.mark.slow
def test_seeds_of_a_preset_are_trained_summed_up_and_reproduced(tmp_path: Path, capsys) -> None:
    """The whole way of a configuration by hand: train it on fresh seeds, then one of them again, number by number."""
    call = ("run", "--preset", "point-robot.mlp", "--seeds", "2", "--env-steps", "640", "--json")
    found = json.loads(_call(capsys, tmp_path, *call))
    scores = [row["score"] for row in found["rows"]]
    assert [row["status"] for row in found["rows"]] == ["done", "done"]
    assert found["result"]["mean"] == pytest.approx(sum(scores) / 2)
    described = json.loads(_call(capsys, tmp_path, "show", "@last", "--json"))
    patch = described["provenance"]["git_patch_sha256"]
    assert patch is None or (tmp_path / "provenance" / f"{patch}.patch").is_file()
    check = json.loads(_call(capsys, tmp_path, "rerun", "r-0002", "--check", "--json"))
    assert (check["matches"], check["rerun"]) == (True, "r-0003")
    again = json.loads(_call(capsys, tmp_path, "rerun", "r-0001", "--seeds", "2", "--dry-run", "--json"))
    assert not set(again["seeds"]) & {row["seed"] for row in found["rows"]}


def test_a_mistake_in_json_mode_leaves_standard_output_empty(data: Path, capsys) -> None:
    assert main.main(["show", "r-0099", "--json", "--data-dir", str(data)]) == 2
    assert capsys.readouterr().out == ""


def test_a_number_that_is_not_finite_is_valid_json(data: Path, capsys) -> None:
    def strict(word: str) -> float:
        raise AssertionError(word)

    found = json.loads(_call(capsys, data, "sql", "select 9e999 as x", "--json"), parse_constant=strict)
    assert found == [{"x": "Infinity"}]


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
        (["rerun", "c-0001"], "names a campaign, allowed: such as r-0042"),
        (["rerun", "r-0003", "--seeds", "2", "--check"], "the recorded configuration unchanged"),
        (["rerun", "r-0003", "--memory", "4X"], "an amount such as 4G"),
        (["plot", "r-0001", "--out", "x.pdf"], ".svg, .png, .html"),
        (["plot", "c-0001", "r-0001"], "one campaign, such as c-0001, or runs"),
        (["plot", "r-0003", "r-0008", "--what", "tasks"], "evaluated on different tasks"),
        (["plot", "r-0003", "--what", "differences"], "differences are between two sides"),
        (["plot", "--what", "pie"], "pie"),
        (["show", "r-00"], "could be r-0001, r-0002"),
        (["runs", "--where", "campaign=@lst"], "@last or @best"),
    ],
)
def test_a_mistake_is_answered_in_words_with_exit_code_2(arguments, words: str, data: Path, capsys) -> None:
    rows = (data / "ledger.db").read_bytes()
    output = _call(capsys, data, *arguments, code=2)
    assert (data / "ledger.db").read_bytes() == rows
    assert words in output
    assert "Traceback" not in output


@pytest.mark.parametrize("arguments", [["status"], ["compare", "r-1", "r-2"], ["note", "r-0001", "x"], ["archive", "r-1"], ["gc"]])  # fmt: skip
def test_without_a_ledger_they_say_how_to_start_and_create_none(arguments, tmp_path: Path, capsys) -> None:
    assert "Start one with" in _call(capsys, tmp_path / "none", *arguments, code=2)
    assert not (tmp_path / "none").exists()


def test_a_run_by_hand_ends_at_its_memory_limit(tmp_path: Path, capsys) -> None:
    arguments = ["run", "--preset", "point-robot.mlp", "--env-steps", "1M", "--memory", "50M"]
    words = _call(capsys, tmp_path, *arguments, code=1)
    assert "r-0001: failed (out of memory" in words
    assert "allowed are 50 MiB a run" in words


def test_the_ledgers_benchmark_prints_its_figures(capsys) -> None:
    assert main.main(["bench", "ledger", "--runs", "10", "--rows", "2000"]) == 0
    words = capsys.readouterr().out
    assert "10 runs; inserting 2,000 metric rows" in words
    assert "metric rows/s" in words
    assert "python main.py runs, start to end" in words


def test_a_typed_question_that_a_dry_run_printed_is_understood_as_the_goal_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--env-steps", "2M", "--llm", "offline", "--dry-run", "--json", "--data-dir", str(tmp_path / "data")]
    assert main.main(["--goal", "beat maml with fomaml on point-robot after 2 shots", *place]) == 0
    first = json.loads(capsys.readouterr().out)
    file = tmp_path / "question.json"
    file.write_text(json.dumps(first["question"]))
    assert main.main(["--question", str(file), *place]) == 0
    assert json.loads(capsys.readouterr().out) == first
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
    assert main.main(["--question", "-", *place]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert main.main(["--question", str(tmp_path / "none.json"), *place]) == 2
    assert "none.json does not exist" in capsys.readouterr().err
    assert main.main(["--question", str(file), "--goal", "x", *place]) == 2


def test_without_a_goal_the_default_one_is_researched_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["--env-steps", "2M", "--llm", "offline", "--dry-run", "--data-dir", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert 'No goal was given, so the default one is researched: "beat LSTM on halfcheetah-vel"' in said.out + said.err


@pytest.mark.parametrize("task", ["metaworld-ml10", "metaworld-ml1:no-such-task"])
def test_a_package_that_is_absent_is_said_with_its_install_command_before_anything_is_written(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "metaworld" else find(name, *rest))  # fmt: skip
    place = ["--data-dir", str(tmp_path)]
    for words in (
        ["--goal", f"beat LSTM on {task}", "--env-steps", "200M", "--llm", "offline"],
        ["run", "--preset", f"{task}.lstm", "--env-steps", "1M"],
        ["tune", task, "--models", "lstm"],
    ):
        assert main.main([*words, *place]) == 2
        assert 'pip install -e ".[metaworld]"' in capsys.readouterr().err
    assert main.main(["runs", "--json", *place]) in (0, 2)
    assert '"run"' not in capsys.readouterr().out


def test_a_replay_names_its_campaign_by_any_form_of_its_id_and_keeps_it_whole(data: Path) -> None:
    from experiments.ledger import Ledger
    from multi_agent.llm.choose import choose_llm, with_campaign

    ledger = Ledger(Paths.of(data).ledger_url)
    for name in ("@last", "c-1", "c-0001", "1"):
        assert with_campaign(choose_llm(f"replay:{name}"), ledger).name == "replay:c-0001"
    with pytest.raises(InputError, match="c-0077"):
        with_campaign(choose_llm("replay:c-77"), ledger)
    with pytest.raises(InputError, match=r"allowed: an id such as c-0007 or @last"):
        choose_llm("replay:")


def test_a_resume_keeps_the_models_address_its_keys_name_and_the_caps(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cli.options import BrainOptions
    from experiments.ledger import Ledger

    monkeypatch.setenv("MY_KEY", "canary-9a1b2c")
    ledger = Ledger(Paths.of(data).ledger_url)
    before = BrainOptions(llm="openai:mine", base_url="http://me:canary-pass@127.0.0.1:9/v1", llm_key_env="MY_KEY")
    before.keep(ledger, 1, before.choose())
    before.keep(ledger, 1, before.choose())
    kept = [event.payload for event in ledger.events(1, ["model"])]
    assert len(kept) == 1
    assert "canary" not in str(kept)
    with ledger.session() as session:
        session.get_one(Campaign, 1).llm = "openai:mine"
    again = BrainOptions().as_in(ledger, 1)
    assert again == BrainOptions("openai:mine", "http://127.0.0.1:9/v1", "MY_KEY", max_usd=1.0)
    assert BrainOptions(max_usd=3.0, max_tokens=9).as_in(ledger, 1).caps == {"max_usd": 3.0, "max_tokens": 9}
    other = BrainOptions(llm="openai:other", max_tokens=5).as_in(ledger, 1)
    assert (other.base_url, other.llm_key_env) == (None, None)
    elsewhere = BrainOptions(base_url="http://127.0.0.1:8/v1").as_in(ledger, 1)
    assert (elsewhere.base_url, elsewhere.llm_key_env) == ("http://127.0.0.1:8/v1", None)  # its key is not for that one


def test_no_library_warns_while_an_old_environment_is_planned(tmp_path: Path) -> None:
    call = ["--goal", "beat LSTM on HalfCheetah-v4", "--env-steps", "20M", "--llm", "offline", "--dry-run"]
    ended = subprocess.run([sys.executable, "main.py", *call], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert "arn" not in ended.stderr.replace("learn", "")
    assert "deprecat" not in (ended.stdout + ended.stderr).lower()
