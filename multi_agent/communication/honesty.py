"""What a chat model may say in its own words: every number and every row id in it must stand in what it was given.

A narrative that breaks this is thrown away (`narrative_problem`); in messages, findings, notes, reasons and closing words the
number is marked (`mark_unknown`), and only where it is told as measured: a score, a return, an effect, with decimals. Counts,
budgets, settings ("rate=0.001") and what an author expects are nobody's measurement.
"""

from __future__ import annotations

import re

from experiments.ledger.ids import ROW_ID, named_rows

_KNOWN_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_SAID_NUMBER = re.compile(r"(?<![A-Za-z\d])\d+(?:\.\d+)?")
_THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d{3}\b)")
_ESCAPED = re.compile(r"\\[bfnrt]|\\u[0-9a-fA-F]{4}")  # sources are JSON: `\n` before an id is no letter of its word
_HALF_A_DIGIT = 0.5000001  # what rounding may change, in units of the last digit that is said

MARK = "(not in the ledger)"
_SENTENCE = re.compile(r"(?<=[.!?;\n])\s+")
_MEASURED = re.compile(
    r"\b(?:scor|return(?!s? to\b)|reward|measur|reach|gain|improv|noise floor|nf\b|better|worse|best\b|effect|p ?[<=])",
    re.IGNORECASE,
)
_EXPECTED = re.compile(
    r"\b(?:expect|predict|hope|aim|target|goal|should|would|could|may\b|might|will\b|try|suggest|propos|if\b|about\b|let)",
    re.IGNORECASE,
)
_DECIMAL = re.compile(r"(?<![\w.=])[-+\u2212]?\d+\.\d+(?!\w|\.\d|\s*\(not in the ledger\))")
_MARKED = re.compile(r"\S+ \(not in the ledger\)")


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


def mark_unknown(text: str, sources: str) -> str:
    """`text` with `MARK` behind every decimal that it tells as measured and that `sources` do not hold, marked ones there left out."""
    known = _MARKED.sub(" ", sources)

    def marked(number: re.Match[str]) -> str:
        said = number[0].lstrip("+-\u2212")
        return f"{number[0]} {MARK}" if unknown_number(said, known) else number[0]

    parts = _SENTENCE.split(text)
    gaps = [*_SENTENCE.findall(text), ""]
    told = [_DECIMAL.sub(marked, p) if _MEASURED.search(p) and not _EXPECTED.search(p) else p for p in parts]
    return "".join(part + gap for part, gap in zip(told, gaps, strict=True))
