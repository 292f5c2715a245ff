"""Consumers and consumer groups of the in-memory broker.

A group rebalances as Kafka's classic protocol with aiokafka does: eagerly (everybody gives up everything, then the
range assignor deals anew), with every listener awaited, inside the call that changed the membership.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from seawall.core.errors import Retryable
from seawall.runtime.broker import RebalanceListener, Record, TopicPartition

if TYPE_CHECKING:
    from seawall.runtime.memory import InMemoryBroker


class Group:
    """Members, their partitions, and committed offsets."""

    def __init__(self, broker: InMemoryBroker, name: str) -> None:
        self.name = name
        self.committed: dict[TopicPartition, int] = {}
        self._broker = broker
        self._members: dict[str, InMemoryConsumer] = {}
        self._joined = 0
        self._changing = asyncio.Lock()

    def has(self, member: InMemoryConsumer) -> bool:
        return self._members.get(member.member_id) is member

    async def join(self, member: InMemoryConsumer) -> None:
        async with self._changing:
            before = next((old for old in self._members.values() if old.instance == member.instance), None)
            if member.instance is not None and before is not None:
                # A static member that comes back takes its partitions up; nobody else notices.
                member.member_id = before.member_id
                self._members[member.member_id] = member
                await member.assigned(before.owned)
                return
            self._joined += 1
            member.member_id = f"{member.instance or 'member'}-{self._joined:06d}"
            await self._rebalance({**self._members, member.member_id: member})

    async def leave(self, member: InMemoryConsumer) -> None:
        async with self._changing:
            if self.has(member):
                await self._rebalance({key: other for key, other in self._members.items() if other is not member})

    async def expire(self) -> None:
        """End the sessions of those that are gone."""
        async with self._changing:
            alive = {key: member for key, member in self._members.items() if member.alive}
            if len(alive) != len(self._members):
                await self._rebalance(alive)

    async def evict(self, member: InMemoryConsumer) -> None:
        """Go on without a member; it learns of it by its next request."""
        async with self._changing:
            if self.has(member):
                del self._members[member.member_id]
                await self._rebalance(dict(self._members))

    async def _rebalance(self, members: dict[str, InMemoryConsumer]) -> None:
        for member in self._members.values():
            await member.revoked()
        self._members = dict(sorted(members.items()))
        dealt = self._deal()
        for key, member in self._members.items():
            await member.assigned(dealt[key])

    def _deal(self) -> dict[str, frozenset[TopicPartition]]:
        """Kafka's range assignor: for each topic, consecutive partitions to the members in order of id."""
        dealt: dict[str, set[TopicPartition]] = {key: set() for key in self._members}
        for topic in sorted({topic for member in self._members.values() for topic in member.topics}):
            takers = [key for key, member in self._members.items() if topic in member.topics]
            each, more = divmod(self._broker.partition_count(topic), len(takers))
            start = 0
            for number, key in enumerate(takers):
                count = each + (number < more)
                dealt[key].update(TopicPartition(topic, start + step) for step in range(count))
                start += count
        return {key: frozenset(partitions) for key, partitions in dealt.items()}


