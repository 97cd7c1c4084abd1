"""Serve: an assistant that is the crew or one of its agents, over MCP; the ledger to a browser, a campaign's search in Optuna's dashboard."""

from __future__ import annotations

import sys

from cli.options import Flag, LedgerOptions, Words
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
    driver = Driver(options.ledger_url, paths, options.words(), agents)
    if http is not None:
        serve_http(driver, http, lambda said: emit(said, to_error=True))
        return
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError(
            "mcp: a person is at the terminal, allowed: an MCP client that starts this command (docs/mcp.md), or --http 127.0.0.1:8765"
        )
    serve_stdio(driver)


def serve(
    *,
    port: int = 8000,
    host: str = "127.0.0.1",
    token: Flag = False,
    search: str | None = None,
    dry_run: Flag = False,
    options: LedgerOptions = LedgerOptions(),
) -> None:
    """Show the ledger as pages in a browser: campaigns as they run, runs, comparisons, claims and verdicts. Nothing can be changed there.

    Parameters
    ----------
    port
        Where to listen; 0 is any free one.
    host
        An address of this machine; one that others reach needs --token.
    token
        Ask for a secret, new with every start, which stands in the address that is printed.
    search
        A campaign, such as c-0001: its trials in Optuna's own dashboard, in place of the pages.
    dry_run
        Open the ledger, take the address, and stop.
    """
    options.paths()
    ledger = options.read()
    from experiments.serving.guard import OTHERS, OWN
    from experiments.serving.server import listen, serve_forever

    if search is None:
        from experiments.serving.site import make_site

        at = listen(host, port, with_token=token)
        site, headers, what = make_site(ledger), OWN, ledger.place
    else:
        from experiments.serving.studies import dashboard

        number = ledger.resolve(search, "campaign")
        site, headers = dashboard(ledger, number), OTHERS
        at, what = listen(host, port, with_token=token), f"A copy of the search of c-{number:04d} in {ledger.place}"
    output = options.output
    shown = {"address": at.address, "ledger": ledger.place, "read_only": True}
    if dry_run:
        at.socket.close()
        output.result(shown, f"{what} can be served at {at.address}", "Dry run: nothing was started.")
        return

    def ready() -> None:
        output.result(shown, at.address if output.quiet else words)
        sys.stdout.flush()  # a pipe is to have the address now

    words = f"{what} is at {at.address} (nothing there changes the ledger). Ctrl-C ends it."
    serve_forever(site, at, headers=headers, on_ready=ready)


def push(
    model: str,
    /,
    *,
    to: str,
    private: Flag = False,
    dry_run: Flag = False,
    options: LedgerOptions = LedgerOptions(),
) -> None:
    """Push a kept model to the Hugging Face Hub with a card of what was measured; the token is that of HF_TOKEN or of `hf auth login`.

    Parameters
    ----------
    model
        A run such as r-0042 or @best, or a folder of saved_models.
    to
        The repository there, such as someone/s5-halfcheetah-vel; it is made where there is none.
    private
        Make it a private one.
    dry_run
        Write the folder that would be pushed, and stop.
    """
    paths = options.paths()
    ledger = options.read_if_there()
    from experiments.serving.hub import FILES, push_folder, write_folder

    folder = write_folder(ledger, paths, model, to, paths.data / "exports" / "hub" / to.replace("/", "--"))
    if dry_run:
        options.output.done({"folder": str(folder), "files": ", ".join(FILES), "pushed": "nothing (dry run)"})
        return
    options.output.done({"folder": str(folder), "pushed": push_folder(folder, to, private=private)})
