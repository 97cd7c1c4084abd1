"""What a number depends on besides its specification: code, packages, machine.

The patch of a tree that differs from its commit is kept once, in a file named by its hash: `provenance/SHA256.patch` in the
data folder. `git checkout COMMIT && git apply that.patch` brings the code of a run back. Plugins lie beside it as they were:
`provenance/SHA256/NAME.py`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from core.errors import InputError
from core.files import write_atomic
from core.plugins import loaded_plugins, registrations, unlike_recorded
from core.words.commands import command
from core.words.text import without_password
from env_runner.task_family import RESOLVERS
from experiments.runs.paths import CHECKOUT

PACKAGES = (
    "torch", "numpy", "mujoco", "gymnasium", "metaworld", "numba", "scipy", "optuna", "crewai", "langchain", "langchain-openai",
    "sqlalchemy", "pydantic", "safetensors", "jaxtyping",
)  # fmt: skip
WEBHOOK = "--notify"
ALWAYS_USED = ("agent", RESOLVERS.kind)  # what a campaign's plugins register that it does not name
CODE = ("*.py", "*.json", "*.toml", "*.j2", "*.md")  # new files of other kinds, such as data, are not part of the patch


def provenance() -> dict[str, Any]:
    """Git commit, dirty flag and patch hash, package versions, machine, threads, command line, and plugins where there are any.

    Each plugin: its name, what was given to `--plugin`, SHA-256, and what it registers. The rest is read once a process.
    """
    plugins = [
        {"name": p.name, "source": p.source, "sha256": p.sha256, "registers": registrations(p)}
        for p in loaded_plugins()
    ]
    return checkout_and_machine() | ({"plugins": plugins} if plugins else {})


def plugin_names(recorded: Mapping[str, Any]) -> str:
    """The plugins of a provenance with the first digits of their hashes, in words."""
    return ", ".join(f"{p['name']} {p['sha256'][:12]}" for p in recorded.get("plugins", ())) or "none"


def require_plugins(recorded: Mapping[str, Any], used: Collection[str], name: str, *, unchanged: bool = True) -> None:
    """Refuse to go on with recorded work whose plugins are not here.

    recorded: its provenance. used: the models, task and learner that it works with. name: what it is called.
    unchanged: whether they must also be what they were. Raises InputError that says which plugin to give.
    """
    needed = {
        plugin["name"]: plugin
        for plugin in recorded.get("plugins", ())
        if any(kind in ALWAYS_USED or set(names) & set(used) for kind, names in plugin["registers"].items())
    }
    present = {plugin.name for plugin in loaded_plugins()}
    digests = {n: p["sha256"] for n, p in needed.items() if unchanged or n not in present}
    problems = unlike_recorded(digests, {n: p["source"] for n, p in needed.items()})
    if problems:
        raise InputError(f"{name} needs its plugins as they were: {'; '.join(problems)}")


def other_code(recorded: Mapping[str, Any], name: str) -> str:
    """A sentence where another code than this one trained a run, by its provenance; empty where it was this one, or nobody knows."""
    now = checkout_and_machine()
    then_hash, now_hash = (str(record.get("git_commit") or "")[:12] for record in (recorded, now))
    patched = recorded.get("git_patch_sha256") != now["git_patch_sha256"]
    if not then_hash or not now_hash or (then_hash == now_hash and not patched):
        return ""
    which = f"commit {then_hash}, now {now_hash}" if then_hash != now_hash else f"commit {then_hash} with other changes"
    return f"{name} was trained by other code ({which}); whether its numbers are still the same says: {command('rerun', name, '--check')}"


def _without_secrets(words: Sequence[str]) -> list[str]:
    """The words of a command line as they may be recorded: of a webhook, whose address lets anybody post, the option alone."""
    kept = []
    for before, word in zip(["", *words], words, strict=False):
        if word.startswith(f"{WEBHOOK}="):
            word = f"{WEBHOOK}=***"
        kept.append("***" if before == WEBHOOK else without_password(word))
    return kept


@cache
def checkout_and_machine() -> dict[str, Any]:
    """What `provenance` says of all runs of a process."""
    commit, patch = tree(CHECKOUT)
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "git_commit": commit,
        "git_dirty": bool(patch),
        "git_patch_sha256": hashlib.sha256(patch).hexdigest() if patch else None,
        "python": platform.python_version(),
        "packages": versions,
        "machine": {
            "system": platform.system(),
            "release": platform.release(),
            "processor": processor(),
            "cores": os.cpu_count(),
        },
        "threads_per_run": 1,
        "command": [Path(sys.argv[0]).name, *_without_secrets(sys.argv[1:])],
    }


def keep_patch(data: Path) -> Path | None:
    """Write the patch that `provenance()` names below the data folder, once; None where the tree is its commit's."""
    digest = provenance()["git_patch_sha256"]
    if digest is None:
        return None
    file = data / "provenance" / f"{digest}.patch"
    if not file.is_file():
        _, patch = tree(CHECKOUT)
        write_atomic(file, patch or b"")
    return file


def keep_plugins(data: Path) -> list[Path]:
    """Keep every plugin that is one file below the data folder as `provenance/SHA256/NAME.py`, once."""
    kept = []
    for plugin in loaded_plugins():
        source, file = Path(plugin.source), data / "provenance" / plugin.sha256 / f"{plugin.name}.py"
        if not source.is_file():
            continue
        code = source.read_bytes()
        if not file.is_file() and hashlib.sha256(code).hexdigest() == plugin.sha256:  # it may be edited meanwhile
            write_atomic(file, code)
        kept.append(file)
    return kept


@cache
def tree(root: Path) -> tuple[str | None, bytes | None]:
    """The commit of a checkout and what differs from it, new files of code included; (None, None) outside of git.

    A folder that lies in a repository but holds nothing of it, such as the packages of an environment that somebody keeps in
    a project of their own, has no commit either: that commit and that project's changes say nothing about this code.
    """
    if _git(root, "ls-files", "--error-unmatch", "--", ".") is None:
        return None, None
    commit, index = _git(root, "rev-parse", "HEAD"), _git(root, "rev-parse", "--git-path", "index")
    if commit is None or index is None:
        return None, None
    present = root / os.fsdecode(index).strip()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "index"  # new files are marked in a copy, so that the real index stays as it is
        if present.is_file():
            shutil.copyfile(present, copy)
        new = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", *CODE) or b""
        if new:
            _git(root, "add", "--intent-to-add", "--", *filter(None, os.fsdecode(new).split("\0")), index=copy)
        patch = _git(root, "diff", "--binary", "--no-ext-diff", "HEAD", index=copy)
    return os.fsdecode(commit).strip(), patch or None


def _git(root: Path, *arguments: str, index: Path | None = None) -> bytes | None:
    environment = os.environ if index is None else {**os.environ, "GIT_INDEX_FILE": str(index)}
    try:
        result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, timeout=20, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout if result.returncode == 0 else None


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