class InMemoryConsumer:
    """A ``runtime.broker.Consumer``: a member of a group, or without one a reader."""

    def __init__(
        self,
        broker: InMemoryBroker,
        topics: Sequence[str],
        *,
        group: Group | None = None,
        instance: str | None = None,
        listener: RebalanceListener | None = None,
        from_end: bool = False,
    ) -> None:
        self.topics = tuple(topics)
        self.instance = instance
        self.member_id = ""
        self.alive = False
        #: What it has, or in a rebalance is giving up.
        self.owned: frozenset[TopicPartition] = frozenset()
        self._broker = broker
        self._group = group
        self._listener = listener
        self._from_end = from_end
        self._positions: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._rebalancing = False
        self._failure: Exception | None = None
        self._first = 0
        self._woken = False

    async def start(self) -> None:
        self._broker.require_available("start consuming")
        self._failure = None
        self.alive = True
        if self._group is not None:
            await self._group.join(self)
            return
        self.owned = frozenset(
            TopicPartition(topic, number)
            for topic in self.topics
            for number in range(self._broker.partition_count(topic))
        )
        self._positions = {
            partition: self._broker.end_offset(partition) if self._from_end else 0 for partition in self.owned
        }

    async def stop(self) -> None:
        if not self.alive:
            return
        self.alive = False
        if self._group is not None and self.instance is None:
            await self._group.leave(self)
        self._broker.wake()

    def crash(self) -> None:
        """As kill -9 does: it is gone, and the group learns of it when its session ends (``expire_sessions``)."""
        self.alive = False
        self._broker.wake()

    async def poll(self, *, max_records: int, timeout: float) -> Mapping[TopicPartition, Sequence[Record]]:
        # A poll gives way even when there is much to read, as one that talks to a socket does.
        await asyncio.sleep(0)
        self._woken = False
        self._check()
        await self._rejoin_if_evicted()
        found: dict[TopicPartition, Sequence[Record]] = {}
        try:
            async with asyncio.timeout(timeout):
                while True:
                    found = {} if self._rebalancing or self._broker.unavailable else self._take(max_records)
                    if found or self._woken or timeout <= 0 or self._evicted():
                        break
                    await self._broker.changed()
                    self._check()
        except TimeoutError:
            self._check()
        if not found and not self._woken and self.owned - self._paused:
            self._broker.require_available("poll")
        return found

    def _check(self) -> None:
        if not self.alive:
            raise RuntimeError("the consumer was not started, or is stopped")
        if self._failure is not None:
            raise self._failure

    def _evicted(self) -> bool:
        return self._group is not None and not self._group.has(self)

    async def _rejoin_if_evicted(self) -> None:
        if self._group is not None and self._evicted() and not self._broker.unavailable:
            await self.revoked()
            await self._group.join(self)

    def _take(self, limit: int) -> dict[TopicPartition, Sequence[Record]]:
        """Records of one partition after the other, beginning with another one each time."""
        taken: dict[TopicPartition, Sequence[Record]] = {}
        partitions = sorted(self.owned - self._paused)
        self._first += 1
        for step in range(len(partitions)):
            partition = partitions[(self._first + step) % len(partitions)]
            records = self._broker.read(partition, self._positions[partition], limit)
            if records:
                taken[partition] = records
                self._positions[partition] = records[-1].offset + 1
                limit -= len(records)
            if limit <= 0:
                break
        return taken

    def assignment(self) -> frozenset[TopicPartition]:
        return self.owned

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        self._paused.update(partitions)

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        self._paused.difference_update(partitions)
        self._woken = True
        self._broker.wake()

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._need_owned(partition)
        self._positions[partition] = offset

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        group = self._need_group("commit")
        self._broker.require_available("commit offsets")
        if not self.alive or self._evicted():
            raise Retryable("REBALANCED", "the offsets were not committed: the group has rebalanced; poll to take part")
        for partition in offsets:
            self._need_owned(partition)
        group.committed.update({TopicPartition(*partition): offset for partition, offset in offsets.items()})

    async def committed(self, partition: TopicPartition) -> int | None:
        group = self._need_group("read committed offsets")
        self._broker.require_available("read a committed offset")
        return group.committed.get(partition)

    async def end_offsets(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        self._broker.require_available("read end offsets")
        return {TopicPartition(*partition): self._broker.end_offset(partition) for partition in partitions}

    async def offsets_at(self, partitions: Collection[TopicPartition], unix_ms: int) -> Mapping[TopicPartition, int]:
        self._broker.require_available("look up offsets by time")
        found = {}
        for partition in partitions:
            at = TopicPartition(*partition)
            records = self._broker.records(at.topic)
            later = (one.offset for one in records if one.partition == at.partition and one.timestamp >= unix_ms)
            if (offset := min(later, default=None)) is not None:
                found[at] = offset
        return found

    async def revoked(self) -> None:
        """Called by the group: give up everything."""
        self._rebalancing = True
        self._paused.clear()
        if self.alive and self._listener is not None and self.owned:
            await self._tell(self._listener.on_revoked, self.owned)
        self.owned = frozenset()

    async def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        """Called by the group: go on with these, from the committed offsets."""
        committed = self._need_group("be assigned partitions").committed
        # Nothing is read before the listener is done: it may be reading the partitions' state back.
        self._rebalancing = True
        self.owned = partitions
        self._positions = {partition: committed.get(partition, 0) for partition in partitions}
        if self.alive and self._listener is not None:
            await self._tell(self._listener.on_assigned, partitions)
        self._rebalancing = False
        self._broker.wake()

    async def _tell(
        self, call: Callable[[Collection[TopicPartition]], Awaitable[None]], partitions: frozenset[TopicPartition]
    ) -> None:
        try:
            await call(sorted(partitions))
        except Exception as error:
            self._failure = self._failure or error
            self._broker.wake()

    def _need_owned(self, partition: TopicPartition) -> None:
        if partition not in self.owned:
            raise Retryable(
                "NOT_ASSIGNED", "the partition is not assigned to this member (any more): poll to take part"
            )

    def _need_group(self, doing: str) -> Group:
        if self._group is None:
            raise RuntimeError(f"a reader belongs to no group: it cannot {doing}")
        return self._group
