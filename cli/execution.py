"""Train queued runs with a live view, and show what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cli.options import LedgerOptions
from cli.output import stopping

if TYPE_CHECKING:
    from experiments.ledger import Ledger


@dataclass(frozen=True)
class Execution:
    """Where runs are recorded and shown, and what one may occupy (MiB; the machine decides where None)."""

    options: LedgerOptions
    ledger: Ledger
    memory_limit_mb: int | None
    look_every: int | None = None
    """Env steps between two scores of runs that a person started."""
    sinks: tuple[str, ...] = ()
    """Where metrics are sent as well."""

    def train(self, run_ids: Sequence[int]) -> bool:
        """Train queued runs; those that a Ctrl-C stops are cancelled, and the answer is False."""
        import threading

        from cli.live import LiveView
        from experiments.ledger import readable_id
        from experiments.runs.executor import LocalExecutor
        from experiments.runs.machine import available_workers
        from experiments.runs.runner import Paused, cancel_run, execute_runs
        from experiments.serving.stream import Stream

        output, paths, stop = self.options.output, self.options.paths(), threading.Event()
        view = LiveView(output.console, quiet=output.quiet or output.json)
        executor = LocalExecutor(min(available_workers(), len(run_ids)), paths.environment())
        try:
            stream = Stream(self.sinks, self.ledger, paths, lambda words: output.say(words, always=True))
            with stopping(stop, output.say), stream, view:
                execute_runs(
                    self.ledger,
                    executor,
                    paths,
                    run_ids,
                    stop=stop,
                    listener=stream.beside(view.on_progress),
                    memory_limit_mb=self.memory_limit_mb,
                    look_every=self.look_every,
                )
        except (Paused, KeyboardInterrupt):
            cancelled = [readable_id("r", run_id) for run_id in run_ids if cancel_run(self.ledger, run_id)]
            output.say(f"{', '.join(cancelled)} {'was' if len(cancelled) == 1 else 'were'} cancelled.", always=True)
            return False
        return True

    def train_and_show(
        self,
        run_ids: Sequence[int],
        *,
        together: bool = False,
        original_id: int | None = None,
        checked_after: bool = False,
    ) -> int:
        """Train queued runs of one configuration and print their results; the exit code says how they ended.

        together: as a table with the mean over their seeds, beside the run that they repeat; else one line for the one run.
        checked_after: a comparison with the recorded numbers follows.
        """
        finished = self.train(run_ids)
        runs = [self.ledger.get_run(run_id) for run_id in run_ids]
        failed = any(run.status != "done" for run in runs)
        if not finished and all(run.score is None for run in runs):
            return 130
        if self.options.json and checked_after and not failed:
            return 0  # what the check finds is the command's one JSON value
        if together:
            self._show_seeds(run_ids, original_id)
        else:
            self._show_run(run_ids[0])
        return int(failed) if finished else 130

    def show_check(self, original_id: int, run_id: int) -> int:
        """Whether a rerun reproduced the recorded numbers; 1 where it did not."""
        from experiments.runs.runner import compare_reruns

        check = compare_reruns(self.ledger, original_id, run_id)
        if check.matches:
            lines = [f"{check.rerun} matches {check.original}: {check.compared} numbers are the same."]
        else:
            reasons = check.reasons or ("no difference in code, packages or machine explains it",)
            lines = [
                f"{check.rerun} drifts from {check.original}:",
                *(f"  {d.where}: {d.recorded} recorded, {d.rerun} now" for d in check.differences),
                *(f"  reason: {reason}" for reason in reasons),
            ]
        self.options.output.result(check, *lines)
        return int(not check.matches)

    def _show_run(self, run_id: int) -> None:
        """How one run ended, in one line."""
        from experiments.ledger import readable_id
        from experiments.runs.by_hand import scored_by

        name, run = readable_id("r", run_id), self.ledger.get_run(run_id)
        cause = "" if run.cause is None else f" ({run.cause})"
        score = "" if run.score is None else f", mean {scored_by(run)} on the {run.pool} tasks {run.score:.2f}"
        result = {"run": name, "status": run.status, "cause": run.cause, "score": run.score}
        self.options.output.result(result, f"{name}: {run.status}{cause}{score}")

    def _show_seeds(self, run_ids: Sequence[int], original_id: int | None) -> None:
        """The scores of one configuration's seeds together."""
        from experiments.runs.by_hand import seed_scores
        from experiments.tables import TableView

        scores = seed_scores(self.ledger, run_ids, original_id)
        columns = ("run", "seed", "status", "score", "worst_task", "train_s")
        rows = tuple(tuple(getattr(row, column) for column in columns) for row in scores.rows)
        self.options.output.result(
            scores,
            TableView(columns=tuple(column.replace("_", " ") for column in columns), rows=rows),
            scores.sentence(),
            *(f"{row.run}: {row.cause}" for row in scores.rows if row.cause),
        )
