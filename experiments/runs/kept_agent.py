"""A kept model as an agent, for a loop of one's own."""

from __future__ import annotations

from pathlib import Path

from core.errors import InputError
from core.words.commands import command
from experiments.runs.few_shot import kept_model
from meta_rl.learner import Learner
from meta_rl.rl2 import RL2
from meta_rl.rl2_agent import RL2Agent


def load_agent(model: str | Path, name: str | None = None) -> RL2Agent:
    """An agent that acts as `evaluate` lets the model act: raw observations in, actions as the worlds take them out, memory within.

    model: a folder of `saved_models/`, or a checkpoint such as model.safetensors. name: the agent's, without it the folder's or the file's.
    The agent acts step by step in the worlds that the caller has, in single precision: its actions are those of `evaluate` to 1e-5, which
    in a chaotic simulation becomes another episode. InputError for a model that adapts by gradient steps between episodes (MAML).
    """
    files = kept_model(model)
    learner = Learner.load(files)
    if not isinstance(learner, RL2):
        kind = learner.config.kind
        raise InputError(
            f"model: {model} was trained by {kind}, allowed: models of rl2, which adapt in their memory while they act. "
            f"Its adaptation is a part of evaluating it: {command('evaluate', str(model))}"
        )
    return RL2Agent(name or (Path(model).name if Path(model).is_dir() else files.stem), learner)
