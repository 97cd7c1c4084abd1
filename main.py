"""The entry point `python main.py`; the command line itself is the package `cli`."""

import sys

from cli.start import main

if __name__ == "__main__":
    sys.exit(main())
