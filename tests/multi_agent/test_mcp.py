"""An MCP client as the crew, over both transports: it is briefed, proposes, is credited, and code alone gives the verdict."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from crew_on_script import crew_lab, idea, narrative_of
from lab_on_script import search_and_confirm, ssm_leads
from mcp import types
from mcp_clients import TOKEN, Ask, asking, driver_of, over_http, over_stdio, served, wait_until
from pydantic import AnyUrl
from starlette.responses import PlainTextResponse

from cli.app import main as run_command
from core.errors import InputError
from experiments.campaign.evidence import Evidence
from experiments.campaign.lab import Lab
from experiments.campaign.proposing.ideas import measured
from experiments.campaign.steering import approve
from experiments.ledger import Ledger
from experiments.ledger.models import Proposal
from experiments.runs.executor import Job
from experiments.runs.paths import Paths
from experiments.tables import TableView
from multi_agent.llm.calls import NoAnswerError
from multi_agent.llm.choose import choose_llm
from multi_agent.mcp import mailbox, resources, server, transports
from multi_agent.tools.ledger_tool import PROPOSE
from multi_agent.tools.tool import ToolContext
from multi_agent.workflows.research_workflow import run_research

STACK = {"model.num_layers": 1}


def prefers_one_layer(job: Job) -> float:
    """A landscape on which the challenger's stack of one layer is better by 5 than any other."""
    better = job.spec.policy.model.num_layers == 1 and job.spec.policy.model.kind != "lstm"
    return ssm_leads(job) + 5.0 * better


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "POLL_S", 0.05)
    monkeypatch.setattr(server, "LOOK_S", 0.05)


@contextmanager
def worked_on(lab: Lab, folder: Path, llm: str = "mcp", **options: Any) -> Iterator[None]:
    """The campaign goes on in a thread, as it does in its own process, until it is done."""
    problems: list[BaseException] = []

    def work() -> None:
        try:
            with lab.holding():
                run_research(lab, choose_llm(llm), data_dir=folder, on_event=lambda event: None, **options)
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        lab.stop_event.set()
        thread.join(20)
        assert not thread.is_alive()
    assert [p for p in problems if type(p).__name__ != "Paused"] == []


async def play(ask: Ask, act: Callable[[dict[str, Any]], Awaitable[str]]) -> list[dict[str, Any]]:
    """Take every turn until the campaign is finished; the turns."""
    turns = []
    while True:
        now = await ask("next_turn")
        assert isinstance(now, dict), now
        if now["state"] == "finished":
            return turns
        if now["state"] == "your turn":
            turns.append(now)
            ended = await ask("finish_turn", words=await act(now))
            assert isinstance(ended, dict), ended
        else:
            await anyio.sleep(0.05)


def the_expert(ask: Ask, answers: list[Any]) -> Callable[[dict[str, Any]], Awaitable[str]]:
    """Knows the better stack, as State-Modeling, and leaves all else to the optimizer."""

    async def act(turn: dict[str, Any]) -> str:
        if turn["kind"] == "propose" and turn["agent"] == "State-Modeling":
            mine = idea("challenger", STACK, base="incumbent", expected_delta=90.0, low=50.0, high=200.0)
            answers.append(await ask("propose", **mine))
            answers.append(await ask("propose", **idea("baseline", {}, expected_delta=0.0)))
        outcome = re.search(r'Use the word "(\w+)"', turn["prompt"])
        return f"It is {outcome[1]}." if outcome else "Nothing to add."

    return act


