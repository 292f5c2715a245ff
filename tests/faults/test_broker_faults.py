"""Faults of the broker and of its topics."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from seawall.local.kafka import EmbeddedKafka
from tests.faults.sending import expected, ids, send
from tests.support.kafka import embedded_kafka
from tests.support.mesh import Lane, environment_of, open_lane
from tests.support.stages import AGGREGATOR, PICTURES, SERVICE, WORDS

pytestmark = [pytest.mark.faults, pytest.mark.kafka, pytest.mark.timeout(300)]

STREAM_ROOMS = (WORDS, PICTURES, AGGREGATOR)


async def test_the_broker_is_gone(tmp_path: Path) -> None:
    """F07: rooms are not ready, but live, and go on unaided when it is back."""
    broker: EmbeddedKafka
    with embedded_kafka(tmp_path / "kafka") as broker:
        async with open_lane(tmp_path / "lane", broker.bootstrap_servers) as lane:
            rooms = await lane.start_all()
            sent = [*ids("plain", 20), *ids("slow", 60)]
            await send(lane, sent, media=1)
            await lane.until(lambda: lane.ledger.signals, "work is in hand")
            await asyncio.to_thread(broker.kill)
            for name in STREAM_ROOMS:
                await rooms[name].unready()
            await asyncio.to_thread(broker.start)
            await lane.ready(rooms.values())
            more = ids("plain", 20, first=100)
            await send(lane, more, media=1)
            await lane.finish()
            assert lane.ledger.outcomes([*sent, *more]) == expected([*sent, *more])
            assert not any(room.deaths for room in rooms.values())


@pytest.mark.parametrize("room", ["prompt_scoring.relay", "aggregator"])
async def test_partition_counts_differ(lane: Lane, room: str) -> None:
    """F13: the room refuses to start, and says what mends it."""
    await lane.add_partitions(lane.names.signals, 3)
    refused = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "seawall.cli", "run", room],
        env={**environment_of(lane), "SEAWALL_READY_FILE": str(lane.home / "ready")},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert refused.returncode == 1
    assert not (lane.home / "ready").exists()
    said = " ".join((refused.stderr + refused.stdout).split())
    assert "PARTITIONS_DIFFER" in said
    assert f"{lane.names.generations} 2, {lane.names.signals} 3" in said
    assert "create them with 3 partitions (`seawall topics apply`)" in said
    assert "Traceback" not in said


async def test_partition_counts_change(lane: Lane) -> None:
    """F13: a partition that is added to one topic is refused, not half joined; what was sent before is decided."""
    soon = {"KAFKA__METADATA_MAX_AGE_MS": "500"}
    rooms = {name: lane.start(name, **soon) for name in (SERVICE, WORDS, AGGREGATOR)}
    await lane.ready(rooms.values())
    sent = ids("plain", 20)
    await send(lane, sent)
    await lane.settled()
    await lane.add_partitions(lane.names.generations, lane.partitions + 1)
    await rooms[AGGREGATOR].until(lambda: bool(rooms[AGGREGATOR].deaths))
    last = rooms[AGGREGATOR].log.read_text("utf-8")
    assert "NOT_CO_PARTITIONED" in last or "PARTITIONS_DIFFER" in last
    assert "topics" in last
    await lane.read_all()
    lane.ledger.check()
    assert lane.ledger.outcomes(sent) == expected(sent)


async def test_the_collector_hangs(lane: Lane) -> None:
    """F28: it takes connections and answers nothing; every decision is the same."""
    with socket.socket() as collector:
        collector.bind(("127.0.0.1", 0))
        collector.listen()
        endpoint = f"http://127.0.0.1:{collector.getsockname()[1]}"
        hung = {"TELEMETRY__OTLP_ENDPOINT": endpoint, "TELEMETRY__SPAN_QUEUE_SIZE": "64"}
        await lane.ready(lane.start(name, **hung) for name in (SERVICE, *STREAM_ROOMS))
        sent = [*ids("plain", 300), *ids("block", 20)]
        await send(lane, sent, media=1)
        await lane.finish()
    assert lane.ledger.outcomes(sent) == expected(sent)
    assert {one.attempt for one in lane.ledger.decisions} == {1}
    assert lane.ledger.deadlines == []
