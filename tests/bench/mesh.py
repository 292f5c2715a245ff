"""The whole mesh: throughput against the same model work in one process, latency, kill -9, memory.

Every event is a 200-character prompt and a 512² JPEG of its own. The ceiling is one process that calls the three rooms'
own scorers in a loop: no Kafka, no gRPC, no join. The mesh is every room as `seawall up` starts it.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from seawall.api.classification.v1 import classification_pb2
from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.perceptual_hashing.v1 import perceptual_hashing_pb2
from seawall.api.prompt_scoring.v1 import prompt_scoring_pb2
from seawall.core.errors import Retryable
from seawall.local import demo_bank, photographs
from seawall.local.mesh import KAFKA, Mesh
from seawall.runtime.broker import Output
from seawall.runtime.content import ContentStore
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.sealing import Sealer
from seawall.runtime.settings import ContentSettings, SealingSettings, seawall_home
from tests.bench.harness import ROOT, Report, cpu_seconds, resident_mb, say

PICTURES = 600
DRAIN_EVENTS = 3_000
WARM_EVENTS = 200
LOOP_EVENTS = 1_000
LATENCY_SECONDS = 30.0
KILL_SECONDS = 12.0
GENERATIONS, DECISIONS = "generations.v1", "decisions.v1"

_WORDS = (
    "a quiet harbour at dawn",
    "wooden boats",
    "soft light on the water",
    "gulls above the pier",
    "distant hills in mist",
    "oil painting",
    "muted colours",
    "a market street after rain",
    "lanterns",
    "cobblestones",
    "a red bicycle against a wall",
    "autumn leaves",
    "pine forest",
    "a bowl of fruit",
    "city skyline at night",
    "a steam train crossing a stone bridge",
)


async def run(report: Report) -> None:
    """Measure, in one run, the loop and the mesh."""
    with tempfile.TemporaryDirectory(prefix="seawall-bench-") as folder:
        home = Path(folder)
        for name in ("cache", "models"):
            # The caches of the real home: jars and models are not what is measured.
            (home / name).symlink_to(seawall_home() / name)
        os.environ["SEAWALL_HOME"] = str(home)
        # The pictures come round again, and each event is to cost what a new one does.
        os.environ["SEAWALL_CACHED_RESULTS"] = "0"
        demo_bank.ensure(home / "banks")
        say("making pictures")
        source = _Source(home)
        before = await _loop(home, source)
        async with Mesh.open(home, cache=home / "cache") as mesh, _Traffic(mesh, source).started() as traffic:
            rate = await _drain(report, traffic, before)
            await _latency(report, traffic, rate / 2)
            for room, pid in sorted(mesh.pids().items()):
                if room != KAFKA:
                    report.add(f"resident {room}", resident_mb(pid), 400, "<=", "MB")
            await _kills(report, traffic, rate / 2)


# ---- events ----------------------------------------------------------------------------------------------------------


class _Source:
    """Makes generations: a prompt of 200 characters and a 512² JPEG, crops of ordinary photographs, all different."""

    def __init__(self, home: Path) -> None:
        self._random = random.Random(1)
        self._sealer = Sealer.from_settings(SealingSettings(keyset=home / "keys" / "sealing.json"))
        self._numbers = itertools.count()
        store = ContentStore(ContentSettings(allowed_prefixes=[(home / "content").as_uri() + "/"]))
        pictures = [photographs.picture(name) for name in ("astronaut", "coffee", "chelsea")]
        self._contents = []
        sizes = []
        for number in range(PICTURES):
            picture = pictures[number % len(pictures)]
            side = self._random.randint(min(picture.size) // 2, min(picture.size))
            left, top = (self._random.randint(0, edge - side) for edge in picture.size)
            body = io.BytesIO()
            crop = picture.crop((left, top, left + side, top + side)).resize((512, 512))
            crop.save(body, "JPEG", quality=self._random.randint(90, 97))
            sizes.append(len(body.getvalue()))
            self._contents.append(store.put(body.getvalue(), "image/jpeg"))
        say(f"{PICTURES} pictures of {sum(sizes) / len(sizes) / 1000:.0f} KB on average")

    def generations(self, count: int) -> list[generation_pb2.Generation]:
        return [self._generation(number) for number in itertools.islice(self._numbers, count)]

    def _generation(self, number: int) -> generation_pb2.Generation:
        generation_id = f"bench-{number:08d}"
        generation = generation_pb2.Generation(
            generation_id=generation_id,
            attempt=1,
            tenant_id="bench",
            actor_id=f"actor-{number % 100}",
            modality=generation_pb2.MODALITY_IMAGE,
        )
        prompt = f"{number}, " + ", ".join(self._random.sample(_WORDS, len(_WORDS)))
        generation.prompt.CopyFrom(self._sealer.seal(prompt[:200], generation_id, "prompt"))
        content = self._contents[number % PICTURES]
        generation.media.add(item_id="output/0", nexus=generation_pb2.NEXUS_MODEL_OUTPUT, content=content)
        return generation


# ---- the ceiling -----------------------------------------------------------------------------------------------------


async def _loop(home: Path, source: _Source) -> float:
    """Events per CPU second of one process that only does the models' work."""
    path = home / "loop.events"
    bodies = [generation.SerializeToString() for generation in source.generations(LOOP_EVENTS + WARM_EVENTS)]
    path.write_bytes(b"".join(len(body).to_bytes(4, "big") + body for body in bodies))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.mesh", str(path), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"the in-process loop ended with {process.returncode}")
    rate = float(json.loads(out)["rate"])
    say(f"in-process loop: {rate:.1f} events per core-second")
    return rate


