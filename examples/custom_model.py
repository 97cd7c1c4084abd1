"""A cell of your own in one file, used through the public API: leaky integrators, trained by hand, and held to the contract.

    a = sig(w_a)                               one learned pace a channel
    h_t = a h_{t-1} + (1 - a) tanh(W x_t + b)

    python examples/custom_model.py [--data-dir FOLDER] [--env-steps 2560] [--no-contract]

Ours: Jaeger et al. 2007 ("leaky integrator neurons", equation 3) without the recurrent matrix. The same file is a plugin:
`python main.py --plugin examples/custom_model.py --goal "beat LSTM with leaky on point-robot"`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, also where it is not installed

import torch
from pydantic import Field
from torch import Tensor, nn

from core.config import search
from core.sequence_model import SequenceModel, SequenceModelConfig, build_model, linear, register_model


class LeakyConfig(SequenceModelConfig):
    """Leaky integrators of a nonlinear input."""

    kind: Literal["leaky"] = "leaky"
    num_layers: Literal[1] = 1
    """One layer."""
    pace: float = Field(default=1.0, ge=-5, le=5, json_schema_extra=search(choices=(0.0, 1.0, 2.0)))
    """Initial w_a of every channel: larger keeps its memory longer."""


@register_model("leaky", LeakyConfig)
class Leaky(SequenceModel):
    """hidden is h itself, (B, hidden_dim)."""

    dynamics = ("pace",)

    def __init__(self, config: LeakyConfig, input_dim: int, output_dim: int, *, generator: torch.Generator) -> None:
        super().__init__(config, input_dim, output_dim)
        self.hidden_size = config.hidden_dim
        self.pace = nn.Parameter(torch.full((config.hidden_dim,), config.pace))
        self.input = linear(input_dim, config.hidden_dim, generator)
        self.decoder = linear(config.hidden_dim, output_dim, generator)

    def _sequence(self, x: Tensor, hidden: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        a, inputs, states = torch.sigmoid(self.pace), torch.tanh(self.input(x)), []
        for t in range(x.shape[1]):
            if keep is not None:
                hidden = hidden * keep[:, t, None]
            hidden = a * hidden + (1 - a) * inputs[:, t]
            states.append(hidden)
        return self.decoder(torch.stack(states, 1)), hidden


def main(arguments: Sequence[str] | None = None) -> int:
    """Look at it, train it, show its row, and run the contract suite over it."""
    from core.plugins import load_plugin
    from main import main as run_command

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", help="where the rows go (without: a temporary folder)")
    parser.add_argument("--env-steps", default="2560", help="training steps")
    parser.add_argument("--no-contract", action="store_true", help="leave the contract suite out")
    options = parser.parse_args(arguments)
    load_plugin(__file__)  # so that the process which trains knows the cell too, and the row has the hash of this file
    model = build_model(LeakyConfig(hidden_dim=4), 3, 2)
    with torch.no_grad():
        _, hidden = model(torch.ones(1, 3))
        for step in (1, 2, 3):
            _, hidden = model(torch.zeros(1, 3), hidden)
            print(f"{step} steps after the input: |h| = {float(hidden.norm()):.3f}")
    with TemporaryDirectory() as temporary:
        folder = ["--data-dir", options.data_dir or temporary]
        code = run_command(["run", "--preset", "point-robot.leaky", "--env-steps", options.env_steps, *folder])
        code = code or run_command(["show", "@last", *folder])
    return code or (0 if options.no_contract else check_contract("leaky", "tests/core/test_sequence_models.py"))


def check_contract(name: str, suite: str) -> int:
    """The contract suite over what this file registers, in a process of its own (needs the extra `dev`)."""
    import subprocess

    words = ["-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-o", "addopts=", "-k", name, suite]
    return subprocess.run([sys.executable, *words], cwd=Path(__file__).resolve().parents[1]).returncode


if __name__ == "__main__":
    sys.exit(main())
