"""For all tests: shapes and types of the engine are checked as it runs, and no connection leaves this machine."""

from __future__ import annotations

import copy
import gzip
import os
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("OMP_NUM_THREADS", "1")

# Kernels are left out: numba cannot compile a function that a checker has wrapped.
ROOT = Path(__file__).resolve().parent.parent
CHECKED = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for folder in ("core", "env_runner", "adaptation", "meta_rl")
    for file in sorted((ROOT / folder).rglob("*.py"))
    if file.stem != "__init__" and ROOT / "core" / "kernels" not in file.parents
]
install_import_hook(CHECKED, "beartype.beartype")

from experiments.runs.paths import Paths  # noqa: E402

# Kernels are compiled once for all test processes and for the runs that they start.
CACHE = Paths(ROOT / ".pytest_cache", ROOT / ".pytest_cache").environment()["NUMBA_CACHE_DIR"]
os.environ.setdefault("NUMBA_CACHE_DIR", CACHE)

import torch  # noqa: E402

torch.set_num_threads(1)


LONG = ("test_campaign.py", "test_executor.py", "test_repository.py")
"""Files of few long tests: begun first, so that no process is left alone with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)


class LoadedPlugins:
    """What is registered and loaded in this process, to be put back: for tests that load plugins."""

    def __init__(self) -> None:
        from core import plugins
        from core.sequence_model import MODELS
        from env_runner.task_family import FAMILIES, RESOLVERS
        from experiments.bench.registered import BENCHES
        from meta_rl.learner import LEARNERS
        from multi_agent.agents.agent import AGENTS

        registries = (MODELS, LEARNERS, FAMILIES, RESOLVERS, AGENTS, BENCHES)
        for registry in registries:
            registry.names()  # what is of the tree comes first
        self.state = plugins
        kept = [(r, name) for r in registries for name in ("_entries", "_origins", "_failures")]
        kept += [(plugins, name) for name in ("_loaded", "_registered", "_failures", "_all_are_loaded")]
        self.kept = [(holder, name, copy.deepcopy(getattr(holder, name)) if name == "_registered" else copy.copy(getattr(holder, name))) for holder, name in kept]  # fmt: skip
        self.named = os.environ.get(plugins.VARIABLE)

    def forget(self) -> None:
        """As if no plugin had been loaded since."""
        from env_runner.task_distributions import get_family

        for holder, name, value in self.kept:
            setattr(holder, name, copy.deepcopy(value) if name == "_registered" else copy.copy(value))
        for module in [name for name in sys.modules if name.startswith("plugin_")]:
            del sys.modules[module]
        os.environ.pop(self.state.VARIABLE, None)
        if self.named is not None:
            os.environ[self.state.VARIABLE] = self.named
        get_family.cache_clear()


@pytest.fixture
def plugins_loaded() -> Iterator[LoadedPlugins]:
    """Plugins that a test loads are gone after it; `forget()` makes them go before."""
    loaded = LoadedPlugins()
    yield loaded
    loaded.forget()


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
