"""Questions to the ledger. Every one is answered by an index, and bounded."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import chain
from typing import Any, Final, NamedTuple

from sqlalchemy import Column, ColumnElement, Connection, Engine, RowMapping, Select, and_, func, or_, select

from seawall.api.dead_letter.v1 import dead_letter_pb2
from seawall.api.decision.v1 import decision_pb2
from seawall.ledger.database import retryable
from seawall.ledger.tables import (
    artefact_set_uses,
    artefact_sets,
    contents,
    dead_letters,
    decisions,
    overrides,
    positions,
    unreadable,
)

#: Rows of one page, at most.
MAX_PAGE: Final = 500
#: Artefact sets that a search by model or list looks into; each change of a list makes one.
_MAX_SETS: Final = 200
#: Of a dead letter that nobody has dealt with.
UNRESOLVED: Final = dead_letter_pb2.RESOLUTION_UNSPECIFIED
#: Outcome of an override that was taken back.
WITHDRAWN: Final = decision_pb2.OUTCOME_UNSPECIFIED
#: 9999-12-31T23:59:59Z
_LAST_SECOND: Final = 253_402_300_799


class Cursor(NamedTuple):
    """Where the next page begins: behind this decision."""

    decided_unix_nano: int
    decision_id: str


@dataclass(frozen=True)
class Filter:
    """Which decisions; what is None does not matter. ``tenant_id`` is not a wish but a wall: see `find`."""

    tenant_id: str | None = None
    generation_id: str | None = None
    actor_id: str | None = None
    outcome: int | None = None
    rule_id: str | None = None
    trace_id: str | None = None
    #: SHA-256 of a media item's bytes, lower-case hex.
    content: str | None = None
    #: Name of a model, bank or term pack, and its version.
    artefact: str | None = None
    artefact_version: str | None = None
    #: Decided at or after, and before; Unix nanoseconds.
    since: int | None = None
    until: int | None = None
    #: Only those on which a person has the last word: of each generation the decision that counted before.
    overridden: bool = False


def find(
    db: Engine, wanted: Filter, *, limit: int = 50, after: Cursor | None = None, with_summary: bool = True
) -> tuple[Sequence[RowMapping], Cursor | None]:
    """Decisions, newest first, and the cursor of the next page if there may be one.

    Args:
        with_summary: a list needs no summaries, and they are most of a row.

    A decision of another tenant than the filter's is not found, exactly as one that does not exist.

    Raises Retryable and Fatal as `database.retryable`.
    """
    limit = min(max(limit, 1), MAX_PAGE)
    query = _query(wanted, after, with_summary=with_summary).limit(limit)
    if db.dialect.name == "postgresql":
        query = query.where(*_days(wanted, after))
    with retryable("search"), db.connect() as connection:
        if wanted.artefact is None:
            found = connection.execute(query).mappings().all()
        else:
            found = _of_sets(connection, query, _sets(wanted, after), limit)
    last = found[-1] if len(found) == limit else None
    return found, _newest(last) if last else None


def _query(wanted: Filter, after: Cursor | None, *, with_summary: bool) -> Select[Any]:
    columns = decisions.c
    shown = [column for column in columns if with_summary or column is not columns.summary]
    query = select(*shown).where(*_conditions(wanted))
    if wanted.content is not None:
        # Joined from the few that are about it: by a list of pairs SQLite would go through a whole day.
        about = select(contents.c.day, contents.c.decision_id).where(contents.c.sha256 == wanted.content)
        found = about.distinct().subquery()
        query = query.join(found, and_(found.c.day == columns.day, found.c.decision_id == columns.decision_id))
    if wanted.overridden:
        # From the few that are, in their own order, which is that of the decisions that they name. By their key alone:
        # with the generation beside it SQLite goes through every decision of an outcome or actor first.
        said = overrides.c
        named = and_(said.day == columns.day, said.decision_id == columns.decision_id)
        query = query.join(overrides, named).where(said.outcome != WITHDRAWN)
        return _page(query, said.decided_unix_nano, said.decision_id, wanted, after)
    return _page(query, columns.decided_unix_nano, columns.decision_id, wanted, after)


def _page(
    query: Select[Any], decided: Column[Any], decision_id: Column[Any], wanted: Filter, after: Cursor | None
) -> Select[Any]:
    """Newest first, between the filter's times, behind the cursor."""
    if wanted.since is not None:
        query = query.where(decided >= wanted.since)
    if wanted.until is not None:
        query = query.where(decided < wanted.until)
    if after is not None:
        # The first condition alone is a range of the index: without it a deep page would be read from the newest on.
        query = query.where(
            decided <= after.decided_unix_nano,
            or_(decided < after.decided_unix_nano, decision_id < after.decision_id),
        )
    return query.order_by(decided.desc(), decision_id.desc())


def _days(wanted: Filter, after: Cursor | None) -> list[Any]:
    """A decision's day follows from its time, and tells PostgreSQL which partitions it need not look into."""
    days = [] if wanted.since is None else [decisions.c.day >= day_of(wanted.since)]
    latest = _latest(wanted, after)
    return days if latest is None else [*days, decisions.c.day <= day_of(latest)]


def _latest(wanted: Filter, after: Cursor | None) -> int | None:
    """What is found was decided no later, Unix nanoseconds."""
    bounds = [nanos for nanos in (wanted.until, after and after.decided_unix_nano) if nanos is not None]
    return min(bounds, default=None)


