"""What people hang on rows: notes, tags, and the archive that hides runs and campaigns from lists. No row itself changes."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select

from core.errors import bad_value
from core.words.commands import command
from experiments.ledger.ids import ARCHIVED, LETTERS, readable_id
from experiments.ledger.models import Note, Tag
from experiments.ledger.store import Ledger, now
from experiments.tables import TableView

REMOVED = "files-removed"
"""The tag of a run whose files `gc` removed."""


def check_target(ledger: Ledger, value: str) -> str:
    """The readable id of an existing row that a person named, such as `r-0042` or `@last` (the last run)."""
    kind, number = ledger.locate(value)
    return readable_id(LETTERS[kind], number)


def add_note(ledger: Ledger, target: str, words: str, author: str) -> str:
    """Keep a remark about a row and return the row's id. The judge never reads notes."""
    if not 1 <= len(words.strip()) <= 4000:
        raise bad_value("note", f"{len(words)} characters", "from 1 to 4000 characters")
    name = check_target(ledger, target)
    ledger.add_note(name, author, words)
    return name


def list_notes(ledger: Ledger, target: str | None = None) -> TableView:
    """All remarks, or those about one row, oldest first."""
    query = select(Note).order_by(Note.id)
    if target is not None:
        query = query.where(Note.target == check_target(ledger, target))
    with ledger.session() as session:
        rows = [(n.target, n.author, n.created_at.strftime("%Y-%m-%d %H:%M"), n.text) for n in session.scalars(query)]
    return TableView(
        columns=("about", "author", "when (UTC)", "note"), rows=tuple(rows), note="" if rows else "No notes."
    )


def set_tag(ledger: Ledger, target: str, tag: str, *, remove: bool = False) -> str:
    """Put a short label on a row, or take it off, and return the row's id."""
    if not (1 <= len(tag) <= 64 and tag == tag.strip() and tag.isprintable()):
        raise bad_value("tag", tag, "1 to 64 printable characters")
    if tag in (ARCHIVED, REMOVED):
        raise bad_value("tag", tag, f"another word; this one is kept by: {command('archive', 'r-0001')}, and by gc")
    name = check_target(ledger, target)
    put_tag(ledger, name, tag, remove=remove)
    return name


def list_tags(ledger: Ledger, target: str | None = None) -> TableView:
    """All labels, or those of one row."""
    query = select(Tag).order_by(Tag.target, Tag.tag)
    if target is not None:
        query = query.where(Tag.target == check_target(ledger, target))
    with ledger.session() as session:
        rows = tuple((t.target, t.tag) for t in session.scalars(query))
    return TableView(columns=("row", "tag"), rows=rows, note="" if rows else "No tags.")


def archive(ledger: Ledger, targets: Sequence[str], *, undo: bool = False) -> list[str]:
    """Hide runs and campaigns (with all their runs) from lists, or show them again. No row changes or goes away."""
    names = [check_target(ledger, target) for target in targets]
    for name in names:
        if name[0] not in "rc":
            raise bad_value("archive", name, "runs and campaigns, such as r-0042 or c-0007")
    for name in names:
        put_tag(ledger, name, ARCHIVED, remove=undo)
    return names


def put_tag(ledger: Ledger, name: str, tag: str, *, remove: bool = False) -> None:
    """Put any tag on the row of a readable id, or take it off; what is so already stays so."""
    with ledger.session() as session:
        present = session.get(Tag, (name, tag))
        if remove and present is not None:
            session.delete(present)
        elif not remove and present is None:
            session.add(Tag(target=name, tag=tag, created_at=now()))
