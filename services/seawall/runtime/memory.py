"""The broker seam's in-memory twin: the same semantics on one event loop, for tests and the seeded simulation.

Deterministic: no threads, no randomness, no sleeping; log time comes from a Clock. What Kafka does by timers (a
member's session ends) happens when it is told to. Faults are switches: ``unavailable``, ``fail_next_sends``.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from seawall.core.clock import Clock, SystemClock
from seawall.core.errors import Fatal, Retryable
from seawall.runtime.broker import Output, RebalanceListener, RecordTooLarge, Replicas, TopicPartition, TopicSpec
from seawall.runtime.memory_group import Group, InMemoryConsumer
from seawall.runtime.murmur2 import partition_of

#: Kafka's own default of max.message.bytes.
DEFAULT_MAX_MESSAGE_BYTES = 1_048_588
#: A batch's header and a record's varints, about; Kafka's limit is on the batch.
_RECORD_OVERHEAD = 100


class InMemoryRecord(NamedTuple):
    """A ``runtime.broker.Record``."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class _Topic:
    def __init__(self, spec: TopicSpec) -> None:
        self.config = {
            "message.timestamp.type": "CreateTime",
            "cleanup.policy": "delete",
            "max.message.bytes": str(DEFAULT_MAX_MESSAGE_BYTES),
            **spec.config,
        }
        self.max_bytes = int(self.config["max.message.bytes"])
        self.log: list[list[InMemoryRecord]] = [[] for _ in range(spec.partitions)]


class InMemoryBroker:
    """A ``runtime.broker.Broker`` whose log lives as long as it does."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._topics: dict[str, _Topic] = {}
        self._groups: dict[str, Group] = {}
        #: In the order they came, so that a simulation wakes them in the same order each time.
        self._waiters: dict[asyncio.Future[None], None] = {}
        self._unavailable = False
        self._failures: list[bool] = []

    # Faults.

    @property
    def unavailable(self) -> bool:
        """While true, every request fails as if the broker were away."""
        return self._unavailable

    @unavailable.setter
    def unavailable(self, value: bool) -> None:
        self._unavailable = value
        self.wake()

    def fail_next_sends(self, count: int, *, written: bool = False) -> None:
        """Fail the next ``count`` sends with Retryable. ``written``: only the acknowledgement is lost."""
        self._failures += [written] * count

    async def expire_sessions(self, group: str) -> None:
        """End the session of every member that crashed, or was stopped with a static membership; then rebalance."""
        await self._group(group).expire()

    async def end_session(self, group: str, member: InMemoryConsumer) -> None:
        """End the session of a member that lives, but was stopped or cut off. It learns of it by its next request."""
        await self._group(group).evict(member)

    # What clients are made of.

    def consumer(
        self,
        group: str,
        topics: Sequence[str],
        *,
        instance: str | None = None,
        listener: RebalanceListener | None = None,
        commits: bool = True,
    ) -> InMemoryConsumer:
        return InMemoryConsumer(self, topics, group=self._group(group), instance=instance, listener=listener)

    def reader(self, topics: Sequence[str], *, from_end: bool = False) -> InMemoryConsumer:
        return InMemoryConsumer(self, topics, from_end=from_end)

    def producer(self) -> InMemoryProducer:
        return InMemoryProducer(self)

    def admin(self) -> InMemoryAdmin:
        return InMemoryAdmin(self)

    def _group(self, name: str) -> Group:
        return self._groups.setdefault(name, Group(self, name))

    # The log, as clients and tests see it.

    def require_available(self, doing: str) -> None:
        """Raise as a client does whose request gets no answer."""
        if self._unavailable:
            raise Retryable("BROKER_UNAVAILABLE", f"could not {doing}: the broker is away")

    def records(self, topic: str, partition: int | None = None) -> list[InMemoryRecord]:
        """Everything in a topic, or in one of its partitions, in log order."""
        log = self._topic(topic).log
        return list(itertools.chain(*log)) if partition is None else list(log[partition])

    def read(self, partition: TopicPartition, offset: int, limit: int) -> list[InMemoryRecord]:
        """Up to ``limit`` records from ``offset`` on."""
        return self._topic(partition.topic).log[partition.partition][offset : offset + limit]

    def end_offset(self, partition: TopicPartition) -> int:
        return len(self._topic(partition.topic).log[partition.partition])

    def committed_offset(self, group: str, partition: TopicPartition) -> int | None:
        """What a group has committed, as an administrator sees it."""
        return self._group(group).committed.get(partition)

    def committed_offsets(self, group: str) -> dict[TopicPartition, int]:
        """As `committed_offset`, of every partition."""
        return dict(self._group(group).committed)

    def partition_count(self, topic: str) -> int:
        return len(self._topic(topic).log)

    def _topic(self, name: str) -> _Topic:
        try:
            return self._topics[name]
        except KeyError:
            raise Retryable("TOPIC_MISSING", f"there is no topic {name}: run `seawall topics apply`") from None

    def configs(self, topics: Collection[str]) -> dict[str, Mapping[str, str]]:
        return {name: dict(self._topic(name).config) for name in topics}

    def counts(self, topics: Collection[str]) -> dict[str, int]:
        return {name: len(self._topics[name].log) for name in topics if name in self._topics}

    def create(self, specs: Sequence[TopicSpec]) -> None:
        """Make topics; one that exists already is left as it is."""
        for spec in specs:
            self._topics.setdefault(spec.name, _Topic(spec))

    def write(self, outputs: Sequence[Output], keyless: itertools.count[int]) -> None:
        """Append, stamped with the clock. Raises RecordTooLarge after writing the others."""
        self.require_available("write")
        failing = self._failures.pop(0) if self._failures else None
        if failing is False:
            raise Retryable("BROKER_UNAVAILABLE", "could not write: told to fail")
        placed = [(output, *self._place(output, keyless)) for output in outputs]
        now_ms = self._clock.now_nanos() // 1_000_000
        refused = []
        for output, topic, partition in placed:
            if _size(output) > topic.max_bytes:
                refused.append(output)
                continue
            log = topic.log[partition]
            headers = tuple(output.headers)
            log.append(InMemoryRecord(output.topic, partition, len(log), now_ms, output.key, output.value, headers))
        self.wake()
        if failing:
            raise Retryable("BROKER_UNAVAILABLE", "the acknowledgement was lost: told to fail")
        if refused:
            raise RecordTooLarge(refused)

    def _place(self, output: Output, keyless: itertools.count[int]) -> tuple[_Topic, int]:
        topic = self._topic(output.topic)
        count = len(topic.log)
        if output.partition is None:
            return topic, next(keyless) % count if output.key is None else partition_of(output.key, count)
        if not 0 <= output.partition < count:
            raise Fatal(
                "PARTITION_MISSING",
                f"{output.topic} has {count} partitions, so none of number {output.partition}: "
                "run `seawall topics check`; topics read together need the same number",
            )
        return topic, output.partition

    # Waking those that wait for something to change.

    def wake(self) -> None:
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def changed(self) -> None:
        """Wait for a write, a fault switched, a rebalance or a resume."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            await waiter
        finally:
            self._waiters.pop(waiter, None)


