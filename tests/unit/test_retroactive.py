"""Retroactive matching on the in-memory broker: what is found, what is not, and that nothing is said twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seawall.api.bank.v1 import bank_pb2
from seawall.api.control.v1 import control_pb2
from seawall.api.decision.v1 import decision_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.clock import ManualClock
from seawall.core.errors import Fatal
from seawall.perceptual_hashing import bank_changes, measured, pdq
from seawall.perceptual_hashing.retroactive import engine, pairs
from seawall.perceptual_hashing.retroactive.columns import Columns
from seawall.perceptual_hashing.retroactive.engine import Engine
from seawall.perceptual_hashing.retroactive.late import ROOM
from seawall.perceptual_hashing.retroactive.settings import RetroactiveSettings, WindowSettings
from seawall.runtime.broker import Output
from tests.support import images
from tests.support.records import CLASSIFICATION, HASHING, PROMPT, generation, signal
from tests.support.stream import NAMES, PATIENCE_SECONDS, Seen, Stream

HOUR = 3_600_000_000_000
PDQ = bytes(range(32))


def flipped(value: bytes, bits: int) -> bytes:
    """The value with its first bits turned."""
    return (int.from_bytes(value) ^ ((1 << bits) - 1)).to_bytes(len(value))


@dataclass
class Watch(Seen):
    """An observer that remembers what was held and written."""

    held_rows: tuple[int, int] = (0, 0)
    written: int = 0
    turns: int = 0
    progress: asyncio.Event = field(default_factory=asyncio.Event)

    def held(self, hashes: int, entries: int) -> None:
        self.held_rows = (hashes, entries)
        self.turns += 1
        self.changed.set()

    def wrote(self, signals: int) -> None:
        self.written += signals
        self.changed.set()


class Lane(Stream):
    """The lane, with pictures that were measured and banks that list."""

    def __init__(self, keys: Path, *, partitions: int = 1) -> None:
        super().__init__(keys, partitions=partitions, clock=ManualClock(1_000_000 * HOUR))
        self.sent = 0

    @property
    def manual(self) -> ManualClock:
        assert isinstance(self.clock, ManualClock)
        return self.clock

    async def measure(
        self,
        name: str,
        value: bytes = PDQ,
        *,
        hash_type: str = "pdq",
        quality: int = 100,
        matches: list[signal_pb2.BankMatch] | None = None,
        rest: bool = True,
        more: Sequence[signal_pb2.ItemHash] = (),
        turned: bytes = b"",
    ) -> None:
        """A generation with one picture, whose stages have all reported (``rest``), or the hashing stage alone."""
        g = generation(name, media=1)
        hashing = signal(g, HASHING, offset=self.sent, matches=matches or ())
        hashing.items[0].hashes.add(hash_type=hash_type, value=value, quality=quality, turned=turned)
        hashing.items[0].hashes.extend(more)
        await self.send(g)
        others = [signal(g, stage, offset=self.sent) for stage in (PROMPT, CLASSIFICATION)] if rest else []
        await self.send_join(hashing, *others)
        self.sent += 1

    async def change(self, *changes: bank_pb2.BankChange) -> None:
        outputs = [Output(NAMES.bank_entries, 0, bank_changes.key(one), one.SerializeToString()) for one in changes]
        await self._producer.start()
        await self._producer.send(outputs)

    async def list_entry(self, entry_id: str, bank: str = "known", **hashes: bytes) -> bank_pb2.BankChange:
        change = bank_changes.listed(bank, entry_id, hashes or {"pdq": PDQ}, origin="test")
        await self.change(change)
        return change

    def late(self) -> list[signal_pb2.Signal]:
        return [one for one in self.signals() if one.stage == ROOM]

    @asynccontextmanager
    async def room(self, seen: Watch, **window: Any) -> AsyncIterator[Engine]:
        """The room, read back and comparing; stopped when the context is left."""
        room = Engine(
            broker=self.broker,
            names=NAMES,
            group=ROOM,
            member=None,
            settings=RetroactiveSettings(window=WindowSettings(**window), poll_seconds=0.01),
            observer=seen,
            clock=self.clock,
        )
        task = asyncio.create_task(room.run())
        task.add_done_callback(lambda _: seen.changed.set())
        try:
            await seen.until(lambda: seen.is_ready or task.done())
            yield room
        finally:
            room.stop()
            await asyncio.wait([task], timeout=PATIENCE_SECONDS)
            assert task.done()
            if (error := task.exception()) is not None:
                raise error

    async def settled(self, seen: Watch, room: Engine) -> None:
        """Wait until the room has read everything and worked everything off."""
        listed = len(self.broker.records(NAMES.bank_entries))

        def read() -> bool:
            positions = {number: state.position for number, state in room._partitions.items()}
            ends = {number: len(self.broker.records(NAMES.signals, number)) for number in positions}
            return room._is_whole() and positions == ends and room.stats.changes >= listed

        await seen.until(read)
        turns = seen.turns
        await seen.until(lambda: seen.turns > turns + 1 and not room._hits and read())


def card(name: str = "known", **more: Any) -> bank_pb2.BankChange:
    fields: dict[str, Any] = {
        "state": bank_pb2.BANK_STATE_ACTIVE,
        "kind": bank_pb2.BANK_KIND_POSITIVE,
        "source": "a test",
        "version": "1",
        "category": "stand-in",
        "pipeline": "full",
        "radius": 31,
        "action": "report",
        "licence": "CC0-1.0",
    }
    return bank_pb2.BankChange(bank=bank_pb2.Bank(name=name, **{**fields, **more}))


@pytest.fixture
def lane(tmp_path: Path) -> Lane:
    return Lane(tmp_path)


# ---- what is found -------------------------------------------------------------------------------------------------


async def test_a_new_entry_is_found_in_a_picture_that_was_decided_and_the_decision_escalates(lane: Lane) -> None:
    await lane.change(card())
    await lane.measure("g-1", flipped(PDQ, 5))
    await lane.measure("g-2", flipped(PDQ, 100))
    seen, decided = Watch(), Seen()
    async with lane.aggregator(decided), lane.room(seen) as room:
        await lane.written(NAMES.decisions, 2)
        change = await lane.list_entry("entry-1")
        await lane.written(NAMES.decisions, 3)
        await lane.settled(seen, room)
    assert [one.outcome for one in lane.decisions()] == [
        decision_pb2.OUTCOME_ALLOW,
        decision_pb2.OUTCOME_ALLOW,
        decision_pb2.OUTCOME_BLOCK_AND_REPORT,
    ]
    amendment = lane.decisions()[2]
    assert amendment.kind == decision_pb2.DECISION_KIND_AMENDMENT
    assert (amendment.generation_id, amendment.rule_id) == ("g-1", "known-hash")
    (late,) = lane.late()
    assert (late.generation_id, late.attempt, late.generation_record.offset) == ("g-1", 1, 0)
    assert (late.caused_by.topic, late.caused_by.offset) == (NAMES.bank_entries, 1)
    assert late.artefacts[0].sha256 == bank_changes.digest(change)
    (item,) = late.items
    (match,) = item.matches
    assert (item.item_id, match.bank, match.entry_id, match.distance) == ("output/0", "known", "entry-1", 5)
    assert (match.hash_type, match.category, match.action, match.variant) == ("pdq", "stand-in", "report", "original")


async def test_the_same_entry_again_and_another_process_add_nothing(lane: Lane) -> None:
    await lane.change(card())
    await lane.measure("g-1")
    await lane.list_entry("entry-1")
    seen, decided = Watch(), Seen()
    async with lane.aggregator(decided):
        async with lane.room(seen) as room:
            await lane.written(NAMES.decisions, 2)
            await lane.list_entry("entry-1")
            await lane.settled(seen, room)
        async with lane.room(again := Watch()) as room:
            await lane.settled(again, room)
            assert room.stats.repeated > 0
    assert len(lane.late()) == 1
    assert len(lane.decisions()) == 2
    assert again.written == 0


async def test_what_two_processes_write_at_once_is_the_same_and_judged_once(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lane.change(card())
    await lane.measure("g-1")
    await lane.list_entry("entry-1")
    for _ in range(2):
        async with lane.room(seen := Watch()) as room:
            await lane.settled(seen, room)
        # The next one does not know what was written, as two owners for a moment do not.
        monkeypatch.setattr(engine, "ROOM", "nobody")
    first, second = (r.value for r in lane.broker.records(NAMES.signals) if ROOM.encode() in (r.value or b""))
    assert first == second
    async with lane.aggregator(Seen()):
        await lane.measure("g-2", bytes(32))
        await lane.written(NAMES.decisions, 3)
    assert [one.generation_id for one in lane.decisions()] == ["g-1", "g-1", "g-2"]


async def test_an_entry_that_came_first_is_found_in_pictures_of_the_overlap_alone(lane: Lane) -> None:
    """A replica of the hashing service may not have known it yet; later pictures were matched as they came."""
    await lane.change(card())
    await lane.list_entry("entry-1")
    lane.manual.advance(HOUR // 2)
    await lane.measure("soon")
    lane.manual.advance(HOUR)
    await lane.measure("later")
    async with lane.room(seen := Watch(), overlap_seconds=3600) as room:
        await lane.settled(seen, room)
        assert [one.generation_id for one in lane.late()] == ["soon"]
        lane.manual.advance(HOUR)
        await lane.list_entry("entry-2")
        await lane.settled(seen, room)
        await lane.measure("soon-too")
        await lane.settled(seen, room)
    assert sorted((one.generation_id, one.items[0].matches[0].entry_id) for one in lane.late()) == [
        ("later", "entry-2"),
        ("soon", "entry-1"),
        ("soon", "entry-2"),
        ("soon-too", "entry-2"),
    ]


async def test_digests_are_found(lane: Lane) -> None:
    await lane.change(card())
    await lane.measure("sha", bytes(32), hash_type="sha256")
    await lane.measure("md5", bytes(16), hash_type="md5")
    await lane.measure("near", bytes(31) + b"\1", hash_type="sha256")
    await lane.list_entry("entry-1", sha256=bytes(32), md5=bytes(16))
    async with lane.room(seen := Watch()) as room:
        await lane.settled(seen, room)
    found = {one.generation_id: one.items[0].matches[0].hash_type for one in lane.late()}
    assert found == {"sha": "sha256", "md5": "md5"}


@pytest.mark.parametrize("variant", pdq.VARIANTS)
async def test_a_turned_copy_is_found_in_each_of_its_turns_and_named(lane: Lane, variant: str) -> None:
    """Measured hashes of a photograph, in the pipeline whose pictures are no squares: the turn's own hash is listed."""
    values = pdq.hash_variants(images.gray("cat")[:, :300]).values
    sent = [values[pdq.VARIANTS.index(turn)].tobytes() for turn in measured.SENT_TURNS]
    await lane.change(card())
    await lane.measure("g-1", sent[0], turned=b"".join(sent[1:]))
    await lane.measure("of-an-older-version", sent[0])
    await lane.list_entry("entry-1", pdq=flipped(values[pdq.VARIANTS.index(variant)].tobytes(), 7))
    async with lane.room(seen := Watch()) as room:
        await lane.settled(seen, room)
    found = {one.generation_id: one.items[0].matches[0] for one in lane.late()}
    assert (found["g-1"].variant, found["g-1"].distance) == (variant, 7)
    # Without the turns, the upright hash and its exchanged axes are what there is.
    assert ("of-an-older-version" in found) == (variant in ("original", "transpose"))


