"""Tracing: W3C trace context through Kafka headers and gRPC metadata, spans of batches, and their export.

The trace context always travels, whether or not anything is recorded. Spans go to an OTLP collector, to a file of JSON
lines, to both or nowhere; what does not fit their queue is dropped and counted, never waited for.
"""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind

from seawall.core.errors import Fatal
from seawall.runtime import metric_export, metrics
from seawall.runtime.allowance import Allowance
from seawall.runtime.logging import get_logger
from seawall.runtime.room_status import status
from seawall.runtime.settings import TelemetrySettings

if TYPE_CHECKING:
    from seawall.runtime.status_server import StatusServer

HEADER = "traceparent"
#: Links of one batch span; a larger batch names its first ones.
MAX_LINKS = 64
#: After an export that failed, spans are dropped for so long before the next is tried.
AWAY_SECONDS = 5.0

_HEX = frozenset("0123456789abcdef")
_EMPTY_CONTEXT = Context()
_SCOPE = InstrumentationScope("seawall")
_log = get_logger(__name__)

Value = str | bool | int | float
Headers = Sequence[tuple[str, bytes]]


class TraceContext(NamedTuple):
    """A W3C trace context: 32 and 16 lower-case hex digits, and the flags (bit 0: sampled)."""

    trace_id: str
    span_id: str
    flags: int = 1

    @classmethod
    def new(cls, *, sampled: bool = True) -> TraceContext:
        """A context with random ids: the root of a trace."""
        return cls(f"{random.getrandbits(128) or 1:032x}", f"{random.getrandbits(64) or 1:016x}", int(sampled))

    @classmethod
    def parse(cls, text: str | bytes | None) -> TraceContext | None:
        """The context in a ``traceparent``; None if it is absent or malformed, as the standard asks."""
        if not text or len(text) > 512:
            return None
        if isinstance(text, bytes):
            try:
                text = text.decode("ascii")
            except UnicodeDecodeError:
                return None
        if len(text) < 55 or text[2] != "-" or text[35] != "-" or text[52] != "-":
            return None
        version, trace_id, span_id, flags = text[:2], text[3:35], text[36:52], text[53:55]
        if not _HEX.issuperset(version + trace_id + span_id + flags) or version == "ff":
            return None
        # Version 00 ends here; a later one may go on after another dash.
        if len(text) > 55 and (version == "00" or text[55] != "-"):
            return None
        if not trace_id.strip("0") or not span_id.strip("0"):
            return None
        return cls(trace_id, span_id, int(flags, 16))

    @property
    def sampled(self) -> bool:
        return bool(self.flags & 1)

    def __str__(self) -> str:
        """The ``traceparent``."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


def from_headers(headers: Headers) -> TraceContext | None:
    """The trace context of a Kafka record. Of several headers the last one counts: the newest writer appended it."""
    for name, value in reversed(headers):
        if name == HEADER:
            return TraceContext.parse(value)
    return None


def with_traceparent(headers: Headers, context: TraceContext | None) -> list[tuple[str, bytes]]:
    """``headers`` with exactly one ``traceparent``: what was there is deleted, then ``context`` is set (None: none)."""
    kept = [header for header in headers if header[0] != HEADER]
    if context is not None:
        kept.append((HEADER, str(context).encode()))
    return kept


def metadata(context: TraceContext) -> tuple[tuple[str, str], ...]:
    """gRPC metadata that carries ``context``, for one call."""
    return ((HEADER, str(context)),)


def from_metadata(pairs: Iterable[tuple[str, str | bytes]] | None) -> TraceContext | None:
    """The trace context of a gRPC call."""
    for name, value in pairs or ():
        if name == HEADER:
            return TraceContext.parse(value)
    return None


class BatchSpan:
    """A span around one batch. Use with ``with``; costs next to nothing when nothing is recorded.

    Args:
        span: None if the batch is not to be recorded.
        late: begins the span after all, should the batch fail.
    """

    __slots__ = ("_failed", "_late", "_span", "context")

    def __init__(
        self, span: trace.Span | None, context: TraceContext, late: Callable[[], trace.Span] | None = None
    ) -> None:
        self._span = span
        self._late = late
        self._failed = False
        #: What calls and records made inside carry on.
        self.context = context

    def set(self, name: str, value: Value) -> None:
        """Set an attribute; its name stands in the catalogue (runtime.metrics)."""
        if self._span is not None:
            self._span.set_attribute(name, value)

    def fail(self, reason: str) -> None:
        """The batch failed; ``reason`` is machine-readable. The first reason stays."""
        if self._span is None and self._late is not None:
            self._span = self._late()
        if self._span is not None and not self._failed:
            self._failed = True
            self._span.set_attribute(metrics.ERROR_TYPE, reason)
            self._span.set_status(trace.StatusCode.ERROR)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        if error is not None:
            # The message stays out: it may quote content.
            self.fail(getattr(error, "reason", type(error).__name__))
        if self._span is not None:
            self._span.end()


def batch_span(
    name: str,
    kind: SpanKind,
    *,
    parent: TraceContext | None = None,
    links: Iterable[TraceContext | None] = (),
    attributes: Mapping[str, Value] | None = None,
) -> BatchSpan:
    """Begin a span for one batch.

    Args:
        name: ``"{operation} {destination}"``, for RPCs the method.
        parent: the caller's context; the span is recorded only if that is sampled. None: the root of a new trace, of
            which `batch_spans_per_second` are recorded, and every one that fails.
        links: the contexts of the batch's members; the first 64 that are there become links.
    """
    tracer = _state.tracer
    if tracer is None:
        return BatchSpan(None, parent or TraceContext.new(sampled=False))
    if parent is not None and not parent.sampled:
        return BatchSpan(None, parent)
    if parent is None and not _state.roots.take():
        context = TraceContext.new(sampled=False)
        began = time.time_ns()

        def late() -> trace.Span:
            # Below the context that has travelled, so that what the service logged leads here.
            seen = _as_parent(context._replace(flags=1))
            return tracer.start_span(name, seen, kind, attributes, _links(links), start_time=began)

        return BatchSpan(None, context, late)
    span = tracer.start_span(name, _as_parent(parent), kind, attributes, _links(links))
    return BatchSpan(span, _context_of(span))


def is_recording() -> bool:
    """True if spans go anywhere: what only feeds a span may be left out otherwise."""
    return _state.tracer is not None


def record_span(
    name: str,
    kind: SpanKind,
    start_nanos: int,
    end_nanos: int,
    *,
    parent: TraceContext | None = None,
    links: Iterable[TraceContext | None] = (),
    attributes: Mapping[str, Value] | None = None,
) -> TraceContext:
    """Record a span after the fact, with its real times (Unix nanoseconds). Returns its context, to be a parent.

    It is recorded even below a parent that was not sampled: the caller chose this one knowing how it ended.
    """
    provider = _state.provider
    if provider is None:
        return parent or TraceContext.new(sampled=False)
    context = TraceContext.new()
    if parent is not None:
        context = TraceContext(parent.trace_id, context.span_id, parent.flags | 1)
    # What is over needs no sampler, no clock and no lock: a tracer's span costs four times as much.
    span = ReadableSpan(
        name,
        _span_context(context, remote=False),
        None if parent is None else _span_context(parent),
        provider.resource,
        attributes,
        links=_links(links),
        kind=kind,
        start_time=start_nanos,
        end_time=end_nanos,
        instrumentation_scope=_SCOPE,
    )
    for processor in _state.processors:
        processor.on_end(span)
    return context


def as_current(context: TraceContext) -> Context:
    """``context`` as OpenTelemetry's own, for a measurement that belongs into that span: exemplars name it."""
    return _as_parent(context)


