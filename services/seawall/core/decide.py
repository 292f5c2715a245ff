"""From a completed join to the record of the Decision that explains it. Deterministic: the same records give the same
bytes.

A decision repeats its signals, byte for byte as they stand in signals.v1, and names every threshold beside its score;
both are written in wire format (docs/adr/0029). All else is a message like any other.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from seawall.api.control.v1 import control_pb2
from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core import identity
from seawall.core.errors import Poison
from seawall.core.join import Completed, Position, ReadSignal
from seawall.core.policy import RULE_MALFORMED, Lineup, Policy, Verdict
from seawall.core.wire import is_one_field, tag, varint

_HOLD: Final = decision_pb2.OUTCOME_HOLD
_JOINED = decision_pb2.JoinedSignal.DESCRIPTOR.fields_by_name
_SIGNALS_TAG: Final = tag(decision_pb2.Decision.DESCRIPTOR.fields_by_name["signals"].number, 2)
_OFFSET_TAG: Final = tag(generation_pb2.RecordCoordinates.DESCRIPTOR.fields_by_name["offset"].number, 0)
#: A signal is the same field in a record of signals.v1 and in a JoinedSignal: such a record's value is the beginning of
#: one.
_SIGNAL: Final = control_pb2.JoinRecord.SIGNAL_FIELD_NUMBER
if _JOINED["signal"].number != _SIGNAL:
    raise TypeError("JoinedSignal.signal and JoinRecord.signal must have the same number")
_JOINED_SIGNAL: Final = b"".join(
    (b"%b", tag(_JOINED["record"].number, 2), b"%b%b", tag(_JOINED["log_unix_nano"].number, 1), b"%b")
)
_FIXED64: Final = struct.Struct("<Q")


class Written(NamedTuple):
    """A decision as it is written to decisions.v1."""

    #: All of it but the signals and the comparisons.
    head: decision_pb2.Decision
    #: The record's value: all of it.
    value: bytes

    def whole(self) -> decision_pb2.Decision:
        """All of it as a message."""
        return decision_pb2.Decision.FromString(self.value)


def joint(completed: Completed, lineup: Lineup) -> Written:
    """The decision over a generation and the signals that were joined to it."""
    joined, completed_by = completed
    generation = joined.generation
    missing = joined.missing
    read = [joined.signals[part] for part in sorted(joined.signals)]
    verdict = lineup.policy.judge(generation, [one.signal for one in read], missing)
    head = _head(decision_pb2.DECISION_KIND_JOINT, verdict, lineup)
    generation_id, attempt = joined.key
    head.decision_id = identity.decision_id(generation_id, attempt, lineup.digest)
    head.generation_id = generation_id
    head.attempt = attempt
    head.tenant_id = generation.tenant_id
    head.actor_id = generation.actor_id
    head.conversation_id = generation.conversation_id
    if generation.HasField("model"):
        head.model.CopyFrom(generation.model)
    head.modality = generation.modality
    if missing:
        head.missing_stages.extend(missing)
    _locate(head.generation_record, joined.position)
    head.generation_log_unix_nano = joined.position.log_nanos
    _locate(head.completed_by, completed_by)
    head.decided_unix_nano = completed_by.log_nanos
    head.traceparent = joined.traceparent
    # The engine makes HOLD only while attempts are left: every HOLD of a readable record is scanned again.
    if verdict.outcome == _HOLD:
        head.rescanned = True
    for shadow in lineup.shadows:
        # The join waited for the stages of the bundle that decides; what a shadow misses beyond them, it says.
        lacking = sorted(shadow.required(generation) - joined.signals.keys())
        said = shadow.judge(generation, [one.signal for one in read], lacking)
        _shadow(head, shadow, said, lacking)
    return _write(head, lineup, verdict, read)


def amendment(read: ReadSignal, lineup: Lineup) -> Written | None:
    """The decision that a late signal causes by itself, or None where it has nothing to add."""
    signal = read.signal
    stub = known_of(signal)
    verdict = lineup.policy.judge_alone(stub, signal)
    if verdict is None:
        return None
    position = read.position
    head = _head(decision_pb2.DECISION_KIND_AMENDMENT, verdict, lineup)
    head.decision_id = identity.amendment_id(
        signal.signal_id, position.topic, position.partition, position.offset, lineup.digest
    )
    head.generation_id = signal.generation_id
    head.attempt = signal.attempt
    head.tenant_id = signal.tenant_id
    head.generation_record.CopyFrom(signal.generation_record)
    _locate(head.completed_by, position)
    head.decided_unix_nano = position.log_nanos
    for shadow in lineup.shadows:
        if (said := shadow.judge_alone(stub, signal)) is not None:
            _shadow(head, shadow, said, ())
    return _write(head, lineup, verdict, [read])


def known_of(signal: signal_pb2.Signal) -> generation_pb2.Generation:
    """What rules see of the generation of a late signal, which is not at hand any more: what the signal says of it."""
    return generation_pb2.Generation(
        generation_id=signal.generation_id, attempt=signal.attempt, tenant_id=signal.tenant_id
    )


def malformed(generation_id: str, position: Position, traceparent: str, error: Poison, lineup: Lineup) -> Written:
    """The HOLD for a generation record that cannot be read. Not scanned again: a person redrives the dead letter."""
    policy = lineup.policy
    head = decision_pb2.Decision(
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
    _locate(head.generation_record, position)
    _locate(head.completed_by, position)
    return Written(head, head.SerializeToString(deterministic=True))


def shortened(value: bytes) -> bytes:
    """The record of a decision without its signals' items, for a topic that does not take it whole."""
    decision = decision_pb2.Decision.FromString(value)
    decision.truncated = True
    for joined in decision.signals:
        del joined.signal.items[:]
    return decision.SerializeToString(deterministic=True)


