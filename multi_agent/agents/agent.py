"""What an agent is: a name, a slice of the configuration, tools and a prompt file; and how it becomes a CrewAI agent."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from core.registry import Registry
from experiments.tables import TableView
from multi_agent.tools.tool import Tool, ToolContext

if TYPE_CHECKING:
    from crewai import Agent

    from multi_agent.llm.langchain_llm import LangChainLLM

PROMPTS = Path(__file__).parent / "prompts"
MAX_MODEL_CALLS = 12  # of one turn; then one last call asks for the closing words


@dataclass(frozen=True)
class AgentSpec:
    """One member of the crew."""

    name: str
    slice: str | None
    """Role whose hyperparameters it proposes; None for one that proposes nothing."""
    tools: tuple[Tool, ...]
    prompt: str
    """File in `prompts/`, or the text itself: a heading (the role), a paragraph (the goal), the rest (the backstory)."""
    turn: int
    """Agents speak in this order within a stage."""


AGENTS: Registry[AgentSpec] = Registry("agent", package="multi_agent.agents", modules="*_agent")


def crew_members() -> list[AgentSpec]:
    """All agents in the order in which they speak."""
    return sorted((AGENTS[name] for name in AGENTS), key=lambda spec: (spec.turn, spec.name))


def list_agents() -> TableView:
    """The crew in the order in which it speaks: what each proposes, and the goal of its prompt."""
    rows = tuple((member.name, member.slice or "nothing", _parts(member.prompt)[1]) for member in crew_members())
    return TableView(columns=("agent", "proposes", "goal"), rows=rows, note=AGENTS.failures_in_words())


def read_prompt(prompt: str, **values: Any) -> str:
    """A prompt, given as the name of a file in `prompts/` or as its own text, with its `$names` filled in."""
    return Template(_bytes(prompt).decode()).substitute(values)


def prompt_hash(prompt: str) -> str:
    """Identifies the wording an agent ran with."""
    return hashlib.sha256(_bytes(prompt)).hexdigest()[:16]


def _bytes(prompt: str) -> bytes:
    return prompt.encode() if "\n" in prompt else (PROMPTS / prompt).read_bytes()


def _parts(prompt: str) -> tuple[str, str, str]:
    """Role, goal and backstory."""
    heading, goal, backstory = read_prompt(prompt).strip().split("\n\n", 2)
    return heading.removeprefix("# ").strip(), " ".join(goal.split()), backstory.strip()


def build_agent(spec: AgentSpec, llm: LangChainLLM, context: ToolContext, max_calls: int = MAX_MODEL_CALLS) -> Agent:
    """The CrewAI agent of `spec`. Errors are never retried here: tools would run again; the SDK retries its own."""
    from crewai import Agent

    from multi_agent.tools.crewai_wrapper import to_crewai

    role, goal, backstory = _parts(spec.prompt)
    return Agent(
        role=role,
        goal=goal,
        backstory=backstory,
        llm=llm,
        tools=[to_crewai(tool, context) for tool in spec.tools],
        max_iter=max_calls,
        max_retry_limit=0,
        allow_delegation=False,
        verbose=False,
        use_better_compaction=False,  # it would move long tool results into files in /tmp
    )
