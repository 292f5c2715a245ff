"""The broker seam: what rooms may ask of Kafka. ``runtime.kafka`` does it with aiokafka, ``runtime.memory`` in memory.

One contract suite (tests/contract/test_broker.py) runs against both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from seawall.core.errors import Poison


class TopicPartition(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


class Record(Protocol):
    """A record as it was read. Attribute names are aiokafka's, so that its own objects pass without a copy."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int:
        """Log time, Unix milliseconds."""
        ...

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


class Output(NamedTuple):
    """A record to write. ``partition`` None: Kafka's default partitioner (murmur2 of the key)."""

    topic: str
    partition: int | None
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


class RecordTooLarge(Poison):
    """Some outputs exceed what their topic takes; every other output of the same ``send`` was acknowledged.

    Args:
        outputs: the refused ones, the very objects that were given, in the order given.
    """

    def __init__(self, outputs: Sequence[Output]) -> None:
        topics = ", ".join(sorted({output.topic for output in outputs}))
        super().__init__(
            "RECORD_TOO_LARGE",
            f"{len(outputs)} record(s) exceed what {topics} takes: raise the topic's max.message.bytes and "
            "kafka.max_request_bytes, or send less",
        )
        self.outputs = tuple(outputs)


class RebalanceListener(Protocol):
    """Told about partitions inside the rebalance: the consumer waits for these calls before it goes on.

    An exception out of either is not swallowed: the consumer's next ``poll`` raises it.
    """

    async def on_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Last chance to commit these partitions (until this returns, commits are accepted). Not called for none."""
        ...

    async def on_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """These partitions are ours, from their committed offsets on."""
        ...


class Consumer(Protocol):
    """A member of a consumer group. Offsets are committed by hand; a group without offsets starts at the earliest."""

    async def start(self) -> None: ...
    async def stop(self) -> None:
        """Leave (a static member keeps its assignment until the session ends)."""
        ...

    async def poll(self, *, max_records: int, timeout: float) -> Mapping[TopicPartition, Sequence[Record]]:
        """Up to ``max_records`` records of partitions that are not paused, in offset order per partition.

        Waits up to ``timeout`` seconds for the first one; ``resume`` ends the wait. Must be called regularly, paused or
        not: it is the sign of life. Raises Retryable, after the wait, while the broker is away (noticed within seconds,
        and only where a partition is not paused); call it again, it recovers by itself.
        """
        ...

    def assignment(self) -> frozenset[TopicPartition]: ...
    def pause(self, partitions: Collection[TopicPartition]) -> None:
        """Hold these partitions back from the next poll on; a rebalance resumes them."""
        ...

    def resume(self, partitions: Collection[TopicPartition]) -> None: ...
    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Next poll of this partition starts at ``offset``. Raises Retryable if it is no longer ours."""
        ...

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit the next offset to read of each partition, all in one request.

        Raises Retryable when the broker did not take it (away, or rebalancing: the partitions may be another's now).
        """
        ...

    async def committed(self, partition: TopicPartition) -> int | None: ...
    async def end_offsets(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        """The offset the next record of each partition will get."""
        ...

    async def offsets_at(self, partitions: Collection[TopicPartition], unix_ms: int) -> Mapping[TopicPartition, int]:
        """The offset of each partition's first record of that log time or later; partitions without one are left
        out."""
        ...


class Producer(Protocol):
    """Idempotent, acks=all."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def send(self, outputs: Sequence[Output]) -> None:
        """Return once the broker has acknowledged every output; order per partition is the order given.

        Raises RecordTooLarge, naming the refused outputs, after all others were acknowledged; Retryable if the broker
        did not acknowledge in time (some may have been written).
        """
        ...


class TopicSpec(NamedTuple):
    """A topic as it must be."""

    name: str
    partitions: int
    config: Mapping[str, str]


class Replicas(NamedTuple):
    """Copies of a partition: how many there are to be, and how many are up to date."""

    wanted: int
    in_sync: int


class Admin(Protocol):
    """Topic administration."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def partitions(self, topics: Collection[str]) -> Mapping[str, int]:
        """Partition count of each topic that exists; absent ones are left out."""
        ...

    async def configs(self, topics: Collection[str]) -> Mapping[str, Mapping[str, str]]:
        """Effective configuration of each of these topics, which must exist."""
        ...

    async def committed(self, group: str) -> Mapping[TopicPartition, int]:
        """What a group has committed: the next offset to read of each partition it has ever committed."""
        ...

    async def replicas(self, topics: Collection[str]) -> Mapping[TopicPartition, Replicas]:
        """Copies of each partition of those topics that exist."""
        ...

    async def create(self, specs: Sequence[TopicSpec], replication_factor: int) -> None:
        """Create topics; one that exists already is left as it is."""
        ...


class Broker(Protocol):
    """A cluster: makes clients."""

    def consumer(
        self,
        group: str,
        topics: Sequence[str],
        *,
        instance: str | None = None,
        listener: RebalanceListener | None = None,
        commits: bool = True,
    ) -> Consumer:
        """A member of ``group``. ``instance``: static membership id, so that a restart does not rebalance. ``commits``:
        whether its lag is measured by what it commits; a member that commits nothing has none.

        All topics given must have the same number of partitions; partition n of each goes to the same member.
        """
        ...

    def reader(self, topics: Sequence[str], *, from_end: bool = False) -> Consumer:
        """A consumer outside any group that reads every partition of ``topics``; it cannot commit."""
        ...

    def producer(self) -> Producer: ...
    def admin(self) -> Admin: ...
