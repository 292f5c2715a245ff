"""Reads what topics hold now, from a place to their end: for questions that people ask, outside any group."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping

from seawall.runtime.broker import Broker, Record, TopicPartition

_POLL_RECORDS = 5_000
_POLL_SECONDS = 0.5
#: A partition counts as read when nothing came for so long: retention or compaction has taken what is left.
_QUIET_POLLS = 6


async def scan(broker: Broker, topics: Collection[str], *, since_unix_ms: int | None = None) -> AsyncGenerator[Record]:
    """Every record that the topics hold when it begins, in order within a partition. Who stops early closes it.

    Args:
        since_unix_ms: records of an earlier log time are left out.

    Raises Retryable as the broker seam says.
    """
    reader = broker.reader(sorted(topics))
    await reader.start()
    try:
        left = {partition: end for partition, end in (await reader.end_offsets(reader.assignment())).items() if end}
        if since_unix_ms is not None:
            begin = await reader.offsets_at(list(left), since_unix_ms)
            for partition in [partition for partition in left if partition not in begin]:
                del left[partition]
            for partition, offset in begin.items():
                reader.seek(partition, offset)
        quiet = 0
        while left and quiet < _QUIET_POLLS:
            reader.pause([partition for partition in reader.assignment() if partition not in left])
            polled = await reader.poll(max_records=_POLL_RECORDS, timeout=_POLL_SECONDS)
            quiet = 0 if polled else quiet + 1
            for key, records in polled.items():
                partition = TopicPartition(*key)
                end = left.get(partition, 0)
                for record in records:
                    if record.offset < end:
                        yield record
                if records and records[-1].offset + 1 >= end:
                    left.pop(partition, None)
    finally:
        await reader.stop()


async def records_at(broker: Broker, wanted: Mapping[TopicPartition, int]) -> dict[TopicPartition, Record]:
    """The first record at or after an offset, of each partition that is there and has one.

    Raises Retryable as the broker seam says.
    """
    found: dict[TopicPartition, Record] = {}
    if not wanted:
        return found
    reader = broker.reader(sorted({partition.topic for partition in wanted}))
    await reader.start()
    try:
        ends = await reader.end_offsets(reader.assignment())
        left = {partition for partition, offset in wanted.items() if offset < ends.get(partition, 0)}
        for partition in left:
            reader.seek(partition, wanted[partition])
        quiet = 0
        while left and quiet < _QUIET_POLLS:
            reader.pause([partition for partition in reader.assignment() if partition not in left])
            polled = await reader.poll(max_records=_POLL_RECORDS, timeout=_POLL_SECONDS)
            quiet = 0 if polled else quiet + 1
            for key, records in polled.items():
                partition = TopicPartition(*key)
                if records and partition in left:
                    found[partition] = records[0]
                    left.discard(partition)
    finally:
        await reader.stop()
    return found
