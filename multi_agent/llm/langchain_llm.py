"""LangChainLLM: CrewAI agents driven by any LangChain chat model with native tool calls.

CrewAI runs the tools itself; this class only translates one call: messages and tool schemas in, text or a list of tool
calls out. Around each call an observer may refuse it (budget, pause) and gets the record of it (for the ledger).
Importing this module imports crewai (about 5 s): import it inside functions.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from crewai.llms.base_llm import BaseLLM, llm_call_context
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage, convert_to_messages
from pydantic import Field, PrivateAttr

from multi_agent.llm.calls import ContextError, NoAnswerError, estimated_tokens, in_time, is_too_long, used_tokens

# CrewAI tries a call again, up to three times, where an error has one of these words in it. The vendor's client has
# done its retries by then.
_RATE_LIMIT_WORDS = re.compile(r"rate[- ]limit|too many requests|throttled|resource exhausted", re.IGNORECASE)

_LONGEST, _HEAD, _TAIL = 2_000, 1_500, 400  # characters of a message once the model's context was found to be short


class ModelError(RuntimeError):
    """The chat model could not answer. Its text is the provider's; its type tells CrewAI not to retry."""


@dataclass(frozen=True)
class ModelCall:
    """One call of a chat model, as it goes into the ledger."""

    prompt_hash: str  # sha256 of all messages and tool names sent
    messages: list[dict[str, Any]]  # those that this agent's previous call did not hold yet
    text: str
    tool_calls: list[dict[str, Any]]  # {"name", "arguments"}; arguments are the raw string where it was no JSON object
    input_tokens: int
    output_tokens: int
    latency_s: float
    error: str | None = None


class CallObserver(Protocol):
    """What surrounds a call. Each method may raise to stop the agent."""

    def closing(self) -> str:
        """The words that end the turn without a call of the model, or "" where it is to be asked."""
        ...

    def before(self, prompt_tokens: int) -> None:
        """Before the call, with an upper estimate of its prompt's tokens."""

    def waiting(self, seconds: float) -> None:
        """Again and again while the model thinks, with how long it has. NoAnswerError ends the call alone."""

    def after(self, call: ModelCall) -> None:
        """After the call, failed or not."""


