"""Where a command begins, before anything heavy is imported, so that Ctrl-C is quiet from the first moment."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import TextIO, cast

from cli import RECORD, STOPPED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, of `sys.argv` where no arguments are given, and return its exit code; see `cli.app.main`."""
    if arguments is not None:  # a caller in Python keeps its own handlers
        from cli.app import main as run

        return run(arguments)
    sys.excepthook = _tell_fault
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # what is ignored stays ignored
        signal.signal(signal.SIGINT, _interrupt)
    from cli.app import main as run

    if RECORD in os.environ:
        from cli.background import work

        code = work(run, sys.argv[1:])
    else:
        code = run(sys.argv[1:])
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to do but to end
    return code


def _tell_fault(kind: type[BaseException], fault: BaseException, trace: TracebackType | None) -> None:
    """The interpreter's own words about a fault of ours, whose message may quote anybody."""
    from core.words.text import HarmlessStream

    with contextlib.redirect_stderr(cast("TextIO", HarmlessStream(sys.stderr))):
        sys.__excepthook__(kind, fault, trace)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """KeyboardInterrupt, or the end at once while a module is loaded: what is raised there, libraries print or swallow."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(STOPPED)
        frame = frame.f_back
    raise KeyboardInterrupt
