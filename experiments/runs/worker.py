"""One run in its own process: `python -m experiments.runs.worker`, started by the executor alone.

The job comes as one JSON line on standard input; reports, evaluations and the end go out as JSON lines on standard
output. A line `stop` asks for a checkpoint and an early end. At a rung the run sends its score and waits for `go on` or
`prune CAUSE`, so where it ends does not depend on time. When standard input closes, the parent is gone and so is this
process: no orphan is left. Numbers depend on the specification alone, never on time or on what else runs.
"""

from __future__ import annotations

import json
import math
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO, cast

from core.words.text import HarmlessStream
from experiments.runs.machine import memory_used_mb

FRESH = "-new"  # what a checkpoint's files are called until they are whole


def main() -> None:
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints goes to the log, not into the channel
    sys.stderr = cast(TextIO, HarmlessStream(sys.stderr))  # a log that people read, whatever a message quotes
    job = json.loads(sys.stdin.readline())
    stop = threading.Event()
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    recorded = Recorded()
    threading.Thread(target=_listen, args=(stop, answers, recorded), daemon=True).start()

    def send(kind: str, **content: Any) -> None:
        if kind == "end":
            content["memory_mb"] = memory_used_mb(os.getpid())
        channel.write(json.dumps({"kind": kind, **content}) + "\n")

    try:
        run(job, send, stop, answers, recorded)
    except Exception as error:  # the one place where any failure becomes a status with its cause
        import traceback

        traceback.print_exc()
        send("end", status="failed", cause=f"{type(error).__name__}: {error}")


class Recorded:
    """Up to which env step the parent has written this run's reports to the ledger.

    A checkpoint must not be ahead of the ledger: where both processes were killed, its last report would be lost.
    """

    def __init__(self) -> None:
        self._steps, self._changed = 0, threading.Condition()

    def tell(self, env_steps: int) -> None:
        with self._changed:
            self._steps = max(self._steps, env_steps)
            self._changed.notify_all()

    def wait_for(self, env_steps: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._steps >= env_steps)


def _listen(stop: threading.Event, answers: queue.SimpleQueue[str], recorded: Recorded) -> None:
    for line in sys.stdin:
        if line.strip() == "stop":
            stop.set()
        elif line.startswith("recorded "):
            recorded.tell(int(line.split()[1]))
        else:
            answers.put(line.strip())
    os._exit(3)


def save_checkpoint(learner: Any, checkpoint: Path) -> None:
    """Write a training state so that a kill at any moment leaves the last whole one.

    A state is two files. They are written beside the old ones and then moved one after the other; where a kill comes
    between the two moves, `complete_checkpoint` makes the second.
    """
    fresh = checkpoint.with_name(checkpoint.name + FRESH)
    learner.save(fresh)
    for suffix in (".safetensors", ".json"):
        os.replace(fresh.with_suffix(suffix), checkpoint.with_suffix(suffix))


def complete_checkpoint(checkpoint: Path) -> None:
    """Finish a `save_checkpoint` that was interrupted between its two moves."""
    fresh = checkpoint.with_name(checkpoint.name + FRESH)
    if fresh.with_suffix(".json").is_file() and not fresh.with_suffix(".safetensors").is_file():
        os.replace(fresh.with_suffix(".json"), checkpoint.with_suffix(".json"))


class Looks:
    """The scores that a person asked for while a run trains, and the model of the best of them, also of processes before."""

    def __init__(self, every: int | None, best: str | None) -> None:
        self.every, self.model = every, None if best is None else Path(best)
        self.count = 0
        kept = None if self.model is None else self.model.with_suffix(".score")
        self.best = float(kept.read_text()) if kept is not None and kept.is_file() else -math.inf

    def is_due(self, env_steps: int) -> bool:
        """Whether a run that has come so far is looked at; counted then."""
        if self.every is None or env_steps // self.every <= self.count:
            return False
        self.count = env_steps // self.every
        return True

    def keep_if_best(self, learner: Any, score: float | None) -> None:
        """Write the model where its score is the best so far."""
        if self.model is not None and score is not None and score > self.best:
            self.best = score
            learner.save(self.model)
            self.model.with_suffix(".score").write_text(repr(score))


