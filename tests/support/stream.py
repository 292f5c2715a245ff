"""The relay's and the aggregator's engines on the in-memory broker, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opentelemetry.trace import SpanKind

from seawall.aggregator.engine import Engine as Aggregator
from seawall.aggregator.settings import AggregatorSettings, JoinSettings
from seawall.api.control.v1 import control_pb2
from seawall.api.dead_letter.v1 import dead_letter_pb2
from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.prompt_scoring.v1 import prompt_scoring_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.clock import Clock, SystemClock
from seawall.core.decide import Written
from seawall.core.errors import SeawallError
from seawall.core.policy import Rollout
from seawall.relay.dead_letters import DeadLetters
from seawall.relay.engine import Engine as Relay
from seawall.relay.settings import EngineSettings
from seawall.relay.stage import StageItem
from seawall.runtime.broker import Broker, Output, Producer, TopicPartition
from seawall.runtime.memory import InMemoryBroker, InMemoryRecord
from seawall.runtime.sealing import Sealer
from seawall.runtime.telemetry import BatchSpan, batch_span
from seawall.runtime.topics import TopicNames, plan

NAMES = TopicNames("")
PATIENCE_SECONDS = 20.0

Reply = prompt_scoring_pb2.ScorePromptsResponse
Request = prompt_scoring_pb2.ScorePromptsRequest


class PromptStage:
    """prompt_scoring's shape, with no packs behind it."""

    name = "prompt_scoring"
    method = "/seawall.api.prompt_scoring.v1.PromptScoringService/ScorePrompts"
    request_type = Request
    response_type = Reply

    def items(self, generation: generation_pb2.Generation) -> Sequence[StageItem]:
        if not generation.HasField("prompt"):
            return []
        return [StageItem("prompt", generation_pb2.NEXUS_ATTEMPT)]

    def add(self, request: Request, generation: generation_pb2.Generation, number: int) -> None:
        request.items.add(id=number, generation_id=generation.generation_id, prompt=generation.prompt)


def answer(request: Request, score: float = 0.1) -> Reply:
    """A reply with one label an item."""
    reply = Reply(service_instance="test", inference_start_unix_nano=1, inference_end_unix_nano=2)
    for item in request.items:
        result = reply.replies.add(id=item.id, work_nanos=1).result
        result.status = signal_pb2.ITEM_STATUS_OK
        result.labels.add(label="minor_sexual", score=score)
    return reply


@dataclass
class Seen:
    """An observer that remembers."""

    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    decisions: list[decision_pb2.Decision] = field(default_factory=list)
    is_ready: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def batch(self, records: object) -> BatchSpan:
        return batch_span("process", SpanKind.CONSUMER)

    def event(self, name: str, **fields: Any) -> None:
        self.events.append((name, fields))
        self.changed.set()

    def ready(self, ready: bool) -> None:
        if ready != self.is_ready:
            self.is_ready = ready
            self.changed.set()

    def decided(self, decisions: Sequence[Written]) -> None:
        self.decisions += [written.whole() for written in decisions]
        self.changed.set()

    def named(self, name: str) -> list[dict[str, Any]]:
        return [fields for event, fields in self.events if event == name]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition that something observed brings about."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


