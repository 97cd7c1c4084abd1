"""What an agent is: a name, a slice of the configuration, tools and a prompt; who is in the crew; and how one of them becomes
a CrewAI agent."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from core.errors import InputError, bad_value, unknown_name
from core.registry import Registry
from experiments.search.space import ALL_SLICES, ROLES
from experiments.tables import TableView
from multi_agent.communication.message_broker import NOT_AGENTS
from multi_agent.tools.tool import Tool, ToolContext

if TYPE_CHECKING:
    from crewai import Agent

    from multi_agent.llm.langchain_llm import LangChainLLM

PROMPTS = Path(__file__).parent / "prompts"
COORDINATOR_NAME = "Coordinator"
DEFAULT_CREW = "five"
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
    crew: str = DEFAULT_CREW
    """The crew that it is a member of, as `--crew` calls it."""
    asked: str = "turn_propose.md"
    """File in `prompts/` with what it is asked in a search round."""


PACKAGE = "multi_agent.agents"
AGENTS: Registry[AgentSpec] = Registry("agent", package=PACKAGE, modules="*_agent")


def crew_names() -> list[str]:
    """The crews that registered agents are members of, the default one first."""
    names = {AGENTS[name].crew for name in AGENTS}
    return sorted(names, key=lambda name: (name != DEFAULT_CREW, name))


def crew_members(crew: str = DEFAULT_CREW) -> list[AgentSpec]:
    """The registered agents of a crew in the order in which they speak.

    InputError for a crew that nobody is a member of, and where an agent's file cannot be imported: nobody is missing from a crew
    without a word.
    """
    broken = [_mend(module, cause) for module, cause in AGENTS.failures.items() if module.startswith(f"{PACKAGE}.")]
    if broken:
        raise InputError(" ".join(broken))
    if crew not in crew_names():
        raise unknown_name("crew", crew, crew_names())
    return _in_order(AGENTS[name] for name in AGENTS if AGENTS[name].crew == crew)


def choose_members(agents: Sequence[str | AgentSpec] | None = None) -> list[AgentSpec]:
    """The Coordinator and these agents, those of the default crew where none are named, in the order in which they speak.

    agents: names of registered agents, or specifications: those are used as they are, whoever is registered by that
    name. InputError for an unknown name, two different agents of one name, and a specification that cannot take part.
    """
    everyone = crew_members()
    if agents is None:
        return everyone
    chosen: dict[str, AgentSpec] = {}
    for agent in agents:
        member = _member(agent)
        if chosen.setdefault(member.name, member) != member:
            raise InputError(f"agents: two different agents have the name {member.name!r}, allowed: each name once")
    chosen.setdefault(COORDINATOR_NAME, AGENTS[COORDINATOR_NAME])
    return _in_order(chosen.values())


def list_agents() -> TableView:
    """The crews in the order in which they speak: what each agent proposes, and the goal of its prompt; and what is broken."""
    members = [m for crew in crew_names() for m in _in_order(AGENTS[name] for name in AGENTS) if m.crew == crew]
    rows = tuple((m.name, m.crew, m.slice or "nothing", _parts(m.prompt)[1]) for m in members)
    return TableView(columns=("agent", "crew", "proposes", "goal"), rows=rows, note=AGENTS.failures_in_words())


def _member(agent: str | AgentSpec) -> AgentSpec:
    if isinstance(agent, str):
        return AGENTS[agent]
    if not isinstance(agent, AgentSpec):
        raise bad_value("agents", agent, f"AgentSpec objects and the names {', '.join(AGENTS)}")
    if not agent.name.strip() or agent.name in NOT_AGENTS:
        raise bad_value("name of an agent", agent.name, f"any but an empty one and {', '.join(NOT_AGENTS)}")
    if agent.slice not in (None, ALL_SLICES, *ROLES):
        raise unknown_name("slice", agent.slice, [*ROLES, ALL_SLICES])
    if "\n" not in agent.prompt and not (PROMPTS / agent.prompt).is_file():
        raise unknown_name("prompt file", agent.prompt, [file.name for file in sorted(PROMPTS.glob("*.md"))])
    return agent


def _in_order(members: Iterable[AgentSpec]) -> list[AgentSpec]:
    return sorted(members, key=lambda member: (member.turn, member.name))


def _mend(module: str, cause: str) -> str:
    spec = importlib.util.find_spec(module)
    file = module if spec is None or spec.origin is None else spec.origin
    return f"{module} could not be imported: {cause}. Mend {file} or take it away: no crew works with a member missing."


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
