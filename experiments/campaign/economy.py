"""What a campaign has to spend and how: the clock, throughput, a plan that is made to fit, pruning and what it buys.

Nothing here depends on a clock where the budget is in env steps, so such a campaign is the same on every machine.
"""

from __future__ import annotations

import bisect
import math
import time
from collections.abc import Sequence

from sqlalchemy import func, select

from experiments.campaign.design import design_test, equal_time
from experiments.campaign.journal import Journal
from experiments.campaign.plan import FEWEST_TRIALS, MIN_ITERATIONS, Plan
from experiments.campaign.trials import Trials
from experiments.campaign.views import BudgetView
from experiments.ledger.models import Campaign, Run
from experiments.ledger.waste import count_waste
from experiments.numbers import format_count, format_seconds
from experiments.runs.executor import Rung
from experiments.runs.machine import default_memory_limit_mb
from experiments.runs.runner import TIME_LIMIT_S
from experiments.search.pruning import make_pruning
from experiments.search.space import plan_unit
from experiments.spec import RunSpec
from experiments.vocabulary import FINISHED

USABLE = 0.99  # of the budget in wall time
JUDGING_S = 6.0  # from the end of the last run to the end of the report
FINAL_SHARE = 0.6  # of the planned time of the final runs that the search must leave: they may be shortened a little
SLOWER = 0.9  # a machine at less than this share of the planned throughput has the whole campaign shortened, not its end alone
LONGER = 1.5  # a confirmation run is at most so many times as long as those that chose its configuration


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

    def seconds_of(self, spec: RunSpec) -> float | None:
        """Wall seconds that a run of a specification takes among others: by this campaign's runs of the same configuration, else
        of its model and learner, else of any. None where nothing was measured."""
        query = select(Run).where(Run.campaign_id == self.campaign_id, Run.status == "done", Run.train_s > 0)
        with self.ledger.session() as session:
            rows = [
                (run.variant_hash, run.model, run.learner, run.env_steps, run.train_s, run.wall_s)
                for run in session.execute(
                    query.with_only_columns(
                        Run.variant_hash,
                        Run.model,
                        Run.spec["learner"]["kind"].as_string().label("learner"),
                        Run.env_steps,
                        Run.train_s,
                        Run.wall_s,
                    )
                )
            ]
        if not rows:
            rate = self.plan.steps_per_s
            return None if rate is None else spec.env_steps / rate + self.plan.startup_s
        kinds = (spec.policy.model.kind, spec.learner.kind)
        own = [row for row in rows if row[0] == spec.variant_hash]
        rows = own or [row for row in rows if (row[1], row[2]) == kinds] or rows
        rate = sum(row[3] for row in rows) / sum(row[4] for row in rows)
        beyond = [wall_s - train_s for *_, train_s, wall_s in rows if wall_s is not None and wall_s > train_s]
        return spec.env_steps / rate + (sum(beyond) / len(beyond) if beyond else self.plan.startup_s)

    def longest_first(self, run_ids: Sequence[int]) -> list[int]:
        """Runs in the order in which they leave the fewest workers idle at the end (Graham 1969, LPT)."""
        if len(run_ids) <= self.plan.workers:
            return list(run_ids)
        specs = {i: RunSpec.model_validate(self.ledger.get_run(i).spec) for i in run_ids}
        seconds = {i: self.seconds_of(spec) or spec.env_steps for i, spec in specs.items()}
        return sorted(run_ids, key=lambda i: -round(seconds[i], 1))

    def search_left_s(self) -> float | None:
        """Wall seconds that the search may still take; None without a budget in wall time or a measured throughput."""
        budget_s, rate = self.plan.budget.wall_s, self.steps_per_s()
        if budget_s is None or rate is None:
            return None
        runs = self._final_runs()
        final_s = (runs * self.plan.env_steps_full / rate + runs * self.plan.startup_s) / self.plan.workers
        share = FINAL_SHARE
        if self.journal.round * self.plan.trials_at_once < FEWEST_TRIALS:
            unit = plan_unit(list(self.trials.spaces.values()))
            share = min(share, MIN_ITERATIONS * unit / self.plan.env_steps_full)
        return USABLE * budget_s - JUDGING_S - self.spent_s - share * final_s

    def time_is_short(self) -> bool:
        """Whether another search round would leave too little wall time for selection and confirmation."""
        left_s, rate = self.search_left_s(), self.steps_per_s()
        if left_s is None or rate is None or self.journal.round == 0:
            return False
        at_once = math.ceil(len(self.trials.arms) * self.plan.trials_at_once / self.plan.workers)
        return at_once * (self.plan.env_steps_search / rate + self.plan.startup_s) > left_s

    def time_limit_s(self) -> float:
        """Seconds after which a run is ended: ten times what the longest should take."""
        rate, longest = self.steps_per_s(), max(self.plan.env_steps_full, self.plan.confirmation_steps)
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
        return self.plan.shape.fulls

    # ---- changes of the plan ------------------------------------------------------------

    def fit_search(self) -> None:
        """Shorten all that follows together where the machine is slower than it was when the plan was made; only before the
        search's own runs, of which the defaults' are then trained again."""
        budget_s, rate, planned = self.plan.budget.wall_s, self.steps_per_s(), self.plan.steps_per_s
        if budget_s is None or rate is None or planned is None or self.plan.env_steps_baseline is not None:
            return
        if not self.plan.pilot or self.journal.is_launched(0) or rate > SLOWER * planned:
            return
        shape, unit = self.plan.shape, plan_unit(list(self.trials.spaces.values()))
        left_s = (USABLE * budget_s - JUDGING_S - self.spent_s) * self.plan.workers - shape.starts * self.plan.startup_s
        search = len(self.trials.arms) * shape.design.rounds * shape.at_once
        steps = search * self.plan.env_steps_search + shape.fulls * self.plan.env_steps_full
        share = left_s * rate / steps
        if share >= SLOWER:
            return
        shorter = {
            name: max(int(share * length) // unit * unit, MIN_ITERATIONS * unit)
            for name, length in (("env_steps_search", self.plan.env_steps_search), ("env_steps_full", self.plan.env_steps_full))
        }  # fmt: skip
        pruning = make_pruning(
            shorter["env_steps_search"], iteration_steps=unit, trials=shape.design.rounds * shape.at_once
        )
        self._replan(
            self.plan.model_copy(
                update={**shorter, "env_steps_baseline": self.plan.env_steps_search, "pruning": pruning}
            ),
            f"this machine trains {rate:,.0f} env steps/s and not {planned:,.0f}: search runs are shortened to "
            f"{format_count(shorter['env_steps_search'])} and final runs to {format_count(shorter['env_steps_full'])} env steps, so that "
            "no configuration is dropped",
        )

    def fit_confirmation(self) -> None:
        """Fix the length of the confirmation runs, just before the claim, so that the campaign ends with its budget: shorter where
        time ran away, up to `LONGER` times as long where it was saved. Their number was fixed with the plan."""
        budget_s = self.plan.budget.wall_s
        if budget_s is None or not self.plan.design.race or self.steps_per_s() is None or self.plan.extends is not None:
            return
        unit, left_s = plan_unit(list(self.trials.spaces.values())), USABLE * budget_s - JUDGING_S - self.spent_s
        units = range(MIN_ITERATIONS, int(LONGER * self.plan.env_steps_full) // unit + 1)
        after = bisect.bisect_right(units, left_s, key=lambda count: self._confirming_s(count * unit))
        fits = units[max(after - 1, 0)] * unit
        if fits != self.plan.env_steps_full:
            self._replan(
                self.plan.model_copy(update={"env_steps_confirmation": fits}),
                f"{format_seconds(max(left_s, 0))} are left: confirmation runs get {format_count(fits)} env steps in place of "
                f"{format_count(self.plan.env_steps_full)}",
            )

    def _confirming_s(self, env_steps: int) -> float:
        """Wall seconds of all confirmation runs with so many env steps, the longest first on each worker that is free."""
        timed = equal_time(self.trials, env_steps, plan_unit(list(self.trials.spaces.values())))
        split = design_test(self.trials, self.plan.confirmation_seeds).split
        each: list[float] = []
        for place, arm in enumerate(self.trials.sides):
            values = self.trials.winner(arm)[1]
            lengths = (
                {env_steps} if timed is None else {int(getattr(timed, arm)), *(() if timed.alone else (env_steps,))}
            )
            seconds = [self.seconds_of(self.trials.spec(arm, values, seed=0, env_steps=n)) or 0.0 for n in lengths]
            each += seconds * (self.plan.confirmation_seeds if split is None else split[place])
        ends = [0.0] * self.plan.workers
        for run_s in sorted(each, reverse=True):
            ends[ends.index(min(ends))] += run_s
        return max(ends)

    def fit_full_length(self) -> None:
        """Shorten the final runs where the machine turned out slower than planned; only before any of them ran."""
        budget_s, rate = self.plan.budget.wall_s, self.steps_per_s()
        if budget_s is None or rate is None or self.ledger.runs(self.campaign_id, purpose="selection"):
            return
        runs = self._final_runs()
        left_s = max(USABLE * budget_s - self.spent_s - JUDGING_S, 0.0) * self.plan.workers
        left_s -= runs * self.plan.startup_s
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
        bought = min(saved // (self.plan.env_steps_search * self.plan.trials_at_once), self.plan.design.rounds)
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
        begin = self.plan.trials_of(self.plan.round_of(trial)).start
        saved = {a: self.trials.saved(a, before=begin) for a in self.trials.arms}
        if any(saved[arm] > other for other in saved.values()):
            return None
        earlier = [
            score
            for t in self.trials.finished(arm)
            if t.number < begin
            for steps, score in self.trials.rungs(t.run.id)
            if steps == rung.env_steps
        ]
        return rule.why_prune(rung.number, rung.score, earlier)
