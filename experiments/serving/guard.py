"""Who may see what is served: the Host header and the token of every request are looked at before anything else.

A page in another tab that has given its own name this machine's address (DNS rebinding) is known by its Host header, and refused.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from core.words.text import harmless

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
OTHERS = {
    "content-security-policy": "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
"""Headers for an application of somebody else, which may need scripts of its own kind."""
OWN = OTHERS | {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
}
"""Headers for our pages: this server's own style sheet, script and pictures, and nothing else."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Guarded:
    """An application behind the check of the Host header and of the token, with headers on every answer of it.

    hosts: names that a request may have come for, all where empty. token: what a request has to know, nothing where empty. port: tells
    this server's cookie from that of another one on this machine.
    """

    def __init__(
        self,
        site: Callable[[Scope, Receive, Send], Awaitable[None]],
        *,
        hosts: Sequence[str],
        token: str,
        port: int,
        headers: Mapping[str, str] = OWN,
    ) -> None:
        self.site, self.hosts, self.token, self.cookie = site, [name.lower() for name in hosts], token, f"serve-{port}"
        self.headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                kept = [
                    (name, value) for name, value in message["headers"] if name.decode().lower() not in self.headers
                ]
                message["headers"] = kept + [(name.encode(), value.encode()) for name, value in self.headers.items()]
            await send(message)

        if scope["type"] != "http":
            return
        answer: Callable[..., Awaitable[None]] = self._refused(Request(scope)) or self.site
        await answer(scope, receive, send_with_headers)

    def _refused(self, request: Request) -> Response | None:
        """What is answered in place of a page; None where the request may see it."""
        host = re.sub(r":\d*$", "", request.headers.get("host", "")).lower()
        if self.hosts and host not in self.hosts:
            return PlainTextResponse(f"This page is for {', '.join(self.hosts)}, not for {harmless(host)!r}.\n", 421)
        if not self.token:
            return None
        given = request.query_params.get("token")
        if given is not None and self._is_token(given):  # once in the address, from then on in a cookie
            rest = urlencode([pair for pair in parse_qsl(request.url.query) if pair[0] != "token"])
            moved = RedirectResponse(_same_place(request.url.path) + (f"?{rest}" if rest else ""), 303)
            moved.set_cookie(self.cookie, self.token, httponly=True, samesite="strict")
            return moved
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        if self._is_token(request.cookies.get(self.cookie, "")) or (scheme.lower() == "bearer" and self._is_token(bearer)):  # fmt: skip
            return None
        return PlainTextResponse("Open the address that `serve` printed, with its token.\n", 401, {"www-authenticate": "Bearer"})  # fmt: skip

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.token.encode())


def _same_place(path: str) -> str:
    """A path on this server: two slashes at its start would name another one."""
    return "/" + path.lstrip("/\\")
