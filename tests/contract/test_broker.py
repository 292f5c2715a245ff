"""What a broker must do: one suite for the real one and its in-memory twin."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from seawall.core.clock import ManualClock
from seawall.core.errors import Fatal, Retryable
from seawall.local.kafka import EmbeddedKafka
from seawall.runtime.broker import (
    Broker,
    Consumer,
    Output,
    Producer,
    Record,
    RecordTooLarge,
    Replicas,
    TopicPartition,
    TopicSpec,
)
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.memory import InMemoryBroker
from seawall.runtime.murmur2 import partition_of
from tests.support.kafka import PATIENCE_SECONDS, client_settings, collect, unique


class Backend(ABC):
    """A broker under test and what only its kind can do."""

    broker: Broker

    async def topic(self, partitions: int = 2, config: Mapping[str, str] | None = None) -> str:
        name = unique("topic")
        admin = self.broker.admin()
        await admin.start()
        await admin.create([TopicSpec(name, partitions, config or {})], 1)
        await admin.stop()
        return name

    @asynccontextmanager
    async def producer(self) -> AsyncIterator[Producer]:
        producer = self.broker.producer()
        await producer.start()
        try:
            yield producer
        finally:
            await producer.stop()

    @asynccontextmanager
    async def running(self, consumer: Consumer) -> AsyncIterator[Consumer]:
        await consumer.start()
        try:
            yield consumer
        finally:
            await consumer.stop()

    async def write(self, *outputs: Output) -> None:
        async with self.producer() as producer:
            await producer.send(outputs)

    @abstractmethod
    async def take_away(self) -> None: ...

    @abstractmethod
    async def bring_back(self) -> None: ...


class _Memory(Backend):
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.memory = InMemoryBroker(self.clock)
        self.broker = self.memory

    async def take_away(self) -> None:
        self.memory.unavailable = True

    async def bring_back(self) -> None:
        self.memory.unavailable = False


class _Kafka(Backend):
    def __init__(self, kafka: EmbeddedKafka) -> None:
        self.kafka = kafka
        self.broker = KafkaBroker(client_settings(kafka.bootstrap_servers))

    async def take_away(self) -> None:
        await asyncio.to_thread(self.kafka.kill)

    async def bring_back(self) -> None:
        await asyncio.to_thread(self.kafka.start)


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def backend(request: pytest.FixtureRequest) -> Backend:
    return _Memory() if request.param == "memory" else _Kafka(request.getfixturevalue("kafka"))


@dataclass
class Listener:
    """Notes what it is told, and commits what it was given to commit when partitions are revoked."""

    consumer: Consumer | None = None
    offsets: dict[TopicPartition, int] = field(default_factory=dict)
    revoked: list[TopicPartition] = field(default_factory=list)
    assigned: list[TopicPartition] = field(default_factory=list)
    told: asyncio.Event = field(default_factory=asyncio.Event)

    async def on_revoked(self, revoked: Collection[TopicPartition]) -> None:
        self.revoked += revoked
        if self.consumer is not None:
            await self.consumer.commit({key: self.offsets[key] for key in revoked if key in self.offsets})

    async def on_assigned(self, assigned: Collection[TopicPartition]) -> None:
        self.assigned = list(assigned)
        self.told.set()


def output(topic: str, value: bytes, partition: int | None = 0, key: bytes | None = b"key") -> Output:
    return Output(topic, partition, key, value)


def values(records: Collection[Record]) -> list[bytes | None]:
    return [record.value for record in records]


async def until_assigned(consumer: Consumer, count: int) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(consumer.assignment()) != count:
            await consumer.poll(max_records=1, timeout=0.1)


async def retried(call: Callable[[], Awaitable[None]]) -> None:
    """As callers do: again, while it says so."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                return await call()
            except Retryable:
                await asyncio.sleep(0.1)


