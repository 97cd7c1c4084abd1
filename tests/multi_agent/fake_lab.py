"""A lab in memory with the methods of `experiments.campaign.lab.Lab`, for tests of the crew alone: scores are a formula."""

from __future__ import annotations

import json
import threading
from typing import Any

from core.config import FrozenConfig
from core.errors import InputError, bad_value, unknown_name
from experiments.campaign.lab import Paused


class Family(FrozenConfig):
    name: str
    kinds: tuple[str, ...]


class Question(FrozenConfig):
    goal: str = "beat LSTM on point-robot"
    kind: str = "beat"
    challenger: Family = Family(name="ssm", kinds=("s5", "lru"))
    baseline: Family = Family(name="lstm", kinds=("lstm",))
    task: str = "point-robot"
    metric: str = "return_first_episode"
    direction: str = "maximize"
    improvement_pct: float = 0.0
    baseline_is_tuned: bool = True

    def sentence(self) -> str:
        return "Does SSM reach a higher return than LSTM on point-robot?"


class Plan(FrozenConfig):
    rounds: int = 4
    env_steps_search: int = 10_000
    env_steps_full: int = 20_000
    confirmation_seeds: int = 5


class Parameter(FrozenConfig):
    name: str
    role: str
    kind: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Any, ...] | None = None
    default: float | int | str | bool
    description: str = ""


class Space(FrozenConfig):
    parameters: tuple[Parameter, ...]


class Table(FrozenConfig):
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int | None, ...], ...]
    note: str = ""


class Suggestion(FrozenConfig):
    arm: str
    values: dict[str, float | int | str | bool]
    source: str


class Proposal(FrozenConfig):
    id: str
    round: int
    arm: str
    role: str
    values: dict[str, float | int | str | bool]
    reason: str
    predicted_effect: str
    evidence: tuple[str, ...]
    source: str


class Feasibility(FrozenConfig):
    parameters: int
    seconds: float
    duplicate_of: str | None = None
    problems: tuple[str, ...] = ()


class Round(FrozenConfig):
    round: int
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int | None, ...], ...]


class Decision(FrozenConfig):
    granted: bool
    decision: str


class Note(FrozenConfig):
    text: str
    author: str
    target: str | None


class BudgetView(FrozenConfig):
    wall_s: float = 1800.0
    spent_s: float = 10.0
    trials: int
    trials_done: int


class EventView(FrozenConfig):
    id: int
    kind: str
    actor: str
    payload: dict[str, Any]


class ClaimContent(FrozenConfig):
    hypothesis: str = "SSM beats the LSTM on point-robot"


class Claim(FrozenConfig):
    id: str = "k-0001"
    content: ClaimContent = ClaimContent()


class Verdict(FrozenConfig):
    outcome: str = "inconclusive"
    reason: str = "The interval [-0.4, 0.9] contains 0."
    effect: float = 0.25
    interval: tuple[float, float] = (-0.4, 0.9)


SPACE = {
    "challenger": (
        Parameter(name="model.kind", role="state-modeling", kind="choice", choices=("s5", "lru"), default="s5"),
        Parameter(name="model.num_layers", role="state-modeling", kind="int", low=1, high=4, default=2),
        Parameter(
            name="learner.learning_rate",
            role="meta-learning",
            kind="float",
            low=1e-4,
            high=1e-2,
            log=True,
            default=1e-3,
        ),
        Parameter(name="adaptation.steps", role="adaptation", kind="int", low=0, high=5, default=0),
    ),
    "baseline": (
        Parameter(name="model.num_layers", role="state-modeling", kind="int", low=1, high=4, default=1),
        Parameter(
            name="learner.learning_rate",
            role="meta-learning",
            kind="float",
            low=1e-4,
            high=1e-2,
            log=True,
            default=1e-3,
        ),
    ),
}
ROLES = ("state-modeling", "meta-learning", "adaptation", "environment")
VIEWS = ("incumbent", "top", "runs", "failures", "baseline", "sensitivity")
COLUMNS = ("run", "arm", "trial", "score", "noise floors")


