"""Faults of a relay: it is killed, stopped, started twice, and given records that nothing can be done with."""

from __future__ import annotations

import asyncio
import os
import signal as signals
from collections.abc import Sequence
from pathlib import Path

import pytest

from seawall.api.dead_letter.v1 import dead_letter_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.local.kafka import EmbeddedKafka
from seawall.runtime import topics
from seawall.runtime.topics import TopicSettings
from tests.faults.sending import ERROR, expected, ids, measured_right, send, statuses
from tests.support.mesh import Lane, open_lane
from tests.support.stages import AGGREGATOR, PICTURES, SERVICE, WORDS

pytestmark = [pytest.mark.faults, pytest.mark.kafka, pytest.mark.timeout(300)]


@pytest.mark.parametrize("point", ["relay.scored", "relay.produced", "relay.acknowledged", "relay.committed"])
async def test_a_relay_is_killed(lane: Lane, point: str) -> None:
    """F01: after the RPC, before the produce. F02: produced, and not told so; told so, not committed; committed."""
    rooms = await lane.start_all(words=point)
    sent = [*ids("plain", 40), *ids("block", 5)]
    await send(lane, sent, media=1)
    await rooms[WORDS].died()
    # Its successor reads again what was not committed.
    await lane.until_committed(WORDS)
    await lane.finish()
    assert lane.ledger.outcomes(sent) == expected(sent)
    assert all(measured_right(lane.ledger, one, WORDS) for one in ids("plain", 40))
    if point in ("relay.produced", "relay.acknowledged"):
        # Only signals that were acknowledged and not committed come twice.
        assert any(len(lane.ledger.signals_of(one, WORDS)) > 1 for one in sent)


async def test_a_relay_is_stopped_past_its_session_and_goes_on(lane: Lane) -> None:
    """F03: another member takes over; the old one's commit is refused, and it takes part again."""
    await lane.ready([lane.start(SERVICE), lane.start(AGGREGATOR)])
    # Small steps, so that it is stopped with work in hand.
    small = {"ENGINE__BATCH_SIZE": "4", "ENGINE__MAX_IN_FLIGHT": "8"}
    first, second = lane.start(WORDS, **small), lane.start(WORDS, name="words-b", **small)
    await lane.ready([first, second])
    sent = ids("slow", 120)
    await send(lane, sent)
    await lane.until(lambda: any(one.relay_instance == WORDS for one in lane.ledger.signals), "the first relay works")
    stopped = first.pid
    os.kill(stopped, signals.SIGSTOP)
    try:
        await lane.settled()
    finally:
        os.kill(stopped, signals.SIGCONT)
    for number in range(1_000):
        more = ids("plain", 20, first=1_000 * (1 + number))
        await send(lane, more)
        await lane.settled()
        sent += more
        if any(signal.relay_instance == WORDS for one in more for signal in lane.ledger.signals_of(one, WORDS)):
            break
    assert first.pid == stopped
    refused = len(first.events("commit_refused"))
    more = ids("plain", 40, first=500)
    await send(lane, more)
    await lane.settled()
    await lane.until_committed(WORDS)
    await lane.finish()
    assert lane.ledger.outcomes([*sent, *more]) == expected([*sent, *more])
    assert len(first.events("commit_refused")) == refused, "no loop: none is refused once it takes part again"


