"""One call of a chat model: never longer than its deadline, also where bytes drip, and counted whatever the server says.

Imports neither crewai nor LangChain; the crew, `ask`, the translation of goals and the preflight call models through it.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from core.words.text import storable

T = TypeVar("T")
CALL_S = 120.0  # of one call, the client's own retries included
POLL_S = 0.1
MODEL_SHARE = 0.1
"""Of the wall time that a campaign's runs get, its chat model gets as much again beside it: a slow one costs no run anything."""
_CHARACTERS_A_TOKEN = 3  # fewer than tokenizers make of English and JSON, so that caps hold
_MOST_CHARACTERS_A_TOKEN = 5  # a server that counts fewer tokens than this gives is not believed


class NoAnswerError(RuntimeError):
    """The chat model gave no answer. Its text is the provider's, or says what the deadline was."""


class ContextError(RuntimeError):
    """A prompt is too long for the model, shortened as it is."""


_TOO_LONG = re.compile(
    r"context.{0,24}(?:length|window|size|limit)|too many (?:input )?tokens|(?:input|prompt) (?:is|was) too long"
    r"|input token count|exceeds? .{0,30}(?:context|token limit)",
    re.IGNORECASE,
)


def is_too_long(problem: str) -> bool:
    """Whether a server's words say that prompt and answer do not fit into the model's context; a limit of tokens a minute is none."""
    return bool(_TOO_LONG.search(problem)) and not re.search(r"(?i)\brate\b|per (?:min|day)|\bwait|throttl", problem)


def in_time(work: Callable[[], T], waiting: Callable[[], None]) -> T:
    """The answer that `work` gets, run in a thread that is abandoned when `waiting`, called all the time, raises.

    It comes as it can be kept and sent back (`usable`). Raises NoAnswerError with the words of whatever `work` raised.
    """
    done = threading.Event()
    box: dict[str, Any] = {}

    def run() -> None:
        try:
            box["value"] = usable(work())
        except Exception as error:
            # The text alone: CrewAI searches error chains for status codes too.
            box["error"] = f"{type(error).__name__}: {error}"
        finally:
            done.set()

    threading.Thread(target=run, daemon=True, name="chat model").start()
    while not done.wait(POLL_S):
        waiting()
    if "error" in box:
        raise NoAnswerError(box["error"])
    return box["value"]


def usable(answer: Any) -> Any:
    """LangChain's AIMessage without lone surrogates, which neither a database nor the next request takes.

    Where a server put all that was said into the thinking, and neither words nor calls beside it, that is the answer.
    """
    fields = ("content", "tool_calls", "invalid_tool_calls", "additional_kwargs")
    answer = answer.model_copy(update={name: _storable(getattr(answer, name)) for name in fields})
    thought = answer.additional_kwargs.get("reasoning_content")
    if isinstance(thought, str) and not (answer.text.strip() or answer.tool_calls or answer.invalid_tool_calls):
        return answer.model_copy(update={"content": thought.rpartition("</think>")[2].strip()})
    return answer


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {_storable(name): _storable(item) for name, item in value.items()}
    return [_storable(item) for item in value] if isinstance(value, list) else value


def within(seconds: float, work: Callable[[Any], T], sent: Any) -> T:
    """The result of `work(sent)` in at most so many seconds of wall-clock time. Raises NoAnswerError."""
    end = time.monotonic() + seconds

    def waiting() -> None:
        if time.monotonic() > end:
            raise NoAnswerError(f"no whole answer within {seconds:.0f} s")

    return in_time(lambda: work(sent), waiting)


def estimated_tokens(*parts: Any) -> int:
    """An upper estimate of the tokens of texts, messages and schemas."""
    return _characters(parts) // _CHARACTERS_A_TOKEN + 1


def used_tokens(answer: Any, *sent: Any) -> tuple[int, int]:
    """Tokens in and out of an answered call: the server's count, and at least what the text itself makes.

    answer: LangChain's AIMessage. sent: messages and tool schemas. Where the server counts nothing, the upper estimate.
    """
    usage = answer.usage_metadata or {}
    written = [answer.text, [c["args"] for c in (*answer.tool_calls, *answer.invalid_tool_calls)]]
    return _counted(usage.get("input_tokens"), sent), _counted(usage.get("output_tokens"), written)


def _counted(said: Any, parts: Sequence[Any]) -> int:
    if not isinstance(said, int) or said <= 0:
        return estimated_tokens(*parts)
    return max(said, _characters(parts) // _MOST_CHARACTERS_A_TOKEN)


def _characters(parts: Sequence[Any]) -> int:
    return sum(
        len(part if isinstance(part, str) else json.dumps(part, default=str, ensure_ascii=False)) for part in parts
    )
