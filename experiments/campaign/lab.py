"""One campaign and everything that may be done in it: by the crew's tools, by a person, by the workflow's own code.

The lab works: it proposes, trains, claims and has judged. What changes for other reasons is a part of it:
`journal` (stage, round, events), `economy` (time, throughput, the plan that has to fit, pruning), `gate` (which
configurations may be trained), `evidence` (what tools may read), `trials` (configurations and their runs as the rows tell
them), and `holder.py` (which process works on it). All state is in the ledger, so a new `Lab` on the same campaign goes on
where the last one stopped. Bad arguments raise InputError; `Paused` is raised where work was asked to stop.

Of the lab's own methods those above the line "for the workflow's code alone" may be wrapped as tools, of its parts all of
`evidence`: they reach the search pool only, take no measured value and write no verdict.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

from sqlalchemy import select

from core.errors import InputError, bad_value, unknown_name
from experiments.campaign.claims import confirmation_rows, find_claim, find_verdict, judge_claim, write_claim
from experiments.campaign.economy import Economy
from experiments.campaign.evidence import Evidence, described, runs_table
from experiments.campaign.gate import Gate
from experiments.campaign.holder import holding
from experiments.campaign.journal import Journal
from experiments.campaign.plan import Plan
from experiments.campaign.proposing.ideas import (
    Expected,
    Idea,
    check_grounds,
    keep,
    place,
    standing,
    unit,
    vetoed,
    withdraw,
)
from experiments.campaign.question import Question
from experiments.campaign.trials import AGENT_SHARE, Base, Trials, best_first, slice_of
from experiments.campaign.views import (
    BudgetView,
    ClaimView,
    DecisionView,
    FeasibilityView,
    NoteView,
    ProposalView,
    RoundView,
    SuggestionView,
    VerdictView,
    VetoView,
)
from experiments.judging.claim import ClaimContent
from experiments.judging.judge import seeds_to_run
from experiments.ledger.models import Claim, Run
from experiments.ledger.store import Ledger
from experiments.metrics import parse_metric
from experiments.runs.executor import Executor
from experiments.runs.paths import Paths
from experiments.runs.provenance import require_plugins
from experiments.runs.runner import Paused, ProgressListener, RunProgress, execute_runs, queue_run
from experiments.search.early_end import why_not_yet
from experiments.search.side import Value
from experiments.search.space import ALL_SLICES, REGION, ROLES
from experiments.spec import RunSpec
from experiments.tables import TableView
from experiments.vocabulary import Pool, Purpose, Stage, readable_id

__all__ = ["Lab", "Paused"]

POOL_OF: dict[Purpose, Pool] = {
    "baseline": "search",
    "search": "search",
    "selection": "selection",
    "confirmation": "confirmation",
}


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
        require_plugins(row.provenance, self.question.names, self.campaign_id, unchanged=row.stage != "done")
        self.stop_event = threading.Event()
        self._lock = threading.RLock()
        self._progress: dict[int, RunProgress] = {}
        self.trials = trials = Trials(ledger, campaign_id, self.question, Plan.model_validate(row.plan), row.seed)
        self.journal = journal = Journal(trials)
        self.economy = economy = Economy(trials, journal, spent_before_s=row.spent_s, began=began)
        self.gate = Gate(trials, journal, economy, executor, paths, self.stop_event)
        self.evidence = evidence = Evidence(trials)
        self.arms = trials.arms
        # What tools and the workflow ask of a part, they ask of the lab: the part's own methods, by their own names.
        self.events, self.record_event = journal.events, journal.record_event
        self.ends_early, self.finish = journal.ends_early, journal.finish
        self.time_is_short, self.rest = economy.time_is_short, economy.rest
        self.describe_search_space, self.ledger_query = evidence.describe_search_space, evidence.ledger_query
        self.compare_variants = evidence.compare_variants
        self.analyse_curves, self.episode_returns = evidence.analyse_curves, evidence.episode_returns
        economy.buy_rounds()  # an interruption may have come between a pruned run and the round that it pays for

    @property
    def plan(self) -> Plan:
        return self.trials.plan

    @property
    def stage(self) -> Stage:
        return self.journal.stage

    @property
    def round(self) -> int:
        """The index of the search round to be worked on; one that trains meanwhile is waited for."""
        with self._lock:
            return self.journal.round

    def holding(self, *, take_over: bool = False) -> AbstractContextManager[None]:
        """Marks the campaign as worked on by this process; InputError where another one holds it.

        take_over: take it from a holder on another machine, which a person knows to be gone.
        """
        return holding(self.ledger, self.number, self.stop_event, lambda: self.economy.spent_s, take_over=take_over)

    # ---- what tools may call ------------------------------------------------------------

    def suggest(self, arm: str) -> SuggestionView:
        """The optimizer's configuration for the open trial of the present round (`Plan.open_trial`)."""
        with self._lock:
            trial = self._open_trial()
            self.trials.space(arm)
            self.gate.pass_suggestions(trial)
            return self.trials.suggest(arm, trial)

    def propose(
        self,
        *,
        arm: str,
        role: str,
        values: dict[str, Value],
        reason: str,
        base: Base = "suggestion",
        author: str = "",
        client: str = "",
        expected: Expected | None = None,
        prior: bool = False,
        evidence: Sequence[str] = (),
    ) -> ProposalView:
        """Change one role's slice (or all) in the present round. A repeated call replaces it until the round is launched.

        What `values` leave open is the base's. Trial 0 is the default configuration of every arm by rule, so other
        values are refused there. The ledger, not the caller, says whose a slice is: the agent's where it departs from
        the base, the optimizer's where all is as suggested. By rule 2 of the plan (`PROPOSING`) every author's change is an idea of its
        own (`ideas.py`), by rule 1 the slices of one trial are merged. author: who proposes, its role where empty. client: the MCP client that
        takes its part, if one does. expected: the effect that it predicts. prior: whether it rests on no row.
        """
        with self._lock:
            space, trial = self.trials.space(arm), self._open_trial()
            round_ = self.plan.round_of(trial)
            roles = ROLES if self.plan.proposing == 1 else (*ROLES, ALL_SLICES)
            if role not in roles:
                raise unknown_name("role", role, roles)
            named = space.check_values(values, role)
            suggestion = self.suggest(arm)
            suggested = slice_of(space, role, suggestion.values)
            wrong = {k: v for k, v in named.items() if k in suggested and v != suggested[k]}
            if trial == 0 and wrong:
                name, value = next(iter(wrong.items()))
                raise bad_value(name, value, f"{suggested[name]} in round 0: trial 0 is every arm's default")
            configuration = self.trials.joint(arm, trial, named, role, base)
            own = slice_of(space, role, configuration)
            self.evidence.check_ids(evidence)
            if self.plan.proposing > 1 and configuration != space.complete(suggestion.values):
                start = self.trials.base_values(arm, trial, base)
                best = self.trials.incumbent(arm)
                idea = Idea(
                    author=author or role,
                    arm=arm,
                    round=round_,
                    trial=trial,
                    base=base,
                    against=None if best is None else readable_id("r", best.run.id),
                    changes={name: value for name, value in named.items() if start.get(name) != value},
                    expected=expected,
                    prior=prior,
                    reason=reason,
                    evidence=tuple(evidence),
                    noise_floor=unit(self.trials),
                    client=client,
                )
                return self._propose_idea(idea, role, configuration)
            if self.plan.proposing > 1:
                withdraw(self.trials, arm, round_, author or role)
                if (arm, trial) in standing(self.trials):  # a colleague's idea is tried there
                    return ProposalView(id="", arm=arm, trial=None, role=role, source=suggestion.source, values=own)
            present = next((p.changes for p in self.trials.slices(arm, trial) if p.role == role), None)
            if self.journal.is_launched(round_):  # its run may be half trained already
                if present not in (own, named):
                    raise InputError(
                        f"round {round_ + 1} is launched: its configuration stands. Propose in the next round"
                    )
                own = present
            origin = suggestion.source if own == suggested else "agent"
            if origin == "agent":
                self._check_share(round_)
                self.gate.check_proposal(arm, trial, role, own, configuration)
            if not own and self.plan.proposing > 1:  # a slice without a field
                return ProposalView(id="", arm=arm, trial=trial, role=role, source=origin, values=own)
            effect = "" if expected is None or origin != "agent" else str(expected)
            parts = {role: own} if role in ROLES else {r: slice_of(space, r, configuration) for r in ROLES}
            written = [
                self.trials.write_proposal(arm, trial, r, part, origin, reason=reason, effect=effect, evidence=evidence)
                for r, part in parts.items()
                if part or r == role
            ]
            return written[-1]

    def _propose_idea(self, idea: Idea, role: str, configuration: dict[str, Value]) -> ProposalView:
        """Keep an idea, in a trial of its round where it is to be tried."""
        if self.journal.is_launched(idea.round):
            raise InputError(f"round {idea.round + 1} is launched: its configuration stands. Propose in the next round")
        if not idea.changes:
            raise bad_value("changes", "nothing", f"at least one value that is not the {idea.base}'s")
        self._check_share(idea.round)
        check_grounds(self.trials, idea)
        trial = place(self.trials, idea)
        if trial is not None:
            own = slice_of(self.trials.space(idea.arm), role, configuration)
            self.gate.check_proposal(idea.arm, trial, role, own, configuration)
        keep(self.trials, idea.model_copy(update={"trial": trial}), configuration)
        rows = [] if trial is None else self.trials.slices(idea.arm, trial)
        return ProposalView(
            id=next((readable_id("p", p.id) for p in rows if p.source == "agent"), ""),
            arm=idea.arm,
            trial=trial,
            role=role,
            source="agent",
            values=slice_of(self.trials.space(idea.arm), role, configuration),
        )

    def veto(self, arm: str, agent: str, run: str, *, by: str, reason: str) -> VetoView:
        """Take back what an agent proposes in the present round because it repeats a finished run: no field differs by more than `REGION`.

        by, reason: who does so and why, which is part of what the crew said.

        Raises InputError for an agent without an idea there, a run of another arm, and an idea that is none of its repetitions.
        """
        with self._lock:
            round_ = self.plan.round_of(self._open_trial())
            if self.journal.is_launched(round_):
                raise InputError(f"round {round_ + 1} is launched: its configuration stands")
            ideas = {i.author: i for (held, _), i in standing(self.trials).items() if held == arm and i.round == round_}
            if agent not in ideas:
                raise unknown_name(f"author of an idea for the {arm} in this round", agent, ideas)
            self.evidence.check_ids([run])
            known = {readable_id("r", trial.run.id): trial for trial in self.trials.finished(arm)}
            if run not in known:
                raise bad_value("run", run, f"a finished search run of the {arm}: {', '.join(known) or 'none yet'}")
            trial = ideas[agent].trial
            assert trial is not None  # what stands has one
            parameters = self.trials.space(arm).parameters
            proposed, done = self.trials.complete(arm, trial), known[run].values
            far, name = max((p.distance(proposed.get(p.name), done.get(p.name)), p.name) for p in parameters)
            if far > REGION:
                allowed = f"a run that the idea repeats, with no field further than {REGION:g} of its range; {name} is {far:.2f} from it"
                raise bad_value("run", run, allowed)
            vetoed(self.trials, ideas[agent], by, run, reason)
            return VetoView(arm=arm, agent=agent, trial=trial, same_as=run, differs=round(far, 4))

    def check_feasibility(self, arm: str, values: dict[str, Value], base: Base = "suggestion") -> FeasibilityView:
        """Whether the present round's configuration with `values`, completed as `propose` completes them, can be trained
        within the plan, and at what cost."""
        with self._lock:
            return self.gate.check_feasibility(arm, values, base)

    def is_launched(self, round_: int) -> bool:
        """Whether the runs of a search round were queued, so that its configurations stand."""
        return self.journal.is_launched(round_)

    def prepare_round(self) -> TableView:
        """Complete the present round's configurations, as `launch` would, and show them. Nothing is trained."""
        with self._lock:
            rows = tuple(
                (arm, self.trials.proposer(arm, trial, "search"), described(values))
                for trial in self.plan.trials_of(self._present_round())
                for arm, values in self._settle(trial).items()
            )
            return TableView(columns=("arm", "proposed by", "configuration"), rows=rows)

    def launch(self) -> RoundView:
        """Train the present round's trials of every arm, several at once, and return the scores. Idempotent by round."""
        with self._lock:
            round_ = self._present_round()
            run_ids, near = [], {}
            for trial in self.plan.trials_of(round_):
                for arm, values in self._settle(trial).items():
                    run_ids.append(self._queue_once(self.trials.search_spec(arm, values), "search", arm, trial))
                    if same := self.gate.same_trial(arm, values, before=trial):
                        near[arm] = same
            # A configuration may have been trained already, so what launches a round is this event and not its runs.
            runs = [readable_id("r", run_id) for run_id in run_ids]
            self.journal.record_event("launch", "lab", {"round": round_, "runs": runs, "near": near})
            self._execute(run_ids)
            self.economy.buy_rounds()
            return self.evidence.round_view(round_)

    def why_not_yet(self) -> str:
        """Why the search may not end after the rounds that are finished, or "" where it may (`early_end.why_not_yet`)."""
        best = {a: next((t.score for t in best_first(self.trials.finished(a))), None) for a in self.arms}
        return why_not_yet(
            kind=self.question.kind,
            margin_pct=self.question.improvement_pct,
            rounds_done=self.round,
            rounds_planned=self.plan.rounds,
            challenger=best.get("challenger"),
            baseline=best.get("baseline", self.trials.default_score()),
            floor=self.trials.noise_floor(),
            unit=parse_metric(self.question.metric).unit,
        )

    def request_confirmation(self, actor: str, reason: str, evidence: Sequence[str] = ()) -> DecisionView:
        """Ask that the search ends here and the claim is written; `early_end.why_not_yet` decides. Idempotent by round."""
        with self._lock:
            rounds_done = self._present_round()
            self.evidence.check_ids(evidence)
            refused = self.why_not_yet()
            text = refused or f"the search ends after {rounds_done} rounds: the claim is written next"
            payload = {"text": text, "granted": not refused, "round": rounds_done, "reason": reason[:800], "evidence": list(evidence)}  # fmt: skip
            asked = [e for e in self.journal.events(["early_end"]) if e.payload["round"] == rounds_done]
            if not any(e.payload["granted"] == payload["granted"] for e in asked):
                self.journal.record_event("early_end", actor, payload)
            return DecisionView(granted=not refused, decision=text)

    def write_note(self, text: str, author: str, target: str | None = None) -> NoteView:
        """Keep a remark about a row; notes are never read by the judge."""
        if not 1 <= len(text.strip()) <= 4000:
            raise bad_value("text", f"{len(text)} characters", "from 1 to 4000 characters")
        target = target or self.campaign_id
        if target.startswith("r-"):
            self.evidence.search_run(target)
        elif target != self.campaign_id:
            raise bad_value("target", target, f"{self.campaign_id} or a run such as r-0042")
        return NoteView(id=self.ledger.add_note(target, author, text), target=target)

    def budget(self) -> BudgetView:
        """What was spent and what is planned."""
        in_training = sum(p.env_steps for p in list(self._progress.values()) if p.status == "running")
        return self.economy.budget(rounds_finished=self.round, steps_in_training=in_training)

    # ---- for the workflow's code alone --------------------------------------------------

    def set_stage(self, stage: Stage) -> None:
        """Move the campaign to a later stage."""
        self.journal.set_stage(stage, spent_s=self.economy.spent_s)

    def open_round(self, actor: str) -> None:
        """A person wants the agents to shape the present round, whether or not their share is used up."""
        with self._lock:
            if self.round not in self.journal.opened():
                self.journal.record_event("opened", actor, {"round": self.round})

    def run_baseline(self) -> TableView:
        """Train the baseline's default configuration on several seeds: the noise floor, and its search trial 0. In a plan with a
        pilot the challenger's default too."""
        with self._lock:
            run_ids = [
                self._queue_once(spec, "baseline", arm, None if further else 0)
                for arm in ("baseline", *(a for a in self.trials.sides if self.plan.pilot and a != "baseline"))
                for further, spec in enumerate(self.trials.default_specs(arm))
            ]
            self._execute(run_ids)
            self.economy.fit_search()
            return self.evidence.baseline_table()

    def run_selection(self) -> TableView:
        """Measure the best few configurations of every arm again, on fresh seeds and other tasks, at full length."""
        with self._lock:
            self.economy.fit_full_length()
            if self.plan.design.race:
                for stage, seed in enumerate(self.trials.seeds("selection")):
                    self._select({arm: self.trials.racers(arm, stage) for arm in self.arms}, [seed])
            else:
                self._select({arm: self.trials.candidates(arm) for arm in self.arms}, self.trials.seeds("selection"))
            runs = self.ledger.runs(self.number, purpose="selection")
            return runs_table(runs, "arm", "trial", "status", "score")

    def write_claim(self) -> ClaimView:
        """Fix the hypothesis, both configurations, the seeds and the rule, before the first confirmation run."""
        with self._lock:
            if find_claim(self.ledger, self.number) is None:
                self.economy.fit_confirmation()
            return write_claim(self.trials, self.question)

    def run_confirmation(self) -> TableView:
        """Train both chosen configurations on the claim's seeds, evaluate on the held-out tasks, stop where it allows."""
        with self._lock:
            claim = self._claim_for("confirmation")
            content = ClaimContent.model_validate(claim.content)
            winners = {arm: self.trials.winner(arm) for arm in self.trials.sides}
            while seeds := seeds_to_run(content, confirmation_rows(self.ledger, claim.id)):
                run_ids = []
                for seed in seeds:
                    for arm, (trial, values) in winners.items():
                        for env_steps in content.lengths(arm) if seed in content.seeds_of(arm) else ():
                            spec = self.trials.spec(arm, values, seed=seed, env_steps=env_steps)
                            run_ids.append(self._queue_once(spec, "confirmation", arm, trial, claim_id=claim.id))
                self._execute(run_ids)
            runs = self.ledger.runs(self.number, purpose="confirmation")
            return runs_table(runs, "arm", "seed", "status", "score")

    def judge(self) -> VerdictView:
        """Judge the claim from its rows and keep the verdict. Idempotent."""
        with self._lock:
            return judge_claim(self.ledger, self._claim_for("a verdict"))

    def is_judged(self) -> bool:
        """Whether there is a verdict; a campaign that a person stopped early ends without one."""
        claim = find_claim(self.ledger, self.number)
        return claim is not None and find_verdict(self.ledger, claim) is not None

    # ---- inner workings -----------------------------------------------------------------

    def _present_round(self) -> int:
        """The present round; InputError where the search is over."""
        trial = self.round
        if trial >= self.plan.rounds or self.stage not in ("baseline", "search") or self.journal.ends_early():
            raise InputError(f"the search is closed: {trial} of {self.plan.rounds} rounds are finished")
        return trial

    def _open_trial(self) -> int:
        """The trial of the present round that may be shaped; InputError where the search is over."""
        return self.plan.open_trial(self._present_round())

    def _select(self, ranked: Mapping[str, Sequence[tuple[int, dict[str, Value]]]], seeds: Sequence[int]) -> None:
        """Train every arm's configurations on seeds of the selection, as many of each as the arm with the fewest has."""
        run_ids = []
        for rank in range(min(len(configurations) for configurations in ranked.values())):
            for seed in seeds:
                for arm in self.arms:
                    trial, values = ranked[arm][rank]
                    spec = self.trials.spec(arm, values, seed=seed, env_steps=self.plan.env_steps_full)
                    run_ids.append(self._queue_once(spec, "selection", arm, trial))
        self._execute(run_ids)

    def _check_share(self, round_: int) -> None:
        """InputError where agents have shaped as many rounds as their share allows; both arms of a round count as one."""
        opened = self.journal.opened()
        had = self.trials.shaped_by_agents() - opened - {round_}
        allowed = self.plan.rounds_of_agents(self.agent_share)
        if round_ not in opened and len(had) >= allowed:
            raise InputError(
                f"values: the agents have shaped {len(had)} of {self.plan.rounds} rounds and may shape {allowed}; allowed: "
                "exactly the values of suggest"
            )

    def _settle(self, trial: int) -> dict[str, dict[str, Value]]:
        """What a trial trains on every arm. A lab whose trials are measured elsewhere says here what was tried."""
        return self.gate.settle(trial)

    def _claim_for(self, what: str) -> Claim:
        claim = find_claim(self.ledger, self.number)
        if claim is None:
            raise InputError(f"{what} needs a claim: write_claim() comes first")
        return claim

    def _queue_once(
        self, spec: RunSpec, purpose: Purpose, arm: str, trial: int | None, claim_id: int | None = None
    ) -> int:
        """The campaign's run of this specification on its purpose's pool, queued if there is none yet."""
        pool = POOL_OF[purpose]
        query = select(Run.id).where(
            Run.campaign_id == self.number,
            Run.config_hash == spec.config_hash,
            Run.pool == pool,
            Run.claim_id == claim_id if claim_id is not None else Run.claim_id.is_(None),
        )
        if pool == "confirmation":
            query = query.where(Run.arm == arm)
        with self.ledger.session() as session:
            run_id = session.scalar(query.order_by(Run.id))
        if run_id is not None:
            return run_id
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

        try:
            execute_runs(
                self.ledger,
                self.executor,
                self.paths,
                self.economy.longest_first(run_ids),
                stop=self.stop_event,
                listener=listen,
                time_limit_s=self.economy.time_limit_s(),
                memory_limit_mb=self.economy.memory_limit_mb(),
                rungs=() if self.plan.pruning is None else self.plan.pruning.rungs,
                prune=self.economy.why_prune,
            )
        finally:
            self._progress.clear()
