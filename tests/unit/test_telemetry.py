from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from seawall.api.generation.v1 import generation_pb2
from seawall.core.errors import Fatal, Poison
from seawall.runtime import metrics, telemetry
from seawall.runtime.logging import get_logger
from seawall.runtime.logging import setup as setup_logging
from seawall.runtime.settings import TelemetrySettings
from seawall.runtime.telemetry import CountingProcessor, TraceContext, batch_span, record_span

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TEXT = f"00-{TRACE}-{SPAN}-01"


# Trace context


@pytest.mark.parametrize("text", [TEXT, TEXT.encode(), f"cc-{TRACE}-{SPAN}-01-what-comes-later"])
def test_a_traceparent_is_read(text: str | bytes) -> None:
    assert TraceContext.parse(text) == TraceContext(TRACE, SPAN, 1)


def test_a_traceparent_is_written_as_it_was_read() -> None:
    for flags in ("00", "01", "03"):
        context = TraceContext.parse(f"00-{TRACE}-{SPAN}-{flags}")
        assert str(context) == f"00-{TRACE}-{SPAN}-{flags}"
        assert context is not None
        assert context.sampled == (flags != "00")


@pytest.mark.parametrize(
    "text",
    [
        None, "", "x", b"\xff" * 55, TEXT[:-1], TEXT + "-x", TEXT.upper(), f"ff-{TRACE}-{SPAN}-01", "0" * 10_000,
        f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE[:-1]}g-{SPAN}-01", f"0x-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01x", TEXT.replace("-", "_"),
    ],
)  # fmt: skip
def test_a_malformed_traceparent_is_ignored(text: str | bytes | None) -> None:
    assert TraceContext.parse(text) is None


def test_new_contexts_are_well_formed_and_differ() -> None:
    contexts = {TraceContext.new() for _ in range(100)}
    assert len(contexts) == 100
    assert all(TraceContext.parse(str(context)) == context and context.sampled for context in contexts)
    assert not TraceContext.new(sampled=False).sampled


def test_a_forwarded_record_has_one_traceparent_and_it_is_the_new_one() -> None:
    old = [("traceparent", b"00-old"), ("kept", b"\xff"), ("traceparent", TEXT.encode())]
    new = TraceContext.new()
    headers = telemetry.with_traceparent(old, new)
    assert headers == [("kept", b"\xff"), ("traceparent", str(new).encode())]
    assert telemetry.from_headers(headers) == new
    assert telemetry.with_traceparent(old, None) == [("kept", b"\xff")]
    assert old[0] == ("traceparent", b"00-old")


def test_of_two_traceparents_the_later_counts() -> None:
    assert telemetry.from_headers([("traceparent", b"00-old"), ("traceparent", TEXT.encode())]) == (TRACE, SPAN, 1)
    assert telemetry.from_headers([("other", b"x")]) is None


def test_metadata_carries_the_context() -> None:
    context = TraceContext(TRACE, SPAN, 0)
    assert telemetry.from_metadata(telemetry.metadata(context)) == context
    assert telemetry.from_metadata((("user-agent", "x"), ("traceparent", "broken"))) is None
    assert telemetry.from_metadata(None) is None


# Spans


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    telemetry.install([exporter], TelemetrySettings(), Resource.create({}))
    yield exporter
    telemetry.shutdown(timeout=30)


def finished(exporter: InMemorySpanExporter) -> Sequence[ReadableSpan]:
    telemetry.shutdown(timeout=30)
    return exporter.get_finished_spans()


def test_nothing_is_recorded_by_default_but_the_context_goes_on() -> None:
    parent = TraceContext(TRACE, SPAN, 0)
    with batch_span("score", SpanKind.CONSUMER, parent=parent) as span:
        span.set(metrics.BATCH_SIZE, 3)
        span.fail("X")
        assert span.context == parent
    with batch_span("score", SpanKind.CONSUMER) as span:
        assert not span.context.sampled
        assert TraceContext.parse(str(span.context)) == span.context
    assert record_span("x", SpanKind.INTERNAL, 1, 2, parent=parent) == parent


