"""MAML on a benchmark of Meta-World, as a folder with models, numbers and curves.

The documented script of an earlier system: `python experiments/run_experiment.py --help` shows its options, `cli/former.py` has its work.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # The project's folder in place of this one, whose numbers.py would hide Python's.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    sys.argv[1:1] = ["--run_experiment"]
    from main import main

    sys.exit(main())