def test_an_assistant_over_stdio_finds_the_better_stack_is_credited_and_the_verdict_follows(tmp_path: Path) -> None:
    lab = crew_lab(tmp_path, 2, score=prefers_one_layer, trials_at_once=2, suggesting=2)
    loaded, answers = tmp_path / "loaded", []
    code = (
        "import sys; from cli.start import main; code = main();"
        f"open({str(loaded)!r}, 'w').write(' '.join(m for m in sys.modules if m.startswith(('crewai', 'langchain'))) or 'none')"
    )

    async def main() -> list[dict[str, Any]]:
        told = types.Implementation(name="Claude Code!", version="1")
        async with over_stdio(tmp_path, code=code, client_info=told) as session:
            ask = asking(session)
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            assert {"open_campaign", "next_turn", "propose", "finish_turn", "campaign_status", "memory_length"} <= set(
                tools
            )
            assert tools["propose"].inputSchema == PROPOSE.arguments.model_json_schema()
            hints = {name: tool.annotations for name, tool in tools.items()}
            assert all(hints[name].readOnlyHint for name in ("ledger_query", "check_feasibility", "campaign_status"))
            assert (hints["propose"].readOnlyHint, hints["propose"].idempotentHint) == (False, True)
            assert (hints["tell"].readOnlyHint, hints["tell"].idempotentHint) == (False, False)
            with worked_on(lab, tmp_path):
                turns = await play(ask, the_expert(ask, answers))
            status = await ask("campaign_status")
            assert (status["state"], status["verdict"]) == ("finished", lab.judge().outcome)
            return turns

    turns = anyio.run(main)
    kinds = [t["kind"] for t in turns]
    assert (kinds[0], kinds[-1]) == ("plan", "report")
    assert set(kinds) == {"plan", "propose", "review", "report"}
    assert "[challenger] incumbent:" in turns[1]["prompt"]
    assert answers[0]["configuration"]["model.num_layers"] == 1  # all that will train
    (done,) = measured(lab.trials)
    assert (done.idea.author, done.idea.client, done.is_covered) == ("State-Modeling", "claude-code", True)
    assert lab.trials.proposer("challenger", done.idea.trial, "search") == "mcp:claude-code:state-modeling"
    assert "mcp:claude-code:state-modeling" in {run.proposer for run in lab.ledger.runs(lab.number, purpose="search")}
    best = lab.trials.incumbent("challenger")
    assert best is not None
    assert best.values["model.num_layers"] == 1
    with lab.ledger.session() as session:
        reasons = [p.reason for p in session.query(Proposal).where(Proposal.source == "agent")]
    assert reasons == ["r (mcp:claude-code)"]
    assert narrative_of(lab) == (f"It is {lab.judge().outcome}.", "Coordinator (mcp:claude-code)")
    assert lab.is_judged()
    assert loaded.read_text() == "none"  # of crewai and langchain, in the server's process


def test_one_agent_over_http_is_asked_for_its_own_turns_and_its_person_approves_where_the_client_asks(
    tmp_path: Path,
) -> None:
    lab = crew_lab(tmp_path, 2, score=prefers_one_layer, trials_at_once=2, suggesting=2)
    answers: list[Any] = []
    asked: list[str] = []

    async def person(context: Any, question: types.ElicitRequestParams) -> types.ElicitResult:
        asked.append(question.message)
        return types.ElicitResult(action="accept", content={"approve": True})

    async def main(url: str) -> list[dict[str, Any]]:
        async with over_http(url, elicitation_callback=person) as session:
            ask = asking(session)
            names = {tool.name for tool in (await session.list_tools()).tools}
            assert {"propose", "memory_length"} <= names
            assert not {"request_confirmation", "inner_rate_sensitivity", "measure_throughput"} & names
            assert [prompt.name for prompt in (await session.list_prompts()).prompts] == ["State-Modeling"]
            prompt = (await session.get_prompt("State-Modeling")).messages[0].content
            assert isinstance(prompt, types.TextContent)
            assert "Your slice: the cell, its depth" in prompt.text
            with worked_on(lab, tmp_path, "mcp:State-Modeling", approve_each="stage"):
                turns = await play(ask, the_expert(ask, answers))
            listed = [str(resource.uri) for resource in (await session.list_resources()).resources]
            assert listed == [f"ssm-metarl://c-0001/{kind}" for kind in ("rows", "search-space", "report")]
            texts = [(await session.read_resource(AnyUrl(uri))).contents[0] for uri in listed]
            rows, space, report = (text.text for text in texts if isinstance(text, types.TextResourceContents))
            assert "mcp:mcp:state-modeling" in {row["proposer"] for row in json.loads(rows)}
            assert "model.num_layers" in {p["name"] for p in json.loads(space)[0]["parameters"]}
            assert lab.judge().outcome in report
            return turns

    with served(driver_of(tmp_path, "State-Modeling")) as url:
        turns = anyio.run(main, url)
    assert {turn["agent"] for turn in turns} == {"State-Modeling"}
    assert [done.idea.author for done in measured(lab.trials)] == ["State-Modeling"]
    assert lab.is_judged()
    assert len(asked) == 5
    assert "c-0001 waits for your approval of the stage baseline" in asked[0]
    assert {event.payload["via"] for event in lab.events(["approve"])} == {"mcp:mcp"}


