"""How a campaign begins: a budget becomes a plan for the question's arms, and both become its row.

The one planner of everybody who starts a campaign, the command line and `solve_task` alike.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from core.errors import InputError
from env_runner.task_distributions import get_family
from experiments.campaign.design import asks_for_both
from experiments.campaign.memory import remembered, telling_shares
from experiments.campaign.plan import STARTUP_S, Budget, Plan, make_plan
from experiments.campaign.question import Question
from experiments.campaign.sides import no_ledger
from experiments.campaign.trials import space_of
from experiments.ledger.models import Campaign
from experiments.ledger.store import Ledger, now
from experiments.runs.machine import available_workers
from experiments.runs.paths import Paths
from experiments.runs.provenance import provenance
from experiments.runs.throughput import measure_throughput
from experiments.search.side import Recorded
from experiments.search.space import SearchSpace, plan_unit
from experiments.spec import recorded_spec
from experiments.vocabulary import Arm, readable_id
from meta_rl.learner import LEARNERS


def recorded_in(open_ledger: Callable[[], Ledger | None]) -> Callable[[str], Recorded]:
    """What gives a run of the ledger as a side of a goal; the ledger is opened only where a goal names one."""

    def find(name: str) -> Recorded:
        ledger = open_ledger()
        if ledger is None:
            return no_ledger(name)
        run = ledger.get_run(ledger.resolve(name, "run"))
        spec = recorded_spec(run.spec, readable_id("r", run.id), run.provenance)
        present = get_family(spec.task).version
        if run.task_version != present:
            raise InputError(f"goal: {readable_id('r', run.id)} was trained on {run.task_version}, here is {present}")
        return Recorded(run=readable_id("r", run.id), spec=spec.model_dump(mode="json"))

    return find


def plan_campaign(
    question: Question,
    budget: Budget,
    paths: Paths,
    *,
    ledger: Ledger | None = None,
    memory_limit_mb: int | None = None,
    time_ratio: float | None = None,
    stop: threading.Event | None = None,
    say: Callable[[str], None] = lambda words: None,
    part: float = 1.0,
) -> Plan:
    """The richest design that fits `budget` on this machine.

    For a budget in wall time the training throughput is measured first, in a folder of its own below `paths`; setting
    `stop` ends that with Paused. ledger: what may be known of the task already. memory_limit_mb: MiB that one run may occupy; the machine decides where None.
    time_ratio: see `Plan`. part: `budget` over what a person gave, such as what is left beside a chat model's time.
    Raises InputError where the budget is too small for any design.
    """
    get_family(question.task).check()
    if question.parity == "time" and budget.wall_s is None and time_ratio is None:
        raise InputError(
            "goal: equal training time needs a throughput, and a budget in env steps depends on no clock: give --budget in place of "
            "--env-steps, or --time-ratio, the challenger's env steps a second over the baseline's"
        )
    workers = available_workers()
    spaces = [space_of(question, side) for side in question.sides]
    steps_per_s, startup_s = None, STARTUP_S
    if budget.wall_s is not None:
        say("Measuring this machine's training throughput, half a minute where nothing else uses the cores ...")
        measured = measure_throughput(spaces, paths, workers, stop or threading.Event())
        steps_per_s, startup_s = measured.steps_per_s, measured.startup_s
        say(
            f"Measured {steps_per_s:,.0f} env steps/s a run with {workers} at once, "
            f"{startup_s:.1f} s of start and evaluation a run."
        )
    arms = question.arms if question.baseline_is_tuned else question.arms[:1]
    tuned: dict[Arm, SearchSpace] = dict(zip(arms, spaces, strict=False))
    return make_plan(
        budget,
        iteration_steps=plan_unit(spaces),
        horizon=get_family(question.task).horizon,
        tuned_arms=len(arms),
        workers=workers,
        steps_per_s=steps_per_s,
        startup_s=startup_s,
        memory_limit_mb=memory_limit_mb,
        learning_episodes=max(LEARNERS[name].config_type.learning_episodes for name in question.learners),
        memory=remembered(ledger, question, tuned),
        shares=None if ledger is None else telling_shares(ledger, question.task),
        timed=asks_for_both(question, budget, time_ratio),
        time_ratio=time_ratio,
        part=part,
    )


def create_campaign(
    ledger: Ledger, question: Question, plan: Plan, *, seed: int, llm: str, spent_s: float = 0.0
) -> int:
    """Write a new campaign at stage `baseline` and return its id: question and plan are what is written.

    spent_s: wall seconds that count towards its budget already, where another process goes on with it.
    """
    return ledger.add(
        Campaign(
            goal=question.goal,
            question=question.model_dump(mode="json"),
            plan=plan.model_dump(mode="json"),
            seed=seed,
            stage="baseline",
            status="paused",
            llm=llm,
            spent_s=spent_s,
            provenance=provenance(),
            created_at=now(),
        )
    )
