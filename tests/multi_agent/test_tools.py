"""Tools without any agent framework: every call comes back as data, and nothing wrong is ever written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from crew_on_script import MEMBERS, NAMES, TOOLS, context_of, crew_lab, idea
from lab_on_script import proposals_of

from core.errors import InputError
from experiments.campaign.lab import Lab
from experiments.runs.runner import Paused
from multi_agent.agents.agent import crew_members
from multi_agent.communication.message_broker import MessageBroker
from multi_agent.tools.tool import ToolContext, execute, shortened

PROBES = {"memory_length", "measure_throughput", "inner_rate_sensitivity"}  # they cost real time


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a campaign whose first round is measured."""
    folder = tmp_path_factory.mktemp("template")
    lab = crew_lab(folder)
    lab.run_baseline()
    lab.set_stage("search")
    lab.launch()
    lab.ledger.close()
    return folder


@pytest.fixture
def lab(template: Path, tmp_path: Path) -> Iterator[Lab]:
    """A campaign whose first round is measured, for one test."""
    shutil.copytree(template, tmp_path / "data")
    lab = crew_lab(tmp_path / "data")
    yield lab
    lab.ledger.close()


@pytest.fixture(scope="module")
def shared(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The same for tests that change nothing but add events."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copytree(template, folder / "data")
    lab = crew_lab(folder / "data")
    yield lab
    lab.ledger.close()


def use(context: ToolContext, tool: str, **arguments: Any) -> dict[str, Any]:
    return json.loads(execute(TOOLS[tool], context, arguments))


RATE = 0.0012


def proposal(rate: float = RATE, **changes: Any) -> dict[str, Any]:
    return idea("challenger", {"learner.learning_rate": rate}) | changes


def suggested_rate(lab: Lab, arm: str = "challenger") -> float:
    return float(lab.suggest(arm).values["learner.learning_rate"])


def agents_slices(lab: Lab) -> dict[tuple[int, str, str], Any]:
    """The proposals of rounds that are not launched yet."""
    return {key: p for key, p in proposals_of(lab).items() if key[0] >= lab.round}


def test_the_crew_has_five_agents_with_disjoint_slices() -> None:
    slices = [m.slice for m in MEMBERS.values()]
    assert sorted(s for s in slices if s) == ["adaptation", "environment", "meta-learning", "state-modeling"]
    assert list(MEMBERS)[-1] == "Coordinator"
    assert MEMBERS["Coordinator"].slice is None


def test_a_sixth_agent_is_one_more_file(add_agent: Callable[..., Path]) -> None:
    add_agent(
        "critic_agent",
        "from multi_agent.agents.agent import AGENTS, AgentSpec\n"
        "from multi_agent.tools.ledger_tool import READING\n"
        "AGENTS.register('Critic')(AgentSpec('Critic', None, READING, 'environment.md', 50))\n",
    )
    assert [m.name for m in crew_members()][-2:] == ["Critic", "Coordinator"]


def test_no_tool_reaches_selection_confirmation_or_the_judge(lab: Lab) -> None:
    class SearchSide:
        """The lab as tools may use it."""

        def __getattr__(self, name: str) -> Any:
            if name in (
                "run_baseline",
                "run_selection",
                "write_claim",
                "run_confirmation",
                "judge",
                "set_stage",
                "finish",
            ):
                pytest.fail(f"a tool touched {name}")
            return getattr(lab, name)

    context = context_of(SearchSide())
    for name in set(TOOLS) - PROBES:
        for arguments in ({}, {"arm": "challenger"}, proposal(), {"view": "top", "arm": None, "limit": 3}):
            execute(TOOLS[name], context, arguments)


def test_no_tool_takes_a_measured_value() -> None:
    for tool in TOOLS.values():
        schema = json.dumps(tool.arguments.model_json_schema())
        assert not any(f'"{word}"' in schema for word in ("score", "metric", "return", "result", "loss", "reward"))
        assert schema.count('"additionalProperties": false') >= 1
        assert len(tool.description) > 20


def test_a_proposal_is_written_with_its_source_found_out_by_code(lab: Lab) -> None:
    context = context_of(lab)
    use(context, "propose", **proposal(suggested_rate(lab), evidence=["r-0001"]))
    use(context, "propose", **proposal(arm="baseline"))
    written = {arm: p.source for (_, arm, role), p in agents_slices(lab).items() if role == "meta-learning"}
    assert written == {"challenger": "optimizer", "baseline": "agent"}


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("propose", proposal(source="optimizer"), "no such argument"),
        ("propose", proposal(arm="chalenger"), "Allowed: baseline, challenger"),
        ("propose", proposal(changes=[{"name": "learner.learning_rat", "value": 0.001}]), "learner.learning_rate"),
        ("propose", proposal(7.0), "0.0002 to 0.003"),
        ("propose", proposal(changes=[{"name": "model.num_layers", "value": 2}]), "model.num_layers"),
        ("propose", proposal(changes=[{"name": "learner.learning_rate", "value": 0.001}] * 2), "more than once"),
        ("propose", proposal(evidence=["r-9999"]), "r-9999"),
        ("propose", proposal(evidence=["my gut"]), "evidence.0"),
        ("propose", proposal(reason=""), "reason"),
        ("propose", {}, "missing"),
        ("propose", proposal(low=2.0), "expected_delta: got 1, allowed: from low 2 to high 3"),
        ("propose", proposal(prior_or_rows="rows"), "rows without evidence"),
        ("propose", proposal(base="incumbent", changes=[]), "at least one value that is not the incumbent's"),
        ("ledger_query", {"view": "confirmation"}, "'incumbent'"),
        ("ledger_query", {"view": "top", "limit": 10**6}, "30"),
        ("compare_variants", {"first": "r-0001", "second": "r-7777"}, "r-7777"),
        ("tell", {"to": "Meta Learning", "text": "hello", "evidence": []}, "Meta-Learning"),
        ("remember", {"text": "it helps", "evidence": []}, "evidence"),
        ("describe_task", {"score": 1.0}, "no such argument"),
        ("analyse_curves", {"arm": None, "run": "r-4242", "limit": 1}, "r-4242"),
        ("analyse_curves", {"arm": "both"}, "Allowed: baseline, challenger"),
        ("request_confirmation", {"reason": "enough", "evidence": ["r-9999"]}, "r-9999"),
        ("request_confirmation", {"reason": "enough", "evidence": [], "score": 1.0}, "no such argument"),
        ("inner_rate_sensitivity", {"arm": "challenger", "inner_steps": 500}, "5"),
        ("adaptation_curve", {"run": "r-4242"}, "r-4242"),
    ],
)
def test_a_wrong_argument_comes_back_as_data(tool: str, arguments: dict[str, Any], said: str, shared: Lab) -> None:
    before = proposals_of(shared).keys()
    answer = use(context_of(shared), tool, **arguments)
    assert said in answer["error"]
    assert proposals_of(shared).keys() == before
    assert shared.events()[-1].payload["failed"] is True


