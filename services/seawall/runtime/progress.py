"""How far this process's group members have come, in seconds: kept by the consumer, read when metrics are collected.

A partition's lag is the age of the oldest record that was read and is not committed. It needs no look at the broker,
and it grows by itself when nothing moves: while a call hangs, a fuse has tripped, or the broker is away.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from seawall.runtime import metrics
from seawall.runtime.broker import Record, TopicPartition

#: Polls remembered for one partition; of later ones the lag is told by the last one remembered, and so too high.
_MAX_MARKS = 4_096
_MILLIS = 1_000.0


@dataclass
class _Partition:
    #: (first offset, its log time in Unix milliseconds) of each poll that is not committed, oldest first.
    marks: deque[tuple[int, int]] = field(default_factory=deque)
    #: Next offset to read, and to commit.
    read: int = 0
    committed: int | None = None
    #: When the watermark moved last, or work came to wait behind it; monotonic seconds.
    moved: float = 0.0


class Progress:
    """One consumer's progress, by partition. Written by the loop, read by another thread."""

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._partitions: dict[TopicPartition, _Partition] = {}

    def tell(self) -> None:
        """Let the gauges read it."""
        metrics.LAG.watch(self.lag)
        metrics.WATERMARK_AGE.watch(self.watermark_age)

    def tell_no_more(self) -> None:
        """It has ended."""
        metrics.LAG.forget(self.lag)
        metrics.WATERMARK_AGE.forget(self.watermark_age)

    def read(self, polled: Mapping[TopicPartition, Sequence[Record]]) -> None:
        """Records were handed out."""
        for key, records in polled.items():
            if not records:
                continue
            state = self._partitions.setdefault(TopicPartition(*key), _Partition())
            if not state.marks:
                state.moved = self._monotonic()
            if len(state.marks) < _MAX_MARKS:
                state.marks.append((records[0].offset, records[0].timestamp))
            state.read = records[-1].offset + 1

    def committed(self, offsets: Mapping[TopicPartition, int]) -> None:
        """The broker took these offsets: everything before them is settled."""
        for key, offset in offsets.items():
            partition = TopicPartition(*key)
            state = self._partitions.get(partition)
            if state is None or offset == state.committed:
                continue
            first = state.marks[0][0] if state.committed is None and state.marks else state.committed
            if first is not None and offset > first:
                metrics.RECORDS_SETTLED.add(offset - first, {metrics.MESSAGING_DESTINATION: partition.topic})
            state.committed = offset
            state.moved = self._monotonic()
            if offset >= state.read:
                state.marks.clear()
            while len(state.marks) > 1 and state.marks[1][0] <= offset:
                state.marks.popleft()

    def revoked(self, partitions: Collection[TopicPartition]) -> None:
        """These are another member's now."""
        for partition in partitions:
            self._partitions.pop(TopicPartition(*partition), None)

    def lag(self) -> Iterator[tuple[float, Mapping[str, str]]]:
        """Seconds by topic: its slowest partition's."""
        now = self._wall()
        yield from self._slowest(lambda state, log_ms: now - log_ms / _MILLIS)

    def watermark_age(self) -> Iterator[tuple[float, Mapping[str, str]]]:
        """Seconds by topic that the watermark has stood still while work waited behind it."""
        now = self._monotonic()
        yield from self._slowest(lambda state, _: now - state.moved)

    def _slowest(self, age: Callable[[_Partition, int], float]) -> Iterator[tuple[float, Mapping[str, str]]]:
        slowest: dict[str, float] = {}
        for partition, state in list(self._partitions.items()):
            try:
                seconds = max(age(state, state.marks[0][1]), 0.0)
            except IndexError:
                seconds = 0.0  # nothing waits
            slowest[partition.topic] = max(slowest.get(partition.topic, 0.0), seconds)
        for topic, seconds in slowest.items():
            yield seconds, {metrics.MESSAGING_DESTINATION: topic}
