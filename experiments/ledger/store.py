"""Opening, migrating and writing the ledger.

Contract: one process writes (the parent of the runs), any number read. SQLite runs in WAL mode with a busy timeout and
short transactions. A file that is locked, read-only, damaged or from a newer version is answered with one sentence and
the way out, and is not touched.
"""

from __future__ import annotations

import difflib
import math
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, overload

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, event, func, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from core.errors import InputError
from experiments.ledger.models import Artifact, Base, Campaign, Claim, Eval, Event, Metric, Note, Proposal, Run, Verdict

Kind = Literal["run", "campaign", "proposal", "claim", "verdict"]
PREFIXES: dict[str, tuple[Kind, type[Base]]] = {
    "r": ("run", Run),
    "c": ("campaign", Campaign),
    "p": ("proposal", Proposal),
    "k": ("claim", Claim),
    "v": ("verdict", Verdict),
}
FINISHED = ("done", "pruned", "diverged", "failed", "timeout", "crashed", "cancelled")
MIGRATIONS = Path(__file__).parent / "migrations"


class LedgerError(InputError):
    """The ledger cannot be used as asked; the message says why and the way out."""


def now() -> datetime:
    return datetime.now(UTC)


@overload
def readable_id(prefix: str, number: int) -> str: ...
@overload
def readable_id(prefix: str, number: None) -> None: ...
def readable_id(prefix: str, number: int | None) -> str | None:
    """`readable_id("r", 42)` is `r-0042`."""
    return None if number is None else f"{prefix}-{number:04d}"


def parse_id(value: str, kind: Kind) -> int:
    """The number in `r-0042`, `r42` or `42`; InputError for anything else."""
    prefix = next(p for p, (k, _) in PREFIXES.items() if k == kind)
    match = re.fullmatch(rf"(?:{prefix}-?)?0*(\d+)", value.strip().lower())
    if not match:
        raise InputError(f"{kind} id: got {value!r}, allowed: such as {prefix}-0042, or @last")
    return int(match[1])


def split_value(value: float | None) -> tuple[float | None, str]:
    """A number as (value, kind): SQLite keeps NaN as NULL, so what is not finite is named instead."""
    if value is None or math.isnan(value):
        return None, "nan"
    if math.isinf(value):
        return None, "+inf" if value > 0 else "-inf"
    return float(value), "finite"


def join_value(value: float | None, kind: str) -> float:
    """The inverse of `split_value`."""
    return float(value) if kind == "finite" and value is not None else float(kind)


