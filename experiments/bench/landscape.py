"""An artificial task for searches: a noisy hill over a side's real space, whose top is not far from the default.

What it takes from real searches on halfcheetah-vel (12 noise floors from the default to a uniform draw of the space, a gain of one
or two to be found near the default): a preset is a good start, and most of the space is far worse. The hill is quadratic in the unit
coordinates with weights that differ by orders of magnitude, as importances of hyperparameters do (van Rijn and Hutter 2018,
arXiv 1710.04725); every choice without an order has a level of its own.
"""

from __future__ import annotations

import numpy as np

from core.seeding import numpy_stream
from experiments.search.optimizer import Tried
from experiments.search.side import Value
from experiments.search.sizing import count_parameters
from experiments.search.space import SearchSpace

AWAY = 0.2
"""Standard deviation of the top's distance from the default, a coordinate of the unit cube."""
DEFAULT_LOSS = 1.5
"""What the default lacks to the top, on average, in standard deviations of a seed's noise."""


class Landscape:
    """One search's view of one random hill; the noise of a seed has standard deviation 1, and fresh scores have none."""

    env_steps = 5_120
    """Of a run that is not trained; the lab of an arm with agents plans with them."""

    def __init__(self, space: SearchSpace, search: int) -> None:
        self.space = space
        self.parameters = count_parameters(space.spec({}, env_steps=1, seed=0, parameters=None))  # of the default
        stream = numpy_stream(search, "landscape")
        default = np.nan_to_num(space.to_unit(space.default_values()), nan=0.5)
        self._top = np.clip(default + AWAY * stream.normal(size=len(default)), 0.0, 1.0)
        weights = np.exp(1.5 * stream.normal(size=len(default)))
        self._weights = weights * DEFAULT_LOSS / max(float(weights @ (AWAY**2 * np.ones(len(default)))), 1e-9)
        self._levels = {
            parameter.name: dict(
                zip(parameter.choices, 2.0 * stream.exponential(size=len(parameter.choices)), strict=True)
            )
            for parameter in space.parameters
            if parameter.choices and not parameter.ordered
        }
        for parameter in space.parameters:
            if parameter.name in self._levels:
                self._levels[parameter.name][parameter.default] = min(
                    1.0, self._levels[parameter.name][parameter.default]
                )
        self._noise = numpy_stream(search, "landscape noise")

    @property
    def default_scores(self) -> tuple[float, ...]:
        """Of two further seeds."""
        worth = self.worth(self.space.default_values())
        return tuple(worth + numpy_stream(0, "further", str(seed)).normal() for seed in range(2))

    def measure(self, values: dict[str, Value]) -> Tried:
        return Tried(values, self.worth(values) + float(self._noise.normal()))

    def worth(self, values: dict[str, Value]) -> float:
        point = self.space.to_unit(values)
        loss = float(np.nansum(self._weights * (point - self._top) ** 2))
        return -loss - sum(levels[values[name]] for name, levels in self._levels.items() if name in values)
