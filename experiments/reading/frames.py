"""The frames of a film: a header, what is seen, and the family's quantity by step, drawn with Pillow. No ledger and no learner in here.

Drawn at twice the size and then halved, so that edges are smooth. All lengths are in units of which the frame is 640 x 400 or more, so that a
small frame is a large one made smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFont

from core.words.text import harmless
from env_runner.drawing import Disc, Picture, Track, Words

RGB = tuple[int, int, int]
COLOURS: dict[str, RGB] = {
    "ink": (29, 36, 41), "soft": (93, 106, 115), "line": (205, 213, 219), "panel": (238, 242, 244), "ground": (255, 255, 255),
    "agent": (31, 111, 139), "target": (200, 85, 61), "good": (28, 124, 84), "bad": (179, 64, 42),
}  # fmt: skip
SCALE = 2
HEADER = 46


@dataclass(frozen=True)
class Act:
    """One episode of a film: its words, its return so far by step, its quantity."""

    words: str
    track: Track
    returns: Sequence[float]


@dataclass(frozen=True)
class Sheet:
    """What the frames of a film share."""

    title: str
    subtitle: str
    acts: tuple[Act, ...]
    width: int
    height: int
    has_stage: bool
    """Whether something is seen beside the curve."""

    @property
    def unit(self) -> float:
        """Pixels of the finished frame that one unit has."""
        return min(self.width / 640, self.height / 400)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in units."""
        return self.width / self.unit, self.height / self.unit

    @property
    def stage(self) -> tuple[int, int]:
        """Width and height of what is seen, in pixels."""
        return self.width, self.height - round((HEADER + self.chart_height) * self.unit)

    @property
    def chart_height(self) -> float:
        room = self.size[1] - HEADER
        return 0.3 * room if self.has_stage else room


def draw_frame(sheet: Sheet, act: int, step: int, seen: Picture | UInt8[ndarray, "H W 3"] | None) -> Image.Image:
    """One frame: step `step` of act number `act`; seen: shapes, or a picture of the stage's size, or nothing but the curve."""
    canvas = Image.new("RGB", (sheet.width * SCALE, sheet.height * SCALE), COLOURS["ground"])
    pen = _Pen(canvas, SCALE * sheet.unit)
    _draw_header(pen, sheet, act, step)
    if isinstance(seen, Picture):
        _draw_picture(pen, seen, (0, HEADER, sheet.size[0], sheet.size[1] - sheet.chart_height))
    elif seen is not None:
        stage = Image.fromarray(seen)
        canvas.paste(stage.resize((stage.width * SCALE, stage.height * SCALE), Image.Resampling.NEAREST), (0, round(HEADER * sheet.unit) * SCALE))  # fmt: skip
        _draw_gauge(pen, sheet, act, step)
    _draw_chart(pen, sheet, act, step)
    return canvas.reduce(SCALE)


