"""A file is the old one or the new one, whole, whatever happens while it is written."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from core.files import replacing, write_atomic


def test_a_file_is_replaced_whole_and_its_folder_is_made(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "x.json"
    write_atomic(file, b"one")
    write_atomic(file, b"two")
    assert file.read_bytes() == b"two"
    assert [p.name for p in file.parent.iterdir()] == ["x.json"]


def test_an_error_leaves_the_old_file_and_no_partial_one(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("old")

    def write() -> None:
        with replacing(file) as partial:
            partial.write_text("new, but not whole")
            assert file.read_text() == "old"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x.csv", "old")]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_permissions_are_those_of_the_file_before_or_of_any_new_file(tmp_path: Path) -> None:
    code = "import os, pathlib; os.umask({mask}); from core.files import write_atomic; write_atomic(pathlib.Path({name!r}), b'x')"
    for mask, expected in ((0o022, 0o644), (0o077, 0o600)):
        file = tmp_path / f"{mask}"
        subprocess.run([sys.executable, "-c", code.format(mask=mask, name=str(file))], check=True)
        assert file.stat().st_mode & 0o777 == expected
    file.chmod(0o640)
    write_atomic(file, b"y")
    assert file.stat().st_mode & 0o777 == 0o640


def test_of_many_writers_at_once_one_wins_and_no_two_mix(tmp_path: Path) -> None:
    file = tmp_path / "x"
    contents = [bytes([number]) * 200_000 for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda data: write_atomic(file, data), contents))
    assert file.read_bytes() in contents
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
