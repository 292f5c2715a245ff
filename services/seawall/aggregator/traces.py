"""Decide, then trace: once a decision stands, its own span tree is emitted after the fact, with real times.

Blocked, held, reviewed and erroneous generations are always traced; of the rest a configured share, chosen by the
decision's id, so that a replay chooses the same, and some of the slow ones. The tree hangs below the trace context that
came with the generation:

    decide <decisions topic>
    ├── join
    └── <stage>                one for each signal: received → produced
        └── rpc                sent → inference end
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

from opentelemetry.trace import SpanKind

from seawall.aggregator.settings import TraceSettings
from seawall.api.decision.v1 import decision_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.decide import Written
from seawall.relay.observe import StreamObserver
from seawall.runtime import metrics, telemetry
from seawall.runtime.topics import TopicNames

_NANOS = 1_000_000_000


class AggregatorObserver(StreamObserver):
    """Observer of the aggregator's engine."""

    def __init__(self, room: str, names: TopicNames, settings: TraceSettings) -> None:
        super().__init__(room)
        self._names = names
        self._settings = settings
        self._slow = _Allowance(settings.slow_per_second)

    def decided(self, decisions: Sequence[Written]) -> None:
        """Count the decisions, and trace those that are to be."""
        counts: Counter[tuple[decision_pb2.Outcome.ValueType, str]] = Counter()
        recording = telemetry.is_recording()
        for written in decisions:
            head = written.head
            outcome = head.outcome
            counts[outcome, head.rule_id] += 1
            seconds = (head.decided_unix_nano - head.generation_log_unix_nano) / _NANOS
            if head.kind == decision_pb2.DECISION_KIND_JOINT:
                metrics.DECISION_DURATION.record(seconds, _outcome_attributes(outcome))
            if recording and self._chosen(head, seconds):
                self._trace(written.whole())
        for (outcome, rule_id), count in counts.items():
            metrics.DECISIONS.add(count, {**_outcome_attributes(outcome), metrics.RULE: rule_id})

    def _chosen(self, head: decision_pb2.Decision, seconds: float) -> bool:
        if head.outcome != decision_pb2.OUTCOME_ALLOW:
            return True
        # What has an item in error is never ALLOW.
        if int(head.decision_id[:8], 16) < self._settings.allow_share * 0x1_0000_0000:
            return True
        return seconds > self._settings.slow_seconds and self._slow.take()

    def _trace(self, decision: decision_pb2.Decision) -> None:
        incoming = telemetry.TraceContext.parse(decision.traceparent)
        record = decision.generation_record
        root = telemetry.record_span(
            f"decide {self._names.decisions}",
            SpanKind.CONSUMER,
            decision.generation_log_unix_nano or decision.decided_unix_nano,
            decision.decided_unix_nano,
            parent=incoming,
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
            self._trace_signal(joined, root)

    def _trace_signal(self, joined: decision_pb2.JoinedSignal, root: telemetry.TraceContext) -> None:
        signal = joined.signal
        times = signal.timings
        if not times.received_unix_nano or not times.produced_unix_nano:
            return
        worst = max((item.status for item in signal.items), default=signal_pb2.ITEM_STATUS_UNSPECIFIED)
        stage = telemetry.record_span(
            f"process {signal.stage}",
            SpanKind.CONSUMER,
            times.received_unix_nano,
            times.produced_unix_nano,
            parent=root,
            attributes={
                metrics.CONSUMER_GROUP: signal.stage,
                metrics.MESSAGING_PARTITION: str(joined.record.partition),
                metrics.MESSAGING_OFFSET: joined.record.offset,
                metrics.BATCH_SIZE: signal.batch_size,
                metrics.RPC_ATTEMPTS: signal.rpc_attempts,
                metrics.ITEM_STATUS: signal_pb2.ItemStatus.Name(worst),
            },
        )
        if times.sent_unix_nano and times.inference_end_unix_nano:
            telemetry.record_span(
                f"rpc {signal.stage}",
                SpanKind.CLIENT,
                times.sent_unix_nano,
                max(times.inference_end_unix_nano, times.sent_unix_nano),
                parent=stage,
                attributes={metrics.RPC_SYSTEM: "grpc"},
            )


@lru_cache(maxsize=64)
def _outcome_attributes(outcome: decision_pb2.Outcome.ValueType) -> Mapping[str, str]:
    """Not to be changed: they are shared."""
    return {metrics.OUTCOME: decision_pb2.Outcome.Name(outcome)}


class _Allowance:
    """So many a second, and a second's worth at once."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._left = per_second
        self._at = time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self._left = min(self._per_second, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
