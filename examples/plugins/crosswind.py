"""A task family in one file: a cart on a line, blown aside by a wind that it does not feel, is to stay where it is.

python main.py --plugin examples/plugins/crosswind.py run --preset crosswind.lstm --env-steps 50k
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy import ndarray

from env_runner.task_family import ActionInfo, ContinuousTasks, EnvOptions, TaskVectorEnv, make_box, register_family


class CrosswindEnv(TaskVectorEnv):
    """N carts, each in its own wind."""

    STEP = 0.1

    def __init__(self, family: Crosswind, num_envs: int) -> None:
        super().__init__(family, num_envs, make_box(1), spaces.Box(-1.0, 1.0, (1,), np.float32))
        self._position = np.zeros(self.num_envs)

    def _start(self, worlds: ndarray) -> None:
        for world in worlds.tolist():
            self._position[world] = self.world_rngs[world].uniform(-0.1, 0.1)

    def _advance(self, actions: ndarray) -> tuple[ndarray, ndarray, dict[str, Any]]:
        self._position += self.STEP * (actions[:, 0] + self.tasks[:, 0])
        distance = np.abs(self._position)
        return -distance, np.zeros(self.num_envs, dtype=bool), {"distance": distance}

    def _observe(self) -> ndarray:
        return self._position[:, None].copy()


@register_family
class Crosswind(ContinuousTasks):
    """## Description
    A cart on a line is blown aside by a constant wind and shall stay at the origin.

    ## Action Space
    `Box(-1, 1, (1,), float32)`, clipped: the cart's own speed in m/s; a step lasts 0.1 s.

    ## Observation Space
    `Box(-inf, inf, (1,), float64)`: the position in m. The wind is not observed.

    ## Tasks
    `wind` ~ U[-0.8, 0.8] m/s. Pools: grids, disjoint from one another and from training.

    ## Rewards
    Minus the distance to the origin in m, after the step.

    ## Starting State
    U[-0.1, 0.1] m.

    ## Episode End
    Never terminates; truncated after 20 steps.

    ## Arguments
    `make(num_envs)`.

    ## Anchors
    Doing nothing drifts 0.1 m/s of wind a step: -0.1 * 210 * E|wind| = -8.4, up to the start noise.

    ## Provenance
    Ours: the smallest task that memory solves and a policy without it cannot.
    """

    id = "crosswind"
    horizon = 20
    obs_dim = 1
    action = ActionInfo("gaussian", 1)
    param_names = ("wind",)
    low, high = (-0.8,), (0.8,)
    anchors: Mapping[str, float] = {"stand_still": -8.4}
    engine_packages = ("numpy",)

    def make(self, num_envs: int, *, num_threads: int = 0, options: EnvOptions | None = None) -> CrosswindEnv:
        self.refuse_changes(options)
        return CrosswindEnv(self, num_envs)
