"""How clients reach the server: standard input and output, or HTTP on this machine behind a token."""

from __future__ import annotations

import errno
import hmac
import logging
import os
import re
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from core.errors import InputError, bad_value
from multi_agent.mcp.driver import Driver
from multi_agent.mcp.server import CrewServer

TOKEN = "SSM_MCP_TOKEN"
"""Environment variable of the token; where it is not set, one is drawn and kept in the data folder."""
SHORTEST_TOKEN = 16
HERE = ("127.0.0.1", "localhost", "::1")
PATH = "/mcp"


def serve_stdio(driver: Driver) -> None:
    """Serve the one client that started this process, until it closes standard input."""
    served = _quiet(driver)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a thread waits for input, and there is nothing to save here
    # What a library prints would stand between two messages: the client alone gets standard output.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)

        async def run() -> None:
            async with stdio_server(stdout=anyio.wrap_file(answers)) as (read, write):
                await served.run(read, write, served.create_initialization_options())

        anyio.run(run)


def _quiet(driver: Driver) -> Server[Any, Any]:
    """The server, whose library says nothing of clients that are gone or send what is no message: those get an answer."""
    logging.getLogger("mcp").setLevel(logging.CRITICAL)
    return CrewServer(driver).server


def serve_http(driver: Driver, address: str, say: Callable[[str], None]) -> None:
    """Serve clients of this machine at `address`, until Ctrl-C. InputError for an address that is none, foreign or in use."""
    import uvicorn

    with listening(address) as door:
        host, port = door.getsockname()[:2]
        shown = f"http://{f'[{host}]' if ':' in host else host}:{port}{PATH}"
        token, where = the_token(driver.paths.data)
        app = http_app(driver, token)
        say(
            f"Serving MCP at {shown}; each request needs the header Authorization: Bearer TOKEN, whose token is in {where}."
        )
        config = uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=2)
        anyio.run(lambda: uvicorn.Server(config).serve([door]))


def listening(address: str) -> socket.socket:
    """A socket that listens on an address of this machine."""
    found = re.fullmatch(r"\[?([\w.:-]+?)\]?:(\d{1,5})", address)
    allowed = "an address of this machine with a port, such as 127.0.0.1:8765"
    if found is None or int(found[2]) > 65_535:
        raise bad_value("--http", address, allowed)
    host, port = found[1], int(found[2])
    if host not in HERE:
        raise bad_value("--http", address, f"{allowed}; from elsewhere it is reached through an SSH tunnel")
    door = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((host, port))
        door.listen()
    except OSError as error:
        door.close()
        if error.errno == errno.EADDRINUSE:
            raise bad_value(
                "--http", address, f"a port that no other program uses, such as {host}:{port + 1}"
            ) from None
        raise InputError(f"--http: cannot listen on {address} ({error.strerror}), allowed: {allowed}") from None
    return door


def the_token(data: Path) -> tuple[str, str]:
    """The token that clients need, and where it is. InputError for one that could be guessed."""
    token = os.environ.get(TOKEN, "").strip()
    if token:
        if len(token) < SHORTEST_TOKEN:
            raise InputError(f"{TOKEN}: got {len(token)} characters, allowed: {SHORTEST_TOKEN} or more")
        return token, f"the environment variable {TOKEN}"
    file = data / "mcp" / "token"
    token = file.read_text().strip() if file.is_file() else ""
    if len(token) < SHORTEST_TOKEN:  # none yet, or what a full disk left of one
        token, new = secrets.token_urlsafe(32), file.with_suffix(".new")
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(new, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as kept:
            kept.write(token)
        new.replace(file)
    return token, str(file)


def http_app(driver: Driver, token: str) -> ASGIApp:
    """The server as an ASGI application at `PATH`, behind `Guard`."""
    manager = StreamableHTTPSessionManager(_quiet(driver))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with manager.run():
            yield

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await manager.handle_request(scope, receive, send)

    return Guard(Starlette(routes=[Mount(PATH, app=answer)], lifespan=lifespan), token)


class Guard:
    """Lets through who has the token and comes from no foreign page: a browser's request names the page as its Origin, and one
    that was led here by a foreign name has that name as its Host."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            refusal = self._refusal(Headers(scope=scope))
            if refusal is not None:
                code, words = refusal
                headers = {"WWW-Authenticate": "Bearer"} if code == 401 else None
                await JSONResponse({"error": words}, code, headers)(scope, receive, send)
                return
            if scope["path"] == PATH:  # a mount answers with a redirect, which some clients do not follow
                scope = {**scope, "path": f"{PATH}/", "raw_path": f"{PATH}/".encode()}
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> tuple[int, str] | None:
        for name, url in (("Origin", headers.get("origin")), ("Host", f"//{headers.get('host', '')}")):
            if url is not None and _host(url) not in HERE:
                shown = url.removeprefix("//")
                return 403, f"{name}: got {shown!r}, allowed: this machine, such as http://127.0.0.1"
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token.encode()):
            return (
                401,
                f"the bearer token is {'wrong' if given else 'missing'}: the server said at its start where it is",
            )
        return None


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
