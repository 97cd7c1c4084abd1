"""Numbers as people type them and read them: the one reader of every option and goal, and the one writer.

`2.5M`, `2,5M`, `200_000`, `1,000`, `1.000.000`, `1,000.5`, `1.000,5` and `1e6` are read as what they look like. A comma or point
that could mean two numbers a thousand apart, and anything else, is refused: a wrong guess would be spent before it is seen.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction

from core.errors import InputError, bad_value

LARGEST_COUNT = 10**12
LONGEST_S = 30 * 86400
LARGEST_MIB = 2**30

_COUNT_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_MEMORY_UNITS = {"": 1, "m": 1, "g": 2**10, "t": 2**20}
_DURATION_UNITS = {"d": 86400, "h": 3600, "m": 60, "min": 60, "s": 1, "": 1}
_DIGITS = r"\d[\d_.,]*|[.,]\d+"  # no spaces inside
_EXPONENT = re.compile(r"(?P<digits>[\d_.,]+)(?:e(?P<exponent>[+-]?\d{1,4}))?", re.IGNORECASE)


def parse_number(text: str, argument: str, allowed: str, *, unit: str = "") -> Fraction:
    """The exact number in `text`, which may have digit groups, a decimal point or comma, and an exponent.

    argument, allowed: for the error. unit: what follows the number; with one, `1,500` is ambiguous and refused.
    """
    match = _EXPONENT.fullmatch(text)
    if match is None:
        raise bad_value(argument, text + unit, allowed)
    plain = _without_groups(match["digits"].replace("_", ""))
    if plain is None:
        raise bad_value(argument, text + unit, allowed)
    if unit and re.fullmatch(r"[1-9]\d{0,2},\d{3}", match["digits"]):
        digits = match["digits"]
        raise bad_value(
            argument, text + unit, f"{digits.replace(',', '')}{unit} or {digits.replace(',', '.')}{unit}; this could be either"
        )  # fmt: skip
    return Fraction(Decimal(f"{plain}e{match['exponent'] or 0}"))


def _without_groups(digits: str) -> str | None:
    """The digits with a decimal point alone; None where commas and points do not fit one number."""
    last = max(digits.rfind(","), digits.rfind("."))
    if last < 0:
        return digits or None
    mark = digits[last]
    other = "." if mark == "," else ","
    whole, part = digits[:last], digits[last + 1 :]
    if not part:
        return None
    if other in whole:  # both signs: the last one is the decimal sign, once, and the others part groups of three
        fits = re.fullmatch(rf"\d{{1,3}}(?:{re.escape(other)}\d{{3}})+", whole)
        return f"{whole.replace(other, '')}.{part}" if fits else None
    if mark in whole or (mark == "," and re.fullmatch(r"[1-9]\d{0,2}", whole) and len(part) == 3):
        fits = re.fullmatch(rf"[1-9]\d{{0,2}}(?:{re.escape(mark)}\d{{3}})+", digits)
        return digits.replace(mark, "") if fits else None
    return f"{whole or 0}.{part}"


def _folded(text: str) -> str:
    """Lower case, full-width digits and signs as plain ones, no byte order mark or space around it."""
    return unicodedata.normalize("NFKC", text).replace("\ufeff", "").strip().lower()


def parse_count(text: str, argument: str = "--env-steps") -> int:
    """A whole number in `20M`, `2,5M`, `500k`, `1e6`, `200000`."""
    allowed = "a count from 1 to 1000G such as 20M, 500k or 200000"
    number = _with_unit(text, r"([kmg]?)", _COUNT_UNITS, argument, allowed, LARGEST_COUNT)
    if number.denominator != 1:
        raise bad_value(argument, text, allowed)
    return int(number)


def parse_duration(text: str, argument: str = "--budget") -> float:
    """Seconds in `30m`, `1h30m`, `1,5h`, `90s`, `45` (minutes are not assumed: a bare number is seconds)."""
    allowed = "a duration such as 30m, 1h30m or 90s, at most 30 days"
    part = rf"(?:(?P<{{0}}>{_DIGITS})\s*(?:{{1}})\s*)?"
    pattern = "".join(part.format(*p) for p in (("d", "d"), ("h", "h"), ("m", "min|m"), ("s", "s|$")))
    match = re.fullmatch(pattern, _folded(text))
    if match is None or not any(match.groups()):
        raise bad_value(argument, text, allowed)
    given = {unit: number for unit, number in match.groupdict().items() if number}
    seconds = sum(parse_number(n, argument, allowed, unit=unit) * _DURATION_UNITS[unit] for unit, n in given.items())
    if not 0 < seconds <= LONGEST_S:
        raise bad_value(argument, text, allowed)
    return float(seconds)


def parse_memory(text: str, argument: str = "--memory") -> int:
    """MiB in `4G`, `4GB`, `4GiB`, `1,5G`, `800M` or `800` (a bare number is MiB)."""
    return int(
        _with_unit(text, r"([mgt]?)(?:i?b)?", _MEMORY_UNITS, argument, "an amount such as 4G or 800M", LARGEST_MIB)
    )


def _with_unit(text: str, unit: str, sizes: dict[str, int], argument: str, allowed: str, largest: int) -> Fraction:
    """A number with a unit behind it, in the smallest unit; from 1 to `largest`, else InputError."""
    match = re.fullmatch(rf"([\d_.,]+(?:e[+-]?\d+)?)\s*{unit}", _folded(text))
    if match is None:
        raise bad_value(argument, text, allowed)
    number = parse_number(match[1], argument, allowed, unit=match[2]) * sizes[match[2]]
    if not 1 <= number <= largest:
        raise bad_value(argument, text, allowed)
    return number


def parse_percent(text: str, argument: str = "goal") -> float:
    """Percent in `10`, `12,5`, `1,000`; more than 0 and at most 1000."""
    allowed = "more than 0 and at most 1000 %"
    try:
        percent = parse_number(_folded(text), argument, allowed)
    except InputError:
        raise bad_value(argument, f"{text} %", allowed) from None
    if not 0 < percent <= 1000:
        raise bad_value(argument, f"{text} %", allowed)
    return float(percent)


def format_seconds(seconds: int | float) -> str:
    """`1h30m`, `3m20s`, `45s`."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes:02d}m" if minutes else f"{hours}h"
    if minutes:
        return f"{minutes}m{left:02d}s" if left else f"{minutes}m"
    return f"{left}s"


def format_count(number: int | float) -> str:
    """`2.5M`, `640k`, `123`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"
