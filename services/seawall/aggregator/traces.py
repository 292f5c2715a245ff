"""Decide, then trace: once a decision stands, its own span tree is emitted after the fact, with real times.

Blocked, held, reviewed and erroneous generations are always traced; of the rest a configured share, chosen by the
decision's id, so that a replay chooses the same, and some of the slow ones. The tree hangs below the trace context that
came with the generation:

    decide <decisions topic>         generation logged → decided
    ├── measure <stage>              one for each signal: generation logged → signal logged
    │   ├── queue <stage>            … → the relay's poll returned it
    │   ├── batch <stage>            … → the RPC was sent
    │   └── call <stage>             … → the signal was handed to the producer
    │       └── infer <stage>        the service's work on the batch
    └── join <decisions topic>       the last signal logged → decided

The relay's own batch span, which links to the generation, tells of the neighbours in the batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from opentelemetry.trace import SpanKind

from seawall.aggregator.settings import TraceSettings
from seawall.api.decision.v1 import decision_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.decide import Written
from seawall.relay.observe import StreamObserver
from seawall.runtime import metrics, telemetry
from seawall.runtime.allowance import Allowance
from seawall.runtime.topics import TopicNames

_NANOS = 1_000_000_000


class AggregatorObserver(StreamObserver):
    """Observer of the aggregator's engine."""

    def __init__(self, room: str, names: TopicNames, settings: TraceSettings) -> None:
        super().__init__(room)
        self._names = names
        self._settings = settings
        self._slow = Allowance(settings.slow_per_second)

    def decided(self, decisions: Sequence[Written]) -> None:
        """Count the decisions and trace those that are to be; the latency of those is recorded inside the trace."""
        counts: Counter[tuple[decision_pb2.Outcome.ValueType, str]] = Counter()
        recording = telemetry.is_recording()
        for written in decisions:
            head = written.head
            outcome = head.outcome
            counts[outcome, head.rule_id] += 1
            seconds = (head.decided_unix_nano - head.generation_log_unix_nano) / _NANOS
            inside = None
            if recording and self._chosen(head, seconds):
                inside = telemetry.as_current(self._trace(written.whole()))
            if head.kind == decision_pb2.DECISION_KIND_JOINT:
                metrics.DECISION_DURATION.record(seconds, _outcome_attributes(outcome), inside)
        for (outcome, rule_id), count in counts.items():
            metrics.DECISIONS.add(count, {**_outcome_attributes(outcome), metrics.RULE: rule_id})

    def _chosen(self, head: decision_pb2.Decision, seconds: float) -> bool:
        if head.outcome != decision_pb2.OUTCOME_ALLOW:
            return True
        # What has an item in error is never ALLOW.
        if int(head.decision_id[:8], 16) < self._settings.allow_share * 0x1_0000_0000:
            return True
        return seconds > self._settings.slow_seconds and self._slow.take()

    def _trace(self, decision: decision_pb2.Decision) -> telemetry.TraceContext:
        record = decision.generation_record
        began = decision.generation_log_unix_nano or min(_received(decision), default=decision.decided_unix_nano)
        root = telemetry.record_span(
            f"decide {self._names.decisions}",
            SpanKind.CONSUMER,
            began,
            decision.decided_unix_nano,
            parent=telemetry.TraceContext.parse(decision.traceparent),
            attributes={
                metrics.MESSAGING_SYSTEM: "kafka",
                metrics.MESSAGING_OPERATION: "process",
                metrics.MESSAGING_DESTINATION: self._names.generations,
                metrics.MESSAGING_PARTITION: str(record.partition),
                metrics.MESSAGING_OFFSET: record.offset,
                metrics.GENERATION_ID: decision.generation_id,
                metrics.ATTEMPT: decision.attempt,
                metrics.DECISION_ID: decision.decision_id,
                **_outcome_attributes(decision.outcome),
                metrics.RULE: decision.rule_id,
                metrics.POLICY_DIGEST: decision.policy_digest,
            },
        )
        for joined in decision.signals:
            self._trace_signal(joined, began, root)
        if decision.signals:
            last = max(joined.log_unix_nano for joined in decision.signals)
            name = f"join {self._names.decisions}"
            _record(name, min(last, decision.decided_unix_nano), decision.decided_unix_nano, root)
        return root

    def _trace_signal(self, joined: decision_pb2.JoinedSignal, began: int, root: telemetry.TraceContext) -> None:
        signal = joined.signal
        stage, times = signal.stage, signal.timings
        if not times.received_unix_nano or not times.produced_unix_nano:
            return
        worst = max((item.status for item in signal.items), default=signal_pb2.ITEM_STATUS_UNSPECIFIED)
        whole = _record(
            f"measure {stage}",
            began,
            max(joined.log_unix_nano, times.produced_unix_nano),
            root,
            {
                metrics.CONSUMER_GROUP: stage,
                metrics.MESSAGING_DESTINATION: self._names.signals,
                metrics.MESSAGING_PARTITION: str(joined.record.partition),
                metrics.MESSAGING_OFFSET: joined.record.offset,
                metrics.BATCH_SIZE: signal.batch_size,
                metrics.RPC_ATTEMPTS: signal.rpc_attempts,
                metrics.ITEM_STATUS: signal_pb2.ItemStatus.Name(worst).removeprefix("ITEM_STATUS_").lower(),
                metrics.RELAY: signal.relay_instance,
                metrics.SERVICE: signal.service_instance,
            },
        )
        _record(f"queue {stage}", began, times.received_unix_nano, whole)
        if times.sent_unix_nano:
            _record(f"batch {stage}", times.received_unix_nano, times.sent_unix_nano, whole)
            call = _record(f"call {stage}", times.sent_unix_nano, times.produced_unix_nano, whole)
            if times.inference_start_unix_nano:
                _record(f"infer {stage}", times.inference_start_unix_nano, times.inference_end_unix_nano, call)


def _record(
    name: str,
    start: int,
    end: int,
    parent: telemetry.TraceContext,
    attributes: Mapping[str, telemetry.Value] | None = None,
) -> telemetry.TraceContext:
    """A piece of the decision's time. Rooms' clocks differ: what would end before it began has no length."""
    return telemetry.record_span(name, SpanKind.INTERNAL, start, max(start, end), parent=parent, attributes=attributes)


def _received(decision: decision_pb2.Decision) -> Iterator[int]:
    # A late signal knows nothing of its generation's record: its time begins with its own.
    for joined in decision.signals:
        if joined.signal.timings.received_unix_nano:
            yield joined.signal.timings.received_unix_nano


@lru_cache(maxsize=64)
def _outcome_attributes(outcome: decision_pb2.Outcome.ValueType) -> Mapping[str, str]:
    """Not to be changed: they are shared."""
    return {metrics.OUTCOME: decision_pb2.Outcome.Name(outcome)}
