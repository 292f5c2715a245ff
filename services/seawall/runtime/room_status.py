"""What this process says of itself to whoever asks `/status`: which room it is, whether it works, and on what it rests.

One a process, as logs are. Nothing here is content: names, versions, digests, counts and reasons.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from seawall import __version__
from seawall.runtime import metrics

_DOCUMENT_VERSION = 1


class RoomStatus:
    """See `status`, the process's own."""

    def __init__(self) -> None:
        self.room = ""
        self._instance = ""
        self._started = time.time()
        self._ready = False
        self._since = self._started
        self._why = "it is starting"
        self._parts: dict[str, Callable[[], Any]] = {}
        metrics.READY.watch(self._observe)

    def begin(self, room: str, instance: str) -> None:
        """This process is that room."""
        self.room, self._instance = room, instance

    @property
    def is_ready(self) -> bool:
        return self._ready

    def ready(self, ready: bool) -> None:
        """It works, or has stopped doing so."""
        if ready != self._ready:
            self._ready, self._since = ready, time.time()
        if ready:
            self._why = ""

    def blocked(self, why: str) -> None:
        """Why it does not work: reason and mend, for a person."""
        self._why = why

    def about(self, part: str, describe: Callable[[], Any]) -> None:
        """Let ``describe`` tell of a part of the room, as plain data, each time somebody asks."""
        self._parts[part] = describe

    def document(self) -> dict[str, Any]:
        """Everything, as plain data. Instants are Unix seconds."""
        return {
            "document": _DOCUMENT_VERSION,
            "room": self.room,
            "instance": self._instance,
            "version": __version__,
            "pid": os.getpid(),
            "started": self._started,
            "now": time.time(),
            "ready": self._ready,
            "since": self._since,
            "why": self._why,
            **{part: describe() for part, describe in self._parts.items()},
        }

    def _observe(self) -> Iterator[tuple[float, Mapping[str, str]]]:
        if self.room:
            yield float(self._ready), {}


#: This process's.
status = RoomStatus()
