"""Words that people write may have any length: the program of `--llm command:...`, who wrote a note, who speaks in an event.

SQLite never held a text to its length, so that its tables stay as they are; PostgreSQL refused the longer ones.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the columns Text where the database holds them to a length; no row changes."""
    if op.get_bind().dialect.name == "sqlite":
        return
    for table, column in (("campaigns", "llm"), ("notes", "author"), ("events", "actor")):
        op.alter_column(table, column, type_=sa.Text(), existing_nullable=False)
