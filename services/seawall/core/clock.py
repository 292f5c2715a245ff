"""Time as a dependency, so that the simulation can own it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of wall-clock time."""

    def now_nanos(self) -> int:
        """Unix nanoseconds."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_nanos(self) -> int:
        return time.time_ns()


class ManualClock:
    """A clock that moves only when told to. For tests and the simulation."""

    def __init__(self, start_nanos: int = 1_700_000_000_000_000_000) -> None:
        self._now = start_nanos

    def now_nanos(self) -> int:
        return self._now

    def advance(self, nanos: int) -> None:
        """Move forward; a negative step models a clock that is set back."""
        self._now += nanos
