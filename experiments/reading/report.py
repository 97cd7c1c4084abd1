"""The report: one self-contained HTML file and a Markdown one, made from ledger rows alone.

`gather` reads the rows into a typed value in which every number stands beside the ids it came from; the templates only
lay it out. What cannot be derived from rows is absent. Also writes the model card of a kept model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from sqlalchemy import func, select

from core.config import FrozenConfig
from core.errors import InputError
from core.files import write_atomic
from core.words.commands import command
from core.words.text import harmless
from env_runner.task_distributions import get_family
from experiments.campaign.plan import Plan
from experiments.campaign.question import Question
from experiments.campaign.steering import HumanWord, human_words
from experiments.judging.claim import ClaimContent
from experiments.judging.judge import VerdictContent, summarise
from experiments.ledger.models import Campaign, Claim, Event, Note, Proposal, Run, Verdict
from experiments.ledger.store import Ledger, readable_id
from experiments.ledger.waste import count_waste
from experiments.numbers import format_count, format_seconds
from experiments.reading.claim_film import film_claim
from experiments.reading.crew import ideas_table, predictions_table
from experiments.reading.figures import campaign_sides, draw_all, span
from experiments.runs.paths import Paths
from experiments.search.sizing import trains
from experiments.spec import recorded_spec
from experiments.tables import TableView
from experiments.vocabulary import ARMS, FINISHED

TEMPLATES = Path(__file__).parent / "templates"


class Trial(FrozenConfig):
    """One search trial with who proposed it and why."""

    run: str
    arm: str
    trial: int
    status: str
    cause: str | None
    score: float | None
    proposer: str
    configuration: str
    reasons: tuple[str, ...]


UNANSWERED = "turns without an answer"


class ArmRows(FrozenConfig):
    """The runs of one arm and purpose with their mean score, from ledger rows."""

    arm: str
    purpose: str
    runs: tuple[str, ...]
    mean: float | None
    finished: int
    env_steps: int


@dataclass(frozen=True)
class Figure:
    """A figure with its words, the rows it shows and the command that draws it again."""

    title: str
    caption: str
    rows: str
    again: str
    svg: str


@dataclass(frozen=True)
class Way:
    """Mean score of a side's chosen configuration at each stage; None where it has none there."""

    arm: str
    search: float | None
    selection: float | None
    confirmation: float | None
    trains: str
    """ "compiled", "memory by autograd" or "by autograd"."""


@dataclass(frozen=True)
class ReportData:
    """Everything the templates lay out."""

    campaign: Campaign
    name: str
    question: Question
    plan: Plan
    challenger: str
    baseline: str
    labels: dict[str, str]
    """Arm -> what its side is called."""
    claim: ClaimContent | None
    claim_id: str | None
    claim_hash: str | None
    verdict: VerdictContent | None
    verdict_id: str | None
    verdict_runs: str
    test: str
    """The claim's test in words."""
    evidence: str
    """The seeds that the verdict rests on, in words."""
    timed: str
    """The verdict at equal training time in words, "" without one."""
    e_value: str
    """The evidence that an extension would go on from, in words."""
    ways: tuple[Way, ...]
    trials: tuple[Trial, ...]
    groups: tuple[ArmRows, ...]
    failures: tuple[Trial, ...]
    figures: tuple[Figure, ...]
    spent: dict[str, str]
    stronger: str
    commands: tuple[tuple[str, str], ...]
    notes: tuple[tuple[str, str], ...]
    events: dict[str, int]
    steering: tuple[HumanWord, ...]
    ideas: TableView
    """What agents proposed, expected and got."""
    predictions: TableView
    """The same by agent."""


def write_report(ledger: Ledger, campaign_id: int, paths: Paths, *, film: bool = True) -> tuple[Path, Path]:
    """Write `report.html` and `report.md` of a campaign and return their paths; with a film of the sides where their models are kept."""
    data = gather(ledger, campaign_id)
    seen = film_claim(ledger, campaign_id, paths) if film and data.verdict is not None else None
    html = paths.report(campaign_id) / "report.html"
    markdown = html.with_suffix(".md")
    page = _templates(lstrip_blocks=True).overlay(autoescape=True).get_template("report.html.j2")
    write_atomic(html, page.render(d=data, film=seen).encode())
    write_atomic(markdown, _markdown(data).encode())
    return html, markdown


