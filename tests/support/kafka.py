"""A real broker for tests, and short ways to write and read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from seawall.local.kafka import EmbeddedKafka
from seawall.runtime.broker import Consumer, Record
from seawall.runtime.settings import KafkaSettings, seawall_home

#: An upper bound for anything that should happen at once; a test that reaches it has failed.
PATIENCE_SECONDS = 60.0


@contextmanager
def embedded_kafka(data_dir: Path) -> Iterator[EmbeddedKafka]:
    """A broker on ports of the system's choice; its jars come from the user's cache."""
    broker = EmbeddedKafka(data_dir, cache=seawall_home() / "cache", quick_compiler=True)
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()


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