class Stream:
    """A broker with the lane's topics, and what was written to them."""

    def __init__(self, keys: Path, *, partitions: int = 1, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.broker = InMemoryBroker(self.clock)
        specs = [spec._replace(partitions=partitions) for spec in plan(NAMES)]
        self.broker.create(specs)
        self.sealer = Sealer.load_or_create(keys / "sealing.json")
        self._producer: Producer = self.broker.producer()

    async def send(self, *generations: generation_pb2.Generation | bytes, topic: str = NAMES.generations) -> None:
        """Write generations (or raw values, keyed "raw") to partition 0."""
        await self._producer.start()
        outputs = []
        for generation in generations:
            if isinstance(generation, bytes):
                outputs.append(Output(topic, 0, b"raw", generation))
            else:
                key = generation.generation_id.encode()
                outputs.append(Output(topic, 0, key, generation.SerializeToString()))
        await self._producer.send(outputs)

    async def send_join(self, *records: signal_pb2.Signal | control_pb2.Deadline) -> None:
        """Write signals and deadlines to partition 0 of signals.v1."""
        await self._producer.start()
        values = [
            control_pb2.JoinRecord(signal=record)
            if isinstance(record, signal_pb2.Signal)
            else control_pb2.JoinRecord(deadline=record)
            for record in records
        ]
        await self._producer.send([Output(NAMES.signals, 0, b"k", value.SerializeToString()) for value in values])

    def signals(self) -> list[signal_pb2.Signal]:
        return [
            control_pb2.JoinRecord.FromString(record.value or b"").signal
            for record in self.broker.records(NAMES.signals)
        ]

    def decisions(self) -> list[decision_pb2.Decision]:
        return [decision_pb2.Decision.FromString(r.value or b"") for r in self.broker.records(NAMES.decisions)]

    def dead_letters(self) -> list[dead_letter_pb2.DeadLetter]:
        return [dead_letter_pb2.DeadLetter.FromString(r.value or b"") for r in self.broker.records(NAMES.dead_letters)]

    async def written(self, topic: str, count: int) -> list[InMemoryRecord]:
        """Wait until a topic holds ``count`` records."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(self.broker.records(topic)) < count:
                await self.broker.changed()
        return self.broker.records(topic)

    async def committed(self, group: str, topic: str, offset: int) -> None:
        """Wait until a group has committed ``offset`` of partition 0."""
        reader = self.broker.consumer(group, [topic], instance="looks")
        async with asyncio.timeout(PATIENCE_SECONDS):
            # A commit writes no record that could be awaited.
            while (await reader.committed(TopicPartition(topic, 0)) or 0) < offset:  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    def dead_letter_maker(self, room: str) -> DeadLetters:
        return DeadLetters(room=room, instance="test", topic=NAMES.dead_letters, sealer=self.sealer, clock=self.clock)

    @asynccontextmanager
    async def relay(self, call: Any, seen: Seen, broker: Broker | None = None, **settings: Any) -> AsyncIterator[Relay]:
        """A running relay of PromptStage; stopped when the context is left. Quick settings unless others are given."""
        quick = {
            "commit_seconds": 0.01,
            "retry_seconds": 0.001,
            "max_retry_seconds": 0.002,
            "linger_seconds": 0.0,
            "poll_seconds": 0.05,
        }
        relay = Relay(
            stage=PromptStage(),
            broker=broker or self.broker,
            call=call,
            dead_letters=self.dead_letter_maker("prompt_scoring"),
            generations_topic=NAMES.generations,
            signals_topic=NAMES.signals,
            group="prompt_scoring",
            instance="relay-0",
            member=None,
            settings=EngineSettings(**{**quick, **settings}),
            observer=seen,
            clock=self.clock,
        )
        async with _running(relay):
            yield relay

    @asynccontextmanager
    async def aggregator(self, seen: Seen, policy: Path | None = None, **settings: Any) -> AsyncIterator[Aggregator]:
        """A running aggregator; stopped when the context is left."""
        quick = {"commit_seconds": 0.01, "deadline_check_seconds": 0.01, "rescan_seconds": 0.01}
        aggregator = Aggregator(
            broker=self.broker,
            rollout=Rollout.load(policy or AggregatorSettings().policy),
            dead_letters=self.dead_letter_maker("aggregator"),
            generations_topic=NAMES.generations,
            signals_topic=NAMES.signals,
            decisions_topic=NAMES.decisions,
            group="aggregator",
            member=None,
            settings=JoinSettings(**{**quick, **settings}),
            observer=seen,
            clock=self.clock,
            monotonic=lambda: self.clock.now_nanos() / 1e9,
        )
        async with _running(aggregator):
            yield aggregator


@asynccontextmanager
async def _running(engine: Relay | Aggregator) -> AsyncIterator[None]:
    task = asyncio.create_task(engine.run())
    try:
        yield
    finally:
        engine.stop()
        # A halted engine raises its reason here; the tests look at what it observed.
        await asyncio.wait([task], timeout=PATIENCE_SECONDS)
        if not task.done():
            task.cancel()
            raise AssertionError("the engine did not stop")
        error = task.exception()
        if error is not None and not isinstance(error, SeawallError):
            raise error


__all__ = ["NAMES", "PromptStage", "Reply", "Request", "Seen", "Stream", "answer"]
