"""Text of anybody (a goal, a note, a model's answer, a file's name) made fit to be kept and safe to show: never obeyed, never an
encoding error, never with a password in it."""

from __future__ import annotations

import json
import re
import unicodedata

_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)")  # CSI, OSC, two characters
_UNUSUAL = re.compile(r"[^\x20-\x7e]")
_AS_TYPED = dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-")
_AS_TYPED |= dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u00b4", "'")
_AS_TYPED |= dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"') | {"\u3002": "."}
_JOINERS = "\u200c\u200d"  # part of how Persian, Hindi and emoji are written


def plain(text: str) -> str:
    """Words of anybody on one line, without what a terminal would obey: escapes, other controls, direction marks."""
    return " ".join("".join(c if c.isprintable() else " " for c in _ESCAPES.sub(" ", text)).split())


def harmless(text: str, *, lines: bool = False) -> str:
    """Text of anybody as a reader sees it, which no terminal or page obeys.

    Controls, direction marks, lone surrogates and whatever has no glyph stand as their escapes, such as `\\x1b` and `\\u202e`;
    every kind of space is a space. lines: line breaks and tabs stay; without, they are spaces too.
    """

    def visible(match: re.Match[str]) -> str:
        character = match[0]
        if character in "\n\t":
            return character if lines else " "
        if character.isprintable() or character in _JOINERS:
            return character
        return " " if unicodedata.category(character) == "Zs" else ascii(character)[1:-1]

    return _UNUSUAL.sub(visible, text.replace("\r\n", "\n"))


def escape_json(text: str, *, ascii_only: bool = False) -> str:
    """JSON text in which what `harmless` would change, or all that is not ASCII, has JSON's own escape: the same value."""

    def escaped(match: re.Match[str]) -> str:
        character = match[0]
        keep = character == "\n" or (character.isprintable() and not ascii_only)
        return character if keep else json.dumps(character)[1:-1]

    return _UNUSUAL.sub(escaped, text)


def as_it_looks(text: str) -> str:
    """Text that was copied from a page, in the characters that a keyboard has: hyphens, quotes, full-width signs, every kind of space.

    What has no width (a byte order mark, joiners, direction marks, soft hyphens) goes.
    """
    folded = unicodedata.normalize("NFKC", text)
    return "".join(
        _AS_TYPED.get(c, " " if c.isspace() else c)
        for c in folded
        if unicodedata.category(c) not in ("Cf", "Cs", "Cc") or c.isspace()
    )


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