def test_a_result_that_is_too_long_is_shortened_to_valid_json_that_says_how_much_is_left_out() -> None:
    rows = [[f"r-{number:04d}", "x" * 100, [number] * 5] for number in range(300)]
    short = shortened(
        json.dumps({"columns": ["run", "text", "list"], "rows": rows, "note": "n"}), "look with limit", 12_000
    )
    data = json.loads(short)
    kept = data["rows"]
    assert 9_000 <= len(short) <= 12_000
    assert kept == rows[: len(kept)]
    assert (data["columns"], data["note"]) == (["run", "text", "list"], "n")
    assert data["left_out"] == (
        f"The result was too long. Here are {len(kept)} of 300 entries of rows. For the rest call look with limit."
    )
    words = json.loads(shortened(json.dumps({"text": "é" * 50_000, "more": {"parts": [["y" * 9_000]]}}), "it", 12_000))
    told = re.search(r"(\d+) of 50000 characters of text", words["left_out"])
    assert told is not None
    assert len(words["text"]) == int(told[1])
    assert "error" in json.loads(shortened(json.dumps({str(n): n for n in range(5_000)}), "it", 12_000))


def test_the_rest_of_a_long_table_is_asked_for_by_skipping_what_was_seen(shared: Lab) -> None:
    every = use(context_of(shared, "Coordinator"), "ledger_query", view="runs", limit=30)["rows"]
    assert len(every) >= 2
    parts = [use(context_of(shared, "Coordinator"), "ledger_query", view="runs", limit=1, skip=n)["rows"] for n in range(len(every) + 1)]  # fmt: skip
    assert [row for part in parts for row in part] == every


