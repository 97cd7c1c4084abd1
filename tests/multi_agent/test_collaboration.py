"""The three modes of collaboration differ in who hears whom, and a result's numbers come from rows or are absent."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from crew_on_script import MEMBERS, crew_lab, interrupted_in, run_crew
from lab_on_script import lab_on_script, ssm_leads
from model_server import ModelServer, Reply, call, results_of, say, turn_of

from core.errors import InputError
from experiments.campaign.plan import Design
from experiments.reading.strategies import shaped_by_agents, strategies_table
from experiments.runs.executor import Job
from experiments.runs.runner import Paused
from multi_agent.agents.agent import AgentSpec, choose_members, prompt_hash
from multi_agent.tools.ledger_tool import READING, TALKING
from multi_agent.workflows import CollaborativeLearning
from multi_agent.workflows.collaborative_learning import summarise

ROLES = ("state-modeling", "meta-learning", "adaptation", "environment")


def brain(request: dict[str, Any]) -> Reply:
    """Every specialist says its role's own word; Environment writes to State-Modeling in its first pass."""
    turn = turn_of(request)
    if turn["kind"] == "propose" and turn["role"] == "environment" and not results_of(request):
        return call(("tell", {"to": "State-Modeling", "text": "word-of-mail", "evidence": []}))
    return say(f"word-of-{turn.get('role', 'coordinator')}")


def turns(mode: str, folder: Path, **options: Any) -> list[tuple[str, int, set[str]]]:
    """(role, pass, roles whose words it had heard) of each specialist's turn in the agents' round."""
    lab = crew_lab(folder, 4)  # the least that gives the agents a round
    with ModelServer(brain).running() as server:
        run_crew(lab, folder, server.choice(), collaboration=mode, **options)
    assert lab.stage == "done"
    heard = []
    for request in server.requests:
        turn = turn_of(request)
        if turn["kind"] in ("propose", "revise") and not results_of(request):
            text = json.dumps(request["messages"])
            heard.append((turn["role"], turn["pass"], {role for role in (*ROLES, "mail") if f"word-of-{role}" in text}))
    return heard


def test_in_sequence_each_hears_those_before_it(tmp_path: Path) -> None:
    assert turns("sequential", tmp_path) == [(role, 0, set(ROLES[:place])) for place, role in enumerate(ROLES)]


def test_in_a_debate_all_propose_unheard_and_then_revise_having_heard_all(tmp_path: Path) -> None:
    heard = turns("debate", tmp_path)
    assert heard[:4] == [(role, 0, set()) for role in ROLES]
    for role, number, others in heard[4:]:
        assert number == 1
        assert others - {"mail"} == set(ROLES) - {role}
    assert len(heard) == 8


def test_in_emergence_only_the_addressed_speak_again(tmp_path: Path) -> None:
    assert turns("emergent", tmp_path) == [*((role, 0, set()) for role in ROLES), ("state-modeling", 1, {"mail"})]


def test_without_a_model_emergence_passes_messages_and_whoever_was_written_to_looks_again(tmp_path: Path) -> None:
    lab = crew_lab(tmp_path, 2)
    events = run_crew(lab, tmp_path, collaboration="emergent")
    turns = [e.payload["turn"] for e in events if e.kind == "agent" and "pass" in (e.payload.get("turn") or {})]
    first = [(turn["role"], turn["pass"]) for turn in turns if turn["round"] == 0]
    assert first == [*((role, 0) for role in ROLES), *((role, 1) for role in ROLES[:3])]
    mail = [(e.actor, e.payload["to"]) for e in events if "Does your slice still fit" in e.text]
    names = [MEMBERS[name].name for name in ("State-Modeling", "Meta-Learning", "Adaptation", "Environment")]
    assert mail[:3] == list(zip(names[1:], names, strict=False))
    looked = [e.text for e in events if e.kind == "agent" and "my slice fits the whole configuration" in e.text]
    assert len(looked) == 3 * lab.plan.rounds
    assert not [e for e in events if e.payload.get("failed")]


def test_a_campaign_goes_on_in_its_mode_and_with_its_agents(tmp_path: Path) -> None:
    lab = crew_lab(tmp_path, 3)
    interrupted_in(lab, 1, Paused)
    with pytest.raises(Paused):
        run_crew(lab, tmp_path, collaboration="emergent", agents=("Adaptation", "Environment"))
    events = run_crew(crew_lab(tmp_path, 3), tmp_path)
    assert (events[0].payload["collaboration"], events[0].payload["agents"]) == (
        "emergent",
        ["Adaptation", "Environment", "Coordinator"],
    )
    passes = {(e.actor, e.payload["turn"]["pass"]) for e in events if e.kind == "agent" and "pass" in e.payload["turn"]}
    assert passes == {("Adaptation", 0), ("Environment", 0), ("Adaptation", 1)}