def test_a_client_that_goes_away_costs_one_deadline_and_is_asked_again_once_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailbox, "TURN_S", 0.3)
    monkeypatch.setattr(server, "WAIT_S", 0.5)
    lab = crew_lab(tmp_path, 2)
    with worked_on(lab, tmp_path):
        wait_until(lambda: lab.stage == "done")
    assert len(lab.events(["turn"])) == 1  # of the first agent; then nobody was there
    assert "no MCP client took the turn within 0 s" in lab.events(["agent"])[0].payload["text"]
    assert lab.is_judged()
    assert {run.proposer for run in lab.ledger.runs(lab.number, purpose="search")} == {"default", "optimizer"}
    lab.stop_event.clear()
    box = mailbox.Mailbox(lab, lambda kind, actor, text, **payload: lab.record_event(kind, actor, payload), ["A", "B"])
    context = ToolContext(lab, "A", None, lambda *a, **k: 0, None, None)  # type: ignore[arg-type]
    with lab.holding(), pytest.raises(NoAnswerError):
        box.take_turn(context, [], "", {})
    assert (box.asks("A"), box.asks("B")) == (False, False)
    mailbox.Hand(lab.ledger, lab.ledger, "x", "s-1", ("B",)).come(lab.number)
    assert (box.asks("A"), box.asks("B"), box.asks("C")) == (False, True, False)
    lab.record_event("turn", "A", lab.events(["turn"])[-1].payload)
    with lab.holding(), monkeypatch.context() as patch:  # it says that it is done, as a resumed one says that it runs
        patch.setattr(mailbox, "standing_of", lambda row: "running")
        turn = mailbox.open_turn(lab.ledger, lab.number)
        assert turn is not None
        hand = mailbox.Hand(lab.ledger, lab.ledger, "z", "s-2")
        taken = hand.take(lab.number, turn.number)
        assert taken is not None
        hand.finish(taken, "Done.")
        assert mailbox.open_turn(lab.ledger, lab.number) is None  # also before the campaign has heard it
        lab.record_event("turn", "A", lab.events(["turn"])[-1].payload | {"holder": "a process that was killed"})
        assert mailbox.open_turn(lab.ledger, lab.number) is None


