"""A person's last word on a generation."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table; the room fills it from the topic's beginning."""
    op.create_table(
        "overrides",
        sa.Column("generation_id", sa.String(length=160), nullable=False),
        sa.Column("override_id", sa.String(length=32), nullable=False),
        sa.Column("tenant_id", sa.String(length=160), nullable=False),
        sa.Column("actor_id", sa.String(length=160), nullable=False),
        sa.Column("outcome", sa.SmallInteger(), nullable=False),
        sa.Column("outcome_before", sa.SmallInteger(), nullable=False),
        sa.Column("reason_code", sa.String(length=64), nullable=False),
        sa.Column("made_by", sa.String(length=160), nullable=False),
        sa.Column("made_unix_nano", sa.BigInteger(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("decision_id", sa.String(length=32), nullable=False),
        sa.Column("decided_unix_nano", sa.BigInteger(), nullable=False),
        sa.Column("decision_ids", sa.JSON(), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("generation_id"),
    )
    op.create_index("overrides_by_time", "overrides", ["decided_unix_nano", "decision_id"], unique=False)
