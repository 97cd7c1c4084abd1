"""Alembic's entry: migrates the connection that the ledger hands over."""

from __future__ import annotations

from alembic import context

from experiments.ledger.models import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
context.run_migrations()
