"""`IsolatedDecoder`: decoding in worker processes under limits. What an attacker breaks there is replaced, and holds
nothing but the one file."""

from __future__ import annotations

import importlib
import threading
import time
from collections import deque
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
from seawall.runtime.prefork import Limits, Pool
from seawall.runtime.prefork_line import Turn, Worker
from seawall.runtime.workers import BEGUN

#: Deaths in a row, with no file decoded in between, that are no accident any more.
_CRASH_LOOP: Final = 5
#: A worker that computes without pause reaches its CPU limit first; this is for one that waits for something.
_WALL_FACTOR: Final = 4
#: Files that stand in line before a worker which says of them in a few bytes what is wanted; and of how many bytes, of
#: which the last file may exceed it. While it is on one half, its thread is on the other: see `prefork_line`.
_LINE: Final = 32
_LINE_BYTES: Final = 2 * 1024 * 1024
#: Workers for what stands behind a file that takes long.
_SPARE: Final = 1
_log = get_logger(__name__)

Item = TypeVar("Item")


def make_decoder(settings: DecodingSettings, threads: int, measure: str = "", **options: Any) -> Decoder:
    """The decoder that the settings ask for.

    Args:
        threads: how many will use it; each has `BEGUN` decodings at once, at most, or as many as have `room`.
        measure: "module:function"; the function makes a `Measure` of a dict of ``options``, which are JSON.

    Raises Retryable("WORKERS_UNAVAILABLE").
    """
    if settings.isolated:
        return IsolatedDecoder(settings, threads + _SPARE, measure, **options)
    module, _, name = measure.partition(":")
    return InProcessDecoder(settings, getattr(importlib.import_module(module), name)(options) if measure else None)


class IsolatedDecoder:
    """See `decoder.Decoder`. A decoding holds a place with one of its workers until it is read to its end or closed.

    A thread's decodings stand in line before one worker and are best read in the order in which they were begun; one
    that is read before its turn moves to another worker.
    """

    def __init__(self, settings: DecodingSettings, workers: int, measure: str = "", **options: Any) -> None:
        """``workers`` are processes; the other arguments and errors as `make_decoder`."""
        self._max_bytes = settings.max_bytes
        limits = Limits(settings.memory_bytes, settings.cpu_seconds, settings.cpu_seconds * _WALL_FACTOR)
        config = {"limits": settings.model_dump(mode="json"), "measure": measure, "options": options}
        place = messages.place_bytes(settings)
        # Who is given frames has more to do with each than the worker, and should not have what another has time for.
        places = _LINE if measure else BEGUN
        pool = Pool("seawall.runtime.decoding.worker", config, workers, limits, places, place)
        self._workers = _Workers(pool)

    @property
    def pids(self) -> list[int]:
        """The workers' process ids."""
        return self._workers.pool.pids

    def frames(
        self, data: bytes, mode: Mode, min_side: int | None = None, declared: str = "", most: int | None = None
    ) -> Decoding[Frame]:
        """See `Decoder.frames`; in addition Unscannable: TOO_MUCH_MEMORY, TOO_SLOW, DECODER_DIED."""

        def take(message: bytes, turn: Turn) -> tuple[Frame, bool] | None:
            begin = messages.frames_begin(turn.begin, len(data))
            space = np.frombuffer(turn.worker.memory, np.uint8, turn.end - begin, begin)
            found = messages.take_frame(message, space)
            if found is not None:
                turn.touched = max(turn.touched, begin - turn.begin + found[0].pixels.size)
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
        self, request: messages.Request, data: bytes, take: Callable[[bytes, Turn], tuple[Item, bool] | None]
    ) -> Decoding[Item]:
        if len(data) > self._max_bytes:
            raise Unscannable(Reason.TOO_LARGE, f"the file has more than decoding.max_bytes ({self._max_bytes}) bytes")
        return _Elsewhere(self._workers, request, data, take)


