"""A task family of your own in one file, used through the public API: a room to be heated whose losses are not seen.

    python examples/custom_family.py [--data-dir FOLDER] [--env-steps 2560] [--no-contract]

The same file is a plugin: `python main.py --plugin examples/custom_family.py --goal "beat MLP with LSTM on thermostat"`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, also where it is not installed

import numpy as np
from gymnasium import spaces
from numpy import ndarray

from env_runner.task_family import ActionInfo, ContinuousTasks, EnvOptions, TaskVectorEnv, make_box, register_family


class ThermostatEnv(TaskVectorEnv):
    """N rooms, each with losses of its own."""

    def __init__(self, family: Thermostat, num_envs: int) -> None:
        super().__init__(family, num_envs, make_box(1), spaces.Box(-1.0, 1.0, (1,), np.float32))
        self._excess = np.zeros(self.num_envs)

    def _start(self, worlds: ndarray) -> None:
        for world in worlds.tolist():
            self._excess[world] = self.world_rngs[world].uniform(-0.5, 0.5)

    def _advance(self, actions: ndarray) -> tuple[ndarray, ndarray, dict[str, Any]]:
        self._excess += 0.5 * actions[:, 0] - self.tasks[:, 0]
        error = np.abs(self._excess)
        return -error, np.zeros(self.num_envs, dtype=bool), {"error": error}

    def _observe(self) -> ndarray:
        return self._excess[:, None].copy()


@register_family
class Thermostat(ContinuousTasks):
    """## Description
    A room shall stay at its target temperature; a constant loss a step, that of the weather, is not observed.

    ## Action Space
    `Box(-1, 1, (1,), float32)`, clipped: heating, in units of 0.5 K a step.

    ## Observation Space
    `Box(-inf, inf, (1,), float64)`: the temperature above the target in K. The loss is not observed.

    ## Tasks
    `loss` ~ U[0, 0.4] K a step. Pools: grids, disjoint from one another and from training.

    ## Rewards
    Minus the distance to the target in K, after the step.

    ## Starting State
    U[-0.5, 0.5] K.

    ## Episode End
    Never terminates; truncated after 10 steps.

    ## Arguments
    `make(num_envs)`.

    ## Anchors
    Not heating falls by the loss at each step: -55 * E[loss] = -11, up to the start.

    ## Provenance
    Ours: an example.
    """

    id = "thermostat"
    horizon = 10
    obs_dim = 1
    action = ActionInfo("gaussian", 1)
    param_names = ("loss",)
    low, high = (0.0,), (0.4,)
    anchors: Mapping[str, float] = {"no_heating": -11.0}
    engine_packages = ("numpy",)

    def make(self, num_envs: int, *, num_threads: int = 0, options: EnvOptions | None = None) -> ThermostatEnv:
        self.refuse_changes(options)
        return ThermostatEnv(self, num_envs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure two fixed policies on it, train a memory, show its row, and run the contract suite over it."""
    from core.plugins import load_plugin
    from env_runner.task_distributions import get_family
    from main import main as run_command

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", help="where the rows go (without: a temporary folder)")
    parser.add_argument("--env-steps", default="2560", help="training steps")
    parser.add_argument("--no-contract", action="store_true", help="leave the contract suite out")
    options = parser.parse_args(arguments)
    load_plugin(
        __file__
    )  # so that the process which trains knows the family too, and the row has the hash of this file
    family = get_family("thermostat")
    tasks = family.eval_tasks("search")
    worlds = family.make(len(tasks))
    for name, knows in (("no heating", 0.0), ("heating that knows the loss", 1.0)):
        excess, _ = worlds.reset(seed=0, options={"tasks": tasks})
        total = np.zeros(len(tasks))
        for _ in range(family.horizon):
            excess, rewards, *_ = worlds.step(knows * (tasks - excess) / 0.5)
            total += rewards
        print(f"{name}: return {total.mean():.2f} over {len(tasks)} tasks")
    worlds.close()
    with TemporaryDirectory() as temporary:
        folder = ["--data-dir", options.data_dir or temporary]
        code = run_command(["run", "--preset", "thermostat.lstm", "--env-steps", options.env_steps, *folder])
        code = code or run_command(["show", "@last", *folder])
    return code or (0 if options.no_contract else check_contract("thermostat", "tests/env_runner/test_family_contract.py"))  # fmt: skip


def check_contract(name: str, suite: str) -> int:
    """The contract suite over what this file registers, in a process of its own (needs the extra `dev`)."""
    import subprocess

    words = ["-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-o", "addopts=", "-k", name, suite]
    return subprocess.run([sys.executable, *words], cwd=Path(__file__).resolve().parents[1]).returncode


if __name__ == "__main__":
    sys.exit(main())