def _score_in_process(path: str) -> float:
    from seawall.classification import scorer as classification
    from seawall.classification.settings import ClassificationSettings
    from seawall.perceptual_hashing import scorer as hashing
    from seawall.perceptual_hashing.settings import PerceptualHashingSettings
    from seawall.prompt_scoring import scorer as prompts
    from seawall.prompt_scoring.settings import PromptScoringSettings

    # In process is in process: decoding workers would spend CPU that is not counted here.
    os.environ["SEAWALL_DECODING__ISOLATED"] = "false"
    text = prompts.load(PromptScoringSettings())
    hashes = hashing.load(PerceptualHashingSettings())
    classes = classification.load(ClassificationSettings())
    body = Path(path).read_bytes()
    generations = []
    while body:
        size = int.from_bytes(body[:4], "big")
        generations.append(generation_pb2.Generation.FromString(body[4 : 4 + size]))
        body = body[4 + size :]
    began = 0.0
    for number, generation in enumerate(generations):
        if number == WARM_EVENTS:
            began = time.process_time()
        text.score(prompt_scoring_pb2.PromptItem(generation_id=generation.generation_id, prompt=generation.prompt))
        content = generation.media[0].content
        hashes.score(perceptual_hashing_pb2.HashItem(content=content))
        classes.score(classification_pb2.ClassifyItem(content=content))
    return (len(generations) - WARM_EVENTS) / (time.process_time() - began)


# ---- the mesh --------------------------------------------------------------------------------------------------------


class Generations(Protocol):
    """What `_Traffic` sends."""

    def generations(self, count: int) -> list[generation_pb2.Generation]: ...


class _Traffic:
    """Sends generations and notes when their decisions were written."""

    def __init__(self, mesh: Mesh, source: Generations) -> None:
        self.mesh = mesh
        self._source = source
        self._producer = mesh.broker().producer()
        # Few large fetches: when a decision was written is in its record, so nothing is gained by reading it at once.
        patient = mesh.kafka_settings.model_copy(update={"fetch_min_bytes": 1 << 20, "fetch_max_wait_ms": 500})
        self._reader = KafkaBroker(patient).reader([DECISIONS], from_end=True)
        #: Unix seconds by generation id: when sent, and when the broker wrote the first decision that is not HOLD.
        self.sent: dict[str, float] = {}
        self.decided: dict[str, float] = {}

    @asynccontextmanager
    async def started(self) -> AsyncIterator[_Traffic]:
        await self._producer.start()
        await self._reader.start()
        self._partitions = len(self._reader.assignment())
        reading = asyncio.create_task(self._read())
        try:
            yield self
        finally:
            reading.cancel()
            await asyncio.wait([reading])
            await self._reader.stop()
            await self._producer.stop()

    async def _read(self) -> None:
        while True:
            try:
                polled = await self._reader.poll(max_records=5_000, timeout=0.5)
            except Retryable:
                await asyncio.sleep(0.1)
                continue
            for records in polled.values():
                for record in records:
                    decision = decision_pb2.Decision.FromString(record.value or b"")
                    if decision.outcome != decision_pb2.OUTCOME_HOLD:
                        self.decided.setdefault(decision.generation_id, record.timestamp / 1000)

    async def send(self, count: int) -> None:
        """Send ``count`` fresh generations; return when they are acknowledged."""
        outputs = []
        for generation in self._source.generations(count):
            key = generation.generation_id
            partition = int(key[-8:]) % self._partitions
            outputs.append(Output(GENERATIONS, partition, key.encode(), generation.SerializeToString()))
            self.sent[key] = time.time()
        while True:
            try:
                await self._producer.send(outputs)
                return
            except Retryable:
                await asyncio.sleep(0.1)

    async def stream(self, rate: float, seconds: float) -> list[str]:
        """Open loop: send at ``rate`` per second whatever comes back. Returns the ids sent."""
        already = len(self.sent)
        sends: set[asyncio.Task[None]] = set()
        began = time.monotonic()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            task = asyncio.create_task(self.send(1))
            sends.add(task)
            task.add_done_callback(sends.discard)
        if sends:
            await asyncio.wait(sends)
        return list(self.sent)[already:]

    async def answered(self, timeout: float) -> None:
        """Wait until everything that was sent has been decided."""
        async with asyncio.timeout(timeout):
            while len(self.decided) < len(self.sent):  # noqa: ASYNC110  counts of a running reader
                await asyncio.sleep(0.02)

    def cpu(self) -> dict[str, float]:
        return {room: cpu_seconds(pid) for room, pid in self.mesh.pids().items()}


