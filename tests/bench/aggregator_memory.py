"""Aggregator: resident memory over two million generations, which must not grow once everything is warm.

The room's own engine, policy with 20 rules more and tracing, between a source that makes records as they are asked for
and a sink that forgets them: what is in memory is the aggregator's. Kafka's clients are not in it; `bench aggregator`
has them. Three signals a generation, one in fifty not ALLOW; one in a hundred comes twice, one in a hundred has a late
signal, and one in a thousand lacks a stage: Deadlines, HOLDs and next attempts go round as they do through Kafka. Time
is the records' own, 8,000 generations a second.

    GENERATIONS=200000 ./scripts/bench aggregator_memory      a short run
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import cast

from seawall.aggregator.engine import Engine
from seawall.aggregator.service import COLLECT_AFTER
from seawall.aggregator.settings import JoinSettings, TraceSettings
from seawall.aggregator.traces import AggregatorObserver
from seawall.api.control.v1 import control_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core import identity
from seawall.core.policy import Rollout
from seawall.core.wire import tag, varint
from seawall.relay.dead_letters import DeadLetters
from seawall.runtime import telemetry
from seawall.runtime.broker import Broker, Output, RebalanceListener, TopicPartition
from seawall.runtime.memory import InMemoryRecord
from seawall.runtime.sealing import Sealer
from seawall.runtime.settings import TelemetrySettings
from seawall.runtime.topics import TopicNames
from tests.bench.aggregator import PARTITIONS, _generation, _signals, policy
from tests.bench.harness import Report, resident_mb, say

GENERATIONS = int(os.environ.get("GENERATIONS", "2000000"))
#: By then what is remembered of the past is full: `join.remember` of every partition.
WARM = 400_000
_LOOKS = 10
#: One in so many lacks a stage.
_LACKING = 1_000
_A_SECOND = 8_000
_POLL = 500
_BEGIN_MS = 1_700_000_000_000
_NAMES = TopicNames("")


async def run(report: Report) -> None:
    """Drive the generations through; look at the process's memory now and then."""
    with tempfile.TemporaryDirectory(prefix="seawall-bench-") as name:
        folder = Path(name)
        telemetry.setup(TelemetrySettings(spans_file=folder / "spans.jsonl"), "aggregator", "aggregator-0")
        stream = Stream(GENERATIONS)
        engine = Engine(
            broker=cast(Broker, stream),  # of a broker, all that the engine asks for
            rollout=Rollout.load(policy(folder)),
            dead_letters=DeadLetters(
                room="aggregator",
                instance="aggregator-0",
                topic=_NAMES.dead_letters,
                sealer=Sealer.load_or_create(folder / "sealing.json"),
                clock=stream,
            ),
            generations_topic=_NAMES.generations,
            signals_topic=_NAMES.signals,
            decisions_topic=_NAMES.decisions,
            group="aggregator",
            member=None,
            settings=JoinSettings(recall=0),
            observer=AggregatorObserver("aggregator", _NAMES, TraceSettings()),
            clock=stream,
            monotonic=stream.seconds,
        )
        stream.ended = engine.stop
        # As the room's process does.
        gc.collect()
        gc.freeze()
        gc.set_threshold(COLLECT_AFTER)
        try:
            await engine.run()
        finally:
            telemetry.shutdown()
    if not stream.memory:
        raise RuntimeError(f"warm after {WARM:,} generations: {GENERATIONS:,} are too few")
    report.add("generations decided", stream.decided, unit="attempts")
    report.add("Deadlines, next attempts", engine.stats.deadlines + engine.stats.rescans)
    report.add("resident memory when warm", stream.memory[0], unit="MB")
    report.add("resident memory at the end", stream.memory[-1], unit="MB")
    report.add(f"most it grew by, {WARM:,} to {GENERATIONS:,}", max(stream.memory) - stream.memory[0], 10, "<=", "MB")