class _Pen:
    """Draws on the enlarged canvas, of which a unit has `scale` pixels."""

    def __init__(self, canvas: Image.Image, scale: float) -> None:
        self.draw = ImageDraw.Draw(canvas)
        self.scale = scale

    def words(self, x: float, y: float, text: str, colour: str, size: float, anchor: str = "lm", bold: bool = False) -> None:  # fmt: skip
        self.draw.text(
            (x * self.scale, y * self.scale), harmless(text), COLOURS[colour], self._font(size, bold), anchor
        )

    def width_of(self, text: str, size: float, bold: bool = False) -> float:
        return self.draw.textlength(harmless(text), self._font(size, bold)) / self.scale

    def lines(self, points: Sequence[tuple[float, float]], colour: str, width: float) -> None:
        if len(points) > 1:
            self.draw.line([(x * self.scale, y * self.scale) for x, y in points], COLOURS[colour], max(1, round(width * self.scale)), "curve")  # fmt: skip

    def dashes(self, start: tuple[float, float], end: tuple[float, float], colour: str, width: float) -> None:
        length = float(np.hypot(end[0] - start[0], end[1] - start[1]))
        for begin in np.arange(0.0, length, 8.0):
            near, far = begin / length, min(begin + 4.0, length) / length
            points = [(start[0] + part * (end[0] - start[0]), start[1] + part * (end[1] - start[1])) for part in (near, far)]  # fmt: skip
            self.lines(points, colour, width)

    def polygon(self, points: Sequence[tuple[float, float]], colour: str) -> None:
        self.draw.polygon([(x * self.scale, y * self.scale) for x, y in points], COLOURS[colour])

    def box(self, left: float, top: float, right: float, bottom: float, colour: str, radius: float = 0.0) -> None:
        if right > left:
            self.draw.rounded_rectangle([left * self.scale, top * self.scale, right * self.scale, bottom * self.scale], radius * self.scale, COLOURS[colour])  # fmt: skip

    def disc(self, x: float, y: float, radius: float, colour: str, hollow: bool = False) -> None:
        box = [
            (x - radius) * self.scale,
            (y - radius) * self.scale,
            (x + radius) * self.scale,
            (y + radius) * self.scale,
        ]
        self.draw.ellipse(
            box, None if hollow else COLOURS[colour], COLOURS[colour], round(3 * self.scale) if hollow else 0
        )

    def _font(self, size: float, bold: bool) -> ImageFont.FreeTypeFont:
        return _font(size * self.scale, bold)


@cache
def _font(size: float, bold: bool) -> ImageFont.FreeTypeFont:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / f"DejaVuSans{'-Bold' * bold}.ttf"), round(size))


def _number(value: float, unit: str) -> str:
    return f"{round(value, 2) + 0.0:.2f}{' ' * (unit not in ('', '°'))}{unit}"


def _draw_header(pen: _Pen, sheet: Sheet, act: int, step: int) -> None:
    one = sheet.acts[act]
    number = f"Episode {act + 1} of {len(sheet.acts)}"
    total = f"return {one.returns[step]:.1f}"
    pen.words(sheet.size[0] - 12, 14, number, "agent", 13, "rm", bold=True)
    pen.words(sheet.size[0] - 12, 33, f"{one.words} · {total}", "soft", 11, "rm")
    room = sheet.size[0] - 36
    pen.words(12, 14, _cut(pen, sheet.title, room - pen.width_of(number, 13, True), 13, True), "ink", 13, bold=True)
    pen.words(12, 33, _cut(pen, sheet.subtitle, room - pen.width_of(f"{one.words} · {total}0", 11), 11), "soft", 11)


def _cut(pen: _Pen, text: str, room: float, size: float, bold: bool = False) -> str:
    while text and pen.width_of(text, size, bold) > room:
        text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
    return text


def _draw_picture(pen: _Pen, picture: Picture, area: tuple[float, float, float, float]) -> None:
    left, bottom, right, top = picture.window
    scale = 0.96 * min((area[2] - area[0]) / (right - left), (area[3] - area[1]) / (top - bottom))
    middle = (area[0] + area[2]) / 2, (area[1] + area[3]) / 2

    def place(x: float, y: float) -> tuple[float, float]:
        return middle[0] + scale * (x - (left + right) / 2), middle[1] - scale * (y - (bottom + top) / 2)

    for shape in picture.shapes:
        if isinstance(shape, Disc):
            pen.disc(*place(shape.x, shape.y), max(scale * shape.radius, 2.0), shape.colour, shape.hollow)
        elif isinstance(shape, Words):
            pen.words(*place(shape.x, shape.y), shape.text, shape.colour, shape.size, "mm")
        elif shape.closed:
            pen.polygon([place(x, y) for x, y in shape.points], shape.colour)
        else:
            pen.lines([place(x, y) for x, y in shape.points], shape.colour, shape.width)


def _range(sheet: Sheet) -> tuple[float, float]:
    """Lowest and highest number of the curve over the film, targets and zero among them."""
    parts = [part for act in sheet.acts for part in (act.track.values, act.track.target) if part is not None]
    every = np.concatenate([*parts, np.zeros(1)])
    every = every[np.isfinite(every)]
    low, high = np.percentile(every, [0.0, 100.0]).tolist()
    room = 0.06 * (high - low or 1.0)
    return low - room, high + room


