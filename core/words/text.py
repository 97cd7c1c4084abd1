"""Text of anybody (a goal, a note, a model's answer, a file's name) made fit to be kept and safe to show: never obeyed, never an
encoding error, never with a password in it."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)")  # CSI, OSC, two characters
_UNUSUAL = re.compile(r"[^\x20-\x7e]+")
_AS_TYPED = dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-")
_AS_TYPED |= dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u00b4", "'")
_AS_TYPED |= dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"') | {"\u3002": "."}
_JOINERS = frozenset("\u200c\u200d") | set(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
"""What has no width but shapes the character before it, as Persian, Hindi, Chinese names and emoji are written."""
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0")
"""Letters and marks in name alone: Unicode says that they are ignored where they are shown."""

STARS = "***"
_KEY = re.compile(
    r"""(?ix)
    (?: --?(?:\w+[-_])*(?:key|token|secret|password|passwd)(?:=|\s+)  # --api-key K
      | \b(?:\w+[-_])*(?:key|token|secret|password|passwd)=           # X_TOKEN=K
      | \bapi[-_]?key\s*:\s*                                          # x-api-key: K
      | \bbearer\s+ | \bauthorization\s*:\s*(?:\w+\s+)?
    ) ["']?([^\s"'=-][^\s"']{3,})
    | \b((?:sk|pk|gsk|xai|hf|ghp|glpat)[-_](?=[\w-]*\d)[\w-]{8,} | AIza[\w-]{20,})
    """
)


def plain(text: str) -> str:
    """Words of anybody on one line, without what a terminal would obey or a reader not see: escapes, other controls, direction marks."""
    return " ".join("".join(c if _is_seen(c) else " " for c in _ESCAPES.sub(" ", text)).split())


def _is_seen(character: str) -> bool:
    return character.isprintable() and character not in _BLANK and character not in _JOINERS


def harmless(text: str, *, lines: bool = False) -> str:
    """Text of anybody as a reader sees it, which no terminal or page obeys.

    Controls, direction marks, lone surrogates and whatever has no glyph stand as their escapes, such as `\\x1b` and `\\u202e`;
    every kind of space is a space; what joins letters stays behind a letter that is not ASCII, once. lines: line breaks and
    tabs stay; without, they are spaces too.
    """
    if text.isascii() and text.isprintable():
        return text

    def visible(run: re.Match[str]) -> str:
        shown, joins = "", False  # whether a joiner may come next
        for character in run[0]:
            if character in "\n\t":
                shown, joins = shown + (character if lines else " "), False
            elif _is_seen(character):
                shown, joins = shown + character, True
            elif joins and character in _JOINERS:
                shown, joins = shown + character, character == "\ufe0f"  # in emoji a joiner follows it
            else:
                space = unicodedata.category(character) == "Zs"
                shown, joins = shown + (" " if space else ascii(character)[1:-1]), False
        return shown

    return _UNUSUAL.sub(visible, text.replace("\r\n", "\n"))


def no_formula(text: str) -> str:
    """A cell of a file for spreadsheets: words that one of them would take for a formula begin with an apostrophe; numbers do not."""
    if text.lstrip()[:1] not in tuple("=+-@\uff1d\uff0b\uff0d\uff20"):
        return text
    try:
        float(text)
    except ValueError:
        return "'" + text
    return text


def escape_json(text: str, *, ascii_only: bool = False) -> str:
    """JSON text in which what `harmless` would change, or all that is not ASCII, has JSON's own escape: the same value."""

    def escaped(run: re.Match[str]) -> str:
        return "".join(c if c == "\n" or (_is_seen(c) and not ascii_only) else json.dumps(c)[1:-1] for c in run[0])

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


class HarmlessStream:
    """A text stream to which everything is written as `harmless` gives it; in all else it is the stream itself.

    For what libraries and the interpreter write with words of anybody in it: tracebacks, warnings, a parser's complaints.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if self._stream is not None:  # it was closed before the program began
            self._stream.write(harmless(text, lines=True))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def without_password(word: str) -> str:
    """A word of a command line as it is recorded and shown: stars stand for the password of a URL, and for a key (`keys_in`)."""
    word = re.sub(r"(://[^:/@\s]*):\S*@", rf"\1:{STARS}@", word)
    word = re.sub(r"([?&](?:ssl)?password=)[^&\s]+", rf"\1{STARS}", word)
    for key in sorted(keys_in(word), key=len, reverse=True):
        word = word.replace(key, STARS)
    return word


def keys_in(word: str) -> set[str]:
    """What in a word of a command line, such as a program with its options, is a key by its name or by its look."""
    return {found for match in _KEY.finditer(word) for found in match.groups() if found and found != STARS}


def url_without_password(url: str) -> str:
    """A database's URL that asks for the password elsewhere, such as in PGPASSWORD."""
    return re.sub(r"([?&])password=[^&]*&?", r"\1", re.sub(r"(://[^:/@]*):.*@", r"\1@", url))
