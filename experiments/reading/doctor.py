"""A look at the ledger's own health, and removing files that nobody needs."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import select, text
from sqlalchemy.engine import URL

from core.config import FrozenConfig
from core.words.commands import command
from experiments.campaign.holder import describe_holder, standing_of
from experiments.ledger.ids import archived, readable_id
from experiments.ledger.marks import REMOVED, put_tag
from experiments.ledger.models import Artifact, Campaign, Claim, Run, Tag, Verdict
from experiments.ledger.store import HEAD, Ledger, LedgerError, OlderSchemaError, now
from experiments.runs.paths import Paths
from experiments.vocabulary import FINISHED

SILENT = timedelta(minutes=30)  # a run of no campaign that reported nothing for so long has nobody who works on it


# ---- removing files ---------------------------------------------------------------------


class Removable(FrozenConfig):
    """The files of one run that can go."""

    run: str
    why: Literal["archived", "crashed"]
    files: tuple[str, ...]
    size: int
    """Bytes."""


def removable_files(ledger: Ledger, paths: Paths) -> list[Removable]:
    """Models, checkpoints and logs of archived and of crashed runs. A run that is training is never among them."""
    with ledger.session() as session:
        runs, campaigns = (set(numbers) for numbers in archived(session))
        query = select(Run.id, Run.campaign_id, Run.status).where(Run.status.in_(FINISHED)).order_by(Run.id)
        found = list(session.execute(query))
    items = []
    for number, campaign, status in found:
        put_away = number in runs or campaign in campaigns
        if put_away or status == "crashed":
            files = [file for file in _files(paths, number) if file.is_file()]
            if files:
                items.append(
                    Removable(
                        run=readable_id("r", number),
                        why="archived" if put_away else "crashed",
                        files=tuple(str(file.relative_to(paths.data)) for file in files),
                        size=sum(file.stat().st_size for file in files),
                    )
                )
    return items


def remove_files(ledger: Ledger, paths: Paths, items: Sequence[Removable]) -> int:
    """Remove what `removable_files` found and return the bytes freed. Rows stay; a tag says that the files are gone."""
    freed = 0
    for item in items:
        put_tag(ledger, item.run, REMOVED)
        for name in item.files:
            (paths.data / name).unlink(missing_ok=True)
        freed += item.size
    return freed


def _files(paths: Paths, number: int) -> list[Path]:
    stems = (paths.model(number), paths.best_model(number), paths.checkpoint(number))
    return [stem.with_suffix(suffix) for stem in stems for suffix in (".safetensors", ".json")] + [paths.log(number)]


# ---- health -----------------------------------------------------------------------------


class Finding(FrozenConfig):
    """One thing that is not as it should be."""

    what: str
    way_out: str
    fixed: bool = False


def examine(url: str | URL, paths: Paths, *, fix: bool = False) -> list[Finding]:
    """Everything that is wrong with the ledger and its files; with `fix` what can be mended is.

    Checked: the file itself, its schema and triggers, hashes of claims, verdicts against their rows, campaigns and runs
    whose process has ended, hashes of kept models.
    """
    try:
        ledger = Ledger(url, read_only=True)
    except LedgerError as error:
        if isinstance(error, OlderSchemaError) and fix:
            Ledger(url).close()
            done = Finding(what=str(error), way_out=f"migrated to {HEAD}; a copy lies beside it", fixed=True)
            return [done, *examine(url, paths, fix=fix)]
        return [Finding(what=str(error), way_out="nothing else can be checked before this is mended")]
    try:
        findings = _file_problems(ledger)
        if findings:
            return findings
        findings = [*_trigger_problems(ledger), *_claim_problems(ledger), *_model_problems(ledger, paths)]
    except LedgerError as error:
        return [Finding(what=str(error), way_out="nothing else can be checked before this is mended")]
    finally:
        ledger.close()
    return findings + _stale(url, fix=fix)


def _file_problems(ledger: Ledger) -> list[Finding]:
    if ledger.path is None:
        return []
    way = "move the file away and start a new ledger, or restore a copy (ledger.db.bak-*)"
    try:
        with closing(ledger.open_file()) as connection:
            broken = [row[0] for row in connection.execute("PRAGMA integrity_check(5)") if row[0] != "ok"]
            orphans = connection.execute("PRAGMA foreign_key_check").fetchall()
    except sqlite3.Error as error:
        broken, orphans = [str(error)], []
    findings = [Finding(what=f"{ledger.path}: {words}", way_out=way) for words in broken]
    if orphans:
        tables = ", ".join(sorted({row[0] for row in orphans}))
        findings.append(Finding(what=f"{ledger.path}: {len(orphans)} rows of {tables} belong to no row", way_out=way))
    return findings


def _trigger_problems(ledger: Ledger) -> list[Finding]:
    """Triggers that a fresh ledger has and this one has not, or has otherwise."""
    fresh = Ledger("sqlite://")
    expected, present = _triggers(fresh), _triggers(ledger)
    fresh.close()
    if ledger.backend != "sqlite":  # the same names, written in the server's own language
        expected, present = dict.fromkeys(expected, ""), dict.fromkeys(present, "")
    wrong = [name for name, code in expected.items() if present.get(name) != code]
    if not wrong:
        return []
    return [
        Finding(
            what=f"the triggers {', '.join(wrong)} are missing or changed: rows may have been edited by hand",
            way_out="trust no verdict of this ledger; start a new one, or check single runs with rerun and --check",
        )
    ]


def _triggers(ledger: Ledger) -> dict[str, str]:
    query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
    if ledger.backend != "sqlite":
        query = "SELECT tgname, '' FROM pg_trigger WHERE NOT tgisinternal AND tgenabled = 'O'"
    with ledger.engine.connect() as connection:
        return {name: code for name, code in connection.execute(text(query))}


def _claim_problems(ledger: Ledger) -> list[Finding]:
    """Claims that do not match their hash, verdicts that the judge does not find again."""
    with ledger.session() as session:
        query = select(Claim, Verdict).outerjoin(Verdict, Verdict.claim_id == Claim.id).order_by(Claim.id)
        pairs = [(claim, verdict) for claim, verdict in session.execute(query)]
    if not pairs:
        return []
    from pydantic import ValidationError

    from experiments.judging.judge import ClaimContent, judge

    findings = []
    for claim, verdict in pairs:
        name = readable_id("k", claim.id)
        try:
            content = ClaimContent.model_validate(claim.content)
        except ValidationError as error:
            findings.append(Finding(what=f"claim {name} cannot be read ({error.error_count()} fields)", way_out="the ledger was edited by hand; do not trust it"))  # fmt: skip
            continue
        if content.content_hash != claim.content_hash:
            findings.append(Finding(what=f"claim {name} does not match its hash", way_out="the ledger was edited by hand; do not trust its verdict"))  # fmt: skip
        if verdict is not None:
            again = judge(content, _evidence(ledger, claim.id))
            if again.outcome != verdict.outcome:
                findings.append(
                    Finding(
                        what=f"verdict {readable_id('v', verdict.id)} says {verdict.outcome}, its rows say {again.outcome}",
                        way_out="the ledger was edited by hand or judged by other code; do not trust this verdict",
                    )
                )
    return findings


def _evidence(ledger: Ledger, claim: int) -> Any:
    from experiments.campaign.claims import confirmation_rows

    return confirmation_rows(ledger, claim)


def _model_problems(ledger: Ledger, paths: Paths) -> list[Finding]:
    """Recorded models whose file is gone or is another one; those that gc removed are expected to be gone."""
    with ledger.session() as session:
        gone = set(session.scalars(select(Tag.target).where(Tag.tag == REMOVED)))
        artifacts = list(session.scalars(select(Artifact).where(Artifact.kind == "model").order_by(Artifact.id)))
    findings = []
    for artifact in artifacts:
        if readable_id("r", artifact.run_id) in gone:
            continue
        file = paths.data / artifact.path
        if not file.is_file():
            what = f"{artifact.path} is missing"
        elif hashlib.sha256(file.read_bytes()).hexdigest() != artifact.sha256:
            what = f"{artifact.path} is not the file that was recorded (its hash differs)"
        else:
            continue
        again = f"train it again with: {command('rerun', readable_id('r', artifact.run_id or 0))}"
        findings.append(Finding(what=what, way_out=again))
    return findings


def _stale(url: str | URL, *, fix: bool) -> list[Finding]:
    """Campaigns and runs that say they are being worked on, by processes that have ended."""
    ledger = Ledger(url, read_only=not fix)
    findings = []
    with ledger.session() as session:
        living = {c.id for c in session.scalars(select(Campaign)) if standing_of(c) == "running"}
        for campaign in session.scalars(select(Campaign).where(Campaign.status == "running").order_by(Campaign.id)):
            if campaign.id in living:
                continue
            name = readable_id("c", campaign.id)
            findings.append(
                Finding(
                    what=f"campaign {name} says it is running, held by {describe_holder(campaign.holder)}",
                    way_out=f"go on with: {command('resume', name)}" if not fix else "marked as paused",
                    fixed=fix,
                )
            )
            if fix:
                campaign.status, campaign.holder = "paused", None
        query = select(Run).where(Run.status.in_(("running", "queued"))).order_by(Run.id)
        for run in session.scalars(query):
            if run.campaign_id is None:
                last = run.heartbeat_at or run.created_at
                if now() - last < SILENT:
                    continue
                resume = ""
            elif run.campaign_id in living or run.status == "queued":
                continue  # a campaign's queued runs wait for its resume
            else:
                again = command("resume", readable_id("c", run.campaign_id))
                resume = f"go on with it from its checkpoint: {again}; or "
            what = f"run {readable_id('r', run.id)} is {run.status}, but nobody works on it"
            way = "marked as crashed" if fix else f"{resume}give it up (crashed): {command('doctor', '--fix')}"
            findings.append(Finding(what=what, way_out=way, fixed=fix))
            if fix:
                run.status, run.cause, run.ended_at = "crashed", "the process that worked on it ended", now()
    ledger.close()
    return findings
