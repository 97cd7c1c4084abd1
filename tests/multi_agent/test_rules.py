"""The rules that stand in code: whose round it is, what a narrative may say, and what in a text is a row's id."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.campaign.plan import DESIGNS, PROPOSING, Budget, Plan
from experiments.campaign.trials import AGENT_SHARE
from experiments.ledger.ids import named_rows
from multi_agent.communication.honesty import narrative_problem, unknown_number
from multi_agent.workflows.modes import whose_round

FACTS = '{"effect": 12.345, "interval": [-1.5, 0.25], "seeds": 5, "p": 0.0312} {"rows": [["r-0007", -151.2, "1,000"]]}'


@pytest.mark.parametrize(
    "text",
    [
        "The verdict is refuted.",
        "Refuted: the effect is 12.3, about 12, with an interval from -1.5 to 0.25 over 5 seeds.",
        "It was refuted (p = 3.1 %), see r-0007 with -151.",
        "refuted, at 12.345",
        "refuted on halfcheetah-v5 and CartPole-v1, see r-7",
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
        ("refuted, see r-000", "r-0000"),
        ("refuted, see r-00070", "r-0070"),
        ("refuted, see r70", "r-0070"),
        ("refuted, see R-0042", "r-0042"),
    ],
)
def test_a_narrative_may_not_say_anything_else(text: str, why: str) -> None:
    assert why in narrative_problem(text, "refuted", FACTS)


def test_an_id_after_an_escaped_line_break_stands_in_a_result() -> None:
    assert narrative_problem("refuted, see r-0009", "refuted", r'{"note": "best:\nr-0009"}') == ""


def test_digits_of_ids_are_no_numbers_and_numbers_no_ids() -> None:
    assert unknown_number("r-0042 and p7 beside CartPole-v1", "nothing") == ""
    assert unknown_number("42", "r-0042") == "42"
    assert unknown_number("it won by-42", "r-0042") == "42"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("r-0042", ["r-0042"]),
        ("Why was r42 pruned, and (R-7)?", ["r-0042", "r-0007"]),
        ("r-0001, k-1; v-2: c-10/p-3 and r-0001's", ["r-0001", "k-0001", "v-0002", "c-0010", "p-0003", "r-0001"]),
        ("from r-0001\N{EN DASH}r-0009", ["r-0001", "r-0009"]),
        ("r-12345 -- r-0042--good", ["r-12345", "r-0042"]),
        ("r-0 and r-000", ["r-0000", "r-0000"]),
        ("CartPole-v1, halfcheetah-v5, MT10-v1, HalfCheetah\N{NON-BREAKING HYPHEN}v5", []),
        ("xr-0042 _r-1 r-0042nd r-1_2 c3-po v1-beta hdr7", []),
        ("s5-2 gpt-5 top-3 e-5 r- r-x -0042", []),
        ("r-" + "9" * 5_000, ["r-" + "9" * 5_000]),
    ],
)
def test_ids_are_whole_words(text: str, ids: list[str]) -> None:
    assert named_rows(text) == ids


@pytest.mark.parametrize("rounds", range(1, 40))
def test_agents_have_at_most_their_share_of_rounds_and_one_of_two_or_more(rounds: int) -> None:
    design = DESIGNS[0].model_copy(update={"rounds": rounds})
    common: dict[str, Any] = {"budget": Budget(env_steps=1), "design": design, "tuned_arms": 2, "env_steps_full": 2, "env_steps_search": 1, "workers": 1, "steps_per_s": None}  # fmt: skip
    plan, old = Plan(**common, proposing=PROPOSING), Plan(**common)
    allowed = plan.rounds_of_agents(AGENT_SHARE)
    assert old.rounds_of_agents(AGENT_SHARE) == int(AGENT_SHARE * rounds)
    had: set[int] = set()
    for number in range(rounds):
        mode = whose_round(number, rounds, had, plateau=True, allowed=allowed)
        assert (mode == "default") == (number == 0)
        if mode == "agents":
            had.add(number)
    assert len(had) <= max(0.3 * rounds, 1)
    assert bool(had) == (rounds >= 2)


def test_agents_come_early_and_on_a_plateau() -> None:
    first = [whose_round(n, 16, set(), plateau=False, allowed=4) for n in range(4)]
    assert first == ["default", "agents", "agents", "optimizer"]
    assert whose_round(9, 16, {1, 2}, plateau=True, allowed=4) == "agents"
    assert whose_round(9, 16, {1, 2, 5, 6}, plateau=True, allowed=4) == "optimizer"
    assert whose_round(6, 16, {1, 2, 5, 6}, plateau=False, allowed=4) == "agents"  # the same again after a resume
