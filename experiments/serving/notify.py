"""One message to a webhook where a person is wanted: at the verdict, at a failure, and where a campaign waits for somebody.

Slack and Discord get the shape that they show, any other address plain JSON. No key, prompt or model's words are in it, nor a path of this
machine. A hook that fails or is slow costs one line and `TIME_LIMIT_S`, and never the campaign. The address is a secret (who has it may
post there): it is kept in no row and shown by its host alone.
"""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import urlsplit

from core.errors import InputError
from core.words.text import plain, without_password
from experiments.judging.judge import VerdictContent

TIME_LIMIT_S = 5.0
LONGEST = 1800  # characters; Discord takes 2000
Why = Literal["verdict", "failed", "waiting"]


class _Stay(urllib.request.HTTPRedirectHandler):
    """A message goes to the address that was given and to no other."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        return None


def check_address(url: str) -> str:
    """The host of a webhook's address. InputError, which does not repeat the address, for anything else."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        raise InputError("--notify: got what is no web address, allowed: such as https://hooks.slack.com/services/... or http://127.0.0.1:9000/")  # fmt: skip
    return host


def in_words(why: Why, campaign: str, goal: str, verdict: VerdictContent | None = None) -> str:
    """What a person reads of it."""
    goal = plain(without_password(goal))
    if why == "waiting":
        return f"{campaign} ({goal}) waits for a person: approve {campaign}, or refuse with --deny REASON"
    if why == "failed" or verdict is None:
        return f"{campaign} ({goal}) failed; nothing that was measured is lost: status, then resume {campaign}"
    text = f"{campaign} ({goal}): {verdict.outcome}, {verdict.reason}"
    if verdict.effect is not None and verdict.interval is not None:
        text += (
            f"; effect {verdict.effect:+.3g}, 95 % interval [{verdict.interval[0]:+.3g}, {verdict.interval[1]:+.3g}]"
        )
    return plain(text)


def payload(url: str, why: Why, campaign: str, goal: str, verdict: VerdictContent | None = None) -> dict[str, Any]:
    """The JSON for the host of an address."""
    host, text = check_address(url), in_words(why, campaign, goal, verdict)[:LONGEST]
    if host == "hooks.slack.com":  # which would obey <!channel>
        return {"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}
    if host in ("discord.com", "discordapp.com") or host.endswith(".discord.com"):
        return {"content": text, "allowed_mentions": {"parse": []}}
    told: dict[str, Any] = {"event": why, "campaign": campaign, "goal": plain(without_password(goal)), "text": text}
    if verdict is not None:
        told |= {"outcome": verdict.outcome, "effect": verdict.effect, "interval": verdict.interval}
    return told


class Hook:
    """A webhook, or none. say: takes the one line about a message that did not arrive."""

    def __init__(self, url: str | None, say: Callable[[str], None]) -> None:
        self.url, self.say = url, say

    def post(self, why: Why, campaign: str, goal: str, verdict: VerdictContent | None = None) -> None:
        """Send one message, and wait no longer than `TIME_LIMIT_S` for it. Raises nothing."""
        if self.url is None:
            return
        url, answered = self.url, [f"no answer in {TIME_LIMIT_S:g} seconds"]
        body = json.dumps(payload(url, why, campaign, goal, verdict)).encode()
        thread = threading.Thread(target=lambda: answered.append(_send(url, body)), daemon=True)  # bytes may drip
        thread.start()
        thread.join(TIME_LIMIT_S)
        if answered[-1]:
            self.say(f"--notify: {check_address(url)} did not take the message ({answered[-1]}). The campaign is not concerned.")  # fmt: skip


def _send(url: str, body: bytes) -> str:
    """Why the message was not taken; empty where it was."""
    request = urllib.request.Request(url, body, {"content-type": "application/json", "user-agent": "ssm-metarl"})
    try:
        with urllib.request.build_opener(_Stay).open(request, timeout=TIME_LIMIT_S):
            return ""
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}"
    except Exception as error:  # whatever it is, it is the hook's and not the campaign's
        return type(getattr(error, "reason", error)).__name__
