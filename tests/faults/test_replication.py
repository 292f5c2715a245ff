"""Faults of a cluster of three brokers, where two copies must acknowledge."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from seawall.local.kafka import EmbeddedKafka
from tests.faults.sending import expected, ids, send
from tests.support.kafka import kafka_cluster
from tests.support.mesh import Lane, open_lane
from tests.support.otlp import Stoppable, exporting
from tests.support.stages import AGGREGATOR, PICTURES, SERVICE, WORDS

pytestmark = [pytest.mark.faults, pytest.mark.kafka, pytest.mark.long, pytest.mark.timeout(300)]

Brokers = list[EmbeddedKafka]


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    with kafka_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
async def lane(brokers: Brokers, tmp_path: Path) -> AsyncIterator[Lane]:
    """Three partitions: each broker leads one of each topic that is joined."""
    servers = ",".join(broker.bootstrap_servers for broker in brokers)
    async with open_lane(tmp_path, servers, partitions=3, copies=len(brokers)) as lane:
        yield lane


async def test_the_leader_changes_in_the_middle_of_a_batch(brokers: Brokers, lane: Lane) -> None:
    """F06: whoever leads is killed while batches are out, twice; retried, and no decision is another."""
    rooms = await lane.start_all()
    sent: list[str] = []
    for node in (2, 3):
        led = {partition for partition, leader in (await lane.leaders()).items() if leader == node}
        assert {partition.topic for partition in led} >= set(lane.names.co_partitioned)
        before = len(lane.ledger.signals)
        more = [*ids("plain", 20, first=len(sent)), *ids("slow", 100, first=len(sent)), *ids("block", 5, len(sent))]
        sent += more
        await send(lane, more, media=1)
        await lane.until(lambda: len(lane.ledger.signals) > before, "work is in hand")  # noqa: B023
        await asyncio.to_thread(brokers[node - 1].kill)
        await lane.settled()
        leaders = await lane.leaders()
        assert all(leaders[partition] not in (node, -1) for partition in led), "others lead"
        await asyncio.to_thread(brokers[node - 1].start)
        await lane.until_in_sync(len(brokers))
    for group in (WORDS, PICTURES, AGGREGATOR):
        await lane.until_committed(group)
    await lane.finish()
    assert lane.ledger.outcomes(sent) == expected(sent)
    assert lane.ledger.deadlines == []
    assert {one.attempt for one in lane.ledger.decisions} == {1}
    assert not any(room.deaths for room in rooms.values()), "nobody was restarted"


async def test_too_few_replicas_are_in_sync(brokers: Brokers, lane: Lane) -> None:
    """F08: with one broker of three nothing is acknowledged and nothing committed; it is told; it resumes unaided."""
    with Stoppable() as collector:
        settings = exporting(collector.endpoint)
        rooms = {name: lane.start(name, **settings) for name in (SERVICE, WORDS, PICTURES, AGGREGATOR)}
        await lane.ready(rooms.values())
        sent = [*ids("plain", 20), *ids("slow", 150), *ids("block", 5)]
        await send(lane, sent, media=1)
        await lane.until(lambda: lane.ledger.signals, "work is in hand")
        await asyncio.gather(*(asyncio.to_thread(broker.kill) for broker in brokers[1:]))
        for name in (WORDS, PICTURES):
            await rooms[name].unready()

        def refused() -> float:
            # Whoever has something to write: a stage may have written all of its signals before.
            return sum(
                collector.received.total(name, "moderation.stream.events", moderation__event="produce_failed")
                for name in (f"{WORDS}.relay", f"{PICTURES}.relay", AGGREGATOR)
            )

        await asyncio.to_thread(collector.received.until, refused, "a refused write")
        assert lane.ledger.unsettled(), "the fault came in the middle"
        await asyncio.gather(*(asyncio.to_thread(broker.start) for broker in brokers[1:]))
        await lane.ready(rooms.values())
        for group in (WORDS, PICTURES, AGGREGATOR):
            await lane.until_committed(group)
        await lane.finish()
    assert lane.ledger.outcomes(sent) == expected(sent)
    assert lane.ledger.deadlines == []
    assert not any(room.deaths for room in rooms.values()), "nobody was restarted"