async def test_a_picture_within_borders_is_found_and_named(lane: Lane) -> None:
    inner = signal_pb2.ItemHash(hash_type="pdq", value=flipped(PDQ, 3), quality=100, picture="frame-2/stripped")
    await lane.change(card())
    await lane.measure("g-1", bytes(32), more=[inner])
    await lane.list_entry("entry-1")
    async with lane.room(seen := Watch()) as room:
        await lane.settled(seen, room)
    (match,) = lane.late()[0].items[0].matches
    assert (match.variant, match.distance) == ("original/frame-2/stripped", 3)


@pytest.mark.parametrize(("needs", "found"), [(0, True), (34, True), (35, False)])
async def test_a_listed_video_is_found_with_both_shares(lane: Lane, needs: int, found: bool) -> None:
    """Of three measured frames one is in the video, of whose two frames it is one; the bank says how much it needs."""
    frames = [bytes([k] * 32) for k in (0x0F, 0x33, 0x55)]
    more = [
        signal_pb2.ItemHash(hash_type="pdq", value=value, quality=100, picture=f"frame-{k}")
        for k, value in enumerate(frames[1:], 1)
    ]
    await lane.change(card(min_query_percent=needs))
    await lane.measure("g-1", frames[0], more=more)
    await lane.list_entry("entry-1", vpdq=flipped(frames[1], 4) + bytes(range(32)))
    async with lane.room(seen := Watch()) as room:
        await lane.settled(seen, room)
    assert [
        (match.hash_type, match.variant, match.distance, match.query_percent, match.listed_percent)
        for late in lane.late()
        for match in late.items[0].matches
    ] == ([("vpdq", "original/frame-1", 4, 34, 50)] if found else [])


