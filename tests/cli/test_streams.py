"""What a command prints reaches any terminal, pipe and encoding, and Ctrl-C is quiet from the first moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from swapped_streams import run_encoded, run_unread

from cli.terminal import emit, prepare_streams
from experiments.runs.paths import CHECKOUT

ENDLESS = "with recursive n(x) as (select 1 union all select x + 1 from n) select count(*) from n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_what_an_encoding_lacks_is_replaced_by_what_looks_like_it(encoding: str, data: Path) -> None:
    assert run_encoded(["runs", "--data-dir", str(data)], encoding).code == 0
    note = ["note", "r-0008", "naïve – “quoted” … 3 × 2 → \N{GREEK SMALL LETTER ALPHA}", "--data-dir", str(data)]
    assert run_encoded(note, encoding).code == 0
    shown = run_encoded(["note", "--data-dir", str(data)], encoding).out
    expected = {"ascii": 'naive - "quoted" ... 3 x 2 -> ?', "latin-1": 'naïve - "quoted" ... 3 × 2 -> ?', "cp1252": "naïve – “quoted” … 3 × 2 -> ?"}  # fmt: skip
    assert expected[encoding] in " ".join(shown.split())
    written = run_encoded(["note", "--json", "--data-dir", str(data)], encoding).out
    assert json.loads(written)[0]["note"] == note[2]  # JSON has escapes of its own, so nothing is lost


@pytest.mark.parametrize(("columns", "width"), [("0", None), ("-5", None), ("abc", None), ("1", "40"), ("80", "80"), ("10000", "1000"), ("9" * 5000, "1000"), ("", None), ("²", None)])  # fmt: skip
def test_a_width_that_says_nothing_goes_away_and_one_out_of_bounds_is_moved_into_them(
    columns: str, width: str | None, monkeypatch: pytest.MonkeyPatch, data: Path, capsys
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    prepare_streams()
    assert os.environ.get("COLUMNS") == width
    assert "c-0001" in run_encoded(["campaigns", "--data-dir", str(data)], "utf-8").out


@pytest.mark.parametrize("words", [["runs"], ["runs", "--json"], ["list", "benches"], ["--help"], ["completion", "--shell", "bash"]], ids=" ".join)  # fmt: skip
def test_a_reader_that_has_gone_is_no_error(words: list[str], data: Path) -> None:
    place = ["--data-dir", str(data)] if words[0] == "runs" else []
    answer = run_unread([*words, *place])
    assert (answer.code in (0, 141), answer.error) == (True, "")


@pytest.mark.parametrize("words", ["runs", "runs --json", "bench ledger --help"])
def test_nothing_fails_when_the_interpreter_ends_after_its_reader(words: str, data: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as out:
        place = [] if words.startswith("bench") else ["--data-dir", str(data)]
        call = [sys.executable, "main.py", *words.split(), *place]
        ended = subprocess.run(call, stdout=out, stderr=subprocess.PIPE, text=True, cwd=CHECKOUT, check=False)
    assert (ended.returncode in (0, 141), ended.stderr) == (True, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_under_standard_output_is_one_sentence(data: Path) -> None:
    with Path("/dev/full").open("w") as out:
        call = [sys.executable, "main.py", "runs", "--json", "--data-dir", str(data)]
        ended = subprocess.run(call, stdout=out, stderr=subprocess.PIPE, text=True, cwd=CHECKOUT, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: cannot write")
    assert ended.stderr.count("\n") == 1


def test_a_stream_that_was_closed_before_the_program_began_is_no_error(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:  # fmt: skip
    import main

    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main.main(["runs", "--data-dir", str(data)]) == 0
    assert main.main(["runs", "--json", "--data-dir", str(data)]) == 0
    assert main.main(["show", "r-9999", "--data-dir", str(data)]) == 2
    emit("x")


def test_ctrl_c_while_modules_are_loaded_ends_with_130_and_without_a_word(tmp_path: Path) -> None:
    """A module that takes long to load stands for all: the interrupt comes while it is imported."""
    started = tmp_path / "started"
    (tmp_path / "slow.py").write_text(f"import pathlib, time\npathlib.Path({str(started)!r}).touch()\ntime.sleep(60)\n")
    call = [sys.executable, "main.py", "runs", "--plugin", "slow"]
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=CHECKOUT, env=os.environ | {"PYTHONPATH": path})  # fmt: skip
    while not started.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == (b"", b"")
    assert process.returncode == 130


def test_ctrl_c_in_a_long_query_ends_with_130(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite loses what its progress handler raises, and says "interrupted" instead."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        answer = run_encoded(["sql", ENDLESS, "--data-dir", str(data)], "utf-8")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert (answer.code, answer.out, answer.error) == (130, "", "")
