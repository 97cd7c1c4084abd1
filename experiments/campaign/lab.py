"""One campaign and everything that may be done in it: by the crew's tools, by a person, by the workflow's own code.

Methods above the line "for the workflow's code alone" may be wrapped as tools: they reach the search pool only, take
no measured value and write no verdict. All state is in the ledger, so a new `Lab` on the same campaign goes on where the
last one stopped. Bad arguments raise InputError; `Paused` is raised where work was asked to stop.
"""

from __future__ import annotations

import json
import math
import os
import statistics as stdlib_statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from sqlalchemy import func, select

from core.errors import InputError, bad_value, unknown_name
from core.numbers import format_count, format_seconds
from experiments.campaign.claims import claim_content, confirmation_rows
from experiments.campaign.gate import (
    NEAR,
    PROBE_LIMIT_S,
    Probe,
    is_near,
    probe,
    static_problems,
)
from experiments.campaign.holder import describe_holder, is_alive, this_process
from experiments.campaign.plan import MIN_ITERATIONS, Plan
from experiments.campaign.question import Question
from experiments.campaign.trials import AGENT_SHARE, Trials, best_first
from experiments.campaign.views import (
    BudgetView,
    ClaimView,
    DecisionView,
    EventView,
    FeasibilityView,
    NoteView,
    ProposalView,
    RoundView,
    SpaceView,
    SuggestionView,
    VerdictView,
)
from experiments.campaign.waste import count_waste
from experiments.judging import judge as judging
from experiments.judging.judge import ClaimContent, VerdictContent
from experiments.ledger.models import Campaign, Claim, Event, Run, Verdict
from experiments.ledger.store import Ledger, now, readable_id
from experiments.runs.executor import Executor, Rung
from experiments.runs.machine import default_memory_limit_mb
from experiments.runs.paths import Paths
from experiments.runs.runner import TIME_LIMIT_S, Paused, ProgressListener, RunProgress, execute_runs, queue_run
from experiments.search.early_end import why_not_yet
from experiments.search.space import (
    ROLES,
    Value,
    count_parameters,
    iteration_steps,
    plan_unit,
)
from experiments.spec import RunSpec
from experiments.tables import TableView, flatten
from experiments.vocabulary import FINISHED

Stage = Literal["question", "plan", "baseline", "search", "selection", "claim", "confirmation", "verdict", "done"]
STAGES: tuple[Stage, ...] = (
    "question",
    "plan",
    "baseline",
    "search",
    "selection",
    "claim",
    "confirmation",
    "verdict",
    "done",
)
MAX_REFUSALS = 6  # of the optimizer in one round; what it suggests then is trained, and counted where it is wasted
VIEWS = ("incumbent", "top", "runs", "failures", "baseline", "sensitivity")

__all__ = ["STAGES", "Lab", "Paused"]