def _size(output: Output) -> int:
    headers = sum(len(name) + len(value) + 10 for name, value in output.headers)
    return _RECORD_OVERHEAD + len(output.key or b"") + len(output.value or b"") + headers


class InMemoryProducer:
    """A ``runtime.broker.Producer``."""

    def __init__(self, broker: InMemoryBroker) -> None:
        self._broker = broker
        self._keyless = itertools.count()
        self._started = False

    async def start(self) -> None:
        self._broker.require_available("start a producer")
        self._started = True

    async def stop(self) -> None:
        self._started = False

    async def send(self, outputs: Sequence[Output]) -> None:
        if not self._started:
            raise RuntimeError("the producer was not started, or is stopped")
        # Others run between a send and its acknowledgement, as they do with a real broker.
        await asyncio.sleep(0)
        if outputs:
            self._broker.write(outputs, self._keyless)


class InMemoryAdmin:
    """A ``runtime.broker.Admin``."""

    def __init__(self, broker: InMemoryBroker) -> None:
        self._broker = broker

    async def start(self) -> None:
        self._broker.require_available("connect to administer topics")

    async def stop(self) -> None:
        return None

    async def partitions(self, topics: Collection[str]) -> Mapping[str, int]:
        self._broker.require_available("list topics")
        return self._broker.counts(topics)

    async def configs(self, topics: Collection[str]) -> Mapping[str, Mapping[str, str]]:
        self._broker.require_available("read the topics' configuration")
        return self._broker.configs(topics)

    async def committed(self, group: str) -> Mapping[TopicPartition, int]:
        self._broker.require_available("read a group's offsets")
        return self._broker.committed_offsets(group)

    async def replicas(self, topics: Collection[str]) -> Mapping[TopicPartition, Replicas]:
        self._broker.require_available("list topics")
        counts = self._broker.counts(topics)
        return {TopicPartition(name, number): Replicas(1, 1) for name, n in counts.items() for number in range(n)}

    async def create(self, specs: Sequence[TopicSpec], replication_factor: int) -> None:
        self._broker.require_available("create topics")
        self._broker.create(specs)
