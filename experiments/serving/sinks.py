"""Programs that draw training curves elsewhere, each behind one small interface, and the process that they run in.

They run in a process of their own (`work_off`), which is told in lines of JSON what may leave. So what they print, start, install as
handlers or hang in is theirs, and no run waits for them. A new one is a class here, its name in `SINKS` and in `cli.options.Sinks`,
and an extra of that name with its package in `pyproject.toml`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from core.errors import InputError

PROJECT = "autonomous-ssm-metarl"


@dataclass(frozen=True)
class SinkRun:
    """A run as a sink is told of it."""

    name: str
    """Its id, such as r-0042."""
    key: str
    """Another for every run of every ledger, and the same in every sitting."""
    group: str | None
    """Its campaign."""
    config: dict[str, Any]
    """What it trains: the specification, and what it is for."""


class Sink(Protocol):
    """Where one run's metrics go. Whatever it raises is said once and ends it, and nothing else."""

    def start(self, run: SinkRun) -> None:
        """Begin a run, or go on with one that was begun in an earlier sitting."""
        ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics at so many env steps."""
        ...

    def finish(self, status: str) -> None:
        """The run has ended so, or is paused."""
        ...


class WandbSink:
    """Weights & Biases; WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, WANDB_API_KEY and its login are its own business."""

    def start(self, run: SinkRun) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        quiet = wandb.Settings(
            silent=True,
            console="off",
            save_code=False,
            disable_code=True,
            disable_git=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
        )
        project = os.environ.get("WANDB_PROJECT") or PROJECT
        self.run = wandb.init(
            project=project, id=run.key, name=run.name, group=run.group, config=run.config, resume="allow", reinit="create_new", settings=quiet
        )  # fmt: skip

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log(dict(metrics), step=step)

    def finish(self, status: str) -> None:
        self.run.summary["status"] = status
        self.run.finish(exit_code=0 if status in ("done", "pruned", "running", "queued") else 1)


class TrackioSink:
    """Trackio of Hugging Face: a database in the data folder, or a Space (TRACKIO_SPACE_ID)."""

    def start(self, run: SinkRun) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        project = os.environ.get("TRACKIO_PROJECT") or PROJECT
        self.run = trackio.init(
            project=project, name=run.name, group=run.group, config=run.config, resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False
        )  # fmt: skip

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log(dict(metrics), step=step)

    def finish(self, status: str) -> None:
        self.run.finish()


SINKS: dict[str, Callable[[], Sink]] = {"wandb": WandbSink, "trackio": TrackioSink}


def check_sinks(names: Sequence[str] | None) -> tuple[str, ...]:
    """The sinks that were asked for, each once. InputError for one whose package is not installed."""
    for name in names or ():
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name is no package
            raise InputError(f'--sink {name} needs its package: pip install -e ".[{name}]"')
    return tuple(dict.fromkeys(names or ()))


def places(data: Path) -> dict[str, str]:
    """Variables that keep what sinks write inside the data folder, where nobody has set another place."""
    wandb, cache = data / "wandb", data / "cache" / "wandb"
    kept = {"WANDB_DIR": data, "WANDB_CACHE_DIR": cache, "WANDB_DATA_DIR": cache, "WANDB_ARTIFACT_DIR": wandb, "TRACKIO_DIR": data / "trackio"}  # fmt: skip
    return {name: os.environ.get(name, str(place)) for name, place in kept.items()}


def work_off(name: str) -> None:
    """The process of a sink: what stands on standard input happens, and why it cannot go on any more is told on standard output.

    A line is [what, run, ...]: ["start", name, the rest of SinkRun], ["log", name, env steps, metrics] or ["finish", name, status].
    """
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what the sink prints goes where its errors go
        sys.stdout = sys.stderr
        runs: dict[str, Sink] = {}
        try:
            for line in sys.stdin:
                what, run, *rest = json.loads(line)
                if what == "start":
                    runs[run] = SINKS[name]()
                    runs[run].start(SinkRun(run, *rest))
                elif what == "log":
                    runs[run].log(*rest)
                else:
                    runs.pop(run).finish(*rest)
        except BaseException as error:
            print(f"{type(error).__name__}", file=answers, flush=True)
            with contextlib.suppress(BaseException):
                import traceback

                traceback.print_exception(error)
            os._exit(1)  # what it may still wait for is not waited for
