"""Fuzzed tool calls on the real lab and ledger: what is refused leaves no proposal, what is written is valid."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from instant_lab import instant_lab
from sqlalchemy import select
from test_tools import MEMBERS, NAMES, TOOLS, tool_calls

from experiments.campaign.lab import Lab
from experiments.ledger.models import Proposal
from multi_agent.communication.message_broker import MessageBroker
from multi_agent.communication.shared_memory import SharedMemory
from multi_agent.tools.tool import Mode, ToolContext, execute

Example = tuple[str, str, Mode, dict[str, Any]]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A campaign whose first round is measured."""
    found = instant_lab(tmp_path_factory.mktemp("fuzz"))
    found.run_baseline()
    found.set_stage("search")
    found.launch()
    yield found
    found.ledger.close()


def check_call(lab: Lab, example: Example) -> None:
    tool, actor, mode, arguments = example
    if tool == "launch":
        return  # it trains; its own tests are in test_tools

    def emit(kind: str, actor: str, text: str, /, **payload: Any) -> int:
        return lab.record_event(kind, actor, {"text": text} | payload)

    context = ToolContext(lab, actor, MEMBERS[actor].slice, emit, MessageBroker(NAMES, emit), SharedMemory(emit))
    context.begin_turn(lab.round, mode)
    before = _proposals(lab)
    runs = [(r.id, r.status, r.score) for r in lab.ledger.runs(lab.number)]
    answer = json.loads(execute(TOOLS[tool], context, arguments))
    after = _proposals(lab)
    assert [(r.id, r.status, r.score) for r in lab.ledger.runs(lab.number)] == runs
    new = [row for number, row in after.items() if number not in before]
    if "error" in answer or tool != "propose":
        assert new == []
    for row in new:
        assert row.role == MEMBERS[actor].slice
        assert row.trial == lab.round
        assert lab.trials.space(row.arm).check_values(row.changes, row.role) == row.changes
        assert row.source != "agent" or mode == "agents"
        assert all(lab.ledger.get_run(int(name[2:])).pool == "search" for name in row.evidence)


def _proposals(lab: Lab) -> dict[int, Proposal]:
    with lab.ledger.session() as session:
        return {p.id: p for p in session.scalars(select(Proposal))}


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(example=tool_calls())
def test_fuzzed_calls_write_no_invalid_row(lab: Lab, example: Example) -> None:
    check_call(lab, example)


@pytest.mark.slow
@settings(max_examples=2_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(example=tool_calls())
def test_thousands_of_fuzzed_calls_write_no_invalid_row(lab: Lab, example: Example) -> None:
    check_call(lab, example)