def markdown_report(ledger: Ledger, campaign_id: int) -> str:
    """The report as Markdown alone: nothing is drawn, filmed or written."""
    return _markdown(gather(ledger, campaign_id))


def _markdown(data: ReportData) -> str:
    return _templates(lstrip_blocks=True).get_template("report.md.j2").render(d=data, cell=_cell)


def _templates(**options: Any) -> Environment:
    """The templates, in which every value is harmless text whatever a row holds."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, finalize=_harmless, **options
    )
    environment.filters |= {"number": _number, "count": format_count, "seconds": format_seconds}
    return environment


def _harmless(value: Any) -> Any:
    if isinstance(value, Markup):
        return Markup(harmless(str(value), lines=True))  # markup of ours, such as a figure
    return harmless(value, lines=True) if isinstance(value, str) else value


def gather(ledger: Ledger, campaign_id: int) -> ReportData:
    """Read a campaign's rows. Works at any stage; what is not there yet is None or empty."""
    campaign = ledger.get_campaign(campaign_id)
    question, plan = Question.model_validate(campaign.question), Plan.model_validate(campaign.plan)
    runs = ledger.runs(campaign_id)
    with ledger.session() as session:
        claim = session.scalar(select(Claim).where(Claim.campaign_id == campaign_id))
        verdict = session.scalar(select(Verdict).where(Verdict.claim_id == claim.id)) if claim else None
        proposals = list(session.scalars(select(Proposal).where(Proposal.campaign_id == campaign_id, Proposal.superseded.is_(False)).order_by(Proposal.id)))  # fmt: skip
        targets = [readable_id("c", campaign_id), *(readable_id("r", r.id) for r in runs)]
        notes = [(n.author, n.text) for n in session.scalars(select(Note).where(Note.target.in_(targets)))]
        counts = select(Event.kind, func.count()).where(Event.campaign_id == campaign_id).group_by(Event.kind)
        steering = human_words(session, campaign_id)
        events: dict[str, int] = {kind: number for kind, number in session.execute(counts)}
        turns = session.scalars(select(Event).where(Event.campaign_id == campaign_id, Event.kind == "agent"))
        events[UNANSWERED] = sum(bool(turn.payload.get("failed")) for turn in turns)
    content = VerdictContent.model_validate(verdict.content) if verdict else None
    found = ClaimContent.model_validate(claim.content) if claim else None
    trials = tuple(
        _trial(run, proposals) for run in runs if run.trial is not None and run.purpose in ("baseline", "search")
    )
    name = readable_id("c", campaign_id)
    return ReportData(
        campaign=campaign,
        name=name,
        question=question,
        plan=plan,
        challenger=question.challenger.short,
        baseline=question.baseline.short,
        labels={arm: question.side(arm).short for arm in question.arms},
        claim=found,
        claim_id=readable_id("k", claim.id) if claim else None,
        claim_hash=claim.content_hash if claim else None,
        verdict=content,
        verdict_id=readable_id("v", verdict.id) if verdict else None,
        verdict_runs=span(content.run_ids) if content else "",
        test="a paired t-test" if found is None or found.test == "paired" else "Welch's t-test",
        evidence=_evidence(content),
        timed=_timed(content),
        e_value=_e_value(content),
        ways=_ways(ledger, campaign_id, found, content, runs),
        trials=trials,
        groups=_groups(runs, verdict is not None),
        failures=tuple(
            _trial(r, proposals) for r in runs if r.status in FINISHED and r.status not in ("done", "pruned")
        ),
        figures=_figures(ledger, campaign_id, verdict is not None),
        spent=_spent(campaign, plan, runs, events) | _search_economy(ledger, campaign_id, runs),
        stronger=_stronger(content),
        commands=_commands(ledger, name, runs),
        notes=tuple(notes),
        events=events,
        steering=steering,
        ideas=ideas_table(ledger, campaign_id),
        predictions=predictions_table(ledger, campaign_id),
    )


