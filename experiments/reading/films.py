"""Films of what a kept model lives on one task: which frames there are, what is seen in them, and the file that they become."""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from core.config import FrozenConfig
from core.errors import InputError, bad_value, nearest
from core.files import replacing
from env_runner.drawing import Picture
from env_runner.offscreen import CannotRenderError, render_states
from env_runner.task_family import Pool, check_pool
from experiments.ledger.ids import is_written_as_id, readable_id
from experiments.ledger.store import Ledger
from experiments.numbers import format_count
from experiments.reading.frames import COLOURS, Act, Sheet, draw_frame
from experiments.runs.few_shot import family_of, kept_model, model_of_run, must_show_model, spec_of_run
from experiments.runs.paths import Paths
from experiments.runs.provenance import other_code
from experiments.runs.watching import Watched, watch_task

FORMATS = (".gif", ".mp4", ".png")
STRIP = 6  # frames of a .png
HOLD_S = 0.7  # how long the last frame of an episode stays
SMALLEST, LARGEST = 160, 1920
VIDEO = 'pip install -e ".[video]"'


class EpisodeView(FrozenConfig):
    """One episode of a film."""

    words: str
    steps: int
    total_return: float


class Film(FrozenConfig):
    """What was written, and what is seen in it."""

    file: str
    model: str
    family: str
    learner: str
    pool: str
    task_index: int
    parameters: dict[str, float]
    conditions: str
    episodes: tuple[EpisodeView, ...]
    drawn_by: str
    """egl, osmesa or opengl: MuJoCo rendered the robot; shapes: the family's own drawing; curve: its quantity by step alone."""
    trained_by: str
    """That other code than this one trained it, where a run says so; else empty."""
    why: str
    """Why MuJoCo did not render, where it would have; else empty."""
    frames: int
    fps: float
    width: int
    height: int
    bytes: int

    def sentences(self) -> tuple[str, ...]:
        """What is seen, for people."""
        task = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in list(self.parameters.items())[:3])
        size = f"{self.frames} frames of {self.width} x {self.height} at {self.fps:g} a second, {format_count(self.bytes)} bytes"
        lines = [f"{self.model} ({self.learner}) on task {self.task_index} of {self.family}'s {self.pool} pool: {task}{', ...' * (len(self.parameters) > 3)}. {size}."]  # fmt: skip
        lines += [f"episode {n}, {e.words}: return {e.total_return:.2f} in {e.steps} steps" for n, e in enumerate(self.episodes, 1)]  # fmt: skip
        return tuple(filter(None, [*lines, self.conditions, self.why, self.trained_by]))


def watch(
    ledger: Ledger | None,
    paths: Paths,
    model: str,
    *,
    pool: Pool = "search",
    index: int = 0,
    episodes: int | None = None,
    seed: int = 0,
    out: str | None = None,
    fps: float | None = None,
    width: int = 640,
    height: int = 400,
) -> Film:
    """Film a kept model, or that of a run, on one task; by default into the data folder. ledger: None where there is none yet.

    InputError for what is not there, for a number out of range, and for the confirmation pool while a verdict rests on it.
    """
    check_pool(pool)
    file = check_out(out) if out is not None else None
    run, spec, trained_by = None, None, ""
    if ledger is not None and is_written_as_id(model) and not Path(model).exists():
        files = kept_model(model_of_run(ledger, paths, model))
        run, spec = ledger.resolve(model, "run"), spec_of_run(ledger, model)
        trained_by = other_code(ledger.get_run(run).provenance, readable_id("r", run))
    else:
        files = kept_model(model)
    if ledger is not None:
        must_show_model(ledger, paths, files)
        ledger.must_not_forestall(family_of(files), pool)
    name = readable_id("r", run) or (files.parent if files.name == "model" else files).name
    watched = watch_task(files, model=name, spec=spec, pool=pool, index=index, episodes=episodes, seed=seed)
    file = file or paths.data / "films" / f"{name}-{pool}-{index}.gif"
    return write_film(watched, file, fps=fps, width=width, height=height, trained_by=trained_by)


