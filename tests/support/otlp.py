"""An OTLP collector of the tests' own: real gRPC, and everything it was sent in memory."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Span:
    """A span as it arrived; ids in hex."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    attributes: Mapping[str, Any]
    #: (trace id, span id) of each link.
    links: tuple[tuple[str, str], ...]
    failed: bool


@dataclass
class Received:
    """What a collector was sent so far. Safe for threads."""

    spans: dict[str, list[Span]] = field(default_factory=lambda: defaultdict(list))
    #: By room and name, the last of each.
    metrics: dict[tuple[str, str], metrics_pb2.Metric] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def every_span(self) -> list[Span]:
        with self.changed:
            return [span for spans in self.spans.values() for span in spans]

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait until what was received makes ``condition`` true; its value."""
        with self.changed:
            assert self.changed.wait_for(condition, _PATIENCE_SECONDS), f"the collector never received {what}"
            return condition()


class _Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, received: Received) -> None:
        self._received = received

    def Export(self, request: Any, context: Any) -> Any:
        with self._received.changed:
            for resource in request.resource_spans:
                service = attributes_of(resource.resource.attributes)["service.name"]
                for scope in resource.scope_spans:
                    for one in scope.spans:
                        span = _span(service, one)
                        self._received.spans[span.trace_id].append(span)
            self._received.changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()


class _Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self, received: Received) -> None:
        self._received = received

    def Export(self, request: Any, context: Any) -> Any:
        with self._received.changed:
            for resource in request.resource_metrics:
                service = attributes_of(resource.resource.attributes)["service.name"]
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        self._received.metrics[service, metric.name] = metric
            self._received.changed.notify_all()
        return metrics_service_pb2.ExportMetricsServiceResponse()


class Stoppable:
    """A collector that can go away."""

    def __init__(self) -> None:
        self.received = Received()
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(  # type: ignore[no-untyped-call]
            _Traces(self.received), self._server
        )
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(  # type: ignore[no-untyped-call]
            _Metrics(self.received), self._server
        )
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Stoppable:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Go away; again changes nothing."""
        self._server.stop(1).wait()


@contextmanager
def collector() -> Iterator[tuple[str, Received]]:
    """A running collector: its endpoint, and what it receives."""
    with Stoppable() as running:
        yield running.endpoint, running.received


def attributes_of(pairs: Any) -> dict[str, Any]:
    """Attributes by name, values as Python has them."""
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: common_pb2.AnyValue) -> Any:
    return getattr(value, value.WhichOneof("value") or "string_value")


def _span(service: str, one: trace_pb2.Span) -> Span:
    return Span(
        service=service,
        name=one.name,
        kind=trace_pb2.Span.SpanKind.Name(one.kind).removeprefix("SPAN_KIND_"),
        trace_id=one.trace_id.hex(),
        span_id=one.span_id.hex(),
        parent_id=one.parent_span_id.hex(),
        start=one.start_time_unix_nano,
        end=one.end_time_unix_nano,
        attributes=attributes_of(one.attributes),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in one.links),
        failed=one.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
    )
