"""The command `plot`: figures of a campaign or of runs as an SVG, PNG or HTML file of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from sqlalchemy import select

from core.config import FrozenConfig
from core.errors import InputError, bad_value
from core.files import write_atomic
from core.words.text import harmless
from experiments.ledger.ids import readable_id
from experiments.ledger.models import Run
from experiments.ledger.store import Ledger
from experiments.reading import plots
from experiments.reading.figures import KINDS, Drawn, campaign_sides, draw, draw_all, run_sides
from experiments.runs.paths import Paths

FORMATS = (".svg", ".png", ".html")
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title><style>
body {{ margin: 0; color: #1d2429; background: #fff; font: 15px/1.5 system-ui, sans-serif; }}
main {{ max-width: 1000px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }} h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.1rem; margin: 1.5rem 0 .25rem; }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 0 2rem; align-items: start; }}
figure {{ margin: 0 0 1rem; }} figure svg {{ width: 100%; height: auto; }} figcaption {{ font-size: .85rem; color: #5d6a73; }}
</style></head><body><main><h1>{title}</h1><div class="figures">
{figures}
</div></main></body></html>
"""


class FigureView(FrozenConfig):
    """One figure and the rows that it shows."""

    what: str
    title: str
    caption: str
    rows: str


class PlotFile(FrozenConfig):
    """A written file of figures."""

    file: str
    figures: tuple[FigureView, ...]


def write_plot(ledger: Ledger, paths: Paths, targets: Sequence[str], *, what: str | None, out: str | None) -> PlotFile:
    """Draw one campaign or some runs; `what` None: the learning curves, or in an HTML file every figure there is."""
    rows = [ledger.locate(target, ("campaign", "run") if target.strip().startswith("@") else ("run", "campaign")) for target in targets]  # fmt: skip
    if {kind for kind, _ in rows} == {"campaign"} and len(rows) == 1:
        number = rows[0][1]
        sides, name = campaign_sides(ledger, number), readable_id("c", number)
        title = harmless(f"{ledger.get_campaign(number).goal} ({name})")
    elif {kind for kind, _ in rows} == {"run"}:
        sides = run_sides(ledger, [number for _, number in rows])
        names = [readable_id("r", number) for _, number in rows]
        name = "-".join(names[:3]) + ("-and-more" if len(names) > 3 else "")
        title = harmless(f"{sides[0].runs[0].task}: {' and '.join(side.label for side in sides)}")
    else:
        raise bad_value("plot", " ".join(targets), "one campaign, such as c-0001, or runs, such as r-0001 r-0002")
    file = Path(out) if out is not None else paths.data / "plots" / f"{name}-{what or 'curves'}.svg"
    if file.suffix.lower() not in FORMATS:
        raise bad_value("--out", out, f"a file that ends in {', '.join(FORMATS)}")
    if what is None and file.suffix.lower() == ".html":
        drawn = draw_all(ledger, sides)
        if not drawn:
            draw(ledger, sides, "curves")  # says why there is nothing
    else:
        drawn = (draw(ledger, sides, what or "curves"),)
    try:
        write_atomic(file, _content(file.suffix.lower(), title, drawn))
    except OSError as error:
        raise InputError(f"--out: cannot write {file} ({error.strerror})") from None
    views = tuple(FigureView(what=d.what, title=d.title, caption=d.caption, rows=d.rows) for d in drawn)
    return PlotFile(file=str(file), figures=views)


def write_every_plot(ledger: Ledger, paths: Paths, folder: Path) -> list[tuple[PlotFile, list[str]]]:
    """A PNG of every figure of every task's finished runs that persons started, of the longest training alone where there are
    several lengths; each with the runs that it shows."""
    query = select(Run).where(Run.status == "done", Run.purpose.in_(("manual", "rerun")), Run.score.is_not(None))
    with ledger.session() as session:
        runs = [run for run in session.scalars(query.order_by(Run.id)) if not ledger.score_is_hidden(run)]
    written = []
    for task in dict.fromkeys(run.task for run in runs):
        longest = max(int(run.spec["env_steps"]) for run in runs if run.task == task)
        names = [readable_id("r", r.id) for r in runs if r.task == task and int(r.spec["env_steps"]) == longest]
        for what in KINDS:
            file = folder / f"{re.sub(r'[^A-Za-z0-9_.=,-]', '-', task)}-{what}.png"
            try:
                written.append((write_plot(ledger, paths, names, what=what, out=str(file)), names))
            except InputError as error:
                if str(error).startswith("--out"):
                    raise
    return written


def _content(suffix: str, title: str, drawn: Sequence[Drawn]) -> bytes:
    if suffix == ".html":
        figures = "\n".join(
            f"<figure><h2>{escape(d.title)}</h2>{plots.svg(d.figure)}<figcaption>{escape(d.caption)} ({escape(d.rows)})</figcaption></figure>"
            for d in drawn
        )
        return PAGE.format(title=escape(title), figures=figures).encode()
    (one,) = drawn
    plots.inscribe(one.figure, title, f"{one.caption} From {one.rows}.")
    return plots.svg(one.figure).encode() if suffix == ".svg" else plots.png(one.figure)
