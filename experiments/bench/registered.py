"""The benches: each file of this folder that measures something registers its `main`, and a plugin may add one.

    @register_bench("footprint")
    def main(arguments: Sequence[str]) -> int | None: ...

The first line of the file's docstring is its title. Names and titles of the tree are read from the files without importing
them, since most import torch and some import rivals; a look-up imports the one file that it needs.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

from core.errors import InputError
from core.plugins import load_named_and_installed
from core.registry import Registry
from experiments.tables import TableView

Main = Callable[..., "int | None"]
"""Takes the words after the bench's name; gives an exit code, None for 0."""
MainT = TypeVar("MainT", bound=Main)
MARK = re.compile(r'^@register_bench\("([^"]+)"\)$', re.MULTILINE)


class _Benches(Registry[Main]):
    """A registry that imports a file of the tree when its own name is asked for."""

    def names(self) -> list[str]:
        load_named_and_installed()
        return sorted({*self._entries, *_files()})

    def __getitem__(self, name: str) -> Main:
        load_named_and_installed()
        if name in _files() and name not in self._entries:
            module = _module(_files()[name])
            self._failures.pop(module, None)
            self._import(module)
            if module in self._failures:
                raise InputError(f"bench {name!r}: {module} could not be imported: {self._failures[module]}")
        return super().__getitem__(name)

    def title(self, name: str) -> str:
        """One line on what a bench measures."""
        if name in _files():
            text = ast.get_docstring(ast.parse(_files()[name].read_text()))
        else:
            text = sys.modules[self[name].__module__].__doc__
        return (text or "").strip().split("\n")[0]


BENCHES = _Benches("bench", "benches")


def register_bench(name: str) -> Callable[[MainT], MainT]:
    """Decorator of a bench's `main`."""

    def add(main: MainT) -> MainT:
        file = _files().get(name)
        if file is not None and main.__module__ not in (_module(file), "__main__"):
            raise RuntimeError(f"bench {name!r} is registered twice: by {_module(file)} and by {main.__module__}")
        BENCHES.register(name)(main)
        return main

    return add


def _module(file: Path) -> str:
    return f"{__package__}.{file.stem}"


def list_benches() -> TableView:
    """Every bench with its title."""
    rows = tuple((name, BENCHES.title(name)) for name in BENCHES)
    return TableView(columns=("bench", "what it measures"), rows=rows, note=BENCHES.failures_in_words())


@cache
def _files() -> dict[str, Path]:
    """Name -> file, of the benches of the tree."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return {name: file for file in files for name in MARK.findall(file.read_text())}
