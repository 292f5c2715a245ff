"""The contiguous watermark: how far a partition may be committed when work finishes out of order."""

from __future__ import annotations

from collections import deque


class OffsetTracker:
    """Tracks one partition's records from read to done.

    The watermark never passes a record that is not done, so a crash repeats work and loses none (P1). Offsets are read
    in rising order, perhaps with gaps (the broker's own markers); they are done in any order.
    """

    __slots__ = ("_done", "_pending", "_watermark")

    def __init__(self) -> None:
        self._pending: deque[int] = deque()
        self._done: set[int] = set()
        self._watermark: int | None = None

    def read(self, offset: int) -> None:
        """A record was read and is now in progress."""
        self._pending.append(offset)

    def done(self, offset: int) -> None:
        """Everything that follows from the record has been acknowledged by the broker."""
        pending, done = self._pending, self._done
        if not pending or pending[0] != offset:
            done.add(offset)
            return
        self._watermark = pending.popleft() + 1
        while pending and pending[0] in done:
            head = pending.popleft()
            done.remove(head)
            self._watermark = head + 1

    @property
    def in_progress(self) -> int:
        """Records read and not yet below the watermark."""
        return len(self._pending)

    @property
    def watermark(self) -> int | None:
        """Next offset to commit, or None before the first record is done."""
        return self._watermark
