"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "artefact_sets",
        sa.Column("artefact_set", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("name", sa.String(length=160), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("artefact_set", "kind", "name", "sha256"),
    )
    op.create_index("artefact_sets_by_name", "artefact_sets", ["name", "version"], unique=False)
    op.create_table(
        "contents",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("decision_id", sa.String(length=32), nullable=False),
        sa.Column("item_id", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("day", "sha256", "decision_id", "item_id"),
        postgresql_partition_by="RANGE (day)",
    )
    op.create_index("contents_by_sha256", "contents", ["sha256"], unique=False)
    op.create_table(
        "dead_letters",
        sa.Column("dead_letter_id", sa.String(length=32), nullable=False),
        sa.Column("room", sa.String(length=160), nullable=False),
        sa.Column("reason", sa.String(length=160), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("error_class", sa.SmallInteger(), nullable=False),
        sa.Column("source_topic", sa.Text(), nullable=False),
        sa.Column("source_partition", sa.Integer(), nullable=False),
        sa.Column("source_offset", sa.BigInteger(), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("create_unix_nano", sa.BigInteger(), nullable=False),
        sa.Column("original_size_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("dead_letter_id"),
    )
    op.create_index("dead_letters_by_room", "dead_letters", ["room", "reason", "create_unix_nano"], unique=False)
    op.create_index("dead_letters_by_time", "dead_letters", ["create_unix_nano"], unique=False)
    op.create_table(
        "decisions",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("decision_id", sa.String(length=32), nullable=False),
        sa.Column("generation_id", sa.String(length=160), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("outcome", sa.SmallInteger(), nullable=False),
        sa.Column("rule_id", sa.Text(), nullable=False),
        sa.Column("reason_code", sa.Text(), nullable=False),
        sa.Column("severity", sa.SmallInteger(), nullable=False),
        sa.Column("policy_name", sa.Text(), nullable=False),
        sa.Column("policy_digest", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", sa.String(length=160), nullable=False),
        sa.Column("actor_id", sa.String(length=160), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("modality", sa.SmallInteger(), nullable=False),
        sa.Column("generated_unix_nano", sa.BigInteger(), nullable=False),
        sa.Column("decided_unix_nano", sa.BigInteger(), nullable=False),
        sa.Column("trace_id", sa.String(length=32), nullable=True),
        sa.Column("generation_partition", sa.Integer(), nullable=False),
        sa.Column("generation_offset", sa.BigInteger(), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("rescanned", sa.Boolean(), nullable=False),
        sa.Column("artefact_set", sa.String(length=32), nullable=False),
        sa.Column("summary", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("day", "decision_id"),
        postgresql_partition_by="RANGE (day)",
    )
    op.create_index("decisions_by_actor", "decisions", ["actor_id", "decided_unix_nano"], unique=False)
    op.create_index("decisions_by_artefacts", "decisions", ["artefact_set", "decided_unix_nano"], unique=False)
    op.create_index("decisions_by_generation", "decisions", ["generation_id"], unique=False)
    op.create_index("decisions_by_outcome", "decisions", ["outcome", "decided_unix_nano"], unique=False)
    op.create_index("decisions_by_rule", "decisions", ["rule_id", "decided_unix_nano"], unique=False)
    op.create_index("decisions_by_time", "decisions", ["decided_unix_nano"], unique=False)
    op.create_index("decisions_by_trace", "decisions", ["trace_id"], unique=False)
    op.create_table(
        "positions",
        sa.Column("topic", sa.String(length=160), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("next_offset", sa.BigInteger(), nullable=False),
        sa.Column("log_unix_nano", sa.BigInteger(), nullable=False),
        sa.Column("missed", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("topic", "partition"),
    )
    op.create_table(
        "unreadable",
        sa.Column("topic", sa.String(length=160), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("topic", "partition", "offset"),
    )
