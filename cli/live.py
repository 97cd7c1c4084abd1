"""What a person sees: tables, the plan, the verdict, and a live view. Text of models is never read as markup."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from core.words.text import plain
from experiments.campaign.design import LOOKS_FROM
from experiments.campaign.lab import Lab
from experiments.campaign.plan import Plan
from experiments.campaign.question import Question
from experiments.judging.judge import VerdictContent
from experiments.ledger.store import readable_id
from experiments.metrics import parse_metric
from experiments.numbers import format_count, format_seconds
from experiments.reading.figures import span
from experiments.reading.following import Followed
from experiments.runs.runner import RunProgress
from experiments.tables import table

COLOURS = {"confirmed": "green", "refuted": "red", "equivalent": "cyan", "inconclusive": "yellow", "invalid": "red"}
TALK_LINES = 8
_ORDINALS = ("the first", "the second", "the third", "the fourth", "the fifth")


def plan_text(question: Question, plan: Plan) -> str:
    """The plan with its budget, in a few lines."""
    design = plan.design
    arms = "each side" if plan.tuned_arms > 1 else "the challenger"
    cost = f"{format_count(plan.env_steps_total)} env steps in {plan.runs} runs, {plan.workers} at once"
    if plan.expected_s is not None:
        cost += f", about {format_seconds(plan.expected_s)}"
        if plan.budget.wall_s is not None:
            cost += f" of {format_seconds(plan.budget.wall_s)}"
    from_seeds = LOOKS_FROM if plan.judging > 1 else 7
    at_most = " at most" if design.confirmation_seeds >= from_seeds else ""
    early = ""
    if plan.pruning is not None:
        early = f"; weak ones end after {' or '.join(format_count(rung) for rung in plan.pruning.rungs)}"
    what = question.score_in_words
    what = "return of the first episode" if what == "return" else what
    seeds = f"{design.selection_seeds} fresh seed{'s' if design.selection_seeds > 1 else ''}"
    chosen = f"best {design.top} again on {seeds}"
    if len(set(design.race)) > 1:
        field = ", ".join(f"{count} on {_ORDINALS[place]}" for place, count in enumerate(design.race))
        chosen = f"the best race on fresh seeds: {field}"
    tuned = (
        ("all defaults" if question.rivals else "both defaults")
        if plan.pilot
        else f"the default {question.baseline.label}"
    )
    remembered = ", one of them remembered from an earlier campaign" if plan.memory else ""
    parity = "at equal env steps and at equal training time, " if plan.timed else ""
    if question.parity == "time":
        parity = "at equal training time, "
    return "\n".join(
        [
            f"Measure    mean {what} on held-out tasks, {question.direction}",
            f"Plan       {cost} (design: {design.name})",
            f"  baseline      {design.baseline_seeds} seeds of {tuned} "
            f"at {format_count(plan.env_steps_search)} steps: the noise floor",
            f"  search        {plan.trials} configurations for {arms}{remembered} at {format_count(plan.env_steps_search)} steps, same optimizer{early}",
            f"  selection     {chosen} at {format_count(plan.env_steps_full)} steps",
            f"  confirmation  {design.confirmation_seeds} fresh seeds a side{at_most} on the held-out tasks at "
            f"{format_count(plan.env_steps_full)} steps, {parity}judged by code",
        ]
    )


def verdict_lines(
    verdict: VerdictContent, question: Question, plan: Plan, trials: int, campaign_id: str, claim_id: str
) -> list[str]:
    """The verdict in five lines: outcome, effect, sides, evidence, rows."""
    challenger, baseline = question.challenger.short, question.baseline.short
    lines = [f"{verdict.outcome.upper()}: {verdict.reason}"]
    if verdict.effect is not None and verdict.interval is not None:
        assert verdict.challenger is not None
        assert verdict.baseline is not None
        low, high = verdict.interval
        lines.append(
            f"effect {verdict.effect:+.1f}, 95 % interval [{low:+.1f}, {high:+.1f}], p = {verdict.p_value:.2g}"
        )
        lines.append(
            f"{challenger} {verdict.challenger.mean:.1f} (worst seed {verdict.challenger.worst_seed:.1f}) against "
            f"{baseline} {verdict.baseline.mean:.1f} (worst seed {verdict.baseline.worst_seed:.1f})"
        )
    for pair in verdict.pairs:
        low, high = pair.interval or (math.nan, math.nan)
        numbers = "" if pair.effect is None else f", effect {pair.effect:+.1f} [{low:+.1f}, {high:+.1f}]"
        lines.append(
            f"{question.side(pair.first).short} against {question.side(pair.second).short}: {pair.outcome}{numbers}"
        )
    timed = verdict.at_equal_time
    if timed is not None:
        low, high = timed.interval or (math.nan, math.nan)
        numbers = "" if timed.effect is None else f", effect {timed.effect:+.1f} [{low:+.1f}, {high:+.1f}]"
        lines.append(f"at equal training time: {timed.outcome}{numbers}")
    tried = f"{trials} trials a side" if question.baseline_is_tuned else f"{trials} trials"
    seeds = f"{verdict.seeds or 'no'} paired seeds"  # those that had finished, where a person stopped the confirmation
    if verdict.test == "welch" and verdict.challenger is not None and verdict.baseline is not None:
        counts = sorted({len(verdict.challenger.seed_means), len(verdict.baseline.seed_means)})
        seeds = f"{' and '.join(map(str, counts))} independent seeds a side"
    lines.append(f"{seeds}, {tried}, {format_count(plan.confirmation_steps)} env steps a run")
    lines.append(f"rests on {campaign_id}, {claim_id}, runs {span(verdict.run_ids) or 'none'}")
    return lines


def verdict_panel(lines: Sequence[str], outcome: str) -> Panel:
    """The verdict in a frame."""
    body = Text()
    for index, line in enumerate(lines):
        end = "\n" if index < len(lines) - 1 else ""
        body.append(line + end, style=f"bold {COLOURS[outcome]}" if index == 0 else "")
    return Panel(body, title="verdict", border_style=COLOURS[outcome], expand=False)


class LiveView:
    """Shows a campaign while it runs: rich and redrawn on a terminal, plain lines elsewhere, nothing when quiet.

    `on_progress` and `on_event` may be called from any thread. redraw: False for plain lines on a terminal too.
    """

    def __init__(self, console: Console, *, quiet: bool = False, redraw: bool = True) -> None:
        self.console, self.quiet = console, quiet
        self.lab: Lab | Followed | None = None
        self._runs: dict[int, RunProgress] = {}
        self._talk: list[tuple[str, str]] = []
        self._asked: dict[str, str] = {}  # the tool call of an agent that has no result yet
        self._waiting = ""
        self._model: tuple[str, str] | None = None  # tokens and dollars of the chat model
        self._best: dict[str, str] = {}
        self._lock = threading.Lock()
        self._announced: dict[int, float] = {}
        self._numbers: tuple[float, Any, int] = (0.0, None, 0)  # when, the budget, env steps of running runs in it
        interactive = redraw and console.is_terminal and not console.is_dumb_terminal and not quiet
        self._live = (
            Live(console=console, get_renderable=self._render, refresh_per_second=4, transient=True)
            if interactive
            else None
        )

    def __enter__(self) -> LiveView:
        if self._live is not None:
            self._read_best()  # of earlier sittings
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def on_progress(self, progress: RunProgress) -> None:
        """A run moved on."""
        with self._lock:
            finished = progress.status != "running"
            if finished:
                self._runs.pop(progress.run_id, None)
            else:
                self._runs[progress.run_id] = progress
        if finished:
            self.refresh(force=True)
            words = f"{readable_id('r', progress.run_id)} {progress.purpose} {progress.arm or ''} {progress.model}: {progress.status}"
            if progress.score is not None and progress.purpose != "confirmation":
                words += f", {parse_metric(progress.scored_by).shown(progress.score)}"
            if progress.purpose in ("baseline", "search"):
                self._read_best()
            self._line("lab", words)
        elif self._live is None and time.monotonic() - self._announced.get(progress.run_id, 0.0) > 30:
            self._announced[progress.run_id] = time.monotonic()
            self._line("lab", _running_words(progress))

    def on_event(self, kind: str, actor: str, text: str, payload: Mapping[str, Any] | None = None) -> None:
        """The crew said or did something. A tool's call and its result become one line."""
        self.refresh()
        with self._lock:
            self._waiting = plain(text) if kind == "waiting" else ""
            if kind == "llm_call":
                self._model = _spending(payload or {}) or self._model
            elif kind == "tool_call":
                self._asked[actor] = text
            called = self._asked.pop(actor, "") if kind == "tool_result" else ""
        if kind in ("llm_call", "tool_call"):
            return
        if kind == "tool_result":
            self._line(actor, f"{_shortened(called)} → {text}")
        elif kind != "waiting" or self._live is None:  # a live view shows below what is waited for
            self._line(actor, text)

    def _line(self, actor: str, words: str) -> None:
        words = plain(words)
        with self._lock:
            if self._talk[-1:] == [(actor, words)]:
                return
            self._talk = [*self._talk, (actor, words)][-TALK_LINES:]
        if self._live is None and not self.quiet:
            line = Text(f"{actor}: ", style="bold")
            line.append(words[:400], style="not bold")
            self.console.print(line, soft_wrap=True)

    def refresh(self, *, force: bool = False) -> None:
        """Read the budget from the ledger, at most every two seconds."""
        if self.lab is None or self._live is None:
            return
        if force or time.monotonic() - self._numbers[0] > 2:
            budget = self.lab.budget()
            with self._lock:
                self._numbers = (time.monotonic(), budget, sum(run.env_steps for run in self._runs.values()))

    def _read_best(self) -> None:
        """The best search run of every arm, with its distance from the baseline's default."""
        if self.lab is None or self._live is None:
            return
        metric = parse_metric(self.lab.question.metric)
        for row in self.lab.ledger_query("incumbent").records():
            floors = row["noise floors"]
            distance = "" if floors is None else f", {floors:+.1f} noise floors"
            with self._lock:
                shown = metric.shown(float(row["score"] or 0.0)).removeprefix("return ")
                self._best[str(row["arm"])] = f"{shown} ({row['run']}{distance})"

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = []
        width = max(self.console.width, 40)
        with self._lock:
            runs, talk, best = list(self._runs.values()), list(self._talk), dict(self._best)
            _, budget, counted = self._numbers
            asked = [(actor, f"{_shortened(words)} ...") for actor, words in self._asked.items()]
        if self.lab is not None and budget is not None:
            bars = Table.grid(padding=(0, 1))
            bar = max(10, min(40, width - 50))
            steps = budget.env_steps_spent - counted + sum(run.env_steps for run in runs)
            if budget.wall_s_planned:
                spent = self.lab.economy.spent_s
                bars.add_row("time", ProgressBar(total=budget.wall_s_planned, completed=spent, width=bar), f"{format_seconds(spent)} of {format_seconds(budget.wall_s_planned)}")  # fmt: skip
            bars.add_row("env steps", ProgressBar(total=budget.env_steps_planned, completed=steps, width=bar), f"{format_count(steps)} of {format_count(budget.env_steps_planned)}")  # fmt: skip
            bars.add_row("runs", ProgressBar(total=budget.runs_planned, completed=budget.runs_finished, width=bar), f"{budget.runs_finished} of {budget.runs_planned}")  # fmt: skip
            for name, words in zip(("tokens", "dollars"), self._model or (), strict=False):
                if words:
                    bars.add_row(name, "", words)
            parts += [bars, Text()]
        if runs:
            rows = [
                (
                    readable_id("r", run.run_id),
                    run.purpose,
                    run.arm or "",
                    run.model,
                    f"{100 * run.env_steps / run.env_steps_planned:.0f} %",
                    f"{run.steps_per_s:,.0f}/s" if run.steps_per_s else "–",
                    f"{run.train_return:.1f}" if run.train_return is not None else "–",
                )
                for run in sorted(runs, key=lambda r: r.run_id)
            ]
            parts += [table(("run", "for", "arm", "model", "done", "steps", "return"), rows), Text()]
        for arm, words in sorted(best.items()):
            parts.append(Text(f"best {arm:<11} {words}"))
        if best:
            parts.append(Text())
        for actor, words in [*talk, *asked]:
            line = Text(f"{actor:<15.15} ", style="bold cyan")
            line.append(words, style="not bold default")
            line.truncate(width - 1, overflow="ellipsis")
            parts.append(line)
        if self._waiting:
            parts += [Text(), Text(self._waiting, style="bold yellow")]
        return Group(*parts)


