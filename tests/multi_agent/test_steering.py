"""What people say from a second terminal: approvals, instructions, an end; and what survives a kill."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from crew_on_script import crew_lab, idea, interrupted_in, narrative_of, quiet, run_crew
from lab_on_script import lab_on_script, proposals_of, search_and_confirm
from model_server import ModelServer, Reply, call, fail, results_of, say, turn_of

import main
from core.errors import InputError
from experiments.campaign.lab import Lab
from experiments.campaign.steering import approve, end_campaign, is_stopped
from experiments.ledger import Ledger
from experiments.reading.queries import list_active
from experiments.reading.report import gather, write_report
from experiments.runs.runner import Paused
from multi_agent.communication.message_broker import Message, MessageBroker


@contextmanager
def answering(lab: Lab, *denials: str | None) -> Iterator[list[str]]:
    """A person in a second terminal who answers what is waited for: a text denies, None and whatever comes after the
    last of them approves. Gives the keys that were asked for."""
    asked: list[str] = []
    gone = threading.Event()
    before = max((event.id for event in lab.events()), default=0)

    def person() -> None:
        left, seen = list(denials), before
        terminal = Ledger(lab.ledger.url)
        while not gone.wait(0.03):
            for event in lab.events(["waiting"], after=seen):
                seen = event.id
                asked.append(event.payload["key"])
                approve(terminal, lab.number, deny=left.pop(0) if left else None)
        terminal.close()

    thread = threading.Thread(target=person, daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        gone.set()
        thread.join()


def test_every_stage_waits_for_approval(tmp_path: Path) -> None:
    lab = crew_lab(tmp_path, 2)
    began, before_s = time.monotonic(), lab.economy.spent_s
    with answering(lab) as asked:
        events = run_crew(lab, tmp_path, agents=(), approve_each="stage")
    assert asked == [f"stage:{s}" for s in ("baseline", "search", "selection", "claim", "confirmation")]
    assert lab.stage == "done"
    charged_s = lab.economy.spent_s - before_s
    assert charged_s < time.monotonic() - began  # waiting for a person is not charged to the budget
    assert any("python main.py approve c-0001" in e.text for e in events if e.kind == "waiting")


def test_every_group_of_runs_waits_for_approval(tmp_path: Path) -> None:
    lab = crew_lab(tmp_path, 2)
    with answering(lab) as asked:
        run_crew(lab, tmp_path, agents=(), approve_each="run")
    assert asked == ["stage:baseline", "round:0", "round:1", "stage:selection", "stage:confirmation"]


def test_a_denied_stage_pauses_and_the_reason_waits_for_every_agent(tmp_path: Path) -> None:
    lab = crew_lab(tmp_path, 2)
    with answering(lab, None, "not before lunch"), pytest.raises(Paused, match="not before lunch"):
        run_crew(lab, tmp_path, agents=(), approve_each="stage")
    assert (lab.stage, lab.events(["launch"])) == ("search", [])
    with answering(lab) as asked, ModelServer(quiet).running() as server:
        run_crew(lab, tmp_path, server.choice())  # what is approved is remembered by the campaign
    assert "stage:search" in asked
    assert "not before lunch" in str(server.requests[0])


def test_a_denied_round_pauses_where_no_model_could_propose_another(tmp_path: Path) -> None:
    lab = crew_lab(tmp_path, 2)
    with answering(lab, None, "too fast"), pytest.raises(Paused, match="search round 1 was denied: too fast"):
        run_crew(lab, tmp_path, agents=(), approve_each="run")
    assert lab.events(["launch"]) == []


def test_a_denied_round_is_proposed_anew_by_the_crew(tmp_path: Path) -> None:
    def brain(request: dict[str, Any]) -> Reply:
        turn, results = turn_of(request), results_of(request)
        if turn["kind"] == "propose" and turn["role"] == "meta-learning" and turn["round"] == 1 and not results:
            value = 0.0007 if "too fast" in str(request["messages"]) else 0.0021
            return call(("propose", idea("challenger", {"learner.learning_rate": value})))
        return say("Done.")

    lab = crew_lab(tmp_path, 4)
    with answering(lab, None, None, "too fast") as asked, ModelServer(brain).running() as server:
        run_crew(lab, tmp_path, server.choice(), agents=("Meta-Learning",), approve_each="run")
    assert asked.count("round:1") == 2
    proposal = proposals_of(lab)[1, "challenger", "meta-learning"]
    assert (proposal.source, proposal.changes["learner.learning_rate"]) == ("agent", 0.0007)


def test_a_wait_survives_a_stop_and_an_answer_given_meanwhile_counts(tmp_path: Path) -> None:
    lab = crew_lab(tmp_path, 2)

    def stop_once_it_waits() -> None:
        while not lab.events(["waiting"]):
            time.sleep(0.02)
        lab.stop_event.set()

    threading.Thread(target=stop_once_it_waits, daemon=True).start()
    with pytest.raises(Paused):
        run_crew(lab, tmp_path, agents=(), approve_each="stage")
    assert lab.stage == "baseline"
    lab.stop_event.clear()
    approve(lab.ledger, lab.number, deny=None)
    with answering(lab):
        run_crew(lab, tmp_path, agents=())
    assert [e.payload["key"] for e in lab.events(["waiting"])].count("stage:baseline") == 1
    assert lab.stage == "done"


# ---- the search ends early --------------------------------------------------------------------


def test_the_crew_may_ask_for_the_claim_and_code_decides(tmp_path: Path) -> None:
    def brain(request: dict[str, Any]) -> Reply:
        if turn_of(request)["kind"] == "review" and not results_of(request):
            return call(("request_confirmation", {"reason": "it is clear", "evidence": []}))
        return say("Done.")

    lab = crew_lab(tmp_path, 6)
    with ModelServer(brain).running() as server:
        events = run_crew(lab, tmp_path, server.choice(), agents=())
    assert lab.stage == "done"
    asked = [(e.payload["round"], e.payload["granted"]) for e in lab.events(["early_end"])]
    assert asked == [(1, False), (3, True)]  # in the agents' round, and once the rule allows it
    assert any("as the crew asked" in e.text for e in events)
    tried = {arm: [t.number for t in lab.trials.finished(arm)] for arm in lab.arms}
    assert tried == {"challenger": [0, 1, 2], "baseline": [0, 1, 2]}


def test_the_lab_ends_a_search_by_its_rule_and_both_arms_stay_equal(tmp_path: Path) -> None:
    lab = lab_on_script(tmp_path)
    lab.run_baseline()
    lab.set_stage("search")
    assert lab.request_confirmation("Coordinator", "now").decision.startswith("0 of 3 rounds")
    lab.launch()
    lab.launch()
    found = lab.request_confirmation("Coordinator", "clear", [f"r-{lab.ledger.runs(lab.number)[0].id:04d}"])
    assert found.granted
    assert lab.ends_early()
    with pytest.raises(InputError, match="the search is closed"):
        lab.launch()
    lab.run_selection()
    claim = lab.write_claim().content
    assert claim.challenger.search_trials == claim.baseline.search_trials == 2


# ---- a stop -----------------------------------------------------------------------------------


def test_a_campaign_stopped_in_the_search_ends_without_a_verdict_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = lab_on_script(tmp_path)
    lab.run_baseline()
    lab.set_stage("search")
    lab.launch()
    lab.ledger.record_event(lab.number, "instruct", "human", {"text": "try smaller state sizes"})
    lab.ledger.close()
    place = ["--data-dir", str(tmp_path)]
    assert main.main(["stop", "c-0001", *place]) == 0
    words = capsys.readouterr().out
    assert "after 1 of 3 search rounds" in " ".join(words.split())
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    campaign = ledger.get_campaign(1)
    assert (campaign.stage, campaign.status) == ("done", "done")
    markdown = (tmp_path / "reports" / "c-0001" / "report.md").read_text() if (tmp_path / "reports").is_dir() else ""
    markdown = markdown or next(tmp_path.rglob("report.md")).read_text()
    assert "ended before there was one" in markdown
    assert "instruct: try smaller state sizes" in markdown  # the report says what people told the crew
    assert main.main(["stop", "c-0001", *place]) == 2
    assert "nothing to stop" in capsys.readouterr().err
    assert main.main(["resume", "c-0001", *place, "--llm", "offline"]) == 0


def test_a_campaign_stopped_in_its_confirmation_is_judged_on_what_there_is(tmp_path: Path) -> None:
    lab = lab_on_script(tmp_path)
    search_and_confirm(lab)
    lab.ledger.record_event(lab.number, "stop", "human", {})
    assert is_stopped(lab.ledger, lab.number)
    with lab.holding():
        end_campaign(lab)
    data = gather(lab.ledger, lab.number)
    assert data.verdict is not None
    assert data.verdict.outcome == "confirmed"
    assert "confirmed" in (data.campaign.narrative or "")
    assert [w.kind for w in data.steering] == ["stop"]


# ---- commands ---------------------------------------------------------------------------------


def test_status_shows_what_waits_and_approve_answers_it_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = lab_on_script(tmp_path)
    place = ["--data-dir", str(tmp_path)]
    assert main.main(["approve", *place]) == 2
    assert "waits for no approval" in capsys.readouterr().err
    lab.record_event("waiting", "workflow", {"text": "t", "key": "stage:baseline", "what": "the stage baseline."})
    assert "waits for approval of the stage baseline." in list_active(lab.ledger)[0].note
    assert main.main(["status", *place]) == 0
    assert "python main.py approve c-0001" in " ".join(capsys.readouterr().out.split())
    assert main.main(["approve", "c-0001", "--deny", "too expensive", *place]) == 0
    with pytest.raises(InputError):
        approve(lab.ledger, lab.number, deny=None)
    (event,) = lab.events(["approve"])
    assert event.payload == {"key": "stage:baseline", "granted": False, "text": "too expensive"}
    write_report(lab.ledger, lab.number, lab.paths)
    assert "denied: stage:baseline. too expensive" in next(tmp_path.rglob("report.md")).read_text()


# ---- messages and event loops -----------------------------------------------------------------


def test_messages_that_nobody_had_read_at_a_kill_are_delivered_after_it(tmp_path: Path) -> None:
    def teller(request: dict[str, Any]) -> Reply:
        if turn_of(request)["kind"] == "plan" and not results_of(request):
            return call(("tell", {"to": "Adaptation", "text": "look at shots", "evidence": []}))
        return say("Done.")

    lab = crew_lab(tmp_path, 4)
    interrupted_in(lab, 0, Paused)
    with ModelServer(teller).running() as server, pytest.raises(Paused):
        run_crew(lab, tmp_path, server.choice())
    assert "look at shots" not in str([r for r in server.requests if turn_of(r)["kind"] == "propose"])
    with ModelServer(teller).running() as server:
        run_crew(lab, tmp_path, server.choice())
    heard = [r for r in server.requests if "Coordinator: look at shots" in str(r["messages"][-1]["content"])]
    assert [turn_of(r)["role"] for r in heard] == ["adaptation"]


def test_what_was_read_is_not_delivered_again() -> None:
    broker = MessageBroker(("a", "b"), lambda *args, **rest: 9)
    messages = [Message("b", "a", f"m{n}", (), n) for n in (3, 5, 7)] + [Message("human", "all", "h", (), 8)]
    broker.restore(messages, {"a": 5})
    assert [m.text for m in broker.collect("a")] == ["m7", "h"]
    assert [m.text for m in broker.collect("b")] == ["h"]
    broker.put_back("a", messages[:1])
    broker.post("b", "a", "new")
    assert [m.text for m in broker.collect("a")] == ["m3", "new"]


def test_messages_of_a_turn_that_failed_wait_for_the_next(tmp_path: Path) -> None:
    heard: list[str] = []

    def brain(request: dict[str, Any]) -> Reply:
        if turn_of(request)["kind"] == "plan":
            return fail(500, "broken")
        if turn_of(request)["kind"] in ("review", "report"):
            heard.append(str(request["messages"][-1]["content"]))
        return say("Done.")

    lab = crew_lab(tmp_path, 2)
    lab.record_event("instruct", "human", {"text": "go slowly"})
    with ModelServer(brain).running() as server:
        run_crew(lab, tmp_path, server.choice())
    assert ["human: go slowly" in text for text in heard] == [True, False]


def test_a_crew_works_inside_a_running_event_loop(tmp_path: Path) -> None:
    async def notebook() -> Lab:
        lab = crew_lab(tmp_path, 1)
        run_crew(lab, tmp_path, agents=("Adaptation",))
        return lab

    lab = asyncio.run(notebook())
    assert narrative_of(lab)[1] == "Coordinator (offline)"
