"""Code from outside the tree: one file, or a module, that registers a model, a task family, a learner, an agent or a bench.

Three ways to name one: `--plugin FILE|MODULE` with any command, the environment variable `AUTONOMOUS_SSM_METARL_PLUGINS`
(several are parted as in PATH), and the entry point group `autonomous_ssm_metarl.plugins` of an installed package. What
the first two name is loaded at once, and a mistake ends the command; the processes that it starts get the same through the
variable. A script that registers something itself calls `load_plugin(__file__)`, so that those processes know it too. An entry point is loaded when names are first looked up, and one that is broken is reported as a broken file of
the tree is. A plugin is loaded once a process and known by its name and by the SHA-256 of its code, which a run records.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from core.errors import InputError, bad_value

GROUP = "autonomous_ssm_metarl.plugins"
VARIABLE = "AUTONOMOUS_SSM_METARL_PLUGINS"
OPTION = "--plugin"
OURS = ("core", "env_runner", "adaptation", "meta_rl", "experiments", "multi_agent", "cli", "main")


@dataclass(frozen=True)
class Plugin:
    """A loaded plugin."""

    name: str
    """The file's name without .py, or the module's name: what specifications call it."""
    source: str
    """What to give to `--plugin`: the file's whole path, or the module's name."""
    sha256: str
    """Of the file's bytes, or of all Python files of the module's package."""
    module: str
    """Name in `sys.modules`."""

    def holds(self, module: str) -> bool:
        """Whether a module is this plugin's: the plugin itself, or another one of its package."""
        return module == self.module or (self.name == self.module and module.startswith(f"{_top(self.module)}."))


_loaded: dict[str, Plugin] = {}
_registered: dict[str, list[tuple[str, str, Callable[[], object]]]] = {}
_failures: dict[str, str] = {}
_is_loading = False
_all_are_loaded = False


def plugins_from(arguments: Sequence[str]) -> tuple[list[str], tuple[Plugin, ...]]:
    """Take every `--plugin FILE|MODULE` out of a command line, load these and those that the environment names.

    Gives the other words and all plugins so named. InputError where one cannot be loaded.
    """
    rest, sources, words = [], _named_in_environment(), list(arguments)
    while words:
        word = words.pop(0)
        if word == "--":
            rest += [word, *words]
            break
        name, equals, value = word.partition("=")
        if name != OPTION:
            rest.append(word)
        elif equals or words:
            sources.append(value if equals else words.pop(0))
        else:
            raise bad_value(OPTION, "nothing", "a Python file or the name of a module")
    return rest, tuple(dict.fromkeys(load_plugin(source) for source in sources))


def load_plugin(source: str | Path) -> Plugin:
    """Load a file or a module once, also for the processes that this one starts.

    Raises InputError: no such file or module, an error while it was imported (with file, line and cause), a name that
    another plugin has, or a file that was changed after it had been loaded.
    """
    with _loading():
        plugin = _load_file(source) if _is_file(source) else _load_module(str(source))
    named = [plugin.source if name == os.fspath(source) else name for name in _named_in_environment()]
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*named, plugin.source]))
    return plugin


def loaded_plugins() -> tuple[Plugin, ...]:
    """All that are loaded, those of installed packages too, by name."""
    load_named_and_installed()
    return tuple(_loaded[name] for name in sorted(_loaded))


def load_named_and_installed() -> None:
    """Load what the environment and installed packages name, once; every look-up in a registry begins with this.

    Raises InputError for what the environment names; an installed one that is broken is one of `plugin_failures`.
    """
    global _all_are_loaded
    if _all_are_loaded or _is_loading:
        return
    for source in _named_in_environment():
        load_plugin(source)
    with _loading():
        for module in _installed():
            try:
                _load_module(module)
            except InputError as error:
                _failures[module] = str(error)
    _all_are_loaded = True


def plugin_failures() -> dict[str, str]:
    """Installed plugin -> why it could not be loaded."""
    return dict(_failures)


def note_registration(kind: str, name: str, module: str, undo: Callable[[], object]) -> None:
    """Remember what a module registers, and how that is undone where the module fails later.

    kind: the registry's word, such as "model".
    """
    _registered.setdefault(module, []).append((kind, name, undo))


def registrations(plugin: Plugin) -> dict[str, list[str]]:
    """What a plugin registered, by kind: {"model": ["mgu"]}."""
    found: dict[str, list[str]] = {}
    for module, entries in _registered.items():
        for kind, name, _ in entries if plugin.holds(module) else ():
            found.setdefault(kind, []).append(name)
    return {kind: sorted(names) for kind, names in sorted(found.items())}


def plugin_of(module: str) -> Plugin | None:
    """The plugin that a module belongs to; None for one of the tree."""
    exact = [plugin for plugin in _loaded.values() if plugin.module == module]
    return next(iter([*exact, *(plugin for plugin in _loaded.values() if plugin.holds(module))]), None)