def check_out(name: str) -> Path:
    """The file that a film is to become. InputError for a suffix that none of the formats has, and for an .mp4 that nothing here writes."""
    file = Path(name)
    suffix = file.suffix.lower()
    if suffix not in FORMATS:
        close = nearest(suffix, FORMATS) if suffix else None
        hint = f"Did you mean {file.with_suffix(close).name!r}?" if close else ""
        raise bad_value("--out", name, f"a file that ends in {', '.join(FORMATS)}", hint=hint)
    if suffix == ".mp4":
        ffmpeg()
    if file.is_dir():
        raise InputError(f"--out: cannot write {file} (it is a folder)")
    try:  # said before anything is lived and drawn
        file.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=file.parent).close()
    except OSError as error:
        raise InputError(f"--out: cannot write {file} ({error.strerror})") from None
    return file


def ffmpeg() -> str:
    """The program that writes videos: the one on PATH, or that of the extra. InputError where there is neither."""
    found = shutil.which("ffmpeg")
    if found is None and find_spec("imageio_ffmpeg") is not None:
        from imageio_ffmpeg import get_ffmpeg_exe  # pyright: ignore[reportMissingImports]

        found = get_ffmpeg_exe()
    if found is None:
        raise InputError(f"--out: an .mp4 needs ffmpeg, which is not on PATH. Run: {VIDEO}, or write a .gif")
    return found


def write_film(
    watched: Watched, file: Path, *, fps: float | None = None, width: int = 640, height: int = 400, trained_by: str = ""
) -> Film:
    """Draw the episodes and write them: a .gif or .mp4 in real time where steps have a time, or a .png of some frames side by side."""
    for option, value in (("--width", width), ("--height", height)):
        if not SMALLEST <= value <= LARGEST:
            raise bad_value(option, value, f"{SMALLEST} to {LARGEST} pixels")
    rate = _default_fps(watched) if fps is None else fps
    if not 1 <= rate <= 60:
        raise bad_value("--fps", fps, "1 to 60 frames a second")
    moments = _moments(watched, rate)
    suffix = file.suffix.lower()
    if suffix == ".png":
        moments = [moments[i] for i in np.linspace(0, len(moments) - 1, min(STRIP, len(moments))).round().astype(int)]
    frames, drawn_by, why = drawn_frames(watched, moments, width, height)
    last = [act != after for (act, _), (after, _) in zip(moments, [*moments[1:], (-1, 0)], strict=True)]
    try:
        with replacing(file) as partial:
            if suffix == ".png":
                partial.write_bytes(_strip(list(frames), columns=3))
            elif suffix == ".gif":
                partial.write_bytes(gif(list(frames), rate, last))
            else:
                _write_mp4(partial, frames, rate, last, width, height)
    except OSError as error:
        raise InputError(f"--out: cannot write {file} ({error.strerror})") from None
    names = watched.family.param_names
    return Film(
        file=str(file),
        model=watched.model,
        family=watched.family.id,
        learner=watched.learner,
        pool=watched.pool,
        task_index=watched.index,
        parameters=dict(zip(names, watched.task.tolist(), strict=True)),
        conditions=watched.conditions,
        trained_by=trained_by,
        episodes=tuple(
            EpisodeView(words=e.words, steps=len(e.lived.rewards), total_return=e.total) for e in watched.episodes
        ),
        drawn_by=drawn_by,
        why=why,
        frames=len(moments),
        fps=rate,
        width=width,
        height=height,
        bytes=file.stat().st_size,
    )


def task_in_words(watched: Watched) -> str:
    """The task's parameters, the first ones where there are many."""
    pairs = list(zip(watched.family.param_names, watched.task.tolist(), strict=True))
    words = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in pairs[:3])
    return words + (", ..." if len(pairs) > 3 else "")


def _default_fps(watched: Watched) -> float:
    """20, or where steps have no time so many that an episode takes five seconds."""
    if watched.family.seconds_per_step is not None:
        return 20.0
    return float(np.clip(round(watched.family.horizon / 5), 3, 20))


def _moments(watched: Watched, fps: float) -> list[tuple[int, int]]:
    """(episode, step) of every frame: each step, or where steps have a time those that the clock shows."""
    step_s = watched.family.seconds_per_step
    stride = 1.0 if step_s is None else max(1.0, 1.0 / (fps * step_s))
    found = []
    for number, episode in enumerate(watched.episodes):
        steps = np.arange(0.0, len(episode.lived.rewards), stride).round().astype(int)
        found += [(number, int(step)) for step in np.unique([*steps, len(episode.lived.rewards) - 1]) if step < len(episode.lived.rewards)]  # fmt: skip
    return found


