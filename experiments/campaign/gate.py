"""The feasibility gate: can a configuration be trained within the plan? Asked before anything is spent on it.

Four checks, the cheap ones first: ranges, size and length; time and memory against what is left; trials of the same arm
that are too near; and one real training iteration in a worker of its own, so that a crash, a loss that is not finite or
too much memory shows before the spend. The iteration's score is thrown away: its outcome is an event, never evidence.
What is refused comes back as words that say why and what to change.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from core.config import FrozenConfig
from core.errors import InputError
from experiments.campaign.economy import Economy
from experiments.campaign.evidence import changed_fields
from experiments.campaign.journal import Journal
from experiments.campaign.trials import Base, Trials, slice_of
from experiments.campaign.views import FeasibilityView
from experiments.runs.executor import Ended, Executor, Job, Message
from experiments.runs.paths import Paths
from experiments.runs.runner import TIME_LIMIT_S, Paused
from experiments.search.side import Value
from experiments.search.sizing import count_parameters, state_size
from experiments.search.space import NEAR, ROLES, is_near, iteration_steps
from experiments.spec import RunSpec
from experiments.vocabulary import PARAMETER_TOLERANCE, readable_id

BYTES_A_PARAMETER = 16  # float32 weight, gradient and Adam's two moments: the least that training can need
PROBE_LIMIT_S = 120.0  # process start and one iteration; seconds in practice
MAX_REFUSALS = 6  # of the optimizer in one round; what it suggests then is trained, and counted where it is wasted


class Probe(FrozenConfig):
    """What one real training iteration of a configuration showed."""

    config_hash: str
    problem: str | None
    memory_mb: int | None


class Gate:
    """The checks on the configurations of one campaign: those that are proposed, and those that a round would train."""

    def __init__(
        self,
        trials: Trials,
        journal: Journal,
        economy: Economy,
        executor: Executor,
        paths: Paths,
        stop: threading.Event,
    ) -> None:
        self.trials, self.journal, self.economy = trials, journal, economy
        self.executor, self.paths, self.stop = executor, paths, stop
        self._passed: set[int] = set()  # rounds whose suggestions went through

    def check_feasibility(self, arm: str, values: dict[str, Value], base: Base = "suggestion") -> FeasibilityView:
        """Whether the present round's configuration with `values`, completed as a proposal of them is, can be trained within
        the plan, and at what cost."""
        try:
            values, round_ = self.trials.space(arm).check_values(values), self.journal.round
            trial = self.trials.plan.open_trial(round_)
            if self.journal.stage == "search" and round_ < self.trials.plan.rounds and not self.journal.ends_early():
                self.pass_suggestions(trial)
            return self._feasibility(arm, self.trials.joint(arm, trial, values, base=base))
        except InputError as error:
            return FeasibilityView(
                feasible=False, problems=(str(error),), parameters=None, expected_s=None, same_as=None
            )

    def _feasibility(self, arm: str, values: dict[str, Value]) -> FeasibilityView:
        """The same of a complete configuration."""
        plan = self.trials.plan
        spec = self.trials.search_spec(arm, values)
        parameters = count_parameters(spec)
        rate = self.economy.steps_per_s(spec)
        expected_s = None if rate is None else round(spec.env_steps / rate + plan.startup_s, 1)
        problems = static_problems(
            spec,
            self.trials.parameters,
            memory_limit_mb=self.economy.memory_limit_mb(),
            expected_s=expected_s,
            left_s=self.economy.search_left_s(),
        )
        tried = self._probes().get(spec.config_hash)
        if tried is not None and tried.problem is not None:
            problems.append(tried.problem)
        return FeasibilityView(
            feasible=not problems,
            problems=tuple(problems),
            parameters=parameters,
            expected_s=expected_s,
            same_as=self.same_trial(arm, values, before=plan.trials),
            memory_mb=None if tried is None else tried.memory_mb,
            configuration=values,
            difference=self.difference(arm, values),
            width=spec.policy.model.hidden_dim,
            state_size=state_size(spec),
        )

    def difference(self, arm: str, values: dict[str, Value]) -> str:
        """What a configuration changes of the best one of its arm so far."""
        return changed_fields(self.trials.base_values(arm, 0, "incumbent"), values)

    def same_trial(self, arm: str, values: dict[str, Value], *, before: int) -> str | None:
        """The search run of a finished trial numbered below `before` that is the same trial of this arm (see `is_near`), or None;
        in words the trial that trains beside it."""
        if arm not in self.trials.arms:
            return None
        parameters, plan = self.trials.space(arm).parameters, self.trials.plan
        finished = {earlier.number: earlier for earlier in self.trials.finished(arm)}
        for earlier in finished.values():
            if earlier.number < before and is_near(parameters, earlier.values, values):
                return readable_id("r", earlier.run.id)
        for beside in plan.trials_of(plan.round_of(before)) if before < plan.trials else ():
            own = self.trials.values(arm, beside) if beside < before and beside not in finished else None
            if own is not None and is_near(parameters, own, values):
                return f"trial {beside} of this round"
        return None

    def check_proposal(
        self, arm: str, trial: int, role: str, values: dict[str, Value], configuration: dict[str, Value]
    ) -> None:
        """InputError, kept as an event, where the `configuration` that a role's `values` make may not be trained."""
        problem = self._examine({arm: configuration}, trial)[arm]
        if problem is not None:
            raise InputError(self._refuse(arm, trial, values, problem, source="agent", role=role))

    def pass_suggestions(self, trial: int) -> None:
        """Make the optimizer suggest anew until every arm's suggestion of this trial passes, a few times at most. The trials
        of the round before it are settled first, as what it stands beside.

        A refusal is an event, and the next suggestion a function of the events: a resumed campaign gets the same ones.
        """
        plan = self.trials.plan
        if trial == 0 or trial in self._passed or self.journal.is_launched(plan.round_of(trial)):
            return
        for earlier in range(plan.trials_of(plan.round_of(trial)).start, trial):
            self.settle(earlier)
        open_arms = list(self.trials.arms)
        for _ in range(MAX_REFUSALS):
            configurations = {a: self.trials.space(a).complete(self.trials.suggest(a, trial).values) for a in open_arms}
            refused = {a: problem for a, problem in self._examine(configurations, trial).items() if problem is not None}
            for arm, problem in refused.items():
                self._refuse(arm, trial, configurations[arm], problem, source="optimizer", role="all")
            open_arms = list(refused)
            if not open_arms:
                break
        self._passed.add(trial)

    def settle(self, trial: int) -> dict[str, dict[str, Value]]:
        """Every arm's joint configuration of a trial; where it is refused as the agents shaped it, the suggestion's."""
        self.pass_suggestions(trial)
        launched = self.journal.is_launched(self.trials.plan.round_of(trial))
        chosen: dict[str, dict[str, Value]] = {}
        for arm in self.trials.arms:
            chosen[arm] = self.trials.complete(arm, trial)
            space, suggested = self.trials.space(arm), self.trials.suggest(arm, trial).values
            if chosen[arm] == space.complete(suggested) or launched:
                continue
            problem = self._examine({arm: chosen[arm]}, trial)[arm]
            if problem is not None:
                self._refuse(arm, trial, chosen[arm], problem, source="agent", role="all")
                reason = f"the agents' joint configuration was refused: {problem}"
                for role in ROLES:
                    own = slice_of(space, role, suggested)
                    self.trials.write_proposal(arm, trial, role, own, "optimizer", reason=reason)
                chosen[arm] = self.trials.complete(arm, trial)
        return chosen

    def _examine(self, configurations: dict[str, dict[str, Value]], trial: int) -> dict[str, str | None]:
        """Arm -> why its configuration may not be trained as this trial and what to change, or None."""
        answers: dict[str, str | None] = {}
        untried: dict[str, RunSpec] = {}
        tried = self._probes()
        for arm, values in configurations.items():
            try:
                problems = list(self._feasibility(arm, values).problems)
            except InputError as error:  # no model is built from these values
                problems = [str(error)]
            if same := self.same_trial(arm, values, before=trial):
                problems.append(
                    f"it is the same trial as {same} (nothing differs by more than {100 * NEAR:.0f} % of its range): change at "
                    "least one value by more"
                )
            answers[arm] = "; ".join(problems) or None
            if not problems:
                spec = self.trials.search_spec(arm, values)
                if spec.config_hash not in tried:
                    untried[arm] = spec
        results = probe(
            list(untried.values()),
            self.executor,
            self.paths,
            self.stop,
            memory_limit_mb=self.economy.memory_limit_mb(),
            time_limit_s=self._probe_limit_s(list(untried.values())),
        )
        for arm, result in zip(untried, results, strict=True):
            payload = {"arm": arm, "round": self.trials.plan.round_of(trial), **result.model_dump(mode="json")}
            self.journal.record_event("probe", "lab", payload)
            answers[arm] = result.problem
        return answers

    def _probe_limit_s(self, specs: Sequence[RunSpec]) -> float:
        if self.trials.plan.budget.wall_s is None:  # such a campaign depends on no clock, however busy the machine is
            return TIME_LIMIT_S
        rate, longest = self.economy.steps_per_s(), max((iteration_steps(spec) for spec in specs), default=0)
        return max(PROBE_LIMIT_S, 5 * longest / rate if rate else 0.0)

    def _probes(self) -> dict[str, Probe]:
        """What one training iteration of each configuration showed, by the hash of its specification."""
        payloads = [event.payload for event in self.journal.events(["probe"])]
        return {p["config_hash"]: Probe(**{name: p[name] for name in Probe.model_fields}) for p in payloads}

    def _refuse(self, arm: str, trial: int, values: dict[str, Value], problem: str, *, source: str, role: str) -> str:
        """Keep a refusal as an event; what is said about it."""
        round_ = self.trials.plan.round_of(trial)
        text = f"{arm}, round {round_ + 1}: refused before it is run: {problem}"
        payload = {"arm": arm, "round": round_, "trial": trial, "role": role, "source": source, "values": values, "problem": problem}  # fmt: skip
        self.journal.record_event("refused", "lab", {"text": text, **payload})
        return text


