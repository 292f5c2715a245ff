"""Dead letters with a fuse.

A record that cannot be processed is set aside, sealed, with its coordinates and the reason. The fuse keeps a bad deploy
from setting *everything* aside: when most of the recent records would be diverted, the stage stops instead and says so.
"""

from __future__ import annotations

from collections import deque

from seawall.api.dead_letter.v1 import dead_letter_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.core import identity
from seawall.core.clock import Clock
from seawall.core.errors import Fatal, Poison, SeawallError
from seawall.relay.signals import trace_headers
from seawall.runtime.broker import Output, Record
from seawall.runtime.sealing import Sealer

#: Keys that are longer are left out of a dead letter.
MAX_KEY_BYTES = 1024


class DeadLetters:
    """Makes the dead letters of one room.

    Args:
        max_value_bytes: larger originals are left out (``value_omitted``): the coordinates still lead to them.
    """

    def __init__(
        self, *, room: str, instance: str, topic: str, sealer: Sealer, clock: Clock, max_value_bytes: int = 2_000_000
    ) -> None:
        self._room = room
        self._instance = instance
        self._topic = topic
        self._sealer = sealer
        self._clock = clock
        self._max_value_bytes = max_value_bytes

    def output(self, record: Record, error: SeawallError) -> Output:
        """The record of dead_letters.v1 for ``record``, which failed with ``error``."""
        value = record.value or b""
        # No id of ours is so long, and the letter must not be too large to be written: the coordinates lead to it.
        key = record.key if record.key is None or len(record.key) <= MAX_KEY_BYTES else None
        letter = dead_letter_pb2.DeadLetter(
            dead_letter_id=identity.dead_letter_id(self._room, record.topic, record.partition, record.offset),
            room=self._room,
            instance=self._instance,
            error_class=dead_letter_pb2.ERROR_CLASS_POISON
            if isinstance(error, Poison)
            else dead_letter_pb2.ERROR_CLASS_RETRYABLE,
            reason=error.reason,
            detail=error.detail,
            source=generation_pb2.RecordCoordinates(
                topic=record.topic, partition=record.partition, offset=record.offset
            ),
            key=key or b"",
            headers=dict(trace_headers(record)),
            create_unix_nano=self._clock.now_nanos(),
            original_size_bytes=len(value),
        )
        if len(value) > self._max_value_bytes:
            letter.value_omitted = True
        else:
            associated = f"{record.topic}/{record.partition}/{record.offset}"
            letter.key_id, letter.sealed_value = self._sealer.seal_bytes(value, associated)
        headers = [(key, value) for key, value in letter.headers.items()]
        return Output(self._topic, None, key, letter.SerializeToString(deterministic=True), headers)


class Fuse:
    """Counts how many of the recent records were diverted.

    Args:
        window: how many records it looks back on.
        minimum: diversions below this number never trip it.
        share: the share of the window above which it trips, 0 to 1.
    """

    def __init__(self, *, window: int = 200, minimum: int = 25, share: float = 0.5) -> None:
        self._window = window
        self._minimum = minimum
        self._share = share
        self._seen = 0
        #: Ordinal numbers of the diverted records within the window.
        self._diverted: deque[int] = deque()

    def passed(self, count: int = 1) -> None:
        """``count`` records went through."""
        self._seen += count

    def diverted(self) -> None:
        """One record was set aside."""
        self._diverted.append(self._seen)
        self._seen += 1

    def check(self) -> None:
        """Raise Fatal("FUSE_TRIPPED") if one more diversion is not allowed."""
        while self._diverted and self._diverted[0] < self._seen - self._window:
            self._diverted.popleft()
        looked_at = min(self._seen, self._window)
        if len(self._diverted) >= self._minimum and len(self._diverted) > self._share * looked_at:
            raise Fatal(
                "FUSE_TRIPPED",
                f"{len(self._diverted)} of the last {looked_at} records are dead letters: nothing more is diverted. "
                "Look at the newest dead letters, mend or roll back, then restart this room",
            )
