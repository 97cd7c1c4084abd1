"""Text of anybody with escapes, controls, direction marks and lone surrogates is shown in every output and obeyed in none."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import random
import re
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
from rich.text import Text
from swapped_streams import run_encoded

import main
from cli.output import Output
from cli.start import _tell_fault
from core.words.text import HarmlessStream, escape_json, harmless, no_formula, plain
from experiments.ledger.export import TABLES
from experiments.tables import TableView

MARKS = "\x1b[31mred \x1b]0;title\x07 \x9b2J \x7f\x08 \u202eevil\u202c \u2066x\u2069 \ufeff \u2028 \r"
MARKUP = "[bold red]x[/] <script>alert(1)</script> [link=file:///]y[/link]"
JOINERS = "\u200c\u200d\ufe00-\ufe0f\U000e0100-\U000e01ef"
UNSEEN = "\u200b\u200c\u200d\u200e\u200f\u061c\u2060\u2069\u034f\u115f\u3164\uffa0\ufe0f\U000e0101\U000e0041"
EVERYTHING = [
    *map(chr, range(1, 0x250)),
    *UNSEEN,
    *map(chr, range(0x2000, 0x2070)),
    *"\ue000\ufffe\U0001f469\u0633\u845b",
]


def drawn(seed: int, letters: list[str] = EVERYTHING, length: int = 40) -> str:
    """Any characters in any order, with what a terminal obeys and what nobody sees as often as letters."""
    return "".join(random.Random(seed).choices(letters, k=length))


HOSTILE = f"={MARKS} {MARKUP} x{UNSEEN} {drawn(0)}"
SURROGATE = "caf\udce9 \ud83d"

READING = [
    ["note"],
    ["tag"],
    ["runs"],
    ["campaigns"],
    ["status"],
    ["show", "c-0001"],
    ["show", "r-0001"],
    ["show", "p-0001"],
    ["show", "k-0001"],
    ["show", "v-0001"],
    ["diff", "r-0001", "r-0008", "--all"],
    ["compare", "r-0001", "r-0008", "--all"],
    ["sql", f"select text as '{MARKS}{MARKUP}', text from notes"],
    ["sql", "select * from events"],
    ["ask", "c-0001", "what is the verdict?", "--llm", "offline"],
    ["runs", "--group", "cause"],
    ["resume", "c-0001", "--dry-run"],
    ["rerun", "r-0001", "--dry-run"],
    ["transcript", "c-0001"],
    ["strategies"],
]


NUMBER = r"[-+]?[\d.]+([eE][-+]?\d+)?"


def obeyed(text: str) -> set[str]:
    """The characters of an output that a terminal could obey, or hide; what joins letters stands behind one, once."""
    text = re.sub(f"([^\\x00-\\x7f{UNSEEN}])[{JOINERS}]", r"\1", re.sub(r"(?<=[^\x00-\x7f])\ufe0f(?=\u200d)", "", text))
    return {c for c in set(text) if (not c.isprintable() and c not in "\n\t") or c in UNSEEN}


@pytest.fixture
def hostile(data: Path) -> Path:
    """The small campaign with hostile text wherever a row holds words."""
    with closing(sqlite3.connect(data / "ledger.db")) as connection:
        for (trigger,) in connection.execute("select name from sqlite_master where type = 'trigger'").fetchall():
            connection.execute(f"drop trigger {trigger}")
        connection.execute("update campaigns set goal = goal || ?, narrative = ?, llm = ?", (HOSTILE, f"one\n{HOSTILE}", HOSTILE))  # fmt: skip
        connection.execute("update campaigns set question = json_set(question, '$.goal', ?)", (HOSTILE,))
        connection.execute("update runs set proposer = ?, cause = ?", (HOSTILE, HOSTILE))
        connection.execute("update runs set status = 'failed' where id = 2")
        connection.execute("update proposals set reason = ?, predicted_effect = ?", (HOSTILE, HOSTILE))
        connection.execute("update verdicts set reason = ?, content = json_set(content, '$.reason', ?)", (MARKS, MARKS))  # fmt: skip
        connection.execute("update claims set content = json_set(content, '$.hypothesis', ?)", (MARKS,))
        connection.execute("insert into notes (target, author, text, created_at) values ('r-0001', ?, ?, '2026-01-01 00:00:00')", (HOSTILE, HOSTILE))  # fmt: skip
        connection.execute("insert into tags (target, tag, created_at) values ('r-0001', ?, '2026-01-01 00:00:00')", (HOSTILE,))  # fmt: skip
        connection.execute("insert into events (campaign_id, kind, actor, payload, created_at) values (1, 'instruct', ?, json_object('text', ?), '2026-01-01 00:00:00')", (HOSTILE, HOSTILE))  # fmt: skip
        connection.commit()
    return data


@pytest.mark.parametrize("words", READING, ids=lambda words: " ".join(words)[:24].encode("ascii", "replace").decode())
def test_no_command_shows_a_terminal_what_it_would_obey(words: list[str], hostile: Path) -> None:
    place = ["--data-dir", str(hostile)]
    answer = run_encoded([*words, *place], "latin-1")
    assert (answer.code, obeyed(answer.out + answer.error)) == (0, set()), answer
    written = run_encoded([*words, "--json", *place], "utf-8").out
    assert obeyed(written) == set()
    json.loads(written)


def test_a_note_is_shown_as_it_was_typed_and_json_keeps_its_value(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "1000")
    shown = run_encoded(["note", "--data-dir", str(hostile)], "utf-8").out
    assert r"\x1b[31mred \x1b]0;title\x07 \x9b2J \x7f\x08 \u202eevil\u202c \u2066x\u2069 \ufeff \u2028 \r" in shown
    assert MARKUP in shown  # words, and no markup of the terminal's library
    written = json.loads(run_encoded(["note", "--json", "--data-dir", str(hostile)], "utf-8").out)
    assert written[0]["note"] == HOSTILE


def test_the_report_shows_hostile_text_and_its_page_obeys_none(hostile: Path) -> None:
    assert run_encoded(["report", "c-0001", "--data-dir", str(hostile)], "utf-8").code == 0
    (html,) = hostile.rglob("report.html")
    page, markdown = html.read_text(), html.with_suffix(".md").read_text()
    assert obeyed(page) == obeyed(markdown) == set()
    assert r"\x1b[31mred" in page
    assert r"\u202eevil" in page
    assert "<script>" not in page
    assert "<script>" not in markdown
    assert page.count("<svg") == 5  # figures are markup still


def test_a_page_of_figures_shows_hostile_text_and_obeys_none(hostile: Path, tmp_path: Path) -> None:
    for suffix in ("html", "svg", "png"):
        out = tmp_path / f"all.{suffix}"
        assert run_encoded(["plot", "--out", str(out), "--data-dir", str(hostile)], "utf-8").code == 0
        if suffix != "png":
            assert obeyed(out.read_text()) == set()


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_no_exported_file_holds_what_a_terminal_would_obey(suffix: str, hostile: Path, tmp_path: Path) -> None:
    for table in set(TABLES) - {"metrics", "evals"}:  # which hold numbers, and many
        out = tmp_path / f"{table}.{suffix}"
        words = ["export", "--table", table, "--format", suffix, "--out", str(out), "--data-dir", str(hostile)]
        assert main.main(words) == 0
        assert obeyed(out.read_bytes().decode().replace("\r\n", "\n")) == set()
    if suffix == "csv":
        cells = [cell for file in tmp_path.glob("*.csv") for row in csv.reader(file.open(newline="")) for cell in row]
        assert {cell[0] for cell in cells if cell[:1] in tuple("=+-@") and not re.fullmatch(NUMBER, cell)} == set()
        assert any(cell.startswith("'=") for cell in cells)
    if suffix == "jsonl":
        assert json.loads((tmp_path / "notes.jsonl").read_text())["text"] == HOSTILE


@pytest.mark.parametrize("text", [HOSTILE, SURROGATE, "\0"])
def test_every_way_of_output_passes_through_the_one_guard(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    view = TableView(columns=(text,), rows=((text,), ("b",)), note=text)
    for output in (Output(), Output(json=True)):
        output.say(text)
        output.say(text, always=True)
        output.table(view)
        output.table(TableView(columns=(text,), rows=(), note=text))
        output.record({text: text, "a": {text: [text]}, "b": [text], "c": [{text: text}]}, text)
        output.done({text: text}, None)
        output.result({text: text}, text, Text(text), view)
    Output(quiet=True).say(text, always=True)
    printed = capsys.readouterr()
    assert obeyed(printed.out + printed.err) == set()
    printed.out.encode()  # a lone surrogate would raise here


@pytest.mark.parametrize("text", [HOSTILE, SURROGATE, "\0", "plain", "naïve – \N{ZERO WIDTH JOINER}\N{WOMAN}", "a\r\nb\tc\xa0d"])  # fmt: skip
def test_escapes_of_json_keep_the_value_and_harmless_text_stays_as_it_is_shown(text: str) -> None:
    for ascii_only in (False, True):
        escaped = escape_json(json.dumps([text], ensure_ascii=False), ascii_only=ascii_only)
        assert json.loads(escaped) == [text]
        assert not ascii_only or escaped.isascii()
    shown = harmless(text, lines=True)
    assert harmless(shown, lines=True) == shown
    assert "\n" not in harmless(text)
    assert harmless("naïve – word") == "naïve – word"


def test_an_error_shows_what_was_given_and_obeys_none_of_it(data: Path) -> None:
    for words in (["show", HOSTILE], ["run", "--spec", HOSTILE.replace("/", "")], ["--goal", HOSTILE], [HOSTILE], ["runs", "--where", HOSTILE], ["list", SURROGATE]):  # fmt: skip
        answer = run_encoded([*words, "--data-dir", str(data)], "utf-8")
        assert (answer.code, answer.out, obeyed(answer.error)) == (2, "", set())


def test_no_text_at_all_gets_past_the_guard() -> None:
    letters = [*EVERYTHING, "\0", "\ud83d", "\udce9"]
    for seed in range(400):
        text = drawn(seed, letters)
        shown = harmless(text, lines=True)
        assert (
            obeyed(shown) == obeyed(plain(text)) == obeyed(escape_json(json.dumps(text, ensure_ascii=False))) == set()
        )
        assert harmless(shown, lines=True) == shown
        assert json.loads(escape_json(json.dumps(text, ensure_ascii=False))) == text
        out = io.StringIO()
        HarmlessStream(out).write(text)
        assert out.getvalue() == shown


@pytest.mark.parametrize("text", ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u2764\ufe0f\u200d\U0001f525", "\u845b\U000e0100", "na\u00efve \u2013"])  # fmt: skip
def test_what_people_write_with_joiners_is_shown_as_they_wrote_it(text: str) -> None:
    assert harmless(text) == text
    assert harmless("r-0001" + text[-2:]) != "r-0001" or text.isascii()


@pytest.mark.parametrize(("cell", "shown"), [("=1+1", "'=1+1"), (" @a", "' @a"), ("-x", "'-x"), ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"), ("\uff1da", "'\uff1da"), ("-5.2e-3", "-5.2e-3"), ("a=b", "a=b"), ("", "")])  # fmt: skip
def test_words_in_a_cell_are_no_formula_and_numbers_stay_numbers(cell: str, shown: str) -> None:
    assert no_formula(cell) == shown


def test_a_traceback_a_warning_and_a_parsers_complaint_are_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise RuntimeError(HOSTILE)
    except RuntimeError as fault:
        _tell_fault(type(fault), fault, fault.__traceback__)
    assert main.main(["bench", "proposers", "--no-such", HOSTILE]) == 2
    with contextlib.redirect_stderr(HarmlessStream(sys.stderr)):  # type: ignore[type-var]  # a stream by its methods
        print(HOSTILE, file=sys.stderr)
    said = capsys.readouterr().err
    assert said.count(r"\x1b[31mred") == 3
    assert obeyed(said) == set()


def test_an_export_to_optuna_holds_nothing_that_its_dashboard_or_a_terminal_would_obey(hostile: Path) -> None:
    out = hostile / "studies.db"
    answer = run_encoded(["export", "--format", "optuna", "--out", str(out), "--data-dir", str(hostile)], "utf-8")
    assert answer.code == 0, answer
    with closing(sqlite3.connect(out)) as studies:
        rows = studies.execute("select value_json from trial_user_attributes union all select value_json from study_user_attributes").fetchall()  # fmt: skip
    words = [json.loads(value) for (value,) in rows]
    assert any("alert(1)" in str(word) for word in words)  # what was said is still there to be read
    assert {mark for word in words for mark in obeyed(str(word))} == set()


def test_a_films_words_are_drawn_as_a_reader_sees_them_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np
    from PIL import ImageDraw

    from env_runner.drawing import Track
    from experiments.reading import frames

    drawn_words: list[str] = []
    draw = ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda pen, at, text, *more: (drawn_words.append(text), draw(pen, at, text, *more))[1])  # fmt: skip
    hostile_words = f"two\nlines \x1b]8;;file:///x\x07link\x1b]8;;\x07 {MARKS}"
    track = Track(hostile_words, np.array([0.0, 1.0]), unit=hostile_words)
    act = frames.Act(hostile_words, track, [0.0, 1.0])
    frames.draw_frame(frames.Sheet(hostile_words, hostile_words, (act,), 1280, 400, has_stage=False), 0, 1, None)
    assert any("link" in words for words in drawn_words)
    assert {mark for words in drawn_words for mark in obeyed(words) | ({"\n"} & set(words))} == set()
