"""One small call before anything is spent: is somebody at the address, with this key and model, and what can it do?

What is found sets how the crew works with the model: with tools or in text, with which limit of an answer; it is said once.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from core.errors import InputError, unknown_name
from multi_agent.llm.calls import NoAnswerError, is_too_long, used_tokens, within
from multi_agent.llm.choose import MAX_OUTPUT_TOKENS, LLMChoice, ollama_chat_models, redact
from multi_agent.llm.meter import BudgetSpentError, Meter

PREFLIGHT_S = 60.0  # a local model is loaded within it
PROMPT_TOKENS = 3_000  # of the shortest prompts that the crew sends
SHORTER = (4_096, 2_048)  # limits of an answer, tried where a server refuses the usual one
TOOL = {
    "type": "function",
    "function": {
        "name": "ready",
        "description": "Say that you are ready.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    },
}
PROMPT = "Call the tool ready with the word yes. Say nothing else."
_TOOLS = re.compile(r"\btools?\b|function.?call|tool_choice", re.IGNORECASE)
_LIMIT = re.compile(r"max_(?:completion_|output_)?tokens|output tokens|num_predict", re.IGNORECASE)
_LIMIT_FIELDS = ("max_tokens", "max_output_tokens", "num_predict")  # as LangChain's classes call it


@dataclass(frozen=True)
class Mode:
    """A way to use a model."""

    tools: bool = True
    """Whether it calls tools itself; else it writes in text which one it wants."""
    limit: int = MAX_OUTPUT_TOKENS
    """Most tokens of one answer."""
    plain_limit: bool = False
    """Whether its server knows `max_tokens` alone, not OpenAI's newer name of it."""

    def build(self, make_chat: Callable[[], Any]) -> Any:
        """The chat model in this mode."""
        chat = make_chat()
        for name in _LIMIT_FIELDS:
            if getattr(chat, name, None) is not None and self.limit < getattr(chat, name):
                setattr(chat, name, self.limit)
        if self.plain_limit and getattr(chat, "max_tokens", None) is not None:
            chat.extra_body = {**(chat.extra_body or {}), "max_tokens": chat.max_tokens}
            chat.max_tokens = None
        return chat


def preflight(choice: LLMChoice, meter: Meter, *, seconds: float = PREFLIGHT_S) -> tuple[LLMChoice, str]:
    """The choice as the crew can use it, and what was found in a sentence; unchanged and "" where there is no chat model.

    meter: with the caps; what the call takes is counted. Raises InputError, in one sentence, for a cap that is too small for
    one call of the crew, before anything is sent, and for a model that gives no answer.
    """
    if choice.make_chat is None:
        return choice, ""
    try:
        meter.check(PROMPT_TOKENS)
    except BudgetSpentError as spent:
        raise InputError(
            f"{spent}: one call of the crew takes {PROMPT_TOKENS:,} tokens of prompt and up to {MAX_OUTPUT_TOKENS:,} of answer. "
            "Allow more, or use no model: --llm offline"
        ) from None
    make_chat, end, refused = choice.make_chat, time.monotonic() + seconds, ""
    first = Mode(tools=choice.tools)
    modes = [first]
    for mode in modes:
        began = time.monotonic()
        try:
            chat = mode.build(make_chat)
            model = chat.bind_tools([TOOL]) if mode.tools else chat
            answer = within(max(end - began, 0.0), model.invoke, [("human", PROMPT)])
        except Exception as error:  # whatever the client or its server did
            problem = str(error) if isinstance(error, NoAnswerError) else f"{type(error).__name__}: {error}"
            refused = refused or problem
            if (_LIMIT.search(problem) or is_too_long(problem)) and mode == first:
                modes += [Mode(plain_limit=True), *(Mode(limit=limit) for limit in SHORTER)]
            elif _TOOLS.search(problem) and mode.tools:
                modes.append(replace(mode, tools=False))
            continue
        meter.add(*used_tokens(answer, PROMPT, TOOL))
        mode = replace(mode, tools=mode.tools and bool(answer.tool_calls))
        found = replace(choice, make_chat=partial(mode.build, make_chat), tools=mode.tools)
        return found, _in_words(mode, bool(answer.usage_metadata), time.monotonic() - began)
    why = redact(" ".join(refused.split()))[:300].rstrip(".")
    if "404" in refused and choice.base_url and not choice.base_url.rstrip("/").endswith("/v1"):
        why += ". Addresses of such servers mostly end in /v1"
    provider, _, model = choice.name.partition(":")
    chatting = ollama_chat_models(choice.base_url) if provider == "ollama" else []
    if chatting and model not in chatting:
        hint = f"{choice.name} gives no answer ({why}). Take one of these, or none: --llm offline"
        raise unknown_name("chat model of this Ollama", model, chatting, hint=hint)
    raise InputError(f"{choice.name} gives no answer ({why}). Check address, key and model, or use none: --llm offline")


def _in_words(mode: Mode, counts: bool, seconds: float) -> str:
    found = [f"The model answered in {seconds:.1f} s"]
    if not mode.tools:
        found.append("it calls no tools, so it is asked in text")
    if mode.limit < MAX_OUTPUT_TOKENS:
        found.append(f"an answer has at most {mode.limit:,} tokens")
    if mode.plain_limit:
        found.append("it knows max_tokens alone")
    if not counts:
        found.append("it counts no tokens, so they are estimated from the text")
    return "; ".join(found) + "."
