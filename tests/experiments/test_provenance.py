"""What is recorded about the code, the packages and the machine of a run, and that the code comes back from it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from core.words.text import without_password
from experiments.runs import provenance as module
from experiments.runs.provenance import checkout_and_machine, keep_patch, provenance, tree


def _git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def _checkout(folder: Path) -> Path:
    folder.mkdir()
    _git(folder, "init", "-q")
    (folder / "kept.py").write_text("a = 1\n")
    (folder / "gone.py").write_text("b = 2\n")
    _git(folder, "add", ".")
    _git(folder, "commit", "-q", "-m", "first")
    return folder


def test_a_clean_tree_is_its_commit_and_a_folder_without_git_has_none(tmp_path: Path) -> None:
    commit, patch = tree(_checkout(tmp_path / "a"))
    assert (len(commit or ""), patch) == (40, None)
    (tmp_path / "b").mkdir()
    assert tree(tmp_path / "b") == (None, None)


def test_an_installation_inside_another_repository_has_no_commit_of_it(tmp_path: Path) -> None:
    packages = _checkout(tmp_path / "a") / "environment" / "packages"
    packages.mkdir(parents=True)
    (packages / "installed.py").write_text("c = 3\n")
    (tmp_path / "a" / "kept.py").write_text("somebody else's work\n")
    assert tree(packages) == (None, None)
    (tmp_path / "a" / ".gitignore").write_text("environment/\n")
    tree.cache_clear()
    assert tree(packages) == (None, None)


def test_a_dirty_tree_comes_back_from_its_commit_and_its_patch(tmp_path: Path) -> None:
    root = _checkout(tmp_path / "a")
    _git(tmp_path, "clone", "-q", str(root), "b")
    (root / "kept.py").write_text("a = 2\nwords = 'ünïcode'\n\n")
    (root / "gone.py").unlink()
    (root / "new").mkdir()
    (root / "new" / "model.py").write_text("c = 3")
    (root / "data.bin").write_bytes(b"\x00" * 5000)  # no code, so no part of the patch
    index = (root / ".git" / "index").read_bytes()
    _, patch = tree(root)
    assert patch is not None
    assert (root / ".git" / "index").read_bytes() == index  # asking changes nothing
    (tmp_path / "patch").write_bytes(patch)
    _git(tmp_path / "b", "apply", str(tmp_path / "patch"))
    for name in ("kept.py", "new/model.py"):
        assert (tmp_path / "b" / name).read_bytes() == (root / name).read_bytes()
    assert not (tmp_path / "b" / "gone.py").exists()
    assert not (tmp_path / "b" / "data.bin").exists()


def test_the_patch_is_kept_once_under_its_hash(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "tree", lambda root: ("c" * 40, b"a patch\n"))
    checkout_and_machine.cache_clear()
    try:
        file = keep_patch(tmp_path)
        assert file is not None
        assert hashlib.sha256(file.read_bytes()).hexdigest() == file.stem == provenance()["git_patch_sha256"]
        moment = file.stat().st_mtime_ns
        assert keep_patch(tmp_path) == file
        assert file.stat().st_mtime_ns == moment
    finally:
        checkout_and_machine.cache_clear()


def test_everything_that_a_number_depends_on_is_recorded_and_is_json() -> None:
    found = json.loads(json.dumps(provenance()))
    assert found.keys() >= {"git_commit", "git_dirty", "git_patch_sha256", "python", "packages", "machine", "threads_per_run", "command"}  # fmt: skip
    assert {"torch", "numpy", "sqlalchemy"} <= found["packages"].keys()
    assert found["packages"]["numpy"] == sys.modules["numpy"].__version__
    assert found["machine"].keys() == {"system", "release", "processor", "cores"}


def test_a_password_is_not_recorded() -> None:
    assert without_password("postgresql+psycopg://me:s3cret@host/db") == "postgresql+psycopg://me:***@host/db"
    assert without_password("--ledger=postgresql://me:a:b@host/db") == "--ledger=postgresql://me:***@host/db"
    for word in ("sqlite:///runs/ledger.db", "http://localhost:8000/v1", "me@host", "beat LSTM on ant-dir"):
        assert without_password(word) == word
