"""The crew on a lab that answers from a script: how the tests run one, and what they read of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lab_on_script import lab_on_script
from model_server import Reply, say, turn_of

from experiments.campaign.lab import Lab
from experiments.campaign.plan import PROPOSING, Design
from experiments.runs.executor import Job
from multi_agent.agents.agent import crew_members
from multi_agent.communication.message_broker import MessageBroker
from multi_agent.communication.shared_memory import SharedMemory
from multi_agent.llm.choose import LLMChoice, choose_llm
from multi_agent.tools.tool import RoundOwner, Tool, ToolContext
from multi_agent.workflows.crew import CrewEvent
from multi_agent.workflows.research_workflow import run_research

MEMBERS = {member.name: member for member in crew_members()}
NAMES = tuple(MEMBERS)
TOOLS: dict[str, Tool] = {tool.name: tool for member in MEMBERS.values() for tool in member.tools}
CODES_CHOICES = {"default", "optimizer", "plateau"}
"""Sources of a proposal that no agent shaped."""


def design(rounds: int) -> Design:
    """The fewest runs around `rounds` search rounds."""
    return Design(name="test", baseline_seeds=2, rounds=rounds, top=1, selection_seeds=1, confirmation_seeds=2)


def crew_lab(folder: Path, rounds: int = 4, **options: Any) -> Lab:
    """A campaign in `folder` of few runs; see `lab_on_script`."""
    return lab_on_script(folder, design=design(rounds), **({"proposing": PROPOSING} | options))


def run_crew(lab: Lab, folder: Path, llm: LLMChoice | None = None, **options: Any) -> list[CrewEvent]:
    """What was shown of a campaign that the crew works on, with the offline researcher unless told otherwise."""
    events: list[CrewEvent] = []
    run_research(lab, llm or choose_llm("offline"), data_dir=folder, on_event=events.append, **options)
    return events


def interrupted_in(lab: Lab, round_number: int, stop: type[BaseException]) -> None:
    """The first run of that search round that is trained ends in `stop`, once."""
    score = lab.executor.score  # type: ignore[attr-defined]

    def interrupt(job: Job) -> float:
        if lab.stage == "search" and lab.round == round_number:
            lab.executor.score = score  # type: ignore[attr-defined]
            raise stop
        return score(job)

    lab.executor.score = interrupt  # type: ignore[attr-defined]


def idea(arm: str, changes: dict[str, Any], **other: Any) -> dict[str, Any]:
    """The arguments of `propose` that change the suggestion for an arm, on nothing but prior knowledge."""
    values = [{"name": name, "value": value} for name, value in changes.items()]
    told = {"prior_or_rows": "prior", "expected_delta": 1.0, "low": -1.0, "high": 3.0, "reason": "r", "evidence": []}
    return {"arm": arm, "base": "suggestion", "changes": values} | told | other


def quiet(request: dict[str, Any]) -> Reply:
    """A model that has nothing to add."""
    return say("Done.")


def truthful(request: dict[str, Any]) -> str:
    """The narrative of a model that repeats what the verdict in its prompt says."""
    effect = re.findall(r'"effect":(-?[\d.]+)', str(request["messages"]))[-1]
    return f"The verdict is {turn_of(request)['outcome']}: the effect is {float(effect):.2f}."


def narrative_of(lab: Lab) -> tuple[str, str]:
    """The campaign's last words and who gave them."""
    text, _, narrator = (lab.ledger.get_campaign(lab.number).narrative or "").rpartition("\n\n")
    return text, narrator.removeprefix("(").removesuffix(")")


def code_narrative(lab: Lab) -> tuple[str, str]:
    """What code says where no narrative may stand."""
    verdict = lab.judge()
    return f"The verdict is {verdict.outcome}. {verdict.reason}", "code"


def owners(events: Iterable[CrewEvent]) -> list[str]:
    """Whose configuration each search round ran, in the order of the rounds."""
    return [e.payload["mode"] for e in events if "mode" in e.payload]


def agent_rounds(lab: Lab) -> set[int]:
    """The rounds that were announced as the agents'."""
    return {e.payload["round"] for e in lab.events(["stage"]) if e.payload.get("mode") == "agents"}


def context_of(lab: Any, name: str = "Meta-Learning", owner: RoundOwner = "agents") -> ToolContext:
    """What the tools of one agent reach in a turn, without a crew around it."""

    def emit(kind: str, actor: str, text: str, /, **payload: Any) -> int:
        return lab.record_event(kind, actor, {"text": text} | payload)

    context = ToolContext(lab, name, MEMBERS[name].slice, emit, MessageBroker(NAMES, emit), SharedMemory(emit))
    context.begin_turn(owner)
    return context


def alone(**changes: Path) -> dict[str, str]:
    """The environment of a Python process of its own that finds the project and these helpers."""
    tests = Path(__file__).resolve().parents[1]
    path = os.pathsep.join(map(str, (tests.parent, tests, tests / "multi_agent")))
    fixed = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    return os.environ | fixed | {name: str(folder) for name, folder in changes.items()}
