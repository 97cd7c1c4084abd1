"""The ledger's tables as SQLAlchemy typed models. The same models serve SQLite and PostgreSQL.

Finished runs, claims and verdicts never change; triggers in the first migration enforce it. NaN and the infinities,
which SQLite would store as NULL, are kept as `value NULL` with `kind` saying which they are.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import JSON, DateTime, ForeignKey, Index, String, Text, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Json = dict[str, Any]


class Moment(TypeDecorator[datetime]):
    """A time in UTC, and aware of it: SQLite keeps no time zone, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    type_annotation_map: ClassVar = {Json: JSON, list[Json]: JSON, list[str]: JSON, datetime: Moment}


class Campaign(Base):
    """All runs for one goal."""

    __tablename__ = "campaigns"
    id: Mapped[int] = mapped_column(primary_key=True)
    goal: Mapped[str] = mapped_column(Text)
    question: Mapped[Json]
    plan: Mapped[Json]
    seed: Mapped[int]
    stage: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16))  # running | paused | done | failed
    llm: Mapped[str] = mapped_column(Text)  # a program's whole line with `command:`
    holder: Mapped[Json | None]  # which process works on it, and its last sign of life
    spent_s: Mapped[float] = mapped_column(default=0.0)  # wall seconds of all sittings so far
    provenance: Mapped[Json]
    narrative: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class Proposal(Base):
    """One slice of a trial's configuration, who proposed it, why, and what they expected."""

    __tablename__ = "proposals"
    __table_args__ = (Index("ix_proposals_place", "campaign_id", "arm", "trial"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaigns.id"))
    arm: Mapped[str] = mapped_column(String(16))
    trial: Mapped[int]
    role: Mapped[str] = mapped_column(String(32))
    source: Mapped[str] = mapped_column(String(16))  # of `experiments/search/optimizer.py`, or agent | human
    changes: Mapped[Json] = mapped_column("values")
    reason: Mapped[str] = mapped_column(Text)
    predicted_effect: Mapped[str] = mapped_column(Text)
    evidence: Mapped[list[str]]
    superseded: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime]


class Claim(Base):
    """What is to be confirmed, fixed and hashed before the first confirmation run."""

    __tablename__ = "claims"
    id: Mapped[int] = mapped_column(primary_key=True)
    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaigns.id"))
    content: Mapped[Json]
    content_hash: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]


class Run(Base):
    """One training of one RunSpec."""

    __tablename__ = "runs"
    __table_args__ = (
        Index("ix_runs_campaign", "campaign_id", "purpose"),
        Index("ix_runs_config", "config_hash"),
        Index("ix_runs_variant", "variant_hash"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    campaign_id: Mapped[int | None] = mapped_column(ForeignKey("campaigns.id"))
    claim_id: Mapped[int | None] = mapped_column(ForeignKey("claims.id"))
    rerun_of: Mapped[int | None] = mapped_column(ForeignKey("runs.id"))
    purpose: Mapped[str] = mapped_column(String(16))  # baseline | search | selection | confirmation | manual | rerun
    pool: Mapped[str] = mapped_column(String(16))  # search | selection | confirmation
    arm: Mapped[str | None] = mapped_column(String(16))
    trial: Mapped[int | None]
    proposer: Mapped[str] = mapped_column(String(64))
    config_hash: Mapped[str] = mapped_column(String(64))
    variant_hash: Mapped[str] = mapped_column(String(64))
    task: Mapped[str] = mapped_column(String(80))
    task_version: Mapped[str] = mapped_column(String(120))
    model: Mapped[str] = mapped_column(String(40))
    seed: Mapped[int]
    parameters: Mapped[int]
    status: Mapped[str] = mapped_column(String(16))
    cause: Mapped[str | None] = mapped_column(Text)
    env_steps: Mapped[int] = mapped_column(default=0)
    score: Mapped[float | None]  # over the pool's tasks, by the metric that the specification names
    train_s: Mapped[float | None]
    wall_s: Mapped[float | None]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    spec: Mapped[Json]  # the long columns come last, so that a list of runs need not read past them
    provenance: Mapped[Json]


class Metric(Base):
    """One training metric at one step of one run.

    The table is its own primary key's index, in the order in which a run reports: inserts go to its end.
    """

    __tablename__ = "metrics"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012 (SQLAlchemy's own convention)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    env_steps: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[float | None]
    kind: Mapped[str] = mapped_column(String(8), default="finite")  # finite | nan | +inf | -inf


class Eval(Base):
    """One raw evaluation return: every statistic can be computed anew from these rows."""

    __tablename__ = "evals"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    pool: Mapped[str] = mapped_column(String(16), primary_key=True)
    task_index: Mapped[int] = mapped_column(primary_key=True)
    episode: Mapped[int] = mapped_column(primary_key=True)  # 0 is the first episode on the task
    name: Mapped[str] = mapped_column(String(40), primary_key=True)  # return, or another per-episode quantity
    value: Mapped[float | None]
    kind: Mapped[str] = mapped_column(String(8), default="finite")


class Verdict(Base):
    """What the judge, which is code, made of a claim's rows."""

    __tablename__ = "verdicts"
    id: Mapped[int] = mapped_column(primary_key=True)
    claim_id: Mapped[int] = mapped_column(ForeignKey("claims.id"), unique=True)
    outcome: Mapped[str] = mapped_column(String(16))  # confirmed | refuted | equivalent | inconclusive | invalid
    reason: Mapped[str] = mapped_column(Text)
    content: Mapped[Json]
    created_at: Mapped[datetime]


class Event(Base):
    """Everything the crew said and did: messages, tool calls, results, model calls with their tokens."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_campaign", "campaign_id", "kind"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaigns.id"))
    kind: Mapped[str] = mapped_column(String(32))
    actor: Mapped[str] = mapped_column(Text)
    payload: Mapped[Json]
    created_at: Mapped[datetime]


class Artifact(Base):
    """A file that belongs to a run or a campaign, with its hash."""

    __tablename__ = "artifacts"
    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int | None] = mapped_column(ForeignKey("runs.id"))
    campaign_id: Mapped[int | None] = mapped_column(ForeignKey("campaigns.id"))
    kind: Mapped[str] = mapped_column(String(32))
    path: Mapped[str] = mapped_column(Text)  # relative to the data folder where it lies inside it
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]


class Note(Base):
    """Free text about a row; never read by the judge."""

    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    target: Mapped[str] = mapped_column(String(32))
    author: Mapped[str] = mapped_column(Text)
    text: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]


class Tag(Base):
    """A short label on a row; `archived` is one of them."""

    __tablename__ = "tags"
    target: Mapped[str] = mapped_column(String(32), primary_key=True)
    tag: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_at: Mapped[datetime]
