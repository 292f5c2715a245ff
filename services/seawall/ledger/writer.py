"""Writes rows, and how far the topics were read, in one transaction: after a crash both are there, or neither is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Engine, Table, case, select
from sqlalchemy.dialects import postgresql, sqlite

from seawall.ledger.database import make_days, retryable
from seawall.ledger.rows import Row, Rows
from seawall.ledger.tables import artefact_sets, contents, dead_letters, decisions, positions, unreadable
from seawall.runtime.broker import TopicPartition

#: Artefact sets that are known to be in the database; a deployment has few at a time.
_KNOWN_SETS: Final = 10_000


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
            make_days(connection, rows.days)
            self._add(connection, decisions, rows.decisions)
            self._add(connection, contents, rows.contents)
            self._add(connection, artefact_sets, [row for found in sets.values() for row in found])
            self._add(connection, dead_letters, rows.dead_letters)
            self._add(connection, unreadable, rows.unreadable)
            self._advance(connection, read)
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

    def _add(self, connection: Connection, table: Table, rows: Sequence[Row]) -> None:
        if rows:
            connection.execute(self._insert(table).on_conflict_do_nothing(), rows)

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
                for partition, position in read.items()
            ],
        )