async def test_records_come_as_they_were_written(backend: Backend) -> None:
    topic = await backend.topic(config={"message.timestamp.type": "LogAppendTime"})
    headers = [("traceparent", b"00-1"), ("repeated", b"1"), ("repeated", b"2")]
    await backend.write(
        Output(topic, 0, b"k", b"v", headers), Output(topic, 0, None, b"no key"), Output(topic, 1, b"k", None)
    )

    async with backend.running(backend.broker.reader([topic])) as reader:
        records = sorted(await collect(reader, 3), key=lambda record: (record.partition, record.offset))

    assert [(r.topic, r.partition, r.offset, r.key, r.value) for r in records] == [
        (topic, 0, 0, b"k", b"v"),
        (topic, 0, 1, None, b"no key"),
        (topic, 1, 0, b"k", None),
    ]
    assert list(records[0].headers) == headers
    assert all(record.timestamp > 1_600_000_000_000 for record in records)


async def test_a_key_alone_chooses_the_partition_every_kafka_client_would(backend: Backend) -> None:
    topic = await backend.topic(partitions=5)
    keys = [f"generation-{number}".encode() for number in range(50)]
    await backend.write(*(output(topic, key, partition=None, key=key) for key in keys))

    async with backend.running(backend.broker.reader([topic])) as reader:
        records = await collect(reader, len(keys))

    assert {record.key: record.partition for record in records} == {key: partition_of(key, 5) for key in keys}


async def test_records_without_key_or_partition_are_spread(backend: Backend) -> None:
    topic = await backend.topic(partitions=3)
    await backend.write(*(output(topic, b"v", partition=None, key=None) for _ in range(9)))

    async with backend.running(backend.broker.reader([topic])) as reader:
        assert {record.partition for record in await collect(reader, 9)} == {0, 1, 2}


async def test_order_within_a_partition_is_the_order_sent(backend: Backend) -> None:
    topic = await backend.topic()
    # More than one batch's worth, so that batches have to follow each other in order.
    wanted = [str(number).encode().rjust(1_000, b".") for number in range(3_000)]
    async with backend.producer() as producer:
        await producer.send([output(topic, value) for value in wanted[:1_500]])
        await producer.send([output(topic, value) for value in wanted[1_500:]])

    async with backend.running(backend.broker.reader([topic])) as reader:
        assert values(await collect(reader, len(wanted))) == wanted


async def test_concurrent_sends_are_all_written_each_in_its_order(backend: Backend) -> None:
    topic = await backend.topic()
    async with backend.producer() as producer:
        sends = [[f"{call}/{number:02}".encode() for number in range(20)] for call in range(50)]
        await asyncio.gather(*(producer.send([output(topic, value) for value in send]) for send in sends))

    async with backend.running(backend.broker.reader([topic])) as reader:
        read = values(await collect(reader, 1_000))
    assert sorted(value or b"" for value in read) == sorted(value for send in sends for value in send)
    for send in sends:
        assert [value for value in read if value in send] == send


async def test_a_group_starts_at_the_earliest_and_resumes_where_it_committed(backend: Backend) -> None:
    topic, group = await backend.topic(partitions=1), unique("group")
    partition = TopicPartition(topic, 0)
    await backend.write(*(output(topic, str(number).encode()) for number in range(10)))

    async with backend.running(backend.broker.consumer(group, [topic])) as consumer:
        assert await consumer.committed(partition) is None
        assert len(await collect(consumer, 10)) == 10
        await consumer.commit({partition: 4})
        assert await consumer.committed(partition) == 4

    async with backend.running(backend.broker.consumer(group, [topic])) as consumer:
        assert values(await collect(consumer, 6)) == [b"4", b"5", b"6", b"7", b"8", b"9"]


async def test_a_poll_returns_at_most_max_records(backend: Backend) -> None:
    topic = await backend.topic(partitions=2)
    await backend.write(*(output(topic, str(number).encode(), partition=number % 2) for number in range(40)))
    async with backend.running(backend.broker.reader([topic])) as reader:
        read: list[Record] = []
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(read) < 40:
                polled = await reader.poll(max_records=7, timeout=1.0)
                assert sum(map(len, polled.values())) <= 7
                for partition, records in polled.items():
                    assert all((record.topic, record.partition) == tuple(partition) for record in records)
                    read += records
    for number in (0, 1):
        assert [record.offset for record in read if record.partition == number] == list(range(20))