def setup(settings: TelemetrySettings, service_name: str, instance: str) -> None:
    """Begin to record, if there is anywhere to send it: spans to `otlp_endpoint`, to `spans_file`, or to both; metrics
    to `otlp_endpoint` and, with this room's status, to whoever asks `http_listen`.

    Raises Fatal("BAD_SETTINGS") if the endpoint needs an extra that is not installed, the file cannot be written, or
    the address not be listened on.
    """
    shutdown()
    status.begin(service_name, instance)
    resource = Resource.create({"service.name": service_name, "service.instance.id": instance})
    exporters: list[SpanExporter] = []
    if settings.otlp_endpoint:
        exporters.append(_otlp_spans(settings))
    if settings.spans_file:
        exporters.append(SpansFile(settings.spans_file, settings.spans_file_max_bytes, service_name, instance))
    install(exporters, settings, resource)
    _state.status_server = metric_export.install(settings, resource)


def install(exporters: Sequence[SpanExporter], settings: TelemetrySettings, resource: Resource) -> None:
    """Record to ``exporters``; nothing is recorded if there are none."""
    if not exporters:
        return
    provider = TracerProvider(resource=resource, span_limits=SpanLimits(max_links=MAX_LINKS), shutdown_on_exit=False)
    _state.processors = [CountingProcessor(exporter, settings.span_queue_size) for exporter in exporters]
    for processor in _state.processors:
        provider.add_span_processor(processor)
    _state.provider = provider
    _state.roots = Allowance(settings.batch_spans_per_second)
    _state.tracer = provider.get_tracer(_SCOPE.name)


def shutdown(timeout: float = 2.0) -> None:
    """Export what waits, for ``timeout`` seconds at most, and record no more."""
    provider, _state.provider, _state.tracer, _state.processors = _state.provider, None, None, ()
    server, _state.status_server = _state.status_server, None
    if server is not None:
        server.close()
    if provider is not None:
        # A collector that hangs would hold the SDK for half a minute.
        thread = threading.Thread(target=provider.shutdown, name="telemetry-shutdown", daemon=True)
        thread.start()
        thread.join(timeout)


