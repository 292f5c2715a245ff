"""A group member, or a reader of whole topics, with aiokafka.

Four of aiokafka's habits are mended here. A paused partition loses what was prefetched for it; so a pause is kept in
this class, and held-back partitions are merely not asked for. Records of a partition are handed out while its listener
is still taking it over; so it is paused in aiokafka until then. Errors in a rebalance listener are only logged; so they
are kept, and the next poll raises them. A broker that is away is retried in silence; so the time since the last answer
to a fetch is watched.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar, cast

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka import TopicPartition as KafkaTopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.coordinator.assignors.range import RangePartitionAssignor

from seawall.core.errors import Fatal, Retryable
from seawall.runtime.broker import RebalanceListener, Record, TopicPartition
from seawall.runtime.kafka.admin import KafkaAdmin
from seawall.runtime.kafka.connection import BROKER_ERRORS, client_options, meaning, start_failure
from seawall.runtime.progress import Progress
from seawall.runtime.settings import KafkaSettings

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

#: A broker that has not answered a fetch for so long, beyond the fetch's own wait, counts as away. Seconds.
_SILENCE_SECONDS = 3.0
#: How much longer than aiokafka's own timer we wait. It must go first: a poll that is cancelled leaves a future behind
#: until the next record comes.
_GRACE_SECONDS = 0.2
#: Asked for when every partition is held back: nothing is returned, but the member shows that it is alive.
_NOTHING = KafkaTopicPartition("", -1)


class KafkaConsumer:
    """A ``runtime.broker.Consumer``. Not for concurrent polls; every other method may be called meanwhile."""

    def __init__(
        self,
        settings: KafkaSettings,
        topics: Sequence[str],
        *,
        group: str | None = None,
        instance: str | None = None,
        listener: RebalanceListener | None = None,
        from_end: bool = False,
        commits: bool = True,
    ) -> None:
        self._settings = settings
        self._topics = list(topics)
        self._group = group
        self._instance = instance
        self._listener = listener
        self._from_end = from_end
        self._timeout = settings.request_timeout_ms / 1000
        self._silence = settings.fetch_max_wait_ms / 1000 + _SILENCE_SECONDS
        self._client: Any = None
        self._held_back: set[TopicPartition] = set()
        self._resumed = asyncio.Event()
        self._rebalancing = False
        self._failure: BaseException | None = None
        self._last_answer = 0
        self._last_answer_at = 0.0
        self._progress = Progress() if group is not None and commits else None

    async def start(self) -> None:
        settings = self._settings
        client = AIOKafkaConsumer(
            **client_options(settings),
            group_id=self._group,
            group_instance_id=self._instance,
            # Eager and stable: partition n of every topic of a member's group goes to one member.
            partition_assignment_strategy=(RangePartitionAssignor,),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=settings.session_timeout_ms,
            heartbeat_interval_ms=settings.heartbeat_interval_ms,
            max_poll_interval_ms=settings.max_poll_interval_ms,
            rebalance_timeout_ms=settings.rebalance_timeout_ms,
            fetch_min_bytes=settings.fetch_min_bytes,
            fetch_max_wait_ms=settings.fetch_max_wait_ms,
            fetch_max_bytes=settings.fetch_max_bytes,
            max_partition_fetch_bytes=settings.max_partition_fetch_bytes,
        )
        self._failure = None
        self._held_back.clear()
        if self._progress is not None:
            self._progress.tell()
        # Set before the join ends: the listener may already use the consumer.
        self._client = client
        try:
            async with asyncio.timeout(self._start_seconds()):
                if self._group is None:
                    await self._assign_all(client)
                else:
                    self._rebalancing = True
                    client.subscribe(self._topics, listener=_Listener(self))
                    await client.start()
        except BROKER_ERRORS as error:
            await self.stop()
            raise await start_failure(settings, error, f"start consuming {', '.join(self._topics)}") from error
        except BaseException:
            await self.stop()
            raise
        self._heard()

    def _start_seconds(self) -> float:
        """A join waits for the members there to commit and rejoin, or for a lost one's session to end."""
        settings = self._settings
        return (2 * settings.request_timeout_ms + settings.rebalance_timeout_ms + settings.session_timeout_ms) / 1000

    async def _assign_all(self, client: Any) -> None:
        admin = KafkaAdmin(self._settings)
        await admin.start()
        try:
            counts = await admin.partitions(self._topics)
        finally:
            await admin.stop()
        if absent := set(self._topics) - set(counts):
            raise Retryable("TOPIC_MISSING", f"no topic {', '.join(sorted(absent))}: run `seawall topics apply`")
        partitions = [KafkaTopicPartition(topic, number) for topic in self._topics for number in range(counts[topic])]
        await client.start()
        client.assign(partitions)
        if self._from_end:
            # Fixed now, not at the first fetch: what is written from here on must be seen.
            for partition, offset in (await client.end_offsets(partitions)).items():
                client.seek(partition, offset)

    async def stop(self) -> None:
        client, self._client = self._client, None
        if self._progress is not None:
            self._progress.tell_no_more()
        if client is None:
            return
        try:
            async with asyncio.timeout(self._timeout):
                await client.stop()
        except BROKER_ERRORS as error:
            # The group notices by itself when the session ends; a stop must not fail for it.
            _log.warning("consumer closed without leaving its group: %s", type(error).__name__)
        except asyncio.CancelledError:
            # aiokafka awaits fetches that it has itself cancelled, which it meets while the broker is away.
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            _log.warning("consumer closed without leaving its group: a fetch was on its way")

    async def poll(self, *, max_records: int, timeout: float) -> Mapping[TopicPartition, Sequence[Record]]:
        client = self._started()
        self._raise_failure()
        self._resumed.clear()
        try:
            if self._held_back:
                records = await self._poll_some(client, max_records, timeout)
            else:
                polling = client.getmany(timeout_ms=int(timeout * 1000), max_records=max_records)
                records = await _within(polling, timeout) or {}
        except BROKER_ERRORS as error:
            raise self._poll_failure(error) from error
        if not records:
            self._raise_failure()
            self._watch_silence(client)
        elif self._progress is not None:
            self._progress.read(records)
        return cast(Mapping[TopicPartition, Sequence[Record]], records)

    async def _poll_some(self, client: Any, max_records: int, timeout: float) -> dict[Any, Any]:
        """Poll the partitions that are not held back until records come, ``resume`` or a rebalance, or time is up."""
        wanted = [partition for partition in client.assignment() if partition not in self._held_back] or [_NOTHING]
        records: dict[Any, Any] = await _within(client.getmany(*wanted, max_records=max_records), timeout) or {}
        if records or timeout <= 0:
            return records
        polling = asyncio.ensure_future(
            client.getmany(*wanted, timeout_ms=int(timeout * 1000), max_records=max_records)
        )
        woken = asyncio.ensure_future(self._resumed.wait())
        try:
            await asyncio.wait((polling, woken), timeout=timeout + _GRACE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
            # A fetch that has not returned holds no records yet: nothing is lost with it.
            polling.cancel()
        await asyncio.wait((polling,))
        return {} if polling.cancelled() else polling.result()

    def _poll_failure(self, error: BaseException) -> BaseException:
        ours = meaning(error, "poll")
        # Of these aiokafka itself recovers; after anything else its coordination has stopped, without a way back.
        if isinstance(ours, Retryable) and not getattr(error, "retriable", True):
            return Fatal(
                "CONSUMER_BROKEN", f"the consumer of group {self._group} failed with {error}: restart the process"
            )
        return ours

    def _watch_silence(self, client: Any) -> None:
        if self._rebalancing:
            return
        fetched = [partition for partition in client.assignment() if partition not in self._held_back]
        answers = [client.last_poll_timestamp(partition) or 0 for partition in fetched]
        newest = max(answers, default=0)
        if not fetched or newest != self._last_answer:
            self._heard(newest)
        elif time.monotonic() - self._last_answer_at > self._silence:
            raise Retryable(
                "BROKER_UNAVAILABLE",
                f"no answer to a fetch for {self._silence:.1f} s: see whether Kafka is up; polling goes on by itself",
            )

    def _heard(self, answer: int = 0) -> None:
        self._last_answer = answer
        self._last_answer_at = time.monotonic()

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(TopicPartition(*partition) for partition in self._started().assignment())

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        self._held_back.update(partitions)

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        self._held_back.difference_update(partitions)
        self._resumed.set()

    def seek(self, partition: TopicPartition, offset: int) -> None:
        try:
            self._started().seek(KafkaTopicPartition(*partition), offset)
        except kafka_errors.IllegalStateError as error:
            raise _not_ours() from error

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        if not offsets:
            return
        self._need_group("commit")
        wanted = {KafkaTopicPartition(*partition): offset for partition, offset in offsets.items()}
        try:
            await self._call(lambda client: client.commit(wanted))
        except kafka_errors.IllegalStateError as error:
            raise _not_ours() from error
        except kafka_errors.CommitFailedError as error:
            raise Retryable(
                "REBALANCED", "the offsets were not committed: the group has rebalanced; poll to take part"
            ) from error
        except BROKER_ERRORS as error:
            raise meaning(error, "commit offsets") from error
        if self._progress is not None:
            self._progress.committed(offsets)

    async def committed(self, partition: TopicPartition) -> int | None:
        self._need_group("read committed offsets")
        try:
            offset: int | None = await self._call(lambda client: client.committed(KafkaTopicPartition(*partition)))
        except BROKER_ERRORS as error:
            raise meaning(error, "read a committed offset") from error
        return offset

    async def end_offsets(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        wanted = [KafkaTopicPartition(*partition) for partition in partitions]
        try:
            ends = await self._call(lambda client: client.end_offsets(wanted))
        except BROKER_ERRORS as error:
            raise meaning(error, "read end offsets") from error
        return {TopicPartition(*partition): offset for partition, offset in ends.items()}

    async def offsets_at(self, partitions: Collection[TopicPartition], unix_ms: int) -> Mapping[TopicPartition, int]:
        wanted = {KafkaTopicPartition(*partition): unix_ms for partition in partitions}
        if not wanted:
            return {}
        try:
            found = await self._call(lambda client: client.offsets_for_times(wanted))
        except BROKER_ERRORS as error:
            raise meaning(error, "look up offsets by time") from error
        return {TopicPartition(*partition): at.offset for partition, at in found.items() if at is not None}

    async def _call(self, call: Callable[[Any], Awaitable[Any]]) -> Any:
        """A call with a deadline: aiokafka's own retries have none while the broker is away."""
        async with asyncio.timeout(self._timeout):
            return await call(self._started())

    async def _revoked(self, revoked: Collection[KafkaTopicPartition]) -> None:
        self._rebalancing = True
        self._held_back.clear()
        self._resumed.set()
        if revoked and self._listener is not None:
            await self._guard(self._listener.on_revoked([TopicPartition(*partition) for partition in revoked]))
        if self._progress is not None:
            self._progress.revoked([TopicPartition(*partition) for partition in revoked])

    async def _assigned(self, assigned: Collection[KafkaTopicPartition]) -> None:
        try:
            if self._listener is not None:
                # Fetching has begun. Paused in aiokafka itself, nothing is handed out before the listener is done: it
                # may be reading the partitions' state back, and a record that came earlier would find none.
                self._started().pause(*assigned)
                await self._guard(self._listener.on_assigned([TopicPartition(*partition) for partition in assigned]))
                if self._failure is None:
                    self._go_on(assigned)
        finally:
            self._rebalancing = False
            self._heard()

    def _go_on(self, assigned: Collection[KafkaTopicPartition]) -> None:
        still_ours = self._started().assignment()
        self._started().resume(*(partition for partition in assigned if partition in still_ours))

    async def _guard(self, call: Awaitable[None]) -> None:
        try:
            await call
        except Exception as error:
            self._failure = self._failure or error
            self._resumed.set()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _need_group(self, doing: str) -> None:
        if self._group is None:
            raise RuntimeError(f"a reader belongs to no group: it cannot {doing}")

    def _started(self) -> Any:
        if self._client is None:
            raise RuntimeError("the consumer was not started, or is stopped")
        return self._client


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Collection[KafkaTopicPartition]) -> None:
        await self._consumer._revoked(revoked)

    async def on_partitions_assigned(self, assigned: Collection[KafkaTopicPartition]) -> None:
        await self._consumer._assigned(assigned)


async def _within(call: Awaitable[_T], timeout: float) -> _T | None:
    """The result, or None if there is none soon after ``timeout``: in a rebalance aiokafka waits without a limit."""
    try:
        async with asyncio.timeout(timeout + _GRACE_SECONDS):
            return await call
    except TimeoutError:
        return None


def _not_ours() -> Retryable:
    return Retryable("NOT_ASSIGNED", "the partition is not assigned to this member (any more): poll to take part")