def unlike_recorded(recorded: Mapping[str, str], sources: Mapping[str, str] | None = None) -> list[str]:
    """What keeps recorded work from being done again, in words: plugins that are missing, or not what they were.

    recorded: name -> SHA-256. sources: name -> what was given to `--plugin` then, where that is known.
    """
    present = {plugin.name: plugin for plugin in loaded_plugins()}
    problems = []
    for name, digest in sorted(recorded.items()):
        source = (sources or {}).get(name, "")
        if name not in present:
            known = f"{source}, " if source else ""
            problems.append(
                f"the plugin {name!r} ({known}sha256 {digest[:12]}) is not loaded: add {OPTION} {source or 'FILE|MODULE'}"
            )
        elif present[name].sha256 != digest:
            now = present[name]
            words = f"the plugin {name!r} was changed: sha256 {digest[:12]} then, {now.sha256[:12]} now ({now.source})"
            where = f" (the data folder keeps it as provenance/{digest}/{name}.py)" if now.name != now.module else ""
            problems.append(f"{words}: give it as it was{where}")
    return problems


# ---- loading --------------------------------------------------------------------------------------------------------


@contextmanager
def _loading() -> Iterator[None]:
    """While a plugin is imported it may look names up itself, which must not load it again."""
    global _is_loading
    before, _is_loading = _is_loading, True
    try:
        yield
    finally:
        _is_loading = before


def _is_file(source: str | Path) -> bool:
    text = os.fspath(source)
    return text.endswith(".py") or os.sep in text or Path(text).is_file()


def _load_file(source: str | Path) -> Plugin:
    try:
        path = Path(source).expanduser().resolve()
    except (RuntimeError, ValueError, OSError) as error:  # nobody's home, a zero byte, a circle of links
        raise bad_value(OPTION, str(source), f"a Python file that exists ({error})") from None
    if path.suffix != ".py" or not path.is_file():
        raise bad_value(OPTION, str(source), "a Python file that exists (NAME.py), or the name of a module")
    if os.pathsep in str(path):
        raise bad_value(OPTION, str(path), f"a path without {os.pathsep!r}")
    code = path.read_bytes()
    digest = hashlib.sha256(code).hexdigest()
    present = _loaded.get(path.stem)
    if present is not None:
        if present.source != str(path):
            raise InputError(f"{OPTION}: two plugins are called {path.stem!r}: {present.source} and {path}. Rename one")
        if present.sha256 != digest:
            raise InputError(f"{OPTION} {path}: it was changed after it had been loaded; start anew")
        return present
    if os.path.realpath(getattr(sys.modules["__main__"], "__file__", None) or "") == str(path):
        return _keep(Plugin(path.stem, str(path), digest, "__main__"))  # a script that names itself is imported already
    module = ModuleType(f"plugin_{path.stem}")
    module.__file__ = str(path)
    plugin = Plugin(path.stem, str(path), digest, module.__name__)
    sys.modules[plugin.module] = module  # pydantic and dataclasses look their module up there
    try:
        exec(compile(code, str(path), "exec", dont_inherit=True), module.__dict__)  # the very bytes that were hashed
    except (Exception, SystemExit) as error:
        sys.modules.pop(plugin.module, None)
        for _, _, undo in _registered.pop(plugin.module, ()):
            undo()
        raise _could_not_be_loaded(plugin.source, path, error) from error
    return _keep(plugin)


def _load_module(name: str) -> Plugin:
    present = _loaded.get(name)
    if present is not None:
        if present.source != name:
            raise InputError(f"{OPTION}: two plugins are called {name!r}: {present.source} and a module. Rename one")
        return present
    if _top(name) in OURS:
        raise bad_value(OPTION, name, "code from outside of the tree; this is a part of it and needs no loading")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise bad_value(OPTION, name, "a Python file that exists (NAME.py), or a module that can be imported") from None  # fmt: skip
        raise _could_not_be_loaded(name, None, error) from error
    except (Exception, SystemExit) as error:
        raise _could_not_be_loaded(name, None, error) from error
    return _keep(Plugin(name, name, _package_digest(module), name))


def _keep(plugin: Plugin) -> Plugin:
    _loaded[plugin.name] = plugin
    return plugin


def _could_not_be_loaded(source: str, path: Path | None, error: BaseException) -> InputError:
    """The error with the file and line that it came from: the last one of the plugin's own where there is one."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if path is not None and frame.filename == str(path)] or list(frames)
    place = f"{own[-1].filename}, line {own[-1].lineno}" if own else source
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{error.filename}, line {error.lineno}"
    return InputError(f"{OPTION} {source} could not be loaded: {place}: {type(error).__name__}: {error}")


def _package_digest(module: ModuleType) -> str:
    """SHA-256 of a module's file, or of every Python file of the package that it belongs to."""
    top = sys.modules[_top(module.__name__)]
    folders = [Path(folder) for folder in getattr(top, "__path__", ())]
    if not folders:
        file = getattr(module, "__file__", None)
        if file is None:
            raise bad_value(OPTION, module.__name__, "a module that is written in Python")
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{file.relative_to(folder).as_posix()}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _top(module: str) -> str:
    return module.partition(".")[0]


def _named_in_environment() -> list[str]:
    return [source for source in os.environ.get(VARIABLE, "").split(os.pathsep) if source]


def _installed() -> list[str]:
    """Modules that installed packages name as plugins."""
    from importlib.metadata import entry_points

    return sorted({entry.module for entry in entry_points(group=GROUP)})