async def test_relays_come_and_go_under_load(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    """F04: from one to four and back, then a restart: 0 lost, and no more done twice than was in flight."""
    window = 16
    small = {"ENGINE__BATCH_SIZE": "4", "ENGINE__MAX_IN_FLIGHT": str(window)}
    async with open_lane(tmp_path, kafka.bootstrap_servers, partitions=4) as lane:
        sent: list[str] = []

        async def load() -> None:
            more = ids("slow", 100, first=len(sent))
            sent.extend(more)
            await send(lane, more)

        first = lane.start(WORDS, **small)
        await lane.ready([lane.start(SERVICE), lane.start(AGGREGATOR), first])
        await load()
        others = [lane.start(WORDS, name=f"words-{number}", **small) for number in range(3)]
        await lane.ready(others)
        await load()
        await asyncio.gather(*(room.stop() for room in others))
        await load()
        await first.stop()
        await load()
        await lane.ready([lane.start(WORDS, **small)])
        await lane.finish()
        assert lane.ledger.outcomes(sent) == expected(sent)
        again = sum(len(lane.ledger.signals_of(one, WORDS)) - 1 for one in sent)
        # Four members at most give up what they have, at each of the rebalances: three came, three went, one restarted.
        assert again <= window * 4 * 7


async def test_a_batch_slower_than_the_poll_interval(lane: Lane) -> None:
    """F05: the relay is full and waits, but polls: it keeps its partitions, and nothing is done twice."""
    full = {"ENGINE__MAX_IN_FLIGHT": "1", "ENGINE__BUDGET_SECONDS": "100"}
    words = lane.start(WORDS, KAFKA__MAX_POLL_INTERVAL_MS="1000", RPC_CLIENT__TIMEOUT_SECONDS="60", **full)
    await lane.ready([lane.start(SERVICE), lane.start(AGGREGATOR), words])
    sent = [*ids("slower", 2), *ids("plain", 3)]
    await send(lane, sent, partition=0)
    await lane.finish()
    assert lane.ledger.outcomes(sent) == expected(sent)
    assert [len(lane.ledger.signals_of(one, WORDS)) for one in sent] == [1] * len(sent)
    assert words.events("commit_refused") == []


@pytest.mark.parametrize("media", [0, 2])
async def test_a_signal_too_large(lane: Lane, media: int) -> None:
    """F09: the stage's record does not fit its topic."""
    lane.policy(max_attempts=2)
    await lane.start_all()
    huge = ids("huge", 2)
    sent = [*ids("plain", 10), *huge, *ids("plain", 10, first=10)]
    await send(lane, sent, media=media)
    await lane.finish()
    # Never ALLOW: held, scanned again, and then a person looks.
    assert lane.ledger.outcomes(sent) == expected(sent, huge="REVIEW")
    for one in huge:
        assert statuses(lane.ledger, one, WORDS) == {(ERROR, "RECORD_TOO_LARGE")}
        letters = [letter for letter in lane.ledger.dead_letters if letter.key == one.encode() and letter.room == WORDS]
        assert len(letters) == 2, "one for each attempt"
        assert {letter.reason for letter in letters} == {"RECORD_TOO_LARGE"}


def _unknown_modality() -> bytes:
    generation = generation_pb2.Generation(generation_id="bad:1", attempt=1)
    generation.prompt.ciphertext = b"sealed"
    return generation.SerializeToString() + bytes((7 << 3, 99))


BAD: dict[str, tuple[bytes | None, str]] = {
    "bad:noise": (bytes(range(255, 200, -1)), "UNDECODABLE"),
    "bad:none": (None, "UNDECODABLE"),
    "bad:modality": (_unknown_modality(), "UNKNOWN_MODALITY"),
    "bad:nothing": (
        generation_pb2.Generation(
            generation_id="bad:nothing", attempt=1, modality=generation_pb2.MODALITY_IMAGE
        ).SerializeToString(),
        "NOTHING_TO_SCAN",
    ),
    # Larger than a dead letter may be, but not once it is compressed.
    "bad:compressible": (b"\xff" * 1_900_000, "TOO_LARGE"),
    "bad:omitted": (b"\xff" * 3_000_000, "TOO_LARGE"),
}


async def test_undecodable_records(lane: Lane) -> None:
    """F10: a dead letter and an ERROR signal, then HOLD; the neighbours are decided."""
    await lane.start_all()
    before, after = ids("plain", 5), ids("plain", 5, first=5)
    await lane.send(*(lane.generation(one) for one in before), partition=0)
    await lane.send_raw(*((key, value) for key, (value, _) in BAD.items()), partition=0)
    await lane.send(*(lane.generation(one) for one in after), partition=0)
    await lane.finish()
    sent = [*before, *BAD, *after]
    assert lane.ledger.outcomes(sent) == expected(sent, bad="HOLD")
    for key, (value, reason) in BAD.items():
        (decision,) = lane.ledger.decisions_of(key)
        assert (decision.rule_id, decision.reason_code, decision.rescanned) == (
            "engine/malformed-record",
            reason,
            False,
        )
        for stage in (WORDS, PICTURES):
            assert statuses(lane.ledger, key, stage) == {(ERROR, reason)}
        letters = {letter.room: letter for letter in lane.ledger.dead_letters if letter.key == key.encode()}
        assert set(letters) == {WORDS, PICTURES, AGGREGATOR}
        for letter in letters.values():
            assert letter.reason == reason
            assert letter.error_class == dead_letter_pb2.ERROR_CLASS_POISON
            assert letter.original_size_bytes == len(value or b"")
            if letter.value_omitted:
                assert key == "bad:omitted"
                continue
            source = letter.source
            assert (source.topic, source.partition) == (lane.names.generations, 0)
            associated = f"{source.topic}/{source.partition}/{source.offset}"
            assert lane.sealer.open_bytes(letter.key_id, letter.sealed_value, associated) == (value or b"")


async def test_a_generation_that_would_not_fit_again(lane: Lane) -> None:
    """F09: it came compressed, and would be too large when it is scanned again: set aside, and nothing stops."""
    lane.policy(max_attempts=2)
    rooms = await lane.start_all()
    large, sent = "raise:large", ids("plain", 10)
    await send(lane, sent[:5], partition=0)
    value = lane.generation(large, tenant_id="t" * 5_000_000).SerializeToString()
    await lane.send_by_another_client(large, value)
    await send(lane, sent[5:], partition=0)
    await lane.finish()
    assert lane.ledger.outcomes([large, *sent]) == {large: "HOLD", **expected(sent)}
    (decision,) = lane.ledger.decisions_of(large)
    assert (decision.rule_id, decision.reason_code) == ("engine/malformed-record", "TOO_LARGE")
    assert not any(room.events("halted") for room in rooms.values())


async def test_records_with_a_hostile_envelope(lane: Lane) -> None:
    """F10: keys and headers may hold anything, too. What is usable is decided, and nothing stops."""
    rooms = await lane.start_all()
    good, long = ("traceparent", b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01"), b"0" * 5_000_000
    null = ("traceparent", None)
    usable: dict[str, Sequence[tuple[str, bytes | None]]] = {
        "plain:good": [good, ("other", long)],
        "plain:long": [("traceparent", long)],
        "plain:state": [good, ("tracestate", long)],
        "plain:null": [null],
        "plain:two": [null, good, ("tracestate", None)],
        "plain:bytes": [("traceparent", b"\xff\xfe")],
    }
    for one, headers in usable.items():
        value = lane.generation(one, media=1).SerializeToString()
        await lane.send_by_another_client(one, value, headers=headers)
    await lane.send_by_another_client("plain:key", lane.generation("plain:key").SerializeToString(), key=long)
    await lane.send_by_another_client("bad:header", b"\xff", headers=[("traceparent", long), ("tracestate", None)])
    # A key that cannot be an id: the record is known by where it stands.
    at = f"undecodable:{lane.names.generations}:0:{len(usable) + 2}"
    await lane.send_by_another_client(at, b"\xff", key=long)
    await send(lane, ["plain:after"], partition=0)
    await lane.finish()
    sent = [*usable, "plain:key", "bad:header", at, "plain:after"]
    assert lane.ledger.outcomes(sent) == {**expected(sent, bad="HOLD"), at: "HOLD"}
    traced = {one.generation_id: one.traceparent for one in lane.ledger.decisions if one.traceparent}
    assert traced == dict.fromkeys(("plain:good", "plain:state", "plain:two"), good[1].decode())
    assert not any(room.events("halted") or room.deaths for room in rooms.values())


async def test_dead_letters_cannot_be_written(lane: Lane) -> None:
    """F11: the offset does not move, the room is not ready, and goes on by itself once the topic is back."""
    rooms = await lane.start_all()
    await lane.delete_topic(lane.names.dead_letters)
    await lane.send(lane.generation("plain:0"), partition=0)
    await lane.send_raw(("bad:0", b"\xff"), partition=0)
    await lane.send(lane.generation("plain:1"), partition=0)
    for room in (WORDS, PICTURES, AGGREGATOR):
        await rooms[room].unready()
    for room in (WORDS, PICTURES, AGGREGATOR):
        assert (await lane.committed(room)).get(0, 0) <= 1, room
        assert rooms[room].events("produce_failed"), "it says so"
    assert not lane.ledger.decisions_of("bad:0")
    await topics.apply(lane.broker, lane.settings, TopicSettings(partitions=lane.partitions))
    await lane.settled()
    await lane.ready(rooms.values())
    assert not any(room.deaths for room in rooms.values())
    assert lane.ledger.outcomes(["plain:0", "bad:0", "plain:1"]) == expected(
        ["plain:0", "bad:0", "plain:1"], bad="HOLD"
    )


async def test_every_record_is_poison(lane: Lane) -> None:
    """F12: the fuse trips, and the topic is not drained into dead letters."""
    fuse = {"FUSE_WINDOW": "40", "FUSE_MINIMUM": "6"}
    words = lane.start(WORDS, **{f"ENGINE__{key}": value for key, value in fuse.items()})
    aggregator = lane.start(AGGREGATOR, **{f"JOIN__{key}": value for key, value in fuse.items()})
    await lane.ready([words, aggregator])
    await lane.send_raw(*((one, b"\xff") for one in ids("bad", 200)), partition=0)
    for room in (words, aggregator):
        await room.unready()
        await lane.until(lambda room=room: room.events("halted"), "it says so")  # type: ignore[misc]
        assert {event["reason"] for event in room.events("halted")} == {"FUSE_TRIPPED"}
        assert room.deaths == []
    await lane.read_all()
    by_room = {room: sum(letter.room == room for letter in lane.ledger.dead_letters) for room in (WORDS, AGGREGATOR)}
    assert by_room == {WORDS: 6, AGGREGATOR: 6}
    assert (await lane.committed(WORDS)).get(0, 0) <= 6
    assert (await lane.committed(AGGREGATOR)).get(0, 0) <= 6
