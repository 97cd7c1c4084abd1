"""Keep the ledger in order: notes, tags, the archive, a look at its health, files that nobody needs."""

from __future__ import annotations

from cli.options import Flag, LedgerOptions
from core.errors import InputError
from core.words.commands import command


def note(
    target: str | None = None,
    words: str | None = None,
    /,
    *,
    author: str = "human",
    options: LedgerOptions = LedgerOptions(),
) -> None:
    """Keep a remark about a row, or list remarks.

    Parameters
    ----------
    target
        What it is about, such as r-0042 or c-0007; alone it lists the remarks about it.
    words
        The remark. The judge never reads it.
    author
        Who says it.
    """
    from experiments.ledger.marks import add_note, list_notes

    if target is None or words is None:
        options.output.table(list_notes(options.read(), target))
    else:
        options.output.done({"note": words, "about": add_note(options.change(), target, words, author)})


def tag(
    target: str | None = None,
    word: str | None = None,
    /,
    *,
    remove: Flag = False,
    options: LedgerOptions = LedgerOptions(),
) -> None:
    """Put a label on a row, or list labels.

    Parameters
    ----------
    target
        Such as r-0042 or c-0007; alone it lists its labels.
    word
        The label.
    remove
        Take it off.
    """
    from experiments.ledger.marks import list_tags, set_tag

    if target is None or word is None:
        options.output.table(list_tags(options.read(), target))
    else:
        row = set_tag(options.change(), target, word, remove=remove)
        options.output.done({"removed" if remove else "tag": word, "about": row})


def archive(*targets: str, undo: Flag = False, options: LedgerOptions = LedgerOptions()) -> None:
    """Hide runs or whole campaigns from lists; no row changes or goes away.

    Parameters
    ----------
    targets
        Such as r-0042 c-0007.
    undo
        Show them again.
    """
    if not targets:
        raise InputError("archive: got nothing, allowed: runs and campaigns, such as r-0042 c-0007")
    from experiments.ledger.marks import archive as put_away

    rows = put_away(options.change(), targets, undo=undo)
    options.output.done({"shown again" if undo else "archived": ", ".join(rows)})


def doctor(*, fix: Flag = False, options: LedgerOptions = LedgerOptions()) -> int:
    """Check the ledger and its files; the exit code is 1 where something is wrong.

    Parameters
    ----------
    fix
        Mend what can be: an older schema is migrated, runs that nobody works on any more become crashed.
    """
    from experiments.reading.doctor import examine

    findings = examine(options.ledger_url, options.paths(), fix=fix)
    lines = [f"{'mended' if f.fixed else 'problem'}: {f.what}\n  {f.way_out}" for f in findings]
    options.output.result(findings, *(lines or ["The ledger and its files are in order."]))
    return int(any(not finding.fixed for finding in findings))


def gc(*, yes: Flag = False, options: LedgerOptions = LedgerOptions()) -> None:
    """Remove models, checkpoints and logs of archived and of crashed runs; their rows stay.

    Parameters
    ----------
    yes
        Really remove them; without it they are only listed.
    """
    from experiments.reading.doctor import removable_files, remove_files
    from experiments.tables import TableView

    ledger, paths = options.read(), options.paths()
    items = removable_files(ledger, paths)
    size = sum(item.size for item in items)
    if yes and items:
        ledger.close()
        remove_files(options.change(), paths, items)
    words = f"{size / 1e6:,.1f} MB of {len(items)} runs"
    if not items:
        said = "Nothing to remove."
    elif yes:
        said = f"Removed {words}."
    else:
        said = f"{words} can go; remove them with: {command('gc', '--yes')}"
    rows = tuple((item.run, item.why, len(item.files), round(item.size / 1e6, 2)) for item in items)
    table = TableView(columns=("run", "why", "files", "MB"), rows=rows, note=said)
    options.output.result({"removed": yes, "bytes": size, "runs": items}, table)
