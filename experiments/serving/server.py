"""Where the pages are listened for: an address of this machine, which no other one reaches unless a secret is asked for."""

from __future__ import annotations

import errno
import ipaddress
import secrets
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import uvicorn

from core.errors import InputError, bad_value
from core.words.commands import command
from experiments.serving.guard import LOOPBACK, Guarded

FREE_PORT = 0


@dataclass(frozen=True)
class Listening:
    """A socket that listens, and the address to type."""

    socket: socket.socket
    address: str
    token: str
    host: str
    """As a browser writes it."""
    is_loopback: bool


def listen(host: str, port: int, *, with_token: bool) -> Listening:
    """Take the address. InputError for one that is taken, that is none of this machine's, or that others reach without a token."""
    if not 0 <= port <= 65535:
        raise bad_value("--port", port, "0 (any free one) to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError):
        raise bad_value("--host", host, "an address of this machine, such as 127.0.0.1") from None
    is_loopback = ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback
    if not is_loopback and not with_token:
        raise InputError(
            f"--host {host}: whoever reaches this machine over the network could read the ledger there; add --token, and only who has "
            f"the address that is printed can. Or stay on this machine (without --host), and from elsewhere: ssh -L 8000:127.0.0.1:{port}"
        )
    opened = socket.socket(family, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind(address)
        opened.listen(128)
    except OSError as error:
        opened.close()
        if error.errno == errno.EADDRINUSE:
            way = f"another program listens there; choose another, or any free one with: {command('serve', '--port', '0')}"
            raise InputError(f"--port {port}: {way}") from None
        if error.errno == errno.EACCES:
            raise InputError(f"--port {port}: only root may listen there, allowed: 1024 to 65535, or 0") from None
        raise InputError(f"--host {host}: cannot listen there ({error.strerror}), allowed: 127.0.0.1") from None
    taken, token = opened.getsockname()[1], secrets.token_urlsafe(24) if with_token else ""
    shown = f"[{host}]" if ":" in host else host
    query = f"?token={token}" if token else ""
    return Listening(opened, f"http://{shown}:{taken}/{query}", token, shown, is_loopback)


def serve_forever(
    site: Any, at: Listening, *, headers: Mapping[str, str], on_ready: Callable[[], None] = lambda: None
) -> None:
    """Answer requests until Ctrl-C or SIGTERM; what is being answered then is finished first, for a second at most."""
    hosts = tuple(dict.fromkeys((*LOOPBACK, at.host))) if at.is_loopback else ()
    guarded = Guarded(site, hosts=hosts, token=at.token, port=at.socket.getsockname()[1], headers=headers)
    settings: dict[str, Any] = {
        "log_level": "error",
        "access_log": False,
        "lifespan": "off",
        "ws": "none",
        "http": "h11",
    }
    server = uvicorn.Server(
        uvicorn.Config(guarded, server_header=False, proxy_headers=False, timeout_graceful_shutdown=1, **settings)
    )
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        on_ready()
        with suppress(KeyboardInterrupt):  # which the server passes on when it has ended
            server.run(sockets=[at.socket])
    finally:
        signal.signal(signal.SIGTERM, before)
        at.socket.close()