class FakeLab:
    """Same methods and rules as the real lab; everything happens in this process and takes no time."""

    campaign_id = "c-0001"
    agent_share = 0.3

    def __init__(
        self, rounds: int = 4, *, tuned: bool = True, first_run: int = 1, earlier: FakeLab | None = None
    ) -> None:
        self.first_run = first_run
        self.earlier = {} if earlier is None else {"c-0009": earlier}
        self.question = Question(baseline_is_tuned=tuned)
        self.plan = Plan(rounds=rounds)
        self.stop_event = threading.Event()
        self.arms = ("challenger", "baseline") if tuned else ("challenger",)
        self.stage = "question"
        self.short_after: int | None = None
        self.may_end_after = 2
        self.rested = 0.0
        self.round = 0
        self.recorded: list[EventView] = []
        self.proposals: dict[tuple[int, str, str], Proposal] = {}
        self.runs: list[tuple[str, str, int, float, float]] = []
        self.notes: list[Note] = []
        self.finished: tuple[str, str] | None = None
        self.stages: list[str] = []
        self.launches = 0
        self.on_launch: Any = None

    def _arm(self, arm: str | None) -> None:
        if arm is not None and arm not in SPACE:
            raise unknown_name("arm", arm, SPACE)

    def describe_search_space(self, arm: str, role: str | None = None) -> Space:
        self._arm(arm)
        if role is not None and role not in ROLES:
            raise unknown_name("role", role, ROLES)
        return Space(parameters=tuple(p for p in SPACE[arm] if role in (None, p.role)))

    def _check(self, arm: str, values: dict[str, Any], role: str | None = None) -> None:
        space = {p.name: p for p in SPACE[arm] if role in (None, p.role)}
        for name, value in values.items():
            if name not in space:
                raise unknown_name("parameter", name, space)
            p = space[name]
            if p.choices is not None:
                if value not in p.choices:
                    raise bad_value(name, value, f"one of {p.choices}")
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not p.low <= value <= p.high:  # type: ignore[operator]
                raise bad_value(name, value, f"{p.kind} from {p.low} to {p.high}")
            if p.kind == "int" and value % 1:
                raise bad_value(name, value, "a whole number")

    def ledger_query(self, view: str, arm: str | None = None, limit: int = 8) -> Table:
        self._arm(arm)
        if view not in VIEWS:
            raise unknown_name("view", view, VIEWS)
        rows = [r for r in self.runs if arm in (None, r[1])]
        if view == "baseline":
            rows = [r for r in rows if r[2] < 0]
        elif view == "failures":
            rows = []
        else:
            rows = sorted((r for r in rows if r[2] >= 0), key=lambda r: -r[3])
        return Table(columns=COLUMNS, rows=tuple(rows[: 1 if view == "incumbent" else limit]))

    def suggest(self, arm: str) -> Suggestion:
        self._arm(arm)
        values: dict[str, Any] = {p.name: p.default for p in SPACE[arm]}
        if self.round:
            values["learner.learning_rate"] = round(1e-3 * (1 + self.round), 6)
        return Suggestion(arm=arm, values=values, source="optimizer" if self.round else "default")

    def propose(
        self,
        *,
        arm: str,
        role: str,
        values: dict[str, Any],
        reason: str,
        predicted_effect: str,
        evidence: list[str],
    ) -> Proposal:
        self._arm(arm)
        self._check(arm, values, role)
        known = {r[0] for r in self.runs}
        for row in evidence:
            if row not in known:
                raise unknown_name("evidence", row, known)
        key = (self.round, arm, role)
        proposal = Proposal(
            id=f"p-{len(self.proposals) + 1:04d}",
            round=self.round,
            arm=arm,
            role=role,
            values=values,
            reason=reason,
            predicted_effect=predicted_effect,
            evidence=tuple(evidence),
            source="optimizer" if values.items() <= self.suggest(arm).values.items() else "agent",
        )
        old = self.proposals.get(key)
        if old is not None and old.values == values:
            return old
        self.proposals[key] = proposal
        return proposal

    def check_feasibility(self, arm: str, values: dict[str, Any]) -> Feasibility:
        self._arm(arm)
        try:
            self._check(arm, values)
        except InputError as error:
            return Feasibility(parameters=0, seconds=0.0, problems=(str(error),))
        return Feasibility(parameters=4_000, seconds=20.0)

    def _run(self, arm: str, number: int, score: float) -> None:
        self.runs.append((f"r-{len(self.runs) + self.first_run:04d}", arm, number, score, round(score / 0.5, 2)))

    def prepare_round(self) -> Table:
        rows = tuple((arm, "optimizer", json.dumps(self.suggest(arm).values)) for arm in self.arms)
        return Table(columns=("arm", "proposed by", "configuration"), rows=rows)

    def rest(self, seconds: float) -> None:
        self.rested += seconds

    def launch(self) -> Round:
        if self.stop_event.is_set():
            raise Paused("stopped")
        if self.on_launch is not None:
            self.on_launch()
        self.launches += 1
        for arm in self.arms:
            self._run(arm, self.round, round(-10 + 0.1 * self.round + 0.01 * len(arm), 3))
        self.round += 1
        rows = tuple(r for r in self.runs if r[2] == self.round - 1)
        return Round(round=self.round - 1, columns=COLUMNS, rows=rows)

    def peek(self) -> Table:
        return Table(columns=("run", "progress"), rows=())

    def compare_variants(self, first: str, second: str) -> Table:
        known = {r[0] for r in self.runs}
        for run in (first, second):
            if run not in known:
                raise unknown_name("run", run, known)
        return Table(columns=("field", first, second), rows=())

    def analyse_curves(self, arm: str | None = None, run_id: str | None = None, limit: int = 8) -> Table:
        self._arm(arm)
        if run_id is not None and run_id not in {r[0] for r in self.runs}:
            raise unknown_name("run", run_id, [r[0] for r in self.runs])
        return Table(columns=("run", "gain"), rows=((run_id or "r-0001", 1.5),))

    def request_confirmation(self, actor: str, reason: str, evidence: list[str]) -> Decision:
        for row in evidence:
            if row not in {r[0] for r in self.runs}:
                raise unknown_name("evidence", row, [r[0] for r in self.runs])
        granted = self.round >= self.may_end_after
        self.record_event("early_end", actor, {"text": reason, "granted": granted, "round": self.round})
        return Decision(granted=granted, decision="the search ends" if granted else "too early")

    def open_round(self, actor: str) -> None:
        self.record_event("opened", actor, {"round": self.round})

    def ends_early(self) -> bool:
        return any(e.payload["granted"] for e in self.recorded if e.kind == "early_end")

    def episode_returns(self, run: str) -> Table:
        if run not in {r[0] for r in self.runs}:
            raise unknown_name("run", run, [r[0] for r in self.runs])
        return Table(columns=("episode", "mean return", "worst task"), rows=((0, -10.0, -14.0), (1, -9.0, -12.0)))

    def write_note(self, text: str, author: str, target: str | None = None) -> Note:
        self.notes.append(Note(text=text, author=author, target=target))
        return self.notes[-1]

    def budget(self) -> BudgetView:
        return BudgetView(trials=2 * self.plan.rounds, trials_done=2 * self.round)

    def record_event(self, kind: str, actor: str, payload: dict[str, Any]) -> int:
        json.dumps(payload, allow_nan=False).encode()
        self.recorded.append(EventView(id=len(self.recorded) + 1, kind=kind, actor=actor, payload=payload))
        return len(self.recorded)

    def events(self, kinds: Any = None, after: int = 0, campaign: str | None = None) -> list[EventView]:
        if campaign is not None:
            if campaign not in self.earlier:
                raise unknown_name("campaign", campaign, self.earlier)
            return self.earlier[campaign].events(kinds, after)
        return [e for e in self.recorded if e.id > after and (kinds is None or e.kind in kinds)]

    def time_is_short(self) -> bool:
        return self.short_after is not None and self.round >= self.short_after

    def run_baseline(self) -> Table:
        if not any(r[2] < 0 for r in self.runs):
            for seed in range(3):
                self._run("baseline", -1, -10.0 - 0.3 * seed)
        return self.ledger_query("baseline", "baseline")

    def run_selection(self) -> Table:
        return Table(columns=("arm", "configuration", "score"), rows=(("challenger", "r-0005", -9.5),))

    def write_claim(self) -> Claim:
        return Claim()

    def run_confirmation(self) -> Table:
        return Table(columns=("arm", "runs"), rows=(("challenger", 5), ("baseline", 5)))

    def judge(self) -> Verdict:
        return Verdict()

    def set_stage(self, stage: str) -> None:
        self.stages.append(stage)
        self.stage = stage

    def finish(self, narrative: str, narrator: str) -> None:
        self.finished = (narrative, narrator)
        self.set_stage("done")
