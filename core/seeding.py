"""Randomness as an argument: independent named streams of one seed, nothing global."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def seed_sequence(seed: int, *names: str | int) -> np.random.SeedSequence:
    """The seed sequence of the stream `names` of `seed`; other names give independent streams."""
    return np.random.SeedSequence([seed, *(zlib.crc32(str(name).encode()) for name in names)])


def numpy_stream(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for one named purpose, such as `numpy_stream(seed, "train", "tasks")`."""
    return np.random.default_rng(seed_sequence(seed, *names))


def torch_stream(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for one named purpose."""
    state = int(seed_sequence(seed, *names).generate_state(1, np.uint64)[0])
    return torch.Generator(device=device).manual_seed(state & 0x7FFF_FFFF_FFFF_FFFF)
