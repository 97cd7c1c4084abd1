"""Let an assistant be the crew, or one of its agents, over MCP."""

from __future__ import annotations

import sys

from cli.options import LedgerOptions, Words
from cli.terminal import emit
from core.errors import InputError


def mcp(*, http: str | None = None, agent: Words = None, options: LedgerOptions = LedgerOptions()) -> None:
    """Serve MCP: an assistant (Claude, Cursor, VS Code, Codex ...) opens campaigns and takes the turns of the crew.

    Parameters
    ----------
    http
        Serve over HTTP at this address of this machine, such as 127.0.0.1:8765, behind a bearer token (default: standard input and output).
    agent
        Whom the assistant is, such as State-Modeling (default: every agent of the crew); the optimizer chooses for the others.
    """
    paths = options.paths()
    paths.ensure()
    from multi_agent.agents.agent import AGENTS
    from multi_agent.mcp.driver import Driver
    from multi_agent.mcp.transports import serve_http, serve_stdio

    agents = tuple(AGENTS[name].name for name in agent or ())
    words = [f"--data-dir={paths.data}"] if options.data_dir is not None else []
    words += [f"--ledger={options.ledger}"] if options.ledger is not None else []
    driver = Driver(options.ledger_url, paths, tuple(words), agents)
    if http is not None:
        serve_http(driver, http, lambda said: emit(said, to_error=True))
        return
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError(
            "mcp: a person is at the terminal, allowed: an MCP client that starts this command (docs/mcp.md), or --http 127.0.0.1:8765"
        )
    serve_stdio(driver)
