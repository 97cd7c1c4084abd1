"""OpenAI's chat protocol as other servers speak it: some put the whole answer where a model's thinking belongs."""

from __future__ import annotations

from typing import Any

from langchain_core.outputs import ChatResult
from langchain_openai import ChatOpenAI

REASONING = ("reasoning_content", "reasoning")
"""How servers call the field (vLLM, llama.cpp, DeepSeek; OpenRouter)."""


class AnyServerChat(ChatOpenAI):
    """LangChain's class, which drops those fields, with the thinking of a message kept in its `additional_kwargs`."""

    def _create_chat_result(self, response: Any, generation_info: dict[str, Any] | None = None) -> ChatResult:
        result = super()._create_chat_result(response, generation_info)
        told = response if isinstance(response, dict) else response.model_dump(warnings=False)
        for generation, choice in zip(result.generations, told["choices"], strict=True):
            thought = next((choice["message"][name] for name in REASONING if choice["message"].get(name)), "")
            if isinstance(thought, str) and thought:
                generation.message.additional_kwargs["reasoning_content"] = thought
        return result
