"""The first minute: one small training by hand, its row, the same again, and the plan of a question; on request its verdict too.

    python examples/getting_started.py [--data-dir FOLDER] [--to-verdict] [--env-steps 100k]

Each step is a command of `main.py`, shown before it runs; nothing is written but to the data folder, which is a temporary one
unless it is named. With --to-verdict the question's 24 runs are trained and judged, a process each, which takes a few minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, also where it is not installed

from core.words.commands import command
from main import main as run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every step; the exit code of the first that fails, or 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", help="where the rows go (without: a temporary folder)")
    parser.add_argument("--to-verdict", action="store_true", help="train the whole question and judge it")
    parser.add_argument("--env-steps", default="100k", help="training steps of the whole question")
    options = parser.parse_args(arguments)
    question = "beat MLP with LSTM on point-robot"  # is memory worth anything where the goal is not observed?
    planned = ["--goal", question, "--env-steps", options.env_steps, "--llm", "offline"]
    steps = [
        ["run", "--preset", "point-robot.lstm", "--env-steps", "2560"],
        ["show", "r-0001"],
        ["rerun", "r-0001", "--check"],
        *([[*planned, "--quiet"], ["campaigns"]] if options.to_verdict else [[*planned, "--dry-run"]]),
    ]
    with TemporaryDirectory() as temporary:
        folder = options.data_dir or temporary
        for words in steps:
            print(f"\n$ {command(*words)}", flush=True)
            code = run_command([*words, "--data-dir", folder])
            if code:
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
