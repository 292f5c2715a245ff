"""The relay's engine: generations in, one RPC a micro-batch, signals out, the watermark behind them.

    1. poll                    consumer.poll, never more than there is room for
    2. accept                  decode, ask the stage for items; what is malformed is diverted (7)
    3. batch                   up to batch_size generations, at once when idle, else after linger
    4. call                    one RPC with what is left of the batch's budget; Retryable: again, then in halves, or one
                               by one where the server goes under it
    5. match                   replies to items by id; what is missing or not a number is ERROR
    6. produce                 signals, acks=all; only then is the generation done
    7. divert                  dead letter *and* ERROR signal, acknowledged together; a fuse stops a stage that would
                               divert everything
    8. commit                  the contiguous watermark, every commit_seconds and when partitions are revoked

A crash between any two steps repeats work and loses none: nothing is committed before its output is acknowledged, and
what is written twice has the same id.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.clock import Clock, SystemClock
from seawall.core.errors import Fatal, Poison, Retryable, SeawallError
from seawall.core.validate import generation_id_of, parse_generation
from seawall.relay import lifecycle
from seawall.relay.dead_letters import DeadLetters, Fuse
from seawall.relay.lifecycle import StreamEngine
from seawall.relay.offsets import OffsetTracker
from seawall.relay.settings import EngineSettings
from seawall.relay.signals import SignalWriter
from seawall.relay.stage import Stage, StageReply
from seawall.relay.work import Work
from seawall.runtime.broker import Broker, Output, Record, RecordTooLarge, TopicPartition
from seawall.runtime.telemetry import BatchSpan, TraceContext

_NANOS = 1_000_000_000
#: So many servers may go under an item that is sent alone, before it is given up.
_MOST_DEATHS = 2


class Observer(lifecycle.Observer, Protocol):
    """What the relay tells the outside; telemetry and the readiness file hang here."""

    def batch(self, records: Sequence[Record]) -> BatchSpan:
        """A batch goes into its RPC; the span is ended with it."""
        ...


class Call(Protocol):
    """One batched RPC: see seawall.runtime.rpc_client."""

    def __call__(
        self, request: Any, *, timeout: float, wait_for_ready: bool, context: TraceContext
    ) -> Awaitable[StageReply]:
        """Raises Poison when the request itself is refused, Retryable for anything another try may mend.

        ``context``: the trace context to pass on. ``wait_for_ready``: wait, inside the timeout, for a server that can
        be reached, rather than fail at once.
        """
        ...


@dataclass
class Stats:
    """Counts since the start."""

    read: int = 0
    scored: int = 0
    skipped: int = 0
    failed: int = 0
    diverted: int = 0
    batches: int = 0
    retries: int = 0


@dataclass
class _Partition:
    tracker: OffsetTracker = field(default_factory=OffsetTracker)
    committed: int | None = None


class Engine(StreamEngine):
    """Runs one stage's relay until it is told to stop.

    Args:
        call: the stage's RPC.
        signals_topic: name of signals.v1 in this lane.
    """

    def __init__(
        self,
        *,
        stage: Stage,
        broker: Broker,
        call: Call,
        dead_letters: DeadLetters,
        generations_topic: str,
        signals_topic: str,
        group: str,
        instance: str,
        member: str | None,
        settings: EngineSettings,
        observer: Observer,
        clock: Clock | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            consumer=broker.consumer(group, [generations_topic], instance=member, listener=self),
            producer=broker.producer(),
            retry_seconds=settings.retry_seconds,
            max_retry_seconds=settings.max_retry_seconds,
            revoke_seconds=settings.revoke_seconds,
        )
        self._observer: Observer = observer
        self._stage = stage
        self._topic = generations_topic
        self._call = call
        self._dead_letters = dead_letters
        self._settings = settings
        self._clock = clock or SystemClock()
        self._monotonic = monotonic
        self._writer = SignalWriter(stage=stage.name, topic=signals_topic, instance=instance)
        self._fuse = Fuse(window=settings.fuse_window, minimum=settings.fuse_minimum, share=settings.fuse_share)
        self._partitions: dict[TopicPartition, _Partition] = {}
        self._pending: deque[Work] = deque()
        self._in_flight = 0
        self._rpcs = 0
        self._room = asyncio.Event()
        self._linger: asyncio.TimerHandle | None = None
        self._next_commit = 0.0
        self.stats = Stats()

    # ---- life --------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ask ``run`` to end. Safe in a signal handler of the loop."""
        super().stop()
        self._room.set()

    async def _turn(self) -> None:
        await self._commit_if_due()
        room = self._settings.max_in_flight - self._in_flight
        if room > 0:
            await self._read(room, self._settings.poll_seconds)
        else:
            await self._wait_for_room()

    async def _read(self, most: int, timeout: float) -> None:
        """Poll once and take on what comes."""
        try:
            polled = await self._consumer.poll(max_records=most, timeout=timeout)
        except Retryable as error:
            self._observer.ready(False)
            self._observer.event("poll_failed", reason=error.reason)
            await self._pause(self._settings.max_retry_seconds)
            return
        self._tell_ready()
        received = self._clock.now_nanos()
        budget_end = self._monotonic() + self._settings.budget_seconds
        for partition, records in polled.items():
            state = self._partitions.get(TopicPartition(*partition))
            if state is None:
                continue  # revoked while the poll was on its way: its new owner reads them
            for record in records:
                self._accept(record, state.tracker, received, budget_end)
        self._dispatch()

    async def _wait_for_room(self) -> None:
        """Paused, but polling: the group must see a sign of life while a slow batch is out."""
        assigned = self._consumer.assignment()
        self._consumer.pause(assigned)
        self._room.clear()
        if self._in_flight >= self._settings.max_in_flight:
            try:
                await asyncio.wait_for(self._room.wait(), timeout=self._settings.commit_seconds)
            except TimeoutError:
                # Nothing comes of paused partitions. One that was assigned meanwhile is not paused: its record is one
                # above the bound, but to leave it aside would be to pass it over.
                await self._read(1, 0)
        # What was paused, not what is assigned by now: amid a rebalance that is nothing, and what comes back would stay
        # paused for ever.
        self._consumer.resume(assigned)

    async def _finish(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
        self._pending.clear()
        await super()._finish()

    # ---- accept, batch -----------------------------------------------------------------------------------------

    def _accept(self, record: Record, tracker: OffsetTracker, received: int, budget_end: float) -> None:
        tracker.read(record.offset)
        self.stats.read += 1
        try:
            generation = parse_generation(record.value)
            items = self._stage.items(generation)
        except Poison as error:
            self._divert(record, tracker, error, received)
            return
        if generation.HasField("deadline_time"):
            left = generation.deadline_time.seconds + generation.deadline_time.nanos / _NANOS - received / _NANOS
            budget_end = min(budget_end, self._monotonic() + left)
        self._in_flight += 1
        work = Work(record, tracker, generation, items, received, budget_end)
        if items:
            self._pending.append(work)
        elif self._stage.name in generation.required_stages:
            output = self._failed(work, "NOTHING_TO_SCAN", signal_pb2.ITEM_STATUS_SKIPPED)
            self._spawn(self._produce([output], [work]))
        else:
            self.stats.skipped += 1
            self._done(work)

    def _dispatch(self) -> None:
        """Send what may be sent now."""
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        size = self._settings.batch_size
        while self._pending and self._rpcs < self._settings.max_rpcs and self._fatal is None:
            if self._rpcs and len(self._pending) < size:
                # A clock that is set back meanwhile must not make it look again and again, without a pause.
                waited = max((self._clock.now_nanos() - self._pending[0].received) / _NANOS, 0.0)
                if waited < self._settings.linger_seconds:
                    delay = self._settings.linger_seconds - waited
                    self._linger = asyncio.get_running_loop().call_later(delay, self._dispatch)
                    return
            batch = [self._pending.popleft() for _ in range(min(size, len(self._pending)))]
            self._rpcs += 1
            self._spawn(self._carry(batch))

    def _halt(self, error: SeawallError) -> None:
        super()._halt(error)
        self._room.set()

    # ---- call, match, produce ----------------------------------------------------------------------------------

    async def _carry(self, batch: list[Work]) -> None:
        batched = self._clock.now_nanos()
        try:
            await self._score(batch, batched)
        finally:
            self._rpcs -= 1
            self._dispatch()

    async def _score(
        self,
        batch: list[Work],
        batched: int,
        failures: int = 0,
        *,
        deaths: int = 0,
        put_off: list[Work] | None = None,
    ) -> None:
        """Score a batch within its budget; part it when it keeps failing, so that one bad item is left alone.

        Args:
            deaths: how often a server that was there has gone under what is alone in this batch.
            put_off: where to leave what is alone and fails, instead of trying it again.
        """
        settings = self._settings
        delay = settings.retry_seconds
        while batch := await self._drop_overdue(batch):
            for work in batch:
                work.attempts += 1
            left = min(work.budget_end for work in batch) - self._monotonic()
            sent = self._clock.now_nanos()
            error: SeawallError
            reply: StageReply | None = None
            with self._observer.batch([work.record for work in batch]) as span:
                try:
                    # The first attempt fails fast, so that another server may be tried. Later ones wait for a server
                    # that is there: what still fails then failed *because* of what was sent.
                    reply = await self._call(
                        self._request(batch),
                        timeout=max(left, 0.001),
                        wait_for_ready=failures > 0,
                        context=span.context,
                    )
                except (Poison, Retryable) as failed:
                    # Its traceback holds this frame, which would hold it: garbage, and in it a batch.
                    error = failed.with_traceback(None)
                    span.fail(failed.reason)
            if reply is not None:
                await self._emit(batch, reply, batched, sent)
                return
            failures += 1
            deaths += failures > 1 and error.reason == "UNAVAILABLE"
            self.stats.retries += 1
            self._observer.event("rpc_failed", reason=error.reason, items=len(batch), attempt=batch[0].attempts)
            if len(batch) == 1:
                if isinstance(error, Poison):
                    await self._divert_scored(batch[0], error)
                    return
                if put_off is not None:
                    put_off += batch
                    return
                # An overloaded service has not even looked at it; to give up would only make another attempt, and load.
                spent = batch[0].attempts >= settings.max_attempts and error.reason != "RESOURCE_EXHAUSTED"
                if spent or deaths >= _MOST_DEATHS:
                    await self._give_up(batch, error.reason)
                    return
            elif failures >= 2 and error.reason == "UNAVAILABLE":
                await self._score_one_by_one(batch, batched)
                return
            elif isinstance(error, Poison) or (failures >= 2 and error.reason != "RESOURCE_EXHAUSTED"):
                half = len(batch) // 2
                await self._score(batch[:half], batched, 1)
                await self._score(batch[half:], batched, 1)
                return
            await self._pause(delay * random.uniform(0.5, 1.0))
            if self._stopping.is_set():
                return  # not done: the next owner scores them
            delay = min(delay * 2, settings.max_retry_seconds)

    async def _score_one_by_one(self, batch: list[Work], batched: int) -> None:
        """Something in it ends the server, and each death costs a restart: what fails alone waits for the others."""
        deadly: list[Work] = []
        for work in batch:
            await self._score([work], batched, 1, put_off=deadly)
        for work in deadly:
            await self._score([work], batched, 1, deaths=1)

    async def _drop_overdue(self, batch: list[Work]) -> list[Work]:
        """Answer for the works whose budget is spent; return the others."""
        now = self._monotonic()
        overdue = [work for work in batch if work.budget_end <= now]
        if overdue:
            await self._give_up(overdue, "BUDGET_SPENT")
            return [work for work in batch if work.budget_end > now]
        return batch

    def _request(self, batch: list[Work]) -> Any:
        request, add = self._stage.request_type(), self._stage.add
        number = 0
        for work in batch:
            add(request, work.generation, number)
            number += len(work.items)
        return request

    async def _emit(self, batch: list[Work], reply: StageReply, batched: int, sent: int) -> None:
        outputs = self._writer.scored(reply, batch, batched=batched, sent=sent, produced=self._clock.now_nanos())
        self.stats.batches += 1
        self.stats.scored += len(batch)
        self._fuse.passed(len(batch))
        await self._produce(outputs, batch)

    async def _give_up(self, batch: list[Work], reason: str) -> None:
        self.stats.failed += len(batch)
        self._observer.event("gave_up", reason=reason, items=len(batch))
        await self._produce([self._failed(work, reason) for work in batch], batch)

    def _failed(
        self, work: Work, reason: str, status: signal_pb2.ItemStatus.ValueType = signal_pb2.ITEM_STATUS_ERROR
    ) -> Output:
        return self._writer.failed(
            work.record,
            work.generation,
            work.items,
            reason,
            status=status,
            received=work.received,
            produced=self._clock.now_nanos(),
            attempts=work.attempts,
        )

    async def _produce(self, outputs: list[Output], batch: list[Work]) -> None:
        """Write one output for each work; a generation is done once its output is acknowledged."""
        try:
            await self._send(outputs)
        except RecordTooLarge as refused:
            by_output = {id(output): work for output, work in zip(outputs, batch, strict=True)}
            for output in refused.outputs:
                await self._divert_scored(by_output.pop(id(output)), refused)
            batch = list(by_output.values())
        for work in batch:
            work.tracker.done(work.record.offset)
        self._in_flight -= len(batch)
        self._room.set()

    def _done(self, work: Work) -> None:
        work.tracker.done(work.record.offset)
        self._in_flight -= 1
        self._room.set()

    # ---- divert ------------------------------------------------------------------------------------------------

    def _divert(self, record: Record, tracker: OffsetTracker, error: Poison, received: int) -> None:
        """Set a malformed record aside; its id can only come from its key."""
        generation_id = generation_id_of(record.key, record.topic, record.partition, record.offset)
        generation = generation_pb2.Generation(generation_id=generation_id)
        self._in_flight += 1
        work = Work(record, tracker, generation, (), received, 0.0)
        self._spawn(self._divert_scored(work, error))

    async def _divert_scored(self, work: Work, error: Poison) -> None:
        try:
            self._fuse.check()
        except Fatal as tripped:
            self._halt(tripped)
            return  # not done: the watermark stays below it
        self._fuse.diverted()
        self.stats.diverted += 1
        self._observer.event(
            "diverted", reason=error.reason, partition=work.record.partition, offset=work.record.offset
        )
        await self._send([self._dead_letters.output(work.record, error), self._failed(work, error.reason)])
        self._done(work)

    # ---- commit ------------------------------------------------------------------------------------------------

    async def _commit_if_due(self) -> None:
        now = self._monotonic()
        if now >= self._next_commit:
            self._next_commit = now + self._settings.commit_seconds
            await self._commit(list(self._partitions))

    async def _commit(self, partitions: Collection[TopicPartition]) -> None:
        offsets = {}
        for partition in partitions:
            state = self._partitions.get(partition)
            if state is None:
                continue
            watermark = state.tracker.watermark
            if watermark is not None and watermark != state.committed:
                offsets[partition] = watermark
        if not offsets:
            return
        try:
            await self._consumer.commit(offsets)
        except Retryable as error:
            # Refused means "not yours any more" or "not now". Either way the offsets are offered again while they are
            # ours, at the pace of commit_seconds: never in a loop.
            self._observer.event("commit_refused", reason=error.reason)
            return
        for partition, offset in offsets.items():
            if (state := self._partitions.get(partition)) is not None:
                state.committed = offset

    async def on_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Let what is in flight end, commit, forget. What was not yet sent is the next owner's."""
        going = {TopicPartition(*partition) for partition in revoked}
        kept: deque[Work] = deque()
        for work in self._pending:
            if TopicPartition(work.record.topic, work.record.partition) in going:
                self._in_flight -= 1
            else:
                kept.append(work)
        self._pending = kept
        await self._tasks_end()
        await self._commit(going)
        for partition in going:
            self._partitions.pop(partition, None)
        self._room.set()

    async def on_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Begin at the committed offsets."""
        for partition in assigned:
            self._partitions[TopicPartition(*partition)] = _Partition()
