"""What telemetry costs the mesh: off, full, with a collector that hangs, and with one that is gone.

Three meshes run side by side on the same events: without telemetry; with all of it (OTLP spans and metrics, endpoints
scraped); and with a collector that takes connections and answers nothing. They drain small backlogs in turn, so
whatever else the machine does meets all three. CPU time of all Python rooms counts, not the wall clock. At last the
collector goes.
"""

from __future__ import annotations

import asyncio
import os
import socket
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
from tests.bench.harness import Report, say
from tests.bench.mesh import _Source, _Traffic
from tests.support.otlp import Stoppable

ROUNDS = 8
EVENTS = 120
WARM_EVENTS = 150
_SCRAPE_SECONDS = 5.0
OFF, FULL, HUNG = "off", "full", "hung"


@dataclass
class _Side:
    """A mesh under load, and what it has spent."""

    home: Path
    traffic: _Traffic
    cpu: float = 0.0
    events: int = 0

    @property
    def per_event(self) -> float:
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


async def run(report: Report) -> None:
    """Measure, in one run, the three meshes."""
    with tempfile.TemporaryDirectory(prefix="seawall-bench-") as folder, Stoppable() as collector, _hung() as hung:
        root = Path(folder)
        # The pictures come round again, and each event is to cost what a new one does.
        os.environ["SEAWALL_CACHED_RESULTS"] = "0"
        os.environ["SEAWALL_SEALING__KEYSET"] = str(root / OFF / "keys" / "sealing.json")
        os.environ["SEAWALL_CONTENT__ALLOWED_PREFIXES"] = f'["{(root / OFF / "content").as_uri()}/"]'
        source = _Source(root / OFF)
        endpoints = {OFF: None, FULL: collector.endpoint, HUNG: hung}
        async with AsyncExitStack() as stack:
            sides = {
                name: await stack.enter_async_context(_side(root / name, source, endpoint))
                for name, endpoint in endpoints.items()
            }
            scraping = asyncio.create_task(_scrape(sides[FULL]))
            try:
                await _measure(report, sides, collector)
            finally:
                scraping.cancel()
                await asyncio.wait([scraping])


async def _measure(report: Report, sides: dict[str, _Side], collector: Stoppable) -> None:
    for side in sides.values():
        await side.drain(WARM_EVENTS)
        side.forget()
    await _rounds(sides)
    off, full, hung = (sides[name].per_event for name in (OFF, FULL, HUNG))
    report.add("CPU without telemetry", off, unit="ms/event")
    report.add("CPU with all of it", full, unit="ms/event")
    report.add("telemetry's share of mesh CPU", (full - off) / full * 100, 5, "<=", "%")
    spans = len(collector.received.every_span())
    report.add("spans received", spans, 1, ">=")
    report.add("rooms whose metrics were received", len({room for room, _ in collector.received.metrics}), len(ROOMS))
    report.add("collector hangs: throughput", off / hung, unit="of that without telemetry")
    report.add("collector hangs: lost to the one that answers", (hung - full) / hung * 100, 2, "<=", "%")
    report.add("collector hangs: spans dropped, counted", await _dropped(sides[HUNG]), 1, ">=")

    say("the collector goes away")
    await asyncio.to_thread(collector.stop)
    for side in sides.values():
        side.forget()
    # The hung one is the measure no more: full and off are.
    pair = {OFF: sides[OFF], FULL: sides[FULL]}
    await _rounds(pair)
    gone, off_now = pair[FULL].per_event, pair[OFF].per_event
    # Against what the same mesh cost with its collector, both relative to the mesh without.
    report.add("collector gone: lost to before", (1 - (full / off) / (gone / off_now)) * 100, 2, "<=", "%")
    report.add("collector gone: spans dropped, counted", await _dropped(sides[FULL]), 1, ">=")


async def _rounds(sides: dict[str, _Side]) -> None:
    names = list(sides)
    for number in range(ROUNDS):
        # Each begins in turn: what the one before leaves behind in caches meets all alike.
        for name in names[number % len(names) :] + names[: number % len(names)]:
            await sides[name].drain(EVENTS)
        say(", ".join(f"{name} {side.per_event:.3f}" for name, side in sides.items()) + " ms/event")


async def _dropped(side: _Side) -> float:
    """Spans that the rooms say they lost; waits a little, since an export fails when its time is up."""
    for _ in range(20):
        name = scraped("moderation.telemetry.spans.dropped")
        lost = sum(answer.value(name) or 0.0 for answer in await side.answers())
        if lost:
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
    with _telemetry_of(home, endpoint is not None):
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
def _telemetry_of(home: Path, on: bool) -> Iterator[None]:
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


@contextmanager
def _hung() -> Iterator[str]:
    """A collector that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
