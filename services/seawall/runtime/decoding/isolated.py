"""`IsolatedDecoder`: decoding in worker processes under limits. What an attacker breaks there is replaced, and holds
nothing but the one file."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

import numpy as np

from seawall.core.errors import Retryable
from seawall.runtime import metrics
from seawall.runtime.decoding import messages
from seawall.runtime.decoding.decoder import Decoder, Decoding, InProcessDecoder
from seawall.runtime.decoding.frames import Frame
from seawall.runtime.decoding.limits import DecodingSettings
from seawall.runtime.decoding.pixels import Mode
from seawall.runtime.decoding.unscannable import Reason, Unscannable
from seawall.runtime.logging import get_logger
from seawall.runtime.prefork import Limits, Pool, Worker

#: Deaths in a row, with no file decoded in between, that are no accident any more.
_CRASH_LOOP: Final = 5
#: A worker that computes without pause reaches its CPU limit first; this is for one that waits for something.
_WALL_FACTOR: Final = 4
_log = get_logger(__name__)

Item = TypeVar("Item")


def make_decoder(settings: DecodingSettings, workers: int, measure: str = "", **options: Any) -> Decoder:
    """The decoder that the settings ask for, for so many files at once.

    Args:
        measure: "module:function"; the function makes a `Measure` of a dict of ``options``, which are JSON.

    Raises Retryable("WORKERS_UNAVAILABLE").
    """
    if settings.isolated:
        return IsolatedDecoder(settings, workers, measure, **options)
    module, _, name = measure.partition(":")
    return InProcessDecoder(settings, getattr(importlib.import_module(module), name)(options) if measure else None)


class IsolatedDecoder:
    """See `decoder.Decoder`. A decoding holds one worker until it is read to its end or closed."""

    def __init__(self, settings: DecodingSettings, workers: int, measure: str = "", **options: Any) -> None:
        """Arguments and errors as `make_decoder`."""
        self._max_bytes = settings.max_bytes
        limits = Limits(settings.memory_bytes, settings.cpu_seconds, settings.cpu_seconds * _WALL_FACTOR)
        config = {"limits": settings.model_dump(mode="json"), "measure": measure, "options": options}
        shared = messages.shared_bytes(settings)
        self._workers = _Workers(Pool("seawall.runtime.decoding.worker", config, workers, limits, shared))

    @property
    def pids(self) -> list[int]:
        """The workers' process ids."""
        return self._workers.pool.pids

    def frames(
        self, data: bytes, mode: Mode, min_side: int | None = None, declared: str = "", most: int | None = None
    ) -> Decoding[Frame]:
        """See `Decoder.frames`; in addition Unscannable: TOO_MUCH_MEMORY, TOO_SLOW, DECODER_DIED."""
        begin = messages.frames_begin(len(data))

        def take(message: bytes, worker: Worker) -> tuple[Frame, bool] | None:
            found = messages.take_frame(message, np.frombuffer(worker.memory, np.uint8, offset=begin))
            if found is not None:
                worker.touched = max(worker.touched, begin + found[0].pixels.size)
            return found

        return self._begin(messages.Request(mode, min_side, most, len(data), declared), data, take)

    def measured(
        self, data: bytes, mode: Mode, min_side: int | None = None, declared: str = "", argument: str = ""
    ) -> Decoding[bytes]:
        """See `Decoder.measured`; errors as `frames`."""
        request = messages.Request(mode, min_side, None, len(data), declared, argument)
        return self._begin(request, data, lambda message, _: messages.take_measured(message))

    def close(self) -> None:
        """End the workers."""
        self._workers.pool.close()

    def _begin(
        self, request: messages.Request, data: bytes, take: Callable[[bytes, Worker], tuple[Item, bool] | None]
    ) -> Decoding[Item]:
        if len(data) > self._max_bytes:
            raise Unscannable(Reason.TOO_LARGE, f"the file has more than decoding.max_bytes ({self._max_bytes}) bytes")
        return _Elsewhere(self._workers, request.encode(), data, take)


