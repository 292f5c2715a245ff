"""Worker processes under limits, for work on bytes that nobody vouches for.

    service ──orders──► helper ──fork──► worker, worker, …
       └──── requests and replies: a socket and shared memory for each worker ────┘

The service has threads (gRPC, model runtimes), and a process with threads must not fork. So it starts a *helper* with
exec: one thread, which imports what the workers need and forks them on order. A worker is there within a millisecond,
shares the helper's memory, and has the limits of `Limits`. One that dies takes one request with it: see
`runtime.prefork_line`.

Helper and workers leave when the service closes its end of their sockets, and so also when it is killed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from seawall.core.errors import Retryable
from seawall.runtime.prefork_line import MESSAGE_BYTES, Turn, Worker, unavailable

#: How long the helper may take to import its work, and a worker to be ready (seconds).
_START_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Limits:
    """What one worker may use."""

    #: RLIMIT_AS: address space beyond what the worker begins with, bytes.
    memory_bytes: int
    #: RLIMIT_CPU: CPU seconds of one request, rounded up to the next whole second of the worker's life.
    cpu_seconds: int
    #: How long a request may take in all, seconds; then the worker is killed.
    wall_seconds: float


class Pool:
    """``count`` workers of one workload, each leased to one thread at a time. Safe for threads.

    Args:
        workload: a module with ``prepare(config)``, called once in the helper, and the worker's life, ``serve(socket,
            memory, config, begin, ring)``: it returns at the socket's end, works on requests in the order they come,
            calls ``begin()`` before each, and ``ring()`` after an answer, or after a few while requests wait.
        config: JSON for both.
        places: requests that a worker has at once.
        place_bytes: shared memory for each; only what is used is ever taken.

    Raises Retryable("WORKERS_UNAVAILABLE") if the workers cannot be started.
    """

    def __init__(
        self, workload: str, config: dict[str, Any], count: int, limits: Limits, places: int, place_bytes: int
    ) -> None:
        self._arguments = [workload, json.dumps(config), json.dumps([limits.memory_bytes, limits.cpu_seconds])]
        self._limits = limits
        self._workers = [Worker(slot, places, place_bytes, limits.wall_seconds) for slot in range(count)]
        self._helper = _Helper()
        self._orders = threading.Lock()
        self._closed = False
        self._idle: deque[Worker] = deque()
        self._available = threading.Semaphore(0)
        #: Of each thread the worker that it leased last.
        self._own = threading.local()
        # Also at the interpreter's end.
        self._finalizer = weakref.finalize(self, _close, self._helper, self._workers)
        try:
            for worker in self._workers:
                self._start(worker)
                self._idle.append(worker)
                self._available.release()
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._workers]

    def lease(self) -> Turn:
        """A place with a worker for this thread, until `give_back`: behind this thread's own requests, unless the first
        of them takes long, or with a worker that nobody has. Waits while there is none, at most as long as a request
        may take.

        Raises Retryable: ``WORKERS_BUSY`` or ``WORKERS_UNAVAILABLE``.
        """
        own = self._own_worker()
        if own is None:
            return self._lease_idle(wait=True)
        if own.slow:
            with suppress(Retryable):
                return self._lease_idle()
        return Turn(own)

    def lease_other(self, than: Worker, *, wait: bool = False) -> Turn:
        """The same, but not behind what stands in line before that worker. Raises as `lease`."""
        own = self._own_worker()
        return self._lease_idle(wait=wait) if own is None or own is than or own.slow else Turn(own)

    def _own_worker(self) -> Worker | None:
        """The worker that this thread leased last, if it has it still and there is room."""
        own: Worker | None = getattr(self._own, "worker", None)
        return own if own is not None and own.owner == threading.get_ident() and own.free else None

    def _lease_idle(self, *, wait: bool = False) -> Turn:
        if not self._available.acquire(timeout=self._limits.wall_seconds if wait else 0.0):
            raise Retryable("WORKERS_BUSY", "every worker is on a request: have as many workers as requests at once")
        # The one that was used last: its caches are warm.
        worker = self._idle.pop()
        worker.owner = threading.get_ident()
        turn = Turn(worker)
        try:
            if self._closed:
                raise unavailable("the pool is closed")
            if not worker.pid:
                self._start(worker)
        except BaseException:
            self.give_back(turn)
            raise
        self._own.worker = worker
        return turn

    def give_back(self, turn: Turn) -> None:
        """End the lease: others may have the place, and what its memory holds is no longer valid. An answer must not be
        outstanding."""
        worker = turn.worker
        if not self._closed and worker.pid:
            worker.free_pages(turn.place, turn.touched)
        worker.free.append(turn.place)
        if not worker.busy:
            worker.owner = 0
            self._idle.append(worker)
            self._available.release()

    def replace(self, worker: Worker) -> str:
        """Put a new process in the place of the leased one, and give it the line; returns what the old one died of.

        Raises Retryable("WORKERS_UNAVAILABLE"); `revive` tries again.
        """
        cause = self._start(worker)
        for turn in [turn for turn in worker.line if turn.abandoned]:
            turn.leave()
            self.give_back(turn)
        worker.resend()
        return cause

    def revive(self, worker: Worker) -> None:
        """`replace` it, if that failed before."""
        if not worker.pid:
            self.replace(worker)

    def close(self) -> None:
        """End the helper and all workers."""
        self._closed = True
        self._finalizer()

    def _start(self, worker: Worker) -> str:
        with self._orders:
            if self._closed:
                raise unavailable("the pool is closed")
            if not self._helper.alive():
                self._helper.start(self._arguments)
            theirs, memory, bell = worker.open(_START_SECONDS)
            try:
                pid, cause = self._helper.spawn(worker.slot, [theirs.fileno(), memory, bell])
            finally:
                theirs.close()
                os.close(memory)
        try:
            if worker.receive() != b"ready":
                raise unavailable("a new worker ended at once")
        except TimeoutError:
            raise unavailable("a new worker did not become ready") from None
        worker.pid = pid
        return cause


class _Helper:
    """The process that forks."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, arguments: list[str]) -> None:
        self.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(_START_SECONDS)
        command = [sys.executable, "-P", "-m", "seawall.runtime.prefork_helper", str(theirs.fileno()), *arguments]
        # One thread: the libraries' pools would not survive the fork.
        environment = os.environ | {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")}
        try:
            with theirs:
                self._process = subprocess.Popen(
                    command, env=environment, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
                )
            self._control = ours
            self._reply()
        except OSError as error:
            ours.close()
            raise unavailable(f"the helper cannot be started ({error})") from None

    def spawn(self, slot: int, descriptors: list[int]) -> tuple[int, str]:
        """The new worker's pid, and what the one before it in this slot died of."""
        try:
            socket.send_fds(self._connection(), [json.dumps(slot).encode()], descriptors)
            pid, status = json.loads(self._reply())
        except OSError as error:
            self.close()
            raise unavailable(f"the helper is gone ({error})") from None
        return pid, _cause(status)

    def _connection(self) -> socket.socket:
        if self._control is None:
            raise unavailable("the helper is not running")
        return self._control

    def _reply(self) -> bytes:
        reply = self._connection().recv(MESSAGE_BYTES)
        if not reply:
            raise ConnectionError("it ended: see what it wrote to standard error")
        return reply

    def close(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            # It ends its workers and itself when the socket closes.
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


def _close(helper: _Helper, workers: list[Worker]) -> None:
    for worker in workers:
        worker.close()
    helper.close()


def _cause(status: int | None) -> str:
    if status is None:
        return "unknown"
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit {os.waitstatus_to_exitcode(status)}"
