"""An idempotent, acks=all producer with aiokafka.

Records go straight into batch builders, one open batch a partition; whatever is sent while a partition's batch is on
its way joins the next one, so batches grow with the load and nothing waits without a reason.

Two of aiokafka's habits are mended here. An idempotent producer retries for ever; so ``send`` has a deadline, and past
it the inner producer is dropped with all it holds, so that memory stays flat while the broker is away. A batch that the
broker refuses leaves a gap in the sequence numbers, after which that partition refuses everything; so the inner
producer is replaced after any refusal.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors

from seawall.core.errors import Fatal, Retryable, SeawallError
from seawall.runtime.broker import Output, RecordTooLarge
from seawall.runtime.kafka.connection import BROKER_ERRORS, client_options, meaning, start_failure
from seawall.runtime.murmur2 import partition_of
from seawall.runtime.settings import KafkaSettings

_log = logging.getLogger(__name__)

#: Keys and values that wait for their acknowledgement, bytes; above that ``send`` waits for room.
MAX_IN_FLIGHT_BYTES: Final = 32 * 1024 * 1024
#: What a record costs at most beside its key, value and headers, alone in its batch, bytes.
_RECORD_OVERHEAD = 100
_TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)
#: Topic and partition.
_Lane = tuple[str, int]
#: An output, and its place among those given to ``send``.
_Entry = tuple[int, Output]


class _Call:
    """One ``send``: how many of its batches are not acknowledged yet, and what went wrong."""

    __slots__ = ("done", "error", "pending", "refused")

    def __init__(self, done: asyncio.Future[None]) -> None:
        self.done = done
        self.pending = 0
        self.error: SeawallError | None = None
        self.refused: list[_Entry] = []

    def settle(self, error: SeawallError | None) -> None:
        """One of its batches has ended."""
        self.pending -= 1
        self.error = self.error or error
        if self.pending == 0:
            self.finish()

    def finish(self) -> None:
        if self.done.done():
            return
        if self.error is not None:
            self.done.set_exception(self.error)
        elif self.refused:
            self.done.set_exception(RecordTooLarge([output for _, output in sorted(self.refused, key=_index)]))
        else:
            self.done.set_result(None)


def _index(entry: _Entry) -> int:
    return entry[0]


def _bytes_of(outputs: Sequence[Output]) -> int:
    """At least what these outputs take in a request."""
    size = _RECORD_OVERHEAD * len(outputs)
    for _, _, key, value, headers in outputs:
        size += len(value or b"") + len(key or b"")
        for name, said in headers:
            size += len(name) + len(said) + 10
    return size


class _Batch:
    """Records of one partition that travel together, and the calls they belong to."""

    __slots__ = ("builder", "shares")

    def __init__(self, builder: Any) -> None:
        self.builder = builder
        self.shares: list[tuple[_Call, Sequence[_Entry]]] = []

    def extend(self, entries: Sequence[_Entry], call: _Call, now_ms: int) -> Sequence[_Entry]:
        """Take as many as fit, of a new batch at least the first. Returns the others."""
        append, fitted = self.builder.append, 0
        for _, (_, _, key, value, headers) in entries:
            if append(timestamp=now_ms, key=key, value=value, headers=list(headers)) is None:
                break
            fitted += 1
        if fitted:
            self.shares.append((call, entries[:fitted]))
            call.pending += 1
        return entries[fitted:]

    def settle(self, error: SeawallError | None) -> None:
        for call, _ in self.shares:
            call.settle(error)


class _Inner:
    """An aiokafka producer, and how many batches it has on their way."""

    __slots__ = ("client", "on_way", "retired")

    def __init__(self, client: Any) -> None:
        self.client = client
        self.on_way = 0
        self.retired = False


class KafkaProducer:
    """A ``runtime.broker.Producer``. ``send`` may be called concurrently."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._deadline = settings.delivery_timeout_ms / 1000
        self._linger = settings.linger_ms / 1000
        self._keyless = itertools.count()
        self._inner: _Inner | None = None
        self._starting = asyncio.Lock()
        # A lane has at most one batch on its way, full ones waiting behind it, and one that is being filled.
        self._on_way: dict[_Lane, _Batch] = {}
        self._full: dict[_Lane, deque[_Batch]] = {}
        self._open: dict[_Lane, _Batch] = {}
        self._lingering: asyncio.TimerHandle | None = None
        self._bytes = 0
        self._room: deque[asyncio.Future[None]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = False

    async def start(self) -> None:
        self._started = True
        try:
            await self._current()
        except BaseException:
            self._started = False
            raise

    async def stop(self) -> None:
        """Waits for what is being sent, at most the delivery deadline."""
        self._started = False
        self._end_linger()
        waiting = [call.done for batch in self._batches() for call, _ in batch.shares if not call.done.done()]
        if waiting:
            await asyncio.wait(waiting, timeout=self._deadline)
        inner, self._inner = self._inner, None
        if inner is not None:
            await self._close(inner)
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def send(self, outputs: Sequence[Output]) -> None:
        if not self._started:
            raise RuntimeError("the producer was not started, or is stopped")
        if not outputs:
            return
        size = _bytes_of(outputs)
        call = _Call(asyncio.get_running_loop().create_future())
        try:
            async with asyncio.timeout(self._deadline):
                await self._reserve(size)
                try:
                    inner = await self._current()
                    lanes = await self._lanes(inner, outputs)
                    # Where all together are small, none needs to be looked at.
                    check = size > self._settings.max_request_bytes
                    self._place(lanes, call, inner, check)
                    if self._linger:
                        self._begin_linger()
                    await self._flush([lane for lane in lanes if lane in self._full] if self._linger else lanes)
                    await call.done
                finally:
                    self._release(size)
        except TimeoutError as error:
            self._drop()
            raise Retryable(
                "BROKER_UNAVAILABLE",
                f"Kafka did not acknowledge within {self._deadline:.0f} s (kafka.delivery_timeout_ms): "
                "see whether it is up and has enough in-sync replicas",
            ) from error
        finally:
            call.done.cancel()

    # Where each output goes.

    async def _lanes(self, inner: _Inner, outputs: Sequence[Output]) -> dict[_Lane, list[_Entry]]:
        counts: dict[str, int] = {}
        lanes: dict[_Lane, list[_Entry]] = {}
        for index, output in enumerate(outputs):
            topic, partition, key, _, _ = output
            count = counts.get(topic, 0)
            if not count:
                try:
                    count = counts[topic] = len(await inner.client.partitions_for(topic))
                except BROKER_ERRORS as error:
                    raise meaning(error, f"write to {topic}") from error
            if partition is None:
                partition = next(self._keyless) % count if key is None else partition_of(key, count)
            elif not 0 <= partition < count:
                raise Fatal(
                    "PARTITION_MISSING",
                    f"{topic} has {count} partitions, so none of number {partition}: "
                    "run `seawall topics check`; topics read together need the same number",
                )
            lane = (topic, partition)
            entries = lanes.get(lane)
            if entries is None:
                entries = lanes[lane] = []
            entries.append((index, output))
        return lanes

    def _place(self, lanes: Mapping[_Lane, Sequence[_Entry]], call: _Call, inner: _Inner, check: bool) -> None:
        """Into batches."""
        now_ms = int(time.time() * 1000)
        # Held until all are placed, so that an early acknowledgement does not finish the call.
        call.pending += 1
        for lane, entries in lanes.items():
            left = self._small(entries, call) if check else entries
            while left:
                batch = self._open.get(lane)
                if batch is None:
                    batch = self._open[lane] = _Batch(inner.client.create_batch())
                left = batch.extend(left, call, now_ms)
                if left:
                    self._full.setdefault(lane, deque()).append(self._open.pop(lane))
        call.settle(None)

    def _small(self, entries: Sequence[_Entry], call: _Call) -> Sequence[_Entry]:
        """Those that a request may hold; the others are refused."""
        most = self._settings.max_request_bytes
        fitting: list[_Entry] = []
        for entry in entries:
            (fitting if _bytes_of((entry[1],)) <= most else call.refused).append(entry)
        return fitting

    # On their way, and back.

    async def _flush(self, lanes: Iterable[_Lane]) -> None:
        """Send the next batch of each lane that has none on its way."""
        for lane in lanes:
            if lane in self._on_way:
                continue
            batch = self._next(lane)
            if batch is None:
                continue
            self._on_way[lane] = batch
            inner: _Inner | None = None
            try:
                inner = await self._current()
                batch.builder.close()
                inner.on_way += 1
                sent = await inner.client.send_batch(batch.builder, lane[0], partition=lane[1])
            except (*BROKER_ERRORS, SeawallError) as error:
                self._arrived(lane, batch, inner, error)
            else:
                sent.add_done_callback(
                    lambda sent, lane=lane, batch=batch, inner=inner: self._arrived(
                        lane, batch, inner, kafka_errors.Cancelled() if sent.cancelled() else sent.exception()
                    )
                )

    def _next(self, lane: _Lane) -> _Batch | None:
        full = self._full.get(lane)
        if not full:
            return self._open.pop(lane, None)
        batch = full.popleft()
        if not full:
            del self._full[lane]
        return batch

    def _begin_linger(self) -> None:
        if self._lingering is None:
            loop = asyncio.get_running_loop()
            self._lingering = loop.call_later(self._linger, self._end_linger)

    def _end_linger(self) -> None:
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
            self._spawn(self._flush(list(self._open)))

    def _arrived(self, lane: _Lane, batch: _Batch, inner: _Inner | None, error: BaseException | None) -> None:
        if inner is not None:
            inner.on_way -= 1
            if error is not None:
                self._retire(inner)
            elif inner.retired and inner.on_way == 0:
                self._spawn(self._close(inner))
        if self._on_way.get(lane) is not batch:
            return  # dropped meanwhile: its calls were told
        del self._on_way[lane]
        if error is None:
            batch.settle(None)
        elif isinstance(error, _TOO_LARGE):
            self._refused(lane, batch, inner)
        else:
            batch.settle(meaning(error, f"write to {lane[0]}"))
        if lane in self._full or lane in self._open:
            self._spawn(self._flush((lane,)))

    def _refused(self, lane: _Lane, batch: _Batch, inner: _Inner | None) -> None:
        """The broker took nothing of the batch. One record alone is too large itself; several go again, each alone."""
        entries = [(call, entry) for call, share in batch.shares for entry in share]
        if len(entries) == 1 or inner is None:
            for call, entry in entries:
                call.refused.append(entry)
        else:
            now_ms = int(time.time() * 1000)
            alone = []
            for call, entry in entries:
                single = _Batch(inner.client.create_batch())
                single.extend([entry], call, now_ms)
                alone.append(single)
            # Ahead of whatever came later, so that the order given is kept.
            self._full.setdefault(lane, deque()).extendleft(reversed(alone))
        batch.settle(None)

    # The inner producer.

    async def _current(self) -> _Inner:
        if self._inner is not None:
            return self._inner
        async with self._starting:
            if self._inner is None:
                self._inner = await self._connect()
            return self._inner

    async def _connect(self) -> _Inner:
        settings = self._settings
        client = AIOKafkaProducer(
            **client_options(settings),
            acks="all",
            enable_idempotence=True,
            # Lingering is done here, by lane; aiokafka would wait once more.
            linger_ms=0,
            max_batch_size=settings.max_batch_bytes,
            max_request_size=settings.max_request_bytes,
            compression_type=None if settings.compression == "none" else settings.compression,
        )
        try:
            async with asyncio.timeout(settings.request_timeout_ms / 1000):
                await client.start()
        except BROKER_ERRORS as error:
            await client.stop()
            raise await start_failure(settings, error, "start a producer") from error
        except BaseException:
            await client.stop()
            raise
        return _Inner(client)

    def _retire(self, inner: _Inner) -> None:
        """Give it nothing more; close it when the last of its batches has arrived."""
        if self._inner is inner:
            self._inner = None
        inner.retired = True
        if inner.on_way == 0:
            self._spawn(self._close(inner))

    def _drop(self) -> None:
        """Give up everything that is not acknowledged, and the inner producer, which would hold on to it."""
        error = Retryable("BROKER_UNAVAILABLE", "Kafka does not acknowledge: what was being sent was given up")
        batches = list(self._batches())
        self._on_way.clear()
        self._full.clear()
        self._open.clear()
        for batch in batches:
            batch.settle(error)
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.retired = True
            self._spawn(self._close(inner, abandon=True))

    async def _close(self, inner: _Inner, *, abandon: bool = False) -> None:
        try:
            if abandon:
                # aiokafka has no public way to stop without delivering first.
                inner.client._message_accumulator.fail_all(kafka_errors.KafkaTimeoutError())
            async with asyncio.timeout(self._settings.request_timeout_ms / 1000):
                await inner.client.stop()
        except Exception as error:
            # It holds nothing that anybody waits for; its connections are closed below.
            _log.debug("a dropped producer did not stop cleanly: %s", type(error).__name__)
        finally:
            await inner.client.client.close()

    # Bounds.

    async def _reserve(self, size: int) -> None:
        """Wait for room in what may be in flight, first come first served; one larger than all of it goes alone."""
        while self._bytes and self._bytes + size > MAX_IN_FLIGHT_BYTES:
            turn = asyncio.get_running_loop().create_future()
            self._room.append(turn)
            await turn
        self._bytes += size

    def _release(self, size: int) -> None:
        self._bytes -= size
        while self._room:
            turn = self._room.popleft()
            if not turn.done():
                turn.set_result(None)

    def _batches(self) -> Iterable[_Batch]:
        yield from self._on_way.values()
        for full in self._full.values():
            yield from full
        yield from self._open.values()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