def static_problems(
    spec: RunSpec, parameters: int, *, memory_limit_mb: int, expected_s: float | None, left_s: float | None
) -> list[str]:
    """What can be said without training: size, length, and time and memory against what is left.

    parameters: the campaign's parameter count. expected_s, left_s: seconds that the search run takes and that the
    search has left; None where no wall time was measured or given.
    """
    problems = []
    if iteration_steps(spec) > spec.env_steps:
        problems.append(
            f"one iteration takes {iteration_steps(spec):,} env steps, a search run has {spec.env_steps:,}: "
            f"{_what_to_shrink(spec)}"
        )
    count = count_parameters(spec)
    if abs(count - parameters) > PARAMETER_TOLERANCE * max(count, parameters):
        problems.append(
            f"no width of this model comes within {100 * PARAMETER_TOLERANCE:.0f} % of the campaign's {parameters:,} parameters "
            f"(the nearest has {count:,}): choose {'fewer' if count > parameters else 'more'} model.num_layers"
        )
    needed = count * BYTES_A_PARAMETER // 2**20
    if needed > memory_limit_mb:
        problems.append(
            f"training {count:,} parameters takes at least {needed:,} MiB, allowed are {memory_limit_mb:,} MiB a run"
        )
    if expected_s is not None and left_s is not None and expected_s > left_s:
        problems.append(
            f"the run would take about {expected_s:.0f} s by this campaign's measured throughput, {max(left_s, 0):.0f} s are left "
            "for the search: choose a model.kind that trains faster or fewer model.num_layers"
        )
    return problems