class Lab:
    """The hands of one campaign.

    ledger, executor, paths: where rows are written, runs executed and files kept.
    listener: called with the progress of every run, in the thread that executes.
    began: when this sitting began (time.monotonic()), so that planning counts towards the budget.
    """

    agent_share = AGENT_SHARE

    def __init__(
        self,
        ledger: Ledger,
        campaign_id: int,
        executor: Executor,
        paths: Paths,
        *,
        listener: ProgressListener | None = None,
        began: float | None = None,
    ) -> None:
        self.ledger, self.executor, self.paths, self.listener = ledger, executor, paths, listener
        self.number = campaign_id
        self.campaign_id = readable_id("c", campaign_id)
        row = ledger.get_campaign(campaign_id)
        self.question = Question.model_validate(row.question)
        self.plan = Plan.model_validate(row.plan)
        self.stop_event = threading.Event()
        self._lock = threading.RLock()
        self._progress: dict[int, RunProgress] = {}
        self._since = time.monotonic() if began is None else began
        self._spent_before = row.spent_s
        self.trials = Trials(ledger, campaign_id, self.question, self.plan, row.seed)
        self.arms = self.trials.arms
        self._passed: set[int] = set()  # rounds whose suggestions went through the feasibility gate
        self._buy_rounds()  # an interruption may have come between a pruned run and the round that it pays for

    # ---- state --------------------------------------------------------------------------

    @property
    def stage(self) -> Stage:
        return self.ledger.get_campaign(self.number).stage  # type: ignore[return-value]

    @property
    def round(self) -> int:
        """Search rounds whose runs are all finished; the index of the round to be worked on."""
        with self._lock:
            launched, number = {e.payload["round"] for e in self.events(["launch"])}, 0
            finished = min(len(self.trials.finished(arm)) for arm in self.arms)
            while number in launched and number < finished:
                number += 1
            return number

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Marks the campaign as worked on by this process; InputError where another one holds it."""
        with self.ledger.session() as session:
            row = session.get_one(Campaign, self.number, with_for_update=True)
            if (
                row.status == "running"
                and row.holder is not None
                and row.holder["pid"] != os.getpid()
                and is_alive(row.holder)
            ):
                raise InputError(
                    f"{self.campaign_id} is being worked on by {describe_holder(row.holder)}. Pause that one first: python main.py pause {self.campaign_id}"
                )
            row.status = "running" if row.stage != "done" else "done"
            row.holder = this_process()
        released = threading.Event()
        threading.Thread(target=self._listen_for_pause, args=(released,), daemon=True).start()
        try:
            yield
        except (Paused, KeyboardInterrupt):
            self._let_go("paused")
            raise
        except BaseException:
            self._let_go("failed")
            raise
        finally:
            released.set()
        self._let_go("done" if self.stage == "done" else "paused")

    def _listen_for_pause(self, released: threading.Event) -> None:
        """A second process asks for a pause or an end by an event; looked for every two seconds."""
        with self.ledger.session() as session:
            last = session.scalar(select(func.max(Event.id)).where(Event.campaign_id == self.number)) or 0
        while not released.wait(2.0):
            if self.events(["pause", "stop"], after=last):
                self.stop_event.set()
                return

    def _let_go(self, status: str) -> None:
        with self.ledger.session() as session:
            row = session.get_one(Campaign, self.number)
            row.status, row.holder, row.spent_s = status, None, self.spent_s
            if status == "done" and row.ended_at is None:
                row.ended_at = now()

    @property
    def spent_s(self) -> float:
        """Wall seconds of all sittings."""
        return self._spent_before + time.monotonic() - self._since

    def rest(self, seconds: float) -> None:
        """Take time off the clock that was spent waiting for a person."""
        self._since += seconds

    # ---- what tools may call ------------------------------------------------------------

    def describe_search_space(self, arm: str, role: str | None = None) -> SpaceView:
        """The tunable fields of an arm, of one role's slice where it is named."""
        return SpaceView(arm=arm, parameters=self.trials.space(arm).of_role(role))

    def ledger_query(self, view: str, arm: str | None = None, limit: int = 8) -> TableView:
        """A compact table of search-pool facts: incumbent, top, runs, failures, baseline or sensitivity."""
        if view not in VIEWS:
            raise unknown_name("view", view, VIEWS)
        if arm is not None:
            self.trials.space(arm)
        if not 1 <= limit <= 50:
            raise bad_value("limit", limit, "from 1 to 50")
        if view == "baseline":
            return self._baseline_table()
        if view == "sensitivity":
            from experiments.campaign.sensitivity import sensitivity_table

            arm = arm or "challenger"
            return sensitivity_table(self.trials.finished(arm), self.trials.space(arm).parameters, limit)
        if view == "failures":
            runs = [r for r in self._search_runs(arm) if r.status in FINISHED and r.status not in ("done", "pruned")]
            rows = [(readable_id("r", r.id), r.arm, r.status, r.cause) for r in runs[-limit:]]
            return TableView(columns=("run", "arm", "status", "cause"), rows=tuple(rows))
        trials = [t for a in ([arm] if arm else self.arms) for t in self.trials.finished(a)]
        if view in ("incumbent", "top"):
            trials = best_first(trials)
            if view == "incumbent":
                trials = [next(t for t in trials if t.arm == a) for a in dict.fromkeys(t.arm for t in trials)]
        level, floor = self.trials.baseline_mean(), self.trials.noise_floor()
        rows = tuple(
            (
                readable_id("r", t.run.id), t.arm, t.number, t.run.status, _rounded(t.score),
                None if t.score is None or level is None or not floor else round((t.score - level) / floor, 1),
                _describe(t.values),
            )
            for t in trials[:limit]
        )  # fmt: skip
        note = f"noise floors: distance from the baseline's default in units of {floor:.3g}" if floor else ""
        return TableView(
            columns=("run", "arm", "trial", "status", "score", "noise floors", "configuration"), rows=rows, note=note
        )

    def suggest(self, arm: str) -> SuggestionView:
        """The optimizer's configuration for the present round: the default first, multivariate TPE from then on."""
        with self._lock:
            trial = self.round
            self._must_be_open(trial)
            self.trials.space(arm)
            self._pass_suggestions(trial)
            return self.trials.suggest(arm, trial)

    def propose(
        self,
        *,
        arm: str,
        role: str,
        values: dict[str, Value],
        reason: str,
        predicted_effect: str = "",
        evidence: Sequence[str] = (),
        source: Literal["optimizer", "agent"] = "agent",
    ) -> ProposalView:
        """Set one role's slice of the present round. A repeated call replaces it until the round is launched.

        Trial 0 is the default configuration of every arm by rule, so other values are refused there. The ledger, not
        the caller, says where values came from: `source` is kept as "optimizer" only where they equal the suggestion.
        """
        with self._lock:
            space, trial = self.trials.space(arm), self.round
            self._must_be_open(trial)
            if role not in ROLES:
                raise unknown_name("role", role, ROLES)
            values = space.check_values(values, role)
            suggestion = self.suggest(arm)
            suggested = {p.name: suggestion.values[p.name] for p in space.of_role(role) if p.name in suggestion.values}
            if trial == 0:
                wrong = {k: v for k, v in values.items() if k in suggested and v != suggested[k]}
                if wrong:
                    name, value = next(iter(wrong.items()))
                    raise bad_value(name, value, f"{suggested[name]} in round 0: trial 0 is every arm's default")
                values, origin = suggested, "default"
            else:
                origin = source if all(suggested.get(k) == v for k, v in values.items()) else "agent"
                origin = suggestion.source if origin == "optimizer" else origin
            self._check_evidence(evidence)
            present = next((p.changes for p in self.trials.slices(arm, trial) if p.role == role), None)
            if present != values and self._is_launched(trial):  # its run may be half trained already
                raise InputError(f"round {trial + 1} is launched: its configuration stands. Propose in the next round")
            if origin == "agent" and trial > 0:
                self._check_share(trial)
                problem = self._examine({arm: self.trials.joint(arm, trial, role, values)}, trial)[arm]
                if problem is not None:
                    self._refuse(arm, trial, values, problem, source="agent", role=role)
                    raise InputError(f"{arm}, round {trial + 1}: refused before it is run: {problem}")
            return self.trials.write_proposal(
                arm, trial, role, values, origin, reason=reason, effect=predicted_effect, evidence=list(evidence)
            )

    def open_round(self, actor: str) -> None:
        """A person wants the agents to shape the present round, whether or not their share is used up."""
        with self._lock:
            if self.round not in self._opened():
                self.record_event("opened", actor, {"round": self.round})

    def check_feasibility(self, arm: str, values: dict[str, Value]) -> FeasibilityView:
        """Whether `values`, completed with defaults, can be trained within the plan, and at what cost."""
        try:
            values = self.trials.space(arm).complete(self.trials.space(arm).check_values(values))
            spec = self.trials.spec(
                arm, values, seed=self.trials.seeds("search")[0], env_steps=self.plan.env_steps_search
            )
            parameters = count_parameters(spec)
        except InputError as error:
            return FeasibilityView(
                feasible=False, problems=(str(error),), parameters=None, expected_s=None, same_as=None
            )
        rate = self._steps_per_s(spec.policy.model.kind)
        expected_s = None if rate is None else round(spec.env_steps / rate + self.plan.startup_s, 1)
        problems = static_problems(
            spec,
            self.trials.parameters,
            memory_limit_mb=self._memory_limit_mb(),
            expected_s=expected_s,
            left_s=self._left_for_search_s(),
        )
        known = self._probes().get(spec.config_hash)
        if known is not None and known.problem is not None:
            problems.append(known.problem)
        return FeasibilityView(
            feasible=not problems,
            problems=tuple(problems),
            parameters=parameters,
            expected_s=expected_s,
            same_as=self._same_trial(arm, values, self.plan.rounds),
            memory_mb=None if known is None else known.memory_mb,
        )

    def prepare_round(self) -> TableView:
        """Complete the present round's configurations, as `launch` would, and show them. Nothing is trained."""
        with self._lock:
            trial = self.round
            self._must_be_open(trial)
            rows = []
            for arm, values in self._settle(trial).items():
                rows.append((arm, self.trials.proposer(arm, trial, "search"), _describe(values)))
            return TableView(columns=("arm", "proposed by", "configuration"), rows=tuple(rows))

    def launch(self) -> RoundView:
        """Train the present round's trial of every arm, two at once, and return the scores. Idempotent by round."""
        with self._lock:
            trial = self.round
            self._must_be_open(trial)
            run_ids, near = [], {}
            for arm, values in self._settle(trial).items():
                spec = self.trials.spec(
                    arm, values, seed=self.trials.seeds("search")[0], env_steps=self.plan.env_steps_search
                )
                run_ids.append(self._queue_once(spec, "search", "search", arm, trial))
                if same := self._same_trial(arm, values, trial):
                    near[arm] = same
            # A configuration may have been trained already, so what launches a round is this event and not its runs.
            runs = [readable_id("r", i) for i in run_ids]
            self.record_event("launch", "lab", {"round": trial, "runs": runs, "near": near})
            self._execute(run_ids)
            self._buy_rounds()
            return self._round_view(trial)

    def peek(self) -> TableView:
        """The runs that are training now."""
        rows = [
            (readable_id("r", p.run_id), p.arm, p.env_steps, p.env_steps_planned, _rounded(p.train_return))
            for p in list(self._progress.values())
            if p.status == "running" and p.purpose in ("baseline", "search")
        ]
        return TableView(columns=("run", "arm", "env_steps", "of", "training return"), rows=tuple(rows))

    def compare_variants(self, first: str, second: str) -> TableView:
        """Two runs of the search pool: what differs in the configuration, and the scores in units of the noise floor."""
        a, b = self._search_run(first), self._search_run(second)
        left, right = flatten(a.spec), flatten(b.spec)
        rows: list[tuple[str | float | int | None, ...]] = [
            (name, str(left.get(name)), str(right.get(name)))
            for name in sorted(left.keys() | right.keys())
            if left.get(name) != right.get(name)
        ]
        rows.append(("score", _rounded(a.score), _rounded(b.score)))
        floor = self.trials.noise_floor()
        note = ""
        if a.score is not None and b.score is not None and floor:
            note = f"{first} minus {second} is {(a.score - b.score) / floor:+.1f} noise floors (one is {floor:.1f})"
        return TableView(columns=("field", first, second), rows=tuple(rows), note=note)

    def analyse_curves(self, arm: str | None = None, run_id: str | None = None, limit: int = 8) -> TableView:
        """Slope, plateau, instability and forecast of search-pool learning curves: one run's, or the newest ones'."""
        from experiments.campaign.curves import curve_table

        if not 1 <= limit <= 20:
            raise bad_value("limit", limit, "from 1 to 20")
        if arm is not None:
            self.trials.space(arm)
        every = [r for r in self._search_runs(arm) if r.status in ("done", "running", "diverged", "pruned")]
        chosen = [self._search_run(run_id)] if run_id is not None else every[::-1][:limit]
        return curve_table(
            self.ledger,
            chosen,
            [r for r in self._search_runs() if r.status == "done"],
            full_steps=self.plan.env_steps_full,
            floor=self.trials.noise_floor(),
        )

    def episode_returns(self, run_id: str) -> TableView:
        """Evaluation return of one search-pool run by episode on the task, and its gain over the first episode."""
        from experiments.campaign.curves import episode_table

        return episode_table(self.ledger, self._search_run(run_id))

    def request_confirmation(self, actor: str, reason: str, evidence: Sequence[str] = ()) -> DecisionView:
        """Ask that the search ends here and the claim is written; `early_end.why_not_yet` decides. Idempotent by round."""
        with self._lock:
            number = self.round
            self._must_be_open(number)
            self._check_evidence(evidence)
            best = {a: next((t.score for t in best_first(self.trials.finished(a))), None) for a in self.arms}
            refused = why_not_yet(
                kind=self.question.kind,
                margin_pct=self.question.improvement_pct,
                rounds_done=number,
                rounds_planned=self.plan.rounds,
                challenger=best.get("challenger"),
                baseline=best.get("baseline", self.trials.baseline_mean()),
                floor=self.trials.noise_floor(),
            )
            text = refused or f"the search ends after {number} rounds: the claim is written next"
            payload = {"text": text, "granted": not refused, "round": number, "reason": reason[:800], "evidence": list(evidence)}  # fmt: skip
            asked = [e for e in self.events(["early_end"]) if e.payload["round"] == number]
            if not any(e.payload["granted"] == payload["granted"] for e in asked):
                self.record_event("early_end", actor, payload)
            return DecisionView(granted=not refused, decision=text)

    def ends_early(self) -> bool:
        """Whether a request to end the search was granted."""
        return any(e.payload["granted"] for e in self.events(["early_end"]))

    def write_note(self, text: str, author: str, target: str | None = None) -> NoteView:
        """Keep a remark about a row; notes are never read by the judge."""
        if not 1 <= len(text.strip()) <= 4000:
            raise bad_value("text", f"{len(text)} characters", "from 1 to 4000 characters")
        target = target or self.campaign_id
        if target.startswith("r-"):
            self._search_run(target)
        elif target != self.campaign_id:
            raise bad_value("target", target, f"{self.campaign_id} or a run such as r-0042")
        return NoteView(id=self.ledger.add_note(target, author, text), target=target)

    def budget(self) -> BudgetView:
        """What was spent and what is planned."""
        with self.ledger.session() as session:
            steps, finished = session.execute(
                select(func.coalesce(func.sum(Run.env_steps), 0), func.count()).where(
                    Run.campaign_id == self.number, Run.status.in_(FINISHED)
                )
            ).one()
        return BudgetView(
            wall_s_spent=round(self.spent_s, 1),
            wall_s_planned=self.plan.budget.wall_s or self.plan.expected_s,
            env_steps_spent=int(steps) + sum(p.env_steps for p in self._progress.values() if p.status == "running"),
            env_steps_planned=self.plan.env_steps_total,
            runs_finished=int(finished),
            runs_planned=self.plan.runs,
            rounds_finished=self.round,
            rounds_planned=self.plan.rounds,
            wasted_trials=count_waste(self.ledger, self.number).sentence(),
        )

    def record_event(self, kind: str, actor: str, payload: dict[str, Any]) -> int:
        """Keep what the crew said or did; the number of the event, which rises."""
        clean = json.loads(json.dumps(payload, default=str))
        return self.ledger.record_event(self.number, kind, actor, clean)

    def events(
        self, kinds: Sequence[str] | None = None, after: int = 0, campaign: str | None = None
    ) -> list[EventView]:
        """Recorded events, oldest first, of this campaign or of another."""
        number = self.number if campaign is None else self.ledger.resolve(campaign, "campaign")
        query = select(Event).where(Event.campaign_id == number, Event.id > after).order_by(Event.id)
        if kinds is not None:
            query = query.where(Event.kind.in_(list(kinds)))
        with self.ledger.session() as session:
            return [EventView(id=e.id, kind=e.kind, actor=e.actor, payload=e.payload) for e in session.scalars(query)]

    # ---- for the workflow's code alone --------------------------------------------------

    def set_stage(self, stage: Stage) -> None:
        """Move the campaign to a later stage."""
        if stage not in STAGES:
            raise unknown_name("stage", stage, STAGES)
        with self.ledger.session() as session:
            row = session.get_one(Campaign, self.number)
            row.stage, row.spent_s = stage, self.spent_s

    def run_baseline(self) -> TableView:
        """Train the baseline's default configuration on several seeds: the noise floor, and its search trial 0."""
        with self._lock:
            run_ids = []
            for number, seed in enumerate(self.trials.seeds("search")[: self.plan.design.baseline_seeds]):
                spec = self.trials.spec("baseline", {}, seed=seed, env_steps=self.plan.env_steps_search)
                trial = 0 if number == 0 else None
                run_ids.append(self._queue_once(spec, "baseline", "search", "baseline", trial))
            self._execute(run_ids)
            return self._baseline_table()

    def time_is_short(self) -> bool:
        """Whether another search round would leave too little wall time for selection and confirmation."""
        budget, rate = self.plan.budget.wall_s, self._steps_per_s()
        if budget is None or rate is None or self.round == 0:
            return False
        rounds = math.ceil(len(self.arms) / self.plan.workers) * (
            self.plan.env_steps_search / rate + self.plan.startup_s
        )
        runs = self._final_runs()
        final = (runs * self.plan.env_steps_full / rate + runs * self.plan.startup_s) / self.plan.workers
        return self.spent_s + rounds + 0.6 * final > 0.95 * budget  # the final runs may be shortened a little

    def run_selection(self) -> TableView:
        """Measure the best few configurations of every arm again, on fresh seeds and other tasks, at full length."""
        with self._lock:
            self._fit_full_length()
            run_ids = []
            # As many places for every arm as the arm with the fewest successful configurations can fill.
            for place in range(min(len(self.trials.candidates(arm)) for arm in self.arms)):
                for seed in self.trials.seeds("selection"):
                    for arm in self.arms:
                        trial, values = self.trials.candidates(arm)[place]
                        spec = self.trials.spec(arm, values, seed=seed, env_steps=self.plan.env_steps_full)
                        run_ids.append(self._queue_once(spec, "selection", "selection", arm, trial))
            self._execute(run_ids)
            rows = [
                (readable_id("r", r.id), r.arm, r.trial, r.status, _rounded(r.score))
                for r in self.ledger.runs(self.number, purpose="selection")
            ]
            return TableView(columns=("run", "arm", "trial", "status", "score"), rows=tuple(rows))

    def write_claim(self) -> ClaimView:
        """Fix the hypothesis, both configurations, the seeds and the rule, before the first confirmation run."""
        with self._lock:
            existing = self._claim()
            if existing is not None:
                return _claim_view(existing)
            content = claim_content(self.trials, self.question, self.plan.env_steps_full)
            number = self.ledger.add(
                Claim(
                    campaign_id=self.number,
                    content=content.model_dump(mode="json"),
                    content_hash=content.content_hash,
                    created_at=now(),
                )
            )
            return ClaimView(id=readable_id("k", number), content=content, content_hash=content.content_hash)

    def run_confirmation(self) -> TableView:
        """Train both chosen configurations on the claim's seeds, evaluate on the held-out tasks, stop where it allows."""
        with self._lock:
            claim = self._claim()
            if claim is None:
                raise InputError("confirmation needs a claim: write_claim() comes first")
            content = ClaimContent.model_validate(claim.content)
            winners = {arm: self.trials.winner(arm) for arm in judging.ARMS}
            while seeds := judging.seeds_to_run(content, confirmation_rows(self.ledger, claim.id)):
                run_ids = []
                for seed in seeds:
                    for arm, (trial, values) in winners.items():
                        spec = self.trials.spec(arm, values, seed=seed, env_steps=content.env_steps)
                        run_ids.append(
                            self._queue_once(spec, "confirmation", "confirmation", arm, trial, claim_id=claim.id)
                        )
                self._execute(run_ids)
            rows = [
                (readable_id("r", r.id), r.arm, r.seed, r.status, _rounded(r.score))
                for r in self.ledger.runs(self.number, purpose="confirmation")
            ]
            return TableView(columns=("run", "arm", "seed", "status", "score"), rows=tuple(rows))

    def judge(self) -> VerdictView:
        """Judge the claim from its rows and keep the verdict. Idempotent."""
        with self._lock:
            claim = self._claim()
            if claim is None:
                raise InputError("a verdict needs a claim: write_claim() comes first")
            with self.ledger.session() as session:
                row = session.scalar(select(Verdict).where(Verdict.claim_id == claim.id))
            if row is None:
                content = judging.judge(
                    ClaimContent.model_validate(claim.content), confirmation_rows(self.ledger, claim.id)
                )
                row = Verdict(
                    claim_id=claim.id,
                    outcome=content.outcome,
                    reason=content.reason,
                    content=content.model_dump(mode="json"),
                    created_at=now(),
                )
                self.ledger.add(row)
            return VerdictView(
                **VerdictContent.model_validate(row.content).model_dump(),
                id=readable_id("v", row.id),
                claim_id=readable_id("k", claim.id),
            )

    def finish(self, narrative: str, narrator: str) -> None:
        """Close the campaign with the crew's own words, which stand beside the verdict and never in its place."""
        with self.ledger.session() as session:
            row = session.get_one(Campaign, self.number)
            row.narrative = f"{narrative.strip()}\n\n({narrator})"
            row.stage = "done"

    # ---- inner workings -----------------------------------------------------------------

    def _opened(self) -> set[int]:
        return {event.payload["round"] for event in self.events(["opened"])}

    def _check_share(self, trial: int) -> None:
        """InputError where agents have shaped as many rounds as their share allows; both arms of a round count as one."""
        opened = self._opened()
        had = self.trials.shaped_by_agents() - opened - {trial}
        allowed = int(self.agent_share * self.plan.rounds)
        if trial not in opened and len(had) >= allowed:
            raise InputError(
                f"values: the agents have shaped {len(had)} of {self.plan.rounds} rounds and may shape {allowed}; allowed: "
                "exactly the values of suggest"
            )

    def _must_be_open(self, trial: int) -> None:
        if trial >= self.plan.rounds or self.stage not in ("baseline", "search") or self.ends_early():
            raise InputError(f"the search is closed: {self.round} of {self.plan.rounds} rounds are finished")

    def _queue_once(
        self,
        spec: RunSpec,
        purpose: Any,
        pool: Any,
        arm: str,
        trial: int | None,
        claim_id: int | None = None,
    ) -> int:
        """The campaign's run of this specification on this pool, queued if there is none yet."""
        with self.ledger.session() as session:
            found = session.scalar(
                select(Run.id)
                .where(
                    Run.campaign_id == self.number,
                    Run.config_hash == spec.config_hash,
                    Run.pool == pool,
                    Run.claim_id == claim_id if claim_id is not None else Run.claim_id.is_(None),
                    Run.arm == arm if pool == "confirmation" else True,  # type: ignore[arg-type]
                )
                .order_by(Run.id)
            )
        if found is not None:
            return found
        return queue_run(
            self.ledger,
            spec,
            purpose=purpose,
            pool=pool,
            proposer=self.trials.proposer(arm, trial, purpose),
            campaign_id=self.number,
            claim_id=claim_id,
            arm=arm,
            trial=trial,
        )

    def _execute(self, run_ids: Sequence[int]) -> None:
        def listen(progress: RunProgress) -> None:
            self._progress[progress.run_id] = progress
            if progress.status != "running":
                self._progress.pop(progress.run_id, None)
            if self.listener is not None:
                self.listener(progress)

        rate = self._steps_per_s()
        steps = max(self.plan.env_steps_full, self.plan.env_steps_search)
        limit = 6 * 3600.0 if rate is None else 120 + 10 * steps / rate
        try:
            execute_runs(
                self.ledger,
                self.executor,
                self.paths,
                run_ids,
                stop=self.stop_event,
                listener=listen,
                time_limit_s=limit,
                memory_limit_mb=self._memory_limit_mb(),
                rungs=() if self.plan.pruning is None else self.plan.pruning.rungs,
                prune=self._why_prune,
            )
        finally:
            self._progress.clear()

    def _search_runs(self, arm: str | None = None) -> list[Run]:
        return self.ledger.runs(self.number, purpose=("baseline", "search"), arm=arm)

    def _search_run(self, run_id: str) -> Run:
        """A finished run of this campaign's search pool; agents see no other."""
        run = self.ledger.get_run(self.ledger.resolve(run_id, "run"))
        if run.campaign_id != self.number or run.pool != "search":
            allowed = ", ".join(readable_id("r", r.id) for r in self._search_runs()[-12:])
            raise bad_value("run", run_id, f"a search run of this campaign: {allowed or 'none yet'}")
        return run

    def _check_evidence(self, evidence: Sequence[str]) -> None:
        for item in evidence:
            if item.startswith("r-"):
                self._search_run(item)
            else:
                raise bad_value("evidence", item, "ids of search runs of this campaign, such as r-0042")

    def _baseline_table(self) -> TableView:
        runs = self.trials.baseline_runs()
        rows = tuple((readable_id("r", r.id), r.seed, r.status, r.env_steps, _rounded(r.score)) for r in runs)
        scores = [r.score for r in runs if r.score is not None]
        note = ""
        if len(scores) > 1:
            note = f"mean {np.mean(scores):.1f}, noise floor {stdlib_statistics.stdev(scores):.1f} over {len(scores)} seeds"
        return TableView(columns=("run", "seed", "status", "env_steps", "score"), rows=rows, note=note)

    def _round_view(self, trial: int) -> RoundView:
        rows = []
        for arm in self.arms:
            run = self.trials.run(arm, trial)
            if run is not None:
                values = self.trials.values(arm, trial) or {}
                rows.append((readable_id("r", run.id), arm, run.status, _rounded(run.score), _describe(values)))
        floor = self.trials.noise_floor()
        return RoundView(
            round=trial,
            columns=("run", "arm", "status", "score", "configuration"),
            rows=tuple(rows),
            noise_floor=None if floor is None else round(floor, 2),
        )

    def _final_runs(self) -> int:
        design = self.plan.design
        return len(self.arms) * design.top * design.selection_seeds + 2 * design.confirmation_seeds

    def _steps_per_s(self, model: str | None = None) -> float | None:
        """Training throughput of one worker: measured in this campaign's runs (of one model kind where it has any), else
        what the plan measured."""
        with self.ledger.session() as session:
            query = select(Run.env_steps, Run.train_s, Run.model)
            query = query.where(Run.campaign_id == self.number, Run.status == "done")
            rows = [(s, t, m) for s, t, m in session.execute(query) if t]
        if not rows:
            return self.plan.steps_per_s
        rows = [row for row in rows if row[2] == model] or rows
        return sum(s for s, _, _ in rows) / sum(t for _, t, _ in rows)

    # ---- the feasibility gate -----------------------------------------------------------

    def _settle(self, trial: int) -> dict[str, dict[str, Value]]:
        """Every arm's joint configuration of a round; where the gate refuses the agents', the suggestion takes its place."""
        self._pass_suggestions(trial)
        chosen: dict[str, dict[str, Value]] = {}
        for arm in self.arms:
            chosen[arm] = self.trials.complete(arm, trial)
            suggestion = self.trials.suggest(arm, trial)
            if chosen[arm] == self.trials.space(arm).complete(suggestion.values) or self._is_launched(trial):
                continue
            problem = self._examine({arm: chosen[arm]}, trial)[arm]
            if problem is not None:
                self._refuse(arm, trial, chosen[arm], problem, source="agent", role="all")
                for role in ROLES:
                    own = [p.name for p in self.trials.space(arm).of_role(role)]
                    values = {name: suggestion.values[name] for name in own if name in suggestion.values}
                    words = f"the agents' joint configuration was refused: {problem}"
                    self.trials.write_proposal(
                        arm, trial, role, values, "optimizer", reason=words, effect="", evidence=[]
                    )
                chosen[arm] = self.trials.complete(arm, trial)
        return chosen

    def _pass_suggestions(self, trial: int) -> None:
        """Make the optimizer suggest anew until every arm's suggestion of this round passes the gate, a few times at most.

        A refusal is an event, and the next suggestion a function of the events: a resumed campaign gets the same ones.
        """
        if trial == 0 or trial in self._passed or self._is_launched(trial):
            return
        open_arms = list(self.arms)
        for _ in range(MAX_REFUSALS):
            configurations = {a: self.trials.space(a).complete(self.trials.suggest(a, trial).values) for a in open_arms}
            problems = self._examine(configurations, trial)
            open_arms = [arm for arm, problem in problems.items() if problem is not None]
            for arm in open_arms:
                self._refuse(arm, trial, configurations[arm], problems[arm] or "", source="optimizer", role="all")
            if not open_arms:
                break
        self._passed.add(trial)

    def _examine(self, configurations: dict[str, dict[str, Value]], trial: int) -> dict[str, str | None]:
        """Arm -> why its configuration may not be trained in this round and what to change, or None."""
        found: dict[str, str | None] = {}
        untried: dict[str, RunSpec] = {}
        known = self._probes()
        for arm, values in configurations.items():
            view = self.check_feasibility(arm, values)
            problems = list(view.problems)
            if same := self._same_trial(arm, values, trial):
                problems.append(
                    f"it is the same trial as {same} (nothing differs by more than {100 * NEAR:.0f} % of its range): change at "
                    "least one value by more"
                )
            found[arm] = "; ".join(problems) or None
            if not problems:
                spec = self.trials.spec(
                    arm, values, seed=self.trials.seeds("search")[0], env_steps=self.plan.env_steps_search
                )
                if spec.config_hash not in known:
                    untried[arm] = spec
        rate = self._steps_per_s()
        longest = max((iteration_steps(spec) for spec in untried.values()), default=0)
        limit_s = max(PROBE_LIMIT_S, 5 * longest / rate if rate else 0.0)
        if self.plan.budget.wall_s is None:  # such a campaign depends on no clock, however busy the machine is
            limit_s = TIME_LIMIT_S
        results = probe(
            list(untried.values()),
            self.executor,
            self.paths,
            self.stop_event,
            memory_limit_mb=self._memory_limit_mb(),
            time_limit_s=limit_s,
        )
        for arm, result in zip(untried, results, strict=True):
            self.record_event("probe", "lab", {"arm": arm, "round": trial, **result.model_dump(mode="json")})
            found[arm] = result.problem
        return found

    def _refuse(self, arm: str, trial: int, values: dict[str, Value], problem: str, *, source: str, role: str) -> None:
        text = f"{arm}, round {trial + 1}: refused before it is run: {problem}"
        payload = {"arm": arm, "round": trial, "role": role, "source": source, "values": values, "problem": problem}
        self.record_event("refused", "lab", {"text": text, **payload})

    def _probes(self) -> dict[str, Probe]:
        """What one training iteration of each configuration showed, by the hash of its specification."""
        payloads = (e.payload for e in self.events(["probe"]))
        fields = Probe.model_fields
        return {p["config_hash"]: Probe(**{name: p[name] for name in fields}) for p in payloads}

    def _same_trial(self, arm: str, values: dict[str, Value], trial: int) -> str | None:
        """A search run of an earlier round that is the same trial of this arm, or None."""
        if arm not in self.arms:
            return None
        parameters = self.trials.space(arm).parameters
        for earlier in self.trials.finished(arm):
            if earlier.number < trial and is_near(parameters, earlier.values, values):
                return readable_id("r", earlier.run.id)
        return None

    def _is_launched(self, trial: int) -> bool:
        return any(e.payload["round"] == trial for e in self.events(["launch"]))

    def _memory_limit_mb(self) -> int:
        return self.plan.memory_limit_mb or default_memory_limit_mb(self.plan.workers)

    def _left_for_search_s(self) -> float | None:
        """Wall seconds that the search may still take; None without a budget in wall time or a measured throughput."""
        budget, rate = self.plan.budget.wall_s, self._steps_per_s()
        if budget is None or rate is None:
            return None
        runs = self._final_runs()
        final = (runs * self.plan.env_steps_full / rate + runs * self.plan.startup_s) / self.plan.workers
        return 0.95 * budget - self.spent_s - 0.6 * final  # the final runs may be shortened a little

    # ---- pruning ------------------------------------------------------------------------

    def _why_prune(self, run: Run, rung: Rung) -> str | None:
        """The decision about a search run at a rung, from rows of rounds before its own alone; None lets it go on."""
        rule, arm, trial = self.plan.pruning, run.arm, run.trial
        if rule is None or arm is None or not trial:  # trial 0, every arm's default, is always trained to its end
            return None
        saved = {a: self.trials.saved(a, before=trial) for a in self.arms}
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

    def _buy_rounds(self) -> None:
        """What pruning saved buys further search rounds, for all arms alike, so that they keep equal numbers of trials."""
        if self.plan.pruning is None or self.stage != "search":
            return
        saved = min(self.trials.saved(arm) for arm in self.arms)
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
            session.get_one(Campaign, self.number).plan = plan.model_dump(mode="json")
        self.record_event("replan", "lab", {"text": words})
        self.plan = self.trials.plan = plan

    def _fit_full_length(self) -> None:
        """Shorten the final runs where the machine turned out slower than planned; only before any of them ran."""
        budget, rate = self.plan.budget.wall_s, self._steps_per_s()
        if budget is None or rate is None or self.ledger.runs(self.number, purpose="selection"):
            return
        runs = self._final_runs()
        left = max(budget * 0.95 - self.spent_s - 10, 0.0) * self.plan.workers - runs * self.plan.startup_s
        unit = self._unit()
        fits = int(left * rate / runs) // unit * unit
        full = max(min(fits, self.plan.env_steps_full), MIN_ITERATIONS * unit)
        if full < self.plan.env_steps_full:
            self._replan(
                self.plan.model_copy(update={"env_steps_full": full}),
                f"{format_seconds(self.spent_s)} spent at {rate:,.0f} env steps/s: selection and confirmation "
                f"runs are shortened from {format_count(self.plan.env_steps_full)} to {format_count(full)} env steps",
            )

    def _unit(self) -> int:
        """Run lengths are whole multiples of this many env steps, whatever number of worlds a trial chose."""
        return plan_unit(list(self.trials.spaces.values()))

    def _claim(self) -> Claim | None:
        with self.ledger.session() as session:
            return session.scalar(select(Claim).where(Claim.campaign_id == self.number))


def _claim_view(row: Claim) -> ClaimView:
    content = ClaimContent.model_validate(row.content)
    if content.content_hash != row.content_hash:
        raise InputError(f"claim {readable_id('k', row.id)} does not match its hash: the ledger was edited by hand")
    return ClaimView(id=readable_id("k", row.id), content=content, content_hash=row.content_hash)


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def _describe(values: dict[str, Value]) -> str:
    """A configuration on one line."""
    parts = []
    for name, value in values.items():
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        parts.append(f"{name}={text}")
    return " ".join(parts)
