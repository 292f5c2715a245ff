"""A confirmed decision lists its media in the own bank: from the topic, by the command, into a room that runs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from PIL import ImageOps
from typer.testing import CliRunner

from seawall.api.decision.v1 import decision_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.cli.app import app
from seawall.local.kafka import EmbeddedKafka
from seawall.perceptual_hashing.bank_store import BankStore
from seawall.runtime.broker import Output, TopicSpec
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.topics import TopicNames
from tests.support import images, videos
from tests.support.bank_entries import card
from tests.support.hashing_room import SIZE, UNLISTED, Room
from tests.support.kafka import client_settings, unique
from tests.support.waiting import wait_for

pytestmark = pytest.mark.kafka


async def test_confirmed_media_are_found_again_in_copies(
    tmp_path: Path, kafka: EmbeddedKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room(tmp_path)
    film = videos.video(videos.panning("brick", 24, 8))
    items = [room.score(images.encode(images.photograph(UNLISTED, SIZE))), room.score(film)]
    assert not any(item.matches for item in items)
    for number, item in enumerate(items):
        item.item_id = f"output/{number}"
    decision = decision_pb2.Decision(decision_id="d", generation_id="g-1", attempt=1)
    decision.signals.add(signal=signal_pb2.Signal(stage="perceptual_hashing", items=items))
    prefix = unique("confirm") + "."
    await _decided(KafkaBroker(client_settings(kafka.bootstrap_servers)), TopicNames(prefix).decisions, decision)

    monkeypatch.setenv("SEAWALL_KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    monkeypatch.setenv("SEAWALL_KAFKA__TOPIC_PREFIX", prefix)
    monkeypatch.setenv("SEAWALL_BANKS__STORE", str(room.settings.banks.store))
    store = BankStore(room.settings.banks.store)
    store.apply([card("own")])
    arguments = ["banks", "confirm", "g-1", "--bank", "own", "--json"]
    first, again = [await asyncio.to_thread(CliRunner().invoke, app, arguments) for _ in range(2)]
    assert (first.exit_code, again.exit_code) == (0, 0), first.output
    assert first.stdout == again.stdout
    listed = json.loads(first.stdout)["entries"]
    assert len(listed) == store.state().banks["own"].listed == 2

    mirrored = images.encode(ImageOps.mirror(images.photograph(UNLISTED, SIZE)), quality=60)
    await asyncio.to_thread(wait_for, lambda: bool(room.score(mirrored).matches))
    (match,) = room.score(mirrored).matches
    assert (match.bank, match.entry_id, match.hash_type, match.variant) == ("own", listed[0], "pdq", "mirror")
    copy = videos.video(videos.panning("brick", 24, 8), "libvpx-vp9", "webm")
    (match,) = room.score(copy).matches
    assert (match.bank, match.entry_id, match.hash_type) == ("own", listed[1], "vpdq")
    assert match.listed_percent == 100


async def _decided(broker: KafkaBroker, topic: str, decision: decision_pb2.Decision) -> None:
    admin, producer = broker.admin(), broker.producer()
    await admin.start()
    await admin.create([TopicSpec(topic, 1, {})], 1)
    await admin.stop()
    await producer.start()
    await producer.send([Output(topic, None, decision.generation_id.encode(), decision.SerializeToString())])
    await producer.stop()
