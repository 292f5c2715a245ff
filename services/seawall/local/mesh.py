"""The embedded default: one Kafka broker and every room as a process of its own, on this machine.

Below the home folder: ``run/`` (sockets, ready files, ``mesh.json`` for other commands), ``logs/`` (one a room, spans
beside them), ``kafka/``, ``content/``, ``keys/``, ``models/``, ``banks/``.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from seawall.core.errors import Fatal
from seawall.local.kafka import EmbeddedKafka
from seawall.local.supervisor import BACK_OFF_SECONDS, RoomSpec, State, Status, Supervisor, launcher
from seawall.runtime import topics
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.settings import KafkaSettings

STAGES = ("prompt_scoring", "perceptual_hashing", "classification")
RELAYS = tuple(f"{stage}.relay" for stage in STAGES)
#: The rooms of the mesh, in the order they start.
ROOMS = (*STAGES, *RELAYS, "perceptual_hashing.retroactive", "aggregator")
#: Rooms that may run beside the mesh: nothing in it waits for them.
BESIDE = ("ledger", "console", "actor_history")
#: The service that reads bank_entries.v1, and writes there what is imported on this machine.
FOLLOWER = "perceptual_hashing"
#: Name of the broker among the rooms.
KAFKA = "kafka"

#: For a room that nobody waits for: few large fetches instead of one a signal, which would cost the broker more than
#: the room itself.
_PATIENT = {"SEAWALL_KAFKA__FETCH_MIN_BYTES": "65536", "SEAWALL_KAFKA__FETCH_MAX_WAIT_MS": "500"}
#: Compression saves a network, and there is none here: the broker would unpack each batch to check it, on these cores.
_LOOPBACK = {"SEAWALL_KAFKA__COMPRESSION": "none"}
#: Of each topic. One process reads them all here, and every fetch names every partition: more would only cost.
PARTITIONS = 2
SERVICES_SECONDS = 120.0
READERS_SECONDS = 60.0
#: Linux allows 107 bytes in the path of a Unix socket.
_MAX_SOCKET_FOLDER = 70

Report = Callable[[Status], None]


class Running(NamedTuple):
    """What ``mesh.json`` says of the mesh that runs on a home folder."""

    pid: int
    bootstrap_servers: str
    #: The rooms that are to run.
    rooms: tuple[str, ...]


def running(home: Path) -> Running | None:
    """The mesh that runs on this home folder now, or None."""
    try:
        document = json.loads((home / "run" / "mesh.json").read_text(encoding="utf-8"))
        rooms = tuple(str(room) for room in document["rooms"])
        found = Running(int(document["pid"]), str(document["bootstrap_servers"]), rooms)
        os.kill(found.pid, 0)
    except (FileNotFoundError, ProcessLookupError, PermissionError, ValueError, KeyError):
        return None
    return found


def status_file(home: Path, room: str) -> Path:
    """Where a room of the mesh on this home folder writes the "host:port" of its HTTP endpoint."""
    return home / "run" / f"{room}.http"


class Mesh:
    """A running mesh. Use `Mesh.open`."""

    def __init__(self, home: Path, kafka: EmbeddedKafka, supervisor: Supervisor) -> None:
        self.home = home
        self.kafka = kafka
        self.supervisor = supervisor

    @property
    def kafka_settings(self) -> KafkaSettings:
        """How a client on this machine reaches the broker."""
        return KafkaSettings(bootstrap_servers=self.kafka.bootstrap_servers, compression="none")

    def broker(self) -> KafkaBroker:
        """The broker seam on the mesh's broker."""
        return KafkaBroker(self.kafka_settings)

    def pids(self) -> dict[str, int]:
        """Process ids by room, the broker's among them."""
        broker = {KAFKA: self.kafka.pid} if self.kafka.pid is not None else {}
        return {**broker, **self.supervisor.pids()}

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        home: Path,
        report: Report = lambda status: None,
        *,
        environment: Mapping[str, str] | None = None,
        cache: Path | None = None,
        kafka_folder: Path | None = None,
        beside: Collection[str] = (),
    ) -> AsyncIterator[Mesh]:
        """A mesh whose every room is ready; ended when the context is left, however it is left.

        Args:
            environment: settings for every room, over those of this process.
            cache: where Kafka's jars are kept, ``home/cache`` if None.
            kafka_folder: the broker's data, ``home/kafka`` if None.
            beside: rooms of BESIDE that run as well.

        Raises Fatal with the mend when it cannot start.
        """
        with _only_one(home), _socket_folder(home) as sockets:
            kafka = EmbeddedKafka(kafka_folder or home / "kafka", cache=cache or home / "cache", launcher=launcher())
            supervisor = Supervisor(home, report)
            mesh = cls(home, kafka, supervisor)
            shared = {"SEAWALL_HOME": str(home), **_LOOPBACK, **(environment or {})}
            keeper: asyncio.Task[None] | None = None
            try:
                # Here, because commands that only look for a running mesh need no imaging library.
                from seawall.local import demo_bank

                await asyncio.to_thread(demo_bank.ensure_some, home / "banks")
                # Services load their models while the broker starts: neither needs the other. But for the one that
                # follows the topic of bank entries.
                supervisor.start([_service(home, stage, sockets, shared) for stage in STAGES if stage != FOLLOWER])
                report(Status(KAFKA, State.STARTING, None, 0, ""))
                await _unless_failed(supervisor, asyncio.to_thread(kafka.start))
                report(Status(KAFKA, State.READY, kafka.pid, 0, ""))
                keeper = asyncio.create_task(_keep_kafka(kafka, report), name="keep-kafka")
                shared["SEAWALL_KAFKA__BOOTSTRAP_SERVERS"] = kafka.bootstrap_servers
                await topics.apply(mesh.broker(), mesh.kafka_settings, topics.TopicSettings(partitions=PARTITIONS))
                follower = _service(home, FOLLOWER, sockets, {**shared, "SEAWALL_BANKS__FOLLOW": "true"})
                supervisor.start([follower])
                await supervisor.ready(STAGES, timeout=SERVICES_SECONDS)
                readers = [_relay(home, stage, sockets, shared) for stage in STAGES]
                others = [
                    _reader(home, "perceptual_hashing.retroactive", {**_PATIENT, **shared}),
                    _reader(home, "aggregator", shared),
                    *(_reader(home, name, {**_PATIENT, **shared}) for name in BESIDE if name in beside),
                ]
                supervisor.start([*readers, *others])
                await supervisor.ready(timeout=READERS_SECONDS)
                with _announced(home, kafka.bootstrap_servers, [*ROOMS, *(name for name in BESIDE if name in beside)]):
                    yield mesh
            finally:
                # Shielded: a second Ctrl-C must not leave processes behind.
                await asyncio.shield(_end(kafka, supervisor, keeper, report))


