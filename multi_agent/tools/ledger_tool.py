"""Tools over the lab and its ledger: look, ask the optimizer, propose, check, launch, note, and talk to the others."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from core.config import FrozenConfig
from core.errors import InputError
from experiments.campaign.proposing.ideas import Expected
from experiments.campaign.trials import Base
from experiments.campaign.views import DecisionView, FeasibilityView, NoteView, SpaceView, VetoView
from experiments.ledger.ids import named_rows
from experiments.tables import TableView
from experiments.vocabulary import Arm
from multi_agent.tools.tool import ArmArguments, RowId, Tool, ToolContext, Values, values_dict


class QueryArguments(FrozenConfig):
    """Which table of the ledger to read."""

    view: Literal["incumbent", "top", "runs", "failures", "baseline", "sensitivity"]
    """incumbent: best so far; top: best rows; runs: newest first; failures: with causes; baseline: noise floor;
    sensitivity: which hyperparameters go with the score, with intervals."""
    arm: Arm | None = None
    """Side of the comparison; null for both."""
    limit: int = Field(default=8, ge=1, le=30)
    """Most rows to return."""
    skip: int = Field(default=0, ge=0, le=10_000)
    """Rows to leave out before the first."""


class CurvesArguments(FrozenConfig):
    """Which learning curves to analyse."""

    arm: Arm | None = None
    """Side of the comparison; null for both."""
    run: RowId | None = None
    """One run, such as r-0042; null for the newest ones."""
    limit: int = Field(default=6, ge=1, le=12)
    """Most runs to analyse."""


class ProposeArguments(ArmArguments):
    """One change of one configuration, with what you expect of it."""

    base: Base
    """What you change: incumbent, the best so far, or suggestion, the optimizer's next."""
    changes: Values
    """What is other than in the base, of your slice; empty takes the base as it is."""
    prior_or_rows: Literal["prior", "rows"]
    """What it rests on: rows named in evidence, or, with fewer than five trials, what you knew before."""
    expected_delta: float = Field(allow_inf_nan=False)
    """Effect that you predict, in noise floors against the incumbent."""
    low: float = Field(allow_inf_nan=False)
    """Of your 80 % interval."""
    high: float = Field(allow_inf_nan=False)
    """Of your 80 % interval."""
    reason: str = Field(min_length=1, max_length=800)
    """Why; a sentence or two."""
    evidence: list[RowId] = Field(max_length=20)
    """Ids of the runs it rests on; empty if none."""


def _told_once(schema: dict[str, Any]) -> None:
    for field in schema["properties"].values():
        field.pop("description", None)


class CheckArguments(ProposeArguments):
    """The same as of propose, which says what they mean."""

    model_config = ConfigDict(json_schema_extra=_told_once)


class Proposed(FeasibilityView):
    """What became of a proposal, and all that would be trained."""

    id: str
    """Of its first row; empty where nothing was written."""
    source: str
    """agent, or who suggested what was taken as it is."""
    trial: int | None
    """The trial that tries it; None where a colleague's idea is tried in its place."""


class VetoArguments(ArmArguments):
    """An idea of this round that repeats a finished run."""

    agent: str = Field(max_length=60)
    """Who proposes it."""
    run: RowId
    """The run that it repeats."""
    reason: str = Field(min_length=1, max_length=400)
    """Why; a sentence."""


class CompareArguments(FrozenConfig):
    """Two runs of the search."""

    first: RowId
    """Run id, such as r-0042."""
    second: RowId
    """Run id, such as r-0050."""


class ConfirmationArguments(FrozenConfig):
    """Why the search may end now."""

    reason: str = Field(min_length=1, max_length=800)
    """Why more search would not change the choice."""
    evidence: list[RowId] = Field(max_length=20)
    """Ids of the ledger rows you rest on; empty if none."""


class NoteArguments(FrozenConfig):
    """A note for the people who read the report."""

    text: str = Field(min_length=1, max_length=1_000)
    """The note."""
    target: RowId | None = None
    """Id of the row it is about; null for the campaign."""


class TellArguments(FrozenConfig):
    """A message to another agent, read at its next turn."""

    to: str = Field(max_length=60)
    """Name of the agent, or all."""
    text: str = Field(min_length=1, max_length=800)
    """The message."""
    evidence: list[RowId] = Field(max_length=20)
    """Ids of the ledger rows it rests on; empty if none."""


class RememberArguments(FrozenConfig):
    """A finding that every agent sees from now on."""

    text: str = Field(min_length=1, max_length=400)
    """The finding, in one sentence."""
    evidence: list[RowId] = Field(min_length=1, max_length=20)
    """Ids of the ledger rows that show it."""


class Done(FrozenConfig):
    """An acknowledgement."""

    done: str
    """What was done."""


def describe_search_space(context: ToolContext, arguments: ArmArguments) -> SpaceView:
    """The hyperparameters of your slice for one arm: name, kind, range or choices, default, meaning."""
    return context.lab.describe_search_space(arguments.arm, context.role)


def ledger_query(context: ToolContext, arguments: QueryArguments) -> TableView:
    """A compact table of this campaign's search runs. Scores are shown with their distance in noise-floor units."""
    return context.lab.ledger_query(arguments.view, arguments.arm, arguments.limit, arguments.skip)


def check_feasibility(context: ToolContext, arguments: ProposeArguments) -> FeasibilityView:
    """What propose would answer to the same arguments, without proposing."""
    _expected(arguments)
    return context.lab.check_feasibility(arguments.arm, values_dict(arguments.changes), arguments.base)


