"""Named things that a new file adds by registering: models, families, learners, agents, benches."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from typing import Generic, TypeVar

from core.errors import InputError, unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps a name to an entry. An unknown name is answered with the nearest match and the list.

    kind: the word used in error messages, such as "model".
    hint: what to run next when a name is unknown, such as "See: python main.py list models".
    package: where entries register themselves: every module in its folders that fits `modules` is imported at the first look-up,
        so that a new entry is one new file and no other edit. A module that cannot be imported hides no other one; what is
        wrong with it is in `failures` and in the answer to every unknown name.
    """

    def __init__(self, kind: str, hint: str = "", *, package: str | None = None, modules: str = "*") -> None:
        self.kind = kind
        self.hint = hint
        self.package = package
        self.modules = modules
        self._entries: dict[str, T] = {}
        self._failures: dict[str, str] = {}
        self._searched: tuple[str, ...] = ()

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that adds an entry; a name taken already is a programming error."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise RuntimeError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return add

    @property
    def failures(self) -> dict[str, str]:
        """Module -> why it could not be imported."""
        self._discover()
        return dict(self._failures)

    def __getitem__(self, name: str) -> T:
        self._discover()
        try:
            return self._entries[name]
        except (KeyError, TypeError):
            error = unknown_name(self.kind, name, self._entries, hint=self.hint)
        broken = "".join(f" {module} could not be imported: {why}." for module, why in self._failures.items())
        raise InputError(f"{error}{broken}")

    def __contains__(self, name: object) -> bool:
        self._discover()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._discover()
        return sorted(self._entries)

    def _discover(self) -> None:
        """Import the modules of the package's folders, each once."""
        if self.package is None:
            return
        folders = tuple(importlib.import_module(self.package).__path__)
        if folders == self._searched:
            return
        before, self._searched = self._searched, folders  # before the imports: they may look names up themselves
        try:
            for module in pkgutil.iter_modules(folders):
                if fnmatch(module.name, self.modules) and not module.ispkg:
                    self._import(f"{self.package}.{module.name}")
        except BaseException:
            self._searched = before
            raise

    def _import(self, module: str) -> None:
        try:
            importlib.import_module(module)
        except Exception as error:
            self._failures[module] = f"{type(error).__name__}: {error}"
