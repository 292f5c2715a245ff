"""Bank changes between replicas: the store on one side, the compacted topic bank_entries.v1 on the other.

1. Read from the position that the store keeps for each partition.
2. Apply what was read, and the new position, in one transaction. Last record wins, as compaction has it.
3. Publish what was made here (`BankStore.unpublished`), then note that it is published. A crash in between publishes
   it again.

Every replica that has read to the end holds the same, and says so by the same digests.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from google.protobuf.message import DecodeError

from seawall.api.bank.v1 import bank_pb2
from seawall.core.errors import Fatal, Poison, Retryable
from seawall.perceptual_hashing import bank_changes
from seawall.perceptual_hashing.bank_store import BankStore
from seawall.runtime import metrics
from seawall.runtime.broker import Broker, Output, Record
from seawall.runtime.logging import get_logger

_BATCH: Final = 2_000
_POLL_SECONDS: Final = 1.0
_SILENT_POLLS: Final = 5

_log = get_logger(__name__)


class BankReplication:
    """One replica's link. One at a time per store: see `live_banks`."""

    def __init__(self, broker: Broker, topic: str, store: BankStore) -> None:
        self._topic = topic
        self._store = store
        self._reader = broker.reader([topic])
        self._producer = broker.producer()
        self._next: dict[int, int] = {}

    async def start(self) -> None:
        """Connect, and go to where the store has read to. Raises Retryable while the broker is away."""
        await self._reader.start()
        await self._producer.start()
        partitions = sorted(self._reader.assignment())
        if not partitions:
            raise Fatal("TOPIC_MISSING", f"{self._topic} is missing: run `seawall topics apply`")
        ends = await self._reader.end_offsets(partitions)
        known = self._store.positions(self._topic)
        if any(known.get(one.partition, 0) > end for one, end in ends.items()):
            _log.error(
                "the topic of bank entries is shorter than what was read of it: it was made anew and is read from its "
                "beginning; what only the old one held is kept here, and digests differ until it is published again",
                topic=self._topic,
            )
            self._store.forget_position(self._topic)
            known = {}
        for partition in partitions:
            self._next[partition.partition] = known.get(partition.partition, 0)
            self._reader.seek(partition, self._next[partition.partition])

    async def stop(self) -> None:
        """Disconnect."""
        await self._reader.stop()
        await self._producer.stop()

    async def catch_up(self, timeout: float) -> None:
        """Read to where the topic ends now.

        Raises Retryable("BANK_TOPIC_BEHIND") if that takes longer than ``timeout`` seconds.
        """
        ends = await self._reader.end_offsets(self._reader.assignment())
        give_up = time.monotonic() + timeout
        silent = 0
        # A compacted log has gaps, and may end with one: after a while without a record, there is none.
        while silent < _SILENT_POLLS and any(self._next[one.partition] < end for one, end in ends.items()):
            if time.monotonic() > give_up:
                raise Retryable("BANK_TOPIC_BEHIND", f"{self._topic} was not read to its end in {timeout:.0f} s")
            silent = 0 if await self.step() else silent + 1

    async def step(self, timeout: float = _POLL_SECONDS) -> int:
        """Take in what came, waiting for up to ``timeout`` seconds. Returns how many records."""
        polled = await self._reader.poll(max_records=_BATCH, timeout=timeout)
        changes: list[bank_pb2.BankChange] = []
        positions: dict[tuple[str, int], int] = {}
        for partition, records in polled.items():
            if not records:
                continue
            changes += [change for record in records if (change := _read(record)) is not None]
            positions[self._topic, partition.partition] = records[-1].offset + 1
        if positions:
            self._store.apply(changes, positions=positions)
            for (_, number), following in positions.items():
                self._next[number] = following
        return sum(map(len, polled.values()))

    async def publish(self) -> int:
        """Write what was made here. Returns how many records. Raises Retryable, and tries them again next time."""
        count = 0
        while rows := self._store.unpublished(_BATCH):
            await self._producer.send([Output(self._topic, None, key, value) for _, key, value in rows])
            self._store.published(rows[-1][0])
            count += len(rows)
        return count


def _read(record: Record) -> bank_pb2.BankChange | None:
    """The change in a record; None for one that is none. It is told, and does not stop the others."""
    try:
        change = bank_pb2.BankChange.FromString(record.value or b"")
        bank_changes.check(change)
        if record.key != bank_changes.key(change):
            raise Poison("BAD_BANK_CHANGE", "its key is another entry's: compaction would lose one of the two")
    except DecodeError:
        _refused(record, "it is no BankChange")
        return None
    except Poison as error:
        _refused(record, error.detail)
        return None
    return change


def _refused(record: Record, what: str) -> None:
    metrics.BANK_CHANGES_REFUSED.add(1)
    _log.error(
        "a record of bank entries is refused, on every replica: its writer must write it again",
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        what=what,
    )


def outputs(topic: str, changes: Sequence[bank_pb2.BankChange]) -> list[Output]:
    """Records of changes, for a writer without a store."""
    return [Output(topic, None, bank_changes.key(change), change.SerializeToString()) for change in changes]