def test_an_agent_without_a_slice_proposes_nothing(shared: Lab) -> None:
    answer = json.loads(execute(TOOLS["propose"], context_of(shared, "Coordinator"), proposal()))
    assert "owns no slice" in answer["error"]


def test_other_values_are_refused_in_the_optimizers_round(lab: Lab) -> None:
    context = context_of(lab, owner="optimizer")
    refused = use(context, "propose", **proposal())
    assert f"'learner.learning_rate': {suggested_rate(lab)}" in refused["error"]
    assert agents_slices(lab) == {}
    assert use(context, "propose", **proposal(suggested_rate(lab)))["source"] == "optimizer"
    assert len(agents_slices(lab)) == 1


def test_a_pause_is_kept_for_the_workflow_and_stops_further_tools(lab: Lab) -> None:
    context = context_of(lab)
    lab.stop_event.set()
    assert "paused" in use(context, "propose", **proposal())["error"]
    assert isinstance(context.interrupt, Paused)
    assert "paused" in use(context, "describe_task")["error"]


def test_a_fault_of_the_lab_is_data_too(lab: Lab) -> None:
    lab.ledger_query = lambda *arguments: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    assert "ZeroDivisionError" in use(context_of(lab), "ledger_query", view="top")["error"]


def test_the_memory_probe_measures_real_cells(shared: Lab) -> None:
    context = context_of(shared, "State-Modeling")
    shallow = use(context, "memory_length", arm="challenger", values=[{"name": "model.num_layers", "value": 1}])
    deep = use(context, "memory_length", arm="challenger", values=[{"name": "model.num_layers", "value": 3}])
    lstm = use(context, "memory_length", arm="baseline", values=[])
    assert deep["parameters"] > 2 * shallow["parameters"]
    assert max(shallow["sensitivity"]) == 1.0
    assert lstm["kind"] == "lstm"
    assert lstm["memory_steps"] in lstm["lags"]
    assert lstm["sensitivity"][-1] < 0.01  # an untrained LSTM forgets 199 steps
    refused = use(context, "memory_length", arm="challenger", values=[{"name": "model.num_layers", "value": 99}])
    assert "1, 2, 3" in refused["error"]


def test_the_throughput_probe_steps_real_worlds(shared: Lab) -> None:
    context = context_of(shared, "Environment")
    assert use(context, "measure_throughput", num_envs=8)["steps_per_s"] > 0
    task = use(context, "describe_task")
    assert (task["task"], task["observation_size"]) == ("point-robot", 2)


@pytest.mark.parametrize("task", ["point-robot", "tabular-mdp"])
def test_the_inner_rate_probe_adapts_a_real_model_to_real_transitions(task: str, tmp_path: Path) -> None:
    lab = crew_lab(tmp_path, goal=f"beat LSTM on {task}")
    probe = use(context_of(lab), "inner_rate_sensitivity", arm="baseline", values=[], inner_steps=2)
    assert probe["kind"] == "lstm"
    before, after = probe["loss_before"], probe["loss_after"]
    assert len(after) == len(probe["inner_rate"])
    assert abs(after[0] - before) < abs(after[3] - before)  # a rate that small hardly moves
    assert min(loss for loss in after if loss is not None) < before
    assert probe["inner_rate"][after.index(min(a for a in after if a is not None))] == probe["best_rate"]


def test_a_message_is_delivered_once_and_never_to_its_sender(lab: Lab) -> None:
    context = context_of(lab, "Coordinator")
    before = max(event.id for event in lab.events())
    use(context, "tell", to="all", text="look at depth", evidence=["r-0001"])
    assert context.broker.collect("Coordinator") == []
    (message,) = context.broker.collect("Adaptation")
    assert str(message) == "Coordinator: look at depth [r-0001]"
    assert context.broker.collect("Adaptation") == []
    assert [e.kind for e in lab.events(after=before)] == ["tool_call", "message", "tool_result"]


def test_posting_to_nobody_is_an_input_error() -> None:
    with pytest.raises(InputError, match="Coordinator"):
        MessageBroker(NAMES, lambda *a, **k: None).post("human", "Cordinator", "hi")