class _Elsewhere(Generic[Item]):
    """A `Decoding` in a worker, which has begun, or stands in line, when this is made."""

    def __init__(
        self,
        workers: _Workers,
        request: messages.Request,
        data: bytes,
        take: Callable[[bytes, Turn], tuple[Item, bool] | None],
    ) -> None:
        self._workers = workers
        self._request = request
        self._data = data
        self._take = take
        #: Whether the worker owes an answer, and whether another can be had after it.
        self._owed = self._more = True
        self._turn: Turn | None = None
        workers.tidy()
        self._turn = self._begun(workers.pool.lease())

    @property
    def due(self) -> float:
        return self._turn.due if self._turn is not None else 0.0

    def fileno(self) -> int:
        turn = self._turn
        return -1 if turn is None or (turn.first and turn.worker.answered()) else turn.worker.fileno()

    def ready(self) -> bool:
        turn = self._turn
        return turn is None or not turn.first or turn.worker.look()

    @property
    def room(self) -> bool:
        turn = self._turn
        return turn is not None and bool(turn.worker.free) and turn.worker.load <= _LINE_BYTES

    def late(self) -> bool:
        turn = self._turn
        if turn is None:
            return True
        if turn.first:
            return turn.worker.look() or turn.worker.due <= time.monotonic()
        try:
            self._move()
        except Retryable:
            # No worker is free. What it waits behind has a limit of its own.
            turn.stay()
        return False

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self._turn is None:
            raise StopIteration
        try:
            found = self._following() if self._more else None
        except BaseException:
            self._free()
            raise
        if found is None:
            self._free()
            raise StopIteration
        return found

    def close(self) -> None:
        turn = self._turn
        if turn is None:
            return
        if self._owed and not turn.first:
            # Its turn will not come.
            turn.abandoned, self._turn = True, None
            return
        try:
            if self._owed:
                # The next request must not meet this one's answer.
                with suppress(Unscannable, Retryable, messages.DecoderFailed):
                    self._following()
            if self._more:
                turn.ask(messages.STOP)
        finally:
            self._free()

    def of_this_thread(self) -> bool:
        """Whether this thread began it."""
        return self._turn is not None and self._turn.worker.owner == threading.get_ident()

    def _begun(self, turn: Turn) -> Turn:
        try:
            self._workers.send(turn, self._request.encode(turn.begin), self._data)
        except BaseException:
            self._workers.over(turn, owed=True)
            self._workers.pool.give_back(turn)
            raise
        return turn

    def _following(self) -> Item | None:
        """What comes next; None: nothing."""
        assert self._turn is not None  # noqa: S101 - callers have looked
        if not self._turn.first:
            self._move(wait=True)
        turn = self._turn
        if not self._owed and not turn.ask(messages.NEXT):
            raise self._workers.died(turn, slow=False)
        self._owed, self._more = True, False
        message = self._workers.receive(turn)
        self._owed = False
        try:
            found = self._take(message, turn)
        except messages.DecoderFailed:
            # Whatever state it is in, the next file does not meet it.
            self._workers.replace(turn)
            raise
        self._workers.decoded()
        if found is None:
            return None
        self._more = not found[1]
        if not self._more:
            self._workers.over(turn)
        return found[0]

    def _move(self, *, wait: bool = False) -> None:
        """The one before it takes long, or nobody reads it: begin again with another worker. Raises as `Pool.lease`."""
        assert self._turn is not None  # noqa: S101 - callers have looked
        other = self._begun(self._workers.pool.lease_other(self._turn.worker, wait=wait))
        self._turn.abandoned = True
        self._turn = other

    def _free(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            self._workers.over(turn, owed=self._owed)
            self._workers.pool.give_back(turn)

    def __del__(self) -> None:
        # Perhaps in another thread, or amid this one's talk with the worker.
        if self._turn is not None:
            self._workers.lost.append(self)


class _Workers:
    """The pool, and what the death of one of its workers means."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        #: Decodings that were dropped without being closed.
        self.lost: deque[_Elsewhere[Any]] = deque()
        self._lock = threading.Lock()
        #: Deaths since a file was last decoded.
        self._deaths = 0

    def tidy(self) -> None:
        """Close what this thread has dropped."""
        for _ in range(len(self.lost)):
            decoding = self.lost.popleft()
            if decoding.of_this_thread():
                decoding.close()
            else:
                self.lost.append(decoding)

    def send(self, turn: Turn, request: bytes, data: bytes) -> None:
        """Stand in line. Raises Retryable."""
        turn.join(request, data)
        if not turn.sent and turn.first:
            # One that died between two files was killed by neither.
            self._replaced(turn.worker)

    def receive(self, turn: Turn) -> bytes:
        """Raises Unscannable, Retryable."""
        try:
            self.pool.revive(turn.worker)
            message = turn.worker.receive()
        except TimeoutError:
            raise self.died(turn, slow=True) from None
        if not message:
            raise self.died(turn, slow=False)
        return message

    def over(self, turn: Turn, *, owed: bool = False) -> None:
        """Nothing more is wanted of this one: the worker is on the next.

        Args:
            owed: it might still answer, which the next must not meet.
        """
        line = turn.worker.line
        if turn not in line:
            return
        turn.leave()
        if turn.worker.pid and (owed or (line and line[0].abandoned)):
            with suppress(Retryable):
                self.pool.replace(turn.worker)

    def decoded(self) -> None:
        """A worker has answered."""
        self._deaths = 0

    def died(self, turn: Turn, *, slow: bool) -> Unscannable:
        """What to say of the file that a worker died of; the worker is replaced. Raises Retryable."""
        cause = self.replace(turn)
        if slow or cause == "SIGXCPU":
            return Unscannable(
                Reason.TOO_SLOW, "decoding it takes more than decoding.cpu_seconds: send it smaller, or shorter"
            )
        return Unscannable(
            Reason.DECODER_DIED, f"its decoder died of it ({cause}): send a file made by another program"
        )

    def replace(self, turn: Turn) -> str:
        """Put another in the place of its worker, without this request; says what it died of. Raises Retryable."""
        turn.leave()
        return self._replaced(turn.worker)

    def _replaced(self, worker: Worker) -> str:
        cause = self.pool.replace(worker)
        with self._lock:
            self._deaths += 1
            deaths = self._deaths
        metrics.DECODER_DEATHS.add(1, {metrics.ERROR_TYPE: cause})
        _log.warning("a decoding worker died and was replaced", cause=cause, in_a_row=deaths)
        if deaths == _CRASH_LOOP:
            _log.error("decoding workers die one after the other: no file has been decoded between", cause=cause)
        return cause