def run(
    job: dict[str, Any], send: Any, stop: threading.Event, answers: queue.SimpleQueue[str], recorded: Recorded
) -> None:
    """Train, evaluate and save as the job says, sending every report."""
    import torch

    torch.set_num_threads(1)
    from core.seeding import seed_sequence
    from env_runner.task_distributions import get_family
    from env_runner.task_family import with_changes
    from experiments.metrics import LOOKED_AT, LOOKS, WATCHED, parse_metric
    from experiments.spec import recorded_spec
    from meta_rl.evaluate import evaluate
    from meta_rl.learner import DivergedError, Learner, build_learner

    spec = recorded_spec(job["spec"], "the run", {})
    checkpoint, final = Path(job["checkpoint"]), Path(job["model"])
    complete_checkpoint(checkpoint)
    if checkpoint.with_suffix(".json").is_file():
        learner = Learner.load(checkpoint)
    else:
        learner = build_learner(spec.task, spec.policy, spec.learner, env_steps=spec.env_steps, seed=spec.seed)
    if spec.changes.in_training:
        learner.family = with_changes(learner.family, spec.changes)
    began = saved = reported = time.monotonic()
    looks = Looks(job["look_every"], job["best"])
    iterations = spec.env_steps // spec.learner.iteration_steps(learner.family.horizon)
    watched_every = max(iterations // LOOKS, 1)  # in iterations, so that a resumed run looks where it would have
    env_steps: int | None = None  # none in this process, where a run was stopped after its last iteration
    tasks, metric = get_family(spec.task).eval_tasks(job["pool"]), parse_metric(spec.scored_by)
    seed = int(seed_sequence(spec.seed, "evaluation", job["pool"]).generate_state(1)[0])
    given: dict[str, Any] = {"seed": seed, "changes": spec.changes, "adaptation": spec.adaptation}
    send("started", pid=os.getpid())
    try:
        for report in learner.train():
            env_steps, before, reported = report.env_steps, reported, time.monotonic()
            shown = dict(report.metrics)
            if metric.level is not None and report.iteration % watched_every == 0:
                looked = evaluate(learner, tasks, episodes=metric.column + 1, **given)
                shown[WATCHED] = float(looked.returns[:, metric.column].mean())
            send("report", env_steps=env_steps, metrics=shown, train_s=reported - before)
            if job["probe"]:
                send("end", status="done", cause=None, env_steps=env_steps, train_s=time.monotonic() - began)
                return
            looking = looks.is_due(env_steps)
            if (
                looking or env_steps in job["rungs"]
            ):  # before any checkpoint of this iteration, so a resumed run asks again
                # No more than the score needs: this is a look at the run, and training must not notice it.
                looked = evaluate(learner, tasks, episodes=metric.column + 1, **given)
                raw = {"return": looked.returns, **looked.extras}
                score = metric.on_the_way.of_evaluation(raw)
                if looking:
                    looks.keep_if_best(learner, score)
                number = looks.count if looking else job["rungs"].index(env_steps) + 1
                means = {name: float(raw[name][:, metric.column].mean()) for name in LOOKED_AT if name in raw}
                scored = -math.inf if score is None else score
                send("rung", number=number, env_steps=env_steps, score=scored, means=means if looking else {})
                answer = answers.get()
                if answer.startswith("prune "):
                    sha256 = learner.save(final)
                    train_s = time.monotonic() - began
                    cause = answer.removeprefix("prune ")
                    send("end", status="pruned", cause=cause, env_steps=env_steps, train_s=train_s, sha256=sha256)
                    return
            if stop.is_set():
                recorded.wait_for(env_steps)
                save_checkpoint(learner, checkpoint)
                send("end", status="stopped", cause="asked to stop; continues from its checkpoint")
                return
            if time.monotonic() - saved > job["checkpoint_every_s"]:
                recorded.wait_for(env_steps)
                save_checkpoint(learner, checkpoint)
                saved = time.monotonic()
    except DivergedError as error:
        learner.save(final)
        send("end", status="diverged", cause=str(error), env_steps=env_steps, train_s=time.monotonic() - began)
        return
    train_s = time.monotonic() - began
    result = evaluate(learner, tasks, episodes=spec.evaluation_episodes, **given)
    sha256 = learner.save(final)
    send(
        "eval",
        pool=job["pool"],
        values={"return": result.returns.tolist(), **{k: v.tolist() for k, v in result.extras.items()}},
    )
    send("end", status="done", cause=None, env_steps=env_steps, train_s=train_s, sha256=sha256)


if __name__ == "__main__":
    main()
