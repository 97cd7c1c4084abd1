"""Code from outside the tree is loaded once, known by its hash, and refused in words that name the file and the cause."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from core import plugins
from core.errors import InputError
from core.plugins import VARIABLE, load_plugin, loaded_plugins, plugins_from, registrations, unlike_recorded
from core.sequence_model import MODELS

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("plugins_loaded")
MODEL = '''
from typing import Literal

from core.recurrent import LSTM, LSTMConfig
from core.sequence_model import register_model


class Config(LSTMConfig):
    """Another."""

    kind: Literal["{kind}"] = "{kind}"


@register_model("{kind}", Config)
class Another(LSTM):
    """An LSTM by another name."""
'''


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_a_file_registers_what_it_defines_and_nothing_that_it_only_imports(tmp_path: Path) -> None:
    file = write(tmp_path, "cell.py", MODEL.format(kind="other-lstm"))
    plugin = load_plugin(file)
    assert (plugin.name, plugin.source) == ("cell", str(file))
    assert plugin.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert registrations(plugin) == {"model": ["other-lstm"]}
    assert MODELS.plugin_of("other-lstm") == plugin
    assert MODELS.plugin_of("lstm") is None
    assert plugin in loaded_plugins()


def test_a_script_that_names_itself_is_a_plugin_and_not_executed_again(tmp_path: Path) -> None:
    """What it registered is its own, with its hash, and the processes that it starts are told of it."""
    file = write(
        tmp_path,
        "own_cell.py",
        MODEL.format(kind="own-lstm")
        + """
import os
from core.plugins import VARIABLE, load_plugin, registrations
from core.sequence_model import MODELS

if __name__ == "__main__":
    plugin = load_plugin(__file__)
    assert MODELS.plugin_of("own-lstm") == plugin == load_plugin(__file__)
    print(plugin.name, plugin.sha256, registrations(plugin), os.environ[VARIABLE])
