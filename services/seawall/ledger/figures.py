"""Figures of the ledger, from counts that are kept as rows are written: cheap however many decisions there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from sqlalchemy import Engine, RowMapping, Select, Table, func, select

from seawall.api.decision.v1 import decision_pb2
from seawall.ledger.counts import HOUR_NANOS, LATENCY_BOUNDS, MINUTE_NANOS, NO_LATENCY
from seawall.ledger.database import retryable
from seawall.ledger.queries import UNRESOLVED, day_of
from seawall.ledger.tables import (
    artefacts,
    dead_letters,
    decision_counts,
    decision_totals,
    decisions,
    verdict_counts,
    verdict_totals,
)

#: Minutes that one question may span: a day and an hour.
MAX_MINUTES: Final = 1_500
#: Rows of any answer, at most.
_MAX_ROWS: Final = 500
#: Dead letters that are counted, at most; beyond it "or more" is all anybody needs to know.
MAX_DEAD_LETTERS: Final = 10_000


@dataclass
class Minute:
    """What was decided in one minute."""

    #: By outcome's number.
    outcomes: Counter[int] = field(default_factory=Counter)
    #: By latency's upper bound, milliseconds; late signals, which have none, left out.
    latencies: Counter[int] = field(default_factory=Counter)

    @property
    def decisions(self) -> int:
        return self.outcomes.total()


def minutes(db: Engine, first: int, last: int, tenant_id: str | None = None) -> list[Minute]:
    """Every minute from ``first`` to ``last`` (minutes since 1970, both counted), those without a decision too.

    Raises Retryable and Fatal as `database.retryable`, ValueError if they are too many.
    """
    if not 0 <= last - first < MAX_MINUTES:
        raise ValueError(f"from {first} to {last} are no 1 to {MAX_MINUTES} minutes")
    table = decision_totals if tenant_id is None else decision_counts
    columns = table.c
    query: Select[Any] = select(columns.minute, columns.outcome, columns.within_ms, columns.decisions)
    query = _of_tenant(query.where(columns.minute.between(first, last)), table, tenant_id)
    made = [Minute() for _ in range(first, last + 1)]
    with retryable("count"), db.connect() as connection:
        for minute, outcome, within_ms, count in connection.execute(query):
            one = made[minute - first]
            one.outcomes[outcome] += count
            if within_ms != NO_LATENCY:
                one.latencies[within_ms] += count
    return made


def quantile(latencies: Mapping[int, int], share: float) -> float | None:
    """A quantile of counts by upper bound, milliseconds, straight between bounds; None of nothing.

    What lies beyond the last bound is told as that bound.
    """
    total = sum(latencies.values())
    if not total:
        return None
    wanted, below, lower = share * total, 0.0, 0
    for bound in LATENCY_BOUNDS:
        count = latencies.get(bound, 0)
        if count and below + count >= wanted:
            upper = bound if bound != LATENCY_BOUNDS[-1] else lower
            return lower + (upper - lower) * (wanted - below) / count
        below, lower = below + count, bound
    return float(lower)


def verdicts(db: Engine, since: int, tenant_id: str | None = None) -> Sequence[RowMapping]:
    """What bundles and rules in shadow said since an instant (Unix nanoseconds, to the hour), most frequent first.

    Columns: those of verdict_counts but for hour and tenant_id. Raises as `minutes`.
    """
    table = verdict_totals if tenant_id is None else verdict_counts
    keys = [column for column in table.primary_key if column.name not in ("hour", "tenant_id")]
    counted = func.sum(table.c.decisions).label("decisions")
    query = select(*keys, counted).where(table.c.hour >= since // HOUR_NANOS).group_by(*keys)
    query = _of_tenant(query, table, tenant_id)
    with retryable("count"), db.connect() as connection:
        return connection.execute(query.order_by(counted.desc()).limit(_MAX_ROWS)).mappings().all()


def _of_tenant(query: Select[Any], table: Table, tenant_id: str | None) -> Select[Any]:
    return query if tenant_id is None else query.where(table.c.tenant_id == tenant_id)


def versions(db: Engine) -> Sequence[RowMapping]:
    """Versions of models, banks and term packs, those used last first. Raises as `minutes`."""
    query = select(artefacts).order_by(artefacts.c.last_unix_nano.desc(), artefacts.c.kind, artefacts.c.name)
    with retryable("search"), db.connect() as connection:
        return connection.execute(query.limit(_MAX_ROWS)).mappings().all()


class DeadLetterCount(NamedTuple):
    """Dead letters of one room and reason."""

    room: str
    reason: str
    letters: int
    newest_unix_nano: int


def dead_letters_since(db: Engine, since: int) -> list[DeadLetterCount]:
    """Dead letters that nobody has dealt with, by room and reason, of the newest MAX_DEAD_LETTERS since an instant.

    Raises as `minutes`.
    """
    columns = dead_letters.c
    newest = (
        select(columns.room, columns.reason, columns.create_unix_nano)
        .where(columns.resolution == UNRESOLVED, columns.create_unix_nano >= since)
        .order_by(columns.create_unix_nano.desc())
        .limit(MAX_DEAD_LETTERS)
        .subquery()
    )
    counted = func.count().label("letters")
    query = (
        select(newest.c.room, newest.c.reason, counted, func.max(newest.c.create_unix_nano))
        .group_by(newest.c.room, newest.c.reason)
        .order_by(counted.desc())
        .limit(_MAX_ROWS)
    )
    with retryable("count"), db.connect() as connection:
        return [DeadLetterCount(*row) for row in connection.execute(query)]


def open_holds(db: Engine, since: int, tenant_id: str | None = None) -> Sequence[RowMapping]:
    """The newest decisions to HOLD whose generation has no decision after it; at most 500 are looked at.

    Columns: day, generation_id, attempt, decided_unix_nano. Raises as `minutes`.
    """
    columns = decisions.c
    held: Select[Any] = (
        select(columns.day, columns.generation_id, columns.attempt, columns.decided_unix_nano)
        .where(columns.outcome == decision_pb2.OUTCOME_HOLD, columns.decided_unix_nano >= since)
        .order_by(columns.decided_unix_nano.desc())
        .limit(_MAX_ROWS)
    )
    held = _of_tenant(held, decisions, tenant_id)
    if db.dialect.name == "postgresql":
        held = held.where(columns.day >= day_of(since))
    newest, later = held.subquery(), decisions.alias("later")
    after = select(later.c.decision_id).where(
        later.c.generation_id == newest.c.generation_id,
        later.c.attempt > newest.c.attempt,
        # So that PostgreSQL need not look into the partitions before it.
        later.c.day >= newest.c.day,
    )
    query: Select[Any] = select(newest).where(~after.exists()).order_by(newest.c.decided_unix_nano.desc())
    with retryable("search"), db.connect() as connection:
        return connection.execute(query).mappings().all()


def minute_of(unix_nano: int) -> int:
    """Minutes since 1970."""
    return unix_nano // MINUTE_NANOS
