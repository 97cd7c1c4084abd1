"""What a number depends on besides its specification: code, packages, machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "mujoco", "gymnasium", "numba", "scipy", "optuna", "crewai", "langchain", "sqlalchemy")


@cache
def provenance() -> dict[str, Any]:
    """Git commit, dirty flag and patch hash, package versions, machine, command line; read once a process."""
    root = Path(__file__).resolve().parent.parent
    commit = _git(root, "rev-parse", "HEAD")
    patch = _git(root, "diff", "HEAD") if commit else None
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "git_commit": commit,
        "git_dirty": bool(patch),
        "git_patch_sha256": hashlib.sha256(patch.encode()).hexdigest() if patch else None,
        "python": platform.python_version(),
        "packages": versions,
        "machine": {
            "system": platform.system(),
            "release": platform.release(),
            "processor": processor(),
            "cores": os.cpu_count(),
        },
        "threads_per_run": 1,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _git(root: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
