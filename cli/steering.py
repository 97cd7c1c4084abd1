"""A person's words to a campaign, from a second terminal: pause it, instruct its crew, approve, ask."""

from __future__ import annotations

from cli.options import BrainOptions, CampaignId, LedgerOptions
from core.errors import InputError, bad_value
from core.words.commands import command


def pause(campaign: CampaignId = "@last", *, options: LedgerOptions = LedgerOptions()) -> None:
    """Ask a campaign that is being worked on elsewhere to save and pause; go on with resume."""
    _leave_word(campaign, "pause", {}, "asked to pause", options)


def instruct(campaign: CampaignId, text: str, /, *, options: LedgerOptions = LedgerOptions()) -> None:
    """Say something to the crew of a running campaign; every agent hears it at the next round.

    Parameters
    ----------
    text
        Such as "try smaller state sizes".
    """
    words = text.strip()
    if not 1 <= len(words) <= 2000:
        raise bad_value("text", f"{len(text)} characters", "from 1 to 2000 characters")
    _leave_word(campaign, "instruct", {"text": words}, "the crew hears it at the next round", options)


def approve(
    campaign: CampaignId = "@last", *, deny: str | None = None, options: LedgerOptions = LedgerOptions()
) -> None:
    """Approve what a campaign waits for (see --approve-each), also while it is paused.

    Parameters
    ----------
    deny
        Refuse instead, with a reason that the crew gets: a search round is proposed anew by a chat model; else it pauses.
    """
    from experiments.campaign.steering import approve as answer

    if deny is not None and not 1 <= len(deny.strip()) <= 2000:
        raise InputError(f"--deny: got {len(deny)} characters, allowed: a reason of 1 to 2000 characters")
    ledger = options.change()
    campaign_id = ledger.resolve(campaign, "campaign")
    waiting = answer(ledger, campaign_id, deny=None if deny is None else deny.strip())
    options.output.done({"campaign": f"c-{campaign_id:04d}", "approved" if deny is None else "denied": waiting.what})


def ask(
    campaign: CampaignId,
    question: str,
    /,
    *,
    brain: BrainOptions = BrainOptions(),
    options: LedgerOptions = LedgerOptions(),
) -> None:
    """Ask about a campaign; the answer comes from read-only SQL and names its rows.

    Parameters
    ----------
    question
        Such as "why was r-0042 pruned?".
    """
    from rich.text import Text

    from multi_agent.ask import ask as answer_question

    ledger, paths = options.read(), options.paths()
    answer = answer_question(
        ledger,
        ledger.resolve(campaign, "campaign"),
        question,
        brain.choose(),
        data_dir=paths.data,
        **brain.caps,
    )
    rows = f"rows: {', '.join(answer.rows) or 'none'}; answered by {answer.by}"
    options.output.result(answer, Text(answer.text), Text(rows))


def _leave_word(campaign: str, kind: str, payload: dict[str, str], outcome: str, options: LedgerOptions) -> None:
    """Leave a person's word for a campaign as an event."""
    ledger = options.change()
    campaign_id = ledger.resolve(campaign, "campaign")
    name, row = f"c-{campaign_id:04d}", ledger.get_campaign(campaign_id)
    if row.stage == "done":
        raise InputError(f"{name} is finished: there is nothing to {kind}")
    if kind == "pause" and row.status != "running":
        raise InputError(f"{name} is not running ({row.status}). Go on with: {command('resume', name)}")
    from experiments.campaign.holder import describe_holder, if_gone

    ledger.record_event(campaign_id, kind, "human", payload)
    advice = if_gone(campaign_id, row.holder)
    held = {"held by": f"{describe_holder(row.holder)}. {advice}"} if advice else {}
    options.output.done({"campaign": name, kind: outcome} | held, ". ".join([f"{name}: {outcome}", *held.values()]))