def probe(
    specs: Sequence[RunSpec],
    executor: Executor,
    paths: Paths,
    stop: threading.Event,
    *,
    memory_limit_mb: int,
    time_limit_s: float = PROBE_LIMIT_S,
) -> list[Probe]:
    """Train one iteration of every specification, several at once. Raises Paused where `stop` was set meanwhile."""
    if not specs:
        return []
    folder = Path(tempfile.mkdtemp(prefix="probe-", dir=paths.data))
    ends: dict[int, Ended] = {}

    def listen(job: Job, message: Message) -> None:
        if isinstance(message, Ended):
            ends[job.run_id] = message

    try:
        jobs = [
            Job.in_folder(folder, index, spec, time_limit_s=time_limit_s, memory_limit_mb=memory_limit_mb, probe=True)
            for index, spec in enumerate(specs)
        ]
        executor.run(jobs, listen, stop)
        if stop.is_set():
            raise Paused
        return [
            Probe(config_hash=s.config_hash, problem=_in_words(s, ends[i]), memory_mb=ends[i].memory_mb)
            for i, s in enumerate(specs)
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _what_to_shrink(spec: RunSpec) -> str:
    """Which fields make an iteration of `spec` smaller: its learner says so."""
    names = [f"learner.{name}" for name in spec.learner.size_fields]
    if not names:
        return "choose other settings of the learner"
    return "choose fewer " + " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _in_words(spec: RunSpec, end: Ended) -> str | None:
    """Why a configuration whose first iteration ended so cannot be trained, and what to change; None where it can."""
    if end.status == "done":
        return None
    cause = end.cause or ""
    if "out of memory" in cause:
        change = f"{_what_to_shrink(spec)}, or a smaller model.state_dim"
    elif end.status == "diverged":
        change = "choose a smaller learner.learning_rate"
    elif end.status == "timeout":
        change = "choose a smaller or faster model"
    else:
        change = "choose other values; the cause names what does not fit"
    return f"its first training iteration {end.status}: {cause.split('; see ')[0]}; {change}"
