"""What telemetry costs the mesh, and what a collector costs it that hangs or is gone.

Two meshes, one without telemetry and one with all of it (OTLP spans and metrics, every endpoint scraped), drain the
same backlogs *at the same time*: a machine's speed wanders by a tenth within seconds, and so it wanders for both. Pairs
of drains then give ratios of CPU time that vary by 1.5 to 2 %, where drains in turn varied by 8 %. The line to the
collector is alive, hung or cut in turns that come round three times, so that a drift is nobody's loss. What counts is a
ratio of sums (a cost that comes once in fifteen seconds is in it), with a bootstrap's 95 % interval beside it. Before
all that: the calls themselves, alone in one process, for a figure that no neighbour disturbs.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

from seawall.api.generation.v1 import generation_pb2
from seawall.local import demo_bank
from seawall.local import mesh as local_mesh
from seawall.local.mesh import KAFKA, ROOMS, Mesh, status_file
from seawall.local.supervisor import RoomSpec
from seawall.oncall.rooms import Answer, Endpoint, ask
from seawall.runtime.prometheus import scraped
from seawall.runtime.settings import seawall_home
from tests.bench.harness import ROOT, Report, say
from tests.bench.mesh import _Source, _Traffic
from tests.support.lines import ANSWERS, GONE, HANGS, Line
from tests.support.otlp import Stoppable

#: Each state follows each other one, and stands once in each place of a round.
TURNS = (ANSWERS, HANGS, GONE, HANGS, GONE, ANSWERS, GONE, ANSWERS, HANGS)
#: Of one turn: longer than an export's time (5 s) and an interval of metrics (15 s).
TURN_SECONDS = float(os.environ.get("SEAWALL_BENCH_TURN_SECONDS", "16"))
EVENTS = 60
WARM_EVENTS = 120
#: Rooms that record spans of batches or decisions, and so show that they reach the collector again.
_TRACED = frozenset(ROOMS) - {"perceptual_hashing.retroactive"}
_SETTLE_SECONDS = 60.0
_SCRAPE_SECONDS = 5.0
_TRIES = 2
_RESAMPLES = 2_000


class _Events:
    """The same generations for each mesh: what they cost is the same, and they fall into the same batches."""

    def __init__(self, source: _Source, made: list[generation_pb2.Generation]) -> None:
        self._source = source
        self._made = made
        self._taken = 0

    def generations(self, count: int) -> list[generation_pb2.Generation]:
        first, self._taken = self._taken, self._taken + count
        if missing := self._taken - len(self._made):
            self._made += self._source.generations(max(0, missing))
        return self._made[first : self._taken]


@dataclass
class _Side:
    """A mesh under load."""

    home: Path
    traffic: _Traffic

    async def drain(self) -> float:
        """A backlog; wall seconds."""
        began = time.monotonic()
        await self.traffic.send(EVENTS)
        await self.traffic.answered(120)
        return time.monotonic() - began

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far by room, to the nanosecond: a relay spends less on a backlog than a clock tick."""
        return {
            room: sum(_cpu_seconds(one.pid) for one in (process, *process.children(recursive=True)))
            for room, process in ((room, psutil.Process(pid)) for room, pid in self.traffic.mesh.pids().items())
            if room != KAFKA
        }

    async def answers(self) -> list[Answer]:
        return await ask([Endpoint(room, status_file(self.home, room).read_text().strip()) for room in ROOMS])

    async def dropped(self) -> float:
        """Spans that the rooms say they lost."""
        name = scraped("moderation.telemetry.spans.dropped")
        return sum(answer.value(name) or 0.0 for answer in await self.answers())


def _cpu_seconds(pid: int) -> float:
    """Of all its threads, those that have ended too."""
    # clock_getcpuclockid(3): the clock of another process is named by its id.
    return time.clock_gettime((~pid << 3) | 2)


class _Pair(NamedTuple):
    """Two backlogs drained at the same time: CPU seconds by room, and wall seconds."""

    off: dict[str, float]
    full: dict[str, float]
    off_wall: float
    full_wall: float


async def run(report: Report) -> None:
    """Measure, in one run, both meshes while the collector answers, hangs and is gone."""
    with tempfile.TemporaryDirectory(prefix="seawall-bench-") as folder, Stoppable() as collector:
        with Stoppable() as of_calls:
            await _calls(report, of_calls.endpoint)
        root = Path(folder)
        # The pictures come round again, and each event is to cost what a new one does.
        os.environ["SEAWALL_CACHED_RESULTS"] = "0"
        os.environ["SEAWALL_SEALING__KEYSET"] = str(root / "events" / "keys" / "sealing.json")
        os.environ["SEAWALL_CONTENT__ALLOWED_PREFIXES"] = f'["{(root / "events" / "content").as_uri()}/"]'
        source, made = _Source(root / "events"), list[generation_pb2.Generation]()
        async with AsyncExitStack() as stack:
            line = await stack.enter_async_context(Line(collector.port))
            off = await stack.enter_async_context(_side(root / "off", _Events(source, made), None))
            full = await stack.enter_async_context(_side(root / "full", _Events(source, made), line.endpoint))
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


