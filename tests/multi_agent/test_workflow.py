"""The crew at work on the real lab: with the offline researcher, and with faulty models behind a loopback server."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from crew_on_script import (
    CODES_CHOICES,
    agent_rounds,
    alone,
    code_narrative,
    crew_lab,
    idea,
    interrupted_in,
    narrative_of,
    owners,
    run_crew,
    truthful,
)
from lab_on_script import proposals_of, run_names, ssm_leads
from model_server import Brain, ModelServer, Reply, call, fail, results_of, say, turn_of

from core.errors import InputError
from experiments.campaign.lab import Lab
from experiments.runs.executor import Job
from experiments.runs.runner import Paused
from multi_agent.llm.choose import choose_llm
from multi_agent.workflows.crew import CrewEvent


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    real, foreign = socket.socket.connect, []

    def connect(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            foreign.append(address)
            raise OSError(f"no connection to {address}")
        return real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    yield
    assert foreign == []


class Worked(NamedTuple):
    """A campaign that a crew brought to its verdict."""

    lab: Lab
    events: list[CrewEvent]
    requests: list[dict[str, Any]]
    folder: Path
    tokens: int
    """As the server counted them."""


def run_with(brain: Brain, folder: Path, *, rounds: int = 4, chat: dict[str, Any] | None = None, **options: Any):
    """The campaign whose model is `brain`; it must end in a verdict with every round measured once."""
    lab = crew_lab(folder, rounds)
    with ModelServer(brain).running() as server:
        events = run_crew(lab, folder, server.choice(**(chat or {})), **options)
    assert lab.stage == "done"
    assert lab.round == rounds == len(lab.events(["launch"]))
    assert narrative_of(lab)[0]
    return Worked(lab, events, server.requests, folder, server.tokens)


# ---- the offline researcher -----------------------------------------------------------------

OFFLINE_ROUNDS = 2


class OfflineCampaign(NamedTuple):
    lab: Lab
    events: list[CrewEvent]
    stages: list[str]
    last_recorded: list[tuple[Any, ...]]
    """The ledger's newest event when each event was shown."""
    folder: Path


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> OfflineCampaign:
    """A campaign that began at its first stage and was worked on by the whole crew without a model."""
    from multi_agent.workflows.research_workflow import run_research

    folder = tmp_path_factory.mktemp("offline")
    lab = crew_lab(folder, OFFLINE_ROUNDS)
    lab.set_stage("question")
    events: list[CrewEvent] = []
    stages: list[str] = []
    last_recorded: list[tuple[Any, ...]] = []

    def show(event: CrewEvent) -> None:
        events.append(event)
        newest = lab.events([event.kind])[-1]
        last_recorded.append((newest.kind, newest.actor, newest.payload))

    def set_stage(stage: Any) -> None:
        stages.append(stage)
        Lab.set_stage(lab, stage)

    lab.set_stage = set_stage  # type: ignore[method-assign]
    run_research(lab, choose_llm("offline"), data_dir=folder, on_event=show)
    stages.append(lab.stage)
    return OfflineCampaign(lab, events, stages, last_recorded, folder)


def test_offline_researcher_brings_a_campaign_to_its_verdict(offline: OfflineCampaign) -> None:
    lab, events = offline.lab, offline.events
    assert offline.stages == ["plan", "baseline", "search", "selection", "claim", "confirmation", "verdict", "done"]
    assert len(lab.events(["launch"])) == OFFLINE_ROUNDS
    narrative, narrator = narrative_of(lab)
    assert narrator == "Coordinator (offline)"
    assert lab.judge().outcome in narrative
    spoke = {e.actor for e in events if e.kind == "agent"}
    assert spoke == {"Coordinator", "State-Modeling", "Meta-Learning", "Adaptation", "Environment"}
    assert not [e for e in events if e.payload.get("failed")]
    assert events[0].text.endswith("model: offline.")


