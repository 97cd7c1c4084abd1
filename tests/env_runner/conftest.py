"""Shared by the tests of env_runner."""

from __future__ import annotations

import pytest

from env_runner.batched_mujoco import silence_mujoco


@pytest.fixture(autouse=True, scope="session")
def _quiet_mujoco():
    """Gymnasium's own environments, made beside ours, would write MUJOCO_LOG.TXT into the working directory."""
    silence_mujoco()
