"""Ids that a person types, and the rows they mean: the one resolver of every command and tool.

A row is named by its number (`r-0042`, `r-42`, `r42`, `42` where the kind is clear), by `@last` or `@best` (`c@last` where both
runs and campaigns fit), or by the start of an id, or of a run's configuration hash or a claim's hash (four characters
or more), as long as only one row fits. Anything else is an error with the nearest id and the next command.

`ROW_ID` finds ids in running text: a question, what a model wrote, what it read.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.errors import InputError, bad_value
from core.words.commands import command
from experiments.ledger.models import Base, Campaign, Claim, Proposal, Run, Tag, Verdict
from experiments.ledger.scores import SCORE
from experiments.vocabulary import readable_id

Kind = Literal["run", "campaign", "proposal", "claim", "verdict"]
PREFIXES: dict[str, tuple[Kind, type[Base]]] = {
    "r": ("run", Run),
    "c": ("campaign", Campaign),
    "p": ("proposal", Proposal),
    "k": ("claim", Claim),
    "v": ("verdict", Verdict),
}
LETTERS: dict[Kind, str] = {kind: letter for letter, (kind, _) in PREFIXES.items()}
EVERY_KIND: tuple[Kind, ...] = tuple(LETTERS)
LISTINGS: dict[Kind, tuple[str, ...]] = {  # the command that lists the rows
    "run": ("runs",),
    "campaign": ("campaigns",),
    "proposal": ("sql", "select id, arm, trial, role from proposals"),
    "claim": ("sql", "select id, campaign_id from claims"),
    "verdict": ("sql", "select id, claim_id, outcome from verdicts"),
}
ARCHIVED = "archived"
EXAMPLE_GOAL = "beat LSTM on halfcheetah-vel"
LARGEST = 2**31 - 1  # of an id column
HASH_LENGTH = 4  # the least characters of a hash
SHOWN = 8  # how many rows an ambiguous prefix lists

_HYPHEN = "[-\u2010\u2011]"
ROW_ID = re.compile(rf"(?<!\w)(?<!\w{_HYPHEN})([{''.join(PREFIXES)}])-?([0-9]+)(?!\w)(?!{_HYPHEN}\w)", re.IGNORECASE)
"""Letter and digits of an id in running text, as a whole word: `r-0042`, `R42`; not the end of `CartPole-v1` or
`halfcheetah-v5`, nor the beginning of `r-0042nd` or `c3-po`."""

_NUMBERED = re.compile(r"([a-z])-?([0-9]+)")
_MARKED = re.compile(r"(?:([a-z])-?)?@(\w+)")
_HASH = re.compile(rf"[0-9a-f]{{{HASH_LENGTH},64}}")


def is_written_as_id(value: str) -> bool:
    """Whether a word is a run's or row's id such as `r-0042` or `@best`, and not a file's name; a bare number or hash is none."""
    return bool(_NUMBERED.fullmatch(value.strip()) or _MARKED.fullmatch(value.strip()))


def parse_id(value: str, kind: Kind) -> int:
    """The number in `r-0042`, `r42` or `42`; InputError for anything else. Asks no ledger."""
    letter, word = LETTERS[kind], value.strip().lower()
    match = _NUMBERED.fullmatch(word)
    if match and match[1] == letter:
        return int(match[2])
    if re.fullmatch("[0-9]+", word):
        return int(word)
    other = f" ({PREFIXES[match[1]][0]} ids begin with {match[1]})" if match and match[1] in PREFIXES else ""
    raise InputError(f"{kind} id: got {value!r}{other}, allowed: such as {letter}-0042, or @last")


def named_rows(text: str) -> list[str]:
    """The ids in `text` in their readable form, such as r-0042, in order, as often as they stand there."""
    return [f"{letter.lower()}-{digits.lstrip('0'):0>4}" for letter, digits in ROW_ID.findall(text)]


