"""Three ways to work together on the same small question: what was passed, who spoke again, and what was found.

    python examples/advanced_collaboration.py [--data-dir FOLDER] [--env-steps 100k] [--modes sequential debate emergent]

Every mode has a campaign, a ledger and a seed of its own kind: the same plan, the same seeds, nothing known beforehand, so the
modes differ in who hears whom alone (`multi_agent/workflows/modes.py`). Offline no agent departs from the optimizer: then the
modes find the same, and differ in what they say. About three minutes of CPU time a mode.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, also where it is not installed

from experiments.numbers import parse_count
from experiments.runs.paths import Paths
from multi_agent.workflows import CollaborativeLearning
from multi_agent.workflows.crew import CrewEvent
from multi_agent.workflows.modes import COLLABORATION


def main(arguments: Sequence[str] | None = None) -> int:
    """One campaign a mode, then the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", help="where the rows go, a folder a mode (without: a temporary folder)")
    parser.add_argument("--env-steps", default="100k", help="training steps of each campaign")
    parser.add_argument("--modes", nargs="+", default=list(COLLABORATION), choices=list(COLLABORATION))
    parser.add_argument("--llm", default="offline", help="chat model of the agents")
    options = parser.parse_args(arguments)
    rows = []
    with TemporaryDirectory() as temporary:
        folder = Path(options.data_dir or temporary)
        os.environ.update(Paths.of(folder).environment())  # all modes use the kernels that the first one compiled
        for mode in options.modes:
            print(f"{mode} ...", flush=True)
            events: list[CrewEvent] = []
            crew = CollaborativeLearning(llm=options.llm, data_dir=folder / mode)
            result = crew.solve_task(
                "beat MLP with LSTM on point-robot",
                mode,
                env_steps=parse_count(options.env_steps),
                on_event=events.append,
            )
            turns = [e.payload["turn"] for e in events if e.kind == "agent" and "pass" in (e.payload.get("turn") or {})]
            passed = [e.payload["to"] for e in events if e.kind == "message" and "to" in e.payload]
            again = sum(turn["pass"] > 0 for turn in turns)
            effect = "none" if result.improvement is None else f"{result.improvement.effect:+.2f}"
            found = len(result.emergent_strategies)
            rows.append((mode, len(turns), again, passed.count("all"), len(passed) - passed.count("all"), found, effect, result.outcome))  # fmt: skip
    names = ("mode", "turns", "again", "to all", "to one", "strategies", "effect", "verdict")
    print("\n" + "".join(f"{name:>12}" for name in names))
    for row in rows:
        print("".join(f"{cell:>12}" for cell in row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
