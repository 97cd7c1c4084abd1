"""A new family, or a bridge to another library's environments, is one new file; a broken file hides no other one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NEW_FILE = """
from env_runner.task_family import register_family, register_resolver
from env_runner.toys import PointRobot


@register_family
class NearPoint(PointRobot):
    id = "near-point"
    horizon = 7


class PointFor(PointRobot):
    def __init__(self, steps: int) -> None:
        self.id, self.horizon = f"point-for:{steps}", steps


@register_resolver("point-for:3")
def point_for(family_id: str) -> PointFor | None:
    kind, _, steps = family_id.partition(":")
    return PointFor(int(steps)) if kind == "point-for" and steps.isdigit() else None
"""

LOOK = """
import json, sys
import env_runner
env_runner.__path__.append(sys.argv[1])
from env_runner.task_distributions import FAMILIES, get_family
simulator_at_import = "mujoco" in sys.modules
from core.errors import InputError

said = {}
for name in ("near-pint", "point-for:many", "halfcheetah-velocity"):
    try:
        get_family(name)
    except InputError as error:
        said[name] = str(error)
env = get_family("point-for:5").make(2)
env.reset(seed=0)
steps = [bool(env.step([[0.0, 0.0]] * 2)[3].all()) for _ in range(5)]
print(json.dumps({"simulator_at_import": simulator_at_import, "listed": list(FAMILIES), "said": said, "ends": steps,
                  "horizon": get_family("near-point").horizon, "failures": FAMILIES.failures}))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a fresh process finds that has two more files of families, one of them broken."""
    folder = tmp_path_factory.mktemp("families")
    (folder / "a_broken_bridge.py").write_text("import a_library_that_nobody_has\n")
    (folder / "near_point.py").write_text(NEW_FILE)
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(folder)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_one_new_file_is_a_listed_family(seen: dict[str, Any]):
    assert "near-point" in seen["listed"]
    assert seen["horizon"] == 7


def test_one_new_file_is_a_bridge_for_a_whole_kind_of_ids(seen: dict[str, Any]):
    assert seen["ends"] == [False, False, False, False, True]
    assert "unknown task family 'point-for:many'" in seen["said"]["point-for:many"]


def test_a_broken_file_hides_no_other_and_is_named_when_a_family_is_unknown(seen: dict[str, Any]):
    why = "ModuleNotFoundError: No module named 'a_library_that_nobody_has'"
    assert seen["failures"] == {"env_runner.a_broken_bridge": why}
    assert {"halfcheetah-vel", "point-robot", "CartPole-v1", "metaworld-ml10"} <= set(seen["listed"])
    assert "Did you mean 'near-point'?" in seen["said"]["near-pint"]
    for message in seen["said"].values():
        assert f"env_runner.a_broken_bridge could not be imported: {why}." in message


def test_no_simulator_is_loaded_before_a_family_is_asked_for(seen: dict[str, Any]):
    assert not seen["simulator_at_import"]
