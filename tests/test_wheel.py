"""What a stranger installs: the wheel holds every file of the packages, and its command works away from the checkout."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = sorted(file.parent.name for file in ROOT.glob("*/__init__.py") if file.parent.name != "tests")
COMMAND = "ssm-metarl"
GOAL = ["--goal", "beat LSTM on point-robot", "--env-steps", "1M", "--dry-run", "--llm", "offline"]
LOOK = """
import importlib.util, json, pathlib, sys
names = sys.argv[2:]
origins = {name: importlib.util.find_spec(name).origin for name in names}
from experiments.ledger import Ledger
Ledger(f"sqlite:///{sys.argv[1]}").close()
print(json.dumps(origins))
"""


@dataclass(frozen=True)
class Installed:
    """A wheel and a new environment that it is installed in; what is written goes to `folder`."""

    wheel: Path
    venv: Path
    folder: Path

    def run(self, *command: str) -> str:
        """Standard output of a program of the environment, called far from the checkout."""
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        keep["MPLCONFIGDIR"] = str(ROOT / ".pytest_cache" / "matplotlib")
        program = str(self.venv / "bin" / command[0])
        result = subprocess.run([program, *command[1:]], cwd=self.folder, env=keep, capture_output=True, text=True)
        assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-3000:]}{result.stderr[-3000:]}"
        return result.stdout


def _call(*command: str, cwd: Path) -> None:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-3000:]}{result.stderr[-3000:]}"


def _package_files(root: Path) -> dict[str, bytes]:
    files = [root / "main.py", *(file for name in PACKAGES for file in (root / name).rglob("*") if file.is_file())]
    return {f.relative_to(root).as_posix(): f.read_bytes() for f in files if "__pycache__" not in f.parts}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The source distribution, the wheel made of it, and a new environment with that wheel; all offline.

    The environment sees the libraries of this one behind its own. An editable install of the checkout is not seen: it works
    by a .pth file, and Python reads those of its own site-packages alone.
    """
    folder = tmp_path_factory.mktemp("wheel")
    source, out, venv, away = (folder / name for name in ("source", "out", "venv", "away"))
    for path in (source, out, away):
        path.mkdir()
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("main.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    _call(sys.executable, "-c", "import setuptools.build_meta as m; m.build_sdist('../out')", cwd=source)
    sdist = next(out.glob("*.tar.gz"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    _call(*pip, "wheel", "-q", "--no-index", "--no-deps", "--no-build-isolation", "-w", str(out), str(sdist), cwd=away)
    wheel = next(out.glob("*.whl"))
    _call(sys.executable, "-m", "venv", "--without-pip", str(venv), cwd=away)
    _call(*pip, "--python", str(venv / "bin" / "python"), "install", "-q", "--no-index", "--no-deps", "--no-compile", str(wheel), cwd=away)  # fmt: skip
    own = next(venv.glob("lib/python*/site-packages"))
    (own / "outer.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return Installed(wheel, venv, away)


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        inside = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
        information = {name.partition(".dist-info/")[2] for name in archive.namelist() if ".dist-info/" in name}
    assert inside == _package_files(ROOT)
    assert {"licenses/LICENSE", "entry_points.txt"} <= information


def test_what_is_no_python_is_in_the_wheel(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        names = archive.namelist()
    for folder, ending, what in [
        ("experiments/reading/templates/", ".j2", "templates of reports"),
        ("experiments/presets/", ".json", "presets"),
        ("experiments/ledger/migrations/versions/v", ".py", "migrations"),
        ("experiments/bench/data/", ".jsonl", "recorded tables"),
        ("multi_agent/agents/prompts/", ".md", "prompts"),
        ("multi_agent/llm/prices", ".json", "prices"),
        *((f"{name}/py", ".typed", "the mark of types") for name in PACKAGES),
    ]:
        assert any(name.startswith(folder) and name.endswith(ending) for name in names), what


def test_the_installed_files_are_those_that_are_imported(installed: Installed) -> None:
    ledger = installed.folder / "fresh.db"
    origins = json.loads(installed.run("python", "-c", LOOK, str(ledger), "main", *PACKAGES))
    own = next(installed.venv.glob("lib/python*/site-packages"))
    assert set(origins) == {"main", *PACKAGES}
    assert [name for name, origin in origins.items() if own not in Path(origin).parents] == []
    with closing(sqlite3.connect(ledger)) as connection:  # the migrations ran
        assert connection.execute("select count(*) from runs").fetchone() == (0,)


def test_the_installed_command_lists_the_models_of_the_checkout(installed: Installed) -> None:
    from core.sequence_model import MODELS

    listed = json.loads(installed.run(COMMAND, "list", "models", "--json"))
    assert [row["model"] for row in listed] == MODELS.names()
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].keys() == {COMMAND}


def test_the_installed_module_plans_a_goal_and_writes_nothing(installed: Installed) -> None:
    before = sorted(installed.folder.rglob("*"))
    planned = json.loads(installed.run("python", "-m", "main", *GOAL, "--json"))
    assert planned["question"]["task"] == "point-robot"
    assert planned["plan"]["budget"]["env_steps"] == 1_000_000
    assert sorted(installed.folder.rglob("*")) == before


def test_the_installed_command_reports_a_recorded_campaign(installed: Installed) -> None:
    data = installed.folder / "data"
    data.mkdir()
    dump = gzip.decompress((ROOT / "tests/experiments/data/ledger_0001.sql.gz").read_bytes())
    with closing(sqlite3.connect(data / "ledger.db")) as connection:
        connection.executescript(dump.decode())
    installed.run(COMMAND, "report", "c@last", "--data-dir", str(data))
    text = (data / "reports/c-0001/report.html").read_text()
    assert "point-robot" in text
    assert "<svg" in text
