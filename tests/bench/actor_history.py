"""actor_history: decisions per core-second of the real process on a real broker, and its recovery from a kill -9.

One decision in ten is noteworthy (a near miss); the others are allowed, with three signals each, and add nothing. The
second figure is of noteworthy decisions alone: each passes both agents, the table and its changelog.
"""

from __future__ import annotations

import asyncio
import tempfile
import time

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from seawall.api.decision.v1 import decision_pb2
from seawall.core import identity
from seawall.runtime import topics
from seawall.runtime.broker import Output
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.settings import KafkaSettings
from tests.bench.harness import Report, child, cpu_seconds, kafka, say

DECISIONS = 40_000
PARTITIONS = 4
ACTORS = 5_000
ROOM = "actor_history"


async def run(report: Report) -> None:
    """A backlog of each kind, drained; then a kill -9 in a third."""
    for name, every, target in (("mixed, 1 in 10 noteworthy", 10, 4_000.0), ("noteworthy alone", 1, None)):
        async with kafka() as settings:
            broker = KafkaBroker(settings)
            await topics.apply(broker, settings, topics.TopicSettings(partitions=PARTITIONS))
            await _fill(broker, DECISIONS, every)
            rate, stall = await _drain(settings, DECISIONS, kill=every == 1)
        report.add(name, rate, target, unit="decisions/core-s")
        if stall is not None:
            report.add("caught up after kill -9", stall, 20, "<=", unit="s")


def decision(number: int, every: int) -> decision_pb2.Decision:
    """A decision of the size that the default policy makes."""
    noteworthy = number % every == 0
    made = decision_pb2.Decision(
        decision_id=identity.decision_id(f"g-{number}", 1, "p"),
        kind=decision_pb2.DECISION_KIND_JOINT,
        generation_id=f"g-{number}",
        tenant_id="tenant",
        actor_id=f"actor-{number % ACTORS}",
        conversation_id=f"c-{number % 20_000}",
        outcome=decision_pb2.OUTCOME_REVIEW if noteworthy else decision_pb2.OUTCOME_ALLOW,
        decided_unix_nano=1_700_000_000_000_000_000 + number * 1_000_000,
    )
    for stage in ("prompt_scoring", "perceptual_hashing", "classification"):
        signal = made.signals.add().signal
        signal.stage = stage
        item = signal.items.add(item_id="prompt")
        for label in ("minor_sexual", "minor_sexual_semantic", "benign_context"):
            item.labels.add(label=label, score=0.6 if noteworthy else 0.05)
    return made


async def _fill(broker: KafkaBroker, count: int, every: int) -> None:
    say(f"writing {count:,} decisions, 1 in {every} noteworthy")
    producer = broker.producer()
    await producer.start()
    for start in range(0, count, 5_000):
        made = (decision(number, every) for number in range(start, min(start + 5_000, count)))
        await producer.send(
            [
                Output("decisions.v1", number % PARTITIONS, one.generation_id.encode(), one.SerializeToString())
                for number, one in enumerate(made, start)
            ]
        )
    await producer.stop()


async def _done(admin: AIOKafkaAdminClient, topic: str) -> int:
    try:
        offsets = await admin.list_consumer_group_offsets(ROOM)
    except KafkaError:
        return 0  # the group's coordinator is not there yet
    return sum(max(entry.offset, 0) for partition, entry in offsets.items() if partition.topic == topic)


async def _drain(settings: KafkaSettings, count: int, *, kill: bool) -> tuple[float, float | None]:
    """Decisions per CPU second, the first tenth left out; with ``kill``, seconds from a kill -9 at half to the end."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
    await admin.start()
    topic = "actor_events.v1" if kill else "decisions.v1"
    arguments = ["-m", "seawall.cli", "run", ROOM]
    with tempfile.TemporaryDirectory(prefix="seawall-bench-") as home:
        environment = {"SEAWALL_HOME": home, "SEAWALL_KAFKA__BOOTSTRAP_SERVERS": settings.bootstrap_servers}
        marks: list[tuple[int, float]] = []
        killed_at = 0.0
        try:
            async with child(arguments, **environment) as process, asyncio.timeout(120):
                while not marks or marks[-1][0] < (count // 2 if kill else count):
                    await asyncio.sleep(0.2)
                    if process.returncode is not None:
                        raise RuntimeError(f"{ROOM} ended with {process.returncode}")
                    if (done := await _done(admin, topic)) >= count * 0.1:
                        marks.append((done, cpu_seconds(process.pid)))
                if kill:
                    process.kill()
                    killed_at = time.monotonic()
            rate = (marks[-1][0] - marks[0][0]) / max(marks[-1][1] - marks[0][1], 1e-9)
            if not kill:
                return rate, None
            async with child(arguments, **environment), asyncio.timeout(120):
                while await _done(admin, topic) < count:  # noqa: ASYNC110  a look is all there is
                    await asyncio.sleep(0.2)
                return rate, time.monotonic() - killed_at
        finally:
            await admin.close()
