"""The parts of the check that are no unit tests: lint, format, types, import contracts, the layout, the README."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _run(*command: str) -> None:
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-6000:]}{result.stderr[-2000:]}"


def test_the_code_is_linted_and_formatted() -> None:
    _run(sys.executable, "-m", "ruff", "check", ".")
    _run(sys.executable, "-m", "ruff", "format", "--check", ".")


def test_the_types_hold() -> None:
    _run(str(Path(sys.executable).parent / "basedpyright"), "--pythonpath", sys.executable, "--level", "error")


def test_imports_go_in_one_direction() -> None:
    _run(str(Path(sys.executable).parent / "lint-imports"), "--no-cache")


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "LICENSE",
        "CONTRIBUTING.md",
        "saved_models/README.md",
        "docs/architecture.md",
        "docs/commands.md",
        ".ci/run",
    ],
)
def test_the_repository_has(name: str) -> None:
    assert (ROOT / name).is_file()


def test_the_readme_has_the_two_commands_that_do_all_the_set_up() -> None:
    text = (ROOT / "README.md").read_text()
    assert 'pip install -e . && python main.py --goal "beat LSTM on halfcheetah-vel"' in text
    assert 'pip install -e ".[dev]" && pytest' in text


def test_ci_runs_the_readmes_own_test_command() -> None:
    assert 'pip install -q -e ".[dev]" && pytest' in (ROOT / ".ci/run").read_text()


def test_every_package_is_in_the_distribution() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = {name.rstrip("*") for name in settings["tool"]["setuptools"]["packages"]["find"]["include"]}
    folders = {p.parent.name for p in ROOT.glob("*/__init__.py") if p.parent.name != "tests"}
    assert folders == included