def archived(session: Session) -> tuple[list[int], list[int]]:
    """The numbers of archived runs and of archived campaigns."""
    targets = list(session.scalars(select(Tag.target).where(Tag.tag == ARCHIVED)))
    return (
        [parse_id(t, "run") for t in targets if t.startswith("r-")],
        [parse_id(t, "campaign") for t in targets if t.startswith("c-")],
    )


def find_row(session: Session, value: str, kinds: Sequence[Kind]) -> tuple[Kind, int]:
    """Kind and number of the row that `value` names among `kinds`; of a bare number or `@last` the first of them."""
    word = value.strip().lower()
    if match := _MARKED.fullmatch(word):
        return _marked(session, value, match[1], match[2], kinds)
    if match := _NUMBERED.fullmatch(word):
        kind = PREFIXES[match[1]][0] if match[1] in PREFIXES else None
        if kind is not None and kind in kinds:
            return _numbered(session, value, match[2], (kind,))
        found = _by_hash(session, word, kinds)  # `c123` is no run's number but may be the start of its hash
        if found is None:
            raise _wrong_kind(value, kind, kinds)
        return found
    if re.fullmatch("[0-9]+", word):
        return _numbered(session, value, word, kinds)
    found = _by_hash(session, word, kinds)
    if found is None:
        raise _malformed(value, kinds)
    return found


def _numbered(session: Session, value: str, digits: str, kinds: Sequence[Kind]) -> tuple[Kind, int]:
    """The row of the first kind with that number, or the row that has it as the start of its id or hash."""
    number = int(digits) if len(digits) < 20 else LARGEST + 1
    kind = kinds[0]
    letter, table = LETTERS[kind], _table(kind)
    if number <= LARGEST and session.get(table, number) is not None:
        return kind, number
    ids = list(session.scalars(select(table.id).order_by(table.id)))
    fits = [i for i in ids if f"{i:04d}".startswith(digits)]
    if len(fits) > 1:
        raise _ambiguous(value, [readable_id(letter, i) for i in fits])
    if fits:
        return kind, fits[0]
    hashed = _by_hash(session, value.strip().lower(), kinds)
    if hashed is not None:
        return hashed
    close = difflib.get_close_matches(str(number), [str(i) for i in ids[-5000:]], n=1, cutoff=0.0)
    near = f" The nearest is {readable_id(letter, int(close[0]))}." if close else " It has none yet."
    raise InputError(f"the ledger has no {kind} {letter}-{digits:0>4}.{near} List them: {command(*LISTINGS[kind])}")


def _table(kind: Kind) -> Any:
    return PREFIXES[LETTERS[kind]][1]


def _marked(session: Session, value: str, letter: str | None, word: str, kinds: Sequence[Kind]) -> tuple[Kind, int]:
    if letter is not None and (letter not in PREFIXES or PREFIXES[letter][0] not in kinds):
        raise _wrong_kind(value, PREFIXES[letter][0] if letter in PREFIXES else None, kinds)
    kind = kinds[0] if letter is None else PREFIXES[letter][0]
    table = _table(kind)
    if word == "last":
        number = session.scalar(select(func.max(table.id)))
        if number is None:
            raise InputError(f"the ledger has no {kind} yet. Start: {command('--goal', EXAMPLE_GOAL)}")
        return kind, number
    if word == "best" and kind == "run":
        return kind, _best_run(session)
    if word == "best" and kind == "campaign":
        return kind, _best_campaign(session)
    allowed = "@last or @best" if kind in ("run", "campaign") else "@last"
    raise bad_value(f"{kind} id", value, f"{allowed}, or such as {LETTERS[kind]}-0042")


def _best_run(session: Session) -> int:
    """The highest score among runs that are scored as the newest one with a score is: on its task, in its worlds, by its metric (anything
    else is another unit)."""
    runs, campaigns = archived(session)
    shown = [SCORE.is_not(None), Run.id.not_in(runs), Run.campaign_id.is_(None) | Run.campaign_id.not_in(campaigns)]
    newest = session.execute(select(Run.task, Run.spec).where(*shown).order_by(Run.id.desc()).limit(1)).first()
    if newest is None:
        raise InputError(f"the ledger has no run with a score yet. List them: {command('runs')}")
    task, spec = newest
    falling = select(Run.id, Run.spec).where(*shown, Run.task == task).order_by(SCORE.desc(), Run.id)
    return next(number for number, other in session.execute(falling) if _scored_alike(other, spec))


