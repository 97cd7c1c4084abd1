"""One result in three forms: a table or lines for a person, JSON for a program, next to nothing with --quiet."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime

import pytest

from cli.output import Output, broken, described_parts, narrowed
from core.config import FrozenConfig
from experiments.tables import TableView

VIEW = TableView(columns=("run", "task", "score"), rows=(("r-0001", "x", -1.5), ("r-0002", "x", 12345.0)), note="two")
EMPTY = TableView(columns=("run",), rows=(), note="Nothing here.")


class Measured(FrozenConfig):
    name: str
    values: tuple[float, ...]


def test_a_table_is_its_records_as_json_and_words_to_a_person(capsys, monkeypatch) -> None:
    Output(json=True).table(VIEW)
    assert json.loads(capsys.readouterr().out) == VIEW.records()
    monkeypatch.setenv("COLUMNS", "200")
    Output().table(VIEW)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["run", "task", "score"], ["r-0001", "x", "-1.5"], ["r-0002", "x", "12,345.0"], ["two"]]  # fmt: skip


def test_a_narrow_terminal_hears_once_what_is_the_same_in_all_rows(capsys, monkeypatch) -> None:
    assert narrowed(VIEW.columns, VIEW.rows) == (["run", "score"], [["r-0001", -1.5], ["r-0002", 12345.0]], "in all rows: task x")  # fmt: skip
    said = narrowed(("preset", "task", "model", "tuned"), (("x.lstm", "x", "lstm", True), ("y.s5", "y", "s5", False)))
    assert said == (["preset", "tuned"], [["x.lstm", True], ["y.s5", False]], "")
    monkeypatch.setenv("COLUMNS", "80")
    Output().table(VIEW)
    assert "in all rows: task x; two" in capsys.readouterr().out


def test_an_empty_table_says_why_or_shows_its_header_where_that_is_asked_for(capsys) -> None:
    Output().table(EMPTY)
    assert capsys.readouterr().out == "Nothing here.\n"
    Output().table(EMPTY, header=True)
    assert capsys.readouterr().out.split() == ["run", "Nothing", "here."]
    Output(json=True).table(EMPTY)
    assert json.loads(capsys.readouterr().out) == []


def test_a_result_is_one_json_value_or_its_parts_in_order(capsys) -> None:
    value = {"best": Measured(name="a", values=(1.0, 2.5)), "all": [Measured(name="b", values=())], "bad": math.nan}
    Output(json=True).result(value, "never printed", VIEW)
    assert json.loads(capsys.readouterr().out) == {"best": {"name": "a", "values": [1.0, 2.5]}, "all": [{"name": "b", "values": []}], "bad": "NaN"}  # fmt: skip
    Output().result(value, "first [bold]line[/bold]", EMPTY, "last")
    assert capsys.readouterr().out.splitlines() == ["first [bold]line[/bold]", "Nothing here.", "last"]


@pytest.mark.parametrize(
    ("output", "on_output", "on_error"),
    [
        (Output(), "working\nurgent\nnote: x, about: r-1\n", ""),
        (Output(quiet=True), "", "urgent\n"),
        (Output(json=True), '{\n  "note": "x",\n  "about": "r-1"\n}\n', "working\nurgent\n"),
    ],
    ids=["words", "quiet", "json"],
)
def test_words_about_the_work_never_mix_with_json_and_quiet_leaves_what_must_be_heard(
    output: Output, on_output: str, on_error: str, capsys
) -> None:
    output.say("working")
    output.say("urgent", always=True)
    output.done({"note": "x", "about": "r-1"})
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (on_output, on_error)


def test_a_described_row_shows_its_fields_then_each_part_and_no_empty_one(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    described = {
        "run": "r-0001",
        "cause": None,
        "started_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "seed": 50084019,
        "spec": {"learner": {"gamma": 0.9, "seed": 1234}},
        "evaluation": [{"episode": 0, "mean": -1.0}, {"episode": 1, "worst": [1, 2]}],
        "seeds": [1000, 2000],
        "files": [],
    }
    assert len(list(described_parts(described))) == 6
    Output().record(described, "the end")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "started at  2026-01-02 03:04:05 UTC" in lines
    assert ["seed", "50084019"] in [line.split() for line in lines]  # a name and no amount
    assert ["learner.gamma", "0.9"] in [line.split() for line in lines]
    assert ["1", "–", "1,", "2"] in [line.split() for line in lines]
    assert "seeds: 1000, 2000" in lines
    assert lines[-1] == "the end"
    assert not any("cause" in line or "files" in line for line in lines)


def test_words_are_cut_between_words_on_a_narrow_terminal_and_a_command_never() -> None:
    plan = "  confirmation  5 fresh seeds a side on the held-out tasks at 51.2k steps, judged by code"
    assert broken(plan, 100) == [plan]
    first, second = broken(plan, 60)
    assert len(first) <= 60
    assert second == " " * len("  confirmation  ") + "at 51.2k steps, judged by code"
    assert " ".join([first, second.strip()]) == plan
    goes_on = "It is kept; this goes on with it: python main.py resume c-0001 --data-dir " + "x" * 60
    assert broken(goes_on, 60) == [goes_on]
    path = "Campaign c-0001 in /" + "folder/" * 20
    assert "".join(broken(path, 60)).replace(" ", "") == path.replace(" ", "")
