"""The rule by which a search may end before its planned rounds are over. A member of the crew asks; this decides."""

from __future__ import annotations

import math
from typing import Literal

CLEAR = 2.0  # noise floors that lie between the best trials of the two arms
LEAST_ROUNDS = 2


def why_not_yet(
    *,
    kind: Literal["beat", "compare", "best", "improve"],
    margin_pct: float,
    rounds_done: int,
    rounds_planned: int,
    challenger: float | None,
    baseline: float | None,
    floor: float | None,
    unit: str = "",
) -> str:
    """Why the search goes on, or "" where it may end.

    It may end once half of the planned rounds are measured and the challenger's best search score lies `CLEAR` noise
    floors above what it has to beat: the baseline's best, plus the margin that the question names. A comparison may end
    with either side ahead. Rounds are whole, so both arms have had the same number of trials. Ending early cannot
    decide anything: selection and confirmation run on other seeds and tasks. A challenger that is behind keeps its rounds. unit: of the
    scores, behind a number, such as " env steps".
    """
    least = max(LEAST_ROUNDS, math.ceil(rounds_planned / 2))
    if rounds_done < least:
        return f"{rounds_done} of {rounds_planned} rounds are measured, at least {least} are needed"
    if challenger is None or baseline is None:
        return "an arm has no scored trial yet"
    if floor is None or floor <= 0:
        return "the noise floor is not known: it needs two scored seeds of the baseline"
    gap = challenger - baseline - margin_pct / 100 * abs(baseline)
    ahead = abs(gap) if kind == "compare" else gap
    if ahead < CLEAR * floor:
        return (
            f"the challenger's best lies {gap / floor:+.1f} noise floors from what it has to beat, "
            f"at least {CLEAR:g} are needed (one is {f'{floor:,.0f}' if unit else f'{floor:.3g}'}{unit})"
        )
    return ""
