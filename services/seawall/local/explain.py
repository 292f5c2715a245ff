"""Why a generation was decided as it was, read from decisions.v1 alone: no database, no trace backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError

from seawall.api.decision.v1 import decision_pb2
from seawall.api.override.v1 import override_pb2
from seawall.core.errors import Fatal
from seawall.local import verdict
from seawall.local.waterfall import HOPS, total_nanos, waterfall
from seawall.runtime.broker import Broker, Record
from seawall.runtime.scan import scan


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
    key = generation_id.encode()
    found = [
        Found(_decode(record), record.topic, record.partition, record.offset, record.value or b"")
        async for record in scan(broker, [topic])
        if record.key == key
    ]
    return sorted(found, key=lambda one: (one.decision.attempt, one.decision.decided_unix_nano, one.offset))


def _decode(record: Record) -> decision_pb2.Decision:
    try:
        return decision_pb2.Decision.FromString(record.value or b"")
    except DecodeError as error:
        where = f"{record.topic}/{record.partition}/{record.offset}"
        raise Fatal("UNDECODABLE", f"{where} is not a Decision: is this lane shared with something else?") from error


def explain(
    generation_id: str, found: Sequence[Found], override: override_pb2.Override | None = None
) -> dict[str, Any]:
    """What `seawall why --json` prints: plain data, times in milliseconds. ``rule_id`` is of what was decided."""
    decisions = verdict.distinct(one.decision for one in found)
    counts = verdict.effective(decisions)
    outcome = verdict.outcome(decisions, override)
    return {
        "generation_id": generation_id,
        "outcome": verdict.outcome_name(outcome) if outcome is not None else None,
        "decided": verdict.outcome_name(counts.outcome) if counts else None,
        "override": MessageToDict(override, preserving_proto_field_name=True) if override is not None else None,
        "settled": verdict.is_settled(decisions) or (override is not None and bool(override.outcome)),
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
