"""`--llm command:"..."`: an assistant that is logged in already, as a program: the prompt on its standard input, the answer on its output."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from multi_agent.llm.calls import CALL_S

MAX_CHARACTERS = 40_000  # of an answer


class CommandChat(BaseChatModel):
    """A program as a chat model without tools. No shell reads the command line."""

    command: str

    @property
    def _llm_type(self) -> str:
        return "command"

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        prompt = "\n\n".join(f"[{message.type}]\n{message.text}" for message in messages)
        text = _output_of(shlex.split(self.command), prompt)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text.strip()[:MAX_CHARACTERS]))])


def _output_of(words: Sequence[str], prompt: str) -> str:
    """What the program prints. It and what it started end with the deadline. Raises RuntimeError where it fails."""
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True) as process:
        try:
            output, errors = process.communicate(prompt.encode("utf-8", "replace"), timeout=CALL_S)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise RuntimeError(
            f"{words[0]} ended with {process.returncode}: {errors.decode(errors='replace').strip()[-300:]}"
        )
    return output.decode(errors="replace")