async def test_an_empty_poll_returns_nothing(backend: Backend) -> None:
    topic = await backend.topic()
    async with backend.running(backend.broker.reader([topic])) as reader:
        assert not await reader.poll(max_records=10, timeout=0.05)
        assert not await reader.poll(max_records=10, timeout=0)


async def test_two_members_share_co_partitioned_topics_by_number(backend: Backend) -> None:
    topics = [await backend.topic(partitions=4), await backend.topic(partitions=4)]
    group = unique("group")
    async with backend.running(backend.broker.consumer(group, topics)) as first:
        assert first.assignment() == {TopicPartition(topic, number) for topic in topics for number in range(4)}
        async with backend.running(backend.broker.consumer(group, topics)) as second:
            await until_assigned(first, 4)
            await until_assigned(second, 4)
            for consumer in (first, second):
                numbers = [
                    {partition.partition for partition in consumer.assignment() if partition.topic == topic}
                    for topic in topics
                ]
                assert numbers[0] == numbers[1]
            assert not first.assignment() & second.assignment()
        # The second left: nothing waits for its session to end.
        await until_assigned(first, 8)


async def test_what_is_committed_on_revocation_is_where_the_next_owner_starts(backend: Backend) -> None:
    topic, group = await backend.topic(partitions=2), unique("group")
    await backend.write(*(output(topic, str(number).encode(), partition=number % 2) for number in range(10)))
    listener = Listener()
    first = backend.broker.consumer(group, [topic], listener=listener)
    listener.consumer = first
    async with backend.running(first):
        await collect(first, 10)
        listener.offsets = {TopicPartition(topic, 0): 3, TopicPartition(topic, 1): 3}
        async with backend.running(backend.broker.consumer(group, [topic])) as second:
            assert set(listener.revoked) == {TopicPartition(topic, 0), TopicPartition(topic, 1)}
            await until_assigned(second, 1)
            (theirs,) = second.assignment()
            assert [record.offset for record in await collect(second, 2)] == [3, 4]

            await until_assigned(first, 1)
            with pytest.raises(Retryable):
                await first.commit({theirs: 5})
            with pytest.raises(Retryable):
                first.seek(theirs, 0)


async def test_a_static_member_comes_back_without_disturbing_the_others(backend: Backend) -> None:
    topic, group = await backend.topic(partitions=2), unique("group")
    listener = Listener()
    await backend.write(*(output(topic, str(number).encode(), partition=number % 2) for number in range(8)))
    async with backend.running(backend.broker.consumer(group, [topic], instance="a", listener=listener)) as other:
        leaving = backend.broker.consumer(group, [topic], instance="b")
        await leaving.start()
        await until_assigned(leaving, 1)
        await until_assigned(other, 1)
        (mine,) = leaving.assignment()
        await leaving.commit({mine: 3})
        listener.revoked.clear()
        await leaving.stop()

        async with backend.running(backend.broker.consumer(group, [topic], instance="b")) as returned:
            assert returned.assignment() == {mine}
            assert [record.offset for record in await collect(returned, 1)] == [3]
            await other.poll(max_records=1, timeout=0.1)
            assert listener.revoked == []


async def test_paused_partitions_wait_and_lose_nothing(backend: Backend) -> None:
    topic = await backend.topic(partitions=2)
    held, flowing = TopicPartition(topic, 0), TopicPartition(topic, 1)
    async with backend.producer() as producer, backend.running(backend.broker.reader([topic])) as reader:
        await producer.send([output(topic, b"first", 0), output(topic, b"first", 1)])
        await collect(reader, 2)
        reader.pause([held])
        await producer.send([output(topic, b"held", 0), output(topic, b"flowing", 1)])
        assert values(await collect(reader, 1)) == [b"flowing"]
        assert not await reader.poll(max_records=10, timeout=0.3)

        reader.pause([flowing])
        assert not await reader.poll(max_records=10, timeout=0)
        reader.resume([held])
        assert values(await collect(reader, 1)) == [b"held"]


