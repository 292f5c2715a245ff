"""A real broker for tests, and short ways to write and read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from seawall.local.kafka import EmbeddedKafka
from seawall.runtime.broker import Consumer, Record
from seawall.runtime.settings import KafkaSettings, seawall_home

#: An upper bound for anything that should happen at once; a test that reaches it has failed.
PATIENCE_SECONDS = 60.0


@contextmanager
def embedded_kafka(data_dir: Path, *, port: int = 0, launcher: Sequence[str] = ()) -> Iterator[EmbeddedKafka]:
    """A broker on ports of the system's choice, unless one is given; its jars come from the user's cache."""
    broker = EmbeddedKafka(data_dir, cache=seawall_home() / "cache", port=port, quick_compiler=True, launcher=launcher)
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()


@contextmanager
def kafka_cluster(folder: Path, brokers: int = 3) -> Iterator[list[EmbeddedKafka]]:
    """Brokers with as many copies of each record, the first of them the controller; two must acknowledge."""
    shared: dict[str, Any] = {"cache": seawall_home() / "cache", "copies": brokers, "heap_mb": 256}
    first = EmbeddedKafka(folder / "1", **shared)
    nodes = [first] + [
        EmbeddedKafka(folder / str(node), node=node, joins=first, **shared) for node in range(2, brokers + 1)
    ]
    try:
        first.start()
        with ThreadPoolExecutor(brokers) as pool:
            list(pool.map(EmbeddedKafka.start, nodes[1:]))
        yield nodes
    finally:
        # The controller last: the others ask it before they stop.
        with ThreadPoolExecutor(brokers) as pool:
            list(pool.map(EmbeddedKafka.stop, nodes[1:]))
        first.stop()


def client_settings(bootstrap_servers: str) -> KafkaSettings:
    """Deadlines short enough for a test that takes the broker away."""
    return KafkaSettings(
        bootstrap_servers=bootstrap_servers,
        request_timeout_ms=4_000,
        delivery_timeout_ms=6_000,
        linger_ms=0,
        fetch_max_wait_ms=100,
    )


def unique(name: str) -> str:
    """A topic or group that no other test has."""
    return f"{name}-{uuid4().hex[:12]}"


async def collect(consumer: Consumer, count: int) -> list[Record]:
    """Poll until ``count`` records came."""
    records: list[Record] = []
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(records) < count:
            for batch in (await consumer.poll(max_records=500, timeout=1.0)).values():
                records += batch
    return records
