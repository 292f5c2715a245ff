"""Counts of all tenants beside those of each, by tenant first; and what became of dead letters."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

#: Minutes of counts that are kept: no page asks for more than a day.
_MINUTES = 3 * 1_440


def upgrade() -> None:
    """Make them, and fill them from the counts that are there."""
    for name in ("decision_counts", "verdict_counts"):
        # A key cannot be changed on SQLite: the rows go through a table of their own.
        op.execute(f"CREATE TABLE {name}_before AS SELECT * FROM {name}")  # noqa: S608  a name of ours
        op.drop_table(name)
    _make("decision_counts", *_tenant(), *_by_minute())
    _make("decision_totals", *_by_minute())
    _make("verdict_counts", *_tenant(), *_by_verdict())
    _make("verdict_totals", *_by_verdict())
    _refill("decision_counts", "minute, outcome, within_ms", _latest())
    _refill("verdict_counts", ", ".join(column.name for column in _by_verdict()), "")
    total()
    _resolutions()


def _make(name: str, *columns: sa.Column[Any]) -> None:
    keys = [column.name for column in columns]
    count = sa.Column("decisions", sa.BigInteger(), nullable=False)
    op.create_table(name, *columns, count, sa.PrimaryKeyConstraint(*keys), sqlite_with_rowid=False)


def _tenant() -> list[sa.Column[Any]]:
    return [sa.Column("tenant_id", sa.String(length=160), nullable=False)]


def _by_minute() -> list[sa.Column[Any]]:
    return [
        sa.Column("minute", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.SmallInteger(), nullable=False),
        sa.Column("within_ms", sa.Integer(), nullable=False),
    ]


def _by_verdict() -> list[sa.Column[Any]]:
    return [
        sa.Column("hour", sa.Integer(), nullable=False),
        sa.Column("role", sa.SmallInteger(), nullable=False),
        sa.Column("policy_name", sa.String(length=160), nullable=False),
        sa.Column("policy_version", sa.String(length=160), nullable=False),
        sa.Column("bundle_digest", sa.String(length=64), nullable=False),
        sa.Column("rule_id", sa.String(length=160), nullable=False),
        sa.Column("outcome", sa.SmallInteger(), nullable=False),
        sa.Column("decided_outcome", sa.SmallInteger(), nullable=False),
    ]


def _latest() -> str:
    return f"WHERE minute > (SELECT max(minute) FROM decision_counts_before) - {_MINUTES}"  # noqa: S608  a number


def _refill(name: str, keys: str, where: str) -> None:
    columns = f"tenant_id, {keys}, decisions"
    # In the order of the key, so that what is asked together lies together on PostgreSQL too.
    op.execute(f"INSERT INTO {name} ({columns}) SELECT {columns} FROM {name}_before {where} ORDER BY tenant_id, {keys}")  # noqa: S608
    op.drop_table(f"{name}_before")


def total() -> None:
    """Add the tenants up."""
    for kind, columns in (("decision", _by_minute()), ("verdict", _by_verdict())):
        keys = ", ".join(column.name for column in columns)
        op.execute(
            f"INSERT INTO {kind}_totals ({keys}, decisions) "  # noqa: S608  names alone
            f"SELECT {keys}, sum(decisions) FROM {kind}_counts GROUP BY {keys} ORDER BY {keys}"
        )


def _resolutions() -> None:
    op.add_column("dead_letters", sa.Column("resolution", sa.SmallInteger(), nullable=False, server_default="0"))
    op.add_column("dead_letters", sa.Column("resolved_by", sa.String(length=160), nullable=False, server_default=""))
    op.add_column("dead_letters", sa.Column("last_offset", sa.BigInteger(), nullable=False, server_default="-1"))
    op.execute('UPDATE dead_letters SET last_offset = "offset"')
    op.drop_index("dead_letters_by_time", "dead_letters")
    op.drop_index("dead_letters_by_room", "dead_letters")
    op.create_index("dead_letters_by_time", "dead_letters", ["resolution", "create_unix_nano"], unique=False)
    keys = ["room", "reason", "resolution", "create_unix_nano"]
    op.create_index("dead_letters_by_room", "dead_letters", keys, unique=False)