def _evidence(verdict: VerdictContent | None) -> str:
    if verdict is None or verdict.challenger is None or verdict.baseline is None or verdict.test == "paired":
        return f"{verdict.seeds if verdict else 0} paired seeds"
    counts = len(verdict.challenger.seed_means), len(verdict.baseline.seed_means)
    return (
        f"{counts[0]} and {counts[1]} independent seeds"
        if len(set(counts)) > 1
        else f"{counts[0]} independent seeds a side"
    )


def _timed(verdict: VerdictContent | None) -> str:
    timed = verdict.at_equal_time if verdict else None
    if timed is None:
        return ""
    if timed.effect is None or timed.interval is None:
        return f"At equal training time: {timed.outcome}, {timed.reason}"
    low, high = (_number(value) for value in timed.interval)
    return f"At equal training time: {timed.outcome}, effect {_number(timed.effect)} [{low}, {high}]"


def _e_value(verdict: VerdictContent | None) -> str:
    if verdict is None or verdict.e_value is None:
        return ""
    text = f"As evidence that may be added to: e = {verdict.e_value:.3g}"
    return (
        text if verdict.e_product is None else f"{text}, with the claims that this one extends {verdict.e_product:.3g}"
    )


def _ways(
    ledger: Ledger, campaign_id: int, claim: ClaimContent | None, verdict: VerdictContent | None, runs: Sequence[Run]
) -> tuple[Way, ...]:
    """How far each chosen configuration came down from the search to the confirmation: what choosing the best of noisy scores costs."""
    if claim is None or not claim.equal_tuning:
        return ()
    ways = []
    for arm in claim.arms:
        own = [r for r in runs if r.variant_hash == claim.side(arm).variant_hash and r.score is not None]
        by_purpose = {
            "search": [r.score or 0.0 for r in own if r.arm == arm and r.pool == "search" and r.trial is not None][:1],
            "selection": [r.score or 0.0 for r in own if r.arm == arm and r.purpose == "selection"],
        }
        means = {purpose: float(np.mean(scores)) if scores else None for purpose, scores in by_purpose.items()}
        last = [r.score or 0.0 for r in own if r.arm == arm and r.purpose == "confirmation" and r.spec["env_steps"] == claim.lengths(arm)[0]]  # fmt: skip
        confirmed = float(np.mean(last)) if verdict is not None and last else None
        path = _trains(own[0]) if own else ""
        ways.append(Way(arm, means["search"], means["selection"], confirmed, path))
    return tuple(ways)


def _trains(run: Run) -> str:
    """How the policy of a run trains; nothing where a plugin that it needs is not loaded."""
    try:
        return trains(recorded_spec(run.spec, readable_id("r", run.id), run.provenance))
    except InputError:
        return ""


def _trial(run: Run, proposals: Sequence[Proposal]) -> Trial:
    own = [p for p in proposals if p.arm == run.arm and p.trial == run.trial]
    values = _as_trained(run, {k: v for p in own for k, v in p.changes.items()})
    return Trial(
        run=readable_id("r", run.id),
        arm=run.arm or "",
        trial=run.trial or 0,
        status=run.status,
        cause=run.cause,
        score=run.score,
        proposer=run.proposer,
        configuration=", ".join(f"{k.split('.', 1)[1]} {_number(v)}" for k, v in values.items()),
        reasons=tuple(f"{p.role} ({p.source}, {readable_id('p', p.id)}): {p.reason}" for p in own if p.reason),
    )


