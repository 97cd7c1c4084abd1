"""A loopback server that speaks OpenAI's chat protocol and answers from a script."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from multi_agent.llm.choose import LLMChoice

Reply = tuple[int, dict[str, Any]]  # HTTP status, and a message (200) or an error body
Brain = Callable[[dict[str, Any]], Reply]


def say(text: str) -> Reply:
    """A plain answer."""
    return 200, {"role": "assistant", "content": text}


def call(*calls: tuple[str, Any]) -> Reply:
    """Tool calls: (name, arguments), arguments as an object or as the raw string."""
    tool_calls = [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": name, "arguments": raw if isinstance(raw, str) else json.dumps(raw)},
        }
        for number, (name, raw) in enumerate(calls)
    ]
    return 200, {"role": "assistant", "content": None, "tool_calls": tool_calls}


def fail(status: int, message: str) -> Reply:
    """An HTTP error as OpenAI's servers shape it."""
    return status, {"error": {"message": message, "type": "error", "code": None}}


def turn_of(request: dict[str, Any]) -> dict[str, Any]:
    """The `Turn:` line of the newest prompt."""
    for message in reversed(request["messages"]):
        if message["role"] == "user" and "Turn: " in str(message["content"]):
            return json.loads(message["content"].split("Turn: ", 1)[1].split("\n", 1)[0])
    raise AssertionError("a request without a turn")


def results_of(request: dict[str, Any]) -> list[str]:
    """The tool results of the conversation."""
    return [m["content"] for m in request["messages"] if m["role"] == "tool"]


Usage = Callable[[dict[str, Any], dict[str, Any]], "dict[str, int] | None"]


def honest_usage(request: dict[str, Any], message: dict[str, Any]) -> dict[str, int]:
    """A quarter of the characters, which is what tokenizers make of English."""
    read, wrote = len(json.dumps(request)) // 4, len(json.dumps(message)) // 4
    return {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}


HANG: Reply = (-1, {})
"""No byte comes."""
DRIP: Reply = (-2, {})
"""A space comes now and then, before a JSON text that never begins."""


class ModelServer:
    """Answers each request with `brain`, and keeps the requests."""

    def __init__(self, brain: Brain, usage: Usage = honest_usage) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.tokens = 0
        """As it counts them."""
        self.over = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.requests.append(request)
                outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                status, body = brain(request)
                if status < 0:
                    self._never(drips=status == DRIP[0])
                    return
                if status == 200 and request.get("stream"):
                    self._stream(body)
                    return
                if status == 200:
                    counted = usage(request, body)
                    outer.tokens += (counted or {}).get("total_tokens", 0)
                    body = dict(body)
                    kind = body.pop("finish_reason", "tool_calls" if body.get("tool_calls") else "stop")
                    body = {
                        "id": "x",
                        "object": "chat.completion",
                        "created": 0,
                        "model": "scripted",
                        "choices": [{"index": 0, "message": body, "finish_reason": kind}],
                    } | ({} if counted is None else {"usage": counted})
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _never(self, *, drips: bool) -> None:
                self.close_connection = True
                if drips:
                    self.send_response(200)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", "1000000")
                    self.end_headers()
                while not outer.over.wait(0.05):
                    if drips:
                        self.wfile.write(b" ")
                        self.wfile.flush()

            def _stream(self, message: dict[str, Any]) -> None:
                calls = [{"index": i, **c} for i, c in enumerate(message.get("tool_calls") or [])]
                deltas = [
                    {"role": "assistant", "content": piece} for piece in (message.get("content") or "").split(" ")
                ]
                deltas = [{"tool_calls": [c]} for c in calls] if calls else deltas
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("connection", "close")
                self.end_headers()
                for delta in deltas:
                    chunk = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "scripted"}
                    chunk["choices"] = [{"index": 0, "delta": delta, "finish_reason": None}]  # type: ignore[assignment]
                    self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
                self.wfile.write(b"data: [DONE]\n\n")
                self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                """Silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]  # clients that left
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    @contextmanager
    def running(self) -> Iterator[ModelServer]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.over.set()
            self._server.shutdown()
            self._server.server_close()

    def choice(self, **options: Any) -> LLMChoice:
        """The crew's model behind this server, without retries unless told."""

        def make_chat() -> Any:
            from langchain.chat_models import init_chat_model

            defaults = {"base_url": self.url, "api_key": "not-needed", "max_retries": 0, "timeout": 20}
            return init_chat_model("openai:scripted", **(defaults | options))

        return LLMChoice("openai:scripted", "langchain", make_chat)
