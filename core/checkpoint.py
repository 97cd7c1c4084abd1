"""Tensors and JSON on disk: safetensors beside a JSON file, written atomically, never pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from core.errors import InputError
from core.files import write_atomic


def save_checkpoint(path: str | Path, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> str:
    """Save tensors to `path` (.safetensors) and `meta` with their SHA-256 beside it (.json). Returns the hash.

    The tensors' file carries its hash in its name's JSON twin, so a pair that does not belong together is refused.
    """
    path = Path(path).with_suffix(".safetensors")
    data = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    write_atomic(path, data)
    text = json.dumps({"sha256": digest, "meta": dict(meta)}, indent=1, sort_keys=True)
    write_atomic(path.with_suffix(".json"), text.encode())
    return digest


def load_checkpoint(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Load what `save_checkpoint` wrote. Raises InputError where a file is missing or the hash does not match."""
    path = Path(path).with_suffix(".safetensors")
    beside = path.with_suffix(".json")
    for file in (path, beside):
        if not file.is_file():
            raise InputError(f"checkpoint: {file} does not exist")
    record = json.loads(beside.read_text())
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != record["sha256"]:
        raise InputError(f"checkpoint: {path} has hash {digest[:12]}, its JSON says {record['sha256'][:12]}: refused")
    return load(data), record["meta"]  # `load_file` takes no name that is not UTF-8