def test_what_a_client_does_out_of_turn_or_wrongly_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "WAIT_S", 0.2)
    lab = crew_lab(tmp_path / "data", 2)
    mine = idea("challenger", STACK, base="incumbent")

    async def main(url: str, empty: str) -> None:
        async with over_http(empty) as session:
            ask = asking(session)
            assert await ask("next_turn") == "there is no campaign yet: start one with the tool open_campaign"
            assert "unknown task" in await ask("open_campaign", goal="beat LSTM on nowhere")
            assert "not both" in await ask("open_campaign", goal="beat LSTM on point-robot", budget="1m", env_steps="1M")  # fmt: skip
            assert "did you mean 'goal'?" in await ask("open_campaign", gaol="x")
            assert "Did you mean 'next_turn'?" in await ask("next_turns")
            assert "no-such" in await ask("campaign_status", campaign="no-such")
        async with over_http(url) as session:
            ask = asking(session)
            assert "it is not your turn: c-0001 is paused: no process works on it. Go on with the tool resume_campaign" in await ask("propose", **mine)  # fmt: skip
            assert "it is not your turn" in await ask("finish_turn", words="Done.")
            with worked_on(lab, tmp_path, approve_each="stage"):
                while (now := await ask("next_turn"))["state"] != "waits for approval":
                    pass
                assert "approve c-0001" in now["text"]  # no elicitation: a person is told the command
                assert "a person's approval" in await ask("propose", **mine)
                approve(lab.ledger, lab.number, deny=None)
                while (now := await ask("next_turn"))["state"] != "waits for approval":
                    pass
                approve(lab.ledger, lab.number, deny=None)
                while (now := await ask("next_turn"))["state"] != "your turn":
                    pass
                assert (now["agent"], now["kind"]) == ("Coordinator", "plan")
                assert "propose is no tool of Coordinator, whose turn it is; allowed: ledger_query" in await ask("propose", **mine)  # fmt: skip
                assert "got 99" in await ask("ledger_query", view="top", limit=99)
                assert (await ask("ledger_query", view="baseline"))["columns"]
                with monkeypatch.context() as patch:  # a result that is too long is data that says what is missing
                    rows = tuple((f"r-{n:04d}", "x" * 40) for n in range(900))
                    long = TableView(columns=("run", "words"), rows=rows)
                    patch.setattr(Evidence, "baseline_table", lambda evidence: long)
                    short = await ask("ledger_query", view="baseline", limit=30)
                    assert (
                        f"Here are {len(short['rows'])} of 900 entries of rows. For the rest call ledger_query"
                        in short["left_out"]
                    )
                    assert short["columns"] == ["run", "words"]
                assert "is being worked on already" in await ask("resume_campaign")
                assert (await ask("next_turn", campaign="c-0001"))["state"] == "your turn"
                assert "c-0001 is at work already" in await ask("open_campaign", goal="beat LSTM on point-robot")
                with monkeypatch.context() as patch:  # a tool that takes longer than a call may
                    patch.setattr(server, "WAIT_S", 0.0)
                    late = await ask("ledger_query", again=False, view="top", limit=3)
                    assert late["again_s"] == 5
                assert (await ask("ledger_query", view="top", limit=3))["columns"]
                calls = [e for e in lab.events(["tool_call"]) if e.payload["arguments"].get("view") == "top"]
                assert len(calls) == 2  # the refused one, and the late one, which ran once

    with served(driver_of(tmp_path / "data")) as url, served(driver_of(tmp_path / "empty")) as empty:
        anyio.run(main, url, empty)


@pytest.mark.parametrize(
    ("headers", "code", "words"),
    [
        ({}, 401, "the bearer token is missing"),
        ({"Authorization": "Bearer of-another-server"}, 401, "the bearer token is wrong"),
        ({"Authorization": "Basic " + TOKEN}, 401, "the bearer token is wrong"),
        ({"Authorization": f"Bearer {TOKEN}", "Origin": "https://evil.example"}, 403, "Origin: got 'https://evil.example', allowed: this machine"),
        ({"Authorization": f"Bearer {TOKEN}", "Origin": "null"}, 403, "Origin: got 'null'"),
        ({"Authorization": f"Bearer {TOKEN}", "Origin": "http://127.0.0.1.evil.example"}, 403, "Origin: got"),
        ({"Authorization": f"Bearer {TOKEN}", "Host": "evil.example:8765"}, 403, "Host: got 'evil.example:8765'"),
        ({"Authorization": f"Bearer {TOKEN}", "Origin": "http://localhost:3000"}, 200, "reached"),
        ({"Authorization": f"Bearer {TOKEN}"}, 200, "reached"),
    ],
)  # fmt: skip
def test_a_request_without_the_token_or_from_a_foreign_page_is_refused_in_a_sentence(
    headers: dict[str, str], code: int, words: str
) -> None:
    async def main() -> httpx.Response:
        guarded = transports.Guard(PlainTextResponse("reached"), TOKEN)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(guarded), base_url="http://127.0.0.1:8765"
        ) as client:  # type: ignore[arg-type]
            return await client.post("/mcp", headers=headers)

    answer = anyio.run(main)
    assert answer.status_code == code
    assert words in answer.text


def test_an_address_that_is_none_foreign_or_in_use_is_refused_in_a_sentence() -> None:
    with transports.listening("127.0.0.1:0") as door:
        port = door.getsockname()[1]
        with pytest.raises(InputError, match=rf"--http: got '127.0.0.1:{port}', allowed: a port that no other program"):
            transports.listening(f"127.0.0.1:{port}")
    for address, cause in (("8765", "such as 127.0.0.1:8765"), ("0.0.0.0:8765", "SSH tunnel"), ("localhost:99999", "such as")):  # fmt: skip
        with pytest.raises(InputError, match=cause):
            transports.listening(address)


