"""Tools without any agent framework: every call comes back as data, and nothing wrong is ever written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_lab import SPACE, FakeLab
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import multi_agent.agents
from core.errors import InputError
from experiments.campaign.lab import Paused
from multi_agent.agents.agent import AGENTS, crew_members
from multi_agent.communication.message_broker import MessageBroker
from multi_agent.communication.shared_memory import SharedMemory
from multi_agent.tools import environment_tool
from multi_agent.tools.tool import Mode, Tool, ToolContext, execute

MEMBERS = {member.name: member for member in crew_members()}
TOOLS: dict[str, Tool] = {tool.name: tool for member in MEMBERS.values() for tool in member.tools}
NAMES = tuple(MEMBERS)
PROBES = {"memory_length", "measure_throughput", "inner_rate_sensitivity"}  # they cost real time


def context_of(lab: FakeLab, name: str = "Meta-Learning", mode: Mode = "agents") -> ToolContext:
    def emit(kind: str, actor: str, text: str, /, **payload: Any) -> int:
        return lab.record_event(kind, actor, {"text": text} | payload)

    context = ToolContext(
        lab,  # type: ignore[arg-type]
        name,
        MEMBERS[name].slice,
        emit,
        MessageBroker(NAMES, emit),
        SharedMemory(emit),
    )
    context.begin_turn(lab.round, mode)
    return context


def use(context: ToolContext, tool: str, **arguments: Any) -> dict[str, Any]:
    return json.loads(execute(TOOLS[tool], context, arguments))


def proposal(**changes: Any) -> dict[str, Any]:
    values = [{"name": "learner.learning_rate", "value": 0.002}]
    return {"arm": "challenger", "values": values, "reason": "r", "predicted_effect": "e", "evidence": []} | changes


def test_the_crew_has_five_agents_with_disjoint_slices() -> None:
    slices = [m.slice for m in MEMBERS.values()]
    assert sorted(s for s in slices if s) == ["adaptation", "environment", "meta-learning", "state-modeling"]
    assert list(MEMBERS)[-1] == "Coordinator"
    assert MEMBERS["Coordinator"].slice is None


def test_a_sixth_agent_is_one_more_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "critic_agent.py").write_text(
        "from multi_agent.agents.agent import AGENTS, AgentSpec\n"
        "from multi_agent.tools.ledger_tool import READING\n"
        "AGENTS.register('Critic')(AgentSpec('Critic', None, READING, 'environment.md', 50))\n"
    )
    monkeypatch.setattr(multi_agent.agents, "__path__", [*multi_agent.agents.__path__, str(tmp_path)])
    try:
        assert [m.name for m in crew_members()][-2:] == ["Critic", "Coordinator"]
    finally:
        AGENTS._entries.pop("Critic")


def test_no_tool_reaches_selection_confirmation_or_the_judge() -> None:
    class SearchSide(FakeLab):
        def __getattribute__(self, name: str) -> Any:
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
            return super().__getattribute__(name)

    lab = SearchSide()
    context = context_of(lab)
    for name in set(TOOLS) - PROBES:
        for arguments in ({}, {"arm": "challenger"}, proposal(), {"view": "top", "arm": None, "limit": 3}):
            execute(TOOLS[name], context, arguments)


def test_no_tool_takes_a_measured_value() -> None:
    for tool in TOOLS.values():
        schema = json.dumps(tool.arguments.model_json_schema())
        assert not any(f'"{word}"' in schema for word in ("score", "metric", "return", "result", "loss", "reward"))
        assert schema.count('"additionalProperties": false') >= 1
        assert len(tool.description) > 20


def test_a_proposal_is_written_with_its_source_found_out_by_code() -> None:
    lab = FakeLab()
    lab.launch()
    context = context_of(lab)
    use(context, "propose", **proposal(evidence=["r-0001"]))
    use(context, "propose", **proposal(arm="baseline", values=[{"name": "learner.learning_rate", "value": 0.003}]))
    assert [(p.arm, p.source) for p in lab.proposals.values()] == [("challenger", "optimizer"), ("baseline", "agent")]


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("propose", proposal(source="optimizer"), "no such argument"),
        ("propose", proposal(arm="chalenger"), "'challenger' or 'baseline'"),
        ("propose", proposal(values=[{"name": "learner.learning_rat", "value": 0.001}]), "learner.learning_rate"),
        ("propose", proposal(values=[{"name": "learner.learning_rate", "value": 7.0}]), "0.0001 to 0.01"),
        ("propose", proposal(values=[{"name": "model.num_layers", "value": 2}]), "model.num_layers"),
        ("propose", proposal(values=[{"name": "learner.learning_rate", "value": 0.001}] * 2), "more than once"),
        ("propose", proposal(evidence=["r-9999"]), "r-9999"),
        ("propose", proposal(evidence=["my gut"]), "evidence.0"),
        ("propose", proposal(reason=""), "reason"),
        ("propose", {}, "missing"),
        ("ledger_query", {"view": "confirmation"}, "'incumbent'"),
        ("ledger_query", {"view": "top", "limit": 10**6}, "30"),
        ("compare_variants", {"first": "r-0001", "second": "r-7777"}, "r-7777"),
        ("tell", {"to": "Meta Learning", "text": "hello", "evidence": []}, "Meta-Learning"),
        ("remember", {"text": "it helps", "evidence": []}, "evidence"),
        ("budget", {"score": 1.0}, "no such argument"),
        ("analyse_curves", {"arm": None, "run": "r-4242", "limit": 1}, "r-4242"),
        ("analyse_curves", {"arm": "both"}, "'challenger' or 'baseline'"),
        ("request_confirmation", {"reason": "enough", "evidence": ["r-9999"]}, "r-9999"),
        ("request_confirmation", {"reason": "enough", "evidence": [], "score": 1.0}, "no such argument"),
        ("inner_rate_sensitivity", {"arm": "challenger", "inner_steps": 500}, "5"),
        ("adaptation_curve", {"run": "r-4242"}, "r-4242"),
    ],
)
def test_a_wrong_argument_comes_back_as_data(tool: str, arguments: dict[str, Any], said: str) -> None:
    lab = FakeLab()
    lab.launch()
    answer = use(context_of(lab), tool, **arguments)
    assert said in answer["error"]
    assert lab.proposals == {}
    assert lab.recorded[-1].payload["failed"] is True


def test_an_agent_without_a_slice_proposes_nothing() -> None:
    lab = FakeLab()
    answer = json.loads(execute(TOOLS["propose"], context_of(lab, "Coordinator"), proposal()))
    assert "owns no slice" in answer["error"]


def test_other_values_are_refused_in_the_optimizers_round() -> None:
    lab = FakeLab()
    lab.launch()
    context = context_of(lab, mode="optimizer")
    refused = use(context, "propose", **proposal(values=[{"name": "learner.learning_rate", "value": 0.003}]))
    assert "'learner.learning_rate': 0.002" in refused["error"]
    assert use(context, "propose", **proposal())["id"] == "p-0001"


def test_launching_twice_in_a_turn_trains_once() -> None:
    lab = FakeLab()
    context = context_of(lab, "Coordinator")
    first, second = use(context, "launch"), use(context, "launch")
    assert first == second
    assert lab.launches == 1
    context.launched = None  # as after a resume inside the turn's round
    assert "measured already" in use(context, "launch")["done"]
    assert lab.launches == 1


def test_a_pause_is_kept_for_the_workflow_and_stops_further_tools() -> None:
    lab = FakeLab()
    context = context_of(lab, "Coordinator")
    lab.stop_event.set()
    assert "paused" in use(context, "launch")["error"]
    assert isinstance(context.interrupt, Paused)
    assert "paused" in use(context, "budget")["error"]


def test_a_fault_of_the_lab_is_data_too() -> None:
    lab = FakeLab()
    lab.budget = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    assert "ZeroDivisionError" in use(context_of(lab), "budget")["error"]


def test_the_memory_probe_measures_real_cells() -> None:
    context = context_of(FakeLab(), "State-Modeling")
    shallow = use(context, "memory_length", arm="challenger", values=[{"name": "model.num_layers", "value": 1}])
    deep = use(context, "memory_length", arm="challenger", values=[{"name": "model.num_layers", "value": 4}])
    lstm = use(context, "memory_length", arm="baseline", values=[])
    assert deep["parameters"] > 2 * shallow["parameters"]
    assert max(shallow["sensitivity"]) == 1.0
    assert lstm["kind"] == "lstm"
    assert lstm["memory_steps"] in lstm["lags"]
    assert lstm["sensitivity"][-1] < 0.01  # an untrained LSTM forgets 199 steps
    assert (
        "1.0 to 4.0"
        in use(context, "memory_length", arm="challenger", values=[{"name": "model.num_layers", "value": 99}])["error"]
    )


def test_the_throughput_probe_steps_real_worlds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment_tool, "PROBE_S", 0.02)
    context = context_of(FakeLab(), "Environment")
    assert use(context, "measure_throughput", num_envs=8)["steps_per_s"] > 0
    task = use(context, "describe_task")
    assert (task["task"], task["observation_size"]) == ("point-robot", 2)


@pytest.mark.parametrize("task", ["point-robot", "tabular-mdp"])
def test_the_inner_rate_probe_adapts_a_real_model_to_real_transitions(task: str) -> None:
    lab = FakeLab()
    lab.question = lab.question.model_copy(update={"task": task})
    probe = use(context_of(lab), "inner_rate_sensitivity", arm="baseline", values=[], inner_steps=2)
    assert probe["kind"] == "lstm"
    before, after = probe["loss_before"], probe["loss_after"]
    assert len(after) == len(probe["inner_rate"])
    assert abs(after[0] - before) < abs(after[3] - before)  # a rate that small hardly moves
    assert min(loss for loss in after if loss is not None) < before
    assert probe["inner_rate"][after.index(min(a for a in after if a is not None))] == probe["best_rate"]


def test_a_message_is_delivered_once_and_never_to_its_sender() -> None:
    lab = FakeLab()
    context = context_of(lab, "Coordinator")
    use(context, "tell", to="all", text="look at depth", evidence=["r-0001"])
    assert context.broker.collect("Coordinator") == []
    (message,) = context.broker.collect("Adaptation")
    assert str(message) == "Coordinator: look at depth [r-0001]"
    assert context.broker.collect("Adaptation") == []
    assert [e.kind for e in lab.recorded] == ["tool_call", "message", "tool_result"]


# ---- fuzz -----------------------------------------------------------------------------------

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PARAMETERS = sorted({p.name for arm in SPACE.values() for p in arm})
PARAM = st.fixed_dictionaries(
    {
        "name": st.sampled_from([*PARAMETERS, "model.width"]),
        "value": st.sampled_from([0, 1, 2, 0.003, -1, 1e9, "s5", True]) | ANYTHING,
    }
)
PLAUSIBLE = {
    "arm": st.sampled_from(["challenger", "baseline", "both", None]),
    "values": st.lists(PARAM, max_size=4),
    "view": st.sampled_from(["incumbent", "top", "runs", "failures", "baseline", "sensitivity", "confirmation"]),
    "limit": st.integers(-1, 40),
    "reason": st.text(max_size=30),
    "predicted_effect": st.text(max_size=30),
    "evidence": st.lists(st.sampled_from(["r-0001", "r-0002", "r-9999", "c-0001", ""]), max_size=3),
    "first": st.sampled_from(["r-0001", "r-0002", "r-9999"]),
    "second": st.sampled_from(["r-0001", "x"]),
    "run": st.sampled_from(["r-0001", "r-9999", "c-0001"]),
    "text": st.text(max_size=30),
    "target": st.none() | st.just("r-0001"),
    "to": st.sampled_from([*NAMES, "all", "judge"]),
}
FUZZED = sorted(set(TOOLS) - PROBES - {"describe_task"})


@st.composite
def tool_calls(draw: st.DrawFn) -> tuple[str, str, Mode, dict[str, Any]]:
    """A tool, who calls it, in whose round, and arguments that are right, nearly right or nonsense."""
    tool = draw(st.sampled_from(FUZZED))
    wanted = TOOLS[tool].arguments.model_fields
    arguments = {name: draw(PLAUSIBLE[name] | ANYTHING if draw(st.booleans()) else PLAUSIBLE[name]) for name in wanted}
    if draw(st.integers(0, 4)) == 0:
        arguments |= draw(st.dictionaries(st.text(max_size=10), ANYTHING, max_size=2))
    if arguments and draw(st.integers(0, 6)) == 0:
        arguments.pop(draw(st.sampled_from(sorted(arguments))))
    mode: Mode = draw(st.sampled_from(["default", "agents", "optimizer"]))  # type: ignore[arg-type]
    return tool, draw(st.sampled_from(NAMES)), mode, arguments


def check_call(example: tuple[str, str, Mode, dict[str, Any]]) -> None:
    tool, actor, mode, arguments = example
    lab = FakeLab(rounds=1000)
    lab.launch()
    scores = list(lab.runs)
    context = context_of(lab, actor, mode)
    answer = json.loads(execute(TOOLS[tool], context, arguments))
    assert isinstance(answer, dict)
    assert context.interrupt is None
    assert lab.runs[: len(scores)] == scores
    assert [e.kind for e in lab.recorded if e.kind not in ("message", "early_end")] == ["tool_call", "tool_result"]
    for (_, arm, role), written in lab.proposals.items():
        assert role == MEMBERS[actor].slice
        lab._check(arm, written.values, role)
        assert written.source == "optimizer" or mode == "agents"
        assert all(row in {r[0] for r in lab.runs} for row in written.evidence)
    if "error" in answer:
        assert lab.proposals == {}
        assert lab.launches == 1


@settings(max_examples=600, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(tool_calls())
def test_no_exception_escapes_a_fuzzed_tool_call(example: tuple[str, str, Mode, dict[str, Any]]) -> None:
    check_call(example)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(tool_calls())
def test_no_exception_escapes_ten_thousand_fuzzed_tool_calls(example: tuple[str, str, Mode, dict[str, Any]]) -> None:
    check_call(example)


def test_posting_to_nobody_is_an_input_error() -> None:
    with pytest.raises(InputError, match="Coordinator"):
        MessageBroker(NAMES, lambda *a, **k: None).post("human", "Cordinator", "hi")
