"""Facts of all commands, taken from the command line itself, so that a new command or option is held to them too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
from cyclopts import App
from swapped_streams import run_encoded, run_unread

from cli.app import app

COMMANDS: dict[str, App] = {"": app} | {name: app[name] for name in app if not name.startswith("-")}
CALLS: dict[str, list[str]] = {
    "": ["--goal", "beat LSTM on point-robot", "--env-steps", "2M", "--llm", "offline", "--dry-run"],
    "approve": ["c-0001"],
    "archive": ["r-0001"],
    "attach": ["c-0001"],
    "ask": ["c-0001", "what is the verdict?", "--llm", "offline"],
    "bench": ["ledger", "--help"],
    "campaigns": [],
    "compare": ["r-0001", "r-0008"],
    "completion": ["--shell", "bash"],
    "diff": ["r-0001", "r-0008"],
    "doctor": [],
    "evaluate": ["r-0001"],
    "extend": ["c-0001"],
    "export": [],
    "gc": [],
    "grid": ["point-robot", "--models", "lstm", "--learners", "rl2", "--env-steps", "64k", "--dry-run"],
    "instruct": ["c-0001", "narrower"],
    "list": ["models"],
    "mcp": ["--http", "0.0.0.0:1"],
    "note": [],
    "pause": ["c-0001"],
    "plot": ["c-0001"],
    "push": ["r-0001", "--to", "someone/small", "--dry-run"],
    "report": ["c-0001"],
    "rerun": ["r-0001", "--dry-run"],
    "resume": ["c-0001", "--dry-run"],
    "run": ["--preset", "point-robot.lstm", "--env-steps", "64k", "--dry-run"],
    "runs": [],
    "serve": ["--port", "0", "--dry-run"],
    "show": ["r-0001"],
    "sql": ["select 1"],
    "status": [],
    "stop": ["c-0001"],
    "strategies": [],
    "tag": [],
    "transcript": [],
    "watch": ["r-0001"],
    "tune": ["point-robot", "--models", "lstm", "--trials", "1", "--env-steps", "1"],
}
"""A call of every command that trains nothing."""
ELSEWHERE = ("bench", "completion")
"""What works on no data folder."""
SANE = (0, 1, 2, 141)


def call(name: str, data: Path) -> list[str]:
    return [*([name] if name else []), *CALLS[name], *([] if name in ELSEWHERE else ["--data-dir", str(data)])]


def test_every_command_has_a_call_here() -> None:
    assert set(CALLS) == set(COMMANDS)


@pytest.mark.parametrize("name", CALLS)
def test_every_command_works_in_every_encoding_and_width(
    name: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    for encoding, columns in (("ascii", "1"), ("latin-1", "0"), ("cp1252", "20"), ("utf-8", "10000")):
        monkeypatch.setenv("COLUMNS", columns)
        answer = run_encoded(call(name, data), encoding)
        assert answer.code in SANE[:3], answer
        assert "Traceback" not in answer.out + answer.error


@pytest.mark.parametrize("name", CALLS)
def test_every_command_ends_quietly_where_nobody_reads(name: str, data: Path) -> None:
    answer = run_unread(call(name, data))
    assert answer.code in SANE
    assert "Traceback" not in answer.error
    assert "BrokenPipe" not in answer.error


@pytest.mark.parametrize("name", [name for name in CALLS if name not in ELSEWHERE])
@pytest.mark.parametrize("place", ["below a file", "a file", "nobody's home", "an impossible name"])
def test_every_command_says_in_a_sentence_that_a_data_folder_cannot_be(name: str, place: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    folder = {"below a file": str(file / "data"), "a file": str(file), "nobody's home": "~nobody-at-all/x", "an impossible name": "x" * 4000}[place]  # fmt: skip
    answer = run_encoded([*([name] if name else []), *CALLS[name], "--data-dir", folder], "utf-8")
    if name == "doctor":  # which says it as what is wrong
        assert answer.code == 1 or answer.error.startswith("error: "), answer
    elif name not in ("", "grid", "list", "run"):  # of which these, as they are called here, need nothing of it
        assert answer.code == 2, answer
        assert answer.error.startswith("error: ")
    assert "Traceback" not in answer.out + answer.error
    assert file.read_text() == "x"


@pytest.mark.parametrize("name", ["report", "plot"])
def test_what_cannot_be_written_is_one_sentence_and_exit_2(name: str, data: Path) -> None:
    for folder in ("reports", "plots"):
        shutil.rmtree(data / folder, ignore_errors=True)
        (data / folder).write_text("a file in the way")
    answer = run_encoded(call(name, data), "utf-8")
    assert (answer.code, answer.error.count("\n")) == (2, 1), answer
    assert answer.error.startswith(("error: cannot use ", "error: --out: cannot write "))


def _numbers() -> list[tuple[str, str]]:
    """(command, option) of everything that takes a number or a count, a duration or a size in words."""
    found = []
    for name, command in COMMANDS.items():
        for argument in command.assemble_argument_collection():
            kinds = {argument.hint, *get_args(argument.hint)}
            option = next((n for n in argument.names if n.startswith("--")), None)
            counted = option in ("--env-steps", "--budget", "--memory")
            if option is not None and (kinds & {int, float} or counted):
                found.append((name, option))
    return found


NUMBERS = _numbers()
FAR = ["-1", "-1000000000000000000000000000000", "1000000000000000000000000000000", "1e400", "nan", "inf", "-inf", "", " ", "1.2.3", "0x10", "２", "1__0", "9" * 5000]  # fmt: skip


def test_the_options_with_numbers_are_found() -> None:
    assert {("", "--budget"), ("", "--seed"), ("runs", "--limit"), ("sql", "--limit"), ("run", "--seeds"), ("tune", "--trials")} <= set(NUMBERS)  # fmt: skip


@pytest.mark.parametrize(("name", "option"), NUMBERS, ids=lambda word: word or "research")
def test_a_number_at_any_distance_is_taken_or_refused_by_its_option(name: str, option: str, data: Path) -> None:
    words = list(CALLS[name])
    if option in ("--budget",):
        words = [w for w in words if w not in ("--env-steps", "2M")]
    if option in words:
        place = words.index(option)
        del words[place : place + 2]
    for value in (
        FAR if name != "tune" else [value for value in FAR if value not in ("２", "0x10")]
    ):  # so many would be trained
        called = [*([name] if name else []), *words, f"{option}={value}"]
        if name not in ELSEWHERE:
            called += ["--data-dir", str(data)]
        if name in ("evaluate", "watch"):
            called = [*called[:1], "no-such-model", *called[2:]]
        answer = run_encoded(called, "utf-8")
        assert answer.code in (0, 2), (value, answer)
        assert "Traceback" not in answer.out + answer.error, value
        if answer.code == 2 and name not in ("evaluate", "extend", "watch"):  # whose other words are refused first here
            assert option.lstrip("-") in answer.error or "NUMBER" in answer.error, (value, answer.error)


@pytest.mark.parametrize(("field", "highest"), [("seed", 2**63 - 1), ("env_steps", 10**12)])
def test_a_number_of_a_specification_has_the_range_of_what_keeps_it(field: str, highest: int, data: Path) -> None:
    def answer(value: Any) -> Any:
        words = ["run", "--preset", "point-robot.lstm", "--set", f"{field}={value}", "--dry-run", "--json"]
        return run_encoded([*words, "--data-dir", str(data)], "utf-8")

    assert json.loads(answer(highest).out)
    for beyond in (highest + 1, -1, 10**30, "1e400", "nan", "many"):
        refused = answer(beyond)
        assert refused.code == 2
        assert field in refused.error