def _scored_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two specifications, or two questions, have scores in one unit."""

    def scored(content: Mapping[str, Any]) -> list[Any]:
        changes = {name: value for name, value in content.get("changes", {}).items() if name != "in_training"}
        return [content.get("scored_by"), content.get("metric"), changes]

    return scored(one) == scored(other)


def _best_campaign(session: Session) -> int:
    """Whose better side has the highest held-out mean, among judged campaigns on the newest judged one's task, by its metric."""
    _, put_away = archived(session)
    query = select(Campaign.id, Campaign.question, Verdict.content).join(Claim, Claim.campaign_id == Campaign.id)
    query = query.join(Verdict, Verdict.claim_id == Claim.id).where(Campaign.id.not_in(put_away)).order_by(Campaign.id)
    judged: list[tuple[float, int, dict[str, Any]]] = []
    for number, question, content in session.execute(query):
        means = [side["mean"] for side in (content.get("challenger"), content.get("baseline")) if side]
        if means:
            judged.append((max(means), -number, question))
    if not judged:
        raise InputError(f"the ledger has no campaign with judged scores yet. List them: {command('campaigns')}")
    newest = min(judged, key=lambda entry: entry[1])[2]
    alike = [e[:2] for e in judged if e[2].get("task") == newest.get("task") and _scored_alike(e[2], newest)]
    return -max(alike)[1]


def _by_hash(session: Session, word: str, kinds: Sequence[Kind]) -> tuple[Kind, int] | None:
    """The row whose hash alone begins so; of several runs of one configuration the first, which the others repeat."""
    if not _HASH.fullmatch(word):
        return None
    found: list[tuple[str, Kind, int]] = []
    hashes: dict[Kind, Any] = {"run": Run.config_hash, "claim": Claim.content_hash}
    for kind, column in hashes.items():
        if kind in kinds:
            number = func.min(column.class_.id)
            query = select(column, number).where(column.startswith(word)).group_by(column).order_by(number)
            for digest, first in session.execute(query.limit(SHOWN + 1)):
                found.append((digest, kind, first))
    if len(found) > 1:
        raise _ambiguous(word, [f"{readable_id(LETTERS[kind], n)} ({h[:12]})" for h, kind, n in found])
    return (found[0][1], found[0][2]) if found else None


def _ambiguous(value: str, rows: Sequence[str]) -> InputError:
    more = ", and more" if len(rows) > SHOWN else ""
    return InputError(f"{value!r} could be {', '.join(rows[:SHOWN])}{more}: type more of it")


def _wrong_kind(value: str, kind: Kind | None, kinds: Sequence[Kind]) -> InputError:
    if kind is None:
        return _malformed(value, kinds)
    see = command("runs", "--campaign", value.strip()) if kind == "campaign" else command("show", value.strip())
    return InputError(f"{_of(kinds)} id: got {value!r}, which names a {kind}, allowed: {_examples(kinds)}. See: {see}")


def _malformed(value: str, kinds: Sequence[Kind]) -> InputError:
    return InputError(
        f"{_of(kinds)} id: got {value!r}, allowed: {_examples(kinds)}. List them: {command(*LISTINGS[kinds[0]])}"
    )


def _of(kinds: Sequence[Kind]) -> str:
    return kinds[0] if len(kinds) == 1 else "row"


def _examples(kinds: Sequence[Kind]) -> str:
    ids = ", ".join(f"{LETTERS[kind]}-0042" for kind in kinds[:3])
    marks = "@last" if kinds[0] not in ("run", "campaign") else "@last, @best"
    start = ", the start of a configuration hash" if "run" in kinds else ""
    return f"such as {ids}, {marks}{start}"
