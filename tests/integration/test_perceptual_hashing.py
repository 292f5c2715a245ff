from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from PIL import Image, ImageOps

from seawall.api.generation.v1 import generation_pb2
from seawall.api.perceptual_hashing.v1 import perceptual_hashing_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Fatal, Poison
from seawall.perceptual_hashing import banks, findings, pdq_reference, scorer, stage
from seawall.perceptual_hashing.bank_card import Pipeline
from seawall.perceptual_hashing.bank_entries import Entry
from seawall.perceptual_hashing.bank_store import BankStore
from seawall.perceptual_hashing.reduction import prepare
from seawall.perceptual_hashing.settings import BankSettings, PerceptualHashingSettings
from seawall.runtime.content import ContentStore
from seawall.runtime.settings import ContentSettings
from tests.support import images
from tests.support.bank_entries import card as bank_card
from tests.support.bank_entries import entry as bank_entry
from tests.support.bank_entries import flipped
from tests.support.hashing_room import LISTED, SIZE, UNLISTED, Room, card, original
from tests.support.stages import sent
from tests.support.waiting import wait_for

OK, UNSCANNABLE, ERROR = (
    signal_pb2.ITEM_STATUS_OK,
    signal_pb2.ITEM_STATUS_UNSCANNABLE,
    signal_pb2.ITEM_STATUS_ERROR,
)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def labels(result: signal_pb2.ItemResult) -> dict[str, float]:
    return {label.label: label.score for label in result.labels}


def pdq_match(result: signal_pb2.ItemResult) -> signal_pb2.BankMatch:
    (match,) = [match for match in result.matches if match.hash_type == "pdq"]
    return match


# ---- matches ---------------------------------------------------------------------------------------------------------


def test_the_listed_file_itself_matches_by_every_hash(room: Room) -> None:
    result = room.score(original("coffee"), "image/png")
    assert (result.status, result.reason, labels(result)) == (OK, "", {"known_match": 1.0})
    assert {(m.bank, m.entry_id, m.hash_type, m.distance, m.variant, m.category) for m in result.matches} == {
        ("demo", "coffee", kind, 0, "original", "stand-in of demo") for kind in ("pdq", "sha256", "md5")
    }
    hashes = {found.hash_type: found for found in result.hashes}
    assert hashes["md5"].value == hashlib.md5(original("coffee"), usedforsecurity=False).digest()
    assert hashes["sha256"].value == hashlib.sha256(original("coffee")).digest()
    assert len(hashes["pdq_512"].value) == 32
    assert hashes["pdq_512"].quality >= 50
    assert not result.item_id
    assert not result.nexus


COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "as a poor JPEG": lambda image: images.encode(image, quality=40),
    "as WebP": lambda image: images.encode(image, "WEBP", quality=70),
    "as AVIF": lambda image: images.encode(image, "AVIF"),
    "smaller": lambda image: images.encode(image.resize((450, 345))),
    "three times larger": lambda image: images.encode(image.resize((1800, 1380))),
    "stretched": lambda image: images.encode(image.resize((900, 500))),
    "brighter": lambda image: images.encode(image.point(lambda level: min(255, int(level * 1.2)))),
    "gray": lambda image: images.encode(image.convert("L")),
    "CMYK": lambda image: images.encode(image.convert("CMYK")),
    "256 colours": lambda image: images.encode(image.quantize(256), "PNG"),
    "turned by EXIF alone": lambda image: images.with_exif_orientation(image.rotate(90, expand=True), 6),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("pipeline", ["512", "full"])
def test_edited_copies_match_the_picture_they_were_made_of(tmp_path: Path, pipeline: Pipeline, how: str) -> None:
    room = Room(tmp_path, pipeline)
    for name in LISTED:
        result = room.score(COPIES[how](images.photograph(name, SIZE)))
        match = pdq_match(result)
        assert (match.entry_id, match.variant) == (name, "original")
        assert match.distance <= 31
        assert labels(result) == {"known_match": 1.0}


TURNS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "mirror": ImageOps.mirror,
    "flip": ImageOps.flip,
    "rot90": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "rot180": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "rot270": lambda image: image.transpose(Image.Transpose.ROTATE_270),
    "transpose": lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    "transverse": lambda image: image.transpose(Image.Transpose.TRANSVERSE),
}
#: Named by what turns ours back into the listed one.
BACK = {"rot90": "rot270", "rot270": "rot90"}


@pytest.mark.parametrize("how", TURNS)
def test_turned_and_mirrored_copies_match_and_say_how(room: Room, how: str) -> None:
    result = room.score(images.encode(TURNS[how](images.photograph("chelsea", SIZE))))
    match = pdq_match(result)
    assert (match.entry_id, match.variant) == ("chelsea", BACK.get(how, how))


