"""Default configurations by model kind: one JSON file each, with the effort that tuned it written beside it.

`lstm.json` holds for every task; `halfcheetah-vel.lstm.json` would hold for that task alone and come first. A file has
the fields `policy` and `learner` of a RunSpec and a free `effort` text. A kind without a file has its class's defaults.
"""

from __future__ import annotations

import json
from pathlib import Path

from core.policy import PolicyConfig
from core.sequence_model import default_config
from experiments.spec import RunSpec
from meta_rl.learner import LEARNERS

FOLDER = Path(__file__).parent


def preset(task: str, kind: str, learner: str = "rl2") -> RunSpec:
    """The default RunSpec of a model kind on a task; its budget and seed are placeholders for the caller to set."""
    for name in (f"{task}.{kind}.json", f"{kind}.json"):
        file = FOLDER / name
        if file.is_file():
            content = json.loads(file.read_text())
            if content["learner"]["kind"] == learner:
                return RunSpec(
                    task=task, policy=content["policy"], learner=content["learner"], env_steps=1_000_000, seed=0
                )
    return RunSpec(
        task=task,
        policy=PolicyConfig(model=default_config(kind)),
        learner=LEARNERS[learner].config_type(kind=learner),
        env_steps=1_000_000,
        seed=0,
    )


def effort(task: str, kind: str) -> str:
    """How a kind's default was tuned, in words."""
    for name in (f"{task}.{kind}.json", f"{kind}.json"):
        file = FOLDER / name
        if file.is_file():
            return json.loads(file.read_text()).get("effort", "")
    return "the class's defaults, untuned"