def propose(context: ToolContext, arguments: ProposeArguments) -> Proposed:
    """Propose a change of one arm, to be trained alone on the incumbent's seed. The answer is all that would be trained, its size,
    seconds and problems. Repeating it replaces your proposal of this round."""
    if context.role is None:
        raise InputError(f"{context.actor} owns no slice of the configuration and proposes nothing")
    expected, values = _expected(arguments), values_dict(arguments.changes)
    if context.given:
        context.given += f" {expected} {values}"
    reason = context.checked(arguments.reason)
    suggested = context.lab.suggest(arguments.arm).values
    same = arguments.base == "suggestion" and all(suggested.get(name) == value for name, value in values.items())
    if not same and context.owner != "agents":
        owner = "the default configuration" if context.owner == "default" else "the optimizer's suggestion"
        wanted = {name: suggested[name] for name in values if name in suggested}
        raise InputError(f"changes: this round runs {owner}; allowed: base suggestion, with none or exactly {wanted}")
    proposal = context.lab.propose(
        arm=arguments.arm,
        role=context.role,
        values=values,
        reason=reason,
        base=arguments.base,
        author=context.actor,
        client=context.client,
        expected=expected,
        prior=arguments.prior_or_rows == "prior",
        evidence=list(arguments.evidence),
    )
    checked = context.lab.check_feasibility(arguments.arm, values, arguments.base)
    context.proposed[arguments.arm] = reason
    return Proposed(**dict(checked), id=proposal.id, source=proposal.source, trial=proposal.trial)


def _expected(arguments: ProposeArguments) -> Expected:
    """The prediction; InputError where it lies outside its own interval."""
    if not arguments.low <= arguments.expected_delta <= arguments.high:
        raise InputError(
            f"expected_delta: got {arguments.expected_delta:g}, allowed: from low {arguments.low:g} to high {arguments.high:g}"
        )
    return Expected(delta=arguments.expected_delta, low=arguments.low, high=arguments.high)


def veto(context: ToolContext, arguments: VetoArguments) -> VetoView:
    """Take back an idea of this round that repeats a finished run; the optimizer has its trial then. Code allows it only where no field
    differs by more than a tenth of its range."""
    via = f" (mcp:{context.client})" if context.client else ""
    reason = context.checked(arguments.reason) + via
    return context.lab.veto(arguments.arm, arguments.agent, arguments.run, by=context.actor, reason=reason)


def compare_variants(context: ToolContext, first_second: CompareArguments) -> TableView:
    """What differs between two search runs, and their difference in score in noise-floor units."""
    return context.lab.compare_variants(first_second.first, first_second.second)


def analyse_curves(context: ToolContext, arguments: CurvesArguments) -> TableView:
    """Learning curves of search runs: gain from doubling the env steps with its 95 % interval, plateau or still rising,
    largest drop, and a forecast of the final score with its interval."""
    return context.lab.analyse_curves(arguments.arm, arguments.run, arguments.limit)


def request_confirmation(context: ToolContext, arguments: ConfirmationArguments) -> DecisionView:
    """Ask that the search ends early and the claim is written. Code decides: half of the rounds must be measured and the
    challenger's best must lie two noise floors above what it has to beat; the answer says what is missing."""
    return context.lab.request_confirmation(context.actor, arguments.reason, list(arguments.evidence))


def write_note(context: ToolContext, arguments: NoteArguments) -> NoteView:
    """Write a note into the ledger for the people who read the report."""
    return context.lab.write_note(context.checked(arguments.text), context.actor, arguments.target)


def tell(context: ToolContext, arguments: TellArguments) -> Done:
    """Send a message to another agent."""
    _check_rows(context, arguments.text, arguments.evidence)
    message = context.broker.post(
        context.actor, arguments.to, context.checked(arguments.text), tuple(arguments.evidence)
    )
    return Done(done=f"{message.recipient} reads it at the next turn")


def remember(context: ToolContext, arguments: RememberArguments) -> Done:
    """Share a finding, with the ids of the rows that show it."""
    _check_rows(context, arguments.text, arguments.evidence)
    context.memory.add(context.actor, context.checked(arguments.text), tuple(arguments.evidence))
    return Done(done="shared with every agent")


def _check_rows(context: ToolContext, text: str, evidence: list[str]) -> None:
    """InputError where words or evidence name a row that is no search run of this campaign."""
    context.lab.evidence.check_ids([*evidence, *(row for row in named_rows(text) if row.startswith("r-"))])


DESCRIBE_SEARCH_SPACE = Tool("describe_search_space", ArmArguments, describe_search_space, writes="nothing")
LEDGER_QUERY = Tool("ledger_query", QueryArguments, ledger_query, measures=True, writes="nothing")
CHECK_FEASIBILITY = Tool("check_feasibility", CheckArguments, check_feasibility, writes="nothing")
PROPOSE = Tool("propose", ProposeArguments, propose, writes="once")
VETO = Tool("veto", VetoArguments, veto, writes="once")
COMPARE_VARIANTS = Tool("compare_variants", CompareArguments, compare_variants, measures=True, writes="nothing")
ANALYSE_CURVES = Tool("analyse_curves", CurvesArguments, analyse_curves, measures=True, writes="nothing")
REQUEST_CONFIRMATION = Tool(
    "request_confirmation", ConfirmationArguments, request_confirmation, measures=True, writes="once"
)
WRITE_NOTE = Tool("write_note", NoteArguments, write_note)
TELL = Tool("tell", TellArguments, tell)
REMEMBER = Tool("remember", RememberArguments, remember, writes="once")

READING = (LEDGER_QUERY, ANALYSE_CURVES)
PROPOSING = (CHECK_FEASIBILITY, PROPOSE)
TALKING = (TELL,)
"""With one probe they are the six tools of a role: what the briefing (`experiments/campaign/proposing/briefing.py`) says needs none."""