async def test_hashes_of_a_wrong_length_cost_themselves_alone(lane: Lane) -> None:
    odd = signal_pb2.ItemHash(hash_type="pdq", value=PDQ + b"more", quality=100, turned=b"short", picture="frame-1")
    equal = signal_pb2.ItemHash(hash_type="photodna", value=bytes(144), quality=0)
    await lane.change(card())
    await lane.measure("g-1", bytes(32), hash_type="sha256", more=[odd, equal])
    await lane.list_entry("entry-1", pdq=PDQ[:31], sha256=bytes(32), photodna=bytes(144), vpdq=PDQ[:16])
    await lane.list_entry("entry-2", pdq=flipped(PDQ, 2))
    async with lane.room(seen := Watch()) as room:
        await lane.settled(seen, room)
    found = sorted((m.entry_id, m.hash_type, m.distance) for one in lane.late() for m in one.items[0].matches)
    assert found == [("entry-1", "sha256", 0), ("entry-2", "pdq", 2)]


async def test_several_entries_of_one_open_generation_all_count(lane: Lane) -> None:
    """The picture was hashed, another stage is still at work: the late signals join, each of them."""
    await lane.change(card(), card("other"))
    await lane.measure("g-1", rest=False)
    await lane.list_entry("entry-1")
    await lane.list_entry("entry-2", bank="other")
    async with lane.aggregator(Seen()), lane.room(Watch()):
        await lane.written(NAMES.signals, 3)
        g = generation("g-1", media=1)
        await lane.send_join(signal(g, PROMPT, offset=0), signal(g, CLASSIFICATION, offset=0))
        await lane.written(NAMES.decisions, 1)
    (decision,) = lane.decisions()
    assert decision.outcome == decision_pb2.OUTCOME_BLOCK_AND_REPORT
    matches = [m.bank for joined in decision.signals for item in joined.signal.items for m in item.matches]
    assert sorted(matches) == ["known", "other"]


