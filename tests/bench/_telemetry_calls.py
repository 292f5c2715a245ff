"""The telemetry that rooms of a mesh do for an event, alone in one process: a child of bench telemetry.

python -m tests.bench._telemetry_calls ENDPOINT BATCH     an OTLP endpoint or "off"; prints CPU seconds an event
"""

from __future__ import annotations

import sys
import time

from opentelemetry.trace import SpanKind

from seawall.aggregator.settings import TraceSettings
from seawall.aggregator.traces import AggregatorObserver
from seawall.api.decision.v1 import decision_pb2
from seawall.core.decide import Written
from seawall.relay.observe import RelayObserver
from seawall.runtime import metrics, telemetry
from seawall.runtime.memory import InMemoryRecord
from seawall.runtime.settings import TelemetrySettings
from seawall.runtime.topics import TopicNames

EVENTS = 8_000
STAGES = ("prompt_scoring", "perceptual_hashing", "classification")
#: One in so many is blocked, and so traced.
_BLOCKED_EVERY = 50
_MILLI = 1_000_000


def decision(number: int, traceparent: str) -> Written:
    """A decision over three signals, 30 ms after its generation."""
    now = time.time_ns()
    blocked = number % _BLOCKED_EVERY == 0
    made = decision_pb2.Decision(
        # Spread evenly: the share of ALLOW that is traced is chosen by it.
        decision_id=f"{number * 2_654_435_761 % 2**32:08x}{0:024x}",
        kind=decision_pb2.DECISION_KIND_JOINT,
        generation_id=f"generation-{number}",
        attempt=1,
        outcome=decision_pb2.OUTCOME_BLOCK if blocked else decision_pb2.OUTCOME_ALLOW,
        rule_id="rule",
        generation_log_unix_nano=now - 30 * _MILLI,
        decided_unix_nano=now,
        traceparent=traceparent,
    )
    for stage in STAGES:
        joined = made.signals.add(log_unix_nano=now)
        joined.signal.stage = stage
        for place, name in enumerate(("received", "batched", "sent", "inference_start", "inference_end", "produced")):
            setattr(joined.signal.timings, f"{name}_unix_nano", made.generation_log_unix_nano + (place + 1) * _MILLI)
    return Written(made, made.SerializeToString())


def stage(relay: RelayObserver, records: list[InMemoryRecord]) -> None:
    """One batch through a relay and its service."""
    method = {metrics.RPC_SYSTEM: "grpc", metrics.RPC_METHOD: "package.Service/Method"}
    status = {metrics.RPC_METHOD: "package.Service/Method", metrics.RPC_STATUS: "OK"}
    with relay.batch(records) as span:
        with telemetry.batch_span(
            "package.Service/Method", SpanKind.SERVER, parent=span.context, attributes=method
        ) as own:
            own.set(metrics.BATCH_SIZE, len(records))
            own.set(metrics.QUEUE_SECONDS, 0.001)
            own.set(metrics.RPC_STATUS, "OK")
            metrics.BATCHES_ACTIVE.add(1)
            metrics.BATCHES_ACTIVE.add(-1)
            metrics.BATCH_LIMIT.set(16)
            metrics.BATCH_QUEUE_DURATION.record(0.001)
            metrics.BATCH_ITEMS.add(len(records), {metrics.ITEM_STATUS: "ok"})
            metrics.RPC_SERVER_DURATION.record(0.01, status)
        metrics.RPC_CLIENT_DURATION.record(0.01, status)
    metrics.RECORDS_SETTLED.add(len(records), {metrics.MESSAGING_DESTINATION: "generations.v1"})


def main() -> None:
    """Do it for EVENTS events."""
    endpoint, batch = sys.argv[1], int(sys.argv[2])
    if endpoint != "off":
        settings = TelemetrySettings(otlp_endpoint=endpoint, http_listen="127.0.0.1:0", metrics_interval_seconds=5)
        telemetry.setup(settings, "bench", "bench-0")
    names = TopicNames()
    aggregator, relay = (
        AggregatorObserver("aggregator", names, TraceSettings()),
        RelayObserver("relay", "generations.v1"),
    )
    traceparent = str(telemetry.TraceContext.new())
    decisions = [decision(number, traceparent) for number in range(1_000)]
    headers = (("traceparent", traceparent.encode()),)
    records = [InMemoryRecord("generations.v1", 0, number, 0, b"key", b"", headers) for number in range(batch)]
    began = time.process_time()
    for first in range(0, EVENTS, batch):
        for _ in STAGES:
            stage(relay, records)
        for _ in records:
            metrics.RESULT_CACHE.add(2, {metrics.CACHE_RESULT: "miss"})
            metrics.SCORES.record(0.1, {metrics.MODEL: "model@1", metrics.LABEL: "label"})
        aggregator.decided([decisions[(first + number) % len(decisions)] for number in range(batch)])
    telemetry.shutdown()
    print((time.process_time() - began) / EVENTS)


if __name__ == "__main__":
    main()
