"""A run as a folder that stands by itself: its models, its numbers as JSON, its learning curve."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from core.config import FrozenConfig
from core.errors import InputError, bad_value
from core.files import write_atomic
from env_runner.task_distributions import get_family
from experiments.judging.statistics import mean_interval, rate_interval
from experiments.ledger.ids import readable_id
from experiments.ledger.store import Ledger, join_value, write_json
from experiments.metrics import LOOKED_AT
from experiments.reading.figures import RETURN, SUCCESS_RATE
from experiments.reading.plot_files import write_plot
from experiments.runs.paths import Paths
from experiments.runs.runner import RUNG_SCORE
from meta_rl.evaluate import evaluate
from meta_rl.learner import Learner
from meta_rl.rollout import SUCCESS

TEST_SEED = 0  # of start states and exploration on the test tasks


class RunFolder(FrozenConfig):
    """What was written."""

    folder: str
    files: tuple[str, ...]
    test: dict[str, Any]
    """Model -> what it earns on the held-out tasks, by shots."""


def write_run_folder(
    ledger: Ledger, paths: Paths, run_id: int, folder: Path, *, test_tasks: int | None = None, test_episodes: int = 1
) -> RunFolder:
    """Write best_model, final_model, results.json and training_curves.png of a finished run.

    The best model is that of the best look at the search pool (`run --evaluate-every`), the final one where there was none.
    Both are tested on the first `test_tasks` of the family's confirmation tasks (all where None), `test_episodes` times each.
    """
    run, name = ledger.get_run(run_id), readable_id("r", run_id)
    if run.status != "done":
        raise InputError(f"{name} is {run.status}: there is no folder to write of it")
    tasks = get_family(run.task).eval_tasks("confirmation")
    if test_tasks is not None and not 1 <= test_tasks <= len(tasks):
        raise bad_value("--test-tasks", test_tasks, f"from 1 to {len(tasks)}, the held-out tasks of {run.task}")
    if test_episodes < 1:
        raise bad_value("--test-episodes", test_episodes, "1 or more")
    final, best = paths.model(run_id), paths.best_model(run_id)
    models = {"best_model": best if best.with_suffix(".safetensors").is_file() else final, "final_model": final}
    columns = int(run.spec.get("evaluation_episodes", 2))
    test = {model: _test(path, tasks[:test_tasks], columns, test_episodes) for model, path in models.items()}
    results = {
        "run": name,
        "configuration": run.spec,
        "score": run.score,
        "returns": _series(ledger, run_id, RETURN),
        "success_rates": _series(ledger, run_id, SUCCESS_RATE),
        "evaluations": _series(ledger, run_id, RUNG_SCORE),
        "evaluations_by_quantity": {name: _series(ledger, run_id, metric) for name, metric in LOOKED_AT.items()},
        "losses": {
            metric: _series(ledger, run_id, metric)
            for metric in sorted({m.name for m in ledger.metrics(run_id) if m.name.startswith("train/")})
        },
        "test_returns": test,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for model, path in models.items():
            for suffix in (".safetensors", ".json"):
                shutil.copyfile(path.with_suffix(suffix), folder / f"{model}{suffix}")
        write_atomic(folder / "results.json", write_json(results, indent=1).encode())
    except OSError as error:
        raise InputError(f"--out: cannot write to {folder} ({error.strerror})") from None
    write_plot(ledger, paths, [name], what="curves", out=str(folder / "training_curves.png"))
    return RunFolder(folder=str(folder), files=tuple(sorted(file.name for file in folder.iterdir())), test=test)


def _series(ledger: Ledger, run_id: int, metric: str) -> list[list[float]]:
    """[env steps, value] of every report."""
    return [[m.env_steps, join_value(m.value, m.kind)] for m in ledger.metrics(run_id, metric)]


def _test(model: Path, tasks: np.ndarray, columns: int, episodes: int) -> dict[str, Any]:
    """Return and success by shots: the mean over tasks, its 95 % interval over tasks (Student's t of a return, Wilson's of a
    success rate), and each task's own mean over `episodes`."""
    learner = Learner.load(model)
    results = [evaluate(learner, tasks, episodes=columns, seed=TEST_SEED + number) for number in range(episodes)]
    quantities = {"return": np.mean([result.returns for result in results], axis=0)}
    if SUCCESS in results[0].extras:
        quantities[SUCCESS] = np.mean([result.extras[SUCCESS] for result in results], axis=0)
    return {
        f"{quantity} after {shots} shots": {
            "mean": float(values[:, shots].mean()),
            "interval": interval(values[:, shots]) if len(tasks) > 1 else None,
            "tasks": values[:, shots].tolist(),
        }
        for quantity, values in quantities.items()
        for interval in (rate_interval if quantity == SUCCESS else mean_interval,)
        for shots in range(columns)
    }
