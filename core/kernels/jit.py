"""How kernels are compiled, and how a tensor's memory reaches one."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from torch import Tensor

# A run must write nothing outside its folder, so compiled code is cached only where the caller chose a place.
# NaN and infinity keep their meaning: a diverged model must look diverged.
JIT: dict[str, Any] = {
    "nogil": True,
    "fastmath": {"contract", "reassoc", "nsz", "arcp"},
    "error_model": "numpy",
    "cache": bool(os.environ.get("NUMBA_CACHE_DIR")),
}

f32 = np.float32


def as_numpy(tensor: Tensor) -> np.ndarray:
    """The tensor's memory as a C-contiguous array for a kernel."""
    return tensor.detach().contiguous().numpy()


def as_flat(tensor: Tensor) -> np.ndarray:
    """All numbers in a row, sharing memory where it can."""
    return as_numpy(tensor).reshape(-1)


def as_rows(tensor: Tensor) -> np.ndarray:
    """(..., H) as a C-contiguous matrix (R, H) that shares memory where it can."""
    return as_numpy(tensor).reshape(-1, tensor.shape[-1])
