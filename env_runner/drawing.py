"""What a family says of how its episodes look: a quantity by step, and shapes; who draws them is not known here.

Letters: T steps of an episode, S numbers of a world's drawn state, P task parameters. Coordinates of a picture are the family's own, y up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float64
from numpy import ndarray

Colour = Literal["ink", "soft", "line", "panel", "agent", "target", "good", "bad"]


@dataclass(frozen=True)
class Lived:
    """One episode in one world. states (T, S): what each step began from, as the worlds' `drawn_state` gives it."""

    states: Float64[ndarray, "T S"]
    actions: ndarray
    """(T, A) real numbers or (T,) whole ones, as the worlds took them."""
    rewards: Float64[ndarray, " T"]
    tasks: Float64[ndarray, "T P"]
    """The task in force in each step."""
    infos: Mapping[str, ndarray] = field(default_factory=dict)
    """Further quantities (T,) of the steps, such as x_velocity."""


@dataclass(frozen=True)
class Track:
    """The quantity that shows best whether the task is known, by step, and what it should be, where that is a number."""

    name: str
    values: Float64[ndarray, " T"]
    target: Float64[ndarray, " T"] | None = None
    unit: str = ""


@dataclass(frozen=True)
class Line:
    """Straight lines from point to point; `closed` fills what they go around."""

    points: tuple[tuple[float, float], ...]
    colour: Colour = "ink"
    width: float = 2.0
    """In points of the screen."""
    closed: bool = False


@dataclass(frozen=True)
class Disc:
    """A disc, or a ring where it is hollow; `radius` in the picture's units."""

    x: float
    y: float
    radius: float
    colour: Colour = "agent"
    hollow: bool = False


@dataclass(frozen=True)
class Words:
    """Text about a point, `size` in points of the screen."""

    x: float
    y: float
    text: str
    colour: Colour = "ink"
    size: float = 12.0


@dataclass(frozen=True)
class Picture:
    """Shapes in a window (left, bottom, right, top), drawn in their order and to one scale in both directions."""

    window: tuple[float, float, float, float]
    shapes: tuple[Line | Disc | Words, ...]


def box(left: float, bottom: float, right: float, top: float, colour: Colour = "panel") -> Line:
    """A filled rectangle."""
    return Line(((left, bottom), (right, bottom), (right, top), (left, top)), colour, closed=True)