def _head(kind: decision_pb2.DecisionKind.ValueType, verdict: Verdict, lineup: Lineup) -> decision_pb2.Decision:
    """A decision that holds the verdict, and nothing of what it is about."""
    policy, rule = lineup.policy, verdict.rule
    head = decision_pb2.Decision.FromString(
        _said(
            kind,
            verdict.outcome,
            verdict.rule_id,
            verdict.reason_code,
            decision_pb2.SEVERITY_UNSPECIFIED if rule is None else rule.severity,
            decision_pb2.FOLLOW_UP_UNSPECIFIED if rule is None else rule.follow_up,
            policy.name,
            policy.version,
            lineup.digest,
            policy.digest,
        )
    )
    if verdict.hits:
        head.rule_hits.extend([hit.hit() for hit in verdict.hits])
    if verdict.errors:
        head.rule_errors.extend(verdict.errors)
    if verdict.shadow_hits:
        head.shadow_hits.extend([hit.hit() for hit in verdict.shadow_hits])
    if verdict.shadow_errors:
        head.shadow_errors.extend(verdict.shadow_errors)
    nexus = verdict.seen.nexus
    rests_on = nexus if rule is None or not rule.nexus else nexus & rule.nexus
    head.nexus.extend(sorted(rests_on))
    return head


@lru_cache(maxsize=1024)
def _said(
    kind: decision_pb2.DecisionKind.ValueType,
    outcome: decision_pb2.Outcome.ValueType,
    rule_id: str,
    reason_code: str,
    severity: decision_pb2.Severity.ValueType,
    follow_up: decision_pb2.FollowUp.ValueType,
    policy_name: str,
    policy_version: str,
    policy_digest: str,
    bundle_digest: str,
) -> bytes:
    """What many decisions have in common, in wire format."""
    return decision_pb2.Decision(
        kind=kind,
        outcome=outcome,
        rule_id=rule_id,
        reason_code=reason_code,
        severity=severity,
        follow_up=follow_up,
        policy_name=policy_name,
        policy_version=policy_version,
        policy_digest=policy_digest,
        bundle_digest=bundle_digest,
    ).SerializeToString(deterministic=True)


def _write(head: decision_pb2.Decision, lineup: Lineup, verdict: Verdict, read: Sequence[ReadSignal]) -> Written:
    parts = [head.SerializeToString(deterministic=True), lineup.policy.comparisons(verdict.seen.scores)]
    for signal, position, value in read:
        if value is None or not is_one_field(value, _SIGNAL):
            value = control_pb2.JoinRecord(signal=signal).SerializeToString(deterministic=True)
        record = _record_head(position.topic, position.partition) + varint(position.offset)
        log_time = _FIXED64.pack(position.log_nanos)
        body = _JOINED_SIGNAL % (value, varint(len(record)), record, log_time)
        parts += (_SIGNALS_TAG, varint(len(body)), body)
    return Written(head, b"".join(parts))


def _shadow(head: decision_pb2.Decision, policy: Policy, verdict: Verdict, missing: Sequence[str]) -> None:
    head.shadows.add(
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


@lru_cache(maxsize=4096)
def _record_head(topic: str, partition: int) -> bytes:
    """Coordinates up to the offset's own bytes."""
    return generation_pb2.RecordCoordinates(topic=topic, partition=partition).SerializeToString() + _OFFSET_TAG
