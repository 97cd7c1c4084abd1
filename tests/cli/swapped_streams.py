"""Commands in this process, on standard streams of any encoding, or on a pipe that nobody reads."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import main


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    error: str


@contextmanager
def _swapped(out: io.TextIOBase, error: io.TextIOBase) -> Iterator[None]:
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, error
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def run_encoded(words: list[str], encoding: str) -> Answer:
    """Run a command whose streams refuse, as Python's do, what the encoding lacks."""
    out, error = (io.TextIOWrapper(io.BytesIO(), encoding, errors="strict") for _ in range(2))
    with _swapped(out, error):
        code = main.main(words)
    texts = []
    for stream in (out, error):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode(encoding))  # type: ignore[attr-defined]
    return Answer(code, *texts)


def run_unread(words: list[str]) -> Answer:
    """Run a command whose standard output is a pipe with a closed reading end; `error` is what it says all the same."""
    reading, writing = os.pipe()
    os.close(reading)
    error = io.TextIOWrapper(io.BytesIO(), "utf-8")
    with os.fdopen(writing, "w", encoding="utf-8") as out, _swapped(out, error):
        code = main.main(words)
    error.flush()
    return Answer(code, "", error.buffer.getvalue().decode())  # type: ignore[attr-defined]
