"""Hot swap: looks whether packs or models have changed, loads everything anew beside what serves, and swaps.

A change is acted on once it has stood still between two looks: a folder that is still being copied is left alone. What
does not load, compile or verify is refused with a log line and a metric, and not tried again until it changes; what
served goes on. Neither line nor metric says what is in a pack.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from seawall.core.errors import SeawallError
from seawall.runtime import metrics
from seawall.runtime.fingerprint import fingerprint
from seawall.runtime.logging import get_logger

_log = get_logger(__name__)
_T = TypeVar("_T")


class Reloader(Generic[_T]):
    """Keeps what serves up to date.

    Args:
        paths: files and folders to look at.
        load: makes what is to serve, verified.
        swap: called with it.
    """

    def __init__(self, paths: Sequence[Path], load: Callable[[], _T], swap: Callable[[_T], None]) -> None:
        self._paths = paths
        self._load = load
        self._swap = swap
        self._stop = threading.Event()
        self._settled = self._before = fingerprint(paths)

    def start(self, seconds: float) -> None:
        """Look so often, on a thread of its own, until `stop`."""

        def body() -> None:
            while not self._stop.wait(seconds):
                self.look()

        threading.Thread(target=body, name="reload", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()

    def look(self) -> bool:
        """Look once; take up what has changed and stood still since the last look. True if something new serves."""
        before, self._before = self._before, fingerprint(self._paths)
        if self._before != before or self._before == self._settled:
            return False
        self._settled = self._before
        try:
            loaded = self._load()
        except SeawallError as error:
            self._refuse(error.reason, error.detail)
            return False
        except Exception as error:
            # Whatever a new pack or model meets on its way in, what serves is not to be touched. The class alone is
            # told: a message or a trace of foreign code might quote a pattern.
            self._refuse(type(error).__name__, "loading failed unexpectedly")
            return False
        self._swap(loaded)
        metrics.MODEL_RELOADS.add(1, {metrics.RELOAD_RESULT: "swapped"})
        _log.info("packs and models swapped")
        return True

    def _refuse(self, reason: str, detail: str) -> None:
        metrics.MODEL_RELOADS.add(1, {metrics.RELOAD_RESULT: "refused"})
        _log.error("changed packs or models refused; what served goes on", reason=reason, detail=detail)
