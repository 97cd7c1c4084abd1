"""Write requirements.txt anew from pyproject.toml: python .ci/requirements.py

For tools that read no pyproject.toml, and for images that install the libraries before the code. A test holds it to be current.
"""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def requirements() -> str:
    """The text of the file: the project's own dependencies, no extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [f"# Made by .ci/requirements.py from pyproject.toml (Python {project['requires-python']})"]
    return "\n".join([*lines, *project["dependencies"]]) + "\n"


if __name__ == "__main__":
    (ROOT / "requirements.txt").write_text(requirements())