def test_a_batch_span_links_its_members_and_is_a_trace_of_its_own(exporter: InMemorySpanExporter) -> None:
    members = [TraceContext.new() for _ in range(100)]
    with batch_span("process generations.v1", SpanKind.CONSUMER, links=[None, *members]) as span:
        span.set(metrics.BATCH_SIZE, 100)
        context = span.context
    (recorded,) = finished(exporter)
    assert recorded.parent is None
    assert recorded.name == "process generations.v1"
    assert recorded.attributes == {"moderation.batch.size": 100}
    assert [f"{link.context.trace_id:032x}" for link in recorded.links] == [m.trace_id for m in members[:64]]
    assert recorded.context is not None
    assert context == (f"{recorded.context.trace_id:032x}", f"{recorded.context.span_id:016x}", context.flags)
    assert context.sampled
    assert context.trace_id not in {member.trace_id for member in members}


def test_a_caller_that_is_not_sampled_stays_so(exporter: InMemorySpanExporter) -> None:
    with batch_span("x", SpanKind.SERVER, parent=TraceContext(TRACE, SPAN, 0)) as span:
        assert span.context.trace_id == TRACE
        assert not span.context.sampled
    assert finished(exporter) == ()


def test_few_of_many_batches_get_a_span_and_every_one_that_fails() -> None:
    exporter = InMemorySpanExporter()
    # One at the start, and the next after a day: no test takes so long.
    telemetry.install([exporter], TelemetrySettings(batch_spans_per_second=1 / 86_400), Resource.create({}))
    members = [TraceContext.new()]
    for _ in range(3):
        with batch_span("calm", SpanKind.CONSUMER, links=members):
            pass
    with batch_span("failing", SpanKind.CONSUMER, links=members, attributes={metrics.BATCH_SIZE: 1}) as span:
        assert not span.context.sampled
        span.fail("UNAVAILABLE")
        context = span.context
    calm, failing = finished(exporter)
    assert (calm.name, failing.name) == ("calm", "failing")
    assert failing.attributes == {"moderation.batch.size": 1, "error.type": "UNAVAILABLE"}
    assert [f"{link.context.trace_id:032x}" for link in failing.links] == [members[0].trace_id]
    assert failing.context is not None
    # What the service logged under the context it was given leads to this span.
    assert f"{failing.context.trace_id:032x}" == context.trace_id
    assert failing.start_time is not None
    assert failing.end_time is not None
    assert failing.end_time >= failing.start_time


def test_an_exception_is_named_but_not_quoted(exporter: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="the text"), batch_span("x", SpanKind.SERVER):
        raise ValueError("the text of a prompt")
    with pytest.raises(Poison), batch_span("y", SpanKind.SERVER):
        raise Poison("BAD_ID", "generation_id must match")
    foreign, ours = finished(exporter)
    assert "the text" not in foreign.to_json()
    assert foreign.attributes == {"error.type": "ValueError"}
    assert ours.attributes == {"error.type": "BAD_ID"}
    assert foreign.status.status_code.name == "ERROR"


def test_spans_can_be_recorded_after_the_fact(exporter: InMemorySpanExporter) -> None:
    parent = TraceContext(TRACE, SPAN, 1)
    root = record_span("decide", SpanKind.INTERNAL, 1_000, 5_000, parent=parent, attributes={"a": 1})
    child = record_span("queue", SpanKind.INTERNAL, 2_000, 3_000, parent=root)
    first, second = finished(exporter)
    assert (first.start_time, first.end_time) == (1_000, 5_000)
    assert first.parent is not None
    assert f"{first.parent.span_id:016x}" == SPAN
    assert second.parent is not None
    assert f"{second.parent.span_id:016x}" == root.span_id
    assert child.trace_id == root.trace_id == TRACE


