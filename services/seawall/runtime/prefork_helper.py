"""The helper of `prefork`, and the beginning of every worker's life.

    python -m seawall.runtime.prefork_helper CONTROL_FD WORKLOAD CONFIG LIMITS

Single-threaded all its life: that is what makes its forks safe.
"""

from __future__ import annotations

import gc
import importlib
import json
import mmap
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any


def main(control: socket.socket, workload: Any, config: Any, limits: tuple[int, int]) -> None:
    """Fork a worker for each order until the service closes ``control``."""
    # Ctrl-C and a pod's SIGTERM are for the service; it closes our sockets when it has drained.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    workload.prepare(config)
    # What is imported stays shared: the collector would write to every page of it.
    gc.collect()
    gc.freeze()
    control.send(b"ready")
    pids: dict[int, int] = {}
    while True:
        try:
            message, descriptors, _, _ = socket.recv_fds(control, 4096, 3)
        except ConnectionError:
            break
        if not message:
            break
        slot = json.loads(message)
        status = _end(pids.pop(slot)) if slot in pids else None
        pid = os.fork()
        if pid == 0:
            control.close()
            _live(workload, config, limits, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        pids[slot] = pid
        control.send(json.dumps([pid, status]).encode())
    for pid in pids.values():
        _end(pid)


def _end(pid: int) -> int:
    """Reap a worker, killing it if it still lives. A child's pid is not given away before it is reaped."""
    found, status = os.waitpid(pid, os.WNOHANG)
    if not found:
        # Its socket is closed already, so it may be leaving; one that hangs is not waited for.
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    return status


def _live(workload: Any, config: Any, limits: tuple[int, int], connection: int, memory: int, bell: int) -> None:
    """The worker: never returns."""
    code = 1
    try:
        with socket.socket(fileno=connection) as ours:
            shared = mmap.mmap(memory, 0)
            os.close(memory)
            begin = _confine(*limits)
            ours.send(b"ready")
            workload.serve(ours, shared, config, begin, lambda: os.eventfd_write(bell, 1))
        code = 0
    except BaseException as error:
        # Its message may quote content.
        print(f"worker failed: {type(error).__name__}", file=sys.stderr, flush=True)
    finally:
        # Not sys.exit: the helper's own cleaning up is not ours.
        os._exit(code)


def _confine(memory_bytes: int, cpu_seconds: int) -> Callable[[], None]:
    """Set this process's limits; returns what must be called before each request."""
    # A core dump would hold content; nothing here writes files.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with open("/proc/self/statm", encoding="ascii") as statm:
        size = int(statm.read().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (size + memory_bytes, size + memory_bytes))
    granted = 0

    def begin() -> None:
        # The limit counts from the process's birth, in whole seconds: it is moved along with what is used.
        nonlocal granted
        until = int(time.process_time()) + 1 + cpu_seconds
        if until != granted:
            granted = until
            resource.setrlimit(resource.RLIMIT_CPU, (until, resource.RLIM_INFINITY))

    return begin


if __name__ == "__main__":
    _, descriptor, name, configuration, limit = sys.argv
    main(
        socket.socket(fileno=int(descriptor)),
        importlib.import_module(name),
        json.loads(configuration),
        json.loads(limit),
    )
