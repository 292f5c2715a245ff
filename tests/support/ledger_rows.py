"""Records for the ledger's tests and benchmark: decisions as the aggregator writes them. Nothing in them is content."""

from __future__ import annotations

from typing import Any

from seawall.api.decision.v1 import decision_pb2
from seawall.api.override.v1.override_pb2 import Override
from seawall.api.signal.v1 import signal_pb2
from seawall.core import identity
from seawall.runtime.broker import Record
from seawall.runtime.memory import InMemoryRecord
from tests.support.records import CLASSIFICATION, DECISIONS, HASHING, PROMPT, generation, signal

NANOS = 1_000_000_000
#: 2026-11-20T00:00:00Z
BEGIN = 1_795_132_800 * NANOS
HOLD, ALLOW = decision_pb2.OUTCOME_HOLD, decision_pb2.OUTCOME_ALLOW
WITHDRAWN = decision_pb2.OUTCOME_UNSPECIFIED
REVIEW, BLOCK = decision_pb2.OUTCOME_REVIEW, decision_pb2.OUTCOME_BLOCK


def decision(
    number: int, *, seconds: float = 0.0, outcome: decision_pb2.Outcome.ValueType = ALLOW, **fields: str | int
) -> decision_pb2.Decision:
    """The decision about generation ``g-<number>``, ``seconds`` after BEGIN: three signals, one picture."""
    of = generation(f"g-{number}", media=1)
    made = decision_pb2.Decision(
        decision_id=identity.decision_id(of.generation_id, int(fields.get("attempt", 1)), "p"),
        kind=decision_pb2.DECISION_KIND_JOINT,
        generation_id=of.generation_id,
        attempt=1,
        tenant_id="tenant",
        actor_id=f"actor-{number % 7}",
        modality=of.modality,
        outcome=outcome,
        rule_id="allow" if outcome == ALLOW else "known-hash",
        policy_name="default",
        policy_digest="p" * 64,
        decided_unix_nano=BEGIN + int(seconds * NANOS),
        generation_log_unix_nano=BEGIN,
        traceparent=f"00-{number + 1:032x}-{number + 1:016x}-01",
    )
    for name, value in fields.items():
        setattr(made, name, value)
    made.model.name, made.model.version = "diffuser", "1"
    made.generation_record.offset = number
    made.comparisons.add(threshold="explicit", label="classification.explicit", value=0.8, score=0.1)
    for stage, scores in ((PROMPT, {"minor_sexual": 0.0}), (HASHING, {}), (CLASSIFICATION, {"explicit": 0.1})):
        told = signal(of, stage, offset=number, scores=scores)
        told.artefacts.add(kind=signal_pb2.ARTEFACT_KIND_MODEL, name=f"{stage}-model", version="1", sha256=bytes(32))
        if stage == HASHING:
            told.items[0].hashes.add(hash_type="sha256", value=number.to_bytes(32, "big"), quality=100)
        made.signals.add(signal=told)
    return made


def word(of: decision_pb2.Decision, outcome: decision_pb2.Outcome.ValueType, **fields: Any) -> Override:
    """What a person says who has seen that decision, a second after BEGIN."""
    made: dict[str, Any] = {
        "generation_id": of.generation_id,
        "tenant_id": of.tenant_id,
        "actor_id": of.actor_id,
        "outcome": outcome,
        "outcome_before": of.outcome,
        "reason_code": "FALSE_POSITIVE",
        "by": "ada",
        "made_unix_nano": BEGIN + NANOS,
        "decision_id": of.decision_id,
        "decision_ids": [of.decision_id],
        "decided_unix_nano": of.decided_unix_nano,
        **fields,
    }
    made["override_id"] = identity.override_id(made["generation_id"], made["by"], made["made_unix_nano"], outcome)
    return Override(**made)


def record(offset: int, value: bytes, *, topic: str = DECISIONS, partition: int = 0) -> Record:
    """As the broker hands it out."""
    return InMemoryRecord(topic, partition, offset, BEGIN // 1_000_000, b"k", value, ())
