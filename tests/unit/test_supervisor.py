"""The supervisor over real processes: small scripts stand in for rooms."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from seawall.core.errors import Fatal
from seawall.local import supervisor as module
from seawall.local.supervisor import READY_NICENESS, RoomSpec, State, Status, Supervisor, last_line, turn_over

READY = """
import os, signal, sys, threading
ready = os.environ["SEAWALL_READY_FILE"]
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
print("ready", flush=True)
open(ready, "w").close()
while not stop.wait(0.05): pass
os.remove(ready)
"""


def room(script: str, name: str = "room") -> RoomSpec:
    return RoomSpec(name, [sys.executable, "-S", "-c", script], {})


class Seen:
    """What the supervisor reported, and a way to wait for it."""

    def __init__(self) -> None:
        self.statuses: list[Status] = []
        self._more = asyncio.Event()

    def __call__(self, status: Status) -> None:
        self.statuses.append(status)
        self._more.set()

    async def until(self, wanted: Callable[[Status], bool], count: int = 1) -> Status:
        while len(found := [status for status in self.statuses if wanted(status)]) < count:
            self._more.clear()
            await self._more.wait()
        return found[-1]

    def states(self, name: str = "room") -> list[State]:
        return [status.state for status in self.statuses if status.room == name]


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
async def supervisor(tmp_path: Path, seen: Seen) -> AsyncIterator[Supervisor]:
    made = Supervisor(tmp_path, seen)
    yield made
    await made.stop()


async def test_a_room_starts_is_ready_and_stops_cleanly(supervisor: Supervisor, seen: Seen, tmp_path: Path) -> None:
    supervisor.start([room(READY)])
    await supervisor.ready(timeout=30)
    process = psutil.Process(supervisor.pids()["room"])
    assert os.getpgid(process.pid) == process.pid, "Ctrl-C in the terminal must not reach the room"
    await supervisor.stop()
    assert not process.is_running()
    assert seen.states() == [State.STARTING, State.READY, State.STOPPING, State.STOPPED]
    assert last_line(tmp_path / "logs" / "room.log") == "ready"
    assert not (tmp_path / "run" / "room.ready").exists()


async def test_a_killed_room_is_restarted_at_once(supervisor: Supervisor, seen: Seen) -> None:
    supervisor.start([room(READY)])
    await supervisor.ready(timeout=30)
    first = supervisor.pids()["room"]
    os.kill(first, signal.SIGKILL)
    waiting = await seen.until(lambda status: status.state is State.WAITING)
    assert waiting.detail == "ended with SIGKILL; restart in 0 s"
    await seen.until(lambda status: status.state is State.READY, count=2)
    assert supervisor.pids()["room"] != first
    assert supervisor.restarts == 1


async def test_a_room_that_is_ready_gives_way_to_those_that_start(supervisor: Supervisor, tmp_path: Path) -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    thread = "threading.Thread(target=stop.wait, daemon=True).start()\nprint(os.nice(0)"
    supervisor.start([room(READY.replace('print("ready"', thread))])
    await supervisor.ready(timeout=30)
    process = psutil.Process(supervisor.pids()["room"])
    assert last_line(tmp_path / "logs" / "room.log") == str(ours)
    threads = [os.getpriority(os.PRIO_PROCESS, one.id) for one in process.threads()]
    assert threads == [min(ours + READY_NICENESS, 19)] * 2


async def test_a_ready_file_of_an_earlier_life_is_not_believed(supervisor: Supervisor, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "room.ready").touch()
    supervisor.start([room("import time; time.sleep(60)")])
    with pytest.raises(Fatal, match=r"room not ready after 0 s: see .*room\.log"):
        await supervisor.ready(timeout=0.3)


async def test_a_room_that_cannot_start_is_given_up_with_its_last_words(supervisor: Supervisor, seen: Seen) -> None:
    supervisor.start([room("print('error: the model is missing'); raise SystemExit(3)")])
    with pytest.raises(Fatal, match="room ended with status 3 before it was ready: error: the model is missing"):
        await supervisor.ready(timeout=30)
    assert seen.states().count(State.STARTING) == module.MAX_FAILED_STARTS
    assert seen.states()[-1] is State.FAILED


async def test_a_program_that_does_not_exist_is_named(supervisor: Supervisor) -> None:
    supervisor.start([RoomSpec("room", ["/nonexistent/program"], {})])
    with pytest.raises(Fatal, match="room cannot be started"):
        await supervisor.ready(timeout=30)


async def test_restarts_in_a_row_wait_longer(
    supervisor: Supervisor, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BACK_OFF_SECONDS", (0.0, 0.01, 0.02))
    script = "import os; open(os.environ['SEAWALL_READY_FILE'], 'w').close(); import time; time.sleep(0.2)"
    supervisor.start([room(script)])
    await seen.until(lambda status: status.state is State.WAITING, count=4)
    pauses = [status.detail for status in seen.statuses if status.state is State.WAITING]
    assert [pause.rsplit(" ", 2)[1] for pause in pauses] == ["0", "0.01", "0.02", "0.02"]


async def test_a_room_that_ignores_sigterm_is_killed(
    supervisor: Supervisor, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STOP_SECONDS", 0.2)
    script = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "open(os.environ['SEAWALL_READY_FILE'], 'w').close(); time.sleep(600)"
    )
    supervisor.start([room(script)])
    await supervisor.ready(timeout=30)
    process = psutil.Process(supervisor.pids()["room"])
    await supervisor.stop()
    assert not process.is_running()
    assert "killed: too slow" in [status.detail for status in seen.statuses]


async def test_later_waves_stop_first(supervisor: Supervisor, seen: Seen) -> None:
    supervisor.start([room(READY, "service")])
    supervisor.start([room(READY, "relay")])
    await supervisor.ready(timeout=30)
    await supervisor.stop()
    stopped = [status.room for status in seen.statuses if status.state is State.STOPPED]
    assert stopped == ["relay", "service"]


async def test_rooms_end_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    child = "from seawall.local.supervisor import bind_to_parent; bind_to_parent()" + READY
    script = f"""
import asyncio, subprocess, sys
from pathlib import Path
from seawall.local.supervisor import RoomSpec, Supervisor, launcher
async def main():
    supervisor = Supervisor(Path({str(tmp_path)!r}))
    supervisor.start([RoomSpec("room", [sys.executable, "-c", {child!r}], {{}})])
    waits = "print('up', flush=True); import time; time.sleep(600)"
    other = subprocess.Popen([*launcher(), sys.executable, "-c", waits], stdout=subprocess.PIPE)
    other.stdout.readline()
    await supervisor.ready(timeout=60)
    print(supervisor.pids()["room"], other.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert parent.stdout is not None
    orphans = [psutil.Process(int(pid)) for pid in (await parent.stdout.readline()).split()]
    assert len(orphans) == 2
    parent.kill()
    await parent.communicate()
    for orphan in orphans:
        await asyncio.to_thread(orphan.wait, 30)
        assert not orphan.is_running()


def test_a_long_log_is_turned_over_under_its_writer(tmp_path: Path) -> None:
    log = tmp_path / "room.log"
    with log.open("a") as writer:
        writer.write("x" * 100)
        writer.flush()
        turn_over(log, 99)
        writer.write("next\n")
    assert log.read_text() == "next\n"
    assert (tmp_path / "room.log.1").read_text() == "x" * 100
    turn_over(log, 99)
    assert log.read_text() == "next\n"
