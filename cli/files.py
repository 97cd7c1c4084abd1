"""Text that a person hands over in a file, a pipe or on standard input."""

from __future__ import annotations

import codecs
import sys
from pathlib import Path

from core.errors import InputError, bad_value

STANDARD_INPUT = "-"
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
"""Byte order mark -> what it says of the text after it; without one it is UTF-8."""


def read_text(option: str, name: str) -> str:
    """What a file says, or a pipe such as `<(...)`, or standard input for "-". InputError, naming the option, where it says nothing readable."""
    try:
        data = sys.stdin.buffer.read() if name == STANDARD_INPUT else Path(name).expanduser().read_bytes()
    except FileNotFoundError:
        raise InputError(f"{option}: {name} does not exist") from None
    except (OSError, ValueError, RuntimeError) as error:  # a folder, a zero byte in the name, a home that nobody has
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise bad_value(option, name, f"a text file ({reason})") from None
    encoding = next((encoding for mark, encoding in MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        where = f"byte {error.start + 1} of {len(data)}"
        raise bad_value(option, name, f"text in UTF-8, or in UTF-16 with its mark ({where} is neither)") from None