def _as_trained(run: Run, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was trained with of the fields that were proposed for it; those that its model kind lacks, and those of a part that is
    left out of its specification because it changes nothing, are left out.

    It may be other than what was proposed: sizing scaled `state_dim` with the width in campaigns before `Plan.sizing` 2.
    """
    sections = {**run.spec, "model": run.spec["policy"]["model"]}
    trained = {}
    for name in values:
        section, field, *place = name.split(".")
        if field in sections.get(section, {}):
            trained[f"{section}.{field}"] = "/".join(sections[section][field]) if place else sections[section][field]
    return trained


def _groups(runs: Sequence[Run], judged: bool) -> tuple[ArmRows, ...]:
    """Runs by purpose and arm; the mean of confirmation runs comes with the verdict, not before."""
    groups = []
    for purpose in ("baseline", "search", "selection", "confirmation"):
        for arm in dict.fromkeys([*ARMS, *(r.arm or "" for r in runs if r.arm)]):
            every = [r for r in runs if r.purpose == purpose and r.arm == arm]
            lengths = dict.fromkeys(r.spec["env_steps"] for r in every) if purpose == "confirmation" else [None]
            for length in lengths:
                own = [r for r in every if length in (None, r.spec["env_steps"])]
                if not own:
                    continue
                scores = [r.score for r in own if r.score is not None]
                groups.append(
                    ArmRows(
                        arm=arm,
                        purpose=purpose,
                        runs=tuple(readable_id("r", r.id) for r in own),
                        mean=float(np.mean(scores)) if scores and (judged or purpose != "confirmation") else None,
                        finished=len(scores),
                        env_steps=sum(r.env_steps for r in own),
                    )
                )
    return tuple(groups)


def _figures(ledger: Ledger, campaign_id: int, judged: bool) -> tuple[Figure, ...]:
    if not judged:
        return ()
    from experiments.reading import plots

    try:
        drawn = draw_all(ledger, campaign_sides(ledger, campaign_id))
    except InputError:  # a side has no finished run
        return ()
    name = readable_id("c", campaign_id)
    return tuple(
        Figure(d.title, d.caption, d.rows, command("plot", name, "--what", d.what), plots.svg(d.figure)) for d in drawn
    )


def _search_economy(ledger: Ledger, campaign_id: int, runs: Sequence[Run]) -> dict[str, str]:
    """What pruning saved and what came to nothing among the search trials, with the rows they are counted from."""
    found = {"wasted trials": count_waste(ledger, campaign_id).sentence()}
    pruned = [r for r in runs if r.status == "pruned"]
    if pruned:
        saved = sum(int(r.spec["env_steps"]) - r.env_steps for r in pruned)
        found["pruned"] = (
            f"{len(pruned)} search runs ended early, which saved {format_count(saved)} env steps ({span([r.id for r in pruned])})"
        )
    return found


def _spent(campaign: Campaign, plan: Plan, runs: Sequence[Run], events: dict[str, int]) -> dict[str, str]:
    wall = format_seconds(campaign.spent_s)
    if plan.budget.wall_s is not None:
        wall += f" of {format_seconds(plan.budget.wall_s)}"
    steps = sum(r.env_steps for r in runs)
    return {
        "wall time": wall,
        "env steps": f"{format_count(steps)} of {format_count(plan.env_steps_total)} planned",
        "runs": f"{sum(r.status in FINISHED for r in runs)} of {plan.runs} planned",
        "tool calls": str(events.get("tool_call", 0)),
        "model calls": f"{events.get('llm_call', 0)} ({campaign.llm})" + _unanswered(events),
    }


def _stronger(verdict: VerdictContent | None) -> str:
    """What would make the evidence stronger, computed from the measured spread."""
    if verdict is None or verdict.effect is None or verdict.interval is None or verdict.seeds < 2:
        return ""
    if verdict.outcome != "inconclusive":
        return "More seeds would narrow the interval; other budgets and tasks are other questions."
    beyond = verdict.effect - verdict.margin
    spread = (verdict.minimum_detectable_effect or 0.0) and _spread(verdict)
    if not beyond or not spread:
        return "A longer budget, so that both sides learn the task."
    needed = int(np.ceil(((1.96 + 0.84) * spread / abs(beyond)) ** 2))
    if needed <= verdict.seeds:
        return "A longer budget, so that the better side learns the task."
    if needed > 500:
        return (
            f"The measured difference ({verdict.effect:+.2g}, spread {spread:.2g} a pair) is so small that no practical number "
            "of seeds would show it; a longer budget asks another question."
        )
    return (
        f"If the true difference is the measured one ({verdict.effect:+.1f}, spread {spread:.1f} a pair), about {needed} seeds a side "
        f"would show it with 80 % power (normal approximation); {verdict.seeds} were used."
    )


def _spread(verdict: VerdictContent) -> float:
    assert verdict.challenger is not None
    assert verdict.baseline is not None
    return float(np.std(np.subtract(verdict.challenger.seed_means, verdict.baseline.seed_means), ddof=1))


def _unanswered(events: Mapping[str, int]) -> str:
    """That agents were asked and did not answer, where it was so: code then went on in their place."""
    failed, turns = events.get(UNANSWERED, 0), events.get("agent", 0)
    return f"; {failed} of {turns} turns had no answer, and code went on without" if failed else ""


def _commands(ledger: Ledger, name: str, runs: Sequence[Run]) -> tuple[tuple[str, str], ...]:
    """What to type next; every one of them works now: before the verdict no confirmation run may be shown."""
    commands = [
        ("this report", command("report", name)),
        ("every run behind it", command("runs", "--campaign", name, "--limit", "200")),
    ]
    done = [r for r in runs if r.status == "done" and not ledger.score_is_hidden(r)]
    for purpose in ("confirmation", "selection", "search", "baseline"):
        own = [r for r in done if r.purpose == purpose]
        if own:
            commands.append((f"a {purpose} run, exactly", command("rerun", readable_id("r", own[0].id), "--check")))
    return tuple(commands)


def _number(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _cell(text: object) -> str:
    """Text inside a Markdown table: no pipes, no line ends, no markup."""
    words = " ".join(str(text).split())
    for mark in ("\\", "|", "`", "<", ">", "*", "[", "]"):
        words = words.replace(mark, "\\" + mark)
    return words


def keep_model(ledger: Ledger, campaign_id: int, paths: Paths) -> Path | None:
    """Copy the best confirmation run of the better side to `saved_models/` with its model card; None without one."""
    data = gather(ledger, campaign_id)
    verdict = data.verdict
    if verdict is None or verdict.challenger is None or verdict.baseline is None:
        return None
    means = {"challenger": verdict.challenger.mean, "baseline": verdict.baseline.mean}
    for pair in verdict.pairs:
        means |= {name: mean for name, mean in ((pair.first, pair.first_mean), (pair.second, pair.second_mean)) if mean is not None}  # fmt: skip
    arm = max(means, key=lambda name: means[name])
    runs = [r for r in ledger.runs(campaign_id, purpose="confirmation", arm=arm) if r.score is not None and r.id in verdict.run_ids]  # fmt: skip
    values = ledger.scored_values([r.id for r in runs])
    scores = np.array(
        [[value for _, value in sorted(values[r.id].items())] for r in sorted(runs, key=lambda r: r.seed)]
    )
    result = getattr(verdict, arm) if arm in ARMS else summarise(scores)
    best = max(runs, key=lambda r: (r.score or 0.0, -r.id))
    source = paths.model(best.id)
    if not source.with_suffix(".safetensors").is_file():
        return None
    folder = paths.saved_models / f"{data.question.task}-{best.model}-{data.name}".replace(":", "-").replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in (".safetensors", ".json"):
        shutil.copyfile(source.with_suffix(suffix), folder / f"model{suffix}")
    write_atomic(folder / "spec.json", json.dumps(best.spec, indent=1).encode())
    card = (
        _templates()
        .get_template("model_card.md.j2")
        .render(
            d=data,
            run=best,
            run_name=readable_id("r", best.id),
            result=result,
            arm=arm,
            family=get_family(data.question.task),
        )
    )
    write_atomic(folder / "README.md", card.encode())
    return folder