async def test_the_card_may_come_after_its_entries(lane: Lane) -> None:
    await lane.measure("g-1")
    await lane.list_entry("entry-1")
    async with lane.room(seen := Watch()) as room:
        await lane.settled(seen, room)
        assert lane.late() == []
        await lane.change(card())
        await lane.settled(seen, room)
    assert len(lane.late()) == 1


# ---- what is not ---------------------------------------------------------------------------------------------------


async def test_what_was_known_when_it_was_measured_is_not_said_again(lane: Lane) -> None:
    await lane.change(card())
    await lane.measure("g-1", matches=[signal_pb2.BankMatch(bank="known", entry_id="entry-1", hash_type="pdq")])
    await lane.list_entry("entry-1")
    async with lane.room(seen := Watch()) as room:
        await lane.settled(seen, room)
        assert room.stats.hits == 1
    assert lane.late() == []


@pytest.mark.parametrize("state", [bank_pb2.ENTRY_STATE_DISABLED, bank_pb2.ENTRY_STATE_REMOVED])
async def test_an_entry_that_was_taken_back_is_not_acted_on(lane: Lane, state: bank_pb2.EntryState.ValueType) -> None:
    await lane.change(card())
    await lane.measure("g-1")
    await lane.list_entry("entry-1")
    await lane.change(bank_changes.listed("known", "entry-1", {"pdq": PDQ}, origin="person", state=state))
    async with lane.room(seen := Watch()) as room:
        await lane.settled(seen, room)
        assert lane.late() == []
        await lane.measure("g-2")
        await lane.settled(seen, room)
        assert lane.late() == []
        await lane.list_entry("entry-1")
        await lane.settled(seen, room)
    assert sorted(one.generation_id for one in lane.late()) == ["g-1", "g-2"], "listed again, it counts"


