"""Keeps the rooms' processes alive: starts them, waits until they are ready, restarts what died, ends them all.

    STARTING ◄──ready file──► READY ──stop──► STOPPING ──► STOPPED
       ▲  │                     │
       │  └──────died───────────┴──► WAITING (back-off) ──► STARTING
       └─ died twice before it was ever ready ──► FAILED

A room writes the file named by SEAWALL_READY_FILE once it is ready and removes it when it stops. Each room leads a
process group of its own, so that Ctrl-C reaches the supervisor alone, and ends when the supervisor is killed (see
`bind_to_parent`): nothing is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from seawall.core.errors import Fatal

#: Pause before the nth restart in a row, seconds; the last one repeats. The first restart is at once: work waits.
BACK_OFF_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
#: A room that was ready for so long starts its back-off afresh.
STEADY_SECONDS = 30.0
#: Deaths in a row, never having been ready, after which a room is not started again: a person has to mend something.
MAX_FAILED_STARTS = 2
STOP_SECONDS = 15.0
#: What a room gives way by, once it is ready: the cores are full when a room dies under load, and its next start is
#: what everyone waits for.
READY_NICENESS = 5
MAX_LOG_BYTES = 16 * 1024 * 1024
_READY_POLL_SECONDS = 0.03
_READY_WATCH_SECONDS = 0.5
_HOUSEKEEPING_SECONDS = 2.0
_PARENT_VARIABLE = "SEAWALL_PARENT_PID"
_PR_SET_PDEATHSIG = 1


def bind_to_parent() -> None:
    """End this process when the supervisor that started it ends, however it ends.

    Called first thing by a room's process. SIGKILL: at-least-once makes that safe, and nothing can outlive it.
    """
    parent = os.environ.get(_PARENT_VARIABLE)
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # It ended before the call above.
        raise Fatal("ORPHANED", f"the supervisor {parent} that started this process is gone: start the mesh again")


#: What `launcher` runs: the same as `bind_to_parent`, then it becomes the program. Isolated, so it starts in 15 ms.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl({set_death_signal}, signal.SIGKILL)
if os.getppid() != {parent}:
    sys.exit("the process that started this one is gone")
os.execv(sys.argv[1], sys.argv[1:])
"""


def launcher() -> list[str]:
    """Arguments to put before those of a program that is not ours, so that it ends when this process does.

    The kernel watches the thread that starts it: that thread must live as long.
    """
    script = _LAUNCHER.format(set_death_signal=_PR_SET_PDEATHSIG, parent=os.getpid())
    return [sys.executable, "-IS", "-c", script]


class State(Enum):
    """Where a room is in its life."""

    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


