"""What a chat model may say in its own words: every number and every row id in it must stand in what it was given."""

from __future__ import annotations

import re

from experiments.ledger.ids import ROW_ID, named_rows

_KNOWN_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_SAID_NUMBER = re.compile(r"(?<![A-Za-z\d])\d+(?:\.\d+)?")
_THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d{3}\b)")
_ESCAPED = re.compile(r"\\[bfnrt]|\\u[0-9a-fA-F]{4}")  # sources are JSON: `\n` before an id is no letter of its word
_HALF_A_DIGIT = 0.5000001  # what rounding may change, in units of the last digit that is said


def narrative_problem(narrative: str, outcome: str, sources: str) -> str:
    """Why a narrative may not stand in the report, or "": it must name the outcome, and every number and row id in it
    must come from `sources` (up to rounding, sign and percent)."""
    if not re.search(rf"\b{outcome}\b", narrative, re.IGNORECASE):
        return f"it does not name the outcome, {outcome}"
    sources = _ESCAPED.sub(" ", sources)
    known = set(named_rows(sources))
    for row_id in named_rows(narrative):
        if row_id not in known:
            return f"{row_id} stands in no result"
    number = unknown_number(narrative, sources)
    return f"the number {number} stands in no result" if number else ""


def unknown_number(text: str, sources: str) -> str:
    """The first number in `text`, row ids left out, that `sources` do not hold (up to rounding, sign and percent), or ""."""
    known = [float(number) for number in _KNOWN_NUMBER.findall(ROW_ID.sub(" ", _ESCAPED.sub(" ", sources)))]
    for number in _SAID_NUMBER.findall(_THOUSANDS_COMMA.sub("", ROW_ID.sub(" ", text))):
        half_digit = _HALF_A_DIGIT * 10.0 ** -len(number.partition(".")[2])
        if not any(abs(k * scale - float(number)) <= half_digit for k in known for scale in (1, 100)):
            return number
    return ""
