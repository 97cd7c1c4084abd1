"""Fuzzed tool calls on the lab and ledger: no exception escapes, what is refused leaves no row, what is written is valid."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crew_on_script import MEMBERS, NAMES, TOOLS, context_of, crew_lab
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab_on_script import proposals_of
from sqlalchemy import func, select

from experiments.campaign.lab import Lab
from experiments.ledger.models import Event
from multi_agent.tools.tool import RoundOwner, execute

PROBES = {"memory_length", "measure_throughput", "inner_rate_sensitivity"}  # they cost real time
FUZZED = sorted(set(TOOLS) - PROBES - {"describe_task"})
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PARAMETERS = [
    "learner.episodes_per_trial",
    "learner.learning_rate",
    "learner.num_worlds",
    "model.forget_bias",
    "model.kind",
    "model.num_layers",
]
PARAM = st.fixed_dictionaries(
    {
        "name": st.sampled_from([*PARAMETERS, "model.width"]),
        "value": st.sampled_from([0, 1, 2, 32, 0.0012, -1, 1e9, "s5", True]) | ANYTHING,
    }
)
PLAUSIBLE = {
    "arm": st.sampled_from(["challenger", "baseline", "both", None]),
    "values": st.lists(PARAM, max_size=4),
    "view": st.sampled_from(["incumbent", "top", "runs", "failures", "baseline", "sensitivity", "confirmation"]),
    "limit": st.integers(-1, 40),
    "skip": st.integers(-1, 40),
    "reason": st.text(max_size=30),
    "changes": st.lists(PARAM, max_size=4),
    "base": st.sampled_from(["incumbent", "suggestion", "best"]),
    "prior_or_rows": st.sampled_from(["prior", "rows"]),
    "expected_delta": st.sampled_from([0, 0.5, -1, float("inf")]),
    "low": st.sampled_from([-2, 0]),
    "high": st.sampled_from([0, 1.5, 1e9]),
    "evidence": st.lists(st.sampled_from(["r-0001", "r-0002", "r-9999", "c-0001", ""]), max_size=3),
    "first": st.sampled_from(["r-0001", "r-0002", "r-9999"]),
    "second": st.sampled_from(["r-0001", "x"]),
    "run": st.sampled_from(["r-0001", "r-9999", "c-0001"]),
    "text": st.text(max_size=30),
    "target": st.none() | st.just("r-0001"),
    "to": st.sampled_from([*NAMES, "all", "judge"]),
}

Example = tuple[str, str, RoundOwner, dict[str, Any]]


@st.composite
def tool_calls(draw: st.DrawFn) -> Example:
    """A tool, who calls it, in whose round, and arguments that are right, nearly right or nonsense."""
    tool = draw(st.sampled_from(FUZZED))
    wanted = TOOLS[tool].arguments.model_fields
    arguments = {name: draw(PLAUSIBLE[name] | ANYTHING if draw(st.booleans()) else PLAUSIBLE[name]) for name in wanted}
    if draw(st.integers(0, 4)) == 0:
        arguments |= draw(st.dictionaries(st.text(max_size=10), ANYTHING, max_size=2))
    if arguments and draw(st.integers(0, 6)) == 0:
        arguments.pop(draw(st.sampled_from(sorted(arguments))))
    owner: RoundOwner = draw(st.sampled_from(["default", "agents", "optimizer"]))  # type: ignore[arg-type]
    return tool, draw(st.sampled_from(NAMES)), owner, arguments


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a campaign of endless rounds whose first one is measured."""
    folder = tmp_path_factory.mktemp("fuzz") / "data"
    lab = open_lab(folder)
    lab.run_baseline()
    lab.set_stage("search")
    lab.launch()
    lab.ledger.close()
    return folder


@pytest.fixture(scope="module")
def lab(template: Path) -> Iterator[Lab]:
    """One lab for all calls."""
    shutil.copytree(template, template.with_name("shared"))
    lab = open_lab(template.with_name("shared"))
    yield lab
    lab.ledger.close()


def open_lab(folder: Path) -> Lab:
    lab = crew_lab(folder, 1_000)
    lab.agent_share = 1.0  # so that it is the turn's owner alone who keeps an agent from proposing
    return lab


def newest_event(lab: Lab) -> int:
    with lab.ledger.session() as session:
        return session.scalar(select(func.max(Event.id))) or 0


def check_in(lab: Lab, example: Example) -> None:
    tool, actor, owner, arguments = example
    context = context_of(lab, actor, owner)
    round_number, before, newest = lab.round, proposals_of(lab), newest_event(lab)
    runs = [(r.id, r.status, r.score) for r in lab.ledger.runs(lab.number)]
    answer = json.loads(execute(TOOLS[tool], context, arguments))
    assert isinstance(answer, dict)
    assert context.interrupt is None
    kinds = [event.kind for event in lab.events(after=newest)]
    assert [kind for kind in kinds if kind in ("tool_call", "tool_result")] == ["tool_call", "tool_result"]
    assert set(kinds) <= {"tool_call", "tool_result", "message", "early_end", "probe", "refused", "idea"}
    after = [(r.id, r.status, r.score) for r in lab.ledger.runs(lab.number)]
    new = {key: p for key, p in proposals_of(lab).items() if key not in before or before[key].id != p.id}
    assert (lab.round, after) == (round_number, runs)
    if "error" in answer or tool != "propose":
        assert new == {}
    for (trial, arm, role), row in new.items():
        assert trial == round_number
        assert lab.trials.space(arm).check_values(row.changes, role) == row.changes
        assert role == MEMBERS[actor].slice or row.source in ("incumbent", "optimizer")
        assert row.source != "agent" or owner == "agents"
        assert all(lab.ledger.get_run(int(name[2:])).pool == "search" for name in row.evidence)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(example=tool_calls())
def test_no_exception_escapes_a_fuzzed_call_and_no_invalid_row_is_written(lab: Lab, example: Example) -> None:
    check_in(lab, example)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(example=tool_calls())
def test_the_same_holds_for_ten_thousand_calls(lab: Lab, example: Example) -> None:
    check_in(lab, example)
