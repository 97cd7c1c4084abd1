"""What each page holds: the values that commands print with `--json`, under the commands' names, and charts of the same rows.

A page asks the reading wing what the command asks it, so what a command hides a page hides too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from core.errors import InputError
from core.words.commands import command
from experiments.campaign.evidence import Evidence
from experiments.campaign.plan import Plan
from experiments.campaign.question import Question
from experiments.campaign.steering import open_wait
from experiments.campaign.trials import Trials
from experiments.ledger.ids import LETTERS
from experiments.ledger.store import Ledger
from experiments.numbers import format_count, format_seconds
from experiments.reading import queries
from experiments.reading.compare import compare as compare_runs
from experiments.reading.compare import sentence
from experiments.reading.crew import talk
from experiments.reading.figures import Search, curve, search_so_far
from experiments.serving.drawing import Line, Mark, best_line, chart
from experiments.tables import TableView
from experiments.vocabulary import ARMS, FINISHED, STAGES, readable_id

LISTED = ("presets", "models", "tasks", "learners")
MOST_RUNS = 200
MOST_COMPARED = 8


@dataclass(frozen=True)
class Page:
    """One page: its template and what that lays out."""

    template: str
    title: str
    views: Mapping[str, Any]
    """Command -> what its `--json` prints; the page's JSON."""
    shown: Mapping[str, Any] = field(default_factory=dict)
    """What the template needs besides: charts, sentences, commands to copy."""
    is_live: bool = False
    """Whether what it shows may change any moment."""

    def as_json(self) -> dict[str, Any]:
        return {name: view.records() if isinstance(view, TableView) else view for name, view in self.views.items()}


def front(ledger: Ledger) -> Page:
    """Every campaign, what is open and what trains."""
    campaigns, runs = queries.list_active(ledger)
    listed = queries.list_campaigns(ledger)
    newest_first = listed.model_copy(update={"rows": listed.rows[::-1]})
    views = {"campaigns": newest_first, "status": {"campaigns": campaigns.records(), "runs": runs.records()}}
    shown = {"training": runs, "note": campaigns.note, "start": command("--goal", "beat LSTM on halfcheetah-vel")}
    return Page("front.html.j2", "Campaigns", views, shown, is_live=bool(campaigns.rows or runs.rows))


def runs(ledger: Ledger, *, campaign: str, where: str, sort: str, limit: int) -> Page:
    """A list of runs, as the command `runs` makes it."""
    number = ledger.resolve(campaign, "campaign") if campaign else None
    listed = queries.list_runs(ledger, campaign=number, where=where or None, sort=sort or None, limit=limit)
    if not sort:  # a page is read from its top
        listed = listed.model_copy(update={"rows": listed.rows[::-1]})
    asked = {"campaign": campaign, "where": where, "sort": sort, "limit": limit}
    return Page("runs.html.j2", "Runs", {"runs": listed}, {"asked": asked})


def registered(what: str) -> Page:
    """Presets, models, tasks or learners, as the command `list` shows them. InputError for another word."""
    listed = queries.list_registered(what)
    return Page("list.html.j2", what.capitalize(), {"list": listed}, {"note": listed.note, "names": LISTED})


def row(ledger: Ledger, value: str) -> Page:
    """The page of whatever row is named. InputError, with the nearest id, where none is."""
    kind, number = ledger.locate(value)
    name = f"{LETTERS[kind]}-{number:04d}"
    described = queries.describe_row(ledger, name)
    if kind == "campaign":
        return _campaign(ledger, number, described)
    if kind == "run":
        return _run(ledger, number, described)
    if kind in ("claim", "verdict"):
        return _claim(ledger, kind, described)
    return Page("row.html.j2", name, {"show": described})


def _campaign(ledger: Ledger, number: int, described: dict[str, Any]) -> Page:
    name = readable_id("c", number)
    left, search = queries.what_is_left(ledger, number), search_so_far(ledger, number)
    with ledger.session() as session:
        waiting = open_wait(session, number)
    _, active = queries.list_active(ledger)
    training = [r for r in active.records() if r["campaign"] == name and r["status"] == "running"]
    said = [{"event": e.id, "kind": e.kind, "actor": e.actor, **e.payload} for e in talk(ledger, number)]
    at = {e.id: f"{e.created_at:%H:%M}" for e in talk(ledger, number)}
    listed = queries.list_runs(ledger, campaign=number, limit=MOST_RUNS)
    views = {"show": described, "resume": left, "runs": listed, "transcript": said}
    is_open = left["stage"] != "done"
    next_command = {"interrupted": "resume", "paused": "resume", "failed": "resume"}.get(left["status"])
    if waiting is not None:
        next_command = "approve"
    shown = {
        "name": name,
        "stages": [(s, _place(s, left["stage"])) for s in STAGES],
        "spent": _spent(left),
        "training": training,
        "chart": _search_chart(search),
        "waiting": waiting.what if waiting is not None else "",
        "talk": [(at[s["event"]], s) for s in reversed(said)],
        "commands": [command(next_command, name)] if is_open and next_command else [command("report", name)],
        "configurations": {n: described[n] for n in ("question", "plan", "provenance")},
        "predictions": described.get("predictions"),
        "ideas": described.get("ideas"),
    }
    return Page("campaign.html.j2", f"{name}: {described['goal']}", views, shown, is_live=is_open)


def _place(stage: str, now: str) -> str:
    here, present = STAGES.index(stage), STAGES.index(now)
    return "past" if here < present or now == "done" else "now" if here == present else "to come"


