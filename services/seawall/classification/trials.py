"""Runs the models on trial, beside the item's own work: whatever they do, the item's result is what it would have been.

They have threads of their own, because a model that hangs cannot be interrupted: the item waits for its trial for a
bounded time, and when every thread is held, trials are left out at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from seawall.api.signal.v1 import signal_pb2
from seawall.classification.head import Head
from seawall.classification.labels import Highest
from seawall.classification.pictures import PreparedFrame
from seawall.core.errors import SeawallError
from seawall.runtime.logging import get_logger
from seawall.runtime.workers import Job, Workers

#: Reasons of a trial without scores, besides those of the model's own errors.
TIMEOUT, SHED, INTERNAL = "TRIAL_TIMEOUT", "TRIAL_SHED", "INTERNAL"
_log = get_logger(__name__)


class Trials:
    """Scores frames with models on trial. Safe for threads; never raises for what a model does.

    Args:
        threads: trials at a time, one an item.
        patience: seconds that an item waits for its trial.
    """

    def __init__(self, threads: int, patience: float) -> None:
        self._workers = Workers(threads, "trial")
        self._patience = patience
        self._free = threading.BoundedSemaphore(threads)

    def __call__(self, heads: Sequence[Head], frames: Sequence[PreparedFrame]) -> list[signal_pb2.ShadowScores]:
        """What each model says of the frames, in order; with a reason where it says nothing."""
        said = {head.model_name: signal_pb2.ShadowScores(model=head.model_name, reason=TIMEOUT) for head in heads}
        if not self._free.acquire(blocking=False):
            for one in said.values():
                one.reason = SHED
            return list(said.values())
        finished = threading.Event()
        given_up = threading.Event()

        def work(_: int) -> None:
            for head in heads:
                if given_up.is_set():
                    return
                # Replaced whole: the item may have stopped waiting and be reading.
                said[head.model_name] = _score(head, frames)

        def done() -> None:
            self._free.release()
            finished.set()

        self._workers.submit(Job(1, work, time.monotonic() + self._patience, done))
        if not finished.wait(self._patience):
            given_up.set()
        return list(said.values())

    def close(self) -> None:
        """End the threads that are not held by a model."""
        self._workers.stop()


def _score(head: Head, frames: Sequence[PreparedFrame]) -> signal_pb2.ShadowScores:
    shadow = signal_pb2.ShadowScores(model=head.model_name)
    try:
        highest = Highest(head.model_name)
        found = head.scores([frame.pixels[head.preprocessor] for frame in frames])
        for frame, scores in zip(frames, found, strict=True):
            highest.see(frame.number, scores)
        highest.add_to(shadow.labels)
    except SeawallError as error:
        shadow = signal_pb2.ShadowScores(model=head.model_name, reason=error.reason)
    except Exception as error:
        # A model on trial may break in ways nobody has met: the item must not.
        _log.warning("a model on trial failed", model=head.model_name, exc_info=error)
        shadow = signal_pb2.ShadowScores(model=head.model_name, reason=INTERNAL)
    return shadow
