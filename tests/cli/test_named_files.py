"""A file that a person names is read in every usual encoding and from every kind of place, or refused in one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import main

ROOT = Path(__file__).resolve().parents[2]
SPEC = json.dumps({"task": "point-robot", "policy": {"model": {"kind": "lstm"}}, "learner": {"kind": "rl2"}, "env_steps": 640, "seed": 1})  # fmt: skip
TRY = ["--dry-run", "--json"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_specification_is_read_in_every_encoding_that_says_what_it_is(
    encoding: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "spec.json"
    file.write_text(SPEC, encoding=encoding)
    assert main.main(["run", "--spec", str(file), *TRY, "--data-dir", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"task": "é"}'.encode("latin-1"), "text in UTF-8, or in UTF-16 with its mark (byte 11 of 13"),
        (bytes(range(256)), "byte 129 of 256"),
        (b"\xff\xfe\x00", "text in UTF-8, or in UTF-16"),
        (b"", "Invalid JSON"),
    ],
)
@pytest.mark.parametrize("option", ["--spec", "--question"])
def test_what_is_no_text_is_refused_with_the_place(
    option: str, content: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file.json"
    file.write_bytes(content)
    before = ["run"] if option == "--spec" else []
    assert main.main([*before, option, str(file), "--dry-run", "--data-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


@pytest.mark.parametrize("name", ["nowhere.json", ".", "a\0b", "~nobody-of-that-name/spec.json", "x" * 5000])
def test_a_name_that_cannot_be_opened_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["run", "--spec", name, "--dry-run", "--data-dir", str(tmp_path)]) == 2
    assert "error: --spec: " in capsys.readouterr().err


def test_a_pipe_and_standard_input_are_read(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, SPEC.encode())
    os.close(writing)
    place = [*TRY, "--data-dir", str(tmp_path)]
    command = [sys.executable, "main.py", "run", "--spec"]
    piped = subprocess.run([*command, f"/dev/fd/{reading}", *place], cwd=ROOT, pass_fds=[reading], capture_output=True)
    os.close(reading)
    typed = subprocess.run([*command, "-", *place], cwd=ROOT, input=SPEC.encode(), capture_output=True)
    assert (piped.returncode, typed.returncode) == (0, 0), piped.stderr + typed.stderr
    assert piped.stdout == typed.stdout != b""
