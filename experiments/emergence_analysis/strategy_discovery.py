"""Which strategies the agents of all campaigns in a folder found, and how novel they are.

The documented script of an earlier system: `python experiments/emergence_analysis/strategy_discovery.py --help` shows its options, `cli/former.py` has its work.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # The project's folder in place of this one.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    sys.argv[1:1] = ["--strategy_discovery"]
    from main import main

    sys.exit(main())
