"""What a platform does: seal a prompt, store its media, produce the generation, await the decision.

``seawall submit``, the demo, the tests and the benchmarks all stand on this; a platform's own client would look alike.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from google.protobuf.message import DecodeError

from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.core.errors import Fatal, Retryable
from seawall.local import verdict
from seawall.runtime.broker import Broker, Consumer, Output, Producer, Record
from seawall.runtime.content import ContentStore
from seawall.runtime.sealing import Sealer
from seawall.runtime.topics import TopicNames

_T = TypeVar("_T")

_POLL_RECORDS = 1000
_POLL_SECONDS = 0.5
#: How long the platform asks for a broker that is away before it gives up: while it works, and before it began.
_BROKER_PATIENCE_SECONDS = 60.0
_START_PATIENCE_SECONDS = 15.0
_BROKER_PAUSE_SECONDS = 0.2

#: What an item's id begins with, by nexus.
_ITEM_PREFIX = {
    generation_pb2.NEXUS_UPLOADED_INPUT: "input",
    generation_pb2.NEXUS_MODEL_OUTPUT: "output",
    generation_pb2.NEXUS_TRAINING_DATA: "item",
}


class Upload(NamedTuple):
    """One picture or video of a submission. ``media_type`` is what the platform declares."""

    data: bytes
    media_type: str
    nexus: generation_pb2.Nexus.ValueType


@dataclass(frozen=True, repr=False)
class Submission:
    """What a platform knows of one generation, in clear; it leaves this process sealed. Its repr shows no content."""

    prompt: str | None = None
    negative_prompt: str | None = None
    uploads: Sequence[Upload] = ()
    modality: generation_pb2.Modality.ValueType = generation_pb2.MODALITY_IMAGE
    tenant_id: str = "local"
    actor_id: str = "local-actor"
    conversation_id: str = ""
    #: What the user wrote before in this conversation, oldest first.
    turns: Sequence[str] = ()
    model: generation_pb2.ModelRef = field(
        default_factory=lambda: generation_pb2.ModelRef(name="demo-model", version="1")
    )


class Followed:
    """The decisions of one generation as they come in."""

    def __init__(self) -> None:
        self.decisions: list[decision_pb2.Decision] = []
        #: Wall clock when the first decision was read here, Unix nanoseconds; None before it.
        self.seen_unix_nano: int | None = None
        self._settled = asyncio.Event()

    def add(self, decision: decision_pb2.Decision) -> None:
        self.seen_unix_nano = self.seen_unix_nano or time.time_ns()
        self.decisions.append(decision)
        if verdict.is_settled(self.decisions):
            self._settled.set()

    async def settled(self) -> None:
        """Return once the outcome is decided, or held for good."""
        await self._settled.wait()


class Platform:
    """A platform's side of Seawall. Use `Platform.open`."""

    def __init__(self, broker: Broker, sealer: Sealer, store: ContentStore, topics: TopicNames) -> None:
        self._sealer = sealer
        self._store = store
        self._topics = topics
        self._producer: Producer = broker.producer()
        self._reader: Consumer = broker.reader([topics.decisions], from_end=True)
        self._followed: dict[str, Followed] = {}
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls, broker: Broker, sealer: Sealer, store: ContentStore, topics: TopicNames
    ) -> AsyncIterator[Platform]:
        """A started platform: decisions are read from now on."""
        platform = cls(broker, sealer, store, topics)
        await _patiently(platform._reader.start, _START_PATIENCE_SECONDS)
        try:
            await _patiently(platform._producer.start, _START_PATIENCE_SECONDS)
            try:
                platform._reading = asyncio.create_task(platform._read(), name="platform-decisions")
                try:
                    yield platform
                finally:
                    platform._reading.cancel()
                    await asyncio.wait([platform._reading])
            finally:
                await platform._producer.stop()
        finally:
            await platform._reader.stop()

    async def build(self, submission: Submission, generation_id: str) -> generation_pb2.Generation:
        """The record of a submission: prompts sealed, media in the content store."""
        generation = generation_pb2.Generation(
            generation_id=generation_id,
            attempt=1,
            tenant_id=submission.tenant_id,
            actor_id=submission.actor_id,
            conversation_id=submission.conversation_id,
            model=submission.model,
            modality=submission.modality,
        )
        generation.create_time.FromNanoseconds(time.time_ns())
        if submission.prompt is not None:
            generation.prompt.CopyFrom(self._sealer.seal(submission.prompt, generation_id, "prompt"))
        if submission.negative_prompt is not None:
            sealed = self._sealer.seal(submission.negative_prompt, generation_id, "negative_prompt")
            generation.negative_prompt.CopyFrom(sealed)
        for number, turn in enumerate(submission.turns):
            generation.turns.append(self._sealer.seal(turn, generation_id, f"turns/{number}"))
        for number, upload in enumerate(submission.uploads):
            ref = await asyncio.to_thread(self._store.put, upload.data, upload.media_type)
            generation.media.add(item_id=f"{_ITEM_PREFIX[upload.nexus]}/{number}", nexus=upload.nexus, content=ref)
        return generation

    def follow(self, generation_id: str) -> Followed:
        """Gather this generation's decisions from now on; until `forget`."""
        return self._followed.setdefault(generation_id, Followed())

    def forget(self, generation_id: str) -> None:
        """Stop gathering: what is followed is what this process remembers."""
        self._followed.pop(generation_id, None)

    async def produce(self, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Write (key, value) records to generations.v1, each under a trace of its own; return when acknowledged."""
        outputs = [
            Output(self._topics.generations, None, key, value, [("traceparent", new_traceparent().encode())])
            for key, value in records
        ]
        await _patiently(lambda: self._producer.send(outputs))

    async def submit(self, submission: Submission, generation_id: str) -> Followed:
        """Send one generation and gather its decisions."""
        generation = await self.build(submission, generation_id)
        followed = self.follow(generation_id)
        await self.produce([(generation_id.encode(), generation.SerializeToString())])
        return followed

    async def settled(self, followed: Followed, timeout: float) -> bool:
        """Wait until the outcome is decided, or held for good; False after ``timeout`` seconds.

        Raises what ended the reading of decisions, should it have ended.
        """
        if self._reading is None:
            raise RuntimeError("the platform is not open")
        waiting = asyncio.create_task(followed.settled())
        try:
            await asyncio.wait({waiting, self._reading}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if self._reading.done():
                await self._reading
            return waiting.done()
        finally:
            waiting.cancel()

    async def _read(self) -> None:
        while True:
            batches = await _patiently(lambda: self._reader.poll(max_records=_POLL_RECORDS, timeout=_POLL_SECONDS))
            for records in batches.values():
                for record in records:
                    self._take(record)

    def _take(self, record: Record) -> None:
        followed = self._followed.get((record.key or b"").decode("ascii", "replace"))
        if followed is None:
            return
        try:
            decision = decision_pb2.Decision.FromString(record.value or b"")
        except DecodeError as error:
            where = f"{record.topic}/{record.partition}/{record.offset}"
            raise Fatal(
                "UNDECODABLE", f"{where} is not a Decision: is this lane shared with something else?"
            ) from error
        followed.add(decision)


async def _patiently(call: Callable[[], Awaitable[_T]], seconds: float = _BROKER_PATIENCE_SECONDS) -> _T:
    """Repeat ``call`` while the broker is away, within bounds. Producing again is safe: decisions are idempotent."""
    give_up = time.monotonic() + seconds
    while True:
        try:
            return await call()
        except Retryable:
            if time.monotonic() >= give_up:
                raise
            await asyncio.sleep(_BROKER_PAUSE_SECONDS)


def new_traceparent() -> str:
    """A W3C trace context that starts a sampled trace."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
