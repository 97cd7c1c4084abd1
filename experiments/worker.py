"""One run in its own process: `python -m experiments.worker`, started by the executor alone.

The job comes as one JSON line on standard input; reports, evaluations and the end go out as JSON lines on standard
output. A line `stop` asks for a checkpoint and an early end. When standard input closes, the parent is gone and so is
this process: no orphan is left. Numbers depend on the specification alone, never on time or on what else runs.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

CHECKPOINT_EVERY_S = 20.0


def main() -> None:
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints goes to the log, not into the channel
    job = json.loads(sys.stdin.readline())
    stop = threading.Event()
    threading.Thread(target=_listen, args=(stop,), daemon=True).start()

    def send(kind: str, **content: Any) -> None:
        channel.write(json.dumps({"kind": kind, **content}) + "\n")

    try:
        run(job, send, stop)
    except Exception as error:  # the one place where any failure becomes a status with its cause
        import traceback

        traceback.print_exc()
        send("end", status="failed", cause=f"{type(error).__name__}: {error}")


def _listen(stop: threading.Event) -> None:
    for line in sys.stdin:
        if line.strip() == "stop":
            stop.set()
    os._exit(3)


def run(job: dict[str, Any], send: Any, stop: threading.Event) -> None:
    """Train, evaluate and save as the job says, sending every report."""
    import torch

    torch.set_num_threads(1)
    from core.seeding import seed_sequence
    from env_runner.task_distributions import get_family
    from experiments.spec import RunSpec
    from meta_rl.learner import DivergedError, Learner, build_learner

    spec = RunSpec.model_validate(job["spec"])
    checkpoint, final = Path(job["checkpoint"]), Path(job["model"])
    if checkpoint.with_suffix(".json").is_file():
        learner = Learner.load(checkpoint)
    else:
        learner = build_learner(spec.task, spec.policy, spec.learner, env_steps=spec.env_steps, seed=spec.seed)
    began, saved = time.monotonic(), time.monotonic()
    env_steps: int | None = None  # none in this process, where a run was stopped after its last iteration
    send("started", pid=os.getpid())
    try:
        for report in learner.train():
            env_steps = report.env_steps
            send("report", env_steps=env_steps, metrics=dict(report.metrics))
            if stop.is_set():
                learner.save(checkpoint)
                send("end", status="stopped", cause="asked to stop; continues from its checkpoint")
                return
            if time.monotonic() - saved > CHECKPOINT_EVERY_S:
                learner.save(checkpoint)
                saved = time.monotonic()
    except DivergedError as error:
        learner.save(final)
        send("end", status="diverged", cause=str(error), env_steps=env_steps, train_s=time.monotonic() - began)
        return
    train_s = time.monotonic() - began
    tasks = get_family(spec.task).eval_tasks(job["pool"])
    seed = int(seed_sequence(spec.seed, "evaluation", job["pool"]).generate_state(1)[0])
    result = learner.evaluate(tasks, episodes=spec.evaluation_episodes, seed=seed, deterministic=True)
    sha256 = learner.save(final)
    send(
        "eval",
        pool=job["pool"],
        values={"return": result.returns.tolist(), **{k: v.tolist() for k, v in result.extras.items()}},
    )
    send("end", status="done", cause=None, env_steps=env_steps, train_s=train_s, sha256=sha256)


if __name__ == "__main__":
    main()
