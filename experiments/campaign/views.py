"""What the lab hands to tools and people: frozen views of a campaign's state."""

from __future__ import annotations

from typing import Any

from core.config import FrozenConfig
from experiments.judging.claim import ClaimContent
from experiments.judging.judge import VerdictContent
from experiments.search.optimizer import Source
from experiments.search.side import Value
from experiments.search.space import Parameter
from experiments.tables import Cell


class SpaceView(FrozenConfig):
    """The tunable fields of one arm."""

    arm: str
    parameters: tuple[Parameter, ...]


class SuggestionView(FrozenConfig):
    """The optimizer's joint configuration for the present round."""

    arm: str
    trial: int
    source: Source
    """default for trial 0, optimizer, or plateau where the rule for a search without gains chose the change."""
    values: dict[str, Value]
    reason: str


class ProposalView(FrozenConfig):
    """A slice of the present round's configuration as it stands in the ledger."""

    id: str
    arm: str
    trial: int | None
    """None where other ideas of the round were preferred, so that nothing is trained of it."""
    role: str
    source: str
    values: dict[str, Value]


class VetoView(FrozenConfig):
    """An idea that was taken back because it repeats a run."""

    arm: str
    agent: str
    trial: int
    """The optimizer's again."""
    same_as: str
    """The run that it repeats."""
    differs: float
    """The largest difference of a field, in shares of its range."""


class FeasibilityView(FrozenConfig):
    """Whether a configuration can be trained, and what it would cost."""

    feasible: bool
    problems: tuple[str, ...]
    parameters: int | None
    """Trainable numbers of the whole policy."""
    expected_s: float | None
    """Expected seconds of the search run, from the campaign's measured throughput; None before the first run."""
    same_as: str | None
    """A search run of this arm that is the same trial: no value differs by more than the gate's `NEAR`."""
    memory_mb: int | None = None
    """MiB that one training iteration occupied; None where it was not tried."""
    configuration: dict[str, Value] | None = None
    """All that would be trained."""
    difference: str = ""
    """What of it is not as in the best configuration of its arm so far."""
    width: int | None = None
    """Of the sequence model, sized to the campaign's parameters."""
    state_size: int | None = None
    """Real numbers that it carries from step to step."""


class RoundView(FrozenConfig):
    """The finished runs of one search round."""

    round: int
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    noise_floor: float | None
    """Standard deviation of the score over seeds of the baseline's default configuration."""


class DecisionView(FrozenConfig):
    """What code decided on a request."""

    granted: bool
    decision: str


class NoteView(FrozenConfig):
    id: int
    target: str


class BudgetView(FrozenConfig):
    """What was spent and what is left."""

    wall_s_spent: float
    wall_s_planned: float | None
    env_steps_spent: int
    env_steps_planned: int
    runs_finished: int
    runs_planned: int
    rounds_finished: int
    rounds_planned: int
    wasted_trials: str = ""
    """Trials without a result and doubled ones of all launched, and proposals refused before they cost anything."""


class ClaimView(FrozenConfig):
    id: str
    content: ClaimContent
    content_hash: str


class VerdictView(VerdictContent):
    id: str
    claim_id: str


class EventView(FrozenConfig):
    id: int
    kind: str
    actor: str
    payload: dict[str, Any]