def test_what_agents_found_is_a_strategy_where_nobody_else_was_and_fresh_seeds_agree(tmp_path: Path) -> None:
    """Agents set a rate that the optimizer does not come near, and runs with it score higher by 4."""

    def score(job: Job) -> float:
        return ssm_leads(job) + 4.0 * (job.spec.learner.learning_rate == 0.003)  # type: ignore[attr-defined]

    three = Design(name="test", baseline_seeds=2, rounds=3, top=2, selection_seeds=3, confirmation_seeds=5)
    lab = lab_on_script(tmp_path, score, design=three)
    lab.agent_share = 1.0
    lab.run_baseline()
    lab.set_stage("search")
    lab.launch()
    lab.propose(arm="challenger", role="meta-learning", values={"learner.learning_rate": 0.003}, reason="far off")
    while lab.round < lab.plan.rounds:
        lab.launch()
    lab.set_stage("selection")
    before = shaped_by_agents(lab.ledger, lab.number)
    assert [(s.arm, s.proposer, s.gain, s.is_found) for s in before] == [
        ("challenger", "agent:meta-learning", None, False)
    ]
    lab.run_selection()
    (found,) = shaped_by_agents(lab.ledger, lab.number)
    assert found.is_found
    assert found.novelty > 0.1
    assert found.gain == pytest.approx(4.0, abs=1.0)
    assert len(found.run_ids) == 6
    assert strategies_table(lab.ledger, [lab.number]).rows[0][-1] is True


def test_absent_agents_do_not_speak(tmp_path: Path) -> None:
    assert [role for role, _, _ in turns("sequential", tmp_path, agents=("Adaptation",))] == ["adaptation"]


def test_a_sixth_agent_in_one_file_takes_part_in_a_campaign(tmp_path: Path, add_agent: Callable[..., Path]) -> None:
    add_agent(
        "reviewer_agent",
        "from multi_agent.agents.agent import AGENTS, AgentSpec\n"
        "from multi_agent.tools.ledger_tool import READING, TALKING\n"
        "AGENTS.register('Reviewer')(AgentSpec('Reviewer', None, (*READING, *TALKING), 'environment.md', 50))\n",
    )
    lab = crew_lab(tmp_path, 1)
    events = run_crew(lab, tmp_path, agents=("Reviewer",))
    assert lab.stage == "done"
    assert {e.actor for e in events if e.kind == "agent" and not e.payload.get("failed")} == {"Reviewer", "Coordinator"}


# ---- the agents that are given are the ones that work ---------------------------------------


def test_a_given_agent_is_used_in_the_place_of_the_registered_one_of_its_name(tmp_path: Path) -> None:
    """Another prompt and fewer tools than the registered Adaptation; and an agent that is registered nowhere."""
    adaptation = AgentSpec("Adaptation", "adaptation", READING, "researcher.md", 30)
    critic = AgentSpec("Critic", None, (*READING, *TALKING), "environment.md", 50)
    lab = crew_lab(tmp_path, 4)
    with ModelServer(lambda request: say("Done.")).running() as server:
        events = run_crew(lab, tmp_path, server.choice(), agents=(critic, adaptation))
    offered = {
        turn_of(request)["role"]: {tool["function"]["name"] for tool in request["tools"]}
        for request in server.requests
        if turn_of(request)["kind"] == "propose"
    }
    assert offered == {
        "adaptation": {tool.name for tool in READING},
        None: {tool.name for tool in (*READING, *TALKING)},
    }
    assert {e.actor for e in events if e.kind == "agent"} == {"Adaptation", "Critic", "Coordinator"}
    prompts = events[0].payload["prompts"]
    assert prompts["Adaptation"] == prompt_hash("researcher.md") != prompt_hash("adaptation.md")


def test_the_class_hands_on_the_objects_that_it_is_given() -> None:
    mine = AgentSpec("Adaptation", "adaptation", READING, "researcher.md", 30)
    leader = dataclasses.replace(MEMBERS["Coordinator"], tools=READING)
    team = CollaborativeLearning([mine, "Meta-Learning"], leader)
    assert team.members == (MEMBERS["Meta-Learning"], mine, leader)
    assert team.members[1] is mine
    assert team.members[2] is leader
    assert CollaborativeLearning().members == tuple(MEMBERS.values())
    assert choose_members([]) == [MEMBERS["Coordinator"]]


