"""Single records by their coordinates: hits are rare, so their records are read again instead of being kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from seawall.core.errors import Retryable
from seawall.runtime.broker import Broker, Record, TopicPartition

#: (topic, partition, offset)
Coordinates = tuple[str, int, int]

#: Records of one poll: neighbours of a hit are often hits.
_POLL: Final = 100
_POLL_SECONDS: Final = 1.0
#: Polls that bring nothing, after which a record counts as gone from the log.
_QUIET_POLLS: Final = 5


class Fetcher:
    """Reads records of these topics, a partition at a time. Not for concurrent use."""

    def __init__(self, broker: Broker, topics: Sequence[str]) -> None:
        self._reader = broker.reader(topics)

    async def start(self) -> None:
        """Connect."""
        await self._reader.start()
        self._reader.pause(self._reader.assignment())

    async def stop(self) -> None:
        """Disconnect."""
        await self._reader.stop()

    async def fetch(self, wanted: Collection[Coordinates]) -> Mapping[Coordinates, Record]:
        """The records that the log still has. Raises Retryable while the broker is away."""
        found: dict[Coordinates, Record] = {}
        by_partition: dict[TopicPartition, list[int]] = {}
        for topic, number, offset in wanted:
            by_partition.setdefault(TopicPartition(topic, number), []).append(offset)
        for partition, offsets in by_partition.items():
            if partition not in self._reader.assignment():
                raise Retryable("TOPIC_CHANGED", f"{partition.topic} has a partition more than at the start: restart")
            self._reader.resume([partition])
            try:
                for record in await self._some(partition, sorted(offsets)):
                    found[partition.topic, partition.partition, record.offset] = record
            finally:
                self._reader.pause([partition])
        return found

    async def _some(self, partition: TopicPartition, offsets: Sequence[int]) -> list[Record]:
        """The records at these offsets, ascending, of those that are there."""
        found: list[Record] = []
        left = list(reversed(offsets))
        position: int | None = None
        quiet = 0
        while left and quiet < _QUIET_POLLS:
            if position is None or not position <= left[-1] < position + _POLL:
                position = left[-1]
                self._reader.seek(partition, position)
            records = (await self._reader.poll(max_records=_POLL, timeout=_POLL_SECONDS)).get(partition, ())
            quiet = 0 if records else quiet + 1
            for record in records:
                while left and left[-1] < record.offset:
                    left.pop()  # gone: compaction or retention
                if left and left[-1] == record.offset:
                    found.append(record)
                    left.pop()
                position = record.offset + 1
        return found
