"""The trials of a campaign, derived from its ledger rows: proposals, configurations, runs, the best of them.

Nothing is kept in memory: a trial's configuration is what its proposal rows say, its run is found by the hash of that
configuration, and the optimizer is rebuilt from finished trials for every suggestion. So a resumed campaign goes on
exactly as an uninterrupted one would have.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from sqlalchemy import select, update

from core.errors import bad_value, unknown_name
from core.seeding import numpy_stream
from experiments.campaign.plan import Plan
from experiments.campaign.question import Question
from experiments.campaign.views import ProposalView, SuggestionView
from experiments.ledger.models import Event, Proposal, Run
from experiments.ledger.store import Ledger, join_value, now, readable_id
from experiments.runs.runner import RUNG_SCORE
from experiments.search.optimizer import Tried, suggest
from experiments.search.side import Side, Value
from experiments.search.sizing import count_parameters
from experiments.search.space import ALL_SLICES, MARKS, ROLES, SearchSpace
from experiments.spec import RunSpec
from experiments.vocabulary import FINISHED, POOL_OFFSET, Arm, Pool

AGENT_SHARE = 0.3
"""Of the search rounds may be shaped by agents; the others run what the optimizer suggests."""


Base = Literal["incumbent", "suggestion"]
"""What a proposal changes: the best configuration of its arm so far, or the optimizer's for the same trial."""


class FinishedTrial(NamedTuple):
    """One trial with its finished run; score is None where the run failed or was pruned."""

    arm: str
    number: int
    run: Run
    score: float | None
    values: dict[str, Value]
    rung: tuple[int, float] | None = None
    """Env steps and score of the last rung of a pruned run."""