class _Elsewhere(Generic[Item]):
    """A `Decoding` in a worker, which has begun when this is made."""

    def __init__(
        self,
        workers: _Workers,
        request: bytes,
        data: bytes,
        take: Callable[[bytes, Worker], tuple[Item, bool] | None],
    ) -> None:
        self._workers = workers
        self._take = take
        #: Whether the worker owes an answer, and whether another can be had after it.
        self._owed = self._more = True
        self._worker: Worker | None = None
        self._worker = worker = workers.pool.lease()
        try:
            workers.send(worker, request, data)
        except BaseException:
            self._free()
            raise

    @property
    def due(self) -> float:
        return self._worker.due if self._worker is not None else 0.0

    def fileno(self) -> int:
        return self._worker.fileno() if self._worker is not None else -1

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        worker = self._worker
        if worker is None:
            raise StopIteration
        try:
            if not self._owed and self._more and not worker.send(messages.NEXT):
                raise self._workers.died(worker, slow=False)
            found = self._answer(worker) if self._more else None
        except BaseException:
            self._free()
            raise
        if found is None:
            self._free()
            raise StopIteration
        return found

    def _answer(self, worker: Worker) -> Item | None:
        self._owed = self._more = False
        message = self._workers.receive(worker)
        try:
            found = self._take(message, worker)
        except messages.DecoderFailed:
            # Whatever state it is in, the next file does not meet it.
            self._workers.replace(worker)
            raise
        self._workers.decoded()
        if found is None:
            return None
        self._more = not found[1]
        return found[0]

    def close(self) -> None:
        worker = self._worker
        if worker is None:
            return
        try:
            if self._owed:
                # The next request must not meet this one's answer.
                with suppress(Unscannable, Retryable, messages.DecoderFailed):
                    self._answer(worker)
            if self._more:
                worker.send(messages.STOP)
        finally:
            self._free()

    def _free(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            self._workers.pool.give_back(worker)

    def __del__(self) -> None:
        self.close()


class _Workers:
    """The pool, and what the death of one of its workers means."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._lock = threading.Lock()
        #: Deaths since a file was last decoded.
        self._deaths = 0

    def send(self, worker: Worker, request: bytes, data: bytes) -> None:
        """Raises Unscannable, Retryable."""
        # One that died between two files was not killed by this one.
        for _ in range(2):
            worker.memory[: len(data)] = data
            if worker.send(request):
                worker.touched = len(data)
                return
            self.replace(worker)
        raise self.died(worker, slow=False)

    def receive(self, worker: Worker) -> bytes:
        """Raises Unscannable, Retryable."""
        try:
            message = worker.receive()
        except TimeoutError:
            raise self.died(worker, slow=True) from None
        if not message:
            raise self.died(worker, slow=False)
        return message

    def decoded(self) -> None:
        """A worker has answered."""
        self._deaths = 0

    def died(self, worker: Worker, *, slow: bool) -> Unscannable:
        """What to say of the file that a worker died of; the worker is replaced. Raises Retryable."""
        cause = self.replace(worker)
        if slow or cause == "SIGXCPU":
            return Unscannable(
                Reason.TOO_SLOW, "decoding it takes more than decoding.cpu_seconds: send it smaller, or shorter"
            )
        return Unscannable(
            Reason.DECODER_DIED, f"its decoder died of it ({cause}): send a file made by another program"
        )

    def replace(self, worker: Worker) -> str:
        """Put another in its place, and say what it died of. Raises Retryable."""
        cause = self.pool.replace(worker)
        with self._lock:
            self._deaths += 1
            deaths = self._deaths
        metrics.DECODER_DEATHS.add(1, {metrics.ERROR_TYPE: cause})
        _log.warning("a decoding worker died and was replaced", cause=cause, in_a_row=deaths)
        if deaths == _CRASH_LOOP:
            _log.error("decoding workers die one after the other: no file has been decoded between", cause=cause)
        return cause