async def test_banks_that_are_removed_or_expired_say_nothing(lane: Lane) -> None:
    now = lane.clock.now_nanos()
    await lane.change(card("gone", state=bank_pb2.BANK_STATE_REMOVED), card("old", expires_unix_nano=now - 1), card())
    await lane.measure("g-1")
    for bank in ("gone", "old"):
        await lane.list_entry("entry", bank=bank)
    expired = bank_changes.listed("known", "expired", {"pdq": PDQ}, origin="test", expires_unix_nano=now - 1)
    await lane.change(expired)
    async with lane.room(seen := Watch()) as room:
        await lane.settled(seen, room)
        assert room.stats.hits == 3
    assert lane.late() == []


async def test_radius_quality_and_pipeline_are_the_banks_own(lane: Lane) -> None:
    await lane.change(card("near", radius=10), card("other", pipeline="512"))
    await lane.measure("far", flipped(PDQ, 11))
    await lane.measure("near", flipped(PDQ, 10))
    await lane.measure("poor", PDQ, quality=49)
    await lane.measure("reduced", PDQ, hash_type="pdq_512")
    await lane.list_entry("entry-1", bank="near")
    await lane.list_entry("entry-2", bank="other")
    async with lane.room(seen := Watch()) as room:
        await lane.settled(seen, room)
    found = sorted((one.generation_id, one.items[0].matches[0].bank) for one in lane.late())
    assert found == [("near", "near"), ("reduced", "other")]


async def test_a_kind_of_hash_that_no_picture_has_is_told(lane: Lane) -> None:
    await lane.change(card(pipeline="512"))
    await lane.measure("g-1")
    await lane.list_entry("entry-1")
    async with lane.room(seen := Watch()) as room:
        await lane.settled(seen, room)
    assert [event["kind"] for event in seen.named("kind_not_measured")] == ["pdq_512"]


async def test_of_an_entry_in_quarantine_only_near_exact_matches_count(lane: Lane) -> None:
    await lane.change(card())
    await lane.measure("loose", flipped(PDQ, 9))
    await lane.measure("near-exact", flipped(PDQ, 8))
    state = bank_pb2.ENTRY_STATE_QUARANTINED
    await lane.change(bank_changes.listed("known", "entry-1", {"pdq": PDQ}, origin="flood", state=state))
    async with lane.room(seen := Watch()) as room:
        await lane.settled(seen, room)
        assert room.stats.hits == 2
    assert [one.generation_id for one in lane.late()] == ["near-exact"]


