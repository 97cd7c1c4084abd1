"""The sides of a judged claim on one and the same task, side by side in one small film for the report."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
from PIL import Image

from core.words.commands import command
from experiments.ledger.ids import readable_id
from experiments.ledger.models import Run
from experiments.ledger.store import Ledger
from experiments.reading.figures import counted_runs
from experiments.reading.films import drawn_frames, gif, task_in_words
from experiments.runs.paths import Paths
from experiments.runs.watching import Watched, watch_task
from experiments.spec import recorded_spec
from experiments.vocabulary import ARMS, Pool

POOL: Pool = "search"  # the confirmation tasks stay with the verdict, which an extension may go on with
EPISODES = 2
WIDTH, HEIGHT = 360, 240  # of one side
FRAMES = 40
FPS = 8.0
COLOURS = 48
LARGEST = 300_000  # bytes of the file


@dataclass(frozen=True)
class ClaimFilm:
    """A film as an address that a page can hold, what is seen, the rows whose models act, and the commands that show them at length."""

    address: str
    caption: str
    rows: str
    again: tuple[str, ...]


def film_claim(ledger: Ledger, campaign_id: int, paths: Paths) -> ClaimFilm | None:
    """Each side's confirmation run of the middle score among those with a kept model, on one task of the search pool.

    None before the verdict, and where a side has no kept model, or one that this code cannot show.
    """
    chosen = [_middle_run(ledger, campaign_id, arm, paths) for arm in ARMS]
    try:
        films = [_live(run, paths) for run in chosen if run is not None]
        if len(films) < len(ARMS):
            return None
        data = _side_by_side(films)
    except Exception:  # a family or model of a plugin may draw anything: a report is never lost for a film
        return None
    names = [readable_id("r", run.id) for run in chosen if run is not None]
    first = films[0]
    totals = "; ".join(f"{film.model} {', '.join(f'{episode.total:.1f}' for episode in film.episodes)}" for film in films)  # fmt: skip
    return ClaimFilm(
        address="data:image/gif;base64," + base64.b64encode(data).decode(),
        caption=f"Task {first.index} of the {POOL} pool ({task_in_words(first)}), {EPISODES} episodes of each side's confirmation run of the middle score. Returns: {totals}.",
        rows=" and ".join(names),
        again=tuple(command("watch", name, "--task", str(first.index)) for name in names),
    )


def _middle_run(ledger: Ledger, campaign_id: int, arm: str, paths: Paths) -> Run | None:
    counted = counted_runs(ledger, campaign_id)
    runs = [
        run
        for run in ledger.runs(campaign_id, purpose="confirmation", arm=arm)
        if run.id in counted
        and run.score is not None
        and not ledger.score_is_hidden(run)
        and paths.model(run.id).with_suffix(".safetensors").is_file()
    ]
    runs.sort(key=lambda run: (run.score or 0.0, run.id))
    return runs[len(runs) // 2] if runs else None


def _live(run: Run, paths: Paths) -> Watched:
    name = readable_id("r", run.id)
    spec = recorded_spec(run.spec, name, run.provenance)
    return watch_task(paths.model(run.id), model=f"{run.model} {name}", spec=spec, pool=POOL, index=None, episodes=EPISODES, seed=0)  # fmt: skip


def _side_by_side(films: list[Watched]) -> bytes:
    """A GIF at equal steps, of as many frames as fit; a side whose episode ended earlier waits for the other."""
    lengths = [max(len(film.episodes[e].lived.rewards) for film in films) for e in range(EPISODES)]
    clock = [(e, step) for e, length in enumerate(lengths) for step in range(length)]
    clock = [clock[i] for i in np.unique(np.linspace(0, len(clock) - 1, FRAMES).round().astype(int))]
    drawn = []
    for film in films:
        moments = [(e, min(step, len(film.episodes[e].lived.rewards) - 1)) for e, step in clock]
        frames, _, _ = drawn_frames(film, moments, WIDTH, HEIGHT)
        drawn.append(list(frames))
    joined = []
    for parts in zip(*drawn, strict=True):
        frame = Image.new("RGB", (WIDTH * len(parts), HEIGHT), "white")
        for number, part in enumerate(parts):
            frame.paste(part, (WIDTH * number, 0))
        joined.append(frame)
    ends = [e != after for (e, _), (after, _) in zip(clock, [*clock[1:], (-1, 0)], strict=True)]
    for every in (1, 2, 3, 4):
        kept = [i for i in range(len(joined)) if i % every == 0 or ends[i]]
        data = gif([joined[i] for i in kept], FPS, [ends[i] for i in kept], colours=COLOURS)
        if len(data) <= LARGEST:
            break
    return data
