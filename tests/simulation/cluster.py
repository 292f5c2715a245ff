"""The broker as one process sees it: late, forgetful, sometimes away; and gone for good once the process is killed.

Everything is done by the in-memory broker (seawall.runtime.memory); this stands between it and a room's engine. A
request is answered after a while, refused, carried out without the answer arriving, or carried out in part. A process
that is stopped (SIGSTOP) has its requests wait; one that is killed has none answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from seawall.api.control.v1 import control_pb2
from seawall.core.errors import Retryable
from seawall.runtime.broker import Output, RebalanceListener, Record, TopicPartition
from seawall.runtime.memory import InMemoryAdmin, InMemoryBroker, InMemoryProducer
from seawall.runtime.memory_group import InMemoryConsumer
from seawall.runtime.topics import TopicNames
from tests.simulation.checks import Checks

_T = TypeVar("_T")


@dataclass
class Faults:
    """How often what goes wrong, each from 0 to 1. All zero: a broker that works."""

    slow: float = 0.0
    refused: float = 0.0
    lost_ack: float = 0.0
    partial: float = 0.0
    commit_refused: float = 0.0
    commit_lost_ack: float = 0.0
    #: Of signals alone, whatever the producer is told: never written (the log was lost), written much later, or twice.
    signal_lost: float = 0.0
    signal_late: float = 0.0
    signal_twice: float = 0.0


class Cluster:
    """The one broker of a simulation, and what may go wrong with it now."""

    def __init__(self, broker: InMemoryBroker, names: TopicNames, checks: Checks, random: Random) -> None:
        self.broker = broker
        self.names = names
        self.checks = checks
        self.random = random
        self.faults = Faults()
        self._background: set[asyncio.Task[Any]] = set()
        self._late = broker.producer()

    def spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Something that goes on whatever becomes of the process that asked for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled():
            # Looked at by whoever asked, if there still is one.
            task.exception()

    async def end(self) -> None:
        """End what is still under way."""
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    async def latency(self) -> None:
        """What a request takes."""
        slow = self.random.random() < self.faults.slow
        await asyncio.sleep(self.random.uniform(0.1, 3.0) if slow else self.random.uniform(0.0005, 0.004))

    async def write(self, producer: InMemoryProducer, outputs: Sequence[Output]) -> None:
        """Write as asked, but for what befalls signals."""
        await producer.send([kept for output in outputs for kept in self._befall(output)])
        self.checks.read_new()

    def _befall(self, output: Output) -> list[Output]:
        if output.topic != self.names.signals:
            return [output]
        faults, chance = self.faults, self.random.random()
        if chance < faults.signal_lost + faults.signal_late:
            record = control_pb2.JoinRecord.FromString(output.value or b"")
            late = chance >= faults.signal_lost
            if late:
                self.spawn(self._later(output, self.random.uniform(1.0, 20.0)))
            elif not record.HasField("signal"):
                # Nothing but its record ends a wait: a log that loses Deadlines is beyond what is promised.
                return [output]
            if record.HasField("signal"):
                self.checks.lost_by_the_broker(record.signal)
            return []
        return [output] * (1 + (chance > 1.0 - faults.signal_twice))

    async def _later(self, output: Output, seconds: float) -> None:
        await asyncio.sleep(seconds)
        while self.broker.unavailable:  # noqa: ASYNC110  it is a switch
            await asyncio.sleep(1.0)
        await self._late.start()
        await self._late.send([output])
        self.checks.read_new()


class Connection:
    """A ``runtime.broker.Broker`` for one process, from its start to its end."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.dead = False
        #: True once the room has joined its group.
        self.joined = False
        self._running = asyncio.Event()
        self._running.set()
        self._gone = asyncio.Event()
        self.members: list[InMemoryConsumer] = []

    def kill(self) -> None:
        """No request of this process is answered from now on."""
        self.dead = True
        self._gone.set()
        self._running.set()
        for member in self.members:
            member.crash()

    def freeze(self) -> None:
        """As SIGSTOP does."""
        self._running.clear()

    def thaw(self) -> None:
        """As SIGCONT does."""
        self._running.set()

    async def turn(self) -> None:
        """Wait while the process is stopped. Raises Retryable once it is dead: nothing can come of it any more."""
        await self._running.wait()
        if self.dead:
            raise Retryable("KILLED", "this process is gone")

    async def through(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Let the broker finish what it has begun, though the process that asked is killed meanwhile."""
        return await asyncio.shield(self.cluster.spawn(work))

    async def unless_killed(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for this process to do something, for as long as it lives."""
        doing, gone = self.cluster.spawn(work), self.cluster.spawn(_wait(self._gone))
        await asyncio.wait((doing, gone), return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if doing.done():
            doing.result()
        else:
            doing.cancel()

    def consumer(
        self,
        group: str,
        topics: Sequence[str],
        *,
        instance: str | None = None,
        listener: RebalanceListener | None = None,
        commits: bool = True,
    ) -> SimulatedConsumer:
        gate = None if listener is None else _Gate(self, listener)
        member = self.cluster.broker.consumer(group, topics, instance=instance, listener=gate)
        self.members.append(member)
        return SimulatedConsumer(self, member, group)

    def reader(self, topics: Sequence[str], *, from_end: bool = False) -> SimulatedConsumer:
        return SimulatedConsumer(self, self.cluster.broker.reader(topics, from_end=from_end), "")

    def producer(self) -> SimulatedProducer:
        return SimulatedProducer(self)

    def admin(self) -> InMemoryAdmin:
        return self.cluster.broker.admin()


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


class _Gate:
    """A listener whose process may be stopped or dead."""

    def __init__(self, connection: Connection, listener: RebalanceListener) -> None:
        self._connection = connection
        self._listener = listener

    async def on_revoked(self, revoked: Collection[TopicPartition]) -> None:
        await self._tell(self._listener.on_revoked(revoked))

    async def on_assigned(self, assigned: Collection[TopicPartition]) -> None:
        await self._tell(self._listener.on_assigned(assigned))

    async def _tell(self, call: Coroutine[Any, Any, None]) -> None:
        try:
            await self._connection.turn()
        except Retryable:
            call.close()
            return
        await self._connection.unless_killed(call)


class SimulatedConsumer:
    """A ``runtime.broker.Consumer``."""

    def __init__(self, connection: Connection, inner: InMemoryConsumer, group: str) -> None:
        self._connection = connection
        self._cluster = connection.cluster
        self._inner = inner
        self._group = group
        self._committing = asyncio.Lock()

    async def start(self) -> None:
        await self._connection.turn()
        await self._connection.through(self._inner.start())
        self._connection.joined = True

    async def stop(self) -> None:
        if not self._connection.dead:
            await self._connection.through(self._inner.stop())

    async def poll(self, *, max_records: int, timeout: float) -> Mapping[TopicPartition, Sequence[Record]]:
        await self._connection.turn()
        some = max(1, min(max_records, int(self._cluster.random.expovariate(0.05)) + 1))
        return await self._connection.through(self._inner.poll(max_records=some, timeout=timeout))

    def assignment(self) -> frozenset[TopicPartition]:
        return self._inner.assignment()

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        self._inner.pause(partitions)

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        self._inner.resume(partitions)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._inner.seek(partition, offset)

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        await self._connection.turn()
        assigned = self._inner.assignment()
        # One connection: commits arrive in the order they were sent.
        async with self._committing:
            await self._cluster.latency()
            await self._connection.turn()
            if self._inner.assignment() is not assigned:
                raise Retryable("REBALANCED", "sent in an earlier generation of the group: fenced")
            await self._commit(offsets)

    async def _commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        cluster = self._cluster
        chance = cluster.random.random()
        if chance < cluster.faults.commit_refused:
            raise Retryable("NOT_NOW", "the commit was refused: told to")
        await self._inner.commit(offsets)
        cluster.checks.committed(self._group, offsets)
        if chance > 1.0 - cluster.faults.commit_lost_ack:
            raise Retryable("BROKER_UNAVAILABLE", "the answer to a commit was lost: told to")

    async def committed(self, partition: TopicPartition) -> int | None:
        await self._connection.turn()
        await self._cluster.latency()
        return await self._inner.committed(partition)

    async def end_offsets(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        await self._connection.turn()
        return await self._inner.end_offsets(partitions)

    async def offsets_at(self, partitions: Collection[TopicPartition], unix_ms: int) -> Mapping[TopicPartition, int]:
        await self._connection.turn()
        return await self._inner.offsets_at(partitions, unix_ms)


class SimulatedProducer:
    """A ``runtime.broker.Producer``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._cluster = connection.cluster
        self._inner = connection.cluster.broker.producer()

    async def start(self) -> None:
        await self._connection.turn()
        await self._inner.start()

    async def stop(self) -> None:
        return None

    async def send(self, outputs: Sequence[Output]) -> None:
        cluster, faults, turn = self._cluster, self._cluster.faults, self._connection.turn
        await turn()
        await cluster.latency()
        # Stopped or killed before the broker has it, or after, and before the process knows.
        await turn()
        chance = cluster.random.random()
        if chance < faults.refused:
            raise Retryable("BROKER_UNAVAILABLE", "a produce was refused: told to")
        if chance < faults.refused + faults.partial:
            await cluster.write(self._inner, outputs[: cluster.random.randrange(len(outputs) + 1)])
            raise Retryable("BROKER_UNAVAILABLE", "a produce was carried out in part: told to")
        await cluster.write(self._inner, outputs)
        await cluster.latency()
        await turn()
        if chance > 1.0 - faults.lost_ack:
            raise Retryable("BROKER_UNAVAILABLE", "an acknowledgement was lost: told to")
