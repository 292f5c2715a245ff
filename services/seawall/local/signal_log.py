"""The signals of a lane: from signals.v1 as it stands now, or from a file that was exported from it.

The file holds the topic's values one after the other, each after its length as a protobuf varint.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import DecodeError

from seawall.api.control.v1 import control_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Fatal, Retryable
from seawall.runtime.broker import Broker

_POLL_RECORDS = 2_000
_POLL_SECONDS = 1.0
#: Polls in a row without a record after which the log's end is given up: compacted tails, aborted writes.
_IDLE_POLLS = 10
#: Signals that a replay may have written twice are told apart within so many: it repeats what is near.
_REMEMBERED = 100_000
#: Kafka's records are far smaller; a longer one is no export.
_MAX_RECORD = 64 * 1024 * 1024


async def read_topic(broker: Broker, topic: str) -> AsyncIterator[signal_pb2.Signal]:
    """Every signal from the topic's beginning to where it ends now, each once.

    Raises:
        Fatal: ``BROKER_UNAVAILABLE``.
    """
    reader = broker.reader([topic])
    fresh = _Fresh()
    await reader.start()
    try:
        ends = {key: end for key, end in (await reader.end_offsets(reader.assignment())).items() if end}
        idle = 0
        while ends and idle < _IDLE_POLLS:
            polled = await reader.poll(max_records=_POLL_RECORDS, timeout=_POLL_SECONDS)
            idle = 0 if polled else idle + 1
            for partition, records in polled.items():
                for record in records:
                    signal = _signal(record.value or b"")
                    if signal is not None and fresh(signal.signal_id):
                        yield signal
                if records[-1].offset + 1 >= ends.get(partition, 0):
                    ends.pop(partition, None)
    except Retryable as error:
        raise Fatal("BROKER_UNAVAILABLE", f"{topic} cannot be read: {error.detail}") from error
    finally:
        await reader.stop()


def read_file(path: Path) -> Iterator[signal_pb2.Signal]:
    """Every signal of an exported file, each once.

    Raises:
        Fatal: ``BAD_SIGNAL_FILE``.
    """
    fresh = _Fresh()
    try:
        with path.open("rb") as stream:
            while (body := _next(stream, path)) is not None:
                signal = _signal(body)
                if signal is not None and fresh(signal.signal_id):
                    yield signal
    except OSError as error:
        raise Fatal("BAD_SIGNAL_FILE", f"{path} cannot be read ({error.strerror})") from error


def write_file(path: Path, signals: Iterable[signal_pb2.Signal]) -> int:
    """Export signals; returns how many."""
    count = 0
    with path.open("wb") as stream:
        for signal in signals:
            body = control_pb2.JoinRecord(signal=signal).SerializeToString()
            size = len(body)
            while size > 0x7F:
                stream.write(bytes((size & 0x7F | 0x80,)))
                size >>= 7
            stream.write(bytes((size,)) + body)
            count += 1
    return count


class _Fresh:
    """Whether an id comes for the first time, among the last ones."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, None] = OrderedDict()

    def __call__(self, signal_id: str) -> bool:
        if signal_id in self._seen:
            return False
        self._seen[signal_id] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return True


def _signal(value: bytes) -> signal_pb2.Signal | None:
    """The record's signal; None for a Deadline and for what does not decode, which the aggregator has set aside."""
    try:
        record = control_pb2.JoinRecord.FromString(value)
    except DecodeError:
        return None
    return record.signal if record.HasField("signal") else None


def _next(stream: BinaryIO, path: Path) -> bytes | None:
    size, shift = 0, 0
    while True:
        byte = stream.read(1)
        if not byte and not shift:
            return None
        if not byte or shift > 28:
            raise _torn(path)
        size |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80:
            break
    body = stream.read(size) if size <= _MAX_RECORD else b""
    if len(body) != size:
        raise _torn(path)
    return body


def _torn(path: Path) -> Fatal:
    return Fatal("BAD_SIGNAL_FILE", f"{path} is no export of signals, or is torn: export it again")
