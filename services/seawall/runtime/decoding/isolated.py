"""`IsolatedDecoder`: decoding in worker processes under limits. What an attacker breaks there is replaced, and holds
nothing but the one file."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import numpy as np

from seawall.runtime import metrics
from seawall.runtime.decoding import messages
from seawall.runtime.decoding.decoder import Decoder, InProcessDecoder
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
    """The decoder that the settings ask for, for so many threads.

    Args:
        measure: "module:function"; the function makes a `Measure` of a dict of ``options``, which are JSON.

    Raises Retryable("WORKERS_UNAVAILABLE").
    """
    if settings.isolated:
        return IsolatedDecoder(settings, workers, measure, **options)
    module, _, name = measure.partition(":")
    return InProcessDecoder(settings, getattr(importlib.import_module(module), name)(options) if measure else None)


class IsolatedDecoder:
    """See `decoder.Decoder`. A thread that asks for frames holds one worker until the last of them."""

    def __init__(self, settings: DecodingSettings, workers: int, measure: str = "", **options: Any) -> None:
        """Arguments and errors as `make_decoder`."""
        self._max_bytes = settings.max_bytes
        limits = Limits(settings.memory_bytes, settings.cpu_seconds, settings.cpu_seconds * _WALL_FACTOR)
        config = {"limits": settings.model_dump(mode="json"), "measure": measure, "options": options}
        shared = messages.shared_bytes(settings)
        self._pool = Pool("seawall.runtime.decoding.worker", config, workers, limits, shared)
        self._lock = threading.Lock()
        #: Deaths since a file was last decoded.
        self._deaths = 0

    @property
    def pids(self) -> list[int]:
        """The workers' process ids."""
        return self._pool.pids

    def frames(
        self, data: bytes, mode: Mode, min_side: int | None = None, declared: str = "", most: int | None = None
    ) -> Iterator[Frame]:
        """See `Decoder.frames`; in addition Unscannable: TOO_MUCH_MEMORY, TOO_SLOW, DECODER_DIED."""
        begin = messages.frames_begin(len(data))

        def take(message: bytes, worker: Worker) -> tuple[Frame, bool] | None:
            found = messages.take_frame(message, np.frombuffer(worker.memory, np.uint8, offset=begin))
            if found is not None:
                worker.touched = max(worker.touched, begin + found[0].pixels.size)
            return found

        return self._exchange(messages.Request(mode, min_side, most, len(data), declared), data, take)

    def measured(
        self, data: bytes, mode: Mode, min_side: int | None = None, declared: str = "", argument: str = ""
    ) -> Iterator[bytes]:
        """See `Decoder.measured`; errors as `frames`."""
        request = messages.Request(mode, min_side, None, len(data), declared, argument)
        return self._exchange(request, data, lambda message, _: messages.take_measured(message))

    def _exchange(
        self, request: messages.Request, data: bytes, take: Callable[[bytes, Worker], tuple[Item, bool] | None]
    ) -> Iterator[Item]:
        if len(data) > self._max_bytes:
            raise Unscannable(Reason.TOO_LARGE, f"the file has more than decoding.max_bytes ({self._max_bytes}) bytes")
        with self._pool.lease() as worker:
            self._send(worker, request.encode(), data)
            last = False
            while not last:
                message = self._receive(worker)
                try:
                    found = take(message, worker)
                except messages.DecoderFailed:
                    # Whatever state it is in, the next file does not meet it.
                    self._replace(worker)
                    raise
                self._deaths = 0
                if found is None:
                    return
                item, last = found
                try:
                    yield item
                except GeneratorExit:
                    if not last:
                        worker.send(messages.STOP)
                    raise
                if not last and not worker.send(messages.NEXT):
                    raise self._died(worker, slow=False)

    def close(self) -> None:
        """End the workers."""
        self._pool.close()

    def _send(self, worker: Worker, request: bytes, data: bytes) -> None:
        # One that died between two files was not killed by this one.
        for _ in range(2):
            worker.memory[: len(data)] = data
            if worker.send(request):
                worker.touched = len(data)
                return
            self._replace(worker)
        raise self._died(worker, slow=False)

    def _receive(self, worker: Worker) -> bytes:
        try:
            message = worker.receive()
        except TimeoutError:
            raise self._died(worker, slow=True) from None
        if not message:
            raise self._died(worker, slow=False)
        return message

    def _died(self, worker: Worker, *, slow: bool) -> Unscannable:
        cause = self._replace(worker)
        if slow or cause == "SIGXCPU":
            return Unscannable(
                Reason.TOO_SLOW, "decoding it takes more than decoding.cpu_seconds: send it smaller, or shorter"
            )
        return Unscannable(
            Reason.DECODER_DIED, f"its decoder died of it ({cause}): send a file made by another program"
        )

    def _replace(self, worker: Worker) -> str:
        cause = self._pool.replace(worker)
        with self._lock:
            self._deaths += 1
            deaths = self._deaths
        metrics.DECODER_DEATHS.add(1, {metrics.ERROR_TYPE: cause})
        _log.warning("a decoding worker died and was replaced", cause=cause, in_a_row=deaths)
        if deaths == _CRASH_LOOP:
            _log.error("decoding workers die one after the other: no file has been decoded between", cause=cause)
        return cause
