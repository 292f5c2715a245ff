"""Replicas of banks over a real broker: they converge, and a late one does after compaction has had its way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from seawall.api.bank.v1 import bank_pb2
from seawall.local.kafka import EmbeddedKafka
from seawall.perceptual_hashing import bank_changes
from seawall.perceptual_hashing.bank_card import Pipeline
from seawall.perceptual_hashing.bank_index import BankIndex
from seawall.perceptual_hashing.bank_replication import BankReplication
from seawall.perceptual_hashing.bank_store import BankStore
from seawall.perceptual_hashing.live_banks import LiveBanks, set_state
from seawall.perceptual_hashing.matcher import Matcher
from seawall.perceptual_hashing.plug_in_hashes import PlugInHashes
from seawall.perceptual_hashing.settings import BankSettings
from seawall.perceptual_hashing.signal_types import SignalExample, SignalHash
from seawall.runtime.broker import Output, TopicSpec
from seawall.runtime.decoding import Pixels
from seawall.runtime.kafka import KafkaBroker
from tests.support.bank_entries import card, entry, random_words, removed
from tests.support.kafka import client_settings, unique
from tests.support.waiting import wait_for

pytestmark = pytest.mark.kafka
WORDS = random_words(50)


class SameBytes:
    """Stands in for a licensed hash: near is what is equal."""

    name = "photodna"
    hash_bytes = 144
    max_distance = 0
    min_quality = 0
    pipeline: Pipeline = "full"

    def hash(self, gray: Pixels) -> SignalHash:
        return SignalHash(gray.tobytes()[: self.hash_bytes], 100)

    def distance(self, one: bytes, other: bytes) -> int:
        return int(one != other)

    def examples(self) -> Sequence[SignalExample]:
        pictures = [np.full((16, 16), level, np.uint8) for level in (0, 255)]
        return [SignalExample(gray, self.hash(gray)) for gray in pictures]


@pytest.fixture
async def topic(kafka: EmbeddedKafka) -> tuple[KafkaBroker, str]:
    broker = KafkaBroker(client_settings(kafka.bootstrap_servers))
    name = unique("bank_entries.v1")
    admin = broker.admin()
    await admin.start()
    await admin.create([TopicSpec(name, 2, {"cleanup.policy": "compact"})], 1)
    await admin.stop()
    return broker, name


async def synced(broker: KafkaBroker, name: str, store: BankStore) -> None:
    """One replica's turn: publish what is its own, read to the end."""
    replication = BankReplication(broker, name, store)
    await replication.start()
    try:
        await replication.publish()
        await replication.catch_up(60)
    finally:
        await replication.stop()


async def test_two_replicas_and_a_late_one_reach_the_same_digest(
    tmp_path: Path, topic: tuple[KafkaBroker, str]
) -> None:
    broker, name = topic
    one, other = BankStore(tmp_path / "one"), BankStore(tmp_path / "other")
    one.apply([card(), *(entry(f"e{k}", WORDS[k]) for k in range(20))])
    other.apply([entry(f"e{k}", WORDS[k + 10]) for k in range(10, 30)])
    await synced(broker, name, one)
    await synced(broker, name, other)
    await synced(broker, name, one)
    assert one.digests() == other.digests()
    one.apply([removed("e3"), entry("e4", WORDS[44])])
    set_state(other, "own", "e5", bank_pb2.ENTRY_STATE_DISABLED, reason="a person looked")
    for store in (one, other, one):
        await synced(broker, name, store)
    late = BankStore(tmp_path / "late")
    await synced(broker, name, late)
    assert one.digests() == other.digests() == late.digests()
    assert late.state().banks["own"].listed == 28
    assert [store.unpublished() for store in (one, other, late)] == [[], [], []]
    # Nothing is read twice.
    before = one.sequence
    await synced(broker, name, one)
    assert one.sequence == before


async def test_videos_and_plug_ins_hashes_reach_the_other_replica_and_match_there(
    tmp_path: Path, topic: tuple[KafkaBroker, str]
) -> None:
    broker, name = topic
    one, other = BankStore(tmp_path / "one"), BankStore(tmp_path / "other")
    frames, value = WORDS[:3], bytes(range(144))
    film, still = entry("film", vpdq=frames.tobytes()), entry("still", photodna=value)
    one.apply([card(signal_types=["photodna"], min_listed_percent=50), film, still])
    await synced(broker, name, one)
    await synced(broker, name, other)
    assert one.digests() == other.digests()
    matcher = Matcher(snapshot=BankIndex(other).snapshot, plug_ins=PlugInHashes([SameBytes()]))
    assert [(m.entry_id, m.distance) for m in matcher.match_plug_in("photodna", value, 100)] == [("still", 0)]
    (match,) = matcher.match(frames[1:2].view(np.uint8), "512")
    assert (match.entry_id, match.listed_frames, match.bank.min_listed_percent) == ("film", 3, 50)


async def test_records_that_are_no_changes_are_refused_by_all_and_stop_nobody(
    tmp_path: Path, topic: tuple[KafkaBroker, str]
) -> None:
    broker, name = topic
    bad = entry("short", WORDS[0])
    bad.entry.hashes[0].value = b"short"
    good = entry("good", WORDS[1])
    producer = broker.producer()
    await producer.start()
    await producer.send(
        [
            Output(name, 0, b"own/x", b"\xff\xff"),
            Output(name, 0, b"own/gone", None),
            Output(name, 0, b"own/short", bad.SerializeToString()),
            Output(name, 0, b"own/another", good.SerializeToString()),
            Output(name, 0, bank_changes.key(good), good.SerializeToString()),
        ]
    )
    await producer.stop()
    store = BankStore(tmp_path)
    await synced(broker, name, store)
    assert [one.entry_id for one in store.entries("own")] == ["good"]
    assert store.positions(name)[0] == 5


async def test_a_topic_made_anew_is_read_from_its_beginning(tmp_path: Path, topic: tuple[KafkaBroker, str]) -> None:
    broker, name = topic
    store = BankStore(tmp_path)
    store.apply([entry("old", WORDS[0])], positions={(name, 0): 1_000, (name, 1): 1_000})
    other = BankStore(tmp_path / "other")
    other.apply([card(), entry("new", WORDS[1])])
    await synced(broker, name, other)
    await synced(broker, name, store)
    assert [one.entry_id for one in store.entries("own")] == ["new", "old"]


def test_a_service_waits_for_its_banks_and_serves_what_another_replica_adds(
    tmp_path: Path, kafka: EmbeddedKafka, topic: tuple[KafkaBroker, str]
) -> None:
    _, name = topic

    def live(folder: str) -> LiveBanks:
        settings = BankSettings(
            folder=tmp_path / "none", store=tmp_path / folder, required=["own"], follow=True, poll_seconds=0.05
        )
        return LiveBanks(settings, broker=lambda: KafkaBroker(client_settings(kafka.bootstrap_servers)), topic=name)

    first, second = live("first"), live("second")
    try:
        first.start()
        second.start()
        assert first.unready().startswith("BANK_MISSING")
        BankStore(tmp_path / "first").apply([card(), entry("e1", WORDS[0])])
        wait_for(lambda: first.unready() == second.unready() == "")
        wait_for(lambda: first.matcher.banks["own"].digest == second.matcher.banks["own"].digest)
        (match,) = second.matcher.match(WORDS[:1].view("u1"), "512")
        assert (match.bank.name, match.entry_id) == ("own", "e1")
    finally:
        first.stop()
        second.stop()
