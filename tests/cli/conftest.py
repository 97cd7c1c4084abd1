"""For the tests of the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def data(old_ledger, tmp_path: Path) -> Path:
    """A data folder with the stored small campaign."""
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.move(old_ledger("0001"), folder / "ledger.db")
    return folder