class RoomSpec(NamedTuple):
    """How to start a room: a list of arguments, and the variables it gets besides this process's own."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]


class Status(NamedTuple):
    """What happened to a room."""

    room: str
    state: State
    pid: int | None
    restarts: int
    detail: str


@dataclass
class _Room:
    spec: RoomSpec
    log: Path
    ready_file: Path
    state: State = State.STOPPED
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0
    was_ready: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    keeper: asyncio.Task[None] | None = None


class Supervisor:
    """Supervises rooms below one home folder: logs in ``logs/``, ready files in ``run/``.

    Args:
        report: called with every change of state, on the event loop; must not block.
    """

    def __init__(self, home: Path, report: Callable[[Status], None] = lambda status: None) -> None:
        self._logs = home / "logs"
        self._run = home / "run"
        self._report = report
        self._rooms: dict[str, _Room] = {}
        self._waves: list[list[_Room]] = []
        self._stopping = asyncio.Event()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._housekeeper: asyncio.Task[None] | None = None

    def start(self, specs: Sequence[RoomSpec]) -> None:
        """Start rooms, all at once. What is started by one call is stopped together, the last call's first."""
        for folder in (self._logs, self._run):
            folder.mkdir(parents=True, exist_ok=True)
        if self._housekeeper is None:
            self._housekeeper = asyncio.create_task(self._bound_logs(), name="supervisor-logs")
        wave = []
        for spec in specs:
            if spec.name in self._rooms:
                raise Fatal("ROOM_TWICE", f"{spec.name} is started already: give every room a name of its own")
            room = _Room(spec, self._logs / f"{spec.name}.log", self._run / f"{spec.name}.ready")
            self._rooms[spec.name] = room
            room.keeper = asyncio.create_task(self._keep(room), name=f"supervisor-{spec.name}")
            wave.append(room)
        self._waves.append(wave)

    async def ready(self, names: Collection[str] | None = None, *, timeout: float) -> None:
        """Wait until the named rooms (all, if None) are ready at once.

        Raises Fatal("ROOM_FAILED") when one gives up, Fatal("ROOM_NOT_READY") after ``timeout`` seconds.
        """
        rooms = [self._rooms[name] for name in (self._rooms if names is None else names)]
        waiting = asyncio.create_task(self._await_ready(rooms))
        try:
            await asyncio.wait({waiting, self._failed}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                await self._failed
            if not waiting.done():
                late = [room for room in rooms if room.state is not State.READY]
                raise Fatal(
                    "ROOM_NOT_READY",
                    f"{', '.join(room.spec.name for room in late)} not ready after {timeout:.0f} s: see {late[0].log}",
                )
            await waiting
        finally:
            waiting.cancel()

    async def failed(self) -> None:
        """Wait until a room gives up, and raise why; a mesh that works waits for ever."""
        await asyncio.shield(self._failed)

    def pids(self) -> dict[str, int]:
        """Process ids by room, of those that run."""
        return {
            name: room.process.pid
            for name, room in self._rooms.items()
            if room.process is not None and room.process.returncode is None
        }

    def state(self, name: str) -> State:
        """Where the room is in its life."""
        return self._rooms[name].state

    @property
    def restarts(self) -> int:
        """Restarts of all rooms so far."""
        return sum(room.restarts for room in self._rooms.values())

    async def stop(self) -> None:
        """End every room: SIGTERM, after STOP_SECONDS SIGKILL. Returns when all are gone."""
        self._stopping.set()
        for wave in reversed(self._waves):
            await asyncio.gather(*(self._stop(room) for room in wave))
        if self._housekeeper is not None:
            self._housekeeper.cancel()
            await asyncio.wait([self._housekeeper])
        if self._failed.done():
            self._failed.exception()  # Seen: whoever stops knows, and asyncio need not complain.

    async def _stop(self, room: _Room) -> None:
        if room.keeper is None:
            return
        process = room.process
        if process is not None and process.returncode is None:
            self._change(room, State.STOPPING)
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        done, _ = await asyncio.wait([room.keeper], timeout=STOP_SECONDS)
        if not done:
            if room.process is not None and room.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(room.process.pid, signal.SIGKILL)
                self._report(
                    Status(room.spec.name, State.STOPPING, room.process.pid, room.restarts, "killed: too slow")
                )
            await asyncio.wait([room.keeper])
        await room.keeper

    async def _keep(self, room: _Room) -> None:
        """Run a room, again and again, until `stop` or until it cannot start."""
        deaths = 0
        while not self._stopping.is_set():
            try:
                ready_since = await self._run_once(room)
            except OSError as error:
                self._give_up(room, f"cannot be started ({error.strerror})")
                return
            if self._stopping.is_set():
                break
            ended = f"ended with {_status(room.process)}"
            if ready_since is not None and time.monotonic() - ready_since >= STEADY_SECONDS:
                deaths = 0
            deaths += 1
            if not room.was_ready and deaths >= MAX_FAILED_STARTS:
                self._give_up(room, ended)
                return
            pause = BACK_OFF_SECONDS[min(deaths, len(BACK_OFF_SECONDS)) - 1]
            self._change(room, State.WAITING, f"{ended}; restart in {pause:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            room.restarts += 1
        self._change(room, State.STOPPED)

    async def _run_once(self, room: _Room) -> float | None:
        """Start the room and await its end; when it became ready (monotonic seconds), None if it never did."""
        room.ready_file.unlink(missing_ok=True)
        environment = {
            **os.environ,
            **room.spec.environment,
            "SEAWALL_READY_FILE": str(room.ready_file),
            _PARENT_VARIABLE: str(os.getpid()),
        }
        # The room writes to the file itself: a supervisor that is busy or gone can never make it wait.
        descriptor = os.open(room.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            room.process = await asyncio.create_subprocess_exec(
                *room.spec.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                env=environment,
                process_group=0,
            )
        finally:
            os.close(descriptor)
        pid_file(self._run, room.spec.name).write_text(f"{room.process.pid}\n", encoding="ascii")
        self._change(room, State.STARTING)
        exited = asyncio.create_task(room.process.wait())
        ready_since: float | None = None
        if self._stopping.is_set():  # It was started while `stop` looked elsewhere.
            with contextlib.suppress(ProcessLookupError):
                room.process.send_signal(signal.SIGTERM)
        while not exited.done():
            is_ready = room.ready_file.exists()
            if is_ready and room.state is State.STARTING:
                ready_since = ready_since or time.monotonic()
                room.was_ready = True
                self._give_way(room.process.pid)
                self._change(room, State.READY)
            elif not is_ready and room.state is State.READY:
                self._change(room, State.STARTING, "not ready any more")
            pause = _READY_POLL_SECONDS if room.state is State.STARTING else _READY_WATCH_SECONDS
            await asyncio.wait([exited], timeout=pause)
        for file in (room.ready_file, pid_file(self._run, room.spec.name)):
            file.unlink(missing_ok=True)
        return ready_since

    @staticmethod
    def _give_way(leader: int) -> None:
        """Lower the priority of a room, with its threads and helpers; those to come inherit it."""
        niceness = min(os.getpriority(os.PRIO_PROCESS, 0) + READY_NICENESS, 19)
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PGRP, leader, niceness)

    def _give_up(self, room: _Room, ended: str) -> None:
        detail = f"{room.spec.name} {ended} before it was ready: {last_line(room.log)} (see {room.log})"
        self._change(room, State.FAILED, detail)
        if not self._failed.done():
            self._failed.set_exception(Fatal("ROOM_FAILED", detail))

    def _change(self, room: _Room, state: State, detail: str = "") -> None:
        room.state = state
        changed, room.changed = room.changed, asyncio.Event()
        changed.set()
        pid = room.process.pid if room.process is not None and room.process.returncode is None else None
        self._report(Status(room.spec.name, state, pid, room.restarts, detail))

    @staticmethod
    async def _await_ready(rooms: Sequence[_Room]) -> None:
        while unready := [room for room in rooms if room.state is not State.READY]:
            await unready[0].changed.wait()

    async def _bound_logs(self) -> None:
        while True:
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)
            for room in self._rooms.values():
                await asyncio.to_thread(turn_over, room.log, MAX_LOG_BYTES)


def pid_file(run: Path, room: str) -> Path:
    """Where the process id of a room stands while it runs, ready or not."""
    return run / f"{room}.pid"


def turn_over(log: Path, max_bytes: int) -> None:
    """Keep a log that has grown beyond ``max_bytes`` as <name>.1 and go on in the same, emptied file.

    Copied, not renamed: the room holds the file open and appends, so it goes on where the file now ends.
    """
    try:
        if log.stat().st_size <= max_bytes:
            return
        shutil.copyfile(log, log.with_name(log.name + ".1"))
        os.truncate(log, 0)
    except FileNotFoundError:
        return


def last_line(log: Path, max_characters: int = 500) -> str:
    """The last line that a log holds, for a person; empty if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except FileNotFoundError:
        return ""
    return next((line.strip()[-max_characters:] for line in reversed(lines) if line.strip()), "")


def _status(process: asyncio.subprocess.Process | None) -> str:
    code = process.returncode if process is not None and process.returncode is not None else 0
    if code >= 0:
        return f"status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
