"""For all tests: shapes and types of the engine are checked as it runs, and no connection leaves this machine."""

from __future__ import annotations

import gzip
import os
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("OMP_NUM_THREADS", "1")

# Files with numba kernels are left out: numba cannot compile a function that a checker has wrapped.
ROOT = Path(__file__).resolve().parent.parent
CHECKED = [
    f"{folder}.{file.stem}"
    for folder in ("core", "meta_rl", "adaptation")
    for file in sorted((ROOT / folder).glob("*.py"))
    if file.stem != "__init__" and "numba" not in file.read_text()
]
install_import_hook(CHECKED, "beartype.beartype")

from experiments.runs.paths import Paths  # noqa: E402

# Kernels are compiled once for all test processes and for the runs that they start.
CACHE = Paths(ROOT / ".pytest_cache", ROOT / ".pytest_cache").environment()["NUMBA_CACHE_DIR"]
os.environ.setdefault("NUMBA_CACHE_DIR", CACHE)

import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections to anything but this machine fail."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else "localhost"
        if host not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"tests make no connections: {address!r}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def old_ledger(tmp_path: Path) -> Callable[[str], Path]:
    """Makes the stored database of a released schema: one small campaign on the point robot, as it was recorded."""

    def make(schema: str) -> Path:
        path = tmp_path / f"ledger-{schema}.db"
        dump = gzip.decompress((ROOT / "tests" / "experiments" / "data" / f"ledger_{schema}.sql.gz").read_bytes())
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(dump.decode())
        return path

    return make