def test_offline_researcher_takes_every_value_from_the_optimizer(offline: OfflineCampaign) -> None:
    lab, proposals = offline.lab, proposals_of(offline.lab)
    slices = {
        (arm, role): {p.name for p in lab.describe_search_space(arm, role).parameters}
        for arm in lab.arms
        for role in ("state-modeling", "meta-learning", "adaptation", "environment")
    }
    assert {p.source for p in proposals.values()} <= CODES_CHOICES
    assert proposals.keys() == {(n, *key) for n in range(OFFLINE_ROUNDS) for key, names in slices.items() if names}
    for (number, arm, role), proposal in proposals.items():
        suggested = lab.trials.suggest(arm, number).values
        assert proposal.changes == {k: v for k, v in suggested.items() if k in slices[arm, role]}
        assert proposal.reason != "nobody proposed this slice"
    assert all(p.evidence for (number, _, _), p in proposals.items() if number)


def test_every_event_shown_is_in_the_ledger_first(offline: OfflineCampaign) -> None:
    shown = [(e.kind, e.actor, e.payload) for e in offline.events]
    assert offline.last_recorded == shown
    kinds = {"stage", "agent", "tool_call", "tool_result", "message", "llm_call"}
    assert [(e.kind, e.actor, e.payload) for e in offline.lab.events(sorted(kinds))] == shown
    calls = [e for e in offline.events if e.kind == "llm_call"]
    assert all(len(e.payload["prompt_hash"]) == 16 and e.payload["prompt_file_hash"] for e in calls)
    assert {e.kind for e in offline.events} == kinds


def test_two_offline_campaigns_propose_the_same(offline: OfflineCampaign, tmp_path: Path) -> None:
    """Absent agents change no value: their slices are the optimizer's too."""
    second = crew_lab(tmp_path, OFFLINE_ROUNDS)
    run_crew(second, tmp_path, agents=("Meta-Learning",))
    old, new = proposals_of(offline.lab), proposals_of(second)
    assert {key: (p.source, p.changes) for key, p in old.items()} == {
        key: (p.source, p.changes) for key, p in new.items()
    }
    for key, proposal in new.items():
        if key[2] == "meta-learning":
            assert (proposal.reason, proposal.evidence) == (old[key].reason, old[key].evidence)
    assert narrative_of(offline.lab) == narrative_of(second)


def test_an_arm_that_is_not_tuned_is_left_alone(tmp_path: Path) -> None:
    lab = crew_lab(tmp_path, 2, goal="improve LSTM on point-robot by 10 %")
    run_crew(lab, tmp_path, agents=("Adaptation",))
    assert {arm for _, arm, _ in proposals_of(lab)} == {"challenger"}


def test_the_search_ends_early_when_time_is_short(tmp_path: Path) -> None:
    lab = crew_lab(tmp_path, 5)
    lab.time_is_short = lambda: lab.round >= 2  # type: ignore[method-assign]
    events = run_crew(lab, tmp_path, agents=())
    assert len(lab.events(["launch"])) == 2
    assert any("the wall time left is needed to confirm" in e.text for e in events)
    assert lab.stage == "done"


# ---- pausing --------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [Paused, KeyboardInterrupt])
def test_a_stop_inside_a_tool_passes_through_and_the_campaign_goes_on(
    tmp_path: Path, stop: type[BaseException]
) -> None:
    lab = crew_lab(tmp_path, 3)
    interrupted_in(lab, 1, stop)
    with pytest.raises(stop):
        run_crew(lab, tmp_path, agents=())
    assert (lab.stage, lab.round) == ("search", 1)
    run_crew(lab, tmp_path, agents=())
    assert (lab.stage, lab.round) == ("done", 3)
    assert (
        len(run_names(lab.ledger, lab.number, purpose="search", trial=1)) == 2
    )  # one for each arm: none is trained twice


