"""The ledger's engine: one topic into the database.

    1. poll      up to batch_records
    2. rows      pure; what cannot be read becomes a row that says so
    3. write     rows and positions in one transaction; while the database is away, again and again
    4. commit    to Kafka too, for whoever watches the group's lag: what counts is the position in the database

A crash anywhere repeats a batch at most, and a row that is there already stays as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from seawall.core.errors import Retryable
from seawall.ledger.rows import Rows
from seawall.ledger.settings import LedgerSettings
from seawall.ledger.writer import Position, Writer
from seawall.relay.observe import StreamObserver
from seawall.runtime.broker import Broker, Record, TopicPartition

_MILLIS: Final = 1_000_000

Add = Callable[[Rows, Record], None]


class Engine:
    """Materialises one topic until it is told to stop.

    Args:
        add: `Rows.add_decision` or another of its methods.
        compacted: the topic drops what it has a newer word on; such gaps are none.
    """

    def __init__(
        self,
        *,
        broker: Broker,
        topic: str,
        group: str,
        member: str | None,
        add: Add,
        writer: Writer,
        settings: LedgerSettings,
        observer: StreamObserver,
        compacted: bool = False,
    ) -> None:
        self._topic = topic
        self._add = add
        self._writer = writer
        self._settings = settings
        self._observer = observer
        self._compacted = compacted
        self._consumer = broker.consumer(group, [topic], instance=member, listener=self)
        self._next: dict[TopicPartition, int] = {}
        self._stopping = asyncio.Event()
        self.is_ready = False
        #: Records written since the start.
        self.written = 0

    async def run(self) -> None:
        """Write until ``stop`` is called. Raises Fatal when the ledger is not migrated or the consumer is broken."""
        await self._consumer.start()
        try:
            while not self._stopping.is_set():
                await self._turn()
        finally:
            self.is_ready = False
            await self._consumer.stop()

    def stop(self) -> None:
        """Ask ``run`` to end."""
        self._stopping.set()

    async def _turn(self) -> None:
        try:
            polled = await self._consumer.poll(
                max_records=self._settings.batch_records, timeout=self._settings.poll_seconds
            )
        except Retryable as error:
            self.is_ready = False
            self._observer.event("poll_failed", reason=error.reason, topic=self._topic)
            await self._pause(1.0)
            return
        self.is_ready = bool(self._next)
        rows, read = self._rows(polled)
        if read and await self._write(rows, read):
            await self._commit(read)

    def _rows(self, polled: Mapping[TopicPartition, Sequence[Record]]) -> tuple[Rows, dict[TopicPartition, Position]]:
        rows, read = Rows(), {}
        for key, records in polled.items():
            partition = TopicPartition(*key)
            expected = self._next.get(partition)
            if expected is None or not records:
                continue  # revoked while the poll was on its way
            missed = 0 if self._compacted else max(0, records[0].offset - expected)
            if missed:
                self._observer.event("records_missed", topic=self._topic, partition=partition.partition, records=missed)
            for record in records:
                self._add(rows, record)
            last = records[-1]
            read[partition] = Position(last.offset + 1, last.timestamp * _MILLIS, missed)
        return rows, read

    async def _write(self, rows: Rows, read: Mapping[TopicPartition, Position]) -> bool:
        """Until it is written, or somebody else's. False if we were told to stop before."""
        delay = 0.05
        while True:
            try:
                await asyncio.to_thread(self._writer.write, rows, read)
            except Retryable as error:
                self.is_ready = False
                self._observer.event("write_failed", reason=error.reason, topic=self._topic)
                await self._stay_a_member()
                await self._pause(delay)
                if self._stopping.is_set():
                    return False
                delay = min(delay * 2, self._settings.max_retry_seconds)
                continue
            for partition, position in read.items():
                if partition in self._next:
                    self._next[partition] = position.next_offset
            self.written += rows.records
            return True

    async def _stay_a_member(self) -> None:
        """A poll of nothing: the group must see a sign of life while the database is away."""
        held = self._consumer.assignment()
        self._consumer.pause(held)
        try:
            polled = await self._consumer.poll(max_records=1, timeout=0)
        except Retryable as error:
            self._observer.event("poll_failed", reason=error.reason, topic=self._topic)
        else:
            for key, records in polled.items():
                # Of a partition that came to us just now: read again when there is room.
                if records and TopicPartition(*key) in self._next:
                    self._consumer.seek(TopicPartition(*key), records[0].offset)
        finally:
            self._consumer.resume(held)

    async def _commit(self, read: Mapping[TopicPartition, Position]) -> None:
        try:
            await self._consumer.commit({partition: position.next_offset for partition, position in read.items()})
        except Retryable as error:
            self._observer.event("commit_refused", reason=error.reason, topic=self._topic)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), timeout=seconds)
        except TimeoutError:
            return

    async def on_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """What was not written is the next owner's."""
        for partition in revoked:
            self._next.pop(TopicPartition(*partition), None)

    async def on_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Begin where the database says."""
        partitions = [TopicPartition(*partition) for partition in assigned]
        while not self._stopping.is_set():
            try:
                found = await asyncio.to_thread(self._writer.positions, partitions)
            except Retryable as error:
                self._observer.event("take_over_failed", reason=error.reason, topic=self._topic)
                await self._pause(1.0)
                continue
            for partition in partitions:
                begin = found.get(partition, 0)
                self._consumer.seek(partition, begin)
                self._next[partition] = begin
            return
