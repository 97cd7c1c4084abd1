"""Runs as they train, streamed from their rows to sinks: the tags, steps and the rule of what may be shown are those of the event files.

A thread reads the rows of a run that moved on, and a process per sink takes them (see `sinks.py`). Nothing here is waited for while runs
train, and a sink that fails is said once and left.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from experiments.ledger.models import Run
from experiments.ledger.store import Ledger, readable_id
from experiments.runs.paths import CHECKOUT, Paths
from experiments.runs.runner import ProgressListener, RunProgress
from experiments.serving.sinks import places
from experiments.serving.tensorboard import scalars
from experiments.vocabulary import FINISHED

FLUSH_S = 60.0
"""Seconds that a sink has at the end for what it has not sent yet."""


class Stream:
    """Sends what runs measure to the sinks named, between `with` and its end; to none where none is named.

    say: takes the one line about a sink that failed. campaign: the scores of its confirmation runs are sent at the end, where there is a
    verdict by then; before it they are not read.
    """

    def __init__(
        self,
        names: Sequence[str],
        ledger: Ledger,
        paths: Paths,
        say: Callable[[str], None],
        *,
        campaign: int | None = None,
    ) -> None:
        self.names, self.ledger, self.paths, self.say, self.campaign = names, ledger, paths, say, campaign
        self._sinks: list[_Process] = []
        self._moved: queue.SimpleQueue[RunProgress | None] = queue.SimpleQueue()
        self._sent: dict[int, tuple[int, set[str]]] = {}  # env steps of a run's last row that was sent, and its tags
        self._open: dict[int, str] = {}  # runs that were begun and not finished, with their status

    def __enter__(self) -> Stream:
        if self.names:
            self._sinks = [_Process(name, self.paths, self.say) for name in self.names]
            self._thread = threading.Thread(target=self._work, daemon=True, name="sinks")
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.names:
            self._moved.put(None)
            self._thread.join(FLUSH_S)
            for sink in self._sinks:
                if self._thread.is_alive():  # it waits for one of them
                    sink.give_up()
                sink.close()

    def beside(self, listener: ProgressListener) -> ProgressListener:
        """A listener that shows and streams."""

        def listen(progress: RunProgress) -> None:
            listener(progress)
            if self.names:
                self._moved.put(progress)

        return listen

    def _work(self) -> None:
        try:
            while (progress := self._moved.get()) is not None:
                self._follow(progress)
            self._send_judged()
            for run_id, status in self._open.items():
                self._tell("finish", readable_id("r", run_id), status)
        except Exception as error:  # whatever it is, it is not the campaign's
            self.say(f"--sink: nothing more is sent ({type(error).__name__}). The runs are not concerned.")

    def _follow(self, progress: RunProgress) -> None:
        run = self.ledger.get_run(progress.run_id)
        if run.id not in self._sent:
            self._begin(run, progress.env_steps)
        elif run.id not in self._open:  # its rows were ahead of its words
            return
        self._open[run.id] = run.status
        self._send_new(run)
        if run.status in FINISHED and not self.ledger.score_is_hidden(run):
            self._tell("finish", readable_id("r", run.id), self._open.pop(run.id))

    def _begin(self, run: Run, since: int) -> None:
        """since: env steps that an earlier sitting has recorded, and sent."""
        known = {metric.name for metric in self.ledger.metrics(run.id, since=since) if metric.env_steps == since}
        self._sent[run.id], self._open[run.id] = (since, known if since else set()), run.status
        key = hashlib.sha256(f"{run.created_at.isoformat()} {run.config_hash}".encode()).hexdigest()[:8]
        name, group = readable_id("r", run.id), readable_id("c", run.campaign_id)
        use = {"purpose": run.purpose, "arm": run.arm, "trial": run.trial, "parameters": run.parameters}
        self._tell("start", name, f"{name}-{key}", group, use | run.spec)

    def _send_new(self, run: Run) -> None:
        since, sent = self._sent[run.id]
        steps: dict[int, dict[str, float]] = {}
        for tag, step, value in scalars(self.ledger, run, since=since):
            if step > since or tag not in sent:
                steps.setdefault(step, {})[tag] = value
        for step, metrics in sorted(steps.items()):
            self._tell("log", readable_id("r", run.id), step, metrics)
            sent = sent | set(metrics) if step == since else set(metrics)
            since = step
        self._sent[run.id] = (since, sent)

    def _send_judged(self) -> None:
        """The scores of confirmation runs, also of earlier sittings, once the verdict is there."""
        if self.campaign is None:
            return
        for run in self.ledger.runs(self.campaign, purpose="confirmation"):
            if (
                run.status in FINISHED
                and not self.ledger.score_is_hidden(run)
                and (run.id in self._open or run.id not in self._sent)
            ):
                if run.id not in self._open:
                    self._begin(run, run.env_steps)
                self._send_new(run)
                self._open[run.id] = run.status

    def _tell(self, *line: Any) -> None:
        for sink in self._sinks:
            sink.tell(line)


class _Process:
    """The process of one sink; after its first failure nothing is sent to it."""

    def __init__(self, name: str, paths: Paths, say: Callable[[str], None]) -> None:
        self.name, self.say, self.failed = name, say, False
        self.log = paths.data / "logs" / f"sink-{name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
        code = f"from experiments.serving.sinks import work_off; work_off({name!r})"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **places(paths.data), "PYTHONPATH": path},
                start_new_session=True,  # a Ctrl-C is the campaign's, which then tells the sink
                text=True,
            )

    def tell(self, line: Sequence[Any]) -> None:
        if self.failed or self.process.stdin is None:
            return
        try:
            self.process.stdin.write(json.dumps(line, default=str) + "\n")
            self.process.stdin.flush()
        except (OSError, ValueError):  # it has ended, or was closed while this waited
            self._fail()

    def close(self) -> None:
        """Let it send what is left, for at most `FLUSH_S`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(OSError):
            self.process.stdin.close()
        try:
            code = self.process.wait(FLUSH_S)
        except subprocess.TimeoutExpired:
            self.give_up()
        else:
            if code:
                self._fail()
        self.process.stdout.close()

    def give_up(self) -> None:
        """End it with what it has not sent."""
        told, self.failed = self.failed, True  # first: the thread that waits for it hears of its end at once
        self.process.kill()
        self.process.wait()
        if not told:
            self._say(f"was still sending after {FLUSH_S:.0f} s and is ended")

    def _fail(self) -> None:
        if self.failed:
            return
        self.failed = True
        assert self.process.stdout is not None
        reason = self.process.stdout.read().strip() or "it ended"
        self._say(f"failed ({reason})")

    def _say(self, words: str) -> None:
        self.say(f"--sink {self.name} {words}: see {self.log}. No run is concerned; export has all of it.")
