"""Why a generation was decided as it was, read from decisions.v1 alone: no database, no trace backend."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError

from seawall.api.decision.v1 import decision_pb2
from seawall.core.errors import Fatal
from seawall.local import verdict
from seawall.local.waterfall import HOPS, total_nanos, waterfall
from seawall.runtime.broker import Broker, Consumer, TopicPartition

_POLL_RECORDS = 5000
_POLL_SECONDS = 0.5
#: The topic counts as read when nothing came for so long: what is left was deleted by retention.
_QUIET_POLLS = 6
_ATTEMPTS = 20
_PAUSE_SECONDS = 0.25


class Found(NamedTuple):
    """A decision and where it stands."""

    decision: decision_pb2.Decision
    topic: str
    partition: int
    offset: int
    #: The record's value, byte for byte.
    value: bytes = b""


async def find(broker: Broker, topic: str, generation_id: str) -> list[Found]:
    """Every decision record of the generation that the topic holds now, in order of attempt and time.

    Raises Retryable if Kafka cannot be asked, Fatal("UNDECODABLE") if a record of that key is no Decision.
    """
    reader = broker.reader([topic])
    await reader.start()
    try:
        return await _scan(reader, generation_id.encode())
    finally:
        await reader.stop()


async def _scan(reader: Consumer, key: bytes) -> list[Found]:
    ends = {partition: end for partition, end in (await _ends(reader)).items() if end > 0}
    found: list[Found] = []
    quiet = 0
    while ends and quiet < _QUIET_POLLS:
        batches = await reader.poll(max_records=_POLL_RECORDS, timeout=_POLL_SECONDS)
        quiet = 0 if batches else quiet + 1
        for partition, records in batches.items():
            for record in records:
                if record.key == key:
                    decision = _decode(record.value, partition, record.offset)
                    found.append(Found(decision, *partition, record.offset, record.value or b""))
            if records and records[-1].offset + 1 >= ends.get(partition, 0):
                ends.pop(partition, None)
    return sorted(found, key=lambda one: (one.decision.attempt, one.decision.decided_unix_nano, one.offset))


async def _ends(reader: Consumer) -> Mapping[TopicPartition, int]:
    for _ in range(_ATTEMPTS):
        if assignment := reader.assignment():
            return await reader.end_offsets(assignment)
        await asyncio.sleep(_PAUSE_SECONDS)
    raise Fatal("NO_TOPIC", "the decisions topic has no partitions here: seawall topics apply makes it")


def _decode(value: bytes | None, partition: TopicPartition, offset: int) -> decision_pb2.Decision:
    try:
        return decision_pb2.Decision.FromString(value or b"")
    except DecodeError as error:
        where = f"{partition.topic}/{partition.partition}/{offset}"
        raise Fatal("UNDECODABLE", f"{where} is not a Decision: is this lane shared with something else?") from error


def explain(generation_id: str, found: Sequence[Found]) -> dict[str, Any]:
    """What `seawall why --json` prints: plain data, times in milliseconds."""
    decisions = verdict.distinct(one.decision for one in found)
    counts = verdict.effective(decisions)
    return {
        "generation_id": generation_id,
        "outcome": verdict.outcome_name(counts.outcome) if counts else None,
        "settled": verdict.is_settled(decisions),
        "rule_id": counts.rule_id if counts else None,
        "reason_code": counts.reason_code if counts else None,
        "policy": {"name": counts.policy_name, "digest": counts.policy_digest} if counts else None,
        "attempts": max((decision.attempt for decision in decisions), default=0),
        "amendments": sum(decision.kind == decision_pb2.DECISION_KIND_AMENDMENT for decision in decisions),
        "conflicts": [
            {"attempt": attempt, "policy_digest": digest}
            for attempt, digest in verdict.conflicts(one.decision for one in found)
        ],
        "decisions": [
            {
                **MessageToDict(decision, preserving_proto_field_name=True),
                "records": [
                    {"topic": one.topic, "partition": one.partition, "offset": one.offset}
                    for one in found
                    if one.decision.decision_id == decision.decision_id
                ],
                "total_ms": total_nanos(decision) / 1e6,
                "waterfall_ms": {
                    stage.stage: {hop: stage.nanos(hop) / 1e6 for hop in HOPS} for stage in waterfall(decision)
                },
            }
            for decision in decisions
        ],
    }
