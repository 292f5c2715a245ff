"""Faults of the broker and of its topics."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from seawall.core.errors import Retryable
from seawall.local.kafka import EmbeddedKafka
from tests.faults.sending import expected, ids, send
from tests.support.kafka import PATIENCE_SECONDS, embedded_kafka
from tests.support.mesh import Lane, environment_of, open_lane
from tests.support.otlp import Stoppable, exporting
from tests.support.small_disk import SAYS, small_disk
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


@pytest.mark.long
async def test_memory_while_the_broker_is_gone(tmp_path: Path) -> None:
    """F07: memory stays flat through as many attempts as a minute has room for, and all goes on unaided."""
    broker: EmbeddedKafka
    with embedded_kafka(tmp_path / "kafka") as broker:
        async with open_lane(tmp_path / "lane", broker.bootstrap_servers) as lane:
            rooms = await lane.start_all()
            sent = [*ids("plain", 20), *ids("slow", 200)]
            await send(lane, sent, media=1)
            await lane.until(lambda: lane.ledger.signals, "work is in hand")
            await asyncio.to_thread(broker.kill)
            memory: dict[str, list[int]] = {name: [] for name in STREAM_ROOMS}
            # A relay tries twice in five seconds: it has offsets to commit, and waits for the answer.
            tries = ("poll_failed", "produce_failed", "commit_refused")
            for count in (6, 30):
                for name in STREAM_ROOMS:
                    await rooms[name].until_told(count, *tries, patience=2 * PATIENCE_SECONDS)
                    memory[name].append(rooms[name].memory)
            for name, (early, late) in memory.items():
                assert late - early < 4 << 20, f"{name} grew from {early} to {late} bytes"
            await asyncio.to_thread(broker.start)
            await lane.ready(rooms.values())
            await lane.finish()
            assert lane.ledger.outcomes(sent) == expected(sent)
            assert not any(room.deaths for room in rooms.values())


@pytest.mark.long
async def test_the_brokers_disk_is_full(tmp_path: Path) -> None:
    """F08: what was acknowledged is decided once there is room again, and nothing else was committed."""
    with (
        small_disk(tmp_path / "kafka", 16 << 20) as disk,
        embedded_kafka(disk.folder, launcher=disk.launcher) as kafka,
    ):
        async with open_lane(tmp_path / "lane", kafka.bootstrap_servers) as lane:
            rooms = await lane.start_all()
            sent = ids("slow", 40)
            await send(lane, sent, media=1)
            with pytest.raises(Retryable, match="BROKER_UNAVAILABLE"):
                for number in range(100):
                    one = lane.generation(f"plain:{number}", media=1)
                    one.prompt.ciphertext = os.urandom(500_000)
                    await lane.send(one)
            assert SAYS[disk.means] in kafka.log_path.read_text("utf-8")
            for name in STREAM_ROOMS:
                await rooms[name].unready()
            kafka.stop()
            disk.grow()
            with embedded_kafka(disk.folder, port=int(kafka.bootstrap_servers.rpartition(":")[2])):
                await lane.ready(rooms.values())
                await lane.finish()
            acknowledged = list(lane.ledger.acknowledged)
            assert len(acknowledged) > len(sent)
            assert lane.ledger.outcomes(acknowledged) == expected(acknowledged)
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


async def test_the_collector_is_gone(lane: Lane) -> None:
    """F28: every decision is the same, and when it is back it learns how many spans were lost."""
    with Stoppable() as gone:
        queue = {"TELEMETRY__SPAN_QUEUE_SIZE": "64", **exporting(gone.endpoint)}
    aggregator = lane.start(AGGREGATOR, **queue)
    await lane.ready([aggregator, *(lane.start(name, **queue) for name in (SERVICE, WORDS, PICTURES))])
    sent = [*ids("plain", 100), *ids("block", 10)]
    await send(lane, sent, media=1)
    await lane.settled()
    # The others may still hold theirs, and lose none.
    await aggregator.until_told(1, "spans cannot be exported")
    with Stoppable(gone.port) as back:
        lost = partial(back.received.total, AGGREGATOR, "moderation.telemetry.spans.dropped")
        await asyncio.to_thread(back.received.until, lost, "how many spans were lost")
        await lane.finish()
    assert lane.ledger.outcomes(sent) == expected(sent)
    assert {one.attempt for one in lane.ledger.decisions} == {1}
    assert lane.ledger.deadlines == []