async def test_resume_ends_a_waiting_poll(backend: Backend) -> None:
    topic = await backend.topic(partitions=1)
    partition = TopicPartition(topic, 0)
    await backend.write(output(topic, b"v"))
    async with backend.running(backend.broker.reader([topic])) as reader:
        reader.pause([partition])
        assert not await reader.poll(max_records=1, timeout=0)
        waiting = asyncio.create_task(reader.poll(max_records=1, timeout=10 * PATIENCE_SECONDS))
        # Time to begin waiting; should it take longer, there is nothing to wake and the poll finds the record itself.
        await asyncio.sleep(0.01)
        reader.resume([partition])
        async with asyncio.timeout(PATIENCE_SECONDS):
            polled = await waiting
            assert polled or await collect(reader, 1)


async def test_a_record_too_large_is_named_and_the_others_are_written(backend: Backend) -> None:
    topic = await backend.topic(partitions=2, config={"max.message.bytes": "20000"})
    # Incompressible, so that the broker sees what was sent.
    noise = b"".join(partition_of(str(number).encode(), 256).to_bytes(1) for number in range(40_000))
    large = [output(topic, noise), output(topic, noise[::-1], 1)]
    outputs = [output(topic, b"before"), large[0], output(topic, b"after"), output(topic, b"other", 1), large[1]]
    async with backend.producer() as producer:
        with pytest.raises(RecordTooLarge) as refused:
            await producer.send(outputs)
        assert [id(refusal) for refusal in refused.value.outputs] == [id(refusal) for refusal in large]
        assert refused.value.reason == "RECORD_TOO_LARGE"
        # The partition goes on taking records.
        await producer.send([output(topic, b"later"), output(topic, b"later", 1)])

    async with backend.running(backend.broker.reader([topic])) as reader:
        records = await collect(reader, 5)
    assert values([record for record in records if record.partition == 0]) == [b"before", b"after", b"later"]
    assert values([record for record in records if record.partition == 1]) == [b"other", b"later"]


async def test_a_partition_that_does_not_exist_is_fatal(backend: Backend) -> None:
    topic = await backend.topic(partitions=2)
    async with backend.producer() as producer:
        with pytest.raises(Fatal, match="PARTITION_MISSING"):
            await producer.send([output(topic, b"v", partition=2)])


async def test_end_offsets_and_seek(backend: Backend) -> None:
    topic = await backend.topic(partitions=2)
    full, empty = TopicPartition(topic, 0), TopicPartition(topic, 1)
    await backend.write(*(output(topic, str(number).encode()) for number in range(5)))
    async with backend.running(backend.broker.reader([topic])) as reader:
        assert dict(await reader.end_offsets([full, empty])) == {full: 5, empty: 0}
        # Offsets by log time: the first record of that time or later; none where there is none.
        assert dict(await reader.offsets_at([full, empty], 0)) == {full: 0}
        assert dict(await reader.offsets_at([full, empty], 1 << 50)) == {}
        await collect(reader, 5)
        reader.seek(full, 2)
        assert values(await collect(reader, 3)) == [b"2", b"3", b"4"]


async def test_a_reader_from_the_end_sees_all_that_is_written_after_it_started(backend: Backend) -> None:
    topic = await backend.topic()
    await backend.write(output(topic, b"before"))
    async with backend.running(backend.broker.reader([topic], from_end=True)) as reader:
        await backend.write(output(topic, b"after"))
        assert values(await collect(reader, 1)) == [b"after"]
        with pytest.raises(RuntimeError):
            await reader.commit({TopicPartition(topic, 0): 1})


async def test_an_error_in_a_listener_comes_out_of_the_next_poll(backend: Backend) -> None:
    class Failing(Listener):
        async def on_assigned(self, assigned: Collection[TopicPartition]) -> None:
            raise Fatal("BROKEN_LISTENER", "as it must")

    topic = await backend.topic()
    async with backend.running(backend.broker.consumer(unique("group"), [topic], listener=Failing())) as consumer:
        with pytest.raises(Fatal, match="BROKEN_LISTENER"):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while True:
                    await consumer.poll(max_records=1, timeout=0.1)


