"""An event loop whose time is a number: a wait of ten minutes takes as long as what happens in it."""

from __future__ import annotations

import asyncio
from typing import Any

from seawall.core.clock import Clock

_NANOS = 1_000_000_000
_TURN_SECONDS = 1e-6
#: Unix nanoseconds at the beginning of every simulation.
EPOCH = 1_700_000_000 * _NANOS


class NothingLeftError(RuntimeError):
    """Every task waits, and no timer is left that could wake one."""


class VirtualTimeLoop(asyncio.BaseEventLoop):
    """Runs what is ready; when nothing is, time jumps to the next timer. No sockets, no threads, no signals."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        # BaseEventLoop asks its selector how long to wait; this one need not wait.
        self._selector = self

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise NothingLeftError("every task waits for something that nobody will do")
        # A turn takes time, if only a little: a timer that is due in an instant must not be due for ever.
        self._now += max(timeout, _TURN_SECONDS)
        return []

    def _process_events(self, events: list[Any]) -> None:
        return None

    def _write_to_self(self) -> None:
        raise RuntimeError("the simulation is of one thread: nothing may wake it from another")


class SimulatedClock(Clock):
    """A process's wall clock: the loop's time and an error of its own.

    Args:
        error: seconds that it is ahead.
        strobe: every second reading is so many seconds the other way.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, error: float = 0.0, strobe: bool = False) -> None:
        self._loop = loop
        self._strobe = strobe
        self._readings = 0
        self.error = error

    def now_nanos(self) -> int:
        self._readings += 1
        error = -self.error if self._strobe and self._readings % 2 else self.error
        return EPOCH + int((self._loop.time() + error) * _NANOS)