def test_the_token_is_the_persons_or_is_drawn_once_and_readable_by_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, where = transports.the_token(tmp_path)
    assert transports.the_token(tmp_path) == (drawn, where)
    assert Path(where).stat().st_mode & 0o077 == 0
    Path(where).write_text("")
    assert len(transports.the_token(tmp_path)[0]) > 40  # an empty one would let everybody in
    monkeypatch.setenv(transports.TOKEN, TOKEN)
    assert transports.the_token(tmp_path)[0] == TOKEN
    monkeypatch.setenv(transports.TOKEN, "short")
    with pytest.raises(InputError, match="SSM_MCP_TOKEN: got 5 characters, allowed: 16 or more"):
        transports.the_token(tmp_path)


def test_a_role_that_nobody_has_is_refused_by_the_command_and_by_llm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["mcp", "--agent", "State-Modelling", "--data-dir", str(tmp_path)],
        ["--goal", "beat LSTM on point-robot", "--llm", "mcp:State-Modelling", "--dry-run"],
    ):
        assert run_command(words) == 2
        assert "unknown agent 'State-Modelling'. Did you mean 'State-Modeling'?" in capsys.readouterr().err


def test_a_confirmations_scores_stay_hidden_until_its_verdict(tmp_path: Path) -> None:
    lab = crew_lab(tmp_path, 1)
    search_and_confirm(lab)

    def shown() -> set[Any]:
        rows = json.loads(str(resources.read(lab.ledger, "ssm-metarl://c-0001/rows").content))
        return {row["score"] for row in rows if row["purpose"] == "confirmation"}

    assert shown() == {None}
    status = driver_of(tmp_path).status(lab.number)
    assert (status.verdict, status.state, status.status) == (None, "not running", "paused")
    lab.judge()
    assert None not in shown()
    before = sorted(tmp_path.rglob("*"))
    assert lab.judge().outcome.upper() in str(resources.read(lab.ledger, "ssm-metarl://c-0001/report").content)
    assert sorted(tmp_path.rglob("*")) == before  # no page and no film: a client reads its text
    with pytest.raises(InputError, match="allowed: ssm-metarl://c-0001/ and one of rows, search-space, report"):
        resources.read(lab.ledger, "ssm-metarl://c-0001/evals")


@pytest.mark.slow
@pytest.mark.timeout(900)  # it trains a whole campaign, beside whatever else the machine does
def test_a_campaign_opened_by_a_client_outlives_its_server_and_a_kill_of_its_own_process(tmp_path: Path) -> None:
    answers: list[Any] = []

    async def begin() -> tuple[int, str]:
        async with over_stdio(tmp_path) as session:
            ask = asking(session)
            refused = await ask("open_campaign", goal="beat LSTM on point-robot", env_steps="1")
            while isinstance(refused, dict) and refused["state"] == "planning":
                refused = await ask("next_turn")
            assert "too small" in refused
            now = await ask("open_campaign", goal="beat LSTM on point-robot", env_steps="150k", seed=3)
            while now["state"] != "your turn":
                assert now["again_s"], now
                await anyio.sleep(0.5)
                now = await ask("next_turn")
            holder = Ledger(Paths.of(tmp_path).ledger_url, read_only=True).get_campaign(1).holder
            assert holder is not None
            return holder["pid"], now["campaign"]

    async def go_on() -> dict[str, Any]:
        async with over_stdio(tmp_path) as session:
            ask = asking(session)
            assert (await ask("next_turn"))["state"] == "your turn"  # which a new server finds
            os.kill(pid, signal.SIGKILL)
            while (now := await ask("next_turn"))["state"] != "not running":
                await anyio.sleep(0.2)
            assert "resume_campaign" in now["text"]
            await ask("resume_campaign", campaign=campaign)
            await play(ask, the_expert(ask, answers))
            return await ask("campaign_status")

    pid, campaign = anyio.run(begin)
    status = anyio.run(go_on)
    assert status["verdict"] in ("confirmed", "refuted", "inconclusive")
    assert "model.num_layers" in answers[0]["configuration"]
