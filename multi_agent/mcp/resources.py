"""What is recorded of a campaign, as MCP resources: its rows, its search space, its report. Scores that are hidden stay so."""

from __future__ import annotations

import re

from mcp import types
from mcp.server.lowlevel.helper_types import ReadResourceContents
from pydantic import AnyUrl
from sqlalchemy import select

from core.errors import InputError
from experiments.campaign.evidence import Evidence
from experiments.campaign.plan import Plan
from experiments.campaign.question import Question
from experiments.campaign.trials import Trials
from experiments.ledger.filters import COLUMNS
from experiments.ledger.models import Campaign, Run
from experiments.ledger.store import Ledger, write_json
from experiments.reading.report import markdown_report
from experiments.vocabulary import readable_id

SCHEME = "ssm-metarl"
KINDS = {
    "rows": (
        "application/json",
        "Every run with its status and score; a confirmation's score once the verdict stands.",
    ),
    "search-space": ("application/json", "The hyperparameters of both arms: range or choices, default, meaning."),
    "report": ("text/markdown", "The report as it stands."),
}
NEWEST = 5
SHOWN = ("purpose", "arm", "trial", "proposer", "model", "seed", "status", "cause", "env_steps", "score")


def templates() -> list[types.ResourceTemplate]:
    """The resources of any campaign."""
    return [
        types.ResourceTemplate(
            uriTemplate=f"{SCHEME}://{{campaign}}/{kind}", name=kind, description=words, mimeType=mime
        )
        for kind, (mime, words) in KINDS.items()
    ]


def newest(ledger: Ledger) -> list[types.Resource]:
    """The resources of the newest campaigns."""
    with ledger.session() as session:
        found = session.execute(select(Campaign.id, Campaign.goal).order_by(Campaign.id.desc()).limit(NEWEST)).all()
    return [
        types.Resource(
            uri=AnyUrl(f"{SCHEME}://{readable_id('c', number)}/{kind}"),
            name=f"{readable_id('c', number)} {kind}",
            description=f"{goal}: {words}",
            mimeType=mime,
        )
        for number, goal in found
        for kind, (mime, words) in KINDS.items()
    ]


def read(ledger: Ledger, uri: str) -> ReadResourceContents:
    """One resource. InputError for an address that is none, or a campaign that nobody has."""
    parts = re.fullmatch(rf"{SCHEME}://([^/]+)/([\w-]+)", uri)
    if parts is None or parts[2] not in KINDS:
        raise InputError(f"resource: got {uri!r}, allowed: {SCHEME}://c-0001/ and one of {', '.join(KINDS)}")
    number, kind = ledger.resolve(parts[1], "campaign"), parts[2]
    mime = KINDS[kind][0]
    if kind == "report":
        return ReadResourceContents(markdown_report(ledger, number), mime)
    if kind == "rows":
        query = select(Run.id, *(COLUMNS[name] for name in SHOWN)).where(Run.campaign_id == number).order_by(Run.id)
        with ledger.session() as session:
            found = session.execute(query).all()
        records = [{"run": readable_id("r", row[0]), **dict(zip(SHOWN, row[1:], strict=True))} for row in found]
        return ReadResourceContents(write_json(records, indent=1, default=str), mime)
    row = ledger.get_campaign(number)
    trials = Trials(ledger, number, Question.model_validate(row.question), Plan.model_validate(row.plan), row.seed)
    spaces = [Evidence(trials).describe_search_space(arm).model_dump(mode="json") for arm in trials.arms]
    return ReadResourceContents(write_json(spaces, indent=1), mime)
