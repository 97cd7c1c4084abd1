"""The rules that stand in code: whose round it is, and what a narrative may say."""

from __future__ import annotations

import pytest

from multi_agent.workflows.research_workflow import narrative_problem, whose_round

FACTS = '{"effect": 12.345, "interval": [-1.5, 0.25], "seeds": 5, "p": 0.0312} {"rows": [["r-0007", -151.2, "1,000"]]}'


@pytest.mark.parametrize(
    "text",
    [
        "The verdict is refuted.",
        "Refuted: the effect is 12.3, about 12, with an interval from -1.5 to 0.25 over 5 seeds.",
        "It was refuted (p = 3.1 %), see r-0007 with -151.",
        "refuted, at 12.345",
    ],
)
def test_a_narrative_may_round_what_rows_say(text: str) -> None:
    assert narrative_problem(text, "refuted", FACTS) == ""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("A great success.", "does not name the outcome"),
        ("refuted by 47.5 %", "47.5"),
        ("refuted, see r-0042", "r-0042"),
        ("refuted with 12.4", "12.4"),
        ("refuted over 6 seeds", "number 6"),
    ],
)
def test_a_narrative_may_not_say_anything_else(text: str, why: str) -> None:
    assert why in narrative_problem(text, "refuted", FACTS)


@pytest.mark.parametrize("rounds", range(1, 40))
def test_agents_have_at_most_their_share_of_rounds(rounds: int) -> None:
    had: set[int] = set()
    for number in range(rounds):
        mode = whose_round(number, rounds, had, plateau=True)
        assert (mode == "default") == (number == 0)
        if mode == "agents":
            had.add(number)
    assert len(had) <= 0.3 * rounds
    assert bool(had) == (rounds >= 4)


def test_agents_come_early_and_on_a_plateau() -> None:
    assert [whose_round(n, 16, set(), plateau=False) for n in range(4)] == ["default", "agents", "agents", "optimizer"]
    assert whose_round(9, 16, {1, 2}, plateau=True) == "agents"
    assert whose_round(9, 16, {1, 2, 5, 6}, plateau=True) == "optimizer"
    assert whose_round(6, 16, {1, 2, 5, 6}, plateau=False) == "agents"  # the same again after a resume