""",
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop(VARIABLE, None)
    done = subprocess.run([sys.executable, file.name], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert done.stdout == f"own_cell {digest} {{'model': ['own-lstm']}} {file}\n"
    assert load_plugin(file).sha256 == digest  # as such a process loads it


def test_a_plugin_is_loaded_once_however_often_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = tmp_path / "trace"
    file = write(tmp_path, "traced.py", f"open({str(trace)!r}, 'a').write('x')\n")
    monkeypatch.chdir(tmp_path)
    words = ["--plugin", str(file), "list", "--plugin=traced.py", "models", "--", "--plugin", "kept"]
    rest, named = plugins_from(words)
    assert rest == ["list", "models", "--", "--plugin", "kept"]
    assert [plugin.name for plugin in named] == ["traced"]
    assert load_plugin("./traced.py") is named[0]
    assert trace.read_text() == "x"
    assert os.environ[VARIABLE].split(os.pathsep) == [str(file)]


def test_processes_that_are_started_have_the_same_plugins(tmp_path: Path) -> None:
    load_plugin(write(tmp_path, "cell.py", MODEL.format(kind="other-lstm")))
    code = "import json; from core.sequence_model import MODELS; p = MODELS.plugin_of('other-lstm'); print(json.dumps([p.name, p.sha256]))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == ["cell", loaded_plugins()[0].sha256]


def test_a_plugin_of_the_environment_may_be_named_by_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, "cell.py", MODEL.format(kind="other-lstm"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "cell.py")
    plugins._all_are_loaded = False
    assert "other-lstm" in MODELS
    assert os.environ[VARIABLE] == str(file)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere.py", "'nowhere.py', allowed: a Python file that exists"),
        ("folder/", "allowed: a Python file that exists"),
        ("no_such_module", "'no_such_module', allowed: .*a module that can be imported"),
        ("core.ssm", "code from outside of the tree"),
        ("sys", "a module that is written in Python"),
    ],
)
def test_what_is_not_there_is_refused(source: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with pytest.raises(InputError, match=f"--plugin: got .*{words}"):
            plugins_from(["--plugin", source])
    assert VARIABLE not in os.environ


def test_the_option_needs_a_value() -> None:
    with pytest.raises(InputError, match="--plugin: got 'nothing', allowed: a Python file"):
        plugins_from(["list", "models", "--plugin"])


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            "import core.ssm\n\nimport no_such_package\n",
            r"line 3: ModuleNotFoundError: No module named 'no_such_package'",
        ),
        ("x = 1\ny = x / 0\n", r"line 2: ZeroDivisionError: division by zero"),
        ("def broken(:\n", r"line 1: SyntaxError: "),
        ("import sys\nsys.exit(0)\n", r"line 2: SystemExit: 0"),
        (
            MODEL.format(kind="lstm"),
            r"line 14: RuntimeError: model 'lstm' is registered twice: by core\.recurrent and by plugin_bad",
        ),
        (
            "from meta_rl.learner import LearnerConfig, register_learner\nclass C(LearnerConfig): ...\nregister_learner('c', C)\n",
            r"line 3: TypeError: C must implement iteration_steps",
        ),
    ],
    ids=["import", "error", "syntax", "exit", "taken name", "no contract"],
)
def test_an_error_while_it_is_imported_names_file_line_and_cause_and_leaves_nothing(
    text: str, cause: str, tmp_path: Path
) -> None:
    file = write(tmp_path, "bad.py", text)
    with pytest.raises(InputError, match=rf"--plugin {file} could not be loaded: .*{cause}"):
        load_plugin(file)
    assert loaded_plugins() == ()
    file.write_text(MODEL.format(kind="mended"))
    assert registrations(load_plugin(file)) == {"model": ["mended"]}


def test_a_file_that_failed_after_it_had_registered_can_be_mended(tmp_path: Path) -> None:
    file = write(tmp_path, "late.py", MODEL.format(kind="other-lstm") + "\nraise OSError('too late')\n")
    with pytest.raises(InputError, match=r"late\.py, line 18: OSError: too late"):
        load_plugin(file)
    file.write_text(MODEL.format(kind="other-lstm"))
    assert registrations(load_plugin(file)) == {"model": ["other-lstm"]}


def test_two_plugins_with_one_name_and_one_that_changed_are_refused(tmp_path: Path) -> None:
    first, second = (write(tmp_path / folder, "cell.py", MODEL.format(kind=folder)) for folder in ("a", "b"))
    load_plugin(first)
    with pytest.raises(InputError, match=rf"two plugins are called 'cell': {first} and {second}\. Rename one"):
        load_plugin(second)
    first.write_text(MODEL.format(kind="a") + "\n")
    with pytest.raises(InputError, match="changed after it had been loaded"):
        load_plugin(first)


def test_two_plugins_that_register_one_name_are_both_named(tmp_path: Path) -> None:
    load_plugin(write(tmp_path, "one.py", MODEL.format(kind="mine")))
    with pytest.raises(InputError, match="model 'mine' is registered twice: by plugin_one and by plugin_two"):
        load_plugin(write(tmp_path, "two.py", MODEL.format(kind="mine")))


def test_a_package_is_one_plugin_whose_hash_covers_all_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins_loaded
) -> None:
    write(tmp_path, "lab_of_mine/__init__.py", "from lab_of_mine import cell\n")
    cell = write(tmp_path, "lab_of_mine/cell.py", MODEL.format(kind="other-lstm"))
    monkeypatch.syspath_prepend(str(tmp_path))

    def load() -> plugins.Plugin:
        for name in [name for name in sys.modules if name.startswith("lab_of_mine")]:
            del sys.modules[name]
        return load_plugin("lab_of_mine")

    first = load()
    assert MODELS.plugin_of("other-lstm") == first
    assert registrations(first) == {"model": ["other-lstm"]}
    plugins_loaded.forget()
    assert load().sha256 == first.sha256
    plugins_loaded.forget()
    cell.write_text(cell.read_text() + "\n# changed\n")
    assert load().sha256 != first.sha256


def test_an_installed_package_names_its_plugins_as_entry_points_and_a_broken_one_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "installed_cell.py", MODEL.format(kind="installed"))
    write(tmp_path, "installed_and_broken.py", "import no_such_package\n")
    points = "[autonomous_ssm_metarl.plugins]\nbroken = installed_and_broken\ncell = installed_cell\n"
    write(tmp_path, "somebodys-1.0.dist-info/entry_points.txt", points)
    write(tmp_path, "somebodys-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: somebodys\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins._all_are_loaded = False
    assert MODELS["installed"].config_type(kind="installed").kind == "installed"
    assert [plugin.source for plugin in loaded_plugins()] == ["installed_cell"]
    assert VARIABLE not in os.environ  # other processes find it as this one did
    for _ in range(2):
        with pytest.raises(InputError, match=r"'instaled'\. Did you mean 'installed'.*installed_and_broken could not be imported: .*no_such_package"):  # fmt: skip
            MODELS["instaled"]
    assert "no_such_package" in MODELS.failures["installed_and_broken"]


def test_recorded_plugins_are_held_against_those_that_are_loaded(tmp_path: Path) -> None:
    file = write(tmp_path, "cell.py", MODEL.format(kind="other-lstm"))
    plugin = load_plugin(file)
    assert unlike_recorded({"cell": plugin.sha256}) == []
    (changed,) = unlike_recorded({"cell": "0" * 64})
    assert f"sha256 000000000000 then, {plugin.sha256[:12]} now ({file})" in changed
    assert f"provenance/{'0' * 64}/cell.py" in changed
    (missing,) = unlike_recorded({"gone": "1" * 64}, {"gone": "/there/gone.py"})
    assert (
        missing == "the plugin 'gone' (/there/gone.py, sha256 111111111111) is not loaded: add --plugin /there/gone.py"
    )
