"""What leaves for a terminal or a pipe: shown in any encoding, at a sane width, and silent once nobody reads any more."""

from __future__ import annotations

import codecs
import os
import select
import sys
import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, TextIO

from core.words.text import escape_json, harmless

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

SIZES = {"COLUMNS": (40, 1000), "LINES": (5, 1000)}
"""What the size variables may say: none has an effect outside, and below or above a terminal shows nothing useful."""

LOOKALIKES = str.maketrans(
    {
        **dict.fromkeys("‐‑‒–—―−", "-"),
        **dict.fromkeys("‘’‚′", "'"),
        **dict.fromkeys("“”„″", '"'),
        **{"…": "...", "→": "->", "←": "<-", "≤": "<=", "≥": ">=", "±": "+-", "×": "x", "·": ".", "•": "*"},
    }
)


def _look_alike(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that an encoding lacks: an ASCII lookalike, the bare letter, or a question mark."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    shown = ""
    for character in error.object[error.start : error.end]:
        alike = unicodedata.normalize("NFKD", character.translate(LOOKALIKES))
        shown += alike.encode("ascii", "ignore").decode() or "?"
    return shown, error.end


codecs.register_error("lookalike", _look_alike)


def prepare_streams() -> None:
    """Make standard output and error take every text, and a width that says nothing go away. Safe to repeat."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="lookalike")
    for name, (least, most) in SIZES.items():
        size = os.environ.get(name)
        if size is None:
            continue
        if not size.isascii() or not size.isdigit() or not size.strip("0"):
            del os.environ[name]  # the terminal itself is asked then
        elif len(size) > 9 or not least <= int(size) <= most:
            os.environ[name] = str(most if len(size) > 9 else min(max(int(size), least), most))


def emit(text: str, *, to_error: bool = False) -> None:
    """Print text of anybody, line breaks and all, to standard output or standard error. Silent where nobody reads."""
    stream = sys.stderr if to_error else sys.stdout
    if stream is None:  # it was closed before the program began
        return
    try:
        print(harmless(text, lines=True), file=stream)
    except BrokenPipeError:
        drop_unread()


def emit_json(text: str) -> None:
    """Print JSON text: what a terminal would obey, and what the stream's encoding lacks, with JSON's own escapes."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    emit(escape_json(text, ascii_only=not encoding.lower().startswith("utf")))


def drop_unread() -> bool:
    """Send what is still written to a standard stream that nobody reads, or that the disk refuses, nowhere.

    True where there was such a stream. What is buffered would otherwise fail once more when the interpreter ends.
    """
    dropped = False
    for stream in (sys.stdout, sys.stderr):
        if stream is None or stream.closed:
            continue
        try:
            stream.flush()
            refused = _nobody_reads(stream)  # a buffer whose writing failed once may be empty now
        except OSError:
            refused = True
        if refused:
            dropped = True
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
            stream.flush()
    return dropped


def _nobody_reads(stream: TextIO) -> bool:
    """Whether a stream is a pipe whose reading end is closed."""
    try:
        descriptor = stream.fileno()
    except OSError:  # it is no file of the system's
        return False
    poll = select.poll()
    poll.register(descriptor, 0)  # an error is reported whatever was asked for
    return any(events & select.POLLERR for _, events in poll.poll(0))


@cache
def _console_type() -> type[Console]:
    from rich.console import Console
    from rich.segment import Segment

    class HarmlessConsole(Console):
        """A console whose text is never obeyed by the terminal, whatever it holds, and that outlives its reader."""

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                text, style, control = segment
                if style is not None and style.link:  # of an escape in what a library printed
                    style = style.update_link(None)
                yield segment if control else Segment(harmless(text, lines=True), style)

        def on_broken_pipe(self) -> None:
            del self._buffer[:]
            drop_unread()

    return HarmlessConsole


def make_console(*, to_error: bool = False) -> Console:
    """A rich console on standard output, or on standard error. rich is imported here, for commands do without."""
    return _console_type()(stderr=to_error, highlight=False)
