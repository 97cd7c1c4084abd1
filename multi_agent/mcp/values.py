"""What the driver's tools take and give: frozen values whose docstrings are what a client reads."""

from __future__ import annotations

from typing import Literal

from mcp.types import ToolAnnotations
from pydantic import BaseModel, Field

from core.config import FrozenConfig

State = Literal["your turn", "another's turn", "planning", "training", "waits for approval", "not running", "finished"]
AGAIN_S: dict[State, int] = {"planning": 5, "training": 30, "waits for approval": 15, "another's turn": 30}
"""Seconds after which a client asks again, well within the deadline of a turn; no entry where there is nothing to wait for."""
TOOL_AGAIN_S = 5
"""The same for a tool that is still at work."""


class OpenArguments(FrozenConfig):
    """A campaign: one goal, researched to its verdict."""

    goal: str = Field(min_length=1, max_length=500)
    """Such as "beat LSTM on point-robot" or "improve LRU on ant-dir by 10 %"."""
    budget: str | None = Field(default=None, max_length=20)
    """Wall time for everything, such as 30m (where nothing is said) or 2h."""
    env_steps: str | None = Field(default=None, max_length=20)
    """Training steps instead of wall time, such as 20M; the campaign is then deterministic."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the whole campaign."""
    approve_each: Literal["none", "stage", "run"] = "none"
    """What waits for a person's approval."""
    collaboration: Literal["sequential", "debate", "emergent"] = "sequential"
    """How the agents work together in a round."""


class CampaignArguments(FrozenConfig):
    """Which campaign."""

    campaign: str | None = Field(default=None, max_length=40)
    """Its id, such as c-0007; null for the one opened or named last, else the newest."""


class FinishArguments(FrozenConfig):
    """The end of a turn."""

    words: str = Field(min_length=1, max_length=2_000)
    """Your closing words: what colleagues read of this turn, or, in the last turn, the narrative."""


class Standing(FrozenConfig):
    """What a campaign wants of its client now."""

    campaign: str | None
    """Its id; null while it is being planned."""
    state: State
    text: str
    """What to do next, in words."""
    again_s: int | None = None
    """Seconds after which to ask again; null where there is something to do, or nothing more."""
    agent: str | None = None
    """Who you are in this turn."""
    kind: str | None = None
    """Of the turn: plan, propose, revise, review or report."""
    prompt: str | None = None
    """The turn's task with the briefing that code wrote from the rows."""
    tools: tuple[str, ...] = ()
    """Tools of this agent; others are refused in its turn."""
    deadline_s: float | None = None
    """Seconds without a word of yours after which the turn is over and the optimizer goes on."""


class Status(FrozenConfig):
    """How a campaign stands."""

    campaign: str
    goal: str
    state: State
    status: str
    """running, paused, failed, done, or interrupted where its process has ended without a word."""
    stage: str
    held_by: str
    runs_finished: int
    runs_left: int
    env_steps_spent: int
    env_steps_left: int
    wall_s_spent: float
    wall_s_budget: float | None
    trials: int
    """Of a side, in the search."""
    waits_for: str | None
    """What a person is to approve."""
    claim: str | None
    """The hypothesis, fixed before its first confirmation run."""
    verdict: str | None
    """confirmed, refuted, equivalent, inconclusive or invalid: by the judge, which is code."""
    reason: str | None
    """Of the verdict."""
    narrative: str | None


class Pending(FrozenConfig):
    """A call that is still at work."""

    running: str
    """What is at work; call again with the same arguments."""
    again_s: int
    """Seconds after which to call again."""


DRIVING: dict[str, tuple[type[BaseModel], type[BaseModel], str, ToolAnnotations]] = {
    "open_campaign": (OpenArguments, Standing, "Start a campaign in a process of its own, which goes on whatever becomes of you.", ToolAnnotations(destructiveHint=False, idempotentHint=False, openWorldHint=False)),
    "resume_campaign": (CampaignArguments, Standing, "Go on with a campaign that was paused or interrupted.", ToolAnnotations(destructiveHint=False, idempotentHint=True, openWorldHint=False)),
    "next_turn": (CampaignArguments, Standing, "Take the turn that waits for you, with its briefing, or hear when to ask again.", ToolAnnotations(destructiveHint=False, idempotentHint=True, openWorldHint=False)),
    "finish_turn": (FinishArguments, Standing, "End your turn with its closing words.", ToolAnnotations(destructiveHint=False, idempotentHint=False, openWorldHint=False)),
    "campaign_status": (CampaignArguments, Status, "How a campaign stands: stage, budget, claim, and the judge's verdict once there is one.", ToolAnnotations(readOnlyHint=True, openWorldHint=False)),
}  # fmt: skip
"""Each tool of the driver: its arguments, its result, what it does, and hints for the client."""