async def test_no_record_comes_before_its_partition_is_taken_over(backend: Backend) -> None:
    """Whoever takes a partition over reads its state back first; a record that came earlier would find none."""
    released = asyncio.Event()

    class Slow(Listener):
        async def on_assigned(self, assigned: Collection[TopicPartition]) -> None:
            await super().on_assigned(assigned)
            await released.wait()

    topic = await backend.topic()
    await backend.write(*(output(topic, b"%d" % number) for number in range(10)))
    listener = Slow()
    consumer = backend.broker.consumer(unique("group"), [topic], listener=listener)
    starting = asyncio.create_task(consumer.start())
    async with asyncio.timeout(PATIENCE_SECONDS):
        await listener.told.wait()
        # The records are there and their partition is ours: time enough for a fetch.
        for _ in range(5):
            assert not await consumer.poll(max_records=10, timeout=0.3)
        released.set()
        await starting
        assert values(await collect(consumer, 10)) == [b"%d" % number for number in range(10)]
        await consumer.stop()


async def test_topics_are_created_once_and_described(backend: Backend) -> None:
    topic, absent = await backend.topic(partitions=3, config={"cleanup.policy": "compact"}), unique("absent")
    admin = backend.broker.admin()
    await admin.start()
    try:
        await admin.create([TopicSpec(topic, 5, {})], 1)
        assert dict(await admin.partitions([topic, absent])) == {topic: 3}
        config = (await admin.configs([topic]))[topic]
    finally:
        await admin.stop()
    assert config["cleanup.policy"] == "compact"
    assert int(config["max.message.bytes"]) > 0


async def test_an_administrator_sees_what_a_group_has_committed(backend: Backend) -> None:
    topic, group = await backend.topic(partitions=2), unique("group")
    admin = backend.broker.admin()
    await admin.start()
    try:
        assert await admin.committed(group) == {}
        async with backend.producer() as producer, backend.running(backend.broker.consumer(group, [topic])) as consumer:
            await producer.send([output(topic, b"one", partition=1)])
            await collect(consumer, 1)
            await consumer.commit({TopicPartition(topic, 1): 1})
        assert await admin.committed(group) == {TopicPartition(topic, 1): 1}
    finally:
        await admin.stop()


async def test_an_administrator_sees_every_partitions_copies(backend: Backend) -> None:
    topic = await backend.topic(partitions=2)
    admin = backend.broker.admin()
    await admin.start()
    try:
        found = await admin.replicas([topic, unique("absent")])
    finally:
        await admin.stop()
    assert found == {TopicPartition(topic, 0): Replicas(1, 1), TopicPartition(topic, 1): Replicas(1, 1)}


async def test_everything_says_retry_while_the_broker_is_away_and_recovers_unaided(backend: Backend) -> None:
    topic, group = await backend.topic(partitions=1), unique("group")
    partition = TopicPartition(topic, 0)
    async with backend.producer() as producer, backend.running(backend.broker.consumer(group, [topic])) as consumer:
        await producer.send([output(topic, b"before")])
        await collect(consumer, 1)
        await backend.take_away()
        try:
            with pytest.raises(Retryable):
                await producer.send([output(topic, b"meanwhile")])
            with pytest.raises(Retryable):
                await consumer.commit({partition: 1})
            with pytest.raises(Retryable):
                async with asyncio.timeout(PATIENCE_SECONDS):
                    while not await consumer.poll(max_records=10, timeout=0.2):
                        pass
            with pytest.raises(Retryable):
                await backend.broker.producer().start()
            with pytest.raises(Retryable):
                await backend.broker.consumer(group, [topic]).start()
        finally:
            await backend.bring_back()

        await retried(lambda: producer.send([output(topic, b"after")]))
        read: list[Record] = []
        async with asyncio.timeout(PATIENCE_SECONDS):
            while b"after" not in values(read):
                try:
                    for records in (await consumer.poll(max_records=10, timeout=0.2)).values():
                        read += records
                except Retryable:
                    continue
        await retried(lambda: consumer.commit({partition: 1}))
        assert await consumer.committed(partition) == 1