async def _drain(report: Report, traffic: _Traffic, ceiling: float) -> float:
    """Events per CPU second of all Python rooms over a backlog. Returns events per second of wall clock."""
    await traffic.send(WARM_EVENTS)
    await traffic.answered(120)
    say(f"draining {DRAIN_EVENTS:,} events")
    before, began = traffic.cpu(), time.time()
    await traffic.send(DRAIN_EVENTS)
    await traffic.answered(300)
    took = max(traffic.decided.values()) - began
    after = traffic.cpu()
    spent = {room: after[room] - before[room] for room in after}
    python = sum(seconds for room, seconds in spent.items() if room != KAFKA)
    _by_room(report, "", spent, DRAIN_EVENTS)
    report.add("CPU all Python rooms", python / DRAIN_EVENTS * 1000, unit="ms/event")
    report.add("CPU in-process loop", 1000 / ceiling, unit="ms/event")
    report.add("drain rate", DRAIN_EVENTS / took, unit="events/s")
    report.add("mesh / in-process loop", DRAIN_EVENTS / python / ceiling, 0.90)
    return DRAIN_EVENTS / took


async def _latency(report: Report, traffic: _Traffic, rate: float) -> None:
    say(f"open loop at {rate:.0f} events/s for {LATENCY_SECONDS:.0f} s")
    before = traffic.cpu()
    ids = await traffic.stream(rate, LATENCY_SECONDS)
    await traffic.answered(60)
    spent = {room: seconds - before[room] for room, seconds in traffic.cpu().items()}
    python = sum(seconds for room, seconds in spent.items() if room != KAFKA)
    _by_room(report, " at half rate", spent, len(ids))
    report.add("CPU all Python rooms at half rate", python / len(ids) * 1000, unit="ms/event")
    # From before the send to the broker's log time of the decision.
    waits = sorted((traffic.decided[i] - traffic.sent[i]) * 1000 for i in ids[len(ids) // 10 :])
    report.add("p50 produce → decision", waits[len(waits) // 2], 40, "<=", "ms")
    report.add("p95 produce → decision", waits[int(len(waits) * 0.95)], unit="ms")
    report.add("p99 produce → decision", waits[int(len(waits) * 0.99)], 120, "<=", "ms")


def _by_room(report: Report, when: str, spent: dict[str, float], events: int) -> None:
    for room, seconds in sorted(spent.items()):
        report.add(f"CPU {room}{when}", seconds / events * 1000, unit="ms/event")


async def _kills(report: Report, traffic: _Traffic, rate: float) -> None:
    """kill -9 each process in turn under load: the longest time without a decision, and what was lost."""
    for room in sorted(traffic.mesh.pids()):
        streaming = asyncio.create_task(traffic.stream(rate, KILL_SECONDS))
        await asyncio.sleep(KILL_SECONDS / 4)
        say(f"kill -9 {room}")
        killed = time.time()
        os.kill(traffic.mesh.pids()[room], signal.SIGKILL)
        ids = await streaming
        try:
            await traffic.answered(90)
        except TimeoutError:
            say(f"{len(traffic.sent) - len(traffic.decided)} generations undecided after kill -9 of {room}")
        times = sorted(traffic.decided[i] for i in ids if i in traffic.decided)
        times = [t for t in times if t >= killed - 0.5]
        stall = max((later - earlier for earlier, later in itertools.pairwise(times)), default=float("inf"))
        report.add(f"kill -9 {room}: stall", stall, 5, "<=", "s")
    lost = len(traffic.sent) - len(traffic.decided)
    report.add("lost after kills", lost, 0, "<=")


if __name__ == "__main__":
    print(json.dumps({"rate": _score_in_process(sys.argv[1])}))
