"""What telemetry costs the mesh, and what a collector costs it that hangs or is gone.

Two meshes run side by side on the same events: without telemetry, and with all of it (OTLP spans and metrics, every
endpoint scraped). They drain small backlogs in turn, so whatever else the machine does meets both; CPU time of all
Python rooms counts, not the wall clock. In the second part the collector takes what is sent and answers nothing, in the
third it is gone. Before all that: the calls themselves, alone in one process, for a figure that no neighbour disturbs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from seawall.local import demo_bank
from seawall.local import mesh as local_mesh
from seawall.local.mesh import KAFKA, ROOMS, Mesh, status_file
from seawall.local.supervisor import RoomSpec
from seawall.oncall.rooms import Answer, Endpoint, ask
from seawall.runtime.prometheus import scraped
from seawall.runtime.settings import seawall_home
from tests.bench.harness import ROOT, Report, say
from tests.bench.mesh import _Source, _Traffic
from tests.support.otlp import Stoppable

#: In each part; SEAWALL_BENCH_ROUNDS for a machine that is fast or quiet enough for fewer.
ROUNDS = int(os.environ.get("SEAWALL_BENCH_ROUNDS", "8"))
EVENTS = 60
WARM_EVENTS = 60
_SCRAPE_SECONDS = 5.0
_DROP_SECONDS = 30
_TRIES = 3


class _Line:
    """The line to a collector: it can go dead, or be cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._alive = asyncio.Event()
        self._alive.set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        finally:
            await self.cut()

    def hang(self) -> None:
        """Take connections, and pass nothing on."""
        self._alive.clear()

    async def cut(self) -> None:
        """Be gone."""
        if self._server is not None:
            self._server.close()
        for pump in list(self._pumps):
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        for one in (self._pump(reader, far_writer), self._pump(far_reader, writer)):
            task = asyncio.create_task(one)
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                await self._alive.wait()
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            return
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()


@dataclass
class _Side:
    """A mesh under load, and what it has spent."""

    home: Path
    traffic: _Traffic
    cpu: float = 0.0
    events: int = 0

    @property
    def per_event(self) -> float:
        """CPU milliseconds."""
        return self.cpu / self.events * 1000

    async def drain(self, count: int) -> None:
        before = self._python()
        await self.traffic.send(count)
        await self.traffic.answered(120)
        self.cpu += self._python() - before
        self.events += count

    def forget(self) -> None:
        self.cpu, self.events = 0.0, 0

    def _python(self) -> float:
        return sum(seconds for room, seconds in self.traffic.cpu().items() if room != KAFKA)

    async def answers(self) -> list[Answer]:
        return await ask([Endpoint(room, status_file(self.home, room).read_text().strip()) for room in ROOMS])

    async def dropped(self) -> float:
        """Spans that the rooms say they lost."""
        name = scraped("moderation.telemetry.spans.dropped")
        return sum(answer.value(name) or 0.0 for answer in await self.answers())


async def run(report: Report) -> None:
    """Measure, in one run, both meshes in three parts."""
    with tempfile.TemporaryDirectory(prefix="seawall-bench-") as folder, Stoppable() as collector:
        with Stoppable() as of_calls:
            await _calls(report, of_calls.endpoint)
        root = Path(folder)
        # The pictures come round again, and each event is to cost what a new one does.
        os.environ["SEAWALL_CACHED_RESULTS"] = "0"
        os.environ["SEAWALL_SEALING__KEYSET"] = str(root / "off" / "keys" / "sealing.json")
        os.environ["SEAWALL_CONTENT__ALLOWED_PREFIXES"] = f'["{(root / "off" / "content").as_uri()}/"]'
        source = _Source(root / "off")
        line = _Line(int(collector.endpoint.rpartition(":")[2]))
        async with AsyncExitStack() as stack:
            endpoint = await stack.enter_async_context(line.open())
            off = await stack.enter_async_context(_side(root / "off", source, None))
            full = await stack.enter_async_context(_side(root / "full", source, endpoint))
            scraping = asyncio.create_task(_scrape(full))
            try:
                await _measure(report, off, full, line, collector)
            finally:
                scraping.cancel()
                await asyncio.wait([scraping])


