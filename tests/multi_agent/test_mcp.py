"""An MCP client as the crew, over both transports: it is briefed, proposes, is credited, and code alone gives the verdict."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from crew_on_script import alone, crew_lab, idea
from lab_on_script import ssm_leads
from mcp import ClientSession, StdioServerParameters, types
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

from experiments.campaign.lab import Lab
from experiments.campaign.proposing.ideas import measured
from experiments.ledger.models import Proposal
from experiments.runs.executor import Job
from experiments.runs.paths import Paths
from multi_agent.llm.choose import choose_llm
from multi_agent.mcp import mailbox, server, transports
from multi_agent.mcp.driver import Driver
from multi_agent.tools.ledger_tool import PROPOSE
from multi_agent.workflows.research_workflow import run_research

TOKEN = "a-token-of-this-test"
STACK = {"model.num_layers": 1}
Ask = Callable[..., Awaitable[Any]]


def prefers_one_layer(job: Job) -> float:
    """A landscape on which the challenger's stack of one layer is better by 5 than any other."""
    better = job.spec.policy.model.num_layers == 1 and job.spec.policy.model.kind != "lstm"
    return ssm_leads(job) + 5.0 * better


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "POLL_S", 0.01)
    monkeypatch.setattr(server, "LOOK_S", 0.02)


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


def asking(session: ClientSession) -> Ask:
    """A tool's data, or the words that refuse it."""

    async def ask(tool: str, **arguments: Any) -> Any:
        result = await session.call_tool(tool, arguments)
        text = result.content[0]
        assert isinstance(text, types.TextContent)
        return text.text if result.isError else result.structuredContent

    return ask


@asynccontextmanager
async def over_stdio(
    folder: Path, *words: str, code: str | None = None, **options: Any
) -> AsyncIterator[ClientSession]:
    """A client of a server in a process of its own."""
    program = code or "import sys; from cli.start import main; sys.exit(main())"
    arguments = ["-c", program, "mcp", f"--data-dir={folder}", *words]
    parameters = StdioServerParameters(command=sys.executable, args=arguments, env=alone())
    async with stdio_client(parameters) as streams, ClientSession(*streams, **options) as session:
        await session.initialize()
        yield session


@contextmanager
def served(driver: Driver) -> Iterator[str]:
    """The address of a server over HTTP in a thread of this process."""
    import uvicorn

    door = transports.listening("127.0.0.1:0")
    config = uvicorn.Config(transports.http_app(driver, TOKEN), log_level="error", timeout_graceful_shutdown=1)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(running.serve([door])), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{door.getsockname()[1]}/mcp"
    running.should_exit = True
    thread.join(10)


@asynccontextmanager
async def over_http(url: str, **options: Any) -> AsyncIterator[ClientSession]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        httpx.AsyncClient(headers=headers, timeout=30) as client,
        streamable_http_client(url, http_client=client) as (read, write, _),
        ClientSession(read, write, **options) as session,
    ):
        await session.initialize()
        yield session


def driver_of(folder: Path, *agents: str) -> Driver:
    paths = Paths.of(folder)
    return Driver(paths.ledger_url, paths, (), agents)


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
            await anyio.sleep(0.02)


def the_expert(ask: Ask, answers: list[Any]) -> Callable[[dict[str, Any]], Awaitable[str]]:
    """Knows the better stack, as State-Modeling, and leaves all else to the optimizer."""

    async def act(turn: dict[str, Any]) -> str:
        if turn["kind"] == "propose" and turn["agent"] == "State-Modeling":
            mine = idea("challenger", STACK, base="incumbent", expected_delta=90.0, low=50.0, high=200.0)
            answers.append(await ask("propose", **mine))
            answers.append(await ask("propose", **idea("baseline", {}, expected_delta=0.0)))
        return "Nothing to add." if turn["kind"] != "report" else "It is confirmed."

    return act


def test_an_assistant_over_stdio_finds_the_better_stack_is_credited_and_the_verdict_follows(tmp_path: Path) -> None:
    lab = crew_lab(tmp_path, 3, score=prefers_one_layer, trials_at_once=2, suggesting=2)
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
    assert lab.is_judged()
    assert loaded.read_text() == "none"  # of crewai and langchain, in the server's process
