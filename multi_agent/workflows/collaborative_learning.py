"""How the specialists of one round work together, and `CollaborativeLearning`, the public way to solve a task with it.

Three modes, each a function over the crew:
- sequential: one after another; each reads what those before it said in this round.
- debate: all propose without hearing each other; then each reads everybody's words and may revise once.
- emergent: nobody's words are passed on unasked; an agent speaks again when a colleague wrote to it, until nobody did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from core.config import FrozenConfig
from core.errors import unknown_name
from experiments.judging.statistics import mean_interval
from multi_agent.agents.agent import AGENTS, AgentSpec, crew_members
from multi_agent.communication.message_broker import EVERYONE

if TYPE_CHECKING:
    from experiments.campaign.lab import VerdictView
    from experiments.ledger.models import Run
    from multi_agent.workflows.research_workflow import Crew

Mode = Literal["sequential", "debate", "emergent"]
Ask = Callable[[AgentSpec, str, int], "str | None"]  # (agent, prompt file, pass) -> its closing words
MAX_PASSES = 3
COORDINATOR = "Coordinator"


def sequential(crew: Crew, ask: Ask) -> None:
    """One after another; each reads what those before it said in this round."""
    for member in crew.specialists:
        words = ask(member, "turn_propose.md", 0)
        if words:
            crew.broker.post(member.name, EVERYONE, words[:600])


def debate(crew: Crew, ask: Ask) -> None:
    """All propose without hearing each other; then each reads everybody's words and may revise once."""
    said = [(member, ask(member, "turn_propose.md", 0)) for member in crew.specialists]
    for member, words in said:
        if words:
            crew.broker.post(member.name, EVERYONE, words[:600])
    for member in crew.specialists:
        ask(member, "turn_revise.md", 1)


def emergent(crew: Crew, ask: Ask) -> None:
    """All speak once; then only those whom a colleague wrote to, until nobody was or three passes are over."""
    speakers = crew.specialists
    for number in range(MAX_PASSES):
        for member in speakers:
            words = ask(member, "turn_revise.md" if number else "turn_propose.md", number)
            if words:
                crew.broker.post(member.name, COORDINATOR, words[:600])
        speakers = [member for member in crew.specialists if crew.broker.has_mail(member.name)]


COLLABORATION: Mapping[str, Callable[[Crew, Ask], None]] = {
    "sequential": sequential,
    "debate": debate,
    "emergent": emergent,
}


class Improvement(FrozenConfig):
    """The effect of the confirmed comparison: challenger minus baseline, in units of return."""

    effect: float
    low: float
    high: float
    """95 % interval."""
    run_ids: tuple[int, ...]
    """The confirmation runs it is computed from."""


class Strategy(FrozenConfig):
    """What the search trials of one proposer brought, over the default configuration of their arm."""

    proposer: str
    """optimizer, or agent: with the roles that changed the suggestion."""
    mean_gain: float | None
    """Mean difference of the search score to the same arm's default; None where no pair was scored."""
    interval: tuple[float, float] | None
    """95 % interval of the mean gain; None below three trials."""
    run_ids: tuple[int, ...]
    """The search runs it is computed from."""


class CollaborationResult(FrozenConfig):
    """What a collaboration came to. Every number is computed from ledger rows, or absent."""

    campaign: str
    collaboration_mode: Mode
    outcome: str
    reason: str
    improvement: Improvement | None
    strategies: tuple[Strategy, ...]