class Stream:
    """generations.v1 and signals.v1 as a broker, its consumer, its producer and its clock: made when they are polled,
    forgotten when they are read. What the aggregator writes to them comes back."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._number = 0
        self._offsets: dict[TopicPartition, int] = {}
        self._pending: dict[TopicPartition, list[InMemoryRecord]] = {}
        self._templates = _Templates()
        self._idle_seconds = 0.0
        self._listener: RebalanceListener | None = None
        #: Attempts that a decision was written of.
        self.decided: int = 0
        #: MB, at each look from when everything is warm.
        self.memory: list[float] = []
        self.ended: Callable[[], None] = lambda: None

    # ---- a clock -----------------------------------------------------------------------------------------------

    def seconds(self) -> float:
        """The records' own time."""
        return self._number / _A_SECOND + self._idle_seconds

    def now_nanos(self) -> int:
        return _BEGIN_MS * 1_000_000 + int(self.seconds() * 1e9)

    # ---- a broker, and a consumer ------------------------------------------------------------------------------

    def consumer(self, *_: object, listener: RebalanceListener, **__: object) -> Stream:
        self._listener = listener
        return self

    def producer(self) -> Stream:
        return self

    async def start(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            topics = (_NAMES.generations, _NAMES.signals)
            await listener.on_assigned([TopicPartition(topic, n) for topic in topics for n in range(PARTITIONS)])

    async def stop(self) -> None:
        return None

    async def poll(self, **given: object) -> Mapping[TopicPartition, Sequence[InMemoryRecord]]:
        if self._number < self._count:
            for _ in range(_POLL):
                self._make(self._number)
                self._number += 1
            self._look()
        elif not self._pending:
            if self.decided >= self._count + self._count // _LACKING:
                self.ended()
            # What is open waits for its Deadline.
            self._idle_seconds += 0.25
            if self._idle_seconds > 600:
                raise RuntimeError(f"{self.decided:,} attempts were decided, and no more are")
        polled, self._pending = self._pending, {}
        return polled

    def pause(self, partitions: Collection[TopicPartition]) -> None:
        if partitions:
            raise RuntimeError("the aggregator is full: the stream is not what this benchmark takes it for")

    def resume(self, partitions: Collection[TopicPartition]) -> None:
        return None

    async def committed(self, partition: TopicPartition) -> int | None:
        return None

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        return None

    # ---- a producer --------------------------------------------------------------------------------------------

    async def send(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            partition, value = output.partition or 0, output.value or b""
            if output.topic == _NAMES.decisions:
                self.decided += 1
                continue
            offset = self._write(output.topic, partition, value)
            if output.topic == _NAMES.generations:
                generation = generation_pb2.Generation.FromString(value)
                for template in self._templates.signals[:3]:
                    self._write_signal(template, generation.generation_id, generation.attempt, partition, offset)

    # ---- the records -------------------------------------------------------------------------------------------

    def _make(self, number: int) -> None:
        templates, partition = self._templates, number % PARTITIONS
        generation_id = f"01933a7c-{number:012d}"
        prompt, hashing, classification = templates.signals[:3]
        if number % 50 == 0:
            prompt = templates.blocked
        stages = [prompt, hashing] if number % _LACKING == 4 else [prompt, hashing, classification]
        if number % 100 == 1:
            stages.append(templates.retroactive if number % 1_000 == 1 else templates.signals[3])
        for _ in range(2 if number % 100 == 3 else 1):
            offset = self._write(_NAMES.generations, partition, templates.generation(generation_id))
            for template in stages:
                self._write_signal(template, generation_id, 1, partition, offset)

    def _write_signal(self, template: bytes, generation_id: str, attempt: int, partition: int, offset: int) -> None:
        own = signal_pb2.Signal(
            # Of the stage or not makes no difference here, as long as no two are the same.
            signal_id=identity.signal_id(generation_id, attempt, str(hash(template))),
            generation_id=generation_id,
            attempt=attempt,
            generation_record=generation_pb2.RecordCoordinates(partition=partition, offset=offset),
        ).SerializeToString()
        value = b"".join((_SIGNAL_TAG, varint(len(template) + len(own)), template, own))
        self._write(_NAMES.signals, partition, value)

    def _write(self, topic: str, number: int, value: bytes) -> int:
        at = TopicPartition(topic, number)
        offset = self._offsets.get(at, 0)
        self._offsets[at] = offset + 1
        now_ms = self.now_nanos() // 1_000_000
        headers = (("traceparent", b"00-%032x-%016x-01" % (offset + 1, offset + 1)),)
        self._pending.setdefault(at, []).append(InMemoryRecord(topic, number, offset, now_ms, b"key", value, headers))
        return offset

    def _look(self) -> None:
        every = max(_POLL, (self._count - WARM) // _LOOKS // _POLL * _POLL)
        if self._number >= WARM and (self._number - WARM) % every == 0:
            self.memory.append(resident_mb(os.getpid()))
            say(f"{self._number:,} generations: {self.memory[-1]:.1f} MB")


class _Templates:
    """Records' values but for the fields that differ, which are appended: protobuf merges them."""

    def __init__(self) -> None:
        whole = _generation(1)
        whole.ClearField("generation_id")
        self._generation = whole.SerializeToString()
        made = [record.signal for record in _signals(1)]
        late = signal_pb2.Signal()
        late.CopyFrom(made[2])
        late.stage = "another"
        found = signal_pb2.Signal()
        found.CopyFrom(late)
        found.caused_by.topic = "bank_entries.v1"
        #: Of the three stages, and of one that nobody waits for.
        self.signals = [_common(one) for one in (*made, late)]
        self.blocked = _common(next(_signals(50)).signal)
        self.retroactive = _common(found)

    def generation(self, generation_id: str) -> bytes:
        key = generation_id.encode()
        return b"".join((self._generation, _GENERATION_ID_TAG, varint(len(key)), key))


def _common(signal: signal_pb2.Signal) -> bytes:
    for own in ("signal_id", "generation_id", "attempt"):
        signal.ClearField(own)
    signal.generation_record.ClearField("partition")
    signal.generation_record.ClearField("offset")
    return signal.SerializeToString()


_SIGNAL_TAG = tag(control_pb2.JoinRecord.SIGNAL_FIELD_NUMBER, 2)
_GENERATION_ID_TAG = tag(generation_pb2.Generation.GENERATION_ID_FIELD_NUMBER, 2)
