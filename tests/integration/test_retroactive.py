"""Retroactive matching on the real broker, with the real aggregator and room: found, escalated, once, whatever dies."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from seawall.aggregator.settings import AggregatorSettings
from seawall.api.bank.v1 import bank_pb2
from seawall.api.control.v1 import control_pb2
from seawall.api.decision.v1 import decision_pb2
from seawall.local.kafka import EmbeddedKafka
from seawall.perceptual_hashing import bank_changes
from seawall.perceptual_hashing.retroactive.late import ROOM
from seawall.runtime.broker import Output
from tests.support.mesh import Lane, Room, open_lane
from tests.support.records import CLASSIFICATION, HASHING, PROMPT
from tests.support.records import signal as measured
from tests.support.stages import AGGREGATOR

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

ALLOW, REPORT = decision_pb2.OUTCOME_ALLOW, decision_pb2.OUTCOME_BLOCK_AND_REPORT
POLICY = str(AggregatorSettings().policy)


@pytest.fixture
async def lane(kafka: EmbeddedKafka, tmp_path: Path) -> AsyncIterator[Lane]:
    """Topics, rooms and a ledger of the test's own."""
    async with open_lane(tmp_path, kafka.bootstrap_servers) as lane:
        yield lane


def start_room(lane: Lane) -> Room:
    """The room as `seawall run` starts it, restarted by the supervisor when it dies."""
    environment = {**lane.environment, "SEAWALL_INSTANCE": ROOM, "SEAWALL_KAFKA__INSTANCE": ROOM}
    room = Room(lane, ROOM, [sys.executable, "-m", "seawall.cli", "run", ROOM], environment)
    lane.rooms.append(room)
    return room


def pdq(group: int, bits: int = 0) -> bytes:
    """Hashes of a group are near each other, of two groups far apart."""
    base = int.from_bytes(bytes([group * 37 % 256]) * 32)
    return (base ^ ((1 << bits) - 1)).to_bytes(32)


async def measure(lane: Lane, count: int, groups: int) -> list[str]:
    """Generations of one picture each, measured by three stages that found nothing, in both partitions."""
    names = [f"picture-{number}" for number in range(count)]
    for number, name in enumerate(names):
        partition, offset = number % lane.partitions, number // lane.partitions
        generation = lane.generation(name, media=1)
        await lane.send(generation, partition=partition)
        outputs = []
        for stage in (PROMPT, HASHING, CLASSIFICATION):
            said = measured(generation, stage, offset=offset, partition=partition)
            said.generation_record.topic = lane.names.generations
            if stage == HASHING:
                said.items[0].hashes.add(hash_type="pdq", value=pdq(number % groups, number % 20), quality=100)
            value = control_pb2.JoinRecord(signal=said).SerializeToString()
            outputs.append(Output(lane.names.signals, partition, name.encode(), value))
        await lane._producer.send(outputs)
    return names


async def change(lane: Lane, *changes: bank_pb2.BankChange) -> None:
    await lane._producer.send(
        [Output(lane.names.bank_entries, None, bank_changes.key(one), one.SerializeToString()) for one in changes]
    )


def card() -> bank_pb2.BankChange:
    bank = bank_pb2.Bank(
        name="known",
        state=bank_pb2.BANK_STATE_ACTIVE,
        kind=bank_pb2.BANK_KIND_POSITIVE,
        category="stand-in",
        pipeline="full",
        radius=31,
    )
    return bank_pb2.BankChange(bank=bank)


def entry(group: int) -> bank_pb2.BankChange:
    return bank_changes.listed("known", f"entry-{group}", {"pdq": pdq(group)}, origin="test")


def amended(lane: Lane) -> dict[str, int]:
    """How many distinct amendments each generation has."""
    counts: dict[str, int] = {}
    for copies in lane.ledger.amendments.values():
        amendment = decision_pb2.Decision.FromString(next(iter(copies)))
        assert amendment.outcome == REPORT
        counts[amendment.generation_id] = counts.get(amendment.generation_id, 0) + 1
    return counts


async def test_decided_then_listed_then_amended_once_although_the_room_is_killed(lane: Lane) -> None:
    aggregator = lane.start(AGGREGATOR, SEAWALL_POLICY=POLICY)
    room = start_room(lane)
    await lane.ready([aggregator, room])
    names = await measure(lane, 60, groups=6)
    await lane.until(lambda: len(lane.ledger.joint) == 60, "every picture decided")
    assert {one.outcome for one in lane.ledger.decisions} == {ALLOW}

    await change(lane, card(), entry(0))
    first = {name for number, name in enumerate(names) if number % 6 == 0}
    await lane.until(lambda: set(amended(lane)) == first, "what is listed now was found, and its decision amended")

    await change(lane, *(entry(group) for group in (1, 2, 3)))
    await lane.until(lambda: len(amended(lane)) > len(first), "some of the next are found")
    os.kill(room.pid, signal.SIGKILL)
    await room.died()
    # The same again, while it is away and once it is back: nothing that was said is said again.
    await change(lane, card(), *(entry(group) for group in (0, 1, 2, 3)))
    expected = {name for number, name in enumerate(names) if number % 6 < 4}
    await lane.until(lambda: set(amended(lane)) == expected, "all of them are found")
    await room.ready()
    await change(lane, *(entry(group) for group in (0, 4)))
    expected |= {name for number, name in enumerate(names) if number % 6 == 4}
    await lane.until(lambda: set(amended(lane)) == expected, "and what is listed then")

    await lane.stop()
    await lane.read_all()
    lane.ledger.check()
    assert set(amended(lane).values()) == {1}
    late = [one for one in lane.ledger.signals if one.stage == ROOM]
    assert len({one.signal_id for one in late}) == len(late) == len(expected) == 50
    assert not {name for number, name in enumerate(names) if number % 6 == 5} & set(amended(lane))
