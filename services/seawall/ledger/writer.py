"""Writes rows, and how far the topics were read, in one transaction: after a crash both are there, or neither is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import BindParameter, Column, Connection, Engine, Table, bindparam, case, select, update
from sqlalchemy.dialects import postgresql, sqlite

from seawall.ledger.counts import artefact_rows, decision_count_rows, total_rows, use_rows, verdict_count_rows
from seawall.ledger.database import make_days, retryable
from seawall.ledger.rows import Row, Rows
from seawall.ledger.tables import (
    artefact_set_uses,
    artefact_sets,
    artefacts,
    contents,
    dead_letters,
    decision_counts,
    decision_totals,
    decisions,
    overrides,
    positions,
    unreadable,
    verdict_counts,
    verdict_totals,
)
from seawall.runtime.broker import TopicPartition

#: Artefact sets that are known to be in the database; a deployment has few at a time.
_KNOWN_SETS: Final = 10_000
#: Ids of one look-up: both databases bound the parameters of a statement.
_LOOK_UP: Final = 1_000


class Position(NamedTuple):
    """How far one partition was read."""

    next_offset: int
    log_unix_nano: int
    #: Records of this batch's gap: the topic had dropped them before.
    missed: int = 0


class Writer:
    """Writes to one database. Not for several threads at once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._insert: Any = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
        self._known: set[str] = set()

    def write(self, rows: Rows, read: Mapping[TopicPartition, Position]) -> None:
        """Write a batch; rows that are there already stay as they are.

        Raises:
            Retryable: LEDGER_UNAVAILABLE; nothing was written.
        """
        sets = {key: found for key, found in rows.artefact_sets.items() if key not in self._known}
        with retryable("write"), self._engine.begin() as connection:
            # First, because it locks the partitions' rows: nobody else writes the same records until we have committed,
            # so what is not there now is ours to count.
            self._advance(connection, read)
            make_days(connection, rows.days)
            new = self._new(connection, rows)
            uses = use_rows(new)
            self._add(connection, decisions, rows.decisions)
            self._add(connection, contents, rows.contents)
            self._add(connection, artefact_sets, [row for found in sets.values() for row in found])
            self._letters(connection, rows)
            self._newest(connection, overrides, rows.overrides, overrides.c.offset)
            self._add(connection, unreadable, rows.unreadable)
            # Last, because every writer of a minute waits for its row.
            counted, said = decision_count_rows(new), verdict_count_rows(new, rows.verdicts)
            self._sum(connection, decision_counts, counted)
            self._sum(connection, decision_totals, total_rows(counted))
            self._sum(connection, verdict_counts, said)
            self._sum(connection, verdict_totals, total_rows(said))
            self._widen(connection, artefact_set_uses, uses)
            self._widen(connection, artefacts, artefact_rows(uses, rows.artefact_sets))
        if len(self._known) > _KNOWN_SETS:
            self._known.clear()
        self._known |= sets.keys()

    def positions(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """The next offset of those partitions that were read before. Raises Retryable as `write`."""
        wanted = set(partitions)
        with retryable("read positions"), self._engine.connect() as connection:
            found = connection.execute(select(positions.c.topic, positions.c.partition, positions.c.next_offset)).all()
        # An empty ledger knows no artefact set either.
        if not found:
            self._known.clear()
        return {TopicPartition(t, p): offset for t, p, offset in found if TopicPartition(t, p) in wanted}

    @staticmethod
    def _new(connection: Connection, rows: Rows) -> list[Row]:
        """The decisions of the batch that are not in the database, each once."""
        wanted = {(row["day"], row["decision_id"]): row for row in rows.decisions}
        for day in rows.days:
            ids = [decision_id for of, decision_id in wanted if of == day]
            for start in range(0, len(ids), _LOOK_UP):
                there = select(decisions.c.decision_id).where(
                    decisions.c.day == day, decisions.c.decision_id.in_(ids[start : start + _LOOK_UP])
                )
                for decision_id in connection.execute(there).scalars():
                    del wanted[(day, decision_id)]
        return list(wanted.values())

    def _sum(self, connection: Connection, table: Table, rows: Sequence[Row]) -> None:
        if rows:
            new = self._insert(table)
            connection.execute(
                new.on_conflict_do_update(
                    index_elements=list(table.primary_key),
                    set_={"decisions": table.c.decisions + new.excluded.decisions},
                ),
                rows,
            )

    def _widen(self, connection: Connection, table: Table, rows: Sequence[Row]) -> None:
        if not rows:
            return
        new, old = self._insert(table), table.c
        first, last = new.excluded.first_unix_nano, new.excluded.last_unix_nano
        widen = new.on_conflict_do_update(
            index_elements=list(table.primary_key),
            set_={
                "first_unix_nano": case((first < old.first_unix_nano, first), else_=old.first_unix_nano),
                "last_unix_nano": case((last > old.last_unix_nano, last), else_=old.last_unix_nano),
            },
        )
        connection.execute(widen, rows)

    def _add(self, connection: Connection, table: Table, rows: Sequence[Row]) -> None:
        if rows:
            connection.execute(self._insert(table).on_conflict_do_nothing(), rows)

    def _newest(
        self, connection: Connection, table: Table, rows: Sequence[Row], at: Column[int], changed: Sequence[str] = ()
    ) -> None:
        """Rows of which the one furthest up the log counts, by column ``at``; it changes ``changed``, else all."""
        if not rows:
            return
        new = self._insert(table)
        newest = new.on_conflict_do_update(
            index_elements=list(table.primary_key),
            set_={name: new.excluded[name] for name in changed or rows[0]},
            where=new.excluded[at.name] > at,
        )
        connection.execute(newest, rows)

    def _letters(self, connection: Connection, rows: Rows) -> None:
        """Letters, and what became of them. The newest record about a letter counts: one that is repeated after it was
        dealt with is open again."""
        changed = ("resolution", "resolved_by", "last_offset")
        self._newest(connection, dead_letters, rows.dead_letters, dead_letters.c.last_offset, changed)
        if rows.resolutions:
            letter = dead_letters.c
            at: BindParameter[int] = bindparam("at")
            dealt_with = (
                update(dead_letters)
                .where(letter.dead_letter_id == bindparam("letter"), letter.last_offset < at)
                .values(resolution=bindparam("became"), resolved_by=bindparam("by"), last_offset=at)
            )
            connection.execute(dealt_with, rows.resolutions)

    def _advance(self, connection: Connection, read: Mapping[TopicPartition, Position]) -> None:
        if not read:
            return
        new = self._insert(positions)
        ahead = new.excluded.next_offset > positions.c.next_offset
        # A member that lost the partition to another may come late: it must not take the position back.
        keep_newest = new.on_conflict_do_update(
            index_elements=[positions.c.topic, positions.c.partition],
            set_={
                "next_offset": case((ahead, new.excluded.next_offset), else_=positions.c.next_offset),
                "log_unix_nano": case((ahead, new.excluded.log_unix_nano), else_=positions.c.log_unix_nano),
                "missed": positions.c.missed + case((ahead, new.excluded.missed), else_=0),
            },
        )
        connection.execute(
            keep_newest,
            [
                {
                    "topic": partition.topic,
                    "partition": partition.partition,
                    "next_offset": position.next_offset,
                    "log_unix_nano": position.log_unix_nano,
                    "missed": position.missed,
                }
                for partition, position in sorted(read.items())
            ],
        )
