"""Opening, migrating and writing the ledger.

Contract: any number of processes may write and read at once. SQLite runs in WAL mode with a busy timeout; a session of a
writable ledger takes the write lock at its start (so what it read still holds when it writes) and must be short and
never be opened inside another. A session of a read-only ledger sees one moment and blocks nobody. A file that is locked,
read-only, damaged, from a newer version or not a ledger is answered with one sentence and the way out, and not touched.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Engine, create_engine, event, inspect, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from core.errors import InputError
from core.files import replacing
from core.words.commands import command
from core.words.text import storable, without_password
from experiments.ledger import scores
from experiments.ledger.ids import EVERY_KIND, EXAMPLE_GOAL, PREFIXES, Kind, find_row, parse_id
from experiments.ledger.models import Artifact, Base, Campaign, Eval, Event, Metric, Note, Run
from experiments.metrics import FIRST_EPISODE, parse_metric
from experiments.vocabulary import readable_id

__all__ = ["HEAD", "PREFIXES", "Kind", "Ledger", "LedgerError", "join_value", "now", "parse_id", "readable_id", "split_value", "write_json"]  # fmt: skip

MIGRATIONS = Path(__file__).parent / "migrations"
HEAD = "0002"  # the newest schema; Alembic itself is imported only where something has to be migrated
READ_ALIKE = (
    "0001",
    HEAD,
)  # schemas whose rows are read as they are, and in SQLite written too: 0002 lengthens columns of PostgreSQL
BUSY_S = 20.0  # how long a transaction waits for another one's end


class LedgerError(InputError):
    """The ledger cannot be used as asked; the message says why and the way out."""


class OlderSchemaError(LedgerError):
    """The ledger was written by an earlier version and has to be migrated before it is read."""


def now() -> datetime:
    return datetime.now(UTC)


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


def write_json(value: Any, *, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> str:
    """JSON that every database and program takes: what is not finite becomes the string "NaN", "Infinity" or "-Infinity"."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent, default=default)
    except ValueError:
        clean = _name_non_finite(value)
        text = json.dumps(clean, ensure_ascii=False, allow_nan=False, indent=indent, default=default)
    return storable(text)


def _name_non_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _name_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_name_non_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def parse_url(url: str | URL) -> URL:
    """The URL of a ledger. LedgerError where it is none, or of a database that is not supported."""
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ValueError, ArgumentError):
        shown = without_password(str(url))
        raise LedgerError(
            f"--ledger: got {shown!r}, allowed: a database URL such as sqlite:///runs/ledger.db"
        ) from None
    if backend not in ("sqlite", "postgresql"):
        raise LedgerError(f"--ledger: got a {backend} URL, allowed: sqlite:///FILE, postgresql+psycopg://...")
    if "@" in (parsed.host or ""):
        raise LedgerError(
            "--ledger: got a URL with two @, allowed: one, after the password; in a password it is written %40"
        )
    if backend == "sqlite" and isinstance(url, str) and "?" in url:
        raise LedgerError(
            f"--ledger: got {url!r}, allowed: sqlite:///FILE without ?; in a file's name it is written %3F, and % as %25"
        )
    return parsed


def file_url(path: Path) -> URL:
    """The URL of a SQLite file with any name; in text `?` and `%` would mean something else."""
    return URL.create("sqlite", database=str(path))


def ledger_file(url: str | URL) -> Path | None:
    """The file of a SQLite ledger; None for one in memory or on a server."""
    parsed = parse_url(url)
    in_file = parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:")
    return Path(parsed.database or "") if in_file else None


def _clean_texts(
    connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
) -> tuple[str, Any]:
    """Every text on its way into the database, whoever wrote it, becomes one that the database takes."""
    return statement, _storable_texts(parameters)


def _storable_texts(values: Any) -> Any:
    """Parameters of a statement, of one row or of many, with their texts made storable."""
    if isinstance(values, str):
        return storable(values)
    if isinstance(values, Mapping):
        return {name: _storable_texts(value) for name, value in values.items()}
    return type(values)(map(_storable_texts, values)) if type(values) in (list, tuple) else values