async def _measure(report: Report, off: _Side, full: _Side, line: Line, collector: Stoppable) -> None:
    for _ in range(WARM_EVENTS // EVENTS):
        await _pair(off, full, 0)
    pairs: dict[str, list[_Pair]] = {state: [] for state in (ANSWERS, HANGS, GONE)}
    dropped = dict.fromkeys(pairs, 0.0)
    for state in TURNS:
        lost = await full.dropped()
        await line.turn(state)
        await _settle(off, full, state, collector)
        until = time.monotonic() + TURN_SECONDS
        while time.monotonic() < until:
            pairs[state].append(await _pair(off, full, len(pairs[state])))
        dropped[state] += await full.dropped() - lost
        say(f"the collector {state}: {_ratio(pairs[state]):.4f} after {len(pairs[state])} pairs")
    _costs(report, pairs[ANSWERS])
    report.add("rooms whose metrics were received", len({room for room, _ in collector.received.metrics}), len(ROOMS))
    for state in (HANGS, GONE):
        # What a CPU second carries, against the same mesh while the collector answered; each beside the mesh without.
        what = f"throughput lost while it {state}"
        report.add(what, _lost(pairs[ANSWERS], pairs[state]), 2, "<=", "%")
        _interval(report, what, [_lost(*both) for both in _resampled(pairs[ANSWERS], pairs[state])])
        report.add(f"drain time while it {state}, against off", _slower(pairs[state]), unit="%")
        report.add(f"spans dropped while it {state}, counted", dropped[state], 1)


def _costs(report: Report, pairs: list[_Pair]) -> None:
    """What all telemetry costs while the collector answers."""
    events = len(pairs) * EVENTS
    off, full = ({room: sum(getattr(pair, side)[room] for pair in pairs) for room in ROOMS} for side in ("off", "full"))
    report.add("pairs of backlogs", len(pairs))
    report.add("CPU without telemetry", sum(off.values()) / events * 1000, unit="ms/event")
    report.add("CPU with all of it", sum(full.values()) / events * 1000, unit="ms/event")
    for room in ROOMS:
        report.add(f"of it {room}", (full[room] - off[room]) / events * 1000, unit="ms/event")
    report.add("telemetry's share of mesh CPU", _share(pairs), 5, "<=", "%")
    _interval(report, "telemetry's share", [_share(some) for (some,) in _resampled(pairs)])
    report.add("drain time while it answers, against off", _slower(pairs), unit="%")


async def _pair(off: _Side, full: _Side, number: int) -> _Pair:
    """Drain the same backlog in both; who is first changes. What either does until both have ended is counted."""
    before = off.cpu(), full.cpu()
    if number % 2 == 0:
        off_wall, full_wall = await asyncio.gather(off.drain(), full.drain())
    else:
        full_wall, off_wall = await asyncio.gather(full.drain(), off.drain())
    spent = [
        {room: after[room] - earlier[room] for room in ROOMS}
        for earlier, after in zip(before, (off.cpu(), full.cpu()), strict=True)
    ]
    return _Pair(spent[0], spent[1], off_wall, full_wall)


async def _settle(off: _Side, full: _Side, state: str, collector: Stoppable) -> None:
    """Drain, uncounted, until a change of the line has come through: what is in flight ends, what is back is used."""
    before = _spans_by_room(collector)
    async with asyncio.timeout(_SETTLE_SECONDS):
        await _pair(off, full, 0)
        while state == ANSWERS and not (_spans_by_room(collector) - before).keys() >= _TRACED:
            await _pair(off, full, 0)


def _spans_by_room(collector: Stoppable) -> Counter[str]:
    return Counter(span.service for span in collector.received.every_span())


def _ratio(pairs: Sequence[_Pair]) -> float:
    """CPU with telemetry over that without."""
    return sum(sum(pair.full.values()) for pair in pairs) / sum(sum(pair.off.values()) for pair in pairs)


def _share(pairs: Sequence[_Pair]) -> float:
    return (1 - 1 / _ratio(pairs)) * 100


def _lost(answering: Sequence[_Pair], away: Sequence[_Pair]) -> float:
    return (1 - _ratio(answering) / _ratio(away)) * 100


def _slower(pairs: Sequence[_Pair]) -> float:
    """A stall takes no CPU, but time."""
    return (sum(pair.full_wall for pair in pairs) / sum(pair.off_wall for pair in pairs) - 1) * 100


def _resampled(*samples: list[_Pair]) -> Iterator[tuple[list[_Pair], ...]]:
    """The bootstrap: as many pairs again, drawn with replacement."""
    chance = random.Random(1)
    for _ in range(_RESAMPLES):
        yield tuple(chance.choices(sample, k=len(sample)) for sample in samples)


def _interval(report: Report, what: str, values: list[float]) -> None:
    values.sort()
    report.add(f"{what}: 95 % from", values[len(values) // 40], unit="%")
    report.add(f"{what}: 95 % to", values[-len(values) // 40], unit="%")


async def _scrape(side: _Side) -> None:
    """What Prometheus does."""
    while True:
        await side.answers()
        await asyncio.sleep(_SCRAPE_SECONDS)


@asynccontextmanager
async def _side(home: Path, events: _Events, endpoint: str | None) -> AsyncIterator[_Side]:
    _prepare(home)
    say(f"starting the mesh {home.name}")
    environment = {"SEAWALL_TELEMETRY__OTLP_ENDPOINT": endpoint} if endpoint else {}
    with _telemetry_of(home, on=endpoint is not None):
        async with (
            Mesh.open(home, environment=environment, cache=home / "cache") as mesh,
            _Traffic(mesh, events).started() as traffic,
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
