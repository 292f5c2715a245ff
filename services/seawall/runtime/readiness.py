"""The ready file: how a room tells its supervisor, or a probe, that it does its work. Its status says the same."""

from __future__ import annotations

import os
from pathlib import Path

from seawall.runtime.room_status import status

#: Names the file; unset: nobody asks.
VARIABLE = "SEAWALL_READY_FILE"


class ReadyFile:
    """Exists while the room is ready. ``set`` may be called as often as one likes: it acts on changes only."""

    def __init__(self, path: Path | None = None) -> None:
        """Args:
        path: the file; None: the one named by SEAWALL_READY_FILE, if any.
        """
        named = os.environ.get(VARIABLE)
        self._path = path or (Path(named) if named else None)
        self._ready: bool | None = None

    def set(self, ready: bool) -> bool:
        """Make the file be there, or not. Returns True if that is a change."""
        if ready == self._ready:
            return False
        self._ready = ready
        status.ready(ready)
        if self._path is not None:
            if ready:
                self._path.write_text(f"{os.getpid()}\n", encoding="ascii")
            else:
                self._path.unlink(missing_ok=True)
        return True
