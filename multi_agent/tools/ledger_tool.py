"""Tools over the lab and its ledger: look, ask the optimizer, propose, check, launch, note, and talk to the others."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from core.config import FrozenConfig
from core.errors import InputError
from experiments.search.space import ALL_SLICES
from experiments.vocabulary import Arm
from multi_agent.tools.tool import ArmArguments, NoArguments, RowId, Tool, ToolContext, Values, values_dict


class QueryArguments(FrozenConfig):
    """Which table of the ledger to read."""

    view: Literal["incumbent", "top", "runs", "failures", "baseline", "sensitivity"]
    """incumbent: best so far; top: best rows; runs: newest first; failures: with causes; baseline: noise floor;
    sensitivity: which hyperparameters go with the score, with intervals."""
    arm: Arm | None = None
    """Side of the comparison; null for both."""
    limit: int = Field(default=8, ge=1, le=30)
    """Most rows to return."""


class CurvesArguments(FrozenConfig):
    """Which learning curves to analyse."""

    arm: Arm | None = None
    """Side of the comparison; null for both."""
    run: RowId | None = None
    """One run, such as r-0042; null for the newest ones."""
    limit: int = Field(default=6, ge=1, le=12)
    """Most runs to analyse."""


class CheckArguments(ArmArguments):
    """A configuration to check before it is proposed."""

    values: Values
    """Hyperparameters to set; the others keep their defaults."""


class ProposeArguments(ArmArguments):
    """Your slice of one arm's configuration for this round."""

    values: Values
    """Hyperparameters of your slice."""
    reason: str = Field(min_length=1, max_length=800)
    """Why these values."""
    predicted_effect: str = Field(min_length=1, max_length=400)
    """What you expect to change; a prediction, never a result."""
    evidence: list[RowId] = Field(max_length=20)
    """Ids of the ledger rows you rest on, such as r-0042; empty if none."""


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


def describe_search_space(context: ToolContext, arguments: ArmArguments) -> BaseModel:
    """The hyperparameters of your slice for one arm: name, kind, range or choices, default, meaning."""
    return context.lab.describe_search_space(arguments.arm, context.role)


def ledger_query(context: ToolContext, arguments: QueryArguments) -> BaseModel:
    """A compact table of this campaign's search runs. Scores are shown with their distance in noise-floor units."""
    return context.lab.ledger_query(arguments.view, arguments.arm, arguments.limit)


def suggest(context: ToolContext, arguments: ArmArguments) -> BaseModel:
    """The optimizer's joint configuration of one arm for this round. Asking again gives the same answer."""
    return context.lab.suggest(arguments.arm)


def check_feasibility(context: ToolContext, arguments: CheckArguments) -> BaseModel:
    """Parameters, estimated seconds, the run that had the same configuration and the problems of one, without training."""
    return context.lab.check_feasibility(arguments.arm, values_dict(arguments.values))


def propose(context: ToolContext, arguments: ProposeArguments) -> BaseModel:
    """Propose your slice of one arm for this round. Repeating it replaces your proposal until the round is launched."""
    if context.role is None:
        raise InputError(f"{context.actor} owns no slice of the configuration and proposes nothing")
    values = values_dict(arguments.values)
    suggested = context.lab.suggest(arguments.arm).values
    same = all(name in suggested and suggested[name] == value for name, value in values.items())
    if not same and context.owner != "agents":
        owner = "the default configuration" if context.owner == "default" else "the optimizer's suggestion"
        wanted = {name: suggested[name] for name in values if name in suggested}
        raise InputError(f"values: this round runs {owner}; allowed: exactly the values of suggest: {wanted}")
    roles = {p.name: p.role for p in context.lab.describe_search_space(arguments.arm, context.role).parameters}
    slices = {context.role: values}
    if context.role == ALL_SLICES:  # one agent alone: its values go to the slices that they belong to
        owners = [r for r in dict.fromkeys(roles.values()) if any(roles.get(name, r) == r for name in values)]
        slices = {r: {n: v for n, v in values.items() if roles.get(n, r) == r} for r in owners}
    proposals = [
        context.lab.propose(
            arm=arguments.arm,
            role=role,
            values=own,
            reason=arguments.reason,
            predicted_effect=arguments.predicted_effect,
            evidence=list(arguments.evidence),
        )
        for role, own in slices.items()
    ]
    return proposals[-1] if proposals else Done(done="no value was named, so nothing is proposed")


def compare_variants(context: ToolContext, first_second: CompareArguments) -> BaseModel:
    """What differs between two search runs, and their difference in score in noise-floor units."""
    return context.lab.compare_variants(first_second.first, first_second.second)


def analyse_curves(context: ToolContext, arguments: CurvesArguments) -> BaseModel:
    """Learning curves of search runs: gain from doubling the env steps with its 95 % interval, plateau or still rising,
    largest drop, and a forecast of the final score with its interval."""
    return context.lab.analyse_curves(arguments.arm, arguments.run, arguments.limit)


def request_confirmation(context: ToolContext, arguments: ConfirmationArguments) -> BaseModel:
    """Ask that the search ends early and the claim is written. Code decides: half of the rounds must be measured and the
    challenger's best must lie two noise floors above what it has to beat; the answer says what is missing."""
    return context.lab.request_confirmation(context.actor, arguments.reason, list(arguments.evidence))


def budget(context: ToolContext, arguments: NoArguments) -> BaseModel:
    """What of the campaign's budget is spent and what is left."""
    return context.lab.budget()


def write_note(context: ToolContext, arguments: NoteArguments) -> BaseModel:
    """Write a note into the ledger for the people who read the report."""
    return context.lab.write_note(arguments.text, context.actor, arguments.target)


def tell(context: ToolContext, arguments: TellArguments) -> Done:
    """Send a message to another agent."""
    message = context.broker.post(context.actor, arguments.to, arguments.text, tuple(arguments.evidence))
    return Done(done=f"{message.recipient} reads it at the next turn")


def remember(context: ToolContext, arguments: RememberArguments) -> Done:
    """Share a finding, with the ids of the rows that show it."""
    context.memory.add(context.actor, arguments.text, tuple(arguments.evidence))
    return Done(done="shared with every agent")


DESCRIBE_SEARCH_SPACE = Tool("describe_search_space", ArmArguments, describe_search_space)
LEDGER_QUERY = Tool("ledger_query", QueryArguments, ledger_query, measures=True)
SUGGEST = Tool("suggest", ArmArguments, suggest)
CHECK_FEASIBILITY = Tool("check_feasibility", CheckArguments, check_feasibility)
PROPOSE = Tool("propose", ProposeArguments, propose)
COMPARE_VARIANTS = Tool("compare_variants", CompareArguments, compare_variants, measures=True)
BUDGET = Tool("budget", NoArguments, budget, measures=True)
ANALYSE_CURVES = Tool("analyse_curves", CurvesArguments, analyse_curves, measures=True)
REQUEST_CONFIRMATION = Tool("request_confirmation", ConfirmationArguments, request_confirmation, measures=True)
WRITE_NOTE = Tool("write_note", NoteArguments, write_note)
TELL = Tool("tell", TellArguments, tell)
REMEMBER = Tool("remember", RememberArguments, remember)

READING = (LEDGER_QUERY, ANALYSE_CURVES, COMPARE_VARIANTS, BUDGET)
PROPOSING = (DESCRIBE_SEARCH_SPACE, SUGGEST, CHECK_FEASIBILITY, PROPOSE)
TALKING = (TELL, REMEMBER, WRITE_NOTE, REQUEST_CONFIRMATION)
