"""The notebook in `examples/`: stored without outputs, every cell compiles, every name that it imports is there, and all of it runs."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = json.loads((ROOT / "examples" / "demo.ipynb").read_text())
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_it_is_stored_without_outputs_in_the_format_that_it_names() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(ids) == len(set(ids))
    for cell in NOTEBOOK["cells"]:
        needed = {"cell_type", "id", "metadata", "source"}
        assert cell.keys() == needed | ({"execution_count", "outputs"} if cell["cell_type"] == "code" else set())
        assert (cell.get("execution_count"), cell.get("outputs", [])) == (None, [])


def test_every_cell_compiles_and_what_it_imports_is_there() -> None:
    assert len(CELLS) > 5
    imported = set()
    for number, cell in enumerate(CELLS):
        for node in ast.walk(ast.parse(cell, f"cell {number}")):
            if isinstance(node, ast.Import):
                imported |= {(alias.name, "") for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported |= {(node.module or "", alias.name) for alias in node.names}
    for module, name in sorted(imported):
        found = importlib.import_module(module)
        assert not name or hasattr(found, name), f"{module} has no {name}"
    assert ("meta_rl.meta_maml", "MetaMAML") in imported
    assert ("adaptation.test_time_adaptation", "Adapter") in imported


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """In a process of its own whose names are the cells', one after another, as a kernel keeps them."""
    script = tmp_path / "cells.py"
    script.write_text("\n\n".join(CELLS))
    environment = os.environ | {"MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "query loss:" in done.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["cells.py"]
