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

    def total(self, service: str, name: str, **attributes: str) -> float:
        """The sum of a room's metric over the points with these attributes (``__`` for a dot); of a histogram, how many
        measurements. 0 where it was not sent."""
        with self.changed:
            metric = self.metrics.get((service, name))
        kind = metric.WhichOneof("data") if metric else None
        if metric is None or kind is None:
            return 0.0
        wanted = {(key.replace("__", "."), value) for key, value in attributes.items()}
        total: float = sum(
            point.count if kind == "histogram" else getattr(point, point.WhichOneof("value"))
            for point in getattr(metric, kind).data_points
            if wanted <= attributes_of(point.attributes).items()
        )
        return total

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
    """A collector that can go away; another at its ``port`` is the same one come back."""

    def __init__(self, port: int = 0) -> None:
        self.received = Received()
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(  # type: ignore[no-untyped-call]
            _Traces(self.received), self._server
        )
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(  # type: ignore[no-untyped-call]
            _Metrics(self.received), self._server
        )
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Stoppable:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Go away; again changes nothing."""
        self._server.stop(1).wait()


def exporting(endpoint: str) -> dict[str, str]:
    """Settings of a room that exports there often and does not wait long, for ``Lane.start``."""
    return {
        "TELEMETRY__OTLP_ENDPOINT": endpoint,
        "TELEMETRY__METRICS_INTERVAL_SECONDS": "0.5",
        "TELEMETRY__EXPORT_TIMEOUT_SECONDS": "1",
    }


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
