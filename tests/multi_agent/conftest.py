"""The crew's tests run on the real lab with an executor that answers from a script; those that train are in test_real_lab.py."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import multi_agent.agents
from multi_agent.tools import environment_tool
from multi_agent.workflows import approval


@pytest.fixture(scope="module", autouse=True)
def _short_waits() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment_tool, "PROBE_S", 0.01)
        patch.setattr(approval, "POLL_S", 0.02)
        yield


@pytest.fixture
def add_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins_loaded: object
) -> Iterator[Callable[[str, str], Path]]:
    """Adds one file (stem, text) with an agent to those that the crew is made of, for one test."""
    folder = tmp_path / "more agents"
    folder.mkdir()
    added: list[str] = []

    def add(stem: str, text: str) -> Path:
        file = folder / f"{stem}.py"
        file.write_text(text)
        added.append(stem)
        monkeypatch.setattr(multi_agent.agents, "__path__", [*multi_agent.agents.__path__, str(folder)])
        return file

    yield add
    for stem in added:
        sys.modules.pop(f"multi_agent.agents.{stem}", None)
        vars(multi_agent.agents).pop(stem, None)