class LangChainLLM(BaseLLM):
    """CrewAI's model interface over a LangChain chat model."""

    llm_type: Literal["langchain"] = "langchain"  # pyright: ignore[reportIncompatibleVariableOverride]
    chat: Any = Field(exclude=True, repr=False)
    observer: Any = Field(exclude=True, repr=False)  # CallObserver
    context_window: int = 128_000
    costs: bool = True  # False for a fixed procedure and for recorded answers: their tokens are as they say
    tools: bool = True  # False: CrewAI writes the tools into the prompt and reads calls out of the text
    _turns: dict[str, AIMessage] = PrivateAttr(default_factory=dict)  # tool call id -> the model's own message
    _shortens: bool = PrivateAttr(default=False)  # a prompt was too long for the model's context
    _seen: int = PrivateAttr(default=0)  # messages of the present conversation that are recorded already

    @classmethod
    def wrap(
        cls, chat: BaseChatModel, observer: CallObserver, *, costs: bool = True, tools: bool = True
    ) -> LangChainLLM:
        """An adapter around `chat`, with the context window that LangChain's profile of the model names."""
        name = getattr(chat, "model_name", None) or getattr(chat, "model", None) or chat._llm_type
        window = (getattr(chat, "profile", None) or {}).get("max_input_tokens") or 128_000
        return cls(
            model=str(name),
            provider=f"langchain-{chat._llm_type}",
            chat=chat,
            observer=observer,
            context_window=window,
            costs=costs,
            tools=tools,
        )

    def _short(self, message: Any) -> Any:
        """A message whose middle is left out, where the model's context is short."""
        text = message.get("content")
        if not self._shortens or not isinstance(text, str) or len(text) <= _LONGEST:
            return message
        return {**message, "content": f"{text[:_HEAD]} ... (cut: your context is short) ... {text[-_TAIL:]}"}

    # What CrewAI asks about
    def supports_function_calling(self) -> bool:
        return self.tools

    def supports_stop_words(self) -> bool:
        return False  # many models reject `stop`

    def get_context_window_size(self) -> int:
        return int(self.context_window * 0.85)

    def get_input_tokens_count(self, messages: Any, tools: Any = None, response_model: Any = None) -> int:
        return len(json.dumps([messages, tools or []], default=str)) // 4 + 1

    def to_config_dict(self) -> dict[str, Any]:
        return {"model": self.model, "provider": self.provider}

    def call(
        self,
        messages: Any,
        tools: list[dict[str, Any]] | None = None,
        callbacks: Any = None,
        available_functions: Any = None,
        from_task: Any = None,
        from_agent: Any = None,
        response_model: Any = None,
    ) -> str | list[dict[str, Any]]:
        """Text, or tool calls in OpenAI's shape for CrewAI to run. Raises ModelError.

        Where a conversation is longer than the model's context it is shortened, once for all; ContextError where that is not enough.
        """
        if words := self.observer.closing():
            return words if self.tools else f"Thought: done\nFinal Answer: {words}"
        # CrewAI marks every schema "strict", under which OpenAI refuses bounds and defaults; `execute` checks them anyway.
        tools = [
            {**t, "function": slim({k: v for k, v in t["function"].items() if k != "strict"})} for t in tools or []
        ]
        formatted = [self._short(message) for message in self._format_messages(messages)]
        sent = to_langchain(formatted, self._turns)
        if not tools:  # forced answers and summaries: providers reject tool turns where no tools are offered
            sent = flatten_tool_turns(sent)
        body = json.dumps([formatted, [tool["function"]["name"] for tool in tools]], default=str)
        if len(formatted) < self._seen or len(formatted) <= 2:
            self._seen = 0  # a new conversation
        new, self._seen = [dict(m) for m in formatted[self._seen :]], len(formatted)

        self.observer.before(estimated_tokens(body, tools))
        chat = self.chat.bind_tools(tools) if tools else self.chat
        start, error, answer, ended = time.monotonic(), None, AIMessage(""), False
        with llm_call_context():
            try:
                answer = in_time(lambda: chat.invoke(sent), lambda: self.observer.waiting(time.monotonic() - start))
                error, ended = _unfinished(answer) if self.costs else None, True
            except NoAnswerError as failed:
                error = str(failed)
        said = answer.usage_metadata or {"input_tokens": 0, "output_tokens": 0}
        read, wrote = said["input_tokens"], said["output_tokens"]
        if self.costs:  # what never came to its end was read by the model all the same
            read, wrote = used_tokens(answer, body, tools) if ended else (estimated_tokens(body, tools), 0)
        calls = openai_tool_calls(answer) if tools else []
        self.observer.after(
            ModelCall(
                prompt_hash=hashlib.sha256(body.encode()).hexdigest()[:16],
                messages=new,
                text=answer.text,
                tool_calls=[c["function"] for c in calls],
                input_tokens=read,
                output_tokens=wrote,
                latency_s=time.monotonic() - start,
                error=error,
            )
        )
        if error is not None and is_too_long(error):
            if self._shortens:
                raise ContextError("the model's context is too short for the crew's shortest prompt")
            self._shortens = True
            return self.call(messages, tools)
        if error is not None:
            raise ModelError(_RATE_LIMIT_WORDS.sub("over its limit", error))
        self._track_token_usage_internal({"prompt_tokens": read, "completion_tokens": wrote})
        if calls:
            # CrewAI rebuilds tool turns without their text, thinking and signatures, so the original is kept. Usage
            # is dropped from it: it differs from call to call, and a prompt cache would never hit.
            for call in calls:
                self._turns[call["id"]] = answer.model_copy(update={"usage_metadata": None})
            return calls
        # Calls where no tools are offered come without words; CrewAI treats an empty string as an error of its own.
        return (answer.text if self.tools else without_observations(answer.text)) or "(no answer)"


