"""The body of ``seawall run console``."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator

import uvicorn
import uvloop

from seawall.console.app import application
from seawall.console.lookup import LookUp
from seawall.console.records import DecisionRecords, Ends
from seawall.console.settings import ConsoleSettings, HttpSettings
from seawall.console.sign_in import OneTimeToken
from seawall.console.state import State
from seawall.console.watch import AskedRooms, Watch
from seawall.core.errors import Fatal
from seawall.ledger import database
from seawall.relay.observe import StreamObserver
from seawall.runtime import logging, telemetry, topics
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.settings import load_settings, seawall_home

ROOM = "console"
#: Holds the address that signs in, for whoever may read this user's files.
LINK_FILE = "console.link"


def main() -> None:
    """Serve until SIGTERM or SIGINT. Raises Fatal on bad settings or a port that is taken."""
    settings = load_settings(ConsoleSettings, ROOM)
    logging.setup(settings.telemetry, ROOM, settings.instance)
    telemetry.setup(settings.telemetry, ROOM, settings.instance)
    try:
        uvloop.run(_run(settings))
    finally:
        telemetry.shutdown()


async def _run(settings: ConsoleSettings) -> None:
    names = topics.TopicNames(settings.kafka.topic_prefix)
    broker = KafkaBroker(settings.kafka)
    run_folder = seawall_home() / "run"
    # The ledger may be away, or not migrated yet: the pages say so, and decisions are read from Kafka.
    db = database.connect(settings.database, bound_statements=True)
    # Single records: of a fetch little is wanted, and an empty partition's must not keep a page waiting.
    few = settings.kafka.model_copy(update={"fetch_max_wait_ms": 50, "max_partition_fetch_bytes": 64 * 1024})
    records = DecisionRecords(
        KafkaBroker(few),
        names.decisions,
        names.overrides,
        record_seconds=settings.record_seconds,
        scan_seconds=settings.scan_seconds,
    )
    ends = Ends(broker, (names.decisions, names.dead_letters, names.overrides))
    rooms = AskedRooms(settings.rooms, run_folder, timeout=settings.watch_timeout_seconds)
    watch = Watch(rooms, ends, every=settings.watch_seconds, timeout=settings.watch_timeout_seconds)
    state = State(settings, db, watch, LookUp(db, records))
    listening = _listen(settings.http)
    address = _address(settings.http, listening)
    token = None if settings.oidc else OneTimeToken(address, run_folder / LINK_FILE)
    server = _Server(
        uvicorn.Config(
            application(state, token=token),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=32 * 1024,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=5,
            limit_concurrency=256,
        )
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    observer = StreamObserver(ROOM)
    watching = loop.create_task(watch.run())
    serving = loop.create_task(server.serve([listening]))
    try:
        await server.begun.wait()
        observer.ready(True)
        print(f"console: {token.link if token else address}", flush=True)
        await asyncio.wait([watching, serving], return_when=asyncio.FIRST_COMPLETED)
        server.stop()
        await serving
        if watching.done():
            watching.result()
    finally:
        observer.ready(False)
        watching.cancel()
        await asyncio.wait([watching])
        await records.close()
        await ends.close()
        db.dispose()


def _listen(settings: HttpSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        raise Fatal(
            "BAD_SETTINGS",
            f"http: cannot listen on {settings.host} port {settings.port} ({error.strerror}): "
            "set SEAWALL_HTTP__PORT to one that is free, or 0 for any",
        ) from None


def _address(settings: HttpSettings, listening: socket.socket) -> str:
    """As browsers see us."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return (settings.public_url or f"http://{host}:{listening.getsockname()[1]}").rstrip("/")


class _Server(uvicorn.Server):
    """uvicorn without its own signals: the room stops as the other rooms do."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.begun = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.begun.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        """Ask it to end."""
        self.should_exit = True