class CountingProcessor(BatchSpanProcessor):
    """The SDK's batch processor, which also refuses when full (the oldest spans stay) and counts what is lost."""

    def __init__(self, exporter: SpanExporter, max_queue: int) -> None:
        self._counting = _CountingExporter(exporter)
        self._max_queue = max_queue
        self._accepted = 0
        self.dropped = 0
        super().__init__(
            self._counting,
            max_queue_size=max_queue,
            schedule_delay_millis=500,
            max_export_batch_size=min(512, max_queue),
        )

    def on_end(self, span: ReadableSpan) -> None:
        if self._accepted - self._counting.taken >= self._max_queue:
            self.dropped += 1
            metrics.SPANS_DROPPED.add(1, {metrics.DROP_CAUSE: "queue_full"})
            return
        self._accepted += 1
        super().on_end(span)


class _CountingExporter(SpanExporter):
    """Counts what is lost, and leaves a collector that is away alone for a while: encoding spans for nobody, connecting
    and trying again cost more than a collector that answers."""

    def __init__(self, exporter: SpanExporter, clock: Callable[[], float] = time.monotonic) -> None:
        self._exporter = exporter
        self._clock = clock
        self._failing = False
        self._again_at = 0.0
        self.taken = 0
        self.failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        if self._failing and self._clock() < self._again_at:
            return self._lost(spans)
        error: Exception | None = None
        try:
            result = self._exporter.export(spans)
        except Exception as caught:
            result, error = SpanExportResult.FAILURE, caught
        if result is SpanExportResult.SUCCESS:
            self._failing = False
            return result
        if not self._failing:
            # Once per outage: the metric tells the rest.
            _log.warning("spans cannot be exported", exporter=type(self._exporter).__name__, exc_info=error)
        self._failing, self._again_at = True, self._clock() + AWAY_SECONDS
        return self._lost(spans)

    def _lost(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.failed += len(spans)
        metrics.SPANS_DROPPED.add(len(spans), {metrics.DROP_CAUSE: "export_failed"})
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class SpansFile(SpanExporter):
    """Writes spans as JSON lines, and turns the file over to ``<name>.1`` when it is full."""

    def __init__(self, path: Path, max_bytes: int, service_name: str, instance: str) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._names = {"service.name": service_name, "service.instance.id": instance}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise Fatal("BAD_SETTINGS", f"telemetry.spans_file: {path} cannot be written ({error.strerror})") from None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._file.tell() >= self._max_bytes:
            self._file.close()
            self._path.replace(self._path.with_name(self._path.name + ".1"))
            self._file = self._path.open("a", encoding="utf-8")
        self._file.writelines(json.dumps(self._line(span)) + "\n" for span in spans)
        self._file.flush()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._file.close()

    def _line(self, span: ReadableSpan) -> dict[str, Any]:
        context = span.get_span_context()
        return {
            **self._names,
            "name": span.name,
            "kind": span.kind.name,
            "trace_id": f"{context.trace_id:032x}" if context else "",
            "span_id": f"{context.span_id:016x}" if context else "",
            "parent_span_id": f"{span.parent.span_id:016x}" if span.parent else None,
            "start_unix_nano": span.start_time,
            "end_unix_nano": span.end_time,
            "status": span.status.status_code.name,
            "attributes": dict(span.attributes or {}),
            "links": [f"{link.context.trace_id:032x}-{link.context.span_id:016x}" for link in span.links],
        }


class _State:
    """What `setup` installed. One a process, as logs are."""

    roots = Allowance(1.0)
    provider: TracerProvider | None = None
    processors: Sequence[CountingProcessor] = ()
    tracer: trace.Tracer | None = None
    status_server: StatusServer | None = None


_state = _State()


def _links(contexts: Iterable[TraceContext | None]) -> list[trace.Link]:
    return [trace.Link(_span_context(context)) for context in itertools.islice(filter(None, contexts), MAX_LINKS)]


def _span_context(context: TraceContext, *, remote: bool = True) -> trace.SpanContext:
    flags = trace.TraceFlags(context.flags)
    return trace.SpanContext(int(context.trace_id, 16), int(context.span_id, 16), remote, flags)


def _as_parent(context: TraceContext | None) -> Context:
    # An explicit context, empty for a root: whatever a library left in the thread's own context is not our parent.
    if context is None:
        return _EMPTY_CONTEXT
    return trace.set_span_in_context(trace.NonRecordingSpan(_span_context(context)), _EMPTY_CONTEXT)


def _context_of(span: trace.Span) -> TraceContext:
    context = span.get_span_context()
    return TraceContext(f"{context.trace_id:032x}", f"{context.span_id:016x}", int(context.trace_flags))


def _otlp_spans(settings: TelemetrySettings) -> SpanExporter:
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise metric_export.extra_missing() from None
    return OTLPSpanExporter(endpoint=settings.otlp_endpoint, timeout=settings.export_timeout_seconds)
