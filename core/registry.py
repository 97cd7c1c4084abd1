"""Named things that a new file adds by registering: models, families, learners, agents, benches.

A file of the tree is found because it lies in the registry's package, one from elsewhere because it is named as a plugin
(`core/plugins.py`). `ConfigOf` makes the configuration of any registered kind a field that pydantic validates.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from types import FrameType
from typing import Any, Generic, TypeVar, cast

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import core_schema

from core import plugins
from core.config import explain_validation
from core.errors import InputError, bad_value, unknown_name
from core.words.commands import command

_DISCOVERY = threading.RLock()
"""One for all registries: the modules of one may look names of another up."""
T = TypeVar("T")
EntryT = TypeVar("EntryT")


class Registry(Generic[T]):
    """Maps a name to an entry. An unknown name is answered with the nearest match and the list.

    kind: the word used in error messages, such as "model".
    listed: what `list` calls these names, such as "models": the way out of an unknown one; empty where they are not listed.
    package: one or several, where entries register themselves: every module in their folders that fits `modules` is imported at the first look-up,
        so that a new entry is one new file and no other edit. A module that cannot be imported hides no other one; what is
        wrong with it is in `failures` and in the answer to every unknown name.
    """

    def __init__(self, kind: str, listed: str = "", *, package: str | tuple[str, ...] = (), modules: str = "*") -> None:
        self.kind = kind
        self.listed = listed
        self.packages = (package,) if isinstance(package, str) else package
        self.modules = modules
        self._entries: dict[str, T] = {}
        self._origins: dict[str, str] = {}
        self._failures: dict[str, str] = {}
        self._searched: tuple[str, ...] = ()

    def register(self, name: str) -> Callable[[EntryT], EntryT]:
        """Decorator that adds an entry, a T, and gives it back as it is; a name taken already is a programming error."""

        def add(entry: EntryT) -> EntryT:
            module = _registering_module(sys._getframe(1))
            if not module.startswith(tuple(f"{package}." for package in self.packages)):
                self._search_tree()  # so that a name of the tree is taken already
            if name in self._entries:
                other = self._origins[name]
                raise RuntimeError(f"{self.kind} {name!r} is registered twice: by {other} and by {module}")
            self._entries[name], self._origins[name] = cast(T, entry), module
            plugins.note_registration(self.kind, name, module, lambda: self._entries.pop(name))
            return entry

        return add

    @property
    def failures(self) -> dict[str, str]:
        """Module -> why it could not be imported."""
        self._discover()
        return self._failures | plugins.plugin_failures()

    def failures_in_words(self) -> str:
        """What could not be imported and why, a sentence each; empty where all is well."""
        return " ".join(f"{module} could not be imported: {why}." for module, why in self.failures.items())

    def plugin_of(self, name: str) -> plugins.Plugin | None:
        """The plugin that registered a name; None for a name of the tree and for one that is not registered."""
        self._discover()
        return plugins.plugin_of(self._origins.get(name, ""))

    def __getitem__(self, name: str) -> T:
        self._discover()
        try:
            return self._entries[name]
        except (KeyError, TypeError):
            hint = f"See: {command('list', self.listed)}" if self.listed else ""
            error = unknown_name(self.kind, name, self.names(), hint=hint)
        raise InputError(f"{error} {self.failures_in_words()}".rstrip())

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._discover()
        return sorted(self._entries)

    def _discover(self) -> None:
        """Import the modules of the package's folders and load the plugins, each once; a second thread waits until they are all there."""
        with _DISCOVERY:
            self._search_tree()
            plugins.load_named_and_installed()

    def _search_tree(self) -> None:
        found = {package: tuple(importlib.import_module(package).__path__) for package in self.packages}
        folders = tuple(folder for part in found.values() for folder in part)
        if folders == self._searched:
            return
        before, self._searched = self._searched, folders  # before the imports: they may look names up themselves
        try:
            for package, part in found.items():
                for module in pkgutil.iter_modules(part):
                    if fnmatch(module.name, self.modules) and not module.ispkg:
                        self._import(f"{package}.{module.name}")
        except BaseException:
            self._searched = before
            raise

    def _import(self, module: str) -> None:
        try:
            importlib.import_module(module)
        except Exception as error:
            self._failures[module] = f"{type(error).__name__}: {error}"


def _registering_module(frame: FrameType | None) -> str:
    """Name of the module whose top-level code is being executed: the innermost one on the stack."""
    while frame is not None and frame.f_code.co_name != "<module>":
        frame = frame.f_back
    return "" if frame is None else str(frame.f_globals.get("__name__", ""))


class ConfigOf:
    """Pydantic annotation of a field that holds the configuration of any registered kind.

    `Annotated[LearnerConfig, ConfigOf(LEARNERS, LearnerConfig)]` takes what `parse` takes, looks the configuration class up
    in the registry, and writes all of its fields. Entries of the registry have a `config_type`.
    """

    def __init__(self, registry: Registry[Any], base: type[BaseModel]) -> None:
        self.registry = registry
        self.base = base

    def read(self, value: object) -> Any:
        """A configuration from a configuration, a kind's name, or a mapping with a "kind". Raises InputError."""
        try:
            return self.parse(value)
        except ValidationError as error:
            raise InputError(f"{self.registry.kind}: {explain_validation(error)}") from None

    def parse(self, value: object) -> Any:
        """`read` inside pydantic: raises ValidationError for a wrong field, so that its place in the whole is kept."""
        kind = self.registry.kind
        if isinstance(value, self.base):
            if type(value) is self.base:
                raise bad_value(kind, value, "the configuration class of a registered kind")
            return value
        if isinstance(value, str):
            return self.registry[value].config_type(kind=value)
        if isinstance(value, Mapping):
            if "kind" not in value:
                raise bad_value(kind, value, f"a dict with 'kind', one of {', '.join(self.registry)}")
            return self.registry[value["kind"]].config_type.model_validate(dict(value))
        raise bad_value(kind, value, f"a {kind} configuration, a dict or one of {', '.join(self.registry)}")

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.parse,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda config, info: config.model_dump(mode=info.mode), info_arg=True
            ),
        )

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict:
        entries = [self.registry[name] for name in self.registry]
        return {"anyOf": [handler(entry.config_type.__pydantic_core_schema__) for entry in entries]}
