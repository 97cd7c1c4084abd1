"""Clients of the MCP server, over both transports, as tests drive them."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
from crew_on_script import alone
from mcp import ClientSession, StdioServerParameters, types
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

from experiments.runs.paths import Paths
from multi_agent.mcp import transports
from multi_agent.mcp.driver import Driver

TOKEN = "a-token-of-this-test"
Ask = Callable[..., Awaitable[Any]]


def asking(session: ClientSession) -> Ask:
    """A tool's data, or the words that refuse it."""

    async def ask(tool: str, *, again: bool = True, **arguments: Any) -> Any:
        while True:
            result = await session.call_tool(tool, arguments)
            text = result.content[0]
            assert isinstance(text, types.TextContent)
            if result.isError:
                return text.text
            assert result.structuredContent is not None
            if not again or "running" not in result.structuredContent:
                return result.structuredContent

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


def wait_until(fact: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.02)
