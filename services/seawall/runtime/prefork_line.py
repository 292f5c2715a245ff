"""A worker process as the service sees it, and the requests that stand in line before it.

The worker takes its requests in the order in which they were sent, and does not sleep while one is there. So the first
in line is the one that it is on, and the one that it died of; those behind it were not looked at, and go to its
replacement.

An answer is sent when it is known, but to wake us for each would cost as much as a tenth of a picture, on both sides.
So we sleep until the worker rings a bell: when nothing is left to do, or after a few answers.

Everything here is for one thread, the one that leased the worker: `runtime.prefork.Pool`.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import socket
import time
from collections import deque
from contextlib import suppress
from typing import Final

from seawall.core.errors import Retryable

#: The longest message either way.
MESSAGE_BYTES: Final = 64 * 1024
#: How long a request waits behind another before it is better moved to another worker (seconds): far above what a
#: picture takes.
PATIENCE: Final = 1.0
#: How long answers may lie here for which the bell has not rung, because the next request takes long (seconds).
_LOOK_SECONDS: Final = 0.02
#: Shared memory of one worker above this is given back after use (bytes).
_KEPT_BYTES: Final = 8 * 1024 * 1024
_NOTHING: Final = mmap.mmap(-1, 1)


class Worker:
    """One worker process, its socket, its shared memory and its line."""

    def __init__(self, slot: int, places: int, place_bytes: int, wall_seconds: float) -> None:
        """Args:
        places: requests that it has at once.
        place_bytes: shared memory for each.
        wall_seconds: how long it may take for one.
        """
        self.slot = slot
        #: Its process id; 0: it has none, and must be started.
        self.pid = 0
        #: The thread that leased it; 0: none.
        self.owner = 0
        #: Shared with the worker. Arrays over it outlive a replacement.
        self.memory: mmap.mmap = _NOTHING
        #: Whole pages, so that they can be given back.
        self.place_bytes = -(-place_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        #: Places that nobody has.
        self.free = list(range(places))
        #: Those whose last answer is not there yet, in the order in which they are worked on.
        self.line: deque[Turn] = deque()
        #: Bytes of their data.
        self.load = 0
        #: Monotonic instant at which the first in line became it, and until which its answer is waited for.
        self.since = self.due = 0.0
        self._places = places
        self._wall_seconds = wall_seconds
        self._socket: socket.socket | None = None
        #: An eventfd that the worker rings, and what can be read when it has rung or the worker is dead.
        self._bell = -1
        self._ear: select.epoll | None = None
        #: A message that was read before it was asked for.
        self._heard: bytes | None = None
        #: Whether all that had been said when the bell was last silenced is read; and the monotonic instant of that.
        self._silent = True
        self._looked = 0.0

    @property
    def busy(self) -> bool:
        """Whether anybody has a place."""
        return len(self.free) < self._places

    @property
    def slow(self) -> bool:
        """Whether the first in line takes so long that others should not wait behind it."""
        return bool(self.line) and time.monotonic() - self.since > PATIENCE

    def open(self, start_seconds: float) -> tuple[socket.socket, int, int]:
        """Make a socket, shared memory and a bell for a new process, which has so long to say that it is ready; returns
        its end of the socket, and the other two, of which the bell stays ours."""
        self.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # It has room for every message that there can be at once.
        ours.setblocking(False)
        size = self._places * self.place_bytes
        memory = os.memfd_create("seawall-worker", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(memory, size)
        # A worker that shrank it could have us killed by SIGBUS.
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._socket = ours
        # Pages are taken when they are written: the size is only address space.
        self.memory = mmap.mmap(memory, size)
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ear = select.epoll()
        self._ear.register(self._bell, select.EPOLLIN)
        # Only for its end, which is told in any case.
        self._ear.register(ours, 0)
        self.due = time.monotonic() + start_seconds
        return theirs, memory, self._bell

    def send(self, message: bytes) -> bool:
        """False: the worker is dead."""
        try:
            self._connection().send(message)
        except OSError:
            return False
        return True

    def receive(self) -> bytes:
        """What it says next; empty: it is dead. Raises TimeoutError when `due` has passed."""
        heard, self._heard = self._heard, None
        if heard is not None:
            return heard
        # Mostly it is there: a socket with a time limit would ask the system for that first.
        with suppress(BlockingIOError):
            return self._hear()
        if not _readable(self._connection(), self.due):
            raise TimeoutError
        return self._hear()

    def answered(self) -> bool:
        """Whether `receive` need not wait, as far as is known without a `look`."""
        if self._heard is None and not self._silent:
            try:
                self._heard = self._hear()
            except BlockingIOError:
                with suppress(BlockingIOError):
                    os.eventfd_read(self._bell)
                # Once more: for what was said before the bell fell silent it will not ring.
                with suppress(BlockingIOError):
                    self._heard = self._hear()
                self._silent = self._heard is None
                self._looked = time.monotonic()
        return self._heard is not None

    def look(self) -> bool:
        """Whether `receive` need not wait. If it must, the bell is silent, and `fileno` or `look_at` tell when to look
        again."""
        self._silent = False
        return self.answered()

    @property
    def look_at(self) -> float:
        """Monotonic instant at which to `look`: the bell rings at once where nothing stands behind the first."""
        look_at = max(self._looked, self.since) + _LOOK_SECONDS
        return min(look_at, self.due) if len(self.line) > 1 else self.due

    def _hear(self) -> bytes:
        try:
            return self._connection().recv(MESSAGE_BYTES)
        except ConnectionResetError:
            # It died with a request unread. That is told first, and only then what it had answered before.
            with suppress(ConnectionError):
                return self._connection().recv(MESSAGE_BYTES)
            return b""

    def fileno(self) -> int:
        """A descriptor that can be read when the bell has rung, or the process has ended."""
        if self._ear is None:
            raise unavailable("the pool is closed")
        return self._ear.fileno()

    def start_clock(self) -> None:
        """The first in line is worked on from now, or again."""
        self.since = time.monotonic()
        self.due = self.since + self._wall_seconds

    def resend(self) -> None:
        """Give the line to a new process."""
        self.start_clock()
        for turn in self.line:
            turn.put()

    def free_pages(self, place: int, touched: int) -> None:
        """Give back the pages of a large request, which reached so far into its place."""
        kept = _KEPT_BYTES // self._places // mmap.PAGESIZE * mmap.PAGESIZE
        if touched > kept:
            begin = place * self.place_bytes
            self.memory.madvise(mmap.MADV_REMOVE, begin + kept, self.place_bytes - kept)

    def close(self) -> None:
        """Close our end: the process leaves."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._ear is not None:
            self._ear.close()
            os.close(self._bell)
            self._ear = None
        self._heard, self._silent = None, True
        self.pid = 0
        # Arrays over the old memory may still be held somewhere; it is unmapped with the last of them.
        self.memory = _NOTHING

    def _connection(self) -> socket.socket:
        if self._socket is None:
            raise unavailable("the pool is closed")
        return self._socket


