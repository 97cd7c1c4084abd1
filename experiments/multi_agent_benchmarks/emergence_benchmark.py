"""A crew of some agents researches a task to its verdict; then the strategies that it found.

The documented script of an earlier system: `python experiments/multi_agent_benchmarks/emergence_benchmark.py --help` shows its options, `cli/former.py` has its work.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # The project's folder in place of this one.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    sys.argv[1:1] = ["--emergence_benchmark"]
    from main import main

    sys.exit(main())
