"""The records of a replay: read from the topics, or from a file that an earlier replay exported.

The file: a line that names the format, then gzip'd frames. Prompts are in it as they are in the topic, sealed.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, cast

from seawall.core.errors import Fatal
from seawall.core.join import Position
from seawall.runtime.broker import Broker, TopicPartition
from seawall.runtime.topics import TopicNames

_MAGIC: Final = b"seawall-replay 1\n"
#: Kind, partition, offset, log time in Unix milliseconds, size.
_FRAME = struct.Struct("<BIqqI")
_MILLIS = 1_000_000
_MAX_VALUE = 64 * 1024 * 1024
_CHUNK = 1024 * 1024
_POLL_RECORDS = 20_000
_POLL_SECONDS = 1.0
#: Polls in a row that bring nothing: what is left was deleted by retention.
_QUIET_POLLS = 5
GENERATION: Final = 0
SIGNAL: Final = 1


#: A record of generations.v1 or signals.v1: GENERATION or SIGNAL, where it stood (without its topic's name), its value.
#: A plain tuple, for there are millions: a named one takes ten times as long to make.
ReplayRecord = tuple[int, Position, bytes]


class Stretch(NamedTuple):
    """Log time from ``since`` to before ``until``, Unix milliseconds. Signals are read past the end, for generations
    that were still open."""

    since: int
    until: int


async def from_topics(broker: Broker, names: TopicNames, stretch: Stretch) -> AsyncIterator[list[ReplayRecord]]:
    """The generations of a stretch, and every signal from its begin on, in log order by partition and topic.

    Raises Retryable while Kafka cannot be asked.
    """
    kinds = {names.generations: GENERATION, names.signals: SIGNAL}
    reader = broker.reader([names.generations, names.signals])
    await reader.start()
    try:
        partitions = sorted(reader.assignment())
        ends = {at: end for at, end in (await reader.end_offsets(partitions)).items() if end > 0}
        begins = await reader.offsets_at(ends, stretch.since)
        left: dict[TopicPartition, int] = {}
        for at, end in ends.items():
            begin = begins.get(at)
            if begin is not None and begin < end:
                reader.seek(at, begin)
                left[at] = end
        reader.pause([at for at in partitions if at not in left])
        quiet = 0
        while left and quiet < _QUIET_POLLS:
            polled = await reader.poll(max_records=_POLL_RECORDS, timeout=_POLL_SECONDS)
            quiet = 0 if polled else quiet + 1
            batch: list[ReplayRecord] = []
            # Generations first, as the aggregator reads them: fewer signals have to wait.
            for at, records in sorted(polled.items(), key=lambda item: kinds[item[0][0]]):
                kind, end = kinds[at[0]], left.get(TopicPartition(*at), 0)
                for record in records:
                    past = kind == GENERATION and record.timestamp >= stretch.until
                    if record.offset >= end or past:
                        break
                    position = Position("", record.partition, record.offset, record.timestamp * _MILLIS)
                    batch.append((kind, position, record.value or b""))
                if records and (
                    records[-1].offset + 1 >= end or (kind == GENERATION and records[-1].timestamp >= stretch.until)
                ):
                    left.pop(TopicPartition(*at), None)
                    reader.pause([TopicPartition(*at)])
            if batch:
                yield batch
    finally:
        await reader.stop()


class Export:
    """Writes records to a file. A context manager."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise Fatal("UNWRITABLE_FILE", f"{path}: {error.strerror}: give a path that can be written") from error
        self._file.write(_MAGIC)
        self._gzip = gzip.GzipFile(fileobj=self._file, mode="wb", compresslevel=3, mtime=0)

    def write(self, records: Sequence[ReplayRecord]) -> None:
        """Append records."""
        for kind, (_, partition, offset, log_nanos), value in records:
            self._gzip.write(_FRAME.pack(kind, partition, offset, log_nanos // _MILLIS, len(value)))
            self._gzip.write(value)

    def __enter__(self) -> Export:
        return self

    def __exit__(self, *_: object) -> None:
        self._gzip.close()
        self._file.close()


def from_file(path: Path, batch: int = 20_000) -> Iterator[list[ReplayRecord]]:
    """The records of an exported file.

    Raises:
        Fatal: BAD_EXPORT if it is no export, or is cut off.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise Fatal("BAD_EXPORT", f"{path}: is no export of `seawall policy replay --export`")
            with gzip.GzipFile(fileobj=file, mode="rb") as stream:
                yield from _batches(cast(BinaryIO, stream), path, batch)
    except OSError as error:
        raise Fatal("BAD_EXPORT", f"{path}: {error.strerror or 'is not whole'}: export it again") from error
    except (EOFError, zlib.error) as error:
        raise Fatal("BAD_EXPORT", f"{path}: is cut off or changed: export it again") from error


def _batches(stream: BinaryIO, path: Path, size: int) -> Iterator[list[ReplayRecord]]:
    records: list[ReplayRecord] = []
    unpack, head = _FRAME.unpack_from, _FRAME.size
    data, at = b"", 0
    while more := stream.read(_CHUNK):
        data, at = data[at:] + more, 0
        last = len(data) - head
        while at <= last:
            kind, partition, offset, timestamp, length = unpack(data, at)
            if kind > SIGNAL or length > _MAX_VALUE:
                raise Fatal("BAD_EXPORT", f"{path}: holds a frame that this version does not know: export it again")
            begin = at + head
            end = begin + length
            if end > len(data):
                break
            records.append((kind, Position("", partition, offset, timestamp * _MILLIS), data[begin:end]))
            at = end
        if len(records) >= size:
            yield records
            records = []
    if at < len(data):
        raise Fatal("BAD_EXPORT", f"{path}: is cut off: export it again")
    if records:
        yield records


__all__ = ["GENERATION", "SIGNAL", "Export", "ReplayRecord", "Stretch", "from_file", "from_topics"]
