"""The one error type for bad input: it says what came, what is allowed and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A mistake in what was given, never in the program. Shown without a traceback; exit code 2."""


def nearest(value: str, allowed: Iterable[str]) -> str | None:
    """The allowed name that looks most like `value`, or None where nothing is close."""
    names = list(allowed)
    folded = {name.lower(): name for name in reversed(names)}
    match = difflib.get_close_matches(value.lower(), folded, n=1, cutoff=0.4)
    return folded[match[0]] if match else None


def unknown_name(kind: str, value: object, allowed: Iterable[str], *, hint: str = "") -> InputError:
    """An error for a name that is not registered: the nearest match, the whole list, the next command."""
    names = sorted(allowed)
    close = nearest(str(value), names)
    did_you_mean = f" Did you mean {close!r}?" if close else ""
    return InputError(
        f"unknown {kind} {value!r}.{did_you_mean} Allowed: {', '.join(names) or '(none)'}.{' ' + hint if hint else ''}"
    )


def bad_value(argument: str, value: object, allowed: str, *, hint: str = "") -> InputError:
    """An error for an argument out of range: its name, what came, what is allowed, what to do."""
    return InputError(f"{argument}: got {value!r}, allowed: {allowed}.{' ' + hint if hint else ''}")
