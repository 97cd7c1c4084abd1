"""What may be shown of scores: nobody may choose by held-out results, so a confirmation run's score waits for its verdict.

The rule is `UNJUDGED`, here and nowhere else. Lists, filters, ids and exports read `SCORE` in place of the column; code that
has a run in hand asks `Ledger.score_is_hidden` or is refused by `Ledger.must_show`.
"""

from __future__ import annotations

from sqlalchemy import case, exists, select
from sqlalchemy.orm import Session

from core.errors import InputError
from core.words.commands import command
from experiments.ledger.models import Campaign, Claim, Run, Verdict
from experiments.vocabulary import readable_id

UNJUDGED = (Run.pool == "confirmation") & ~exists().where(Verdict.claim_id == Run.claim_id)
SCORE = case((UNJUDGED, None), else_=Run.score)


def is_hidden(session: Session, run: Run) -> bool:
    """Whether the score and the evaluations of a run are not shown yet."""
    return session.scalar(select(Run.id).where(Run.id == run.id, UNJUDGED)) is not None


def hidden_error(run: Run) -> InputError:
    """What is answered to whoever asks for a hidden score."""
    name = readable_id("c", run.campaign_id)
    return InputError(
        f"{readable_id('r', run.id)} is a confirmation run: its score is not shown before the verdict on "
        f"{readable_id('k', run.claim_id)}." + ("" if name is None else f" Go on with: {command('resume', name)}")
    )


def verdict_due(session: Session, task: str) -> int | None:
    """The first campaign on a task family, or on another one with the same fixed tasks, whose verdict is still to come: one that is not
    over, whether it runs, is paused or failed (a resume goes on with it), or that has a claim without one."""
    from env_runner.transfer import examined_tasks  # not above: most readers ask for no task

    judged = exists().where(Claim.campaign_id == Campaign.id, Verdict.claim_id == Claim.id)
    claimed = exists().where(Claim.campaign_id == Campaign.id)
    open_ones = select(Campaign).where(~judged, claimed | (Campaign.stage != "done"))
    alike = (
        campaign.id
        for campaign in session.scalars(open_ones.order_by(Campaign.id))
        if examined_tasks(campaign.question.get("task", "")) == examined_tasks(task)
    )
    return next(alike, None)


def forestalled_error(campaign_id: int, task: str) -> InputError:
    """What is answered to whoever looks at the tasks that a verdict is going to rest on."""
    name = readable_id("c", campaign_id)
    return InputError(
        f"pool: got 'confirmation', allowed: search, selection. {name} will be judged on the confirmation tasks of {task}, and whoever "
        f"has seen them before its verdict could choose by them. Bring it to its verdict with: {command('resume', name)}, or end it with: {command('stop', name)}"
    )
