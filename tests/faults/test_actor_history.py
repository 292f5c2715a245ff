"""Faults of actor_history: the real process, a real broker, exact counts."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter

import pytest

from seawall.api.actor_standing.v1 import actor_standing_pb2 as pb
from seawall.api.dead_letter.v1 import dead_letter_pb2
from seawall.api.decision.v1 import decision_pb2
from seawall.core import identity
from seawall.runtime.broker import Output
from tests.support.kafka import PATIENCE_SECONDS
from tests.support.mesh import Lane

pytestmark = [pytest.mark.faults, pytest.mark.kafka, pytest.mark.timeout(300)]

ACTORS = 40


def near_miss(number: int) -> Output:
    """The REVIEW of generation ``number``, of one actor in turn."""
    decision = decision_pb2.Decision(
        decision_id=identity.decision_id(f"g-{number}", 1, "p"),
        kind=decision_pb2.DECISION_KIND_JOINT,
        generation_id=f"g-{number}",
        tenant_id="t",
        actor_id=f"actor-{number % ACTORS}",
        outcome=decision_pb2.OUTCOME_REVIEW,
        decided_unix_nano=1_700_000_000_000_000_000 + number,
    )
    return Output("", number % 2, decision.generation_id.encode(), decision.SerializeToString())


async def all_is_committed(lane: Lane) -> None:
    """Wait until nothing would be read again: what counts as a gap, or as read twice, would hold the offsets back."""
    topics = [lane.names.decisions, lane.names.actor_events]
    reader, admin = lane.broker.reader(topics), lane.broker.admin()
    await reader.start()
    await admin.start()
    try:
        ends = {at: end for at, end in (await reader.end_offsets(reader.assignment())).items() if end}

        async def done() -> bool:
            committed = await admin.committed(f"{lane.names.prefix}actor_history")
            return all(committed.get(at, 0) >= end for at, end in ends.items())

        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await done():  # noqa: ASYNC110  a look is all there is
                await asyncio.sleep(0.1)
    finally:
        await admin.stop()
        await reader.stop()


async def test_actor_history_is_killed(lane: Lane) -> None:
    """F31: nothing is lost and nothing counted twice; what cannot be read is set aside."""
    room = lane.run("actor_history")
    await room.ready()
    producer = lane.broker.producer()
    await producer.start()
    reader = lane.broker.reader([lane.names.actor_standing, lane.names.dead_letters])
    await reader.start()
    standings: dict[str, pb.ActorStanding] = {}
    letters: set[str] = set()

    async def read_until(total: int, set_aside: int = 0) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while sum(one.reasons[0].count for one in standings.values()) < total or len(letters) < set_aside:
                for partition, records in (await reader.poll(max_records=5_000, timeout=0.2)).items():
                    for record in records:
                        if partition[0] == lane.names.dead_letters:
                            letters.add(dead_letter_pb2.DeadLetter.FromString(record.value or b"").dead_letter_id)
                        else:
                            made = pb.ActorStanding.FromString(record.value or b"")
                            standings[made.actor_id] = made

    try:
        sent = 0
        for kills in range(2):
            batch = [near_miss(number)._replace(topic=lane.names.decisions) for number in range(sent, sent + 2_000)]
            # The aggregator's own replay: the last of them once more.
            await producer.send([*batch, *batch[-100:]])
            await producer.send([Output(lane.names.decisions, 0, b"raw", b"\xff\xff")])
            sent += len(batch)
            await read_until(sent - 1_500)
            os.kill(room.pid, signal.SIGKILL)
            await room.died(kills + 1)
        await read_until(sent)
        await room.ready()
        await producer.send([near_miss(sent)._replace(topic=lane.names.decisions)])
        await read_until(sent + 1, set_aside=2)
        await all_is_committed(lane)
    finally:
        await reader.stop()
        await producer.stop()
    expected = Counter(f"actor-{number % ACTORS}" for number in range(sent + 1))
    assert {actor: one.reasons[0].count for actor, one in standings.items()} == expected
    assert len(letters) == 2