def slice_of(space: SearchSpace, role: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """The part of a configuration that belongs to one role."""
    return {p.name: values[p.name] for p in space.of_role(role) if p.name in values}


def best_first(trials: Iterable[FinishedTrial]) -> list[FinishedTrial]:
    """Trials that have a score, the best one first, the earlier one first among equals."""
    return sorted((t for t in trials if t.score is not None), key=lambda t: (-(t.score or 0.0), t.number))


def space_of(question: Question, side: Side, marks: int = MARKS) -> SearchSpace:
    """The search space of a side of a question. marks: the generation of search marks."""
    given = {"learner": question.learner, "score": question.metric, "changes": question.changes}
    return SearchSpace(side, question.task, **given, marks=marks)


class Trials:
    """Search, selection and confirmation configurations of one campaign."""

    def __init__(self, ledger: Ledger, campaign_id: int, question: Question, plan: Plan, seed: int) -> None:
        self.ledger, self.campaign_id, self.plan, self.seed = ledger, campaign_id, plan, seed
        self.question = question
        self.sides: tuple[Arm, ...] = question.arms
        """Every arm, those that are tuned and those that are what they are."""
        self.arms: tuple[Arm, ...] = self.sides if question.baseline_is_tuned else ("challenger",)
        self.spaces = {
            arm: space_of(question, side, plan.marks) for arm, side in zip(self.sides, question.sides, strict=True)
        }
        default = self.spaces["baseline"].spec({}, env_steps=1, seed=0, parameters=None)
        self.parameters = count_parameters(default)
        self._finished: dict[tuple[str | int, ...], FinishedTrial] = {}

    def space(self, arm: str) -> SearchSpace:
        """The search space of an arm; InputError for another name."""
        if arm not in self.arms and arm != "baseline":
            raise unknown_name("arm", arm, self.arms)
        return self.spaces[arm]

    def seeds(self, pool: Pool, *, count: int | None = None) -> tuple[int, ...]:
        """The training seeds of a pool, as many as the plan says unless `count` does; the three ranges are disjoint."""
        design = self.plan.design
        planned = {
            "search": max(design.baseline_seeds, 1),
            "selection": design.selection_seeds,
            "confirmation": design.confirmation_seeds,
        }[pool]
        count = planned if count is None else count
        used = () if self.plan.extends is None or pool != "confirmation" else self.plan.extends.used
        names = ("seeds", pool, "after", str(len(used))) if used else ("seeds", pool)
        draws = numpy_stream(self.seed, *names).choice(99_999_999, size=count + len(used), replace=False)
        fresh = [seed for d in draws if (seed := POOL_OFFSET[pool] + int(d)) not in used]
        return tuple(fresh[:count])

    def spec(self, arm: str, values: dict[str, Value], *, seed: int, env_steps: int) -> RunSpec:
        """The specification of a configuration, its policy sized to the campaign's parameter count by the plan's rule."""
        space, sizing = self.space(arm), self.plan.sizing
        return space.spec(values, env_steps=env_steps, seed=seed, parameters=self.parameters, sizing=sizing)

    def search_spec(self, arm: str, values: dict[str, Value]) -> RunSpec:
        """What a configuration is trained as in the search."""
        return self.spec(arm, values, seed=self.seeds("search")[0], env_steps=self.plan.env_steps_search)

    def default_specs(self, arm: str) -> list[RunSpec]:
        """An arm's default configuration on the search seeds of the baseline; the first one is its search trial 0."""
        seeds = self.seeds("search")[: self.plan.design.baseline_seeds]
        steps = self.plan.env_steps_baseline or self.plan.env_steps_search
        return [self.spec(arm, {}, seed=seed, env_steps=steps) for seed in seeds]

    def baseline_specs(self) -> list[RunSpec]:
        """The baseline's default configuration on its search seeds."""
        return self.default_specs("baseline")

    def proposer(self, arm: str, trial: int | None, purpose: str) -> str:
        """Who is behind a configuration: default, memory, optimizer, or the roles of the agents that changed it, after `agent:`, or
        after `mcp:CLIENT:` where an MCP client took their part."""
        if trial in (None, 0) or purpose == "baseline":
            return "default"
        trial = trial or 0
        slices = self.slices(arm, trial)
        agents = sorted(p.role for p in slices if p.source == "agent" and p.changes)
        if not agents and any(p.source == "memory" for p in slices):
            return "memory"
        return f"{self._who_spoke(arm, trial)}:{'+'.join(agents)}"[:64] if agents else "optimizer"

    def _who_spoke(self, arm: str, trial: int) -> str:
        """Whose idea a trial tries: an agent's of the crew, or an MCP client's."""
        ideas = [event.payload["idea"] for event in self.ledger.events(self.campaign_id, ["idea"])]
        client = next((i.get("client") for i in ideas[::-1] if (i["arm"], i["trial"]) == (arm, trial)), "")
        return f"mcp:{client}" if client else "agent"

    def suggest(self, arm: str, trial: int) -> SuggestionView:
        """The default for trial 0, then what `experiments/search/optimizer.py` makes of the trials of the rounds before.

        The other trials of the same round count by what they will train, and by that alone: they are not finished, or would be
        an advantage of who is resumed.
        """
        space, refused = self.space(arm), self.refused(arm, trial)
        begin = self.plan.trials_of(self.plan.round_of(trial)).start
        history = [Tried(t.values, t.score, t.rung) for t in self.finished(arm) if t.number < begin]
        beside = [space.complete(self.values(arm, t) or self.suggest(arm, t).values) for t in range(begin, trial)]
        chosen = suggest(
            space,
            history,
            seed=self.seed,
            arm=arm,
            noise_floor=self.noise_floor(),
            refused=refused,
            beside=beside,
            memory=self.plan.memory.get(arm),
            rule=self.plan.suggesting,
        )
        return SuggestionView(arm=arm, trial=trial, source=chosen.source, values=chosen.values, reason=chosen.reason)

    def slices(self, arm: str, trial: int) -> list[Proposal]:
        """The proposals of a trial that hold, one a role."""
        query = (
            select(Proposal)
            .where(
                Proposal.campaign_id == self.campaign_id,
                Proposal.arm == arm,
                Proposal.trial == trial,
                Proposal.superseded.is_(False),
            )
            .order_by(Proposal.id)
        )
        with self.ledger.session() as session:
            return list(session.scalars(query))

    def _changes(self, arm: str, trial: int) -> dict[str, dict[str, Value]]:
        """Role -> the values that its proposal sets in a trial."""
        return {proposal.role: proposal.changes for proposal in self.slices(arm, trial)}

    def _merged(self, arm: str, slices: Mapping[str, dict[str, Value]]) -> dict[str, Value]:
        """The configuration that slices come to."""
        merged: dict[str, Value] = {}
        for values in slices.values():
            merged |= values
        return self.space(arm).complete(merged)

    def joint(
        self, arm: str, trial: int, values: dict[str, Value], role: str | None = None, base: Base = "suggestion"
    ) -> dict[str, Value]:
        """The configuration that a trial would have if `values` were proposed; nothing is written.

        What they leave open is the base's. By rule 1 of the plan (`PROPOSING`) that is the suggestion in their own slices, and elsewhere
        what is proposed already, or else the suggestion again. role: the slice that they are, where that is not to be
        read off them. InputError for a field that the configuration's model kind does not have.
        """
        space = self.space(arm)
        suggestion = self.suggest(arm, trial).values
        if self.plan.proposing > 1:
            configuration = space.complete(self.base_values(arm, trial, base) | values)
        elif base != "suggestion":
            raise bad_value("base", base, "suggestion in a campaign that began when slices were still merged")
        else:
            own = {p.role for p in space.parameters if p.name in values} if role is None else {role}
            slices = {other: slice_of(space, other, suggestion) for other in ROLES}
            slices |= {other: changes for other, changes in self._changes(arm, trial).items() if other not in own}
            configuration = self._merged(arm, slices | {ALL_SLICES: values})
        for name, value in values.items():
            if name not in configuration:
                raise bad_value(name, value, space.why_absent(name, configuration))
        return configuration

    def incumbent(self, arm: str) -> FinishedTrial | None:
        """The best finished trial of an arm; None before one has a score."""
        return next(iter(best_first(self.finished(arm))), None)

    def base_values(self, arm: str, trial: int, base: Base) -> dict[str, Value]:
        """The complete configuration that a proposal for a trial changes; the default where nothing leads yet."""
        if base == "suggestion":
            return self.space(arm).complete(self.suggest(arm, trial).values)
        best = self.incumbent(arm)
        return self.space(arm).default_values() if best is None else self.space(arm).complete(best.values)

    def shaped_by_agents(self) -> set[int]:
        """Rounds in which a proposal of an agent holds that departs from the suggestion, on either arm."""
        query = select(Proposal.trial, Proposal.changes).where(
            Proposal.campaign_id == self.campaign_id, Proposal.source == "agent", Proposal.superseded.is_(False)
        )
        with self.ledger.session() as session:
            return {self.plan.round_of(trial) for trial, changes in session.execute(query) if changes}

    def write_proposal(
        self,
        arm: str,
        trial: int,
        role: str,
        values: dict[str, Value],
        source: str,
        *,
        reason: str,
        effect: str = "",
        evidence: Sequence[str] = (),
    ) -> ProposalView:
        """Set one role's slice of a trial; what it replaces stays in the ledger as superseded."""
        present = next((p for p in self.slices(arm, trial) if p.role == role), None)
        if present is None or present.changes != values or present.source != source:
            with self.ledger.session() as session:
                session.execute(
                    update(Proposal)
                    .where(
                        Proposal.campaign_id == self.campaign_id,
                        Proposal.arm == arm,
                        Proposal.trial == trial,
                        Proposal.role == role,
                    )
                    .values(superseded=True)
                )
                present = Proposal(
                    campaign_id=self.campaign_id,
                    arm=arm,
                    trial=trial,
                    role=role,
                    source=source,
                    changes=values,
                    reason=reason[:2000],
                    predicted_effect=effect[:1000],
                    evidence=list(evidence),
                    created_at=now(),
                )
                session.add(present)
        return ProposalView(
            id=readable_id("p", present.id), arm=arm, trial=trial, role=role, source=source, values=values
        )

    def replace_proposals(self, arm: str, trial: int | None, rows: Sequence[Proposal | Event]) -> None:
        """Supersede every slice of a trial and write these rows, in one transaction; without a trial the rows alone."""
        with self.ledger.session() as session:
            if trial is not None:
                session.execute(
                    update(Proposal)
                    .where(
                        Proposal.campaign_id == self.campaign_id,
                        Proposal.arm == arm,
                        Proposal.trial == trial,
                    )
                    .values(superseded=True)
                )
            session.add_all(rows)

    def complete(self, arm: str, trial: int) -> dict[str, Value]:
        """The round's joint configuration; slices nobody proposed are the suggestion's, and written as such."""
        suggestion = self.suggest(arm, trial)
        slices = self._changes(arm, trial)
        for role in ROLES:
            values = slice_of(self.space(arm), role, suggestion.values)
            if role not in slices and values:
                reason = "nobody proposed this slice"
                self.write_proposal(arm, trial, role, values, suggestion.source, reason=reason)
                slices[role] = values
        return self._merged(arm, slices)

    def values(self, arm: str, trial: int) -> dict[str, Value] | None:
        """The joint configuration of a trial's proposals, or None where there are none yet."""
        slices = self._changes(arm, trial)
        return self._merged(arm, slices) if slices else None

    def measured(self, arm: str, trial: int) -> FinishedTrial | None:
        """A trial with its finished search run, or None where it has none yet."""
        values = self.values(arm, trial)
        if values is None:
            return None
        query = select(Run).where(
            Run.campaign_id == self.campaign_id,
            Run.pool == "search",
            Run.config_hash == self.search_spec(arm, values).config_hash,
            Run.status.in_(FINISHED),
        )
        with self.ledger.session() as session:
            run = session.scalar(query.order_by(Run.id))
        if run is None:
            return None
        score = run.score if run.status == "done" else None
        rung = self.rungs(run.id)[-1] if run.status == "pruned" else None
        return FinishedTrial(arm, trial, run, score, values, rung)

    def finished(self, arm: str) -> list[FinishedTrial]:
        """Every finished trial of an arm, in order."""
        query = select(Proposal.trial, Proposal.id).where(
            Proposal.campaign_id == self.campaign_id, Proposal.arm == arm, Proposal.superseded.is_(False)
        )
        proposals: dict[int, list[int]] = {}
        with self.ledger.session() as session:
            for trial, proposal in session.execute(query.order_by(Proposal.id)):
                proposals.setdefault(trial, []).append(proposal)
        trials: list[FinishedTrial] = []
        for number in range(self.plan.trials):
            # Neither a proposal nor a finished run ever changes, so the same proposals mean the same finished trial.
            key = (arm, *proposals.get(number, ()))
            trial = self._finished.get(key) or self.measured(arm, number)
            if trial is None:
                break
            self._finished[key] = trial
            trials.append(trial)
        return trials

    def rungs(self, run_id: int) -> list[tuple[int, float]]:
        """(env steps, score) of the rungs that a run came to."""
        return [(m.env_steps, join_value(m.value, m.kind)) for m in self.ledger.metrics(run_id, RUNG_SCORE)]

    def saved(self, arm: str, before: int | None = None) -> int:
        """Env steps that pruning saved in the finished trials of an arm, of those numbered below `before` alone."""
        trials = [t for t in self.finished(arm) if before is None or t.number < before]
        return sum(int(t.run.spec["env_steps"]) - t.run.env_steps for t in trials if t.run.status == "pruned")

    def refused(self, arm: str, trial: int) -> list[dict[str, Value]]:
        """The optimizer's configurations that the feasibility gate refused for a trial, in order."""
        query = select(Event).where(Event.campaign_id == self.campaign_id, Event.kind == "refused").order_by(Event.id)
        with self.ledger.session() as session:
            refusals = [event.payload for event in session.scalars(query)]
        here = (arm, trial, "optimizer")
        return [p["values"] for p in refusals if (p["arm"], p.get("trial", p["round"]), p["source"]) == here]

    def baseline_runs(self) -> list[Run]:
        """The runs of the baseline's default configuration on the search seeds."""
        specs = [spec.config_hash for spec in self.baseline_specs()]
        runs = self.ledger.runs(self.campaign_id, purpose=("baseline", "search"), arm="baseline")
        return [run for run in runs if run.config_hash in specs]

    def baseline_scores(self) -> list[float]:
        """Their scores, of those that have one."""
        return [run.score for run in self.baseline_runs() if run.score is not None]

    def baseline_mean(self) -> float | None:
        """Mean score of the baseline's default configuration over those seeds; None without a score."""
        scores = self.baseline_scores()
        return statistics.fmean(scores) if scores else None

    def default_score(self) -> float | None:
        """Score of the baseline's default configuration on the seed of all search trials, so that two differ by their
        settings alone; None without one."""
        first = self.baseline_specs()[0].config_hash
        return next((run.score for run in self.baseline_runs() if run.config_hash == first), None)

    def noise_floor(self) -> float | None:
        """Standard deviation of the score over those seeds; None with fewer than two scores."""
        scores = self.baseline_scores()
        return statistics.stdev(scores) if len(scores) > 1 else None

    def candidates(self, arm: str) -> list[tuple[int, dict[str, Value]]]:
        """The best different configurations of an arm by search score; the default where none succeeded."""
        chosen: dict[str, tuple[int, dict[str, Value]]] = {}
        for trial in best_first(self.finished(arm)):
            chosen.setdefault(trial.run.variant_hash, (trial.number, trial.values))
        return list(chosen.values())[: self.plan.design.top] or [(0, self.space(arm).default_values())]

    def racers(self, arm: str, stage: int) -> list[tuple[int, dict[str, Value]]]:
        """The candidates of an arm that are measured on the selection's seed number `stage`, those that lead first.

        All enter the first; to every further one go those that lead by `_led` over the seeds before. A candidate of whom
        a run failed goes last. Successive halving over seeds (Jamieson and Talwalkar 2016, arXiv 1502.07943).
        """
        field, stages = self.candidates(arm), self.plan.design.stages
        for number in range(min(stage, len(stages))):
            leads = self._led(arm, field, number + 1)
            field = [c for _, c in sorted(zip(leads, field, strict=True), key=lambda pair: -pair[0])]
            if number + 1 < len(stages):
                field = field[: stages[number + 1]]
        return field

    def _led(self, arm: str, field: Sequence[tuple[int, dict[str, Value]]], seeds: int) -> list[float]:
        """By how much each of a field leads the field's mean, on average over its search seed and the first selection seeds:
        no seed chooses alone. Minus infinity where a run of it has no score."""
        by_trial = {trial.number: trial.score for trial in self.finished(arm)}
        hashes = [self.spec(arm, values, seed=0, env_steps=1).variant_hash for _, values in field]
        found = {(r.variant_hash, r.seed): r.score for r in self.ledger.runs(self.campaign_id, purpose="selection", arm=arm)}  # fmt: skip
        columns = (
            [[by_trial.get(number) for number, _ in field]] if any(number in by_trial for number, _ in field) else []
        )
        columns += [[found.get((variant, seed)) for variant in hashes] for seed in self.seeds("selection")[:seeds]]
        leads = [0.0] * len(field)
        for column in columns:
            known = [score for score in column if score is not None]
            mean = statistics.fmean(known) if known else 0.0
            for place, score in enumerate(column):
                leads[place] += -math.inf if score is None else (score - mean) / len(columns)
        return leads

    def winner(self, arm: str) -> tuple[int | None, dict[str, Value]]:
        """The configuration that the selection chose: the one that leads after the race's last seed, or in plans without a race
        the best mean over the selection seeds; the default of an untuned arm."""
        if self.plan.extends is not None:
            return self.plan.extends.winners[arm]
        if arm not in self.arms:
            return None, {}
        if self.plan.design.race:
            return self.racers(arm, len(self.plan.design.race))[0]
        runs = self.ledger.runs(self.campaign_id, purpose="selection", arm=arm)
        candidates = self.candidates(arm)
        measured: list[tuple[float, int, dict[str, Value]]] = []
        for trial, values in candidates:
            variant = self.spec(arm, values, seed=0, env_steps=1).variant_hash
            scores = [run.score for run in runs if run.variant_hash == variant]
            if scores and None not in scores:
                measured.append((float(np.mean(scores)), trial, values))  # type: ignore[arg-type]
        if not measured:
            return candidates[0]
        _, trial, values = max(measured, key=lambda entry: entry[0])
        return trial, values