def drawn_frames(
    watched: Watched, moments: Sequence[tuple[int, int]], width: int, height: int
) -> tuple[Iterator[Image.Image], str, str]:
    """The frames of (episode, step) moments, what drew them, and why MuJoCo did not where it would have."""
    family, lived = watched.family, [episode.lived for episode in watched.episodes]
    acts = tuple(
        Act(episode.words, family.track(episode.lived), np.cumsum(episode.lived.rewards).tolist())
        for episode in watched.episodes
    )
    subtitle = f"task {watched.index} of the {watched.pool} pool · {task_in_words(watched)}"
    sheet = Sheet(f"{watched.model} · {family.id}", subtitle, acts, width, height, has_stage=True)
    seen: Sequence[Picture | np.ndarray | None] = [family.picture(lived[act], step) for act, step in moments]
    drawn_by, why = "shapes", ""
    model = family.body(watched.task)
    if model is not None:
        headings = [family.heading(one) for one in lived]
        states = np.stack([lived[act].states[step] for act, step in moments])
        arrows = [heading[step] for act, step in moments if (heading := headings[act]) is not None]
        try:
            rendered = render_states(
                model, states, width=width, height=sheet.stage[1], arrows=np.stack(arrows) if arrows else None
            )
            seen, drawn_by = list(rendered.frames), rendered.way
        except CannotRenderError as error:
            why = f"MuJoCo cannot render here ({error}): the curve is drawn. On Debian and Ubuntu: apt install libegl1 libgl1-mesa-dri, or libosmesa6"
    if all(one is None for one in seen):
        sheet, drawn_by = replace(sheet, has_stage=False), "curve"
    return (draw_frame(sheet, act, step, one) for (act, step), one in zip(moments, seen, strict=True)), drawn_by, why


def gif(frames: Sequence[Image.Image], fps: float, holds: Sequence[bool], colours: int = 96) -> bytes:
    """An animated GIF that repeats for ever, with one palette for all frames; a frame that `holds` stays longer."""
    sample = frames[:: max(1, len(frames) // 8)][:9]
    montage = Image.new("RGB", (sample[0].width, sample[0].height * len(sample)))
    for number, frame in enumerate(sample):
        montage.paste(frame, (0, number * frame.height))
    seen = montage.quantize(colours - len(COLOURS), method=Image.Quantize.MAXCOVERAGE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*(part for colour in COLOURS.values() for part in colour), *seen])  # ours are never another one
    drawn = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    usual = round(100 / fps) * 10  # the format counts hundredths of a second
    buffer = io.BytesIO()
    durations = [usual + round(1000 * HOLD_S) * hold for hold in holds]
    drawn[0].save(buffer, "GIF", save_all=True, append_images=drawn[1:], duration=durations, loop=0, optimize=False)
    return buffer.getvalue()


def _strip(frames: Sequence[Image.Image], columns: int) -> bytes:
    """The frames beside and below one another, as a PNG."""
    width, height = frames[0].size
    rows = -(-len(frames) // columns)
    sheet = Image.new("RGB", (width * min(columns, len(frames)), height * rows), "white")
    for number, frame in enumerate(frames):
        sheet.paste(frame, (number % columns * width, number // columns * height))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _write_mp4(
    file: Path, frames: Iterator[Image.Image], fps: float, holds: Sequence[bool], width: int, height: int
) -> None:
    """H.264 in the pixel format that every player knows, by ffmpeg; odd sizes get a row or column more."""
    command = [ffmpeg(), "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-"]  # fmt: skip
    command += ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", "mp4", str(file)]  # fmt: skip
    data = b"".join(
        frame.tobytes() * (1 + round(HOLD_S * fps) * hold) for frame, hold in zip(frames, holds, strict=True)
    )
    done = subprocess.run(command, input=data, capture_output=True)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise InputError(
            f"--out: ffmpeg ended with {done.returncode} ({said[-1] if said else 'no word'}): write a .gif"
        )