def _draw_gauge(pen: _Pen, sheet: Sheet, act: int, step: int) -> None:
    """The quantity now as a bar, with a mark where it should be."""
    track = sheet.acts[act].track
    low, high = _range(sheet)
    left, right, y = 16.0, 16.0 + 0.3 * sheet.size[0], HEADER + 40.0
    value = float(track.values[step])

    def x_of(number: float) -> float:
        return left + (right - left) * float(np.clip((number - low) / (high - low), 0.0, 1.0))

    named = f"{track.name} {_number(value, track.unit)}"
    wide = max(right, left + pen.width_of(f"{named}00", 12, True))
    pen.box(left - 8, HEADER + 8, wide + 8, HEADER + (54 if track.target is None else 74), "ground", 6)
    pen.words(left, HEADER + 20, named, "agent", 12, bold=True)
    pen.box(left, y - 4, right, y + 4, "panel", 4)
    first, last = sorted((x_of(0.0), x_of(value)))
    pen.box(first, y - 4, max(last, first + 2), y + 4, "agent", 2)
    if track.target is not None:
        target = float(track.target[step])
        pen.box(x_of(target) - 1.5, y - 9, x_of(target) + 1.5, y + 9, "target", 1)
        pen.words(left, y + 20, f"target {_number(target, track.unit)}", "target", 12, bold=True)


def _draw_chart(pen: _Pen, sheet: Sheet, act: int, step: int) -> None:
    """The quantity by step of all episodes so far, one after another, beside the target."""
    left, right = 58.0, sheet.size[0] - 14.0
    top, bottom = sheet.size[1] - sheet.chart_height + 20.0, sheet.size[1] - 20.0
    low, high = _range(sheet)
    starts = np.cumsum([0, *(len(one.returns) for one in sheet.acts)])
    track = sheet.acts[act].track

    def place(moment: float, value: float) -> tuple[float, float]:
        x = left + (right - left) * moment / max(starts[-1] - 1, 1)
        return float(x), float(bottom - (bottom - top) * (np.clip(value, low, high) - low) / (high - low))

    pen.box(left, top, right, bottom, "panel")
    for value in _ticks(low, high, 3 if sheet.has_stage else 6):
        pen.lines([(left, place(0, value)[1]), (right, place(0, value)[1])], "line", 0.5)
        pen.words(left - 6, place(0, value)[1], f"{value:g}", "soft", 10, "rm")
    legend = f"{track.name}{f' ({track.unit})' if track.unit else ''}"
    pen.words(left, top - 10, legend, "agent", 10)
    if track.target is not None:
        pen.words(left + pen.width_of(legend, 10) + 12, top - 10, "target", "target", 10)
    for number, one in enumerate(sheet.acts):
        begin, end = place(starts[number], low)[0], place(starts[number + 1] - 1, low)[0]
        if number:
            pen.dashes((begin, top), (begin, bottom), "soft", 1)
        pen.words((begin + end) / 2, bottom + 10, f"episode {number + 1}", "ink" if number == act else "soft", 10, "mm")
        if one.track.target is not None:
            changes = np.flatnonzero(np.diff(one.track.target)) + 1
            for first, last in zip([0, *changes], [*changes, len(one.returns)], strict=True):
                y = float(one.track.target[first])
                pen.dashes(place(starts[number] + first, y), place(starts[number] + last - 1, y), "target", 2)
        if number <= act:
            shown = one.track.values if number < act else one.track.values[: step + 1]
            points = [place(starts[number] + t, float(value)) for t, value in enumerate(shown) if np.isfinite(value)]
            pen.lines(points, "agent", 1.6)
            if number == act and points:
                pen.disc(*points[-1], 4, "agent")


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers within a range."""
    rough = (high - low) / count
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * factor for factor in (1.0, 2.0, 5.0, 10.0) if power * factor >= rough)
    return [float(round(step * k, 10)) for k in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]