def _shortened(call: str) -> str:
    """A tool's call without the arguments that were left empty, cut so that its result has room."""
    name, _, rest = call.partition("(")
    parts = [p for p in rest.removesuffix(")").split(", ") if not p.endswith(("=null", "=[]", "="))]
    words = f"{name}({', '.join(parts)})" if parts and parts != [""] else name
    return words if len(words) <= 44 else words[:43] + "…"


def _spending(payload: Mapping[str, Any]) -> tuple[str, str] | None:
    """Tokens and dollars of the campaign so far, with their caps; None where the model costs neither."""
    tokens, cap = payload.get("tokens_so_far"), payload.get("max_tokens")
    if not tokens:
        return None
    words = format_count(tokens) + (f" of {format_count(cap)}" if cap else "")
    usd, usd_cap = payload.get("usd_so_far"), payload.get("max_usd")
    return words, "" if usd is None else f"{usd:.4f}" + (f" of {usd_cap:g}" if usd_cap else "")


def _running_words(run: RunProgress) -> str:
    rate = f", {run.steps_per_s:,.0f} steps/s" if run.steps_per_s else ""
    value = f", training return {run.train_return:.1f}" if run.train_return is not None else ""
    return (
        f"{readable_id('r', run.run_id)} {run.purpose} {run.arm or ''} {run.model}: "
        f"{format_count(run.env_steps)} of {format_count(run.env_steps_planned)} steps{rate}{value}"
    )
