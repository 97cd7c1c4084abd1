"""Watch a campaign that another process works on, from any terminal, as if it ran here."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from cli.options import LedgerOptions
from core.words.commands import command

if TYPE_CHECKING:
    from experiments.ledger.store import Ledger
    from experiments.reading.following import Followed
    from experiments.runs.paths import Paths

LOOK_EVERY_S = 1.0
START_S = 120.0  # that a process which was put in the background may take until it works on its campaign
REPORT_S = 60.0  # that a campaign which has just ended may take for its report


def attach(campaign: str | None = None, /, *, options: LedgerOptions = LedgerOptions()) -> int:
    """Show a running campaign live, from any terminal. Ctrl-C leaves the view and not the campaign.

    Exit status: 0 at its verdict and where you leave, 130 where it is paused, 1 where its process has ended without a word.

    Parameters
    ----------
    campaign
        Its id, such as c-0007 (default: the one that runs, else the last).
    """
    options.paths()
    ledger = options.read()
    from cli.live import LiveView
    from experiments.reading.following import Followed, running_campaign
    from experiments.vocabulary import readable_id

    number = running_campaign(ledger) if campaign is None else ledger.resolve(campaign, "campaign")
    output = options.output
    if not _has_begun(ledger, number):
        output.say(f"{readable_id('c', number)} was just made; waiting for its process to begin.")
        began = time.monotonic()
        while not _has_begun(ledger, number) and time.monotonic() - began < START_S:
            time.sleep(LOOK_EVERY_S)
    followed = Followed(ledger, number)
    name = followed.campaign_id
    view = LiveView(output.console, quiet=output.quiet, redraw=not output.json)
    view.lab = followed
    try:
        was_running = followed.standing == "running"
        if was_running:
            output.say(f"Watching {name}: {followed.question.goal}. Ctrl-C leaves the view; the campaign goes on.")
        with view:
            _follow(followed, view)
        if was_running and followed.standing == "done":
            _wait_for_report(followed, options.paths())
    except KeyboardInterrupt:
        words = f"Left the view; {name} goes on. See it again: {command('attach', name)}. Pause it: {command('pause', name)}"
        output.say(words, always=True)
        return 0
    return _say_end(followed, options)


def _has_begun(ledger: Ledger, number: int) -> bool:
    """Whether anybody has worked on a campaign; one that was just made, perhaps with --detach, is on its way and not paused."""
    from experiments.ledger.store import now

    row = ledger.get_campaign(number)
    is_new = (now() - row.created_at).total_seconds() < START_S
    return not (is_new and row.status == "paused" and row.holder is None and not ledger.events(number))


def _follow(followed: Followed, view: Any) -> None:
    """Show what is new until nobody works on the campaign."""
    while True:
        news = followed.look()
        for progress in news.runs:
            view.on_progress(progress)
        for event in news.events:
            view.on_event(event.kind, event.actor, str(event.payload.get("text", "")), event.payload)
        view.refresh()
        if followed.standing != "running":
            return
        time.sleep(LOOK_EVERY_S)


def _wait_for_report(followed: Followed, paths: Paths) -> None:
    """The process at work lets the campaign go, then writes its report: only with it the campaign is all there."""
    began, report = time.monotonic(), paths.report(followed.number) / "report.html"
    while not report.is_file() and time.monotonic() - began < REPORT_S:
        time.sleep(LOOK_EVERY_S)


def _say_end(followed: Followed, options: LedgerOptions) -> int:
    """The verdict of a finished campaign, or how to go on with another."""
    from experiments.campaign.holder import describe_holder

    output, name, standing = options.output, followed.campaign_id, followed.standing
    if standing == "done":
        from cli.live import verdict_lines, verdict_panel

        verdict, report = followed.verdict(), options.paths().report(followed.number) / "report.html"
        shown = {"campaign": name, "standing": standing, "verdict": verdict}
        shown["report"] = str(report) if report.is_file() else None
        where = f"Report: {report}" if report.is_file() else f"Report: {command('report', name)}"
        if verdict is None:
            output.result(shown, followed.narrative, where)
            return 0
        trials = followed.round * followed.plan.trials_at_once
        lines = verdict_lines(verdict, followed.question, followed.plan, trials, name, verdict.claim_id)
        output.result(shown, verdict_panel(lines, verdict.outcome), where)
        return 0
    resume = command("resume", name)
    why = {
        "paused": f"{name} is paused at the stage {followed.stage}; nothing is lost.",
        "failed": f"{name} ended with a fault at the stage {followed.stage}; what is in the ledger is kept.",
    }.get(standing, f"{name} is interrupted: {describe_holder(followed.holder)}. What is in the ledger is kept.")
    output.result({"campaign": name, "standing": standing, "verdict": None, "resume": resume}, f"{why} Go on with: {resume}")  # fmt: skip
    return 130 if standing == "paused" else 1