async def _calls(report: Report, endpoint: str) -> None:
    """CPU of the telemetry that one event causes in all rooms, its export included."""
    for batch in (1, 16):
        spent = {
            where: min([await _calls_once(where, batch) for _ in range(_TRIES)]) * 1e6 for where in ("off", endpoint)
        }
        report.add(f"CPU of its calls, batches of {batch}", spent[endpoint] - spent["off"], unit="µs/event")


async def _calls_once(endpoint: str, batch: int) -> float:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench._telemetry_calls", endpoint, str(batch)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    return float(out.split()[-1])


async def _measure(report: Report, off: _Side, full: _Side, line: _Line, collector: Stoppable) -> None:
    for side in (off, full):
        await side.drain(WARM_EVENTS)
    answering = await _part("the collector answers", off, full)
    report.add("CPU without telemetry", off.per_event, unit="ms/event")
    report.add("CPU with all of it", full.per_event, unit="ms/event")
    report.add("telemetry's share of mesh CPU", (1 - 1 / answering) * 100, 5, "<=", "%")
    report.add("spans received", len(collector.received.every_span()), 1)
    report.add("rooms whose metrics were received", len({room for room, _ in collector.received.metrics}), len(ROOMS))
    line.hang()
    hanging = await _part("the collector hangs", off, full)
    # What a CPU second carries, against the same mesh while the collector answered; each beside the mesh without.
    report.add("throughput lost while it hangs", (1 - answering / hanging) * 100, 2, "<=", "%")
    report.add("spans dropped meanwhile, counted", await _some_dropped(full), 1)
    await line.cut()
    gone = await _part("the collector is gone", off, full)
    report.add("throughput lost while it is gone", (1 - answering / gone) * 100, 2, "<=", "%")
    report.add("spans dropped in all, counted", await full.dropped(), 1)


async def _part(what: str, off: _Side, full: _Side) -> float:
    """Drain in turn; CPU an event with telemetry over that without."""
    sides = {"off": off, "full": full}
    for side in sides.values():
        side.forget()
    for number in range(ROUNDS):
        # Each begins in turn: what the one before leaves behind in caches meets both alike.
        for name in ("off", "full") if number % 2 == 0 else ("full", "off"):
            await sides[name].drain(EVENTS)
    ratio = full.per_event / off.per_event
    say(f"{what}: off {off.per_event:.3f}, full {full.per_event:.3f} ms/event, {ratio:.4f}")
    return ratio


async def _some_dropped(side: _Side) -> float:
    """An export fails when its time is up: that is waited for."""
    for _ in range(_DROP_SECONDS):
        if lost := await side.dropped():
            return lost
        await asyncio.sleep(1)
    return 0.0


async def _scrape(side: _Side) -> None:
    """What Prometheus does."""
    while True:
        await side.answers()
        await asyncio.sleep(_SCRAPE_SECONDS)


@asynccontextmanager
async def _side(home: Path, source: _Source, endpoint: str | None) -> AsyncIterator[_Side]:
    _prepare(home)
    say(f"starting the mesh {home.name}")
    environment = {"SEAWALL_TELEMETRY__OTLP_ENDPOINT": endpoint} if endpoint else {}
    with _telemetry_of(home, on=endpoint is not None):
        async with (
            Mesh.open(home, environment=environment, cache=home / "cache") as mesh,
            _Traffic(mesh, source).started() as traffic,
        ):
            yield _Side(home, traffic)


def _prepare(home: Path) -> None:
    home.mkdir(exist_ok=True)
    for name in ("cache", "models"):
        # The caches of the real home: jars and models are not what is measured.
        (home / name).symlink_to(seawall_home() / name)
    demo_bank.ensure(home / "banks")


@contextmanager
def _telemetry_of(home: Path, *, on: bool) -> Iterator[None]:
    """Rooms of this home without the file of spans, and without any telemetry unless it is on."""
    before = local_mesh._room

    def room(at: Path, name: str, environment: dict[str, str]) -> RoomSpec:
        spec = before(at, name, environment)
        if at != home:
            return spec
        left_out = ("SEAWALL_TELEMETRY__SPANS_FILE",) if on else ("SEAWALL_TELEMETRY__",)
        kept = {key: value for key, value in spec.environment.items() if not key.startswith(left_out)}
        return spec._replace(environment=kept)

    local_mesh._room = room  # type: ignore[assignment]
    try:
        yield
    finally:
        local_mesh._room = before