def test_a_copy_in_a_frame_matches_and_says_so(room: Room) -> None:
    framed = ImageOps.expand(images.photograph("rocket", SIZE), border=(80, 40, 20, 90), fill=(245, 245, 245))
    match = pdq_match(room.score(images.encode(framed)))
    assert (match.entry_id, match.variant) == ("rocket", "original/stripped")


@pytest.mark.parametrize("fmt", ["GIF", "WEBP", "PNG"])
def test_one_listed_frame_of_an_animation_is_enough(room: Room, fmt: str) -> None:
    frames = [images.noise(*SIZE, seed) for seed in range(7)]
    frames[5] = images.photograph("coffee", SIZE)
    result = room.score(images.animation(frames, fmt))
    match = pdq_match(result)
    assert (match.entry_id, match.variant) == ("coffee", "original/frame-5")
    assert labels(result) == {"known_match": 1.0}


def test_a_picture_hidden_in_transparency_is_matched(room: Room) -> None:
    hidden = images.photograph("chelsea", SIZE).convert("RGBA")
    hidden.putalpha(0)
    match = pdq_match(room.score(images.encode(hidden, "PNG")))
    assert (match.entry_id, match.variant) == ("chelsea", "original/alpha-opaque")


def test_a_picture_hidden_behind_a_jpeg_is_matched(room: Room) -> None:
    data = images.encode(images.noise(*SIZE)) + images.encode(images.photograph("chelsea", SIZE))
    assert pdq_match(room.score(data)).variant == "original/frame-1"


def test_other_pictures_do_not_match(room: Room) -> None:
    for name in images.PHOTOGRAPHS:
        if name in LISTED:
            continue
        result = room.score(images.encode(images.photograph(name, SIZE)))
        assert (result.status, labels(result), list(result.matches)) == (OK, {"known_match": 0.0}, [])


def test_a_plain_picture_is_hashed_but_matched_by_its_digests_alone(tmp_path: Path) -> None:
    plain = images.encode(images.plain(300, 200), "PNG")
    room = Room(tmp_path)
    entries = banks.entries_of("plain", plain, "512")
    banks.write(tmp_path / "banks" / "plain", card("plain", "512"), entries)
    room.scorer = scorer.load(room.settings)
    same = room.score(plain)
    assert {match.hash_type for match in same.matches} == {"sha256", "md5"}
    other = room.score(images.encode(images.plain(310, 200), "PNG"))
    assert (other.status, labels(other)) == (OK, {"known_match": 0.0})
    assert {found.hash_type: found.quality for found in other.hashes} == {
        "sha256": 100,
        "md5": 100,
        "sha1": 100,
        "pdq_512": 0,
    }


def test_each_bank_is_matched_by_its_own_pipeline_and_radius(tmp_path: Path) -> None:
    room = Room(tmp_path)
    large = images.photograph("moon", (1400, 1100))
    data = images.encode(large, quality=95)
    for pipeline in ("512", "full"):
        entries = banks.entries_of("moon", data, pipeline)[:1]
        banks.write(tmp_path / "banks" / f"moon-{pipeline}", card(f"moon-{pipeline}", pipeline, radius=4), entries)
    room.scorer = scorer.load(room.settings)
    result = room.score(data)
    assert {(match.bank, match.distance) for match in result.matches} == {("moon-512", 0), ("moon-full", 0)}
    by_type = {found.hash_type: found.value for found in result.hashes}
    assert by_type["pdq"] != by_type["pdq_512"]
    assert by_type["pdq"] == pdq_reference.hash_gray(prepare(np.asarray(_luma(data)), "full"))[0]


def _luma(data: bytes) -> Any:
    from seawall.runtime import decoding

    return decoding.decode_gray(data, min_side=None)


def test_a_picture_listed_a_thousand_times_gives_a_bounded_result(tmp_path: Path) -> None:
    room = Room(tmp_path)
    value = banks.entries_of("x", original("coffee"), "512")[0].value
    banks.write(
        tmp_path / "banks" / "flood", card("flood", "512"), [Entry(f"e{k:04}", "pdq", value) for k in range(1000)]
    )
    room.scorer = scorer.load(room.settings)
    result = room.score(original("coffee"))
    assert len(result.matches) == findings.MAX_MATCHES
    # The nearest first, and always the same ones.
    assert list(result.matches) == list(room.score(original("coffee")).matches)