class Ledger:
    """The ledger behind one URL.

    url: SQLAlchemy URL, such as `sqlite:///runs/ledger.db`.
    read_only: open for reading alone; the file must exist and nothing is migrated.
    """

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        self.url = url
        try:
            parsed = make_url(url)
        except ArgumentError:
            raise LedgerError(
                f"--ledger: got {url!r}, allowed: a database URL such as sqlite:///runs/ledger.db"
            ) from None
        self.path = (
            Path(parsed.database)
            if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:")
            else None
        )
        if read_only and self.path is not None and not self.path.exists():
            raise LedgerError(
                f'no ledger at {self.path}. Start one with: python main.py --goal "beat LSTM on halfcheetah-vel"'
            )
        if self.path is not None and not read_only:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise LedgerError(
                    f"cannot create {self.path.parent} for the ledger: {error.strerror}. Choose another with --data-dir"
                ) from None
        try:
            self.engine = self._connect(url)
        except (NoSuchModuleError, ModuleNotFoundError) as error:
            raise LedgerError(
                f"--ledger {url}: the database driver is missing ({error}). Install it with pip"
            ) from None
        self._session = sessionmaker(self.engine, expire_on_commit=False)
        with self._explain():
            self._check_or_migrate(read_only)

    def _connect(self, url: str) -> Engine:
        if self.path is None:
            return create_engine(url)
        engine = create_engine(url, connect_args={"timeout": 20})

        @event.listens_for(engine, "connect")
        def _pragmas(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA busy_timeout = 20000")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = NORMAL")

        return engine

    @contextmanager
    def _explain(self) -> Iterator[None]:
        """Turns the database's own errors into one sentence with the way out."""
        try:
            yield
        except OperationalError as error:
            cause = str(error.orig)
            if "locked" in cause:
                way = "another program holds it: close that program or try again"
            elif "readonly" in cause or "read-only" in cause:
                way = "it is read-only: make it writable (chmod u+w) or choose another with --ledger"
            elif "full" in cause:
                way = "the disk is full: free some space and resume"
            elif "unable to open" in cause:
                way = "it cannot be opened: check the path and its permissions, or choose another with --ledger"
            else:
                way = "see: python main.py doctor"
            raise LedgerError(f"ledger {self.path or self.url}: {cause}; {way}") from error
        except DatabaseError as error:
            if "not a database" in str(error.orig) or "malformed" in str(error.orig):
                raise LedgerError(
                    f"ledger {self.path}: the file is damaged or is no SQLite database ({error.orig}); "
                    "move it away and start a new one, or restore a copy (ledger.db.bak-*)"
                ) from error
            raise

    def _check_or_migrate(self, read_only: bool) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        script = ScriptDirectory.from_config(config)
        head = script.get_current_head()
        known = {revision.revision for revision in script.walk_revisions()}
        with self.engine.connect() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
        if current is not None and current not in known:
            raise LedgerError(
                f"ledger {self.path or self.url} was written by a newer version (schema {current}; this one knows {head}): "
                "update this checkout, or choose another ledger with --ledger"
            )
        if current == head or read_only:
            return
        if current is not None and self.path is not None:
            copy = self.path.with_name(f"{self.path.name}.bak-{current}")
            shutil.copy2(self.path, copy)
        if self.path is not None:
            with self.engine.connect() as connection:
                connection.execute(text("PRAGMA journal_mode = WAL"))
        with self.engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A short transaction: committed at the end, rolled back on an error."""
        with self._explain(), self._session.begin() as session:
            yield session

    def close(self) -> None:
        self.engine.dispose()

    # ---- rows by id ---------------------------------------------------------------------

    def resolve(self, value: str, kind: Kind) -> int:
        """The number behind an id a person typed: `r-0042`, `42`, `@last`, `@best` (runs). InputError with the nearest."""
        prefix, table = next((p, t) for p, (k, t) in PREFIXES.items() if k == kind)
        with self.session() as session:
            if value == "@last":
                number = session.scalar(select(func.max(table.id)))  # type: ignore[attr-defined]
                if number is None:
                    raise InputError(f'the ledger has no {kind} yet. Start: python main.py --goal "..."')
                return number
            if value == "@best" and kind == "run":
                number = session.scalar(
                    select(Run.id).where(Run.score.is_not(None)).order_by(Run.score.desc(), Run.id).limit(1)
                )
                if number is None:
                    raise InputError("the ledger has no run with a score yet")
                return number
            number = parse_id(value, kind)
            if session.get(table, number) is None:
                ids = [str(i) for i in session.scalars(select(table.id).order_by(table.id.desc()).limit(5000))]  # type: ignore[attr-defined]
                close = difflib.get_close_matches(str(number), ids, n=1, cutoff=0.0)
                near = f" The nearest is {readable_id(prefix, int(close[0]))}." if close else " It has none yet."
                listing = "runs" if kind == "run" else "status"
                raise InputError(
                    f"the ledger has no {kind} {readable_id(prefix, number)}.{near} List them: python main.py {listing}"
                )
            return number

    # ---- writes -------------------------------------------------------------------------

    def add(self, row: Base) -> int:
        """Insert one row and return its id."""
        with self.session() as session:
            session.add(row)
            session.flush()
            return row.id  # type: ignore[attr-defined]

    def add_metrics(self, run_id: int, env_steps: int, metrics: Iterable[tuple[str, float]]) -> None:
        """Insert the metrics of one report; a repeated step (after a resume) replaces what it repeats."""
        rows = []
        for name, value in metrics:
            number, kind = split_value(value)
            rows.append({"run_id": run_id, "name": name, "env_steps": env_steps, "value": number, "kind": kind})
        with self.session() as session:
            session.execute(
                Metric.__table__.delete().where(Metric.run_id == run_id, Metric.env_steps >= env_steps)  # type: ignore[attr-defined]
            )
            if rows:
                session.execute(Metric.__table__.insert(), rows)  # type: ignore[attr-defined]

    def record_event(self, campaign_id: int, kind: str, actor: str, payload: dict[str, Any]) -> int:
        return self.add(Event(campaign_id=campaign_id, kind=kind, actor=actor, payload=payload, created_at=now()))

    def add_note(self, target: str, author: str, words: str) -> int:
        return self.add(Note(target=target, author=author, text=words, created_at=now()))

    def add_artifact(
        self, kind: str, path: str, sha256: str, *, run_id: int | None = None, campaign_id: int | None = None
    ) -> int:
        return self.add(
            Artifact(kind=kind, path=path, sha256=sha256, run_id=run_id, campaign_id=campaign_id, created_at=now())
        )

    # ---- reads --------------------------------------------------------------------------

    def get_run(self, run_id: int) -> Run:
        with self.session() as session:
            return session.get_one(Run, run_id)

    def get_campaign(self, campaign_id: int) -> Campaign:
        with self.session() as session:
            return session.get_one(Campaign, campaign_id)

    def runs(
        self, campaign_id: int | None = None, *, purpose: str | Sequence[str] | None = None, arm: str | None = None
    ) -> list[Run]:
        """Runs in order of their ids, filtered by campaign, purpose and arm."""
        query = select(Run).order_by(Run.id)
        if campaign_id is not None:
            query = query.where(Run.campaign_id == campaign_id)
        if purpose is not None:
            query = query.where(Run.purpose.in_([purpose] if isinstance(purpose, str) else purpose))
        if arm is not None:
            query = query.where(Run.arm == arm)
        with self.session() as session:
            return list(session.scalars(query))

    def evals(self, run_ids: Sequence[int], *, name: str | None = "return") -> list[Eval]:
        query = select(Eval).where(Eval.run_id.in_(run_ids))
        if name is not None:
            query = query.where(Eval.name == name)
        with self.session() as session:
            return list(session.scalars(query.order_by(Eval.run_id, Eval.name, Eval.task_index, Eval.episode)))

    def metrics(self, run_id: int, name: str | None = None) -> list[Metric]:
        query = select(Metric).where(Metric.run_id == run_id)
        if name is not None:
            query = query.where(Metric.name == name)
        with self.session() as session:
            return list(session.scalars(query.order_by(Metric.name, Metric.env_steps)))
