"""From what an on-call engineer holds in hand to generations: an id, a file's digest, a trace, a place in Kafka."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import aclosing
from enum import Enum
from typing import Final, NamedTuple

from seawall.api.decision.v1 import decision_pb2
from seawall.core import identity
from seawall.core.errors import Fatal
from seawall.oncall.decisions import decode
from seawall.runtime.broker import Broker, TopicPartition
from seawall.runtime.scan import records_at, scan
from seawall.runtime.topics import TopicNames

_SHA256: Final = re.compile(r"(?:sha256:)?([0-9a-fA-F]{64})\Z")
_TRACE: Final = re.compile(r"(?:00-)?([0-9a-f]{32})(?:-[0-9a-f]{16}-[0-9a-f]{2})?\Z")
_PLACE: Final = re.compile(r"([A-Za-z0-9._-]{1,249})/(\d{1,9})/(\d{1,18})\Z")
#: Generations that one handle may lead to; a file may have been sent a thousand times.
MOST: Final = 50


class Kind(Enum):
    """What a handle is."""

    GENERATION = "generation"
    CONTENT = "content"
    TRACE = "trace"
    PLACE = "place"


class Handle(NamedTuple):
    """One reading of what was given."""

    kind: Kind
    #: The id, 64 or 32 hex digits, or "topic/partition/offset".
    value: str


def readings(given: str) -> list[Handle]:
    """What ``given`` may be, the likeliest first: an id may look like a digest.

    Raises Fatal("BAD_HANDLE") if it is nothing.
    """
    found = []
    if identity.is_id(given) and not given.startswith("sha256:"):
        found.append(Handle(Kind.GENERATION, given))
    if match := _SHA256.match(given):
        found.append(Handle(Kind.CONTENT, match[1].lower()))
    if match := _TRACE.match(given):
        found.append(Handle(Kind.TRACE, match[1]))
    if _PLACE.match(given):
        found.append(Handle(Kind.PLACE, given))
    if not found:
        raise Fatal(
            "BAD_HANDLE",
            "give a generation's id, a file's SHA-256, a trace id (32 hex digits) or topic/partition/offset",
        )
    return found


async def generation_at(broker: Broker, names: TopicNames, place: str) -> list[str]:
    """The generation of the record at "topic/partition/offset": every topic of the stream path is keyed by it.

    Raises Fatal("NOT_FOUND") if there is no such topic or record; Retryable as the broker seam says.
    """
    topic, number, at = place.split("/")
    known = (*names.co_partitioned, names.dead_letters)
    if topic not in known:
        raise Fatal("NOT_FOUND", f"records of {topic} are about no generation: one of {', '.join(known)}")
    partition, offset = TopicPartition(topic, int(number)), int(at)
    record = (await records_at(broker, {partition: offset})).get(partition)
    if record is None or record.offset != offset:
        raise Fatal("NOT_FOUND", f"there is no record at {place}: retention has taken it, or it is not written yet")
    key = (record.key or b"").decode("ascii", "replace")
    # A record whose key is none of ours was set aside under an id that names its place.
    return [key if identity.is_id(key) else identity.unkeyed_generation_id(*partition, offset)]


async def generations_in_kafka(broker: Broker, topic: str, handle: Handle) -> list[str]:
    """Generations with that trace or content, by reading all of decisions.v1: for when there is no ledger to ask.

    Raises Retryable as the broker seam says.
    """
    found: dict[str, None] = {}
    async with aclosing(scan(broker, [topic])) as records:
        async for record in records:
            decision = decode(record)
            if decision is not None and handle.value in _handles(decision, handle.kind):
                found.setdefault(decision.generation_id)
                if len(found) >= MOST:
                    break
    return list(found)


def _handles(decision: decision_pb2.Decision, kind: Kind) -> Iterable[str]:
    if kind is Kind.TRACE:
        return (decision.traceparent[3:35],)
    return (
        digest.value.hex()
        for joined in decision.signals
        for item in joined.signal.items
        for digest in item.hashes
        if digest.hash_type == "sha256"
    )
