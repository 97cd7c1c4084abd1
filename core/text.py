"""Text from outside (arguments, files, models, names of folders) made fit to be kept and shown."""

from __future__ import annotations

import re


def storable(text: str) -> str:
    """`text` as every database and file takes it: no NUL, and `?` for what is no character.

    Bytes of an argument or a file's name that are not UTF-8 come as lone surrogates, which no encoder takes.
    """
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-8", "replace").decode().replace("\0", "")


def without_password(word: str) -> str:
    """A word of a command line as it is recorded and shown: in a URL stars stand for the password."""
    word = re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", word)
    return re.sub(r"([?&](?:ssl)?password=)[^&\s]+", r"\1***", word)


def url_without_password(url: str) -> str:
    """A database's URL that asks for the password elsewhere, such as in PGPASSWORD."""
    return re.sub(r"([?&])password=[^&]*&?", r"\1", re.sub(r"(://[^:/@]*):.*@", r"\1@", url))
