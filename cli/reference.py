"""The command reference docs/commands.md, made from the command line itself: `python -m cli.reference`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from cyclopts import App

from cli.app import INSTALLED, app
from cli.options import BrainOptions, LedgerOptions
from core.files import write_atomic
from experiments.runs.paths import CHECKOUT

FILE = CHECKOUT / "docs" / "commands.md"
HEAD = f"""# Commands

Made by `python -m cli.reference` from the command line itself; `python main.py COMMAND --help` says the same. Where the package is
installed, `{INSTALLED}` is `python main.py`. Exit codes: 0 done, 1 failed or drifted, 2 bad input, 130 stopped.
{app.help_epilogue}
"""
SHARED: dict[str, type] = {"[ledger]": LedgerOptions, "[model]": BrainOptions}
"""Options that many commands take: said once, and named by a mark where they are taken."""


def reference() -> str:
    """Every command with its parameters, defaults and help, as Markdown; the chapters are the modules of `cli`."""
    shared = {mark: _lines(App(default_command=_taking(options))) for mark, options in SHARED.items()}
    lines = [HEAD]
    for mark, options in SHARED.items():
        lines += [f"{options.__doc__} Commands that say {mark} take:", "", *shared[mark].values(), ""]
    commands = [('--goal "..."', app), *((name, app[name]) for name in app if not name.startswith("-"))]
    chapters: dict[str, list[str]] = {}
    for name, command in commands:
        function, own = command.default_command, _lines(command)
        assert function is not None
        marks = [mark for mark, group in shared.items() if group.keys() <= own.keys()]
        own = {name: line for name, line in own.items() if not any(name in shared[mark] for mark in marks)}
        title = " ".join(["### `python main.py", name, *_places(command)]) + "`"
        chapter = chapters.setdefault(_first_paragraph(sys.modules[function.__module__]), [])
        chapter += [
            " ".join([title, *marks]),
            "",
            _first_paragraph(function),
            "",
            *own.values(),
            *([""] if own else []),
        ]
    for title, text in chapters.items():
        lines += [f"## {title.rstrip('.')}", "", *text]
    return "\n".join(lines).rstrip() + "\n"


def _taking(options: type) -> Callable[..., None]:
    """A function whose parameters are these options alone."""

    def command(*, taken: Any) -> None: ...

    command.__annotations__ = {"taken": options, "return": None}
    return command


def _places(command: App) -> list[str]:
    """What stands behind the command's name without an option."""
    words = []
    for argument in command.assemble_argument_collection(parse_docstring=True):
        if argument.index is not None:
            word = argument.name.lstrip("-").upper() + (" ..." if argument.is_var_positional() else "")
            words.append(word if argument.required else f"[{word}]")
    return words


def _lines(command: App) -> dict[str, str]:
    """The name of each parameter that is shown -> its line."""
    lines = {}
    for argument in command.assemble_argument_collection(parse_docstring=True):
        if not argument.show:
            continue
        notes = ["required"] if argument.required else []
        default = argument.field_info.default
        if not any(default is absent for absent in (None, False, inspect.Parameter.empty)):
            notes.append(f"default: {' '.join(map(str, default)) if isinstance(default, tuple) else default}")
        notes += [f"one of: {', '.join(choices)}"] if (choices := argument.get_choices()) else []
        lines[argument.name] = f"- `{argument.name}`: {argument.parameter.help}" + (f" ({'; '.join(notes)})" if notes else "")  # fmt: skip
    return lines


def _first_paragraph(documented: object) -> str:
    return " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())


if __name__ == "__main__":
    write_atomic(FILE, reference().encode())