def test_a_match_that_something_benign_explains_is_held_and_a_change_is_served_without_a_restart(
    tmp_path: Path,
) -> None:
    room = Room(tmp_path)
    data = original(UNLISTED)
    (value,) = (one.value for one in banks.entries_of("x", data, "512") if one.hash_type == "pdq")
    word = np.frombuffer(value, np.uint64)
    store = BankStore(tmp_path / "store")
    try:
        store.apply([bank_card("known"), bank_entry("near", flipped(word, list(range(20))), bank="known")])
        wait_for(lambda: bool(room.score(data).matches))
        (match,) = room.score(data).matches
        assert (match.bank, match.entry_id, match.distance, match.action) == ("known", "near", 20, "report")
        store.apply([bank_card("benign", negative=True), bank_entry("b", word, bank="benign")])
        wait_for(lambda: not room.score(data).matches)
        result = room.score(data)
        (held,) = result.held_matches
        assert (held.entry_id, held.contested_by) == ("near", "benign/b")
        assert held.disposition == signal_pb2.MATCH_DISPOSITION_SUPPRESSED
        assert labels(result) == {"known_match": 0.0}
        artefacts = {one.name: one.sha256 for one in room.scorer.artefacts()}
        assert artefacts == {"demo": room.bank.digest, **store.digests()}
    finally:
        store.close()


# ---- what cannot be read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "UNKNOWN_TYPE"),
        (b"This is not a picture.", "UNKNOWN_TYPE"),
        (original("camera")[:-100], "TRUNCATED"),
        (images.jpeg_claiming(65_500, 65_500), "TOO_MANY_PIXELS"),
        (images.gif_of_frames(10_000), "TOO_MANY_FRAMES"),
        (images.encode(images.noise(64, 64)) + images.zip_of("a", b"a"), "POLYGLOT"),
    ],
    ids=["empty", "text", "truncated", "bomb", "10,000 frames", "polyglot"],
)
def test_what_cannot_be_decoded_is_unscannable_and_still_digested(room: Room, data: bytes, reason: str) -> None:
    result = room.score(data)
    assert (result.status, result.reason) == (UNSCANNABLE, reason)
    assert {found.hash_type for found in result.hashes} == {"sha256", "md5", "sha1"}
    # Nothing is known of its absence from the banks.
    assert not result.labels
    assert not result.matches


def test_a_listed_file_matches_by_its_digest_though_it_cannot_be_decoded(tmp_path: Path) -> None:
    broken = original("coffee")[:-40]
    room = Room(tmp_path)
    digest = hashlib.sha256(broken).digest()
    banks.write(tmp_path / "banks" / "files", card("files", "512"), [Entry("f", "sha256", digest)])
    room.scorer = scorer.load(room.settings)
    result = room.score(broken)
    assert (result.status, result.reason) == (UNSCANNABLE, "TRUNCATED")
    assert [(match.bank, match.entry_id, match.hash_type) for match in result.matches] == [("files", "f", "sha256")]
    assert labels(result) == {"known_match": 1.0}


def test_content_that_cannot_be_had_raises_its_reason(room: Room) -> None:
    item = room.item(original("coffee"))
    item.content.sha256 = hashlib.sha256(b"other").digest()
    with pytest.raises(Poison, match="DIGEST_MISMATCH"):
        room.scorer.score(item)
    item.content.uri = "file:///etc/hostname"
    with pytest.raises(Poison, match="REF_NOT_ALLOWED"):
        room.scorer.score(item)
    item = room.item(original("coffee"))
    item.content.size_bytes = 2**40
    with pytest.raises(Poison, match="TOO_LARGE"):
        room.scorer.score(item)


# ---- the room --------------------------------------------------------------------------------------------------------


def test_threads_get_the_same_results(room: Room) -> None:
    items = [room.item(images.encode(images.photograph(name, SIZE))) for name in images.PHOTOGRAPHS]
    items += [room.item(images.animation([images.noise(80, 80, seed) for seed in range(4)]))]
    alone = [room.scorer.score(item) for item in items]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(room.scorer.score, items)) == alone


def test_the_artefacts_are_the_banks(room: Room) -> None:
    (artefact,) = room.scorer.artefacts()
    assert artefact.kind == signal_pb2.ARTEFACT_KIND_BANK
    assert (artefact.name, artefact.version, artefact.sha256) == ("demo", "1", room.bank.digest)


def test_the_stages_examples_get_their_statuses(room: Room) -> None:
    for example in stage.examples(ContentStore(room.settings.content)):
        items = stage.STAGE.items(example.generation)
        assert [item.item_id for item in items] == list(example.statuses)
        for item, message in zip(items, sent(stage.STAGE, example.generation), strict=True):
            if example.statuses[item.item_id] == ERROR:
                with pytest.raises(Poison):
                    room.scorer.score(message)
            else:
                assert room.scorer.score(message).status == example.statuses[item.item_id]


def test_a_generation_of_text_has_nothing_to_hash() -> None:
    assert stage.STAGE.items(generation_pb2.Generation(generation_id="g", attempt=1)) == []