def test_what_is_chosen_after_the_fact_is_recorded_though_the_caller_sampled_nothing(
    exporter: InMemorySpanExporter,
) -> None:
    root = record_span("decide", SpanKind.INTERNAL, 1, 2, parent=TraceContext(TRACE, SPAN, 0))
    record_span("join", SpanKind.INTERNAL, 1, 2, parent=root)
    assert [f"{span.context.trace_id:032x}" for span in finished(exporter) if span.context] == [TRACE, TRACE]


class Hung(SpanExporter):
    """A collector that does not answer."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.entered = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.entered.set()
        assert self.release.wait(60)
        return SpanExportResult.FAILURE


def test_a_hung_collector_costs_spans_not_time() -> None:
    hung = Hung()
    processor = CountingProcessor(hung, max_queue=64)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("test")
    for _ in range(64):
        tracer.start_span("x").end()
    assert hung.entered.wait(30)
    for _ in range(200):
        tracer.start_span("x").end()
    # 64 are with the collector, 64 wait; the queue never held more.
    assert processor.dropped == 200 - 64
    hung.release.set()
    provider.shutdown()
    assert processor._counting.failed == 128


def test_shutdown_does_not_wait_for_a_hung_collector() -> None:
    hung = Hung()
    telemetry.install([hung], TelemetrySettings(), Resource.create({}))
    with batch_span("x", SpanKind.SERVER):
        pass
    telemetry.shutdown(timeout=0.05)
    assert not hung.release.is_set()
    hung.release.set()


class Broken(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        raise RuntimeError("the text of a prompt")


def test_an_outage_is_logged_once_without_what_the_exporter_said(capsys: pytest.CaptureFixture[str]) -> None:
    settings = TelemetrySettings(span_queue_size=64, batch_spans_per_second=1_000_000)
    telemetry.install([Broken()], settings, Resource.create({}))
    for _ in range(500):
        with batch_span("x", SpanKind.SERVER):
            pass
    telemetry.shutdown(timeout=30)
    output = capsys.readouterr().err
    # By name: the thread of another test's collector may still be saying its own last word.
    assert len([line for line in output.splitlines() if "spans cannot be exported" in line and "Broken" in line]) == 1
    assert "the text" not in output


def test_a_collector_that_is_away_is_left_alone_for_a_while_and_what_is_lost_is_counted() -> None:
    now, asked = 100.0, 0

    class Away(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            nonlocal asked
            asked += 1
            return SpanExportResult.FAILURE if asked < 3 else SpanExportResult.SUCCESS

    exporting = telemetry._CountingExporter(Away(), lambda: now)
    spans = [ReadableSpan("x"), ReadableSpan("y")]
    for _ in range(3):
        assert exporting.export(spans) is SpanExportResult.FAILURE
    assert (asked, exporting.failed) == (1, 6)
    now += telemetry.AWAY_SECONDS
    assert exporting.export(spans) is SpanExportResult.FAILURE
    assert exporting.export(spans) is SpanExportResult.FAILURE
    assert (asked, exporting.failed) == (2, 10)
    now += telemetry.AWAY_SECONDS
    # It is back: each batch is tried again.
    assert exporting.export(spans) is SpanExportResult.SUCCESS
    assert exporting.export(spans) is SpanExportResult.SUCCESS
    assert (asked, exporting.failed, exporting.taken) == (4, 10, 14)


def test_the_spans_file_is_json_lines_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "spans.jsonl"
    settings = TelemetrySettings(
        spans_file=path, spans_file_max_bytes=2_000, span_queue_size=64, batch_spans_per_second=1_000_000
    )
    link = TraceContext.new()
    for _ in range(8):
        telemetry.setup(settings, "classification", "classification-0")
        for _ in range(10):
            with batch_span("x", SpanKind.SERVER, links=[link], attributes={metrics.BATCH_SIZE: 2}):
                pass
        telemetry.shutdown(timeout=30)
    files = sorted(file.name for file in path.parent.iterdir())
    assert files == ["spans.jsonl", "spans.jsonl.1"]
    # A batch of spans may go over the mark before the file is turned over.
    assert sum(file.stat().st_size for file in path.parent.iterdir()) < 2 * (2_000 + 10 * 600)
    line = json.loads(path.read_text().splitlines()[0])
    assert line["service.name"] == "classification"
    assert line["service.instance.id"] == "classification-0"
    assert line["attributes"] == {"moderation.batch.size": 2}
    assert line["links"] == [f"{link.trace_id}-{link.span_id}"]
    assert line["end_unix_nano"] >= line["start_unix_nano"] > 0


def test_a_spans_file_that_cannot_be_written_is_fatal(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Fatal, match="spans_file"):
        telemetry.setup(TelemetrySettings(spans_file=tmp_path / "file" / "spans"), "x", "x-0")


# The catalogue


# Logs


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    setup_logging(TelemetrySettings(), "classification", "classification-0", stream)
    yield stream
    setup_logging(TelemetrySettings(), "test", "test-0")
    root.handlers = handlers
    root.setLevel(level)
    structlog.contextvars.clear_contextvars()


def last(stream: io.StringIO) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(stream.getvalue().splitlines()[-1])
    return loaded


def test_a_line_names_room_instance_and_trace(lines: io.StringIO) -> None:
    get_logger("here").info("batch scored", trace_id=TRACE, items=3, share=0.5, ok=True, nothing=None, ids=["a", "b:1"])
    line = last(lines)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "batch scored", "level": "info", "module": "here", "room": "classification",
        "instance": "classification-0", "trace_id": TRACE, "items": 3, "share": 0.5, "ok": True, "nothing": None,
        "ids": ["a", "b:1"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [
        b"secret",
        generation_pb2.SealedText(ciphertext=b"secret"),
        generation_pb2.ContentRef(uri="file:///secret"),
        {"key": "secret"},
        ["a secret text with spaces"],
        [b"secret"],
        Exception("secret"),
        object(),
    ],
)
def test_content_cannot_be_formatted_into_a_log(lines: io.StringIO, value: object) -> None:
    get_logger("here").warning("event", field=value)
    assert "secret" not in lines.getvalue()
    assert last(lines)["field"] == f"<refused: {type(value).__name__}>"


def test_long_texts_and_lists_are_cut(lines: io.StringIO) -> None:
    get_logger("here").info("event", text="x" * 10_000, ids=[str(n) for n in range(1000)])
    assert len(last(lines)["text"]) < 500
    assert len(last(lines)["ids"]) == 17


def test_exceptions_are_told_without_foreign_messages(lines: io.StringIO) -> None:
    log = get_logger("here")
    try:
        try:
            b"secret\xff".decode()
        except UnicodeDecodeError as error:
            raise RuntimeError("secret") from error
    except RuntimeError:
        log.exception("it failed")
    line = last(lines)
    assert (line["error"], line["cause"]) == ("RuntimeError", "UnicodeDecodeError")
    assert line["frames"][-1].startswith("test_telemetry.py:")
    log.error("it failed", exc_info=Poison("BAD_ID", "generation_id must match"))
    assert (last(lines)["reason"], last(lines)["detail"]) == ("BAD_ID", "generation_id must match")
    assert "secret" not in lines.getvalue()


def test_libraries_are_told_by_their_template(lines: io.StringIO) -> None:
    logging.getLogger("asyncio").error("Task exception was never retrieved\nfuture: secret")
    logging.getLogger("some.library").warning("cannot decode %s", "secret")
    assert "secret" not in lines.getvalue()
    assert last(lines)["event"] == "cannot decode %s"
    logging.getLogger("aiokafka.consumer").warning("Heartbeat failed for group %s", "relay")
    assert last(lines)["event"] == "Heartbeat failed for group relay"
    assert last(lines)["module"] == "aiokafka.consumer"
