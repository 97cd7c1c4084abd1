"""The commands that messages name: quoted, and complete, so that what is printed can be run as it stands.

Code that answers "go on with ..." calls `command("resume", "c-0001")` and knows nothing of flags. How the program was
called, which ledger and which plugins it was given, is said once by the command line (`printed_as`, `add_to_commands`).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from core.words.text import harmless, storable, without_password

FREE = ("list", "bench", "completion", "--help")  # what is asked of no ledger


@dataclass(frozen=True)
class Invocation:
    """How this process was called, as far as its next commands have to be called so too."""

    program: tuple[str, ...] = ("python", "main.py")
    ledger: tuple[str, ...] = ()
    """Options that name the ledger, such as --data-dir FOLDER; never with a password."""
    plugins: tuple[str, ...] = ()
    """Options that load the plugins."""
    secret: str = ""
    """The environment variable that takes the password of the ledger's server, where one was given."""


_invocation = Invocation()


@contextmanager
def printed_as(invocation: Invocation) -> Iterator[None]:
    """Commands are printed so while this lasts, in all threads."""
    global _invocation
    before, _invocation = _invocation, invocation
    try:
        yield
    finally:
        _invocation = before


def add_to_commands(*, ledger: tuple[str, ...] = (), plugins: tuple[str, ...] = (), secret: str = "") -> None:
    """What has become known of the invocation meanwhile; it holds until the surrounding `printed_as` ends."""
    global _invocation
    now = _invocation
    _invocation = replace(now, ledger=now.ledger + ledger, plugins=now.plugins + plugins, secret=secret or now.secret)


def command(*words: str) -> str:
    """A command of this program as a shell takes it, with the ledger and the plugins that were given.

    A password is never shown: `PGPASSWORD=...` stands before the command, where it is to be given again.
    """
    now = _invocation
    needs_ledger = words[0] not in FREE
    options = (now.ledger if needs_ledger else ()) + now.plugins
    secret = f"{now.secret}=... " if now.secret and needs_ledger else ""
    return secret + quoted(*now.program, *words, *options)


def program() -> str:
    """How every command of this program begins."""
    return quoted(*_invocation.program)


def quoted(*words: str) -> str:
    """Words as a shell takes them, on one line; what cannot be printed, such as a newline, as `$'...'` (bash, zsh, ksh).

    Stars stand for a key among them.
    """
    shown = map(without_password, words)
    return " ".join(shlex.quote(word) if harmless(word) == word else _escaped(word) for word in shown)


def _escaped(word: str) -> str:
    try:
        letters = word.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # came from no command line
        letters = storable(word).encode()
    return "$'" + "".join(_letter(byte) for byte in letters) + "'"


def _letter(byte: int) -> str:
    if chr(byte) in "'\\":
        return "\\" + chr(byte)
    return chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}"