def _unfinished(answer: AIMessage) -> str | None:
    """Why what came is no answer: it was cut at its limit, so that its calls and its words may say the opposite, or is empty."""
    told = answer.response_metadata
    ends = [str(told.get(name)).lower() for name in ("finish_reason", "stop_reason", "done_reason")]
    if {"length", "max_tokens"} & set(ends):
        return "the answer was cut at its limit of tokens"
    if not answer.text.strip() and not answer.tool_calls and not answer.invalid_tool_calls:
        return "the answer is empty"
    return None


def without_observations(text: str) -> str:
    """A model's text up to where it goes on as the tool that it called: what no tool said is no result."""
    return re.split(r"^\W*Observation\W*:", text, maxsplit=1, flags=re.MULTILINE | re.IGNORECASE)[0].rstrip()


def slim(schema: Any) -> Any:
    """A schema without what costs tokens in every call and tells a model nothing: titles that repeat names, and bounds of lengths."""
    if isinstance(schema, list):
        return [slim(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {k: v for k, v in schema.items() if k not in ("title", "maxLength", "minLength", "maxItems", "minItems")}
    return {
        k: {name: slim(field) for name, field in v.items()} if k == "properties" else v if k == "default" else slim(v)
        for k, v in kept.items()
    }


def to_langchain(messages: Sequence[Mapping[str, Any]], turns: Mapping[str, AIMessage]) -> list[BaseMessage]:
    """CrewAI's messages as LangChain's; a tool turn is the model's own message where every call id still matches."""
    out: list[BaseMessage] = []
    for message in messages:
        calls = message.get("tool_calls") or []
        own = turns.get(calls[0]["id"]) if calls else None
        if (
            own is not None
            and not own.invalid_tool_calls
            and [c["id"] for c in own.tool_calls] == [c["id"] for c in calls]
        ):
            out.append(own)
            continue
        kept = {k: message[k] for k in ("role", "content", "tool_calls", "tool_call_id", "name") if k in message}
        if calls:
            kept["tool_calls"] = [
                {**c, "function": {**c["function"], "arguments": _json_object_or_empty(c["function"]["arguments"])}}
                for c in calls
            ]
        kept["content"] = kept.get("content") or ""
        out += convert_to_messages([kept])
    return out


def flatten_tool_turns(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """The same conversation with tool calls and results as plain text."""
    out: list[BaseMessage] = []
    for message in messages:
        if isinstance(message, AIMessage) and message.tool_calls:
            calls = "; ".join(f"{c['name']}({json.dumps(c['args'])})" for c in message.tool_calls)
            out.append(AIMessage(f"{message.text}\n[called {calls}]".strip()))
        elif isinstance(message, ToolMessage):
            out.append(HumanMessage(f"[result of {message.name or 'tool'}] {message.text}"))
        else:
            out.append(message)
    return out


def openai_tool_calls(message: AIMessage) -> list[dict[str, Any]]:
    """The calls a model asked for, malformed ones with their raw text, so that CrewAI feeds the JSON error back."""
    good = [(c["id"], c["name"], json.dumps(c["args"])) for c in message.tool_calls]
    bad = [(c["id"], c["name"], c["args"] or "") for c in message.invalid_tool_calls]
    return [
        {"id": id or f"call_{i}", "type": "function", "function": {"name": name or "", "arguments": arguments}}
        for i, (id, name, arguments) in enumerate(good + bad)
    ]


def _json_object_or_empty(text: str) -> str:
    try:
        return text if isinstance(json.loads(text), dict) else "{}"
    except ValueError:
        return "{}"
