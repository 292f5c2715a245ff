"""From a completed join to the Decision that explains it. Deterministic: the same records give the same bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core import identity
from seawall.core.errors import Poison
from seawall.core.join import Completed, Position, ReadSignal
from seawall.core.policy import RULE_MALFORMED, Lineup, Policy, Verdict
from seawall.core.wire import tag, varint

_HOLD: Final = decision_pb2.OUTCOME_HOLD
_FIXED64 = struct.Struct("<Q")
_JOINED = decision_pb2.JoinedSignal.DESCRIPTOR.fields_by_name
_SIGNALS_TAG: Final = tag(decision_pb2.Decision.DESCRIPTOR.fields_by_name["signals"].number, 2)
_SIGNAL_TAG: Final = tag(_JOINED["signal"].number, 2)
_RECORD_TAG: Final = tag(_JOINED["record"].number, 2)
_LOG_TAG: Final = tag(_JOINED["log_unix_nano"].number, 1)
_OFFSET_TAG: Final = tag(generation_pb2.RecordCoordinates.DESCRIPTOR.fields_by_name["offset"].number, 0)


def joint(completed: Completed, lineup: Lineup) -> decision_pb2.Decision:
    """The decision over a generation and the signals that were joined to it."""
    joined, completed_by = completed
    generation = joined.generation
    missing = joined.missing
    read = [joined.signals[stage] for stage in sorted(joined.signals)]
    signals = [one.signal for one in read]
    verdict = lineup.policy.judge(generation, signals, missing)
    decision = decision_pb2.Decision()
    decision.decision_id = identity.decision_id(generation.generation_id, generation.attempt, lineup.digest)
    decision.kind = decision_pb2.DECISION_KIND_JOINT
    decision.generation_id = generation.generation_id
    decision.attempt = generation.attempt
    decision.tenant_id = generation.tenant_id
    decision.actor_id = generation.actor_id
    decision.conversation_id = generation.conversation_id
    if generation.HasField("model"):
        decision.model.CopyFrom(generation.model)
    decision.modality = generation.modality
    decision.missing_stages.extend(missing)
    _locate(decision.generation_record, joined.position)
    decision.generation_log_unix_nano = joined.position.log_nanos
    _locate(decision.completed_by, completed_by)
    decision.decided_unix_nano = completed_by.log_nanos
    decision.traceparent = joined.traceparent
    # The engine makes HOLD only while attempts are left: every HOLD of a readable record is scanned again.
    decision.rescanned = verdict.outcome == _HOLD
    _explain(decision, lineup, verdict, read, signals)
    for shadow in lineup.shadows:
        # The join waited for the stages of the bundle that decides; what a shadow misses beyond them, it says.
        lacking = sorted(shadow.required(generation) - joined.signals.keys())
        _shadow(decision, shadow, shadow.judge(generation, signals, lacking), lacking)
    return decision


def amendment(read: ReadSignal, lineup: Lineup) -> decision_pb2.Decision | None:
    """The decision that a late signal causes by itself, or None where it has nothing to add.

    The generation is not at hand any more: rules see one with its id and attempt only.
    """
    signal = read.signal
    stub = generation_pb2.Generation(generation_id=signal.generation_id, attempt=signal.attempt)
    verdict = lineup.policy.judge_alone(stub, signal)
    if verdict is None:
        return None
    position = read.position
    decision = decision_pb2.Decision(
        decision_id=identity.amendment_id(
            signal.signal_id, position.topic, position.partition, position.offset, lineup.digest
        ),
        kind=decision_pb2.DECISION_KIND_AMENDMENT,
        generation_id=signal.generation_id,
        attempt=signal.attempt,
        generation_record=signal.generation_record,
        decided_unix_nano=position.log_nanos,
    )
    _locate(decision.completed_by, position)
    _explain(decision, lineup, verdict, [read], [signal])
    for shadow in lineup.shadows:
        if (said := shadow.judge_alone(stub, signal)) is not None:
            _shadow(decision, shadow, said, ())
    return decision


def malformed(
    generation_id: str, position: Position, traceparent: str, error: Poison, lineup: Lineup
) -> decision_pb2.Decision:
    """The HOLD for a generation record that cannot be read. Not scanned again: a person redrives the dead letter."""
    policy = lineup.policy
    decision = decision_pb2.Decision(
        decision_id=identity.decision_id(f"{generation_id}@{position.partition}:{position.offset}", 0, lineup.digest),
        kind=decision_pb2.DECISION_KIND_JOINT,
        generation_id=generation_id,
        outcome=_HOLD,
        rule_id=RULE_MALFORMED,
        reason_code=error.reason,
        policy_name=policy.name,
        policy_version=policy.version,
        policy_digest=lineup.digest,
        bundle_digest=policy.digest,
        generation_log_unix_nano=position.log_nanos,
        decided_unix_nano=position.log_nanos,
        traceparent=traceparent,
    )
    _locate(decision.generation_record, position)
    _locate(decision.completed_by, position)
    return decision


def _explain(
    decision: decision_pb2.Decision,
    lineup: Lineup,
    verdict: Verdict,
    read: Sequence[ReadSignal],
    signals: Iterable[signal_pb2.Signal],
) -> None:
    policy = lineup.policy
    decision.outcome = verdict.outcome
    decision.rule_id = verdict.rule_id
    decision.reason_code = verdict.reason_code
    if verdict.hits:
        decision.rule_hits.extend([rule.hit() for rule in verdict.hits])
    if verdict.errors:
        decision.rule_errors.extend(verdict.errors)
    if verdict.shadow_hits:
        decision.shadow_hits.extend([rule.hit() for rule in verdict.shadow_hits])
    if verdict.shadow_errors:
        decision.shadow_errors.extend(verdict.shadow_errors)
    rests_on = {item.nexus for signal in signals for item in signal.items}
    if (rule := verdict.rule) is not None:
        decision.severity = rule.severity
        decision.follow_up = rule.follow_up
        if rule.nexus:
            rests_on &= rule.nexus
    rests_on.discard(generation_pb2.NEXUS_UNSPECIFIED)
    decision.nexus.extend(sorted(rests_on))
    decision.policy_name = policy.name
    decision.policy_version = policy.version
    decision.policy_digest = lineup.digest
    decision.bundle_digest = policy.digest
    # Merged in wire format: copying signals field by field would cost more than judging them.
    decision.MergeFromString(b"".join([policy.comparisons(verdict.scores), *map(_joined, read)]))


def _shadow(decision: decision_pb2.Decision, policy: Policy, verdict: Verdict, missing: Sequence[str]) -> None:
    decision.shadows.add(
        policy_name=policy.name,
        policy_version=policy.version,
        bundle_digest=policy.digest,
        outcome=verdict.outcome,
        rule_id=verdict.rule_id,
        reason_code=verdict.reason_code,
        rule_hits=[rule.hit() for rule in verdict.hits],
        rule_errors=verdict.errors,
        missing_stages=missing,
    )


def _locate(record: generation_pb2.RecordCoordinates, position: Position) -> None:
    record.topic, record.partition, record.offset = position.topic, position.partition, position.offset


def _joined(read: ReadSignal) -> bytes:
    """A JoinedSignal of a Decision, in wire format."""
    signal, position = read.signal.SerializeToString(), read.position
    record = _record_head(position.topic, position.partition)
    if position.offset:
        record += _OFFSET_TAG + varint(position.offset)
    body = b"".join((_SIGNAL_TAG, varint(len(signal)), signal, _RECORD_TAG, varint(len(record)), record))
    if position.log_nanos:
        body += _LOG_TAG + _FIXED64.pack(position.log_nanos)
    return _SIGNALS_TAG + varint(len(body)) + body


@lru_cache(maxsize=4096)
def _record_head(topic: str, partition: int) -> bytes:
    return generation_pb2.RecordCoordinates(topic=topic, partition=partition).SerializeToString()