def day_of(unix_nano: int) -> date:
    """The UTC date of an instant; one beyond the calendar is its last day."""
    return datetime.fromtimestamp(min(max(unix_nano // 1_000_000_000, 0), _LAST_SECOND), UTC).date()


def _sets(wanted: Filter, after: Cursor | None) -> Select[Any]:
    """Sets with the artefact, and from when to when each was used, the one used last first; each change of a list makes
    a set."""
    uses = artefact_set_uses.c
    named = select(artefact_sets.c.artefact_set).where(artefact_sets.c.name == wanted.artefact)
    if wanted.artefact_version is not None:
        named = named.where(artefact_sets.c.version == wanted.artefact_version)
    query = select(artefact_set_uses).where(uses.artefact_set.in_(named))
    if wanted.since is not None:
        query = query.where(uses.last_unix_nano >= wanted.since)
    if (latest := _latest(wanted, after)) is not None:
        query = query.where(uses.first_unix_nano <= latest)
    return query.order_by(uses.last_unix_nano.desc()).limit(_MAX_SETS)


def _of_sets(connection: Connection, query: Select[Any], sets: Select[Any], limit: int) -> list[RowMapping]:
    """One index range a set, merged: over all at once a database would sort everything a model was ever part of. The
    set that was used last comes first, so that most are older than the page and need no look."""
    found: list[RowMapping] = []
    for artefact_set, first, last in connection.execute(sets).all():
        if len(found) == limit and last < found[-1]["decided_unix_nano"]:
            break
        # By its span too: a database that goes by time from the newest on would meet none of an old set for long.
        of_set = query.where(
            decisions.c.artefact_set == artefact_set, decisions.c.decided_unix_nano.between(first, last)
        )
        if connection.dialect.name == "postgresql":
            of_set = of_set.where(decisions.c.day.between(day_of(first), day_of(last)))
        found = sorted(chain(found, connection.execute(of_set).mappings()), key=_newest, reverse=True)[:limit]
    return found


def _newest(row: RowMapping) -> Cursor:
    return Cursor(row["decided_unix_nano"], row["decision_id"])


def _conditions(wanted: Filter) -> list[Any]:
    columns = decisions.c
    # For a person's words not by an index of theirs: PostgreSQL takes those to be far fewer than they are, and would
    # look at every decision of an outcome or tenant for them.
    outcome, rule_id, tenant_id = (
        _unindexed(column) if wanted.overridden else column
        for column in (columns.outcome, columns.rule_id, columns.tenant_id)
    )
    equal = {
        columns.generation_id: wanted.generation_id,
        columns.actor_id: wanted.actor_id,
        outcome: wanted.outcome,
        rule_id: wanted.rule_id,
        columns.trace_id: wanted.trace_id,
    }
    conditions: list[Any] = [column == value for column, value in equal.items() if value is not None]
    if wanted.tenant_id is not None and wanted.overridden:
        # A late signal's decision names no tenant; the word on it does.
        conditions += [overrides.c.tenant_id == wanted.tenant_id, tenant_id.in_([wanted.tenant_id, ""])]
    elif wanted.tenant_id is not None:
        conditions.append(tenant_id == wanted.tenant_id)
    return conditions


def _unindexed(column: Column[Any]) -> ColumnElement[Any]:
    """The column's value, by an expression that no index has."""
    return func.coalesce(column, column)


def overrides_of(db: Engine, generation_ids: Collection[str]) -> dict[str, RowMapping]:
    """A person's last word on each of these generations, by their ids, withdrawals included; a page's at most.

    Raises Retryable and Fatal as `database.retryable`.
    """
    if not generation_ids:
        return {}
    query = select(overrides).where(overrides.c.generation_id.in_(generation_ids))
    with retryable("look up overrides"), db.connect() as connection:
        return {row["generation_id"]: row for row in connection.execute(query).mappings()}


def find_dead_letters(
    db: Engine, *, room: str | None = None, reason: str | None = None, resolved: bool = False, limit: int = 50
) -> Sequence[RowMapping]:
    """Dead letters, newest first: those that nobody has dealt with, or those that somebody has."""
    columns = dead_letters.c
    conditions = [columns.resolution != UNRESOLVED if resolved else columns.resolution == UNRESOLVED]
    conditions += [column == value for column, value in ((columns.room, room), (columns.reason, reason)) if value]
    query = select(dead_letters).where(*conditions).order_by(columns.create_unix_nano.desc())
    with retryable("search"), db.connect() as connection:
        return connection.execute(query.limit(min(max(limit, 1), MAX_PAGE))).mappings().all()


class State(NamedTuple):
    """How complete the ledger is."""

    #: By "topic/partition": next offset, log time of the last record (Unix nanoseconds), records missed.
    positions: Mapping[str, tuple[int, int, int]]
    unreadable: int


def state(db: Engine) -> State:
    """How far the topics were read, and what could not be."""
    with retryable("read its state"), db.connect() as connection:
        rows = connection.execute(select(positions)).mappings().all()
        broken = connection.execute(select(func.count()).select_from(unreadable)).scalar_one()
    return State(
        {f"{r['topic']}/{r['partition']}": (r["next_offset"], r["log_unix_nano"], r["missed"]) for r in rows}, broken
    )