async def _end(kafka: EmbeddedKafka, supervisor: Supervisor, keeper: asyncio.Task[None] | None, report: Report) -> None:
    if keeper is not None:
        keeper.cancel()
        await asyncio.wait([keeper])
    try:
        await supervisor.stop()
    finally:
        await asyncio.to_thread(kafka.stop)
        report(Status(KAFKA, State.STOPPED, None, 0, ""))


async def _unless_failed(supervisor: Supervisor, starting: Coroutine[Any, Any, None]) -> None:
    """Await the broker's start; raise if a room gave up meanwhile."""
    start = asyncio.create_task(starting)
    failing = asyncio.create_task(supervisor.failed())
    try:
        await asyncio.wait({start, failing}, return_when=asyncio.FIRST_COMPLETED)
        # The thread that starts the broker cannot be cut short: let it end, so that the broker can be stopped.
        await asyncio.wait({start})
        if failing.done():
            await failing
        await start
    finally:
        failing.cancel()


async def _keep_kafka(kafka: EmbeddedKafka, report: Report) -> None:
    """Restart the broker when it dies, with the supervisor's back-off; it takes up the same port and log."""
    deaths = 0
    while True:
        if (pid := kafka.pid) is not None:
            await _exit_of(pid)
        pause = BACK_OFF_SECONDS[min(deaths, len(BACK_OFF_SECONDS) - 1)]
        deaths += 1
        report(Status(KAFKA, State.WAITING, None, deaths, f"ended; restart in {pause:g} s"))
        await asyncio.sleep(pause)
        try:
            await asyncio.to_thread(kafka.start)
        except Fatal as error:
            report(Status(KAFKA, State.WAITING, None, deaths, error.detail))
            continue
        report(Status(KAFKA, State.READY, kafka.pid, deaths, ""))


