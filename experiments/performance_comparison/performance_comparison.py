"""The crew against a single agent, the optimizer and an ensemble of proposers, at equal trials.

The documented script of an earlier system: `python experiments/performance_comparison/performance_comparison.py --help` shows its options, `cli/former.py` has its work.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # The project's folder in place of this one.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    sys.argv[1:1] = ["--performance_comparison"]
    from main import main

    sys.exit(main())
