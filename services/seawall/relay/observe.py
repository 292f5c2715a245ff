"""What a room of the stream path tells the outside: logs, metrics, spans of batches, the ready file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opentelemetry.trace import SpanKind

from seawall.runtime import metrics, telemetry
from seawall.runtime.broker import Record
from seawall.runtime.events import Level, level
from seawall.runtime.logging import get_logger
from seawall.runtime.readiness import ReadyFile
from seawall.runtime.room_status import status

#: Events that say why a room is not ready, if it is not.
_UNREADY = frozenset({"poll_failed", "produce_failed", "write_failed", "take_over_failed"})


class StreamObserver:
    """Observer of a relay's or the aggregator's engine."""

    def __init__(self, room: str) -> None:
        self._room = room
        self._log = get_logger(room)
        self._ready_file = ReadyFile()

    def event(self, name: str, **fields: Any) -> None:
        """Log and count something an operator may ask about."""
        error = fields.pop("error", None)
        reason = fields.get("reason", "")
        if name == "halted":
            status.blocked(f"{reason}: {fields.get('detail', '')}")
            metrics.HALTED.set(1, {metrics.ERROR_TYPE: reason})
        elif name in _UNREADY:
            status.blocked(reason)
        metrics.STREAM_EVENTS.add(1, {metrics.EVENT: name, metrics.ERROR_TYPE: reason})
        match level(name):
            case Level.ALARM:
                self._log.error(name, exc_info=error, **fields)
            case Level.CALM:
                self._log.info(name, **fields)
            case Level.WARNING:
                self._log.warning(name, **fields)

    def ready(self, ready: bool) -> None:
        """Keep the ready file true, and say when it changes."""
        if self._ready_file.set(ready):
            self.event("ready" if ready else "not_ready")


class RelayObserver(StreamObserver):
    """Observer of a relay's engine."""

    def __init__(self, room: str, topic: str) -> None:
        super().__init__(room)
        self._span_name = f"process {topic}"
        self._attributes = {
            metrics.MESSAGING_SYSTEM: "kafka",
            metrics.MESSAGING_OPERATION: "process",
            metrics.MESSAGING_DESTINATION: topic,
            metrics.CONSUMER_GROUP: room,
        }

    def batch(self, records: Sequence[Record]) -> telemetry.BatchSpan:
        """A span around the batch, linked to the traces of its generations; some are recorded, and all that fail."""
        return telemetry.batch_span(
            self._span_name,
            SpanKind.CONSUMER,
            links=(telemetry.from_headers(record.headers) for record in records),
            attributes={**self._attributes, metrics.BATCH_SIZE: len(records)},
        )
