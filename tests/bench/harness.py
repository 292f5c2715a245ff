"""What benchmarks share: a report with targets, CPU time of processes, a broker of one's own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import operator
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from seawall.local.kafka import EmbeddedKafka
from seawall.runtime.broker import TopicSpec
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.settings import KafkaSettings, seawall_home

_OPERATORS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Report:
    """The metrics of one benchmark."""

    bench: str
    metrics: list[dict[str, object]] = field(default_factory=list)

    def add(self, name: str, value: float, target: float | None = None, op: str = ">=", unit: str = "") -> None:
        """A figure; one with a target decides whether the benchmark passes."""
        ok = None if target is None else _OPERATORS[op](value, target)
        self.metrics.append({"name": name, "value": round(value, 4), "target": target, "op": op, "ok": ok})
        aim = "" if target is None else f"   target {op} {target:g}  {'ok' if ok else 'MISSED'}"
        print(f"  {name:44} {value:12,.3f} {unit:14}{aim}", flush=True)

    @property
    def ok(self) -> bool:
        return all(metric["ok"] is not False for metric in self.metrics)

    def print(self, *, as_json: bool) -> None:
        if as_json:
            print(json.dumps({"bench": self.bench, "metrics": self.metrics}))


def say(text: str) -> None:
    """Progress, on standard error."""
    print(f"# {text}", file=sys.stderr, flush=True)


def cpu_seconds(pid: int) -> float:
    """User and system CPU time so far of a process and all it started, seconds."""
    process = psutil.Process(pid)
    spent = 0.0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            # By the process's own clock (clock_getcpuclockid(3)): the system's table counts in hundredths of a second.
            spent += time.clock_gettime(~one.pid << 3 | 2)
            # Of those that have ended, what they used is with the one that started them.
            times = one.cpu_times()
            spent += times.children_user + times.children_system
    return spent


def resident_mb(pid: int) -> float:
    """Resident memory of a process and all it started, MB (10^6 bytes): pages that they share are counted once."""
    process = psutil.Process(pid)
    own = 0.0
    files: dict[str, int] = {}
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            for part in one.memory_maps(grouped=False):
                if part.path.startswith("/") and not part.path.endswith("(deleted)"):
                    # Of a part of a file (a library) the most that one of them has in memory is what all of them have.
                    private = part.private_dirty
                    place = f"{part.path} {part.perms} {part.size}"
                    files[place] = max(files.get(place, 0), part.rss - private)
                    own += private
                else:
                    own += part.pss
    return (own + sum(files.values())) / 1e6


@asynccontextmanager
async def kafka() -> AsyncIterator[KafkaSettings]:
    """A broker of this benchmark's own, its data in a folder that is deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="seawall-bench-") as folder:
        broker = EmbeddedKafka(Path(folder), cache=seawall_home() / "cache")
        await asyncio.to_thread(broker.start)
        try:
            yield KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
        finally:
            await asyncio.to_thread(broker.stop)


async def create_topics(broker: KafkaBroker, specs: Sequence[TopicSpec]) -> None:
    """Create topics on a fresh broker."""
    admin = broker.admin()
    await admin.start()
    try:
        await admin.create(specs, 1)
    finally:
        await admin.stop()


@asynccontextmanager
async def child(
    arguments: Sequence[str], piped: bool = False, /, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python process of the project, its standard input and output ``piped`` or not; ended by its id when the context
    is left."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=asyncio.subprocess.PIPE if piped else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE if piped else None,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), timeout=15)
            except TimeoutError:
                process.kill()
                await process.wait()


async def until(condition: Callable[[], bool], *, timeout: float, what: str, every: float = 0.02) -> None:
    """Wait for a condition that only a look can tell."""
    async with asyncio.timeout(timeout):
        try:
            while not condition():  # noqa: ASYNC110  a look is all there is
                await asyncio.sleep(every)
        except asyncio.CancelledError:
            say(f"gave up waiting for {what}")
            raise
