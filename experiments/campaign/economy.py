"""What a campaign has to spend and how: the clock, throughput, a plan that is made to fit, pruning and what it buys.

Nothing here depends on a clock where the budget is in env steps, so such a campaign is the same on every machine.
"""

from __future__ import annotations

import math
import time

from sqlalchemy import func, select

from experiments.campaign.journal import Journal
from experiments.campaign.plan import MIN_ITERATIONS, Plan
from experiments.campaign.trials import Trials
from experiments.campaign.views import BudgetView
from experiments.campaign.waste import count_waste
from experiments.ledger.models import Campaign, Run
from experiments.numbers import format_count, format_seconds
from experiments.runs.executor import Rung
from experiments.runs.machine import default_memory_limit_mb
from experiments.runs.runner import TIME_LIMIT_S
from experiments.search.space import plan_unit
from experiments.spec import RunSpec
from experiments.vocabulary import FINISHED

USABLE = 0.95  # of the budget in wall time; the rest is for judging and the report
FINAL_SHARE = 0.6  # of the planned time of the final runs that the search must leave: they may be shortened a little


class Economy:
    """The means of one campaign.

    spent_before_s: wall seconds of earlier sittings. began: when this one began (time.monotonic()), None for now.
    """

    def __init__(self, trials: Trials, journal: Journal, *, spent_before_s: float, began: float | None) -> None:
        self.trials, self.journal = trials, journal
        self.ledger, self.campaign_id = trials.ledger, trials.campaign_id
        self._spent_before_s = spent_before_s
        self._since = time.monotonic() if began is None else began

    @property
    def plan(self) -> Plan:
        return self.trials.plan

    # ---- the clock and what it says -----------------------------------------------------

    @property
    def spent_s(self) -> float:
        """Wall seconds of all sittings."""
        return self._spent_before_s + time.monotonic() - self._since

    def rest(self, seconds: float) -> None:
        """Take time off the clock that was spent waiting for a person."""
        self._since += seconds

    def steps_per_s(self, spec: RunSpec | None = None) -> float | None:
        """Training throughput of one worker: measured in this campaign's runs (of a specification's model and learner where it
        has any), else what the plan measured."""
        with self.ledger.session() as session:
            query = select(Run.env_steps, Run.train_s, Run.model, Run.spec["learner"]["kind"].as_string())
            query = query.where(Run.campaign_id == self.campaign_id, Run.status == "done")
            rows = [(s, t, (m, kind)) for s, t, m, kind in session.execute(query) if t]
        if not rows:
            return self.plan.steps_per_s
        if spec is not None:
            rows = [row for row in rows if row[2] == (spec.policy.model.kind, spec.learner.kind)] or rows
        return sum(s for s, _, _ in rows) / sum(t for _, t, _ in rows)

    def search_left_s(self) -> float | None:
        """Wall seconds that the search may still take; None without a budget in wall time or a measured throughput."""
        budget_s, rate = self.plan.budget.wall_s, self.steps_per_s()
        if budget_s is None or rate is None:
            return None
        runs = self._final_runs()
        final_s = (runs * self.plan.env_steps_full / rate + runs * self.plan.startup_s) / self.plan.workers
        return USABLE * budget_s - self.spent_s - FINAL_SHARE * final_s

    def time_is_short(self) -> bool:
        """Whether another search round would leave too little wall time for selection and confirmation."""
        left_s, rate = self.search_left_s(), self.steps_per_s()
        if left_s is None or rate is None or self.journal.round == 0:
            return False
        at_once = math.ceil(len(self.trials.arms) / self.plan.workers)
        return at_once * (self.plan.env_steps_search / rate + self.plan.startup_s) > left_s

    def time_limit_s(self) -> float:
        """Seconds after which a run is ended: ten times what the longest should take."""
        rate, longest = self.steps_per_s(), max(self.plan.env_steps_full, self.plan.env_steps_search)
        return TIME_LIMIT_S if rate is None else 120 + 10 * longest / rate

    def memory_limit_mb(self) -> int:
        """MiB that a run may occupy."""
        return self.plan.memory_limit_mb or default_memory_limit_mb(self.plan.workers)

    def budget(self, *, rounds_finished: int, steps_in_training: int) -> BudgetView:
        """What was spent and what is planned. steps_in_training: env steps so far of the runs that train now."""
        with self.ledger.session() as session:
            steps, finished = session.execute(
                select(func.coalesce(func.sum(Run.env_steps), 0), func.count()).where(
                    Run.campaign_id == self.campaign_id, Run.status.in_(FINISHED)
                )
            ).one()
        return BudgetView(
            wall_s_spent=round(self.spent_s, 1),
            wall_s_planned=self.plan.budget.wall_s or self.plan.expected_s,
            env_steps_spent=int(steps) + steps_in_training,
            env_steps_planned=self.plan.env_steps_total,
            runs_finished=int(finished),
            runs_planned=self.plan.runs,
            rounds_finished=rounds_finished,
            rounds_planned=self.plan.rounds,
            wasted_trials=count_waste(self.ledger, self.campaign_id).sentence(),
        )

    def _final_runs(self) -> int:
        design = self.plan.design
        return len(self.trials.arms) * design.top * design.selection_seeds + 2 * design.confirmation_seeds

    # ---- changes of the plan ------------------------------------------------------------

    def fit_full_length(self) -> None:
        """Shorten the final runs where the machine turned out slower than planned; only before any of them ran."""
        budget_s, rate = self.plan.budget.wall_s, self.steps_per_s()
        if budget_s is None or rate is None or self.ledger.runs(self.campaign_id, purpose="selection"):
            return
        runs = self._final_runs()
        left_s = max(USABLE * budget_s - self.spent_s - 10, 0.0) * self.plan.workers - runs * self.plan.startup_s
        # Run lengths are whole multiples of this many env steps, whatever number of worlds a trial chose.
        unit = plan_unit(list(self.trials.spaces.values()))
        fits = int(left_s * rate / runs) // unit * unit
        full = max(min(fits, self.plan.env_steps_full), MIN_ITERATIONS * unit)
        if full < self.plan.env_steps_full:
            self._replan(
                self.plan.model_copy(update={"env_steps_full": full}),
                f"{format_seconds(self.spent_s)} spent at {rate:,.0f} env steps/s: selection and confirmation "
                f"runs are shortened from {format_count(self.plan.env_steps_full)} to {format_count(full)} env steps",
            )

    def buy_rounds(self) -> None:
        """What pruning saved buys further search rounds, for all arms alike, so that they keep equal numbers of trials."""
        if self.plan.pruning is None or self.journal.stage != "search":
            return
        saved = min(self.trials.saved(arm) for arm in self.trials.arms)
        bought = min(saved // self.plan.env_steps_search, self.plan.design.rounds)
        if bought > self.plan.rounds_bought:
            plan = self.plan.model_copy(update={"rounds_bought": bought})
            self._replan(
                plan,
                f"pruning saved {format_count(saved)} env steps on each side: the search has {plan.rounds} rounds in place of "
                f"{self.plan.rounds}",
            )

    def _replan(self, plan: Plan, words: str) -> None:
        with self.ledger.session() as session:
            session.get_one(Campaign, self.campaign_id).plan = plan.model_dump(mode="json")
        self.journal.record_event("replan", "lab", {"text": words})
        self.trials.plan = plan

    # ---- pruning ------------------------------------------------------------------------

    def why_prune(self, run: Run, rung: Rung) -> str | None:
        """The decision about a search run at a rung, from rows of rounds before its own alone; None lets it go on."""
        rule, arm, trial = self.plan.pruning, run.arm, run.trial
        if rule is None or arm is None or not trial:  # trial 0, every arm's default, is always trained to its end
            return None
        saved = {a: self.trials.saved(a, before=trial) for a in self.trials.arms}
        if any(saved[arm] > other for other in saved.values()):
            return None
        earlier = [
            score
            for t in self.trials.finished(arm)
            if t.number < trial
            for steps, score in self.trials.rungs(t.run.id)
            if steps == rung.env_steps
        ]
        return rule.why_prune(rung.number, rung.score, earlier)
