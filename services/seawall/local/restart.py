"""Restarts a room of the embedded mesh: ends its process, and the supervisor starts it again.

In a cluster the orchestrator does this. It is safe at any moment: what was in flight is done again.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from pathlib import Path
from typing import NamedTuple

from seawall.core.errors import Fatal, Retryable
from seawall.local.mesh import KAFKA, Running
from seawall.local.supervisor import pid_file

#: How long a process may take to end by itself, and the next one to be ready (seconds).
GRACE_SECONDS = 12.0
READY_SECONDS = 60.0
_LOOK_SECONDS = 0.1


class Restarted(NamedTuple):
    """A room's process before and after."""

    before: int
    after: int


def restart(home: Path, mesh: Running, room: str) -> Restarted:
    """End a room's process and wait until the next one is ready.

    A stopped process is let go on to end; one that does not is killed.

    Raises:
        Fatal: NO_ROOM, NOT_RUNNING; Retryable: NOT_READY in time.
    """
    if room not in (*mesh.rooms, KAFKA):
        raise Fatal("NO_ROOM", f"there is no room {room}: one of {', '.join((*mesh.rooms, KAFKA))}")
    before = _pid(home, room)
    if before is None or _parent(before) != mesh.pid:
        raise Fatal("NOT_RUNNING", f"{room} has no process now: the supervisor starts it again, see `seawall status`")
    _end(before)
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        after = _pid(home, room)
        if after is not None and after != before and _is_ready(home, mesh, room):
            return Restarted(before, after)
        time.sleep(_LOOK_SECONDS)
    raise Retryable("NOT_READY", f"{room} is not ready after {READY_SECONDS:.0f} s: `seawall status` says why")


def _is_ready(home: Path, mesh: Running, room: str) -> bool:
    if room != KAFKA:
        return (home / "run" / f"{room}.ready").exists()
    host, _, port = mesh.bootstrap_servers.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_LOOK_SECONDS).close()
    except OSError:
        return False
    return True


def _end(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGCONT)
        if not select.select([descriptor], [], [], GRACE_SECONDS)[0]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            select.select([descriptor], [], [], GRACE_SECONDS)
    finally:
        os.close(descriptor)


def _pid(home: Path, room: str) -> int | None:
    path = home / "kafka" / "broker.pid" if room == KAFKA else pid_file(home / "run", room)
    try:
        return int(path.read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return None


def _parent(pid: int) -> int | None:
    """The parent's process id; the name in brackets may hold anything, so what follows the last bracket counts."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except (FileNotFoundError, ValueError, IndexError):
        return None