SPEC = AgentSpec("Critic", None, READING, "environment.md", 50)


@pytest.mark.parametrize(
    ("agents", "words"),
    [
        (["Meta Learning"], "Did you mean 'Meta-Learning'"),
        (
            [dataclasses.replace(SPEC, name="Adaptation"), "Adaptation"],
            "two different agents have the name 'Adaptation'",
        ),
        ([SPEC, dataclasses.replace(SPEC, turn=3)], "two different agents have the name 'Critic'"),
        ([dataclasses.replace(SPEC, name=" ")], "name of an agent: got ' '"),
        ([dataclasses.replace(SPEC, name="human")], "name of an agent: got 'human'"),
        ([dataclasses.replace(SPEC, slice="meta-learnin")], "Did you mean 'meta-learning'"),
        ([dataclasses.replace(SPEC, prompt="enviroment.md")], "Did you mean 'environment.md'"),
        ([3], "agents: got 3, allowed: AgentSpec objects and the names"),
        ([SimpleNamespace(name="Adaptation")], "allowed: AgentSpec objects and the names"),
        ([dataclasses.replace(SPEC, name="Coordinator")], "two different agents have the name 'Coordinator'"),
    ],
)
def test_an_agent_that_cannot_take_part_is_refused_with_what_is_allowed(agents: list[Any], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        CollaborativeLearning(agents)


def test_a_coordinator_of_another_name_is_refused() -> None:
    for other in ("Adaptation", SPEC, 3):
        with pytest.raises(InputError, match="unknown coordinator"):
            CollaborativeLearning(coordinator=other)  # type: ignore[arg-type]


def _run(id: int, trial: int | None, proposer: str, score: float | None, arm: str = "challenger") -> Any:
    return SimpleNamespace(id=id, arm=arm, trial=trial, proposer=proposer, score=score)


def _side(*seed_means: float) -> Any:
    return SimpleNamespace(seed_means=seed_means)


def test_a_result_is_computed_from_rows() -> None:
    sides = {"challenger": _side(-7.0, -8.0), "baseline": _side(-10.0, -11.0)}
    verdict: Any = SimpleNamespace(
        outcome="confirmed",
        reason="r",
        effect=3.0,
        interval=(1.0, 5.0),
        run_ids=(9, 10),
        test="paired",
        level=0.05,
        **sides,
    )
    rows = [
        _run(1, 0, "default", -10.0),
        _run(2, 0, "default", -20.0, "baseline"),
        _run(3, None, "default", -21.0, "baseline"),
        _run(4, 1, "optimizer", -9.0),
        _run(5, 1, "optimizer", -18.0, "baseline"),
        _run(6, 2, "optimizer", -7.0),
        _run(7, 3, "agent:meta-learning", -11.0),
        _run(8, 4, "agent:state-modeling", None),
    ]
    result = summarise("c-0001", "debate", verdict, rows)
    assert result.improvement is not None
    assert (result.improvement.effect, result.improvement.low, result.improvement.run_ids) == (3.0, 1.0, (9, 10))
    assert float(result.improvement) == pytest.approx(100 * 3 / 10.5)
    assert result.emergent_strategies == ()
    meta, state, optimizer = result.proposers
    assert (optimizer.proposer, optimizer.mean_gain, optimizer.run_ids) == ("optimizer", 2.0, (4, 5, 6))
    assert optimizer.interval == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-3)  # t(2) times 1 / sqrt(3)
    assert (meta.mean_gain, meta.interval) == (-1.0, None)
    assert (state.mean_gain, state.interval, state.run_ids) == (None, None, ())


def test_without_evidence_the_improvement_is_absent() -> None:
    verdict: Any = SimpleNamespace(outcome="invalid", reason="r", effect=None, interval=None, run_ids=())
    assert summarise("c-0001", "sequential", verdict, []).improvement is None


def test_wrong_names_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'Meta-Learning'"):
        CollaborativeLearning(agents=["Meta Learning"])
    with pytest.raises(InputError, match="debate"):
        CollaborativeLearning().solve_task("point-robot", "debates")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="debate"):
        run_crew(crew_lab(tmp_path, 1), tmp_path, collaboration="debates")