class Ledger:
    """The ledger behind one URL.

    url: SQLAlchemy URL, such as `sqlite:///runs/ledger.db` or `postgresql+psycopg://user@host/name`. The URL of
        a file is best made by `file_url`.
    read_only: open for reading alone; the file must exist, nothing is migrated and the database refuses writes.
    """

    def __init__(self, url: str | URL, *, read_only: bool = False) -> None:
        self.url, self.read_only = url, read_only
        parsed = parse_url(url)
        self.backend = parsed.get_backend_name()
        self.path = ledger_file(parsed)
        self.place = str(self.path or without_password(parsed.render_as_string(hide_password=True)))
        if self.path is not None:
            self._check_path(self.path)
        try:
            self.engine = self._connect()
        except (NoSuchModuleError, ModuleNotFoundError) as error:
            extra = ' (pip install -e ".[postgres]")' if self.backend == "postgresql" else ""
            raise LedgerError(
                f"--ledger {self.place}: the database driver is missing ({error}); install it{extra} and say it in the URL, "
                "such as postgresql+psycopg://user@host/name"
            ) from None
        self._session = sessionmaker(self.engine, expire_on_commit=False)
        with self._explain():
            self._check_or_migrate()

    def _check_path(self, path: Path) -> None:
        if path.is_dir():
            raise LedgerError(f"--ledger: {path} is a folder, allowed: the path of a file, such as {path}/ledger.db")
        if self.read_only:
            if not path.exists():
                raise LedgerError(f"no ledger at {path}. Start one with: {command('--goal', EXAMPLE_GOAL)}")
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LedgerError(
                f"cannot create {path.parent} for the ledger: {error.strerror}. Choose another with --data-dir"
            ) from None

    def _connect(self) -> Engine:
        if self.backend != "sqlite":
            options = {"postgresql_readonly": True} if self.read_only else {}
            engine = create_engine(self.url, json_serializer=write_json, pool_pre_ping=True, execution_options=options)
            event.listen(engine, "before_cursor_execute", _clean_texts, retval=True)
            return engine
        if self.path is None:
            engine = create_engine(self.url, json_serializer=write_json)
        else:
            engine = create_engine(self.url, json_serializer=write_json, creator=self.open_file)
        event.listen(engine, "before_cursor_execute", _clean_texts, retval=True)
        begin = "BEGIN" if self.read_only else "BEGIN IMMEDIATE"

        @event.listens_for(engine, "connect")
        def _set_up(connection: Any, _: Any) -> None:
            connection.isolation_level = None  # transactions are begun below, not by the driver
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = NORMAL")

        @event.listens_for(engine, "begin")
        def _begin(connection: Any) -> None:
            connection.exec_driver_sql(begin)

        return engine

    def open_file(self) -> sqlite3.Connection:
        """A plain connection to the SQLite file; read-only where the ledger was opened so."""
        assert self.path is not None
        mode = "rwc"
        if self.read_only:
            beside = self.path.with_name(self.path.name + "-wal")
            closed = not beside.exists() and not os.access(self.path.parent, os.W_OK)
            mode = "ro&immutable=1" if closed else "ro"  # WAL needs files beside; without that right nobody writes
        name = quote(os.fsencode(self.path.absolute()))
        connection = sqlite3.connect(
            f"{'file://' if name.startswith('/') else 'file:'}{name}?mode={mode}",
            uri=True,
            timeout=BUSY_S,
            isolation_level=None,
            check_same_thread=False,
        )
        if self.read_only:
            connection.execute("PRAGMA query_only = ON")
        return connection

    @contextmanager
    def _explain(self) -> Iterator[None]:
        """Turns the database's own errors into one sentence with the way out."""
        try:
            yield
        except OperationalError as error:
            raise LedgerError(self._way_out(" ".join(str(error.orig).split()))) from error
        except DatabaseError as error:
            if any(words in str(error.orig) for words in ("not a database", "malformed", "read-only transaction")):
                raise LedgerError(self._way_out(str(error.orig))) from error
            raise

    def _way_out(self, cause: str) -> str:
        if self.backend == "postgresql" and "read-only" in cause:
            way = "it was opened for reading alone"
        elif self.backend == "postgresql":
            way = "check that the server runs and that the address, user and database in --ledger are right"
        elif "I/O error" in cause:
            return (
                f"ledger {self.place}: {cause}; the file is damaged or the disk refuses it: check free space, quota and the disk, "
                "then resume; where they are in order, restore a copy (ledger.db.bak-*) or start a new ledger"
            )
        elif "not a database" in cause or "malformed" in cause:
            return (
                f"ledger {self.place}: the file is damaged or is no SQLite database ({cause}); "
                "move it away and start a new one, or restore a copy (ledger.db.bak-*)"
            )
        elif "locked" in cause:
            way = "another program holds it: close that program or try again"
        elif "readonly" in cause or "read-only" in cause:
            way = "it is read-only: make it writable (chmod u+w) or choose another with --ledger"
        elif "full" in cause:
            way = "the disk is full: free some space and resume"
        elif "unable to open" in cause:
            way = "it cannot be opened: check the path and its permissions, or choose another with --ledger"
        else:
            way = f"see: {command('doctor')}"
        return f"ledger {self.place}: {cause}; {way}"

    def schema(self) -> str | None:
        """The revision of the schema, None where the database holds no table at all. LedgerError where it is foreign."""
        with self.engine.connect() as connection:
            tables = inspect(connection).get_table_names()
            if "alembic_version" in tables:
                found = connection.scalar(text("SELECT version_num FROM alembic_version"))
                if found is not None:
                    return str(found)
            if tables:
                raise LedgerError(
                    f"ledger {self.place}: this is a database of something else (tables {', '.join(sorted(tables)[:4])}); "
                    "choose another with --ledger"
                )
        return None

    def _check_or_migrate(self) -> None:
        current = self.schema()
        if current == HEAD:
            return
        if current is not None and current > HEAD:
            raise LedgerError(
                f"ledger {self.place} was written by a newer version (schema {current}; this one knows {HEAD}): "
                "update this checkout, or choose another ledger with --ledger"
            )
        if current in READ_ALIKE and (self.read_only or self.backend == "sqlite"):
            return
        if self.read_only:
            if current is None:
                raise LedgerError(f"ledger {self.place} is empty. Start with: {command('--goal', EXAMPLE_GOAL)}")
            raise OlderSchemaError(
                f"ledger {self.place} has the older schema {current}: bring it to {HEAD} with: {command('doctor', '--fix')}"
            )
        self._migrate(current)

    def _migrate(self, current: str | None) -> None:
        """To the newest schema in one transaction; a file that holds rows is copied first."""
        from alembic import command as alembic
        from alembic.config import Config

        if self.path is not None:
            try:
                if current is not None:
                    self._copy_file(self.path.with_name(f"{self.path.name}.bak-{current}"))
                with closing(self.open_file()) as connection:
                    connection.execute("PRAGMA journal_mode = WAL")
            except (sqlite3.Error, OSError) as error:
                raise LedgerError(self._way_out(str(error))) from error
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))  # it goes through configparser
        with self.engine.begin() as connection:
            if self.backend == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(5241)"))  # two first starts at once: one waits
            config.attributes["connection"] = connection
            alembic.upgrade(config, "head")

    def _copy_file(self, target: Path) -> None:
        """A whole copy through SQLite itself, which sees what is still in the write-ahead log."""
        with (
            replacing(target) as partial,
            closing(self.open_file()) as source,
            closing(sqlite3.connect(partial)) as copy,
        ):
            source.backup(copy)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A short transaction: committed at the end, rolled back on an error."""
        with self._explain(), self._session.begin() as session:
            yield session

    def close(self) -> None:
        self.engine.dispose()

    # ---- rows by id ---------------------------------------------------------------------

    def resolve(self, value: str, kind: Kind) -> int:
        """The number of the row of one kind that a person named; see `experiments/ledger/ids.py`. InputError with the nearest."""
        return self.locate(value, (kind,))[1]

    def locate(self, value: str, kinds: Sequence[Kind] = EVERY_KIND) -> tuple[Kind, int]:
        """Kind and number of the row that a person named where rows of several kinds are allowed."""
        with self.session() as session:
            return find_row(session, value, kinds)

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

    def events(self, campaign_id: int, kinds: Sequence[str] | None = None, after: int = 0) -> list[Event]:
        """Events of a campaign, oldest first: all, or some kinds, or those after the one of that id."""
        query = select(Event).where(Event.campaign_id == campaign_id, Event.id > after).order_by(Event.id)
        if kinds is not None:
            query = query.where(Event.kind.in_(list(kinds)))
        with self.session() as session:
            return list(session.scalars(query))

    def evals(self, run_ids: Sequence[int], *, name: str | None = "return") -> list[Eval]:
        query = select(Eval).where(Eval.run_id.in_(run_ids))
        if name is not None:
            query = query.where(Eval.name == name)
        with self.session() as session:
            return list(session.scalars(query.order_by(Eval.run_id, Eval.name, Eval.task_index, Eval.episode)))

    def scored_values(self, run_ids: Sequence[int]) -> dict[int, dict[int, float]]:
        """run -> task -> what the run is scored by, higher is better: the return of the first episode, or what its specification names."""
        with self.session() as session:
            specs = dict(session.execute(select(Run.id, Run.spec).where(Run.id.in_(run_ids))).all())
        metrics = {run: parse_metric(spec.get("scored_by", FIRST_EPISODE)) for run, spec in specs.items()}
        found: dict[int, dict[int, float]] = {}
        for row in self.evals(run_ids, name=None):
            metric = metrics[row.run_id]
            if (row.name, row.episode) == (metric.quantity, metric.place):
                found.setdefault(row.run_id, {})[row.task_index] = metric.sign * join_value(row.value, row.kind)
        return found

    def score_is_hidden(self, run: Run) -> bool:
        """Whether the score and the evaluations of a run are not shown yet; see `experiments/ledger/scores.py`."""
        with self.session() as session:
            return scores.is_hidden(session, run)

    def must_show(self, run: Run) -> None:
        """InputError, with the next command, for a run whose score is not shown yet."""
        if self.score_is_hidden(run):
            raise scores.hidden_error(run)

    def must_not_forestall(self, task: str, pool: str) -> None:
        """InputError where a pool's tasks may not be looked at by hand: the confirmation pool, while a verdict on the task is due."""
        if pool == "confirmation":
            with self.session() as session:
                due = scores.verdict_due(session, task)
            if due is not None:
                raise scores.forestalled_error(due, task)

    def metrics(self, run_id: int, name: str | None = None, *, since: int = 0) -> list[Metric]:
        query = select(Metric).where(Metric.run_id == run_id, Metric.env_steps >= since)
        if name is not None:
            query = query.where(Metric.name == name)
        with self.session() as session:
            return list(session.scalars(query.order_by(Metric.name, Metric.env_steps)))