class CollaborativeLearning:
    """Agents that solve a task together.

    agents: names of specialists (see `crew_members`) or their specs; slices of absent ones come from the optimizer.
    coordinator: the agent that launches rounds and writes the narrative. llm: as `--llm`. data_dir: where rows go.
    """

    def __init__(
        self,
        agents: Sequence[str | AgentSpec] | None = None,
        coordinator: str | AgentSpec = COORDINATOR,
        *,
        llm: str = "auto",
        data_dir: str | Path | None = None,
    ) -> None:
        everyone = [member.name for member in crew_members() if member.name != COORDINATOR]
        chosen = everyone if agents is None else [_name(agent) for agent in agents]
        for name in (*chosen, _name(coordinator)):
            AGENTS[name]  # an unknown one raises, and says which file of an agent could not be imported
        if _name(coordinator) != COORDINATOR:
            raise unknown_name("coordinator", _name(coordinator), [COORDINATOR])
        self.agents = tuple(chosen)
        self.llm, self.data_dir = llm, data_dir

    def solve_task(
        self,
        task: str,
        collaboration_mode: Mode = "sequential",
        *,
        env_steps: int = 20_000_000,
        seed: int = 0,
        on_event: Callable[[Any], None] = lambda event: None,
    ) -> CollaborationResult:
        """Research `task` to a verdict.

        task: a goal in words, or a task family, which means "beat LSTM on" it. env_steps: training steps of the whole
        campaign. Raises InputError for an unknown task or mode, or a budget that is too small.
        """
        if collaboration_mode not in COLLABORATION:
            raise unknown_name("collaboration_mode", collaboration_mode, COLLABORATION)
        from env_runner.task_distributions import FAMILIES
        from experiments.campaign.begin import create_campaign, plan_campaign
        from experiments.campaign.lab import Lab
        from experiments.campaign.plan import Budget
        from experiments.campaign.question import parse_goal
        from experiments.ledger import Ledger
        from experiments.runs.executor import LocalExecutor
        from experiments.runs.paths import Paths
        from multi_agent.llm.choose import choose_llm
        from multi_agent.workflows.research_workflow import run_research

        question = parse_goal(f"beat LSTM on {task}" if task in FAMILIES else task)
        choice = choose_llm(self.llm)
        paths = Paths.of(self.data_dir)
        plan = plan_campaign(question, Budget(env_steps=env_steps), paths)
        paths.ensure()
        ledger = Ledger(paths.ledger_url)
        campaign_id = create_campaign(ledger, question, plan, seed=seed, llm=choice.name)
        lab = Lab(ledger, campaign_id, LocalExecutor(plan.workers, paths.environment()), paths)
        with lab.holding():
            run_research(
                lab,
                choice,
                data_dir=paths.data,
                on_event=on_event,
                collaboration=collaboration_mode,
                agents=self.agents,
            )
        runs = ledger.runs(campaign_id, purpose=("baseline", "search"))
        return summarise(lab.campaign_id, collaboration_mode, lab.judge(), runs)


def summarise(campaign: str, mode: Mode, verdict: VerdictView, search_runs: Sequence[Run]) -> CollaborationResult:
    """A result from a verdict and the campaign's search rows."""
    improvement = None
    if verdict.effect is not None and verdict.interval is not None:
        low, high = verdict.interval
        improvement = Improvement(effect=verdict.effect, low=low, high=high, run_ids=verdict.run_ids)
    default = {run.arm: run.score for run in search_runs if run.trial == 0 and run.score is not None}
    strategies = []
    for proposer in sorted({run.proposer for run in search_runs if run.trial}):
        own = [r for r in search_runs if r.trial and r.proposer == proposer]
        scored = [r for r in own if r.score is not None and r.arm in default]
        gains = np.array([r.score - default[r.arm] for r in scored if r.score is not None])
        strategies.append(
            Strategy(
                proposer=proposer,
                mean_gain=float(gains.mean()) if gains.size else None,
                interval=mean_interval(gains) if gains.size >= 3 else None,
                run_ids=tuple(r.id for r in scored),
            )
        )
    return CollaborationResult(
        campaign=campaign,
        collaboration_mode=mode,
        outcome=verdict.outcome,
        reason=verdict.reason,
        improvement=improvement,
        strategies=tuple(strategies),
    )


def _name(agent: str | AgentSpec) -> str:
    return agent if isinstance(agent, str) else agent.name