async def test_a_negative_bank_suppresses_loose_matches_and_contests_near_exact_ones(lane: Lane) -> None:
    await lane.change(card("benign", kind=bank_pb2.BANK_KIND_NEGATIVE), card())
    await lane.list_entry("ordinary", bank="benign", pdq=flipped(PDQ, 12))
    lane.manual.advance(100 * HOUR)  # however old it is
    await lane.measure("explained-away", flipped(PDQ, 12))
    await lane.measure("nearer-to-the-known", flipped(PDQ, 3))
    await lane.measure("far-from-both", flipped(PDQ, 200))
    await lane.list_entry("entry-1")
    await lane.measure("by-its-bytes", bytes(16), hash_type="md5")
    await lane.list_entry("also-ordinary", bank="benign", md5=bytes(16))
    await lane.list_entry("entry-2", md5=bytes(16))
    async with lane.room(seen := Watch(), seconds=3600) as room:
        await lane.settled(seen, room)
        found = {one.generation_id: one.items[0].matches[0].contested_by for one in lane.late()}
        assert found == {"nearer-to-the-known": "", "by-its-bytes": "benign/also-ordinary"}
        # Taken back, it speaks against nothing.
        gone = bank_changes.listed("benign", "ordinary", {}, origin="test", state=bank_pb2.ENTRY_STATE_REMOVED)
        await lane.change(gone)
        await lane.settled(seen, room)
        await lane.list_entry("entry-3")
        await lane.settled(seen, room)
    explained = [one for one in lane.late() if one.generation_id == "explained-away"]
    assert [one.items[0].matches[0].entry_id for one in explained] == ["entry-3"]


# ---- bounds and faults ---------------------------------------------------------------------------------------------


async def test_an_entry_that_meets_too_much_is_held_and_told(lane: Lane) -> None:
    await lane.change(card())
    for number in range(6):
        await lane.measure(f"g-{number}")
    await lane.measure("other", bytes(32))
    await lane.list_entry("ordinary")
    await lane.list_entry("rare", pdq=bytes(32))
    async with lane.room(seen := Watch(), max_hits_per_entry=5) as room:
        await lane.settled(seen, room)
    assert [one.generation_id for one in lane.late()] == ["other"]
    assert [event["offset"] for event in seen.named("entry_flood")] == [1]


