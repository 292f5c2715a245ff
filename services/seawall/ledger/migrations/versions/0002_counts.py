"""Counts beside the rows, versions of artefacts, an index by tenant, and the console's saved views."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# As they were when this migration was written.
_BOUNDS = (
    *(1, 2, 5, 10, 20, 35, 50, 75, 100, 150, 200, 350, 500, 750),
    *(1_000, 1_500, 2_000, 3_500, 5_000, 10_000, 20_000, 60_000, 300_000),
)


def upgrade() -> None:
    """Make them, and fill the counts from the rows that are there."""
    op.create_table(
        "decision_counts",
        sa.Column("minute", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.String(length=160), nullable=False),
        sa.Column("outcome", sa.SmallInteger(), nullable=False),
        sa.Column("within_ms", sa.Integer(), nullable=False),
        sa.Column("decisions", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("minute", "tenant_id", "outcome", "within_ms"),
    )
    op.create_table(
        "verdict_counts",
        sa.Column("hour", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.String(length=160), nullable=False),
        sa.Column("role", sa.SmallInteger(), nullable=False),
        sa.Column("policy_name", sa.String(length=160), nullable=False),
        sa.Column("policy_version", sa.String(length=160), nullable=False),
        sa.Column("bundle_digest", sa.String(length=64), nullable=False),
        sa.Column("rule_id", sa.String(length=160), nullable=False),
        sa.Column("outcome", sa.SmallInteger(), nullable=False),
        sa.Column("decided_outcome", sa.SmallInteger(), nullable=False),
        sa.Column("decisions", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "hour",
            "tenant_id",
            "role",
            "policy_name",
            "policy_version",
            "bundle_digest",
            "rule_id",
            "outcome",
            "decided_outcome",
        ),
    )
    op.create_table(
        "artefacts",
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("name", sa.String(length=160), nullable=False),
        sa.Column("version", sa.String(length=160), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("first_unix_nano", sa.BigInteger(), nullable=False),
        sa.Column("last_unix_nano", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "name", "version", "sha256"),
    )
    op.create_index("artefacts_by_last", "artefacts", ["last_unix_nano"], unique=False)
    op.create_table(
        "artefact_set_uses",
        sa.Column("artefact_set", sa.String(length=32), nullable=False),
        sa.Column("first_unix_nano", sa.BigInteger(), nullable=False),
        sa.Column("last_unix_nano", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("artefact_set"),
    )
    op.create_table(
        "saved_views",
        sa.Column("owner", sa.String(length=160), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("query", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "name"),
    )
    op.create_index("decisions_by_tenant", "decisions", ["tenant_id", "decided_unix_nano"], unique=False)
    _fill()


def _fill() -> None:
    took = "(decided_unix_nano - generated_unix_nano)"
    cases = " ".join(f"WHEN {took} <= {bound * 1_000_000} THEN {bound}" for bound in _BOUNDS)
    op.execute(
        "INSERT INTO decision_counts (minute, tenant_id, outcome, within_ms, decisions) "  # noqa: S608  numbers alone
        "SELECT decided_unix_nano / 60000000000, tenant_id, outcome, "
        f"CASE WHEN generated_unix_nano = 0 THEN 0 {cases} ELSE 2147483647 END, count(*) "
        "FROM decisions GROUP BY 1, 2, 3, 4"
    )
    # Rows know neither the bundle's version nor what was in shadow: those counts begin now.
    op.execute(
        "INSERT INTO verdict_counts (hour, tenant_id, role, policy_name, policy_version, bundle_digest, rule_id, "
        "outcome, decided_outcome, decisions) "
        "SELECT decided_unix_nano / 3600000000000, tenant_id, 1, substr(policy_name, 1, 160), '', policy_digest, "
        "substr(rule_id, 1, 160), outcome, outcome, count(*) FROM decisions GROUP BY 1, 2, 4, 6, 7, 8"
    )
    op.execute(
        "INSERT INTO artefact_set_uses (artefact_set, first_unix_nano, last_unix_nano) "
        "SELECT artefact_set, min(decided_unix_nano), max(decided_unix_nano) FROM decisions GROUP BY 1"
    )
    op.execute(
        "INSERT INTO artefacts (kind, name, version, sha256, first_unix_nano, last_unix_nano) "
        "SELECT s.kind, s.name, substr(s.version, 1, 160), s.sha256, min(u.first_unix_nano), max(u.last_unix_nano) "
        "FROM artefact_sets s JOIN artefact_set_uses u ON u.artefact_set = s.artefact_set GROUP BY 1, 2, 3, 4"
    )