async def _exit_of(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(descriptor, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _service(home: Path, stage: str, sockets: Path, shared: Mapping[str, str]) -> RoomSpec:
    return _room(home, stage, {**shared, "SEAWALL_RPC_SERVER__UDS": str(sockets / f"{stage}.sock")})


def _relay(home: Path, stage: str, sockets: Path, shared: Mapping[str, str]) -> RoomSpec:
    name = f"{stage}.relay"
    target = f"unix:{sockets / f'{stage}.sock'}"
    return _room(home, name, {**shared, **_member(name), "SEAWALL_RPC_CLIENT__TARGET": target})


def _reader(home: Path, name: str, shared: Mapping[str, str]) -> RoomSpec:
    return _room(home, name, {**shared, **_member(name)})


def _member(name: str) -> dict[str, str]:
    # Static membership: a restart within the session keeps its partitions and the others go on undisturbed.
    return {"SEAWALL_KAFKA__INSTANCE": f"{name}-0"}


def _room(home: Path, name: str, environment: Mapping[str, str]) -> RoomSpec:
    defaults = {
        "SEAWALL_INSTANCE": f"{name}-0",
        "SEAWALL_TELEMETRY__SPANS_FILE": str(home / "logs" / f"{name}.spans.jsonl"),
        "SEAWALL_TELEMETRY__HTTP_LISTEN": "127.0.0.1:0",
        "SEAWALL_TELEMETRY__HTTP_PORT_FILE": str(status_file(home, name)),
        # glibc gives every thread an arena of its own, which on many cores costs more memory than the models.
        "MALLOC_ARENA_MAX": "2",
    }
    return RoomSpec(name, [sys.executable, "-m", "seawall.cli", "run", name], {**defaults, **environment})


@contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """Hold the home folder: two meshes on one folder would share logs, sockets and the broker's log."""
    folder = home / "run"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "mesh.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = running(home)
            who = f"process {other.pid}" if other else "another process"
            raise Fatal(
                "ALREADY_UP",
                f"{who} runs a mesh on {home}: stop it (Ctrl-C there), or set SEAWALL_HOME to another folder",
            ) from None
        yield


@contextmanager
def _announced(home: Path, bootstrap_servers: str, rooms: Sequence[str]) -> Iterator[None]:
    """Tell other commands where the mesh is, for as long as it is there."""
    path = home / "run" / "mesh.json"
    temporary = path.with_suffix(".tmp")
    document = {"pid": os.getpid(), "bootstrap_servers": bootstrap_servers, "rooms": list(rooms)}
    temporary.write_text(json.dumps(document), encoding="utf-8")
    temporary.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _socket_folder(home: Path) -> Iterator[Path]:
    """Where the services' Unix sockets are: below home, or in a short-lived folder if that path is too long."""
    folder = home / "run"
    if len(os.fsencode(folder)) <= _MAX_SOCKET_FOLDER:
        for stale in folder.glob("*.sock"):
            stale.unlink()
        yield folder
        return
    short = Path(tempfile.mkdtemp(prefix="seawall-"))
    try:
        yield short
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(short)
