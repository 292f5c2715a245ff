"""From a completed join to the Decision that explains it. Deterministic: the same records give the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core import identity
from seawall.core.errors import Poison
from seawall.core.join import Completed, Position, ReadSignal
from seawall.core.policy import RULE_MALFORMED, Policy, Verdict


def _coordinates(position: Position) -> generation_pb2.RecordCoordinates:
    return generation_pb2.RecordCoordinates(topic=position.topic, partition=position.partition, offset=position.offset)


def _nexus_of(signals: Iterable[signal_pb2.Signal]) -> list[generation_pb2.Nexus.ValueType]:
    return sorted({item.nexus for signal in signals for item in signal.items if item.nexus})


def _explain(decision: decision_pb2.Decision, policy: Policy, verdict: Verdict, signals: Sequence[ReadSignal]) -> None:
    decision.outcome = verdict.outcome
    decision.rule_id = verdict.rule_id
    decision.reason_code = verdict.reason_code
    for rule in verdict.hits:
        decision.rule_hits.add(rule_id=rule.rule_id, outcome=rule.outcome, reason_code=rule.reason_code)
    decision.rule_errors.extend(verdict.errors)
    decision.policy_name = policy.name
    decision.policy_digest = policy.digest
    decision.comparisons.extend(verdict.comparisons)
    for read in signals:
        decision.signals.add(
            signal=read.signal, record=_coordinates(read.position), log_unix_nano=read.position.log_nanos
        )
    decision.nexus.extend(_nexus_of(read.signal for read in signals))


def joint(completed: Completed, policy: Policy) -> decision_pb2.Decision:
    """The decision over a generation and the signals that were joined to it."""
    joined, completed_by = completed
    generation = joined.generation
    missing = joined.missing
    signals = [joined.signals[stage] for stage in sorted(joined.signals)]
    verdict = policy.judge(generation, [read.signal for read in signals], missing)
    decision = decision_pb2.Decision(
        decision_id=identity.decision_id(generation.generation_id, generation.attempt, policy.digest),
        kind=decision_pb2.DECISION_KIND_JOINT,
        generation_id=generation.generation_id,
        attempt=generation.attempt,
        tenant_id=generation.tenant_id,
        actor_id=generation.actor_id,
        conversation_id=generation.conversation_id,
        model=generation.model,
        modality=generation.modality,
        missing_stages=missing,
        generation_record=_coordinates(joined.position),
        generation_log_unix_nano=joined.position.log_nanos,
        completed_by=_coordinates(completed_by),
        decided_unix_nano=completed_by.log_nanos,
        traceparent=joined.traceparent,
        # The engine makes HOLD only while attempts are left: every HOLD of a readable record is scanned again.
        rescanned=verdict.outcome == decision_pb2.OUTCOME_HOLD,
    )
    _explain(decision, policy, verdict, signals)
    return decision


def amendment(read: ReadSignal, policy: Policy) -> decision_pb2.Decision | None:
    """The decision that a late signal causes by itself, or None where it has nothing to add.

    The generation is not at hand any more: rules see one with its id and attempt only.
    """
    signal = read.signal
    stub = generation_pb2.Generation(generation_id=signal.generation_id, attempt=signal.attempt)
    verdict = policy.judge_alone(stub, signal)
    if verdict is None:
        return None
    position = read.position
    decision = decision_pb2.Decision(
        decision_id=identity.amendment_id(
            signal.signal_id, position.topic, position.partition, position.offset, policy.digest
        ),
        kind=decision_pb2.DECISION_KIND_AMENDMENT,
        generation_id=signal.generation_id,
        attempt=signal.attempt,
        generation_record=signal.generation_record,
        completed_by=_coordinates(position),
        decided_unix_nano=position.log_nanos,
    )
    _explain(decision, policy, verdict, [read])
    return decision


def malformed(
    generation_id: str, position: Position, traceparent: str, error: Poison, policy: Policy
) -> decision_pb2.Decision:
    """The HOLD for a generation record that cannot be read. Not scanned again: a person redrives the dead letter."""
    return decision_pb2.Decision(
        decision_id=identity.decision_id(f"{generation_id}@{position.partition}:{position.offset}", 0, policy.digest),
        kind=decision_pb2.DECISION_KIND_JOINT,
        generation_id=generation_id,
        outcome=decision_pb2.OUTCOME_HOLD,
        rule_id=RULE_MALFORMED,
        reason_code=error.reason,
        policy_name=policy.name,
        policy_digest=policy.digest,
        generation_record=_coordinates(position),
        generation_log_unix_nano=position.log_nanos,
        completed_by=_coordinates(position),
        decided_unix_nano=position.log_nanos,
        traceparent=traceparent,
    )
