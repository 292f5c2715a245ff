"""Worker processes under limits, for work on bytes that nobody vouches for.

    service ──orders──► helper ──fork──► worker, worker, …
       └──── requests and replies: a socket and shared memory for each worker ────┘

The service has threads (gRPC, model runtimes), and a process with threads must not fork. So it starts a *helper* with
exec: one thread, which imports what the workers need and forks them on order. A worker is there within a millisecond,
shares the helper's memory, and has the limits of `Limits`. One that dies takes nothing with it; see `Pool.lease`.

Helper and workers leave when the service closes its end of their sockets, and so also when it is killed.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from seawall.core.errors import Retryable

#: How long the helper may take to import its work, and a worker to be ready (seconds).
_START_SECONDS: Final = 60.0
#: Shared memory above this is given back after use (bytes).
_KEPT_BYTES: Final = 8 * 1024 * 1024
#: The least that a socket waits (seconds): 0 would mean not at all, however much is there.
_AT_LEAST: Final = 0.001
#: The longest reply or order.
_MESSAGE_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class Limits:
    """What one worker may use."""

    #: RLIMIT_AS: address space beyond what the worker begins with, bytes.
    memory_bytes: int
    #: RLIMIT_CPU: CPU seconds of one request, rounded up to the next whole second of the worker's life.
    cpu_seconds: int
    #: How long a request may take in all, seconds; then the worker is killed.
    wall_seconds: float


class Worker:
    """One worker, for the thread that leased it."""

    def __init__(self, slot: int, shared_bytes: int, wall_seconds: float) -> None:
        self.slot = slot
        #: Shared with the worker; what it holds is valid until the lease ends.
        self.memory: mmap.mmap = _NOTHING
        #: Its process id, for logs.
        self.pid = 0
        #: How far into `memory` this lease wrote or read, for giving pages back.
        self.touched = 0
        #: Monotonic instant until which a reply is waited for.
        self.due = 0.0
        self._wall_seconds = wall_seconds
        self._shared_bytes = shared_bytes
        self._socket: socket.socket | None = None

    def send(self, message: bytes) -> bool:
        """Send a request. False if the worker died before it, so that the request was not looked at."""
        try:
            self._connection().send(message)
        except OSError:
            return False
        self.due = time.monotonic() + self._wall_seconds
        return True

    def receive(self) -> bytes:
        """The next reply; empty if the worker died. Raises TimeoutError `Limits.wall_seconds` after the request."""
        connection = self._connection()
        connection.settimeout(max(self.due - time.monotonic(), _AT_LEAST))
        try:
            return connection.recv(_MESSAGE_BYTES)
        except ConnectionError:
            return b""

    def fileno(self) -> int:
        """A descriptor that can be read when `receive` need not wait."""
        return self._connection().fileno()

    def open(self, start_seconds: float) -> tuple[socket.socket, int]:
        """Make a socket and shared memory for a new worker, which has so long to say that it is ready; returns its ends
        of both."""
        self.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(start_seconds)
        self.due = time.monotonic() + start_seconds
        memory = os.memfd_create("seawall-worker", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(memory, self._shared_bytes)
        # A worker that shrank it could have us killed by SIGBUS.
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._socket = ours
        # Pages are taken when they are written: the size is only address space.
        self.memory = mmap.mmap(memory, self._shared_bytes)
        return theirs, memory

    def free_pages(self) -> None:
        """Free the pages of a large request."""
        if self.touched > _KEPT_BYTES:
            self.memory.madvise(mmap.MADV_REMOVE, _KEPT_BYTES, self._shared_bytes - _KEPT_BYTES)
        self.touched = 0

    def _connection(self) -> socket.socket:
        if self._socket is None:
            raise _unavailable("the pool is closed")
        return self._socket

    def close(self) -> None:
        """Close our end: the worker leaves."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        # Arrays over the old memory may still be held somewhere; it is unmapped with the last of them.
        self.memory = _NOTHING


_NOTHING = mmap.mmap(-1, 1)


