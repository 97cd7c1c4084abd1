"""Searches by agents for `bench proposers`: the real crew, tools and lab, in a world that answers instead of a trainer.

The arms with the names of crews (`five`, `architect+critic`, `single`, and those of plugins) are the search of a campaign with that
`--crew`: the default first, agents in their share of the rounds, the optimizer in the others, and every turn is taken as there. Three
more have proposals alone, without the Coordinator's turns: `hybrid` is `five` so, `crew` gives every round but the default to the
specialists, `single-agent` gives them to one agent that owns all slices.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from core.errors import bad_value
from experiments.bench.searches import ARM, Search, Searcher, World, worth_of_best
from experiments.campaign.begin import create_campaign
from experiments.campaign.lab import Lab
from experiments.campaign.plan import PROPOSING as PROPOSING_RULE
from experiments.campaign.plan import Budget, Design, Plan
from experiments.campaign.question import parse_goal
from experiments.campaign.sides import default_of
from experiments.ledger import Ledger
from experiments.ledger.waste import count_waste
from experiments.runs.executor import Ended, Evaluated, Job, Listener, Started
from experiments.runs.paths import Paths
from experiments.search.optimizer import SUGGESTING, Tried
from experiments.search.side import Value
from multi_agent.agents.agent import COORDINATOR_NAME, DEFAULT_CREW, crew_members, crew_names
from multi_agent.llm.choose import LLMChoice, choose_llm
from multi_agent.llm.meter import Meter, read_prices
from multi_agent.llm.preflight import preflight
from multi_agent.tools.tool import RoundOwner
from multi_agent.workflows.crew import Crew
from multi_agent.workflows.research_workflow import STAGES

PROPOSALS_ALONE = ("crew", "hybrid", "single-agent")


def agent_arm_names() -> list[str]:
    """All arms with agents."""
    return [*crew_names(), *PROPOSALS_ALONE]


def agent_arms(options: argparse.Namespace, names: Sequence[str], say: Callable[[str], None]) -> dict[str, Searcher]:
    """The searches of the named arms with the chat model that the options of `bench proposers` ask for."""
    caps: dict[str, Any] = {"max_tokens": options.max_tokens, "max_usd": options.max_usd}
    llm = choose_llm(options.llm, options.base_url, options.llm_key_env)
    if llm.kind == "mcp":
        raise bad_value("--llm", llm.name, "a chat model: no MCP client reaches the searches of a bench")
    if llm.kind == "replay":  # its answers name the rows of their own campaign
        raise bad_value(
            "--llm", llm.name, "any but replay: these searches are no campaign of which answers are recorded"
        )
    llm, found = preflight(llm, Meter(llm.price_name, read_prices()[1], **caps))
    say(f"{llm.describe()} {found}".rstrip())
    if llm.kind == "offline":
        say(
            "No language model: the offline researcher takes every value from the optimizer, so the arms with agents "
            "measure the optimizer, not agents. Name a model with --llm to compare agents."
        )
    return {name: agent_searcher(name, llm, **caps, say=say) for name in agent_arm_names() if name in names}


def agent_searcher(
    arm: str,
    llm: LLMChoice,
    *,
    max_tokens: int | None = None,
    max_usd: float | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Searcher:
    """The search of an arm with agents. max_tokens, max_usd: caps of each search; the optimizer goes on alone beyond them."""

    def search(world: World, trials: int, seed: int) -> Search:
        with tempfile.TemporaryDirectory(prefix="proposers-") as folder:
            lab = open_world_lab(world, trials, seed, Path(folder))
            lab.agent_share = 1.0 if arm in ("crew", "single-agent") else Lab.agent_share
            name = {"crew": DEFAULT_CREW, "hybrid": DEFAULT_CREW, "single-agent": "single"}.get(arm, arm)
            agents = [member.name for member in crew_members(name)]
            crew = (Specialists if arm in PROPOSALS_ALONE else Crew)(
                lab,
                llm,
                data_dir=Path(folder),
                on_event=lambda event: None,
                max_tokens=max_tokens,
                max_usd=max_usd,
                agents=agents,
            )
            while lab.stage in ("baseline", "search"):
                STAGES[lab.stage](crew)
            if crew.silent_because:
                say(f"{arm}, search {seed}: {crew.silent_because}; the optimizer went on alone")
            finished = lab.trials.finished(ARM)
            history = [Tried(trial.values, trial.score) for trial in finished]
            by_models = len(lab.trials.shaped_by_agents())
            waste = count_waste(lab.ledger, lab.number)
            lab.ledger.close()
            meter = crew.meter
            return Search(
                worth_of_best(world, history),
                len(finished),
                waste.wasted + waste.refused,
                by_models,
                meter.tokens,
                meter.usd if meter.price is not None or llm.kind != "langchain" else None,
            )

    return search


class Specialists(Crew):
    """The crew without its Coordinator's turns."""

    def ask(self, name: str, prompt: str, *, owner: RoundOwner = "optimizer", **turn: Any) -> str | None:
        return None if name == COORDINATOR_NAME else super().ask(name, prompt, owner=owner, **turn)


