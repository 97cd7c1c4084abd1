"""Figures of every finished run in a ledger.

The documented script of an earlier system: `python experiments/visualize_results.py --help` shows its options, `cli/former.py` has its work.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # The project's folder in place of this one, whose numbers.py would hide Python's.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    sys.argv[1:1] = ["--visualize_results"]
    from main import main

    sys.exit(main())
