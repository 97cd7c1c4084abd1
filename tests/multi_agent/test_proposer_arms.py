"""The arms of `bench proposers` that have agents: the real crew and lab in the world of a recorded table."""

from __future__ import annotations

import json
from typing import Any

import pytest
from crew_on_script import idea
from model_server import ModelServer, Reply, call, results_of, say, turn_of

from experiments.bench.recorded_table import RecordedTable, load_table
from experiments.bench.searches import RULES, TableWorld
from multi_agent.llm.choose import choose_llm
from multi_agent.workflows.proposer_arms import agent_arm_names, agent_searcher


@pytest.fixture(scope="module")
def table() -> RecordedTable:
    return load_table("point-robot")


def brain(request: dict[str, Any]) -> Reply:
    """Proposes values of its own in every turn: a learning rate where it is in its slice, else a depth."""
    turn, results = turn_of(request), results_of(request)
    if turn["kind"] != "propose" or results:
        return say("Done.")
    number = turn["round"]
    own: dict[str, dict[str, Any]] = {
        "meta-learning": {"learner.learning_rate": 1e-3 * (1 + number / 10)},
        "state-modeling": {"model.num_layers": 1 + number % 3},
    }
    own["all"] = own["meta-learning"] | own["state-modeling"]
    changes = own.get(turn["role"], {})
    if not changes or number == 0:
        return say("Nothing to add.")
    return call(*(("propose", idea(arm, changes)) for arm in turn["arms"]))


@pytest.mark.parametrize("arm", agent_arm_names())
def test_with_the_offline_researcher_every_arm_is_the_optimizers_search(arm: Any, table: RecordedTable) -> None:
    found = agent_searcher(arm, choose_llm("offline"))(TableWorld(table, 3), 2, 3)
    assert found == RULES["optimizer"](TableWorld(table, 3), 2, 3)


@pytest.mark.parametrize(
    ("arm", "trials", "shaped"), [("crew", 3, {2}), ("single-agent", 3, {2}), ("hybrid", 7, {1, 2})]
)
def test_a_model_shapes_every_round_but_the_first_alone_and_its_share_in_the_hybrid(
    arm: Any, trials: int, shaped: set[int], table: RecordedTable
) -> None:
    with ModelServer(brain).running() as server:
        found = agent_searcher(arm, server.choice())(TableWorld(table, 0), trials, 0)
        asked = {turn_of(r)["role"] for r in server.requests}
    assert found.trials == trials
    assert found.by_models in shaped
    assert asked == (
        {"all"} if arm == "single-agent" else {"state-modeling", "meta-learning", "adaptation", "environment"}
    )
    assert not [r for r in server.requests if any("error" in text for text in results_of(r))], json.dumps(
        [results_of(r) for r in server.requests]
    )