class Pool:
    """``count`` workers of one workload, each leased to one thread at a time. Safe for threads.

    Args:
        workload: a module with ``prepare(config)``, called once in the helper, and the worker's life, ``serve(socket,
            memory, config, begin)``: it returns at the socket's end, and calls ``begin()`` before each request.
        config: JSON for both.
        shared_bytes: shared memory for each worker; only what is used is ever taken.

    Raises Retryable("WORKERS_UNAVAILABLE") if the workers cannot be started.
    """

    def __init__(self, workload: str, config: dict[str, Any], count: int, limits: Limits, shared_bytes: int) -> None:
        self._arguments = [workload, json.dumps(config), json.dumps([limits.memory_bytes, limits.cpu_seconds])]
        self._limits = limits
        # Whole pages, so that pages can be given back.
        shared_bytes = max(-(-shared_bytes // mmap.PAGESIZE) * mmap.PAGESIZE, 2 * _KEPT_BYTES)
        self._workers = [Worker(slot, shared_bytes, limits.wall_seconds) for slot in range(count)]
        self._helper = _Helper()
        self._orders = threading.Lock()
        self._closed = False
        self._idle: deque[Worker] = deque()
        self._free = threading.Semaphore(0)
        # Also at the interpreter's end.
        self._finalizer = weakref.finalize(self, _close, self._helper, self._workers)
        try:
            for worker in self._workers:
                self._start(worker)
                self._idle.append(worker)
                self._free.release()
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._workers]

    def lease(self) -> Worker:
        """A worker for this thread alone, until `give_back`. Waits while all are leased, at most as long as a request
        may take.

        Raises Retryable: ``WORKERS_BUSY`` or ``WORKERS_UNAVAILABLE``.
        """
        if not self._free.acquire(timeout=self._limits.wall_seconds):
            raise Retryable("WORKERS_BUSY", "every worker is on a request: have as many workers as requests at once")
        # The one that was used last: its caches are warm.
        worker = self._idle.pop()
        try:
            if self._closed:
                raise _unavailable("the pool is closed")
            if not worker.pid:
                self._start(worker)
        except BaseException:
            self.give_back(worker)
            raise
        return worker

    def give_back(self, worker: Worker) -> None:
        """End the lease: others may have the worker, and what its memory holds is no longer valid."""
        if not self._closed and worker.pid:
            worker.free_pages()
        self._idle.append(worker)
        self._free.release()

    def replace(self, worker: Worker) -> str:
        """Put a new process in the place of the leased one; returns what the old one died of.

        Raises Retryable("WORKERS_UNAVAILABLE"); the next lease tries again.
        """
        worker.pid = 0
        return self._start(worker)

    def close(self) -> None:
        """End the helper and all workers."""
        self._closed = True
        self._finalizer()

    def _start(self, worker: Worker) -> str:
        with self._orders:
            if self._closed:
                raise _unavailable("the pool is closed")
            if not self._helper.alive():
                self._helper.start(self._arguments)
            theirs, memory = worker.open(_START_SECONDS)
            try:
                pid, cause = self._helper.spawn(worker.slot, [theirs.fileno(), memory])
            finally:
                theirs.close()
                os.close(memory)
        try:
            if worker.receive() != b"ready":
                raise _unavailable("a new worker ended at once")
        except TimeoutError:
            raise _unavailable("a new worker did not become ready") from None
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
            raise _unavailable(f"the helper cannot be started ({error})") from None

    def spawn(self, slot: int, descriptors: list[int]) -> tuple[int, str]:
        """The new worker's pid, and what the one before it in this slot died of."""
        try:
            socket.send_fds(self._connection(), [json.dumps(slot).encode()], descriptors)
            pid, status = json.loads(self._reply())
        except OSError as error:
            self.close()
            raise _unavailable(f"the helper is gone ({error})") from None
        return pid, _cause(status)

    def _connection(self) -> socket.socket:
        if self._control is None:
            raise _unavailable("the helper is not running")
        return self._control

    def _reply(self) -> bytes:
        reply = self._connection().recv(_MESSAGE_BYTES)
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


def _unavailable(what: str) -> Retryable:
    return Retryable("WORKERS_UNAVAILABLE", f"{what}: memory or processes may be short")