# ---- the lab of a world -----------------------------------------------------------------


class WorldLab(Lab):
    """A lab whose challenger is measured by a world: its configurations are what the world really tried."""

    world: World
    tried: dict[int, Tried]

    def ends_early(self) -> bool:
        """Never: every arm has equally many trials."""
        return False

    def _settle(self, trial: int) -> dict[str, dict[str, Value]]:
        chosen = super()._settle(trial)
        if trial not in self.tried:
            self.tried[trial] = self.world.measure(chosen[ARM])
        values = self.tried[trial].values
        if chosen[ARM] != values:  # the nearest row of a table: the proposals become what was tried
            for slice_ in self.trials.slices(ARM, trial):
                own = {p.name: values[p.name] for p in self.trials.space(ARM).of_role(slice_.role) if p.name in values}
                self.trials.write_proposal(
                    ARM, trial, slice_.role, own, slice_.source,
                    reason=slice_.reason, effect=slice_.predicted_effect, evidence=slice_.evidence,
                )  # fmt: skip
        return {ARM: self.trials.complete(ARM, trial)}


class WorldExecutor:
    """Answers jobs with a world's scores instead of training. A job's configuration is known by its variant."""

    workers = 1

    def __init__(self, lab_of: Callable[[], WorldLab]) -> None:
        self._lab_of = lab_of

    def run(self, jobs: Sequence[Job], on_message: Listener, stop: threading.Event) -> None:
        for job in jobs:
            on_message(job, Started(pid=os.getpid()))
            score = None if job.probe else self._score(job)
            if score is not None:
                on_message(job, Evaluated(pool=job.pool, values={"return": [[score]]}))
            done = job.probe or score is not None
            cause = None if done else "training failed in the world of this search"
            on_message(job, Ended(status="done" if done else "diverged", cause=cause, env_steps=job.spec.env_steps))

    def _score(self, job: Job) -> float | None:
        lab = self._lab_of()
        seeds = lab.trials.seeds("search")
        if job.spec.seed in seeds[1:]:  # further seeds of the default, for the noise floor
            return lab.world.default_scores[seeds.index(job.spec.seed) - 1]
        for trial, tried in lab.tried.items():
            spec = lab.trials.spec(ARM, tried.values, seed=job.spec.seed, env_steps=job.spec.env_steps)
            if spec.config_hash == job.spec.config_hash:
                return lab.tried[trial].score
        raise ValueError("a job of this lab was not measured by its world")


def open_world_lab(world: World, trials: int, seed: int, folder: Path) -> WorldLab:
    """A new campaign in `folder` that tunes the world's model family for `trials` rounds."""
    paths = Paths.of(folder)
    paths.ensure()
    ledger = Ledger(paths.ledger_url)
    side, learner = world.space.side, world.space.learners[0]  # as the table names them, whatever the name means now
    question = parse_goal(f"find the best {side.name} on {world.space.task}")
    question = question.model_copy(update={"challenger": side, "baseline": default_of(side, learner)})
    plan = Plan(
        budget=Budget(env_steps=10**12),
        design=Design(
            name="search alone",
            baseline_seeds=1 + len(world.default_scores),
            rounds=trials,
            top=1,
            selection_seeds=1,
            confirmation_seeds=5,
        ),
        tuned_arms=1,
        env_steps_full=world.env_steps,
        env_steps_search=world.env_steps,
        workers=1,
        steps_per_s=None,
        suggesting=SUGGESTING,
        proposing=PROPOSING_RULE,
    )
    number = create_campaign(ledger, question, plan, seed=seed, llm="bench proposers")
    holder: list[WorldLab] = []
    lab = WorldLab(ledger, number, WorldExecutor(lambda: holder[0]), paths)
    lab.world, lab.trials.parameters = world, world.parameters
    lab.trials.spaces[ARM] = world.space
    lab.tried = {0: world.measure(world.space.default_values())}
    holder.append(lab)
    return lab
