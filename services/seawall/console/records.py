"""Decisions from Kafka itself: one by its coordinates; or all of a generation, and a person's word on it, by a search
through both topics.

Both are bounded in time, and done one at a time: a browser that asks a thousand times must not open a thousand clients.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from seawall.api.decision.v1 import decision_pb2
from seawall.api.override.v1.override_pb2 import Override
from seawall.core.errors import Retryable, SeawallError
from seawall.local.explain import Found, find
from seawall.oncall import overrides
from seawall.runtime.broker import Broker, Consumer, TopicPartition

_POLL_SECONDS: Final = 0.25
#: Searches that may wait for the one in progress; more are refused.
_MAX_WAITING: Final = 4


class Place(NamedTuple):
    """Where a decision's record stands in decisions.v1."""

    partition: int
    offset: int


class DecisionRecords:
    """Reads decisions.v1 and overrides.v1 outside any group.

    Args:
        topic: decisions.v1 in its lane.
        overrides: overrides.v1 in its lane.
        record_seconds: for all records of one page.
        scan_seconds: for a search through the whole of both topics.
    """

    def __init__(
        self, broker: Broker, topic: str, overrides: str, *, record_seconds: float, scan_seconds: float
    ) -> None:
        self._broker = broker
        self._topic = topic
        self._overrides = overrides
        self._record_seconds = record_seconds
        self._scan_seconds = scan_seconds
        self._reader: Consumer | None = None
        self._reading = asyncio.Lock()
        self._scanning = asyncio.Lock()
        self._waiting = 0

    async def at(self, places: Sequence[Place]) -> list[Found]:
        """The decisions at these coordinates; what retention has deleted, or is no decision, is left out.

        Raises Retryable("RECORDS_UNAVAILABLE") if Kafka does not answer in time.
        """
        try:
            async with asyncio.timeout(self._record_seconds), self._reading:
                reader = await self._started()
                found = [await self._one(reader, place) for place in places]
                return [one for one in found if one is not None]
        except (TimeoutError, SeawallError) as error:
            await self.close()
            raise Retryable("RECORDS_UNAVAILABLE", "Kafka did not give the decision's record in time") from error

    async def of(self, generation_id: str) -> tuple[list[Found], Override | None]:
        """Every decision of a generation that the topic holds, and a person's last word on it.

        Raises:
            Retryable: SCAN_UNAVAILABLE (Kafka is away, or too slow for what the topic holds), SCANS_WAITING.
        """
        if self._waiting >= _MAX_WAITING:
            raise Retryable("SCANS_WAITING", "other searches through Kafka are in progress: try again in a moment")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._scan_seconds), self._scanning:
                found = await find(self._broker, self._topic, generation_id)
                # Nothing is overridden that is not decided.
                said = await overrides.of_generation(self._broker, self._overrides, generation_id) if found else None
                return found, said
        except (TimeoutError, SeawallError) as error:
            raise Retryable(
                "SCAN_UNAVAILABLE",
                f"Kafka was not read to its end within {self._scan_seconds:g} s: `seawall why` takes longer",
            ) from error
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """Let the client go; the next question makes another."""
        reader, self._reader = self._reader, None
        if reader is not None:
            await reader.stop()

    async def _started(self) -> Consumer:
        if self._reader is None:
            reader = self._broker.reader([self._topic])
            await reader.start()
            # Else it would fetch the whole topic ahead.
            reader.pause(reader.assignment())
            self._reader = reader
        return self._reader

    async def _one(self, reader: Consumer, place: Place) -> Found | None:
        wanted = TopicPartition(self._topic, place.partition)
        if wanted not in reader.assignment():
            return None
        if place.offset >= (await reader.end_offsets([wanted]))[wanted]:
            return None
        reader.seek(wanted, place.offset)
        reader.resume([wanted])
        try:
            # Until the time limit of `at`.
            while not (records := (await reader.poll(max_records=1, timeout=_POLL_SECONDS)).get(wanted)):
                pass
        finally:
            reader.pause([wanted])
        record = records[0]
        if record.offset != place.offset:
            return None
        try:
            decision = decision_pb2.Decision.FromString(record.value or b"")
        except DecodeError:
            return None
        return Found(decision, self._topic, place.partition, place.offset, record.value or b"")


class Ends:
    """Where topics end: the offset that the next record of each partition will get."""

    def __init__(self, broker: Broker, topics: Iterable[str]) -> None:
        self._broker = broker
        self._topics = list(topics)
        self._readers: list[Consumer] = []

    async def look(self) -> Mapping[TopicPartition, int]:
        """Ask now. Raises Retryable or Fatal as the broker seam; the next look begins afresh."""
        try:
            if not self._readers:
                for topic in self._topics:
                    reader = self._broker.reader([topic])
                    self._readers.append(reader)
                    await reader.start()
                    reader.pause(reader.assignment())
            ends: dict[TopicPartition, int] = {}
            for reader in self._readers:
                ends.update(await reader.end_offsets(reader.assignment()))
            return ends
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Let the clients go."""
        readers, self._readers = self._readers, []
        for reader in readers:
            await reader.stop()
