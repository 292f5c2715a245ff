"""Flood quarantine: an entry that suddenly matches far more *different* content than ever is probably a bad entry.

A flat picture or a logo that found its way into a list matches half of what a platform makes. Counted is distinct
content, by its SHA-256, that an entry matched loosely (exact matches are no accident): the same picture sent a
thousand times is one. An entry is taken up when a window holds more than `minimum`, and more than `factor` times what
its windows held before.

Memory is bounded: so many entries are watched, those longest unseen are forgotten first, and an entry's window stops
counting when it has tripped.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from pydantic import Field

from seawall.runtime.settings import Group, Seconds

_WATCHED: Final = 65_536
#: Weight of the newest window in an entry's history.
_NEWEST: Final = 0.3


class FloodSettings(Group):
    """When an entry is held for review because it matches too much."""

    # Length of a window.
    window_seconds: Seconds = 600.0
    # Different pictures that an entry may match in a window, whatever its history.
    minimum: int = Field(default=50, ge=2, le=1_000_000)
    # Above the minimum: how many times its history it may match.
    factor: float = Field(default=20.0, ge=1, allow_inf_nan=False)


class _Watched:
    __slots__ = ("began", "content", "history", "tripped")

    def __init__(self, began: float) -> None:
        self.began = began
        self.content: set[bytes] = set()
        #: Different content a window, weighted towards the newest.
        self.history = 0.0
        self.tripped = False


class FloodWatch:
    """Counts of one process. Safe for threads."""

    def __init__(self, settings: FloodSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[str, str], _Watched] = OrderedDict()

    def observe(self, bank: str, entry_id: str, content: bytes) -> bool:
        """An entry matched this content, by its SHA-256, loosely. Returns True once, when that makes it a flood."""
        now = self._clock()
        with self._lock:
            watched = self._entries.get((bank, entry_id))
            if watched is None:
                watched = self._entries[bank, entry_id] = _Watched(now)
                if len(self._entries) > _WATCHED:
                    self._entries.popitem(last=False)
            self._entries.move_to_end((bank, entry_id))
            self._turn(watched, now)
            if watched.tripped:
                return False
            watched.content.add(content[:8])
            watched.tripped = len(watched.content) > self._allowed(watched)
            return watched.tripped

    def flooding(self, bank: str, entry_id: str) -> bool:
        """Whether an entry has tripped: from then on until it is released or the process ends."""
        with self._lock:
            watched = self._entries.get((bank, entry_id))
            return watched is not None and watched.tripped

    def release(self, bank: str, entry_id: str) -> None:
        """A person has looked at the entry: begin anew."""
        with self._lock:
            self._entries.pop((bank, entry_id), None)

    def _allowed(self, watched: _Watched) -> float:
        return max(self._settings.minimum, self._settings.factor * watched.history)

    def _turn(self, watched: _Watched, now: float) -> None:
        windows = int((now - watched.began) / self._settings.window_seconds)
        if windows < 1:
            return
        watched.history = (1 - _NEWEST) * watched.history + _NEWEST * len(watched.content)
        # Windows in which nothing matched.
        watched.history *= (1 - _NEWEST) ** min(windows - 1, 100)
        watched.began += windows * self._settings.window_seconds
        watched.content.clear()
