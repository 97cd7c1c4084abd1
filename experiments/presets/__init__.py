"""Default configurations by model kind: one JSON file each, with the effort that tuned it written beside it.

`lstm.json` holds for every task; `halfcheetah-vel.lstm.json` would hold for that task alone and come first. A file has
the fields `policy` and `learner` of a RunSpec and an `effort` text, which begins with `TUNED` where it was. A kind without a file has its class's defaults.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.errors import InputError, bad_value, unknown_name
from core.policy import PolicyConfig
from core.sequence_model import MODELS, default_config
from core.words.commands import command
from experiments.metrics import parse_metric
from experiments.spec import RunSpec
from experiments.tables import TableView
from meta_rl.learner import DEFAULT_LEARNER, LEARNERS

FOLDER = Path(__file__).parent
TUNED = "Tuned"
"""How the effort of a tuned preset begins."""
UNTUNED = "the class's defaults, untuned"
ENV_STEPS = 1_000_000


def preset(task: str, kind: str, learner: str) -> RunSpec:
    """The default RunSpec of a model kind on a task with a learner; its budget and seed are placeholders for the caller to set."""
    for content in _files(task, kind):
        if content["learner"]["kind"] == learner:
            return _spec(task, content["policy"], content["learner"])
    return _spec(task, PolicyConfig(model=default_config(kind)), LEARNERS[learner].config_type(kind=learner))


def effort(task: str, kind: str) -> str:
    """How a kind's default was tuned, in words."""
    return next((content.get("effort", "") for content in _files(task, kind)), UNTUNED)


def named_preset(name: str, learner: str | None = None) -> RunSpec:
    """The preset `TASK.MODEL`, such as `halfcheetah-vel.lstm`, or the class's defaults where no file holds one.

    learner: what trains it, where that is not to be the preset's own. Its seed is 0 and its budget a million env steps. InputError names what is wrong with the name.
    """
    task, dot, kind = name.rpartition(".")
    see = f"See: {command('list', 'presets')}"
    if not dot:
        close = ", ".join(other for other in _names() if name in other.split("."))
        hint = f"With {name}: {close}." if close else see
        raise bad_value("--preset", name, "TASK.MODEL, such as halfcheetah-vel.lstm", hint=hint)
    from env_runner.task_distributions import FAMILIES, get_family

    if kind not in MODELS:
        raise unknown_name("model in --preset", kind, MODELS, hint=see)
    try:
        get_family(task)
    except InputError:
        raise unknown_name("task in --preset", task, FAMILIES, hint=see) from None
    if learner is not None:
        LEARNERS[learner]
        return preset(task, kind, learner)
    found = next(_files(task, kind), None)
    return preset(task, kind, DEFAULT_LEARNER) if found is None else _spec(task, found["policy"], found["learner"])


def list_presets() -> TableView:
    """Every stored preset: name, task, whether it was tuned, and with what effort."""
    rows = []
    for name in _names():
        content = json.loads((FOLDER / f"{name}.json").read_text())
        task, _, kind = name.rpartition(".")
        words = content.get("effort", "")
        rows.append(
            (name, task or "every task", kind, content["learner"]["kind"], words.startswith(TUNED), words or UNTUNED)
        )
    return TableView(
        columns=("preset", "task", "model", "learner", "tuned", "effort"),
        rows=tuple(rows),
        note="Any other TASK.MODEL is a preset too: the class's defaults, untuned. Train one with: "
        + command("run", "--preset", "point-robot.gru"),
    )


def _names() -> list[str]:
    return sorted(file.name.removesuffix(".json") for file in FOLDER.glob("*.json"))


def _files(task: str, kind: str) -> Iterator[dict[str, Any]]:
    """What is stored for a kind: for this task first, for the family that it is a cut of, then for every task."""
    for name in dict.fromkeys((f"{task}.{kind}.json", f"{task.partition('@')[0]}.{kind}.json", f"{kind}.json")):
        file = FOLDER / name
        if file.is_file():
            yield json.loads(file.read_text())


def _spec(task: str, policy: Any, learner: Any) -> RunSpec:
    """With all columns of an evaluation that the learner is scored by."""
    spec = RunSpec(task=task, policy=policy, learner=learner, env_steps=ENV_STEPS, seed=0)
    shown = parse_metric(spec.learner.scored_by).column + 1
    scored = {"scored_by": spec.learner.scored_by, "evaluation_episodes": max(spec.evaluation_episodes, shown)}
    return spec.model_copy(update=scored)
