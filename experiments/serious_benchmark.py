"""MAML and RL2 with one model or all, at equal parameters, over seeds, with intervals.

The documented script of an earlier system: `python experiments/serious_benchmark.py --help` shows its options, `cli/former.py` has its work.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # The project's folder in place of this one, whose numbers.py would hide Python's.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    sys.argv[1:1] = ["--serious_benchmark"]
    from main import main

    sys.exit(main())