def test_without_banks_the_room_does_not_load_unless_told_so(tmp_path: Path) -> None:
    content = ContentSettings(allowed_prefixes=[tmp_path.as_uri() + "/"])
    nothing = BankSettings(folder=tmp_path / "none", store=tmp_path / "store")
    with pytest.raises(Fatal, match="NO_BANKS"):
        scorer.load(PerceptualHashingSettings(banks=nothing, content=content))
    allowed = nothing.model_copy(update={"allow_none": True})
    empty = scorer.load(PerceptualHashingSettings(banks=allowed, content=content))
    assert list(empty.artefacts()) == []


# ---- the process -----------------------------------------------------------------------------------------------------


def start(room: Room, port_file: Path) -> subprocess.Popen[str]:
    environment = os.environ | {
        "SEAWALL_BANKS__FOLDER": str(room.settings.banks.folder),
        "SEAWALL_BANKS__STORE": str(room.settings.banks.store),
        "SEAWALL_BANKS__REQUIRED": '["demo"]',
        "SEAWALL_CONTENT__ALLOWED_PREFIXES": f'["{room.content.as_uri()}/"]',
        "SEAWALL_RPC_SERVER__PORT_FILE": str(port_file),
        "SEAWALL_RPC_SERVER__LINGER_SECONDS": "0",
    }
    code = "from seawall.perceptual_hashing.service import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture
def process_room(tmp_path: Path) -> Iterator[tuple[Room, subprocess.Popen[str], Path]]:
    room = Room(tmp_path)
    port_file = tmp_path / "port"
    process = start(room, port_file)
    try:
        yield room, process, port_file
    finally:
        process.kill()
        process.communicate()


def wait_for_port(process: subprocess.Popen[str], port_file: Path) -> int:
    assert process.stdout is not None
    for line in process.stdout:
        # The port file is written before the line is logged.
        if "serving" in line and port_file.exists():
            return int(port_file.read_text())
    raise AssertionError("the service ended before it served")


def test_the_service_answers_each_item_by_its_own_status(
    process_room: tuple[Room, subprocess.Popen[str], Path],
) -> None:
    room, process, port_file = process_room
    port = wait_for_port(process, port_file)
    hostile = [images.png_claiming(65_500, 65_500), images.gif_of_frames(10_000), original(UNLISTED)[:-9], b"text"]
    items = [
        room.item(images.encode(images.photograph("coffee", SIZE)), "image/jpeg"),
        *(room.item(data, "image/png") for data in hostile),
        room.item(images.encode(images.photograph(UNLISTED, (3000, 2400)), "PNG", compress_level=1), "image/png"),
        perceptual_hashing_pb2.HashItem(
            content=generation_pb2.ContentRef(uri="file:///etc/hostname", sha256=b"0" * 32)
        ),
    ]
    for number, item in enumerate(items):
        item.id = 100 + number
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(
            stage.STAGE.method,
            request_serializer=perceptual_hashing_pb2.HashMediaRequest.SerializeToString,
            response_deserializer=perceptual_hashing_pb2.HashMediaResponse.FromString,
        )
        response = call(perceptual_hashing_pb2.HashMediaRequest(items=items), timeout=30)
    replies = {reply.id: reply.result for reply in response.replies}
    assert [replies[100 + number].status for number in range(7)] == [OK, *[UNSCANNABLE] * 4, OK, ERROR]
    assert pdq_match(replies[100]).entry_id == "coffee"
    assert labels(replies[105]) == {"known_match": 0.0}
    assert replies[106].reason == "REF_NOT_ALLOWED"
    assert response.artefacts[0].sha256 == room.bank.digest
    assert psutil.Process(process.pid).memory_info().rss < 400 * 2**20
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0


@pytest.mark.parametrize("fault", ["missing", "changed", "empty", "bad entry"])
def test_a_service_with_a_broken_bank_is_never_ready(tmp_path: Path, fault: str) -> None:
    room = Room(tmp_path)
    folder = tmp_path / "banks" / "demo"
    entries = next(folder.glob("entries-*.csv"))
    if fault == "missing":
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    elif fault == "changed":
        entries.write_bytes(entries.read_bytes()[:-65] + b"\n")
    elif fault == "empty":
        banks.write(folder, card("demo", "512"), [])
    else:
        content = b"entry_id,hash_type,value\na,pdq,abcd\n"
        entries.write_bytes(content)
        text = (folder / "bank.yaml").read_text().splitlines()
        text[-1] = f"  {entries.name}: {hashlib.sha256(content).hexdigest()}"
        (folder / "bank.yaml").write_text("\n".join(text))
    port_file = tmp_path / "port"
    process = start(room, port_file)
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode != 0
    assert not port_file.exists()
    wanted = {
        "missing": "BANK_MISSING",
        "changed": "BANK_DIGEST_MISMATCH",
        "empty": "EMPTY_BANK",
        "bad entry": "line 2: a pdq value has 64 hex digits",
    }
    assert wanted[fault] in output
    assert '"serving"' not in output