async def test_a_list_that_meets_too_much_stops_the_room(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_MAX_HITS", 10)
    await lane.change(card())
    for number in range(4):
        await lane.measure(f"g-{number}")
    for number in range(4):
        await lane.list_entry(f"entry-{number}")
    with pytest.raises(Fatal, match="TOO_MANY_HITS"):
        async with lane.room(Watch()):
            pass
    assert lane.late() == []


async def test_the_window_is_bounded_in_time_and_in_rows(lane: Lane) -> None:
    await lane.change(card())
    await lane.measure("old")
    lane.manual.advance(2 * HOUR)
    for number in range(1, 2_001):
        await lane.measure(f"g-{number}", number.to_bytes(2) * 16, rest=False)
    async with lane.room(seen := Watch(), seconds=3600, max_hashes=1_000) as room:
        await lane.settled(seen, room)
        assert seen.held_rows == (1_000, 0)
        for number in (0, 1, 2_000):
            await lane.list_entry(f"entry-{number}", pdq=number.to_bytes(2) * 16 if number else PDQ)
        await lane.settled(seen, room)
    assert {one.generation_id for one in lane.late()} >= {"g-2000"}
    assert not {one.generation_id for one in lane.late()} & {"old", "g-1"}


async def test_a_broker_that_goes_away_is_waited_for(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "_pause", lambda self, seconds: asyncio.sleep(0))
    await lane.change(card())
    await lane.measure("g-1")
    await lane.list_entry("entry-1")
    lane.broker.fail_next_sends(2, written=True)
    async with lane.room(seen := Watch()) as room:
        await seen.until(lambda: bool(seen.named("turn_failed")))
        await lane.settled(seen, room)
    assert {one.signal_id for one in lane.late()} == {lane.late()[0].signal_id}, "written again at most, the same"


async def test_a_change_that_cannot_be_read_is_passed_over(lane: Lane) -> None:
    await lane.measure("g-1")
    await lane._producer.start()
    await lane._producer.send(
        [Output(NAMES.bank_entries, 0, b"x", b"\xff\xff"), Output(NAMES.bank_entries, 0, b"y", b"")]
    )
    await lane.change(card())
    await lane.list_entry("entry-1")
    async with lane.room(seen := Watch()) as room:
        await lane.settled(seen, room)
    assert len(lane.late()) == 1
    assert len(seen.named("bank_change_undecodable")) == 2


async def test_partitions_are_shared_and_taken_over(tmp_path: Path) -> None:
    lane = Lane(tmp_path, partitions=2)
    await lane.change(card())
    await lane.measure("g-0")
    one, other = Watch(), Watch()
    async with lane.room(one) as first:
        async with lane.room(other) as second:
            await one.until(lambda: first._is_whole() and len(first._partitions) == 1)
            assert len(second._partitions) == 1
            await lane.list_entry("entry-1")
            await lane.written(NAMES.signals, 4)
        # Static no member: it leaves, and its partition goes back.
        await one.until(lambda: len(first._partitions) == 2 and first._is_whole())
        await lane.measure("g-1")
        await lane.settled(one, first)
    assert sorted(late.generation_id for late in lane.late()) == ["g-0", "g-1"]


# ---- pairs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize(("left", "right"), [(40, 700), (700, 40), (0, 5), (5, 0), (1, 1)])
def test_near_finds_what_brute_force_finds(monkeypatch: pytest.MonkeyPatch, scan: bool, left: int, right: int) -> None:
    monkeypatch.setattr(pairs, "SCAN_PAIRS", 10**9 if scan else 0)
    random = np.random.default_rng(left + right)
    base = random.integers(0, 256, (20, 32), np.uint8)

    def some(count: int) -> np.ndarray[Any, Any]:
        rows = base[random.integers(0, len(base), count)].copy()
        for row in rows:
            for bit in random.integers(0, 256, random.integers(0, 40)):
                row[bit // 8] ^= 1 << (bit % 8)
        return rows

    a, b = some(left), some(right)
    distances = np.bitwise_count(a[:, None] ^ b[None]).sum(2) if left and right else np.zeros((left, right), np.int64)
    expected = {(i, j, int(distances[i, j])) for i, j in np.argwhere(distances <= 31).tolist()}
    found = pairs.near(a.view(np.uint64), b.view(np.uint64))
    assert set(zip(*(column.tolist() for column in found), strict=True)) == expected
    same = {(i, j) for i, j, distance in expected if distance == 0}
    equal = pairs.equal(a.view(np.uint64), b.view(np.uint64))
    assert set(zip(equal.left.tolist(), equal.right.tolist(), strict=True)) == same


def test_columns_keep_their_rows_while_they_grow_and_forget() -> None:
    columns = Columns({"number": (np.int64, 0), "pair": (np.uint64, 2)})
    kept: list[int] = []
    for start in range(0, 20_000, 700):
        numbers = np.arange(start, start + 700)
        columns.add(number=numbers, pair=np.stack([numbers, numbers], 1).astype(np.uint64))
        kept += numbers.tolist()
        columns.forget(600)
        del kept[:600]
        assert columns["number"].tolist() == kept
        assert columns["pair"][:, 1].tolist() == kept
    assert columns.forgotten == 29 * 600


def test_a_late_signal_is_a_record_that_the_join_reads(lane: Lane) -> None:
    record = control_pb2.JoinRecord(signal=signal_pb2.Signal(stage=ROOM))
    record.signal.caused_by.offset = 1
    assert control_pb2.JoinRecord.FromString(record.SerializeToString()).signal.HasField("caused_by")