def test_a_stop_while_the_model_thinks_is_prompt(tmp_path: Path) -> None:
    lab = crew_lab(tmp_path, 2)
    asked = threading.Event()

    def brain(request: dict[str, Any]) -> Reply:
        asked.set()
        time.sleep(5)
        return say("too late")

    def stop() -> None:
        asked.wait(20)
        lab.stop_event.set()

    threading.Thread(target=stop, daemon=True).start()
    with ModelServer(brain).running() as server, pytest.raises(Paused):
        run_crew(lab, tmp_path, server.choice())
    assert len(server.requests) == 1


# ---- a language model that behaves ----------------------------------------------------------


RATE = 0.0012


def good_brain(request: dict[str, Any]) -> Reply:
    """Proposes a learning rate of its own where it may, in parallel calls; reports."""
    turn, results = turn_of(request), results_of(request)
    if turn["kind"] == "propose" and not results:
        looks = [("ledger_query", {"view": "top", "arm": arm, "limit": 3}) for arm in turn["arms"]]
        return call(*looks, ("ledger_query", {"view": "top", "arm": None, "limit": 3}))
    if turn["kind"] == "propose" and len(results) == 3 and turn["role"] == "meta-learning":
        best = json.loads(results[-1])["rows"][0][0]
        told = {"prior_or_rows": "rows", "reason": f"[bold]{best}[/bold] rose late", "evidence": [best]}
        return call(*(("propose", idea(arm, {"learner.learning_rate": RATE}, **told)) for arm in turn["arms"]))
    if turn["kind"] == "report":
        return say(truthful(request))
    return say("Done.")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Worked:
    """A campaign of four rounds that `good_brain` worked on."""
    return run_with(good_brain, tmp_path_factory.mktemp("good"), rounds=4)


def test_a_model_over_http_proposes_launches_and_narrates(good: Worked) -> None:
    own = [p for p in proposals_of(good.lab).values() if p.source == "agent"]
    assert {(p.trial, p.arm, p.role) for p in own} == {(1, arm, "meta-learning") for arm in ("challenger", "baseline")}
    assert all(p.changes["learner.learning_rate"] == RATE for p in own)
    effect, outcome = good.lab.judge().effect, good.lab.judge().outcome
    assert effect is not None
    narrative = f"The verdict is {outcome}: the effect is {effect:.2f}."
    assert narrative_of(good.lab) == (narrative, "Coordinator (openai:scripted)")
    assert all("strict" not in tool["function"] for r in good.requests for tool in r["tools"])
    tokens = sum(e.payload["input_tokens"] + e.payload["output_tokens"] for e in good.events if e.kind == "llm_call")
    assert tokens == good.tokens


def test_agents_of_a_language_model_speak_only_in_their_share_of_rounds(good: Worked) -> None:
    assert owners(good.events) == ["default", "agents", "optimizer", "optimizer"]
    assert sum(e.kind == "agent" and e.actor == "Meta-Learning" for e in good.events) == 1


