"""A scripted expert over loopback HTTP: it is briefed, proposes in its one round, is credited, and stays within its tokens."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
from crew_on_script import crew_lab, idea, run_crew, truthful
from lab_on_script import ssm_leads
from model_server import ModelServer, Reply, call, results_of, say, turn_of

from experiments.campaign.lab import Lab
from experiments.campaign.proposing.ideas import measured
from experiments.reading.crew import ideas_table, predictions_table, transcript
from experiments.reading.queries import describe_row
from experiments.reading.report import write_report
from experiments.runs.executor import Job

STACK = {"model.num_layers": 1}
A_ROUND, A_CAMPAIGN = 12_000, 30_000  # tokens, at four characters each


def prefers_one_layer(job: Job) -> float:
    """A landscape on which the challenger's stack of one layer is better by 5 than any other."""
    better = job.spec.policy.model.num_layers == 1 and job.spec.policy.model.kind != "lstm"
    return ssm_leads(job) + 5.0 * better


def expert(request: dict[str, Any]) -> Reply:
    """Knows the better stack, expects most of it, and leaves the baseline to the optimizer; the others expect little."""
    turn = turn_of(request)
    if turn["kind"] == "propose" and not results_of(request):
        known = turn["role"] == "state-modeling"
        told = {
            "base": "incumbent",
            "expected_delta": 90.0,
            "low": 50.0,
            "high": 200.0,
            "reason": "One wide layer trains faster.",
        }
        mine = idea("challenger", STACK, **told) if known else idea("challenger", {}, expected_delta=0.0)
        return call(("propose", mine), ("propose", idea("baseline", {}, expected_delta=0.0, reason="Nothing to add.")))
    return say(truthful(request)) if turn["kind"] == "report" else say("Done.")


class Worked(NamedTuple):
    lab: Lab
    requests: list[dict[str, Any]]


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Worked:
    """A campaign of three rounds, which is what a default one has."""
    folder = tmp_path_factory.mktemp("expert")
    lab = crew_lab(folder, 3, score=prefers_one_layer, trials_at_once=2, suggesting=2)
    with ModelServer(expert).running() as server:
        run_crew(lab, folder, server.choice(), max_tokens=1_000_000)
    return Worked(lab, server.requests)


def tokens(requests: list[dict[str, Any]], *kinds: str) -> int:
    wanted = [r for r in requests if not kinds or (turn_of(r)["kind"] in kinds and turn_of(r)["round"] == 1)]
    return sum(len(json.dumps([r["messages"], r.get("tools", [])])) for r in wanted) // 4


def test_an_expert_finds_the_better_stack_in_its_first_round_and_is_credited(worked: Worked) -> None:
    lab = worked.lab
    (done,) = measured(lab.trials)
    assert (done.idea.author, done.idea.round, done.is_covered) == ("State-Modeling", 1, True)
    assert lab.trials.proposer("challenger", done.idea.trial, "search") == "agent:state-modeling"
    best = lab.trials.incumbent("challenger")
    assert best is not None
    assert best.values["model.num_layers"] == 1
    assert lab.trials.proposer("challenger", 2, "search") == "optimizer"  # the other trial of that round


def test_a_round_of_agents_and_a_default_campaign_stay_within_their_tokens(worked: Worked) -> None:
    assert 5_000 < tokens(worked.requests, "propose", "review") <= A_ROUND
    assert tokens(worked.requests) <= A_CAMPAIGN
    turns = [(turn_of(r)["kind"], turn_of(r).get("role")) for r in worked.requests]
    assert turns.count(("propose", "state-modeling")) == 1  # an answer that proposes for every arm ends the turn


def test_every_turn_is_briefed_by_code(worked: Worked) -> None:
    for request in worked.requests:
        text = request["messages"][1]["content"]
        assert "hidden goal on the unit half-circle" in text
        assert "[challenger] incumbent:" in text
        assert ("your slice:" in text) == (turn_of(request)["kind"] == "propose")
    heard = [r["messages"][1]["content"] for r in worked.requests if turn_of(r).get("role") == "environment"]
    assert "State-Modeling on challenger: the incumbent with model.num_layers=1, expects +90 [+50, +200] nf" in heard[0]
    assert " tokens" in heard[0].rsplit("Left: ", 1)[1]


def test_the_report_the_page_and_show_hold_what_was_expected_against_what_was_measured(worked: Worked) -> None:
    lab = worked.lab
    (done,) = measured(lab.trials)
    (mine, optimizer) = predictions_table(lab.ledger, lab.number).records()
    assert (mine["agent"], mine["ideas"], mine["tried"], mine["in interval"]) == ("State-Modeling", 1, 1, "1 of 1")
    assert mine["error"] == pytest.approx(abs(90.0 - (done.effect or 0)), abs=0.01)
    assert mine["gain over the optimizer"] == pytest.approx(mine["measured"] - optimizer["measured"], abs=0.02)
    (row,) = ideas_table(lab.ledger, lab.number).records()
    assert (row["change"], row["run"], row["rests on"]) == ("incumbent: model.num_layers=1", "done", "prior")
    page, markdown = write_report(lab.ledger, lab.number, lab.paths)
    for text in (page.read_text(), markdown.read_text()):
        assert "What the agents expected" in text
        assert "incumbent: model.num_layers=1" in text
        assert "50 to 200" in text
    assert describe_row(lab.ledger, lab.campaign_id)["predictions"][0] == mine


def test_the_transcript_tells_who_proposed_what_with_the_reason_in_full_at_80_columns(worked: Worked) -> None:
    lab = worked.lab
    text = transcript(lab.ledger, lab.number)
    assert max(len(line) for line in text.splitlines()) <= 80
    said = " ".join(text.split())
    assert "State-Modeling proposes challenger, trial 3: the incumbent with model.num_layers=1; expects +90 [+50, +200] noise floors. One wide layer trains faster." in said  # fmt: skip
    assert (
        said.count("One wide layer trains faster.") == 2
    )  # the idea, and the end of the turn, which is not told again as a message
    assert "Search round 2 of 3: the agents' configuration." in said