def _spent(left: Mapping[str, Any]) -> list[tuple[str, float, float, str]]:
    """(what, spent, of how much, in words) of a campaign's budget."""
    bars = []
    if left["wall_s_budget"]:
        words = f"{format_seconds(left['wall_s_spent'])} of {format_seconds(left['wall_s_budget'])}"
        bars.append(("time", left["wall_s_spent"], left["wall_s_budget"], words))
    for what, shown in (("env_steps", format_count), ("runs", str)):
        spent = left["runs_finished" if what == "runs" else "env_steps_spent"]
        total = spent + left[f"{what}_left"]
        bars.append((what.replace("_", " "), spent, total, f"{shown(spent)} of {shown(total)}"))
    return bars


def _search_chart(search: Search) -> Markup:
    """Every scored run of the search, the best so far of each side, and the band that noise alone makes."""
    arms = sorted({run.arm or "" for run in search.runs}, key=lambda arm: (arm not in ARMS, ARMS.index(arm) if arm in ARMS else 0, arm))  # fmt: skip
    places = {run.id: float(place + 1) for place, run in enumerate(search.runs)}
    lines, marks = [], []
    for colour, arm in enumerate(arms):
        own = [(run, (places[run.id], run.score or 0.0)) for run in search.runs if run.arm == arm]
        last = [(float(len(search.runs)), -float("inf"))]  # the best holds until the newest run
        lines.append(Line(f"{arm}, best so far", best_line([*(point for _, point in own), *last]), colour))
        marks += [
            Mark(point, colour, readable_id("r", run.id), f"{readable_id('r', run.id)} {run.model}: {point[1]:.1f}")
            for run, point in own
        ]
    band = None
    if search.default is not None and search.noise_floor is not None:
        low, high = search.default - search.noise_floor, search.default + search.noise_floor
        band = (low, high, f"the baseline's default, {search.default:.1f} ± {search.noise_floor:.1f} over seeds")
    return chart(lines, x="finished search runs", y="score", marks=marks, band=band)


def _run(ledger: Ledger, number: int, described: dict[str, Any]) -> Page:
    run = ledger.get_run(number)
    found = curve(ledger, number)
    points = [] if found is None else [(float(s), float(v)) for s, v in zip(*found, strict=True)]
    name = readable_id("r", number)
    hidden = ""
    try:
        ledger.must_show(run)
    except InputError as error:
        hidden = str(error)
    again = [command("rerun", name, "--check")] if run.status == "done" and not hidden else []
    planned = run.spec.get("env_steps") or 0
    shown = {
        "name": name,
        "chart": chart([Line(f"{name}, mean return of training episodes", points, 0)], x="env steps", y="return"),
        "hidden": hidden,
        "commands": [*again, command("show", name)],
        "share": (run.env_steps, planned, f"{format_count(run.env_steps)} of {format_count(planned)} env steps"),
        "ended": run.status in FINISHED,
    }
    return Page("run.html.j2", f"{name}: {run.model} on {run.task}", {"show": described, "curve": points}, shown, is_live=run.status not in FINISHED)  # fmt: skip


def _claim(ledger: Ledger, kind: str, described: dict[str, Any]) -> Page:
    claim = described["claim"]
    views = {
        "show": described,
        "runs": queries.list_runs(ledger, where=f"claim={claim}", everything=True, limit=MOST_RUNS),
    }
    return Page("claim.html.j2", described[kind], views, {"kind": kind, "name": described[kind]})


def compare(ledger: Ledger, names: Sequence[str]) -> Page:
    """Two runs or more, the first against each of the others. InputError for a score that is not shown yet."""
    numbers = list(dict.fromkeys(ledger.resolve(name, "run") for name in names))
    ids = [readable_id("r", number) for number in numbers]
    if len(ids) > MOST_COMPARED:
        raise InputError(f"compare: got {len(ids)} runs, allowed: 2 to {MOST_COMPARED}")
    found = [compare_runs(ledger, ids[0], other) for other in ids[1:]]
    lines = []
    for colour, (number, name) in enumerate(zip(numbers, ids, strict=True)):
        steps = curve(ledger, number)
        if steps is not None:
            lines.append(Line(f"{name} {ledger.get_run(number).model}", [(float(s), float(v)) for s, v in zip(*steps, strict=True)], colour))  # fmt: skip
    tasks = {ledger.get_run(number).task for number in numbers}
    drawn = chart(lines, x="env steps", y="return") if len(tasks) < 2 else Markup("")
    said = [
        [sentence(pairs, one, unit) for pairs, unit in ((one.by_task, "tasks"), (one.by_seed, "shared seeds")) if pairs]
        for one in found
    ]
    shown = {"asked": " ".join(ids), "chart": drawn, "said": said}
    return Page("compare.html.j2", " and ".join(ids) if ids else "Compare", {"compare": found}, shown)


def space(ledger: Ledger, value: str) -> Page:
    """What a campaign searches, by arm, as its crew sees it."""
    number = ledger.resolve(value, "campaign")
    row = ledger.get_campaign(number)
    trials = Trials(ledger, number, Question.model_validate(row.question), Plan.model_validate(row.plan), row.seed)
    evidence = Evidence(trials)
    name = readable_id("c", number)
    views = {arm: evidence.describe_search_space(arm) for arm in trials.arms}
    return Page("space.html.j2", f"What {name} searches", {"space": views}, {"name": name})
