"""How far behind each room's group is, read from Kafka alone: true also of rooms that hang or are gone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from seawall.local.mesh import STAGES
from seawall.runtime.broker import Broker, TopicPartition
from seawall.runtime.scan import records_at
from seawall.runtime.topics import TopicNames


class Group(NamedTuple):
    """A consumer group: which room's, and what it reads."""

    room: str
    name: str
    topics: tuple[str, ...]


class Lag(NamedTuple):
    """How far a group is behind on one topic."""

    room: str
    group: str
    topic: str
    #: Records that are not settled.
    records: int
    #: Age of the oldest of them, seconds; 0 when there is none.
    seconds: float
    #: False if the group has never committed anything here: the room has not run yet, or settles nothing.
    known: bool


def groups(names: TopicNames) -> list[Group]:
    """The groups of the rooms that settle what they read."""
    prefix = names.prefix
    return [
        *(Group(f"{stage}.relay", f"{prefix}{stage}", (names.generations,)) for stage in STAGES),
        Group("aggregator", f"{prefix}aggregator", (names.generations, names.signals)),
        Group("actor_history", f"{prefix}actor_history", (names.decisions, names.overrides, names.actor_events)),
        Group("ledger", f"{prefix}ledger", (names.decisions,)),
        Group("ledger", f"{prefix}ledger.dead_letters", (names.dead_letters,)),
        Group("ledger", f"{prefix}ledger.overrides", (names.overrides,)),
    ]


async def lags(broker: Broker, wanted: Sequence[Group], now: float | None = None) -> list[Lag]:
    """Each group's lag on each of its topics that exists. ``now``: Unix seconds.

    Raises Retryable as the broker seam says.
    """
    admin = broker.admin()
    await admin.start()
    try:
        counts = await admin.partitions({topic for group in wanted for topic in group.topics})
        committed = {group: await admin.committed(group.name) for group in wanted}
    finally:
        await admin.stop()
    ends = await _ends(broker, counts)
    now = time.time() if now is None else now
    found = []
    for group in wanted:
        for topic in group.topics:
            if topic in counts:
                found.append(await _lag(broker, group, topic, counts[topic], committed[group], ends, now))
    return found


async def _lag(
    broker: Broker,
    group: Group,
    topic: str,
    count: int,
    committed: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int],
    now: float,
) -> Lag:
    partitions = [TopicPartition(topic, number) for number in range(count)]
    behind = {one: committed.get(one, 0) for one in partitions if committed.get(one, 0) < ends.get(one, 0)}
    known = any(one in committed for one in partitions)
    records = sum(ends[one] - offset for one, offset in behind.items())
    oldest = await records_at(broker, behind) if known else {}
    ages = [now - record.timestamp / 1000 for record in oldest.values()]
    return Lag(group.room, group.name, topic, records, max(0.0, *ages) if ages else 0.0, known)


async def _ends(broker: Broker, counts: Mapping[str, int]) -> Mapping[TopicPartition, int]:
    if not counts:
        return {}
    reader = broker.reader(sorted(counts))
    await reader.start()
    try:
        return await reader.end_offsets(reader.assignment())
    finally:
        await reader.stop()