def test_parallel_calls_run_in_their_order(good: Worked) -> None:
    mine = [e for e in good.events if e.actor == "Meta-Learning" and e.kind in ("tool_call", "tool_result")]
    assert [e.kind for e in mine] == ["tool_call", "tool_result"] * (len(mine) // 2)
    arms = [e.payload["arguments"]["arm"] for e in mine if e.kind == "tool_call"]
    assert arms == ["challenger", "baseline", None, "challenger", "baseline"]


def test_text_of_a_model_is_handed_on_as_it_is(good: Worked) -> None:
    assert any(p.reason.startswith("[bold]") for p in proposals_of(good.lab).values())


def test_streaming_models_work(tmp_path: Path) -> None:
    worked = run_with(good_brain, tmp_path, chat={"streaming": True})
    assert all(r["stream"] for r in worked.requests)
    assert any(p.source == "agent" for p in proposals_of(worked.lab).values())


def test_an_instruction_reaches_every_agent_and_opens_a_round(tmp_path: Path) -> None:
    lab = crew_lab(tmp_path, 4)
    given: list[int] = []

    def instruct(job: Job) -> float:
        if lab.stage == "search" and lab.round == 2 and not given:
            given.append(lab.record_event("instruct", "human", {"text": "try smaller state sizes"}))
        return ssm_leads(job)

    lab.executor.score = instruct  # type: ignore[attr-defined]
    with ModelServer(good_brain).running() as server:
        events = run_crew(lab, tmp_path, server.choice())
    assert owners(events) == ["default", "agents", "optimizer", "agents"]
    told = [r for r in server.requests if "human: try smaller state sizes" in json.dumps(r)]
    assert {turn_of(r)["kind"] for r in told} == {"propose", "review"}
    assert len([e for e in events if e.actor == "human"]) == 1


def test_an_instruction_given_during_a_pause_opens_the_next_round(tmp_path: Path) -> None:
    lab = crew_lab(tmp_path, 4)
    interrupted_in(lab, 2, Paused)
    with ModelServer(good_brain).running() as server:
        with pytest.raises(Paused):
            run_crew(lab, tmp_path, server.choice())
        lab.record_event("instruct", "human", {"text": "try smaller state sizes"})
        events = run_crew(lab, tmp_path, server.choice())
    assert owners(events) == ["agents", "optimizer"]
    assert len([e for e in lab.events(["message"]) if e.payload.get("instruction")]) == 1


# ---- language models that do not behave ------------------------------------------------------


def constantly(reply: Reply) -> Brain:
    return lambda request: reply


FAULTS: dict[str, Brain] = {
    "prose instead of calls": constantly(say("I would suggest a learning rate of 0.5 and claim a return of +9000.")),
    "empty answers": constantly(say("")),
    "malformed arguments": constantly(call(("propose", '{"arm": "chal'))),
    "arguments that are no object": constantly(call(("propose", "[1, 2]"))),
    "wrong arguments": constantly(call(("ledger_query", {"view": "everything", "score": 1.0}))),
    "oversized arguments": constantly(call(("write_note", {"text": "x" * 300_000, "target": None}))),
    "an unknown tool": constantly(call(("judge", {"outcome": "confirmed"}))),
    "an endless loop": lambda request: call(("ledger_query", {"view": "top", "arm": None, "limit": 1 + len(results_of(request)) % 9})),
    "http 500": constantly(fail(500, "server on fire")),
    "http 429": constantly(fail(429, "Rate limit reached: too many requests")),
    "a refused key": constantly(fail(401, "Incorrect API key provided: sk-very-secret-key")),
    "a full context": constantly(fail(400, "This model's maximum context length is 4096 tokens")),
    "a server without tools": lambda request: fail(400, "this model does not support tools") if request.get("tools") else say("Final Answer: fine"),
    "markup and control characters": constantly(say("[red]x[/red] \x00 \x1b[31m {$turn} " + "\u202e" * 5)),
    "a lone surrogate": constantly(call(("write_note", '{"text": "\\ud800 oops", "target": null}'))),
    "infeasible proposals": lambda request: call(
        ("propose", idea("challenger", {"model.num_layers": 10**9}))),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_campaign_reaches_its_verdict_whatever_the_model_does(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-key")
    rounds = 1 if fault in ("malformed arguments", "an endless loop") else 2  # they use up every call of a turn
    worked = run_with(FAULTS[fault], tmp_path, rounds=rounds)
    assert {p.source for p in proposals_of(worked.lab).values()} <= CODES_CHOICES
    assert len(worked.requests) <= 200
    assert narrative_of(worked.lab) == code_narrative(worked.lab)  # none of these wrote one that rests on rows
    assert "sk-very-secret-key" not in json.dumps([e.payload for e in worked.events])
    assert {e.kind for e in worked.events} <= {"stage", "agent", "tool_call", "tool_result", "message", "llm_call"}


def test_a_dead_model_is_not_asked_for_ever(tmp_path: Path) -> None:
    worked = run_with(FAULTS["http 500"], tmp_path, rounds=4)
    assert len(worked.requests) == 3
    assert any("not asked again" in e.text for e in worked.events)


def test_rate_limits_are_retried_by_the_client_alone(tmp_path: Path) -> None:
    worked = run_with(FAULTS["http 429"], tmp_path, chat={"max_retries": 1})
    assert len(worked.requests) == 6  # three turns, each tried twice


def test_the_model_cannot_set_values_in_the_optimizers_rounds(tmp_path: Path) -> None:
    def stubborn(request: dict[str, Any]) -> Reply:
        turn, tried = turn_of(request), len(results_of(request))
        if turn["kind"] == "propose" and tried < 3:
            return call(("propose", idea("challenger", {"learner.learning_rate": 0.002 + 0.0001 * turn["round"]})))
        return say("Done.")

    worked = run_with(stubborn, tmp_path, rounds=4)
    assert agent_rounds(worked.lab) == {1}
    assert {p.trial for p in proposals_of(worked.lab).values() if p.source == "agent"} == {1}


def test_a_narrative_that_lies_is_thrown_away(tmp_path: Path) -> None:
    def liar(request: dict[str, Any]) -> Reply:
        return say(f"The verdict is {turn_of(request).get('outcome')}, but the challenger won by 47.5 %.")

    worked = run_with(liar, tmp_path, rounds=2)
    assert narrative_of(worked.lab) == code_narrative(worked.lab)
    assert any("47.5 stands in no result" in e.text for e in worked.events)


def test_a_number_cannot_be_laundered_through_a_tool(tmp_path: Path) -> None:
    def launderer(request: dict[str, Any]) -> Reply:
        turn = turn_of(request)
        if turn["kind"] == "report" and not results_of(request):
            values = [{"name": "model.num_layers", "value": 47.5}]
            return call(
                ("check_feasibility", {"arm": "challenger", "values": values}),
                ("ledger_query", {"view": "top", "arm": None, "limit": 475}),
                ("write_note", {"text": "it won by 47.5", "target": None}),
            )
        return say(f"The verdict is {turn.get('outcome')}, but the challenger won by 47.5 %.")

    worked = run_with(launderer, tmp_path, rounds=1)
    assert narrative_of(worked.lab) == code_narrative(worked.lab)


def test_a_row_that_a_tool_did_not_give_may_not_be_named(tmp_path: Path) -> None:
    def cites(row_id: str) -> Brain:
        def brain(request: dict[str, Any]) -> Reply:
            turn = turn_of(request)
            if turn["kind"] == "report" and not results_of(request):
                return call(("ledger_query", {"view": "top", "arm": "challenger", "limit": 1}))
            return say(f"The verdict is {turn.get('outcome')}; best was {row_id}.")

        return brain

    first = run_with(cites("r-0003"), tmp_path / "a", rounds=1)  # the challenger's only trial
    assert narrative_of(first.lab)[1] == "Coordinator (openai:scripted)"
    second = run_with(cites("r-000"), tmp_path / "b", rounds=1)
    assert narrative_of(second.lab) == code_narrative(second.lab)
    assert any("r-0000 stands in no result" in e.text for e in second.events)


def test_a_model_that_never_answers_is_left_after_the_timeout(tmp_path: Path) -> None:
    def slow(request: dict[str, Any]) -> Reply:
        time.sleep(1.0)
        return say("too late")

    worked = run_with(slow, tmp_path, rounds=2, chat={"timeout": 0.2})
    assert len(worked.requests) == 3
    assert any("Timeout" in e.payload["error"] for e in worked.events if e.payload.get("failed"))


# ---- replay ---------------------------------------------------------------------------------


def replayed(first: Lab, folder: Path, rounds: int, **options: Any) -> tuple[Lab, list[CrewEvent]]:
    """A new campaign beside the first one, worked on by its recorded answers."""
    second = crew_lab(folder, rounds, new=True)
    return second, run_crew(second, folder, choose_llm(f"replay:{first.campaign_id}"), **options)


def test_a_recorded_crew_is_replayed_without_a_model(good: Worked) -> None:
    first = good.lab
    second, events = replayed(first, good.folder, 4)
    assert not [e for e in events if e.payload.get("failed")]
    assert narrative_of(second) == (narrative_of(first)[0], f"Coordinator (replay:{first.campaign_id})")
    old, new = proposals_of(first), proposals_of(second)
    assert old.keys() == new.keys()
    shift = int(run_names(second.ledger, second.number)[0][2:]) - int(
        run_names(first.ledger, first.number)[0][2:]
    )  # rows have other ids in another campaign
    assert shift > 0
    for key, proposal in old.items():
        assert (new[key].changes, new[key].source) == (proposal.changes, proposal.source)
        assert [int(row[2:]) - shift for row in new[key].evidence] == [int(row[2:]) for row in proposal.evidence]


def test_an_offline_campaign_can_be_replayed_too(offline: OfflineCampaign) -> None:
    second, events = replayed(offline.lab, offline.folder, OFFLINE_ROUNDS, agents=("State-Modeling",))
    assert not [e for e in events if e.payload.get("failed")]
    old, new = proposals_of(offline.lab), proposals_of(second)
    assert {key: p.changes for key, p in new.items()} == {key: p.changes for key, p in old.items()}
    assert [p.reason for key, p in new.items() if key[2] == "state-modeling"] == [
        p.reason for key, p in old.items() if key[2] == "state-modeling"
    ]


def test_a_replay_goes_on_without_what_was_not_recorded(good: Worked) -> None:
    longer, _ = replayed(good.lab, good.folder, 5)
    assert (longer.stage, longer.round) == ("done", 5)


def test_replaying_what_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    lab = crew_lab(tmp_path, 1)
    with pytest.raises(InputError, match="c-0008"):
        run_crew(lab, tmp_path, choose_llm("replay:c-0008"))
    with pytest.raises(InputError, match="no model call is recorded"):
        run_crew(lab, tmp_path, choose_llm("replay:c-0001"))


# ---- caps -----------------------------------------------------------------------------------


def test_a_token_cap_is_held_before_each_call(tmp_path: Path) -> None:
    lab, events, requests, *_ = run_with(good_brain, tmp_path, max_tokens=10_800)
    spent = sum(e.payload["input_tokens"] + e.payload["output_tokens"] for e in events if e.kind == "llm_call")
    assert 0 < spent <= 10_800
    assert any("--max-tokens" in e.text for e in events)
    with ModelServer(good_brain).running() as server:  # a new sitting counts what the earlier one spent
        lab.set_stage("verdict")
        run_crew(lab, tmp_path, server.choice(), max_tokens=spent + 10)
    assert server.requests == []
    assert requests


def test_an_unknown_price_is_said(tmp_path: Path) -> None:
    worked = run_with(good_brain, tmp_path, rounds=1, max_usd=1.0)
    assert any("--max-usd cannot be held" in e.text for e in worked.events)


# ---- nothing outside the data folder ----------------------------------------------------------


def test_nothing_is_written_to_home_or_the_working_directory(tmp_path: Path) -> None:
    home, here, data = tmp_path / "home", tmp_path / "here", tmp_path / "data"
    home.mkdir()
    here.mkdir()
    code = (
        "import sys, socket; from pathlib import Path\n"
        "def refuse(*a): raise AssertionError('a connection')\n"
        "socket.socket.connect = refuse; socket.create_connection = refuse\n"
        "from crew_on_script import crew_lab, run_crew\n"
        "lab = crew_lab(Path(sys.argv[1]), 1)\n"
        "run_crew(lab, Path(sys.argv[1]))\n"
        "assert lab.stage == 'done'\n"
    )
    import subprocess
    import sys

    environment = alone(HOME=home)
    done = subprocess.run(
        [sys.executable, "-c", code, str(data)], cwd=here, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")
    assert list(home.iterdir()) == []
    assert list(here.iterdir()) == []
    assert (data / "crewai").is_dir()
