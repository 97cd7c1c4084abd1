"""A campaign in the background: started from a terminal that may be closed; one line at the end of its log says how it went."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cli import RECORD
from cli.options import CrewOptions, LedgerOptions
from cli.terminal import emit
from core.errors import InputError
from core.words.commands import command

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from experiments.ledger import Ledger

START_S = 180.0  # until a process that lives and has not taken its campaign yet, as one that waits for a chat model, is left alone


def in_background(
    ledger: Ledger,
    campaigns: Sequence[int],
    brain: CrewOptions,
    options: LedgerOptions,
    *,
    take_over: bool = False,
) -> int:
    """Go on with campaigns, one after another, in a process of its own, and say where it is to be found.

    Comes back once it has taken the first one. InputError, in its own words, where it ended without.
    """
    from sqlalchemy.engine import URL

    from experiments.runs.background import new_log, start_in_background

    names = [f"c-{number:04d}" for number in campaigns]
    url, paths = options.ledger_url, options.paths()
    log = new_log(paths.data / "logs", f"{names[0]}-")
    words = ["resume", names[0], *(["--take-over"] if take_over else []), *brain.words(), *options.words()]
    place = url.render_as_string(hide_password=False) if isinstance(url, URL) else url
    record = json.dumps({"campaigns": list(campaigns), "ledger": place})
    process = start_in_background(words, log, environment={RECORD: record})
    try:
        _wait_until_taken(ledger, campaigns[0], process, log)
    except KeyboardInterrupt:
        process.terminate()
        raise
    follow = {word: command(word, names[0]) for word in ("attach", "pause", "stop")} | {"status": command("status")}
    shown: dict[str, Any] = {"campaign": names[0], "process": process.pid, "log": str(log), "data_folder": str(paths.data)}  # fmt: skip
    if len(names) > 1:
        shown["then"] = names[1:]
    process.returncode = 0  # it is nobody's child from here on
    output = options.output
    lines = [f"{name.replace('_', ' '):<12} {', '.join(v) if isinstance(v, list) else v}" for name, v in shown.items()]
    lines += [f"{'' if place else 'next':<12} {words}" for place, words in enumerate(follow.values())]
    output.result({"launch": shown | {"commands": follow}}, "In the background:", *lines)
    return 0


def _wait_until_taken(ledger: Ledger, campaign: int, process: subprocess.Popen[bytes], log: Path) -> None:
    from experiments.runs.background import error_in

    began = time.monotonic()
    while time.monotonic() - began < START_S:
        code = process.poll()
        row = ledger.get_campaign(campaign)
        if code == 0 or (row.holder is not None and row.holder["pid"] == process.pid):
            return
        if code is not None:
            raise InputError(error_in(log) or f"c-{campaign:04d}: its process ended with {code} at once; see {log}")
        time.sleep(0.2)


def work(run: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Run the command of each campaign, and after all that it says one line of JSON: stage, outcome, exit status and seconds."""
    task, code = json.loads(os.environ.pop(RECORD)), 1
    word, _, *rest = arguments
    for number in task["campaigns"]:
        began = time.monotonic()
        try:
            code = run([word, f"c-{number:04d}", *rest])
        except Exception as fault:
            code = 1
            sys.excepthook(type(fault), fault, fault.__traceback__)
        done = _standing(task["ledger"], number)
        emit(json.dumps({"done": done | {"exit_status": code, "seconds": round(time.monotonic() - began, 1)}}))
        if code:
            break
    return code


def _standing(url: str, number: int) -> dict[str, Any]:
    from experiments.campaign.claims import find_claim, find_verdict
    from experiments.ledger import Ledger

    ledger = Ledger(url, read_only=True)
    claim = find_claim(ledger, number)
    verdict = None if claim is None else find_verdict(ledger, claim)
    outcome = None if verdict is None else verdict.outcome
    return {"campaign": f"c-{number:04d}", "stage": ledger.get_campaign(number).stage, "outcome": outcome}
