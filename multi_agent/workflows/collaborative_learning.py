"""`CollaborativeLearning`: agents that solve a task together, and what came of it, computed from ledger rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core.config import FrozenConfig
from core.errors import unknown_name
from experiments.judging.statistics import mean_interval, percent_change
from experiments.reading.strategies import Strategy, shaped_by_agents
from multi_agent.agents.agent import COORDINATOR_NAME, AgentSpec, choose_members
from multi_agent.llm.meter import DEFAULT_MAX_USD, Meter, read_prices
from multi_agent.workflows.crew import CrewEvent
from multi_agent.workflows.modes import Collaboration, way_to_work
from multi_agent.workflows.research_workflow import run_research

if TYPE_CHECKING:
    from experiments.campaign.views import VerdictView
    from experiments.ledger.models import Run


class Improvement(FrozenConfig):
    """The effect of the confirmed comparison: challenger minus baseline, in units of return."""

    effect: float
    low: float
    high: float
    """95 % interval."""
    run_ids: tuple[int, ...]
    """The confirmation runs it is computed from."""
    percent: float | None = None
    """The effect in percent of the baseline's absolute mean; None where that mean is not told apart from 0."""
    percent_interval: tuple[float, float] | None = None
    """Its interval (Fieller's, of a ratio of means), at the level of the test that decided."""

    def __float__(self) -> float:
        return float("nan") if self.percent is None else self.percent

    def __str__(self) -> str:
        """The percent with its interval, for text that writes the sign behind it."""
        if self.percent is None or self.percent_interval is None:
            return "undefined "
        return f"{self.percent:.1f} [{self.percent_interval[0]:.1f}, {self.percent_interval[1]:.1f}]"

    def __format__(self, spec: str) -> str:
        return format(float(self), spec) if spec else str(self)


class ProposerGain(FrozenConfig):
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
    collaboration_mode: Collaboration
    outcome: str
    reason: str
    improvement: Improvement | None
    proposers: tuple[ProposerGain, ...]
    emergent_strategies: tuple[Strategy, ...]
    """Configurations that agents shaped, that nobody else reached and that fresh seeds showed to be better."""


class CollaborativeLearning:
    """Agents that solve a task together.

    agents: the specialists, by name (see `crew_members`) or as specifications, which are used as they are; all
    registered ones by default. Slices of absent ones come from the optimizer. coordinator: the agent that reviews
    what is proposed and writes the narrative. llm: as `--llm`. data_dir: where rows go (default: `runs/` in the checkout). Raises
    InputError for an agent that cannot take part.
    """

    def __init__(
        self,
        agents: Sequence[str | AgentSpec] | None = None,
        coordinator: str | AgentSpec = COORDINATOR_NAME,
        *,
        llm: str = "auto",
        data_dir: str | Path | None = None,
    ) -> None:
        name = coordinator.name if isinstance(coordinator, AgentSpec) else coordinator
        if name != COORDINATOR_NAME:
            raise unknown_name("coordinator", name, [COORDINATOR_NAME])
        specialists = [m for m in choose_members() if m.name != COORDINATOR_NAME] if agents is None else agents
        self.members = tuple(choose_members([*specialists, coordinator]))
        self.llm, self.data_dir = llm, data_dir

    def solve_task(
        self,
        task: str,
        collaboration_mode: Collaboration = "sequential",
        *,
        env_steps: int = 20_000_000,
        seed: int = 0,
        max_tokens: int | None = None,
        max_usd: float | None = DEFAULT_MAX_USD,
        on_event: Callable[[CrewEvent], None] = lambda event: None,
    ) -> CollaborationResult:
        """Research `task` to a verdict.

        task: a goal in words, or the id of a task family or of a Gymnasium environment, which means "beat LSTM on" it.
        collaboration_mode: how the specialists work together in a round; it is recorded, and holds where the campaign is
        resumed. env_steps: training steps of the whole campaign. max_tokens, max_usd: caps on the chat model. Raises InputError for an unknown task or
        mode, a budget that is too small, and a chat model that gives no answer (nothing is written then).
        """
        way_to_work(collaboration_mode)
        from experiments.campaign.begin import create_campaign, plan_campaign, recorded_in
        from experiments.campaign.lab import Lab
        from experiments.campaign.plan import Budget
        from experiments.campaign.question import parse_goal
        from experiments.ledger import Ledger
        from experiments.runs.executor import LocalExecutor
        from experiments.runs.paths import Paths
        from multi_agent.llm.choose import choose_llm, keep_choice
        from multi_agent.llm.preflight import preflight

        paths = Paths.of(self.data_dir)
        runs = recorded_in(
            lambda: Ledger(paths.ledger_url, read_only=True) if (paths.data / "ledger.db").is_file() else None
        )
        question = parse_goal(task if " " in task.strip() else f"beat LSTM on {task}", runs)
        choice = choose_llm(self.llm)
        prices = read_prices(paths.data / "prices.json")[1]
        choice, _ = preflight(choice, Meter(choice.price_name, prices, max_tokens=max_tokens, max_usd=max_usd))
        paths.ensure()
        ledger = Ledger(paths.ledger_url)
        plan = plan_campaign(question, Budget(env_steps=env_steps), paths, ledger=ledger)
        campaign_id = create_campaign(ledger, question, plan, seed=seed, llm=choice.name)
        keep_choice(ledger, campaign_id, choice, max_tokens=max_tokens, max_usd=max_usd)
        lab = Lab(ledger, campaign_id, LocalExecutor(plan.workers, paths.environment()), paths)
        with lab.holding():
            run_research(
                lab,
                choice,
                data_dir=paths.data,
                on_event=on_event,
                max_tokens=max_tokens,
                max_usd=max_usd,
                collaboration=collaboration_mode,
                agents=self.members,
            )
        runs = ledger.runs(campaign_id, purpose=("baseline", "search"))
        found = [strategy for strategy in shaped_by_agents(ledger, campaign_id) if strategy.is_found]
        return summarise(lab.campaign_id, collaboration_mode, lab.judge(), runs, found)


def summarise(
    campaign: str,
    mode: Collaboration,
    verdict: VerdictView,
    search_runs: Sequence[Run],
    found: Sequence[Strategy] = (),
) -> CollaborationResult:
    """A result from a verdict, the campaign's search rows, and the strategies found in it."""
    improvement = None
    if verdict.effect is not None and verdict.interval is not None:
        low, high = verdict.interval
        percent = _percent(verdict)
        improvement = Improvement(
            effect=verdict.effect,
            low=low,
            high=high,
            run_ids=verdict.run_ids,
            percent=None if percent is None else percent[0],
            percent_interval=None if percent is None else percent[1],
        )
    default = {run.arm: run.score for run in search_runs if run.trial == 0 and run.score is not None}
    proposers = []
    for proposer in sorted({run.proposer for run in search_runs if run.trial}):
        own = [r for r in search_runs if r.trial and r.proposer == proposer]
        scored = [r for r in own if r.score is not None and r.arm in default]
        gains = np.array([r.score - default[r.arm] for r in scored if r.score is not None])
        proposers.append(
            ProposerGain(
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
        proposers=tuple(proposers),
        emergent_strategies=tuple(found),
    )


def _percent(verdict: VerdictView) -> tuple[float, tuple[float, float]] | None:
    """The effect in percent of the baseline, from the means of the seeds that the verdict rests on."""
    if verdict.challenger is None or verdict.baseline is None:
        return None
    sides, paired = (verdict.challenger.seed_means, verdict.baseline.seed_means), verdict.test == "paired"
    return percent_change(*sides, paired=paired, level=1 - (verdict.level or 0.05))
