"""Image, compose file, requirements and workflow hold what the project has: paths, extras, commands, options, Pythons.

No container engine runs here: the files are read, and each word of them is held against its second truth.
"""

from __future__ import annotations

import json
import re
import runpy
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from sqlalchemy.engine import make_url

from cli.app import main
from experiments.ledger.store import parse_url

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = sorted(file.parent.name for file in ROOT.glob("*/__init__.py") if file.parent.name != "tests")
LINES = [
    line
    for line in re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text()).splitlines()
    if line and not line.startswith("#")
]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
PYTHONS = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: \d\.\d+$", c)]


def instructions(name: str) -> list[str]:
    return [line.partition(" ")[2] for line in LINES if line.startswith(f"{name} ")]


def test_requirements_are_those_of_pyproject() -> None:
    made = runpy.run_path(str(ROOT / ".ci" / "requirements.py"))["requirements"]()
    assert (ROOT / "requirements.txt").read_text() == made
    assert [line for line in made.splitlines() if not line.startswith("#")] == PROJECT["dependencies"]


def test_the_image_is_built_of_every_package_and_of_nothing_that_is_not_there() -> None:
    copied = [word for words in instructions("COPY") if "--from" not in words for word in words.split()[:-1]]
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert {"main.py", "pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], *PACKAGES} <= set(copied)
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(let_in) == sorted(copied)


def test_the_image_installs_extras_that_are_there_and_pytorch_without_cuda_first() -> None:
    commands = " && ".join(instructions("RUN")).split("&&")
    installs = [command.strip() for command in commands if "pip install" in command]
    assert "https://download.pytorch.org/whl/cpu" in installs[0]
    assert any(re.match(r"torch\b", requirement) for requirement in PROJECT["dependencies"])
    extras = [extra for words in installs for group in re.findall(r"\.\[([\w,]+)\]", words) for extra in group.split(",")]  # fmt: skip
    assert extras == ["postgres"]
    assert set(extras) <= PROJECT["optional-dependencies"].keys()


def test_the_image_runs_the_installed_command_as_nobody_special_in_its_volume() -> None:
    first, last = instructions("FROM")
    stage = re.fullmatch(r"python:(\d\.\d+)-slim AS (\w+)", first)
    assert stage is not None
    assert last == f"python:{stage[1]}-slim"  # what is installed for one Python runs with it
    assert stage[1] in PYTHONS
    assert re.findall(r"--from=(\w+)", " ".join(LINES)) == [stage[2]]
    (entry,), (command,), (user,), (volume,) = (instructions(name) for name in ("ENTRYPOINT", "CMD", "USER", "VOLUME"))
    assert json.loads(entry)[0] in PROJECT["scripts"]
    assert json.loads(command) == ["--help"]
    assert user not in ("root", "0")
    assert f"chown {user}: {volume}" in " ".join(instructions("RUN"))
    assert instructions("WORKDIR")[-1] == volume  # where an installed command writes
    assert LINES.index(f"USER {user}") < LINES.index(f"ENTRYPOINT {entry}")


def test_compose_asks_a_goal_that_is_understood_of_a_ledger_that_it_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    services = COMPOSE["services"]
    research, server = services["research"], services["ledger"]["environment"]
    command = list(research["command"])
    place = command.index("--ledger")
    url = make_url(command[place + 1])
    parse_url(url)
    assert url.drivername == "postgresql+psycopg"
    assert url.host in services
    assert (url.username, url.database) == (server["POSTGRES_USER"], server["POSTGRES_DB"])
    assert research["environment"]["PGPASSWORD"] == server["POSTGRES_PASSWORD"]
    assert research["depends_on"] == {url.host: {"condition": "service_healthy"}}
    del command[place : place + 2]
    words = ["--env-steps", "20M", "--llm", "offline", "--dry-run", "--data-dir", str(tmp_path)]
    assert main([*command, *words]) == 0
    assert "Understood" in capsys.readouterr().out
    mounts = [mount.split(":") for service in services.values() for mount in service["volumes"]]
    assert {name for name, _ in mounts} == COMPOSE["volumes"].keys()
    assert instructions("VOLUME")[0] in {folder for _, folder in mounts}
    assert (ROOT / research["build"] / "Dockerfile").is_file()


def test_the_workflow_runs_the_readmes_test_command_on_every_python_that_is_named() -> None:
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text())["jobs"]["check"]
    assert job["strategy"]["matrix"]["python"] == PYTHONS
    assert all(version in SpecifierSet(PROJECT["requires-python"]) for version in PYTHONS)
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == ['pip install -e ".[dev]" && pytest']
    assert commands[0] in (ROOT / "README.md").read_text()
