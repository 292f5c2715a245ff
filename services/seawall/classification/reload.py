"""Hot swap: looks whether the rollout or a pack has changed, loads what changed beside what serves, and swaps.

A change is acted on once it has stood still between two looks: a folder that is still being copied is left alone. What
cannot be loaded is refused with a log line and a metric, and not tried again until it changes; what served goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from seawall.classification.lineup import Lineup
from seawall.classification.rollout import Rollout
from seawall.core.errors import SeawallError
from seawall.runtime import metrics
from seawall.runtime.fingerprint import Fingerprint, fingerprint
from seawall.runtime.logging import get_logger

_log = get_logger(__name__)


class Reloader:
    """Keeps a lineup up to date.

    Args:
        read: the rollout as it is now.
        load: makes its lineup from the one that serves.
        swap: called with a new lineup, proven.
        serving: the rollout and lineup to begin with.
        file: the rollout file, if there is one.
    """

    def __init__(
        self,
        read: Callable[[], Rollout],
        load: Callable[[Rollout, Lineup], Lineup],
        swap: Callable[[Lineup], None],
        serving: tuple[Rollout, Lineup],
        file: Path | None,
    ) -> None:
        self._read = read
        self._load = load
        self._swap = swap
        self._rollout, self._lineup = serving
        self._file = file
        self._stop = threading.Event()
        self._settled = self._before = self._fingerprint()

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
        """Look once; take up what has changed and stood still since the last look. True if there is a new lineup."""
        before, self._before = self._before, self._fingerprint()
        if self._before != before or self._before == self._settled:
            return False
        self._settled = self._before
        try:
            # Packs that are named for the first time are part of the next look's fingerprint: set it after reading.
            self._rollout = rollout = self._read()
            self._settled = self._before = self._fingerprint()
            lineup = self._load(rollout, self._lineup)
        except SeawallError as error:
            self._refuse(error.reason, error.detail)
            return False
        except Exception as error:
            # Whatever a new model meets on its way in, the one that serves is not to be touched.
            self._refuse(type(error).__name__, "loading failed unexpectedly", error)
            return False
        self._lineup = lineup
        self._swap(lineup)
        metrics.MODEL_RELOADS.add(1, {metrics.RELOAD_RESULT: "swapped"})
        _log.info("models swapped", models=", ".join(sorted(head.model_name for head in lineup.heads.values())))
        return True

    def _refuse(self, reason: str, detail: str, error: Exception | None = None) -> None:
        metrics.MODEL_RELOADS.add(1, {metrics.RELOAD_RESULT: "refused"})
        _log.error("changed models refused; what served goes on", reason=reason, detail=detail, exc_info=error)

    def _fingerprint(self) -> Fingerprint:
        paths: list[Path] = [*([self._file] if self._file else []), *self._rollout.packs]
        return fingerprint(paths)
