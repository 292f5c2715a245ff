"""Videos against banks that list pictures and videos: one frame is found and named, and both shares are told."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seawall.api.bank.v1 import bank_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Fatal
from seawall.perceptual_hashing import bank_changes, banks
from seawall.perceptual_hashing.bank_entries import Entry
from seawall.perceptual_hashing.bank_store import BankStore
from seawall.perceptual_hashing.findings import MAX_MATCHES
from tests.support import images
from tests.support.bank_entries import card as bank_card
from tests.support.hashing_room import Room
from tests.support.videos import RATE, Pixels, panning, picture, still, video

OK, UNSCANNABLE = signal_pb2.ITEM_STATUS_OK, signal_pb2.ITEM_STATUS_UNSCANNABLE
#: What the bank lists: a second of movement, half a second of rest.
FRAMES = [*panning("rocket", RATE, 8), *still("gravel", RATE // 2)]


@cache
def listed() -> bytes:
    return video(FRAMES)


@cache
def other() -> tuple[Pixels, ...]:
    """Two seconds that nobody lists."""
    return tuple(panning("brick", RATE, 8) + panning("astronaut", RATE, 8))


@pytest.fixture
def room(tmp_path: Path) -> Room:
    room = Room(tmp_path)
    room.list_bank("films", banks.entries_of("film", listed(), "512"))
    return room


def matches(result: signal_pb2.ItemResult, hash_type: str = "vpdq") -> list[signal_pb2.BankMatch]:
    return [match for match in result.matches if match.hash_type == hash_type]


def labels(result: signal_pb2.ItemResult) -> dict[str, float]:
    return {label.label: label.score for label in result.labels}


def test_the_listed_file_itself_matches_whole_and_by_its_digests(room: Room) -> None:
    result = room.score(listed(), "video/mp4")
    assert (result.status, labels(result)) == (OK, {"known_match": 1.0})
    (match,) = matches(result)
    assert (match.bank, match.entry_id, match.distance) == ("films", "film", 0)
    assert (match.query_percent, match.listed_percent) == (100, 100)
    assert {match.hash_type for match in result.matches} == {"vpdq", "sha256", "md5"}


COPIES: dict[str, tuple[Callable[[], bytes], str]] = {
    "in another codec and container": (lambda: video(FRAMES, "libvpx-vp9", "webm"), "original"),
    "smaller": (lambda: video([np.asarray(Image.fromarray(f).resize((256, 192))) for f in FRAMES]), "original"),
    "mirrored": (lambda: video([np.ascontiguousarray(frame[:, ::-1]) for frame in FRAMES]), "mirror"),
    "upside down, poor": (lambda: video([np.ascontiguousarray(f[::-1, ::-1]) for f in FRAMES], qp="40"), "rot180"),
    "within borders": (lambda: video([np.pad(f, ((40, 40), (64, 64), (0, 0))) for f in FRAMES]), "original"),
    "with frames left out": (lambda: video([f for k, f in enumerate(FRAMES) if k % 6]), "original"),
}


@pytest.mark.parametrize("copy", COPIES)
def test_copies_match_nearly_whole(room: Room, copy: str) -> None:
    make, variant = COPIES[copy]
    (match,) = matches(room.score(make()))
    assert match.variant.split("/")[0] == variant
    assert match.query_percent >= 80
    assert match.listed_percent >= 80


def test_a_piece_of_it_in_another_video_is_found_with_both_shares(room: Room) -> None:
    half = FRAMES[: RATE // 2]
    data = video([*other(), *half])
    result = room.score(data)
    (match,) = matches(result)
    frames = len({hash_.picture for hash_ in result.hashes})
    assert frames > 10
    assert 15 <= match.query_percent <= 30
    # Of its frames, those near the end of the piece look like its next ones.
    assert 40 <= match.listed_percent < 100
    assert int(match.variant.split("frame-")[1].split("/")[0]) >= len(other())


def test_a_single_frame_counts_unless_the_bank_asks_for_more(tmp_path: Path) -> None:
    data = video([*other(), FRAMES[-1]])
    entries = banks.entries_of("film", listed(), "512")
    room = Room(tmp_path)
    room.list_bank("films", entries)
    (match,) = matches(room.score(data))
    assert match.variant == f"original/frame-{len(other())}"
    assert 0 < match.query_percent < 5
    room.list_bank("films", entries, min_query_percent=match.query_percent, min_listed_percent=match.listed_percent)
    assert len(matches(room.score(data))) == 1
    for query, share in ((match.query_percent + 1, 0), (0, match.listed_percent + 1)):
        room.list_bank("films", entries, min_query_percent=query, min_listed_percent=share)
        result = room.score(data)
        assert (matches(result), labels(result)) == ([], {"known_match": 0.0})
        (held,) = result.held_matches
        assert (held.entry_id, held.disposition) == ("film", signal_pb2.MATCH_DISPOSITION_PARTIAL)
        assert (held.query_percent, held.listed_percent) == (match.query_percent, match.listed_percent)


def test_a_picture_that_is_a_frame_of_a_listed_video_is_found(room: Room) -> None:
    (match,) = matches(room.score(images.encode(Image.fromarray(FRAMES[-1]), quality=70)))
    assert match.query_percent == 100
    frames = len(banks.entries_of("film", listed(), "512")[0].value) // 32
    assert match.listed_percent == math.ceil(100 / frames)


def test_a_listed_picture_is_found_in_a_video_at_its_frame(room: Room) -> None:
    data = video([*other(), *[picture("coffee")] * 2, *other()])
    (match,) = matches(room.score(data), "pdq")
    # The room's first bank lists the picture itself.
    assert (match.bank, match.entry_id, match.variant) == ("demo", "coffee", f"original/frame-{len(other())}")


def test_other_videos_do_not_match_and_black_frames_say_nothing(room: Room) -> None:
    black = [np.zeros((240, 320, 3), np.uint8)] * RATE
    result = room.score(video([*black, *other()]))
    assert (result.status, labels(result), list(result.held_matches)) == (OK, {"known_match": 0.0}, [])
    with pytest.raises(Fatal, match="no frame of the video says enough"):
        banks.entries_of("black", video(black), "512")


def test_a_match_before_the_damage_counts_though_the_video_is_unscannable(room: Room) -> None:
    data = video(FRAMES, "libx264", "matroska", g="6")
    result = room.score(data[: int(len(data) * 0.7)])
    assert (result.status, result.reason) == (UNSCANNABLE, "TRUNCATED")
    # The header alone shows that it was cut: nothing was decoded.
    assert not result.labels
    broken = bytearray(data)
    at = int(len(data) * 0.7)
    broken[at : at + 400] = bytes(400)
    result = room.score(bytes(broken))
    assert (result.status, result.reason) == (UNSCANNABLE, "CORRUPT")
    assert (len(matches(result)), labels(result)) == (1, {"known_match": 1.0})


def test_what_a_negative_bank_explains_is_no_part_of_the_video(room: Room) -> None:
    """A title that many films share: listed in the film, and as benign."""
    file = images.encode(Image.fromarray(FRAMES[-1]), "PNG")
    title = banks.entries_of("title", file, "512")[0].value
    # As far from the listed frame as a loose match is, and nearer to what is asked for.
    near = (int.from_bytes(title) ^ ((1 << 12) - 1)).to_bytes(32)
    room.list_bank("titles", [Entry("title", "pdq", near)], kind="negative")
    assert len(matches(room.score(file))) == 1, "a near-exact match is never explained away"
    room.list_bank("films", [Entry("film", "vpdq", (int.from_bytes(title) ^ ((1 << 24) - 1)).to_bytes(32))])
    result = room.score(file)
    assert matches(result) == []
    (held,) = [match for match in result.held_matches if match.hash_type == "vpdq"]
    assert (held.contested_by, held.disposition) == ("titles/title", signal_pb2.MATCH_DISPOSITION_SUPPRESSED)
    assert (held.query_percent, held.listed_percent) == (0, 0)


def test_the_hashes_of_a_long_video_are_kept_from_its_whole_length(room: Room) -> None:
    result = room.score(video([*other(), *FRAMES]))
    pictures = [hash_ for hash_ in result.hashes if hash_.hash_type == "pdq_512"]
    places = [int(hash_.picture.removeprefix("frame-") or 0) for hash_ in pictures if "/" not in hash_.picture]
    assert len(pictures) == 16
    assert places[0] == 0
    assert places[-1] >= len(other())
    assert all(len(hash_.turned) == 96 for hash_ in pictures)
    assert result.ByteSize() < 8_000


def test_a_crowd_of_matches_that_do_not_count_hides_none_that_does(room: Room) -> None:
    """A hundred entries nearer, all quarantined, and one further away that is not."""
    file = images.encode(Image.fromarray(FRAMES[-1]), "PNG")
    value = int.from_bytes(banks.entries_of("it", file, "512")[0].value)
    near, far = ((value ^ ((1 << bits) - 1)).to_bytes(32) for bits in (12, 30))
    store = BankStore(room.settings.banks.store)
    held = [
        bank_changes.listed("crowd", f"e{k}", {"pdq": near}, origin="test", state=bank_pb2.ENTRY_STATE_QUARANTINED)
        for k in range(100)
    ]
    store.apply([bank_card("crowd"), *held])
    room.list_bank("films", [Entry("film", "pdq", far)])
    result = room.score(file)
    assert [(match.bank, match.distance) for match in result.matches] == [("films", 30)]
    assert labels(result) == {"known_match": 1.0}
    assert len(result.held_matches) == MAX_MATCHES - 1
    store.close()
