"""Every model with RL2 on the point robot, in about a minute.

The documented script of an earlier system: `python experiments/quick_benchmark.py --help` shows its options, `cli/former.py` has its work.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # The project's folder in place of this one, whose numbers.py would hide Python's.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    sys.argv[1:1] = ["--quick_benchmark"]
    from main import main

    sys.exit(main())