class Turn:
    """One request's place with a worker, from `Pool.lease` until `Pool.give_back`."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.place = worker.free.pop()
        #: How far into its place this request wrote or read, for giving pages back.
        self.touched = 0
        #: Whether the worker got it.
        self.sent = False
        #: Nobody waits for its answer any more.
        self.abandoned = False
        #: Monotonic instant before which it does not move.
        self.patient_until = 0.0
        self._request = self._data = b""

    @property
    def begin(self) -> int:
        """Where in the worker's memory its place begins."""
        return self.place * self.worker.place_bytes

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.begin + self.worker.place_bytes

    @property
    def first(self) -> bool:
        """Whether the worker is on it."""
        return bool(self.worker.line) and self.worker.line[0] is self

    @property
    def due(self) -> float:
        """Monotonic instant until which it is waited for: for the answer, or to be first."""
        return self.worker.look_at if self.first else max(self.worker.since + PATIENCE, self.patient_until)

    def join(self, request: bytes, data: bytes) -> None:
        """Stand in line.

        Args:
            request: names the place.
            data: goes to the place's beginning; kept until the answer, in case that another worker must have it.
        """
        self._request, self._data = request, data
        self.worker.line.append(self)
        self.worker.load += len(data)
        if self.first:
            self.worker.start_clock()
        self.put()

    def put(self) -> None:
        """Give it to the process, if there is one."""
        self.sent = False
        if not self.worker.pid:
            return
        self.worker.memory[self.begin : self.begin + len(self._data)] = self._data
        self.touched = max(self.touched, len(self._data))
        self.sent = self.worker.send(self._request)

    def ask(self, message: bytes) -> bool:
        """Say something to the worker, which is on this request. False: it is dead."""
        self.worker.start_clock()
        return self.worker.send(message)

    def stay(self) -> None:
        """Wait once more as long behind another."""
        self.patient_until = time.monotonic() + PATIENCE

    def leave(self) -> None:
        """Its last answer is here, or there will be none: the worker is on the next in line."""
        self.worker.line.remove(self)
        self.worker.load -= len(self._data)
        self._data = b""
        self.worker.start_clock()


def _readable(connection: socket.socket, until: float) -> bool:
    """Wait for a message, or the end of the other side; False: it is past the monotonic instant ``until``."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(max(until - time.monotonic(), 0.0) * 1000))


def unavailable(what: str) -> Retryable:
    """Workers cannot be had."""
    return Retryable("WORKERS_UNAVAILABLE", f"{what}: memory or processes may be short")
