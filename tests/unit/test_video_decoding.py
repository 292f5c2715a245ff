"""Videos: what is given of them, and that nothing in them is passed over in silence."""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from seawall.runtime.decoding import DecodingSettings, Frame, Reason, Unscannable, inspect, iterate_frames
from seawall.runtime.decoding.frames import decode_frames
from seawall.runtime.decoding.isolated import IsolatedDecoder
from tests.support import videos
from tests.support.videos import RATE, panning, picture, still, video

#: A second of one picture, one frame of another, and a second of the first.
ODD = RATE
CAT, COFFEE = "chelsea", "coffee"
HIDDEN = [*still(CAT, RATE), picture(COFFEE), *still(CAT, RATE)]


@pytest.fixture(scope="module")
def hidden() -> bytes:
    return video(HIDDEN)


def given(data: bytes, mode: Any = "gray", min_side: int | None = None, **limits: Any) -> list[Frame]:
    return list(iterate_frames(data, mode, min_side, limits=DecodingSettings(**limits)))


def numbers(data: bytes) -> list[int]:
    return [frame.number for frame in given(data)]


def refused(data: bytes, declared: str = "", **limits: Any) -> Reason:
    with pytest.raises(Unscannable) as caught:
        list(iterate_frames(data, "gray", declared=declared, limits=DecodingSettings(**limits)))
    return Reason(caught.value.reason)


def apart(pixels: Any, other: Any) -> float:
    return float(np.abs(pixels.astype(int) - other.astype(int)).mean())


def luma(name: str) -> Any:
    return (picture(name) @ [0.299, 0.587, 0.114]).astype(np.uint8)


def patched(data: bytes, box: bytes, at: int, content: bytes) -> bytes:
    """Every box of a kind with other bytes at an offset of its content."""
    out, place = bytearray(data), data.find(box)
    assert place >= 0
    while place >= 0:
        out[place + 4 + at : place + 4 + at + len(content)] = content
        place = data.find(box, place + 4)
    return bytes(out)


# ---- what is given -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "container", "kind"),
    [
        ("libx264", "mp4", "mp4"),
        ("libx265", "mp4", "mp4"),
        ("libsvtav1", "mp4", "mp4"),
        ("mpeg4", "mov", "mp4"),
        ("libvpx", "webm", "matroska"),
        ("libvpx-vp9", "webm", "matroska"),
        ("libx264", "matroska", "matroska"),
    ],
)
def test_a_single_frame_is_found_in_every_container_and_codec(codec: str, container: str, kind: str) -> None:
    data = video(HIDDEN, codec, container)
    info = inspect(data)
    assert (info.type, info.width, info.height, info.frames) == (kind, *videos.SIZE, len(HIDDEN))
    assert round(info.seconds) == 2
    found = {frame.number: frame.pixels for frame in given(data)}
    assert apart(found[ODD], luma(COFFEE)) < 8
    assert all(apart(pixels, luma(CAT)) < 8 for number, pixels in found.items() if number != ODD)
    colours = {frame.number: frame.pixels for frame in decode_frames(data, "rgb", 2)}
    assert apart(colours[ODD], picture(COFFEE)) < 12


def test_of_what_does_not_move_one_frame_of_thirty_is_given_at_places_of_the_files_own() -> None:
    one, other = (video(still(name, 6 * 30)) for name in (CAT, COFFEE))
    assert {number // 30 for number in numbers(one)} == set(range(6))
    # Whatever times the file claims: here each frame is shown at once.
    assert {number // 30 for number in numbers(videos.repeated(picture(CAT), 90, step=0))} == set(range(3))
    assert numbers(one) == numbers(one)
    assert numbers(one) != numbers(other)
    # One byte of the file is enough to move them.
    assert numbers(patched(one, b"mvhd", 4, b"\0\0\0\1")) != numbers(one)


def test_movement_that_adds_up_is_given() -> None:
    end = 2 * RATE
    fade = [(picture(CAT) * (1 - k / end) + picture(COFFEE) * (k / end)).astype(np.uint8) for k in range(end + 1)]
    frames = given(video(fade))
    assert len(frames) > 6
    assert apart(frames[-1].pixels, luma(COFFEE)) < 12
    assert len(numbers(video(panning(CAT, RATE)))) == RATE


def test_colours_alone_make_another_frame_for_whoever_sees_colours() -> None:
    red, blue = np.full((240, 320, 3), (200, 60, 60), np.uint8), np.full((240, 320, 3), (75, 90, 210), np.uint8)
    data = video([*[red] * 12, blue, *[red] * 12])
    assert 12 in [frame.number for frame in given(data, "rgb")]


def test_a_second_track_and_what_an_edit_list_leaves_out_are_given(hidden: bytes) -> None:
    two = videos.tracks([still(CAT, 12), still(COFFEE, 12)])
    assert {apart(frame.pixels, luma(COFFEE)) < 8 for frame in given(two)} == {True, False}
    # The edit begins behind the odd frame: a player that honours it never shows that.
    scale = 12_288
    edited = patched(hidden, b"elst", 12, struct.pack(">I", scale * 30 // RATE))
    assert edited != hidden
    assert ODD in numbers(edited)


def test_frames_are_upright_and_no_larger_than_is_of_use() -> None:
    data = video(videos.still(CAT, 6))
    # A quarter turn, as telephones write it: the matrix of the track's header.
    quarter = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 240 << 16, 0, 0x40000000)
    turned = given(patched(data, b"tkhd", 40, quarter))[0].pixels
    assert turned.shape == (320, 240)
    assert apart(turned, np.rot90(luma(CAT), -1)) < 8
    assert given(data, "rgb", 80)[0].pixels.shape == (80, 106, 3)
    assert given(data, "rgb", 121)[0].pixels.shape == (240, 320, 3)


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_what_a_header_claims_is_held_against_the_caps_before_anything_is_decoded(hidden: bytes) -> None:
    for limits, reason in (
        ({"max_video_seconds": 2.0}, Reason.TOO_LONG),
        ({"max_video_frames": 48}, Reason.TOO_MANY_FRAMES),
        ({"max_video_pixels": 320 * 240 - 1}, Reason.TOO_MANY_PIXELS),
        ({"max_side": 319}, Reason.TOO_MANY_PIXELS),
        ({"max_bytes": len(hidden) - 1}, Reason.TOO_LARGE),
    ):
        with pytest.raises(Unscannable) as caught:
            inspect(hidden, limits=DecodingSettings(**limits))
        assert caught.value.reason == reason


def test_a_header_that_claims_less_does_not_get_past_them(hidden: bytes) -> None:
    modest = hidden
    for box, at in ((b"mvhd", 16), (b"mdhd", 16)):
        modest = patched(modest, box, at, bytes(4))
    assert inspect(modest).seconds == 0
    assert refused(modest, max_video_seconds=1.0) is Reason.TOO_LONG
    # The frames of fragments are not counted before they are decoded.
    fragments = videos.video(HIDDEN, movflags="frag_keyframe+empty_moov")
    assert inspect(fragments).frames == 1
    assert refused(fragments, max_video_frames=48) is Reason.TOO_MANY_FRAMES
    # The coded size is the decoder's to check.
    small = patched(hidden, b"avc1", 24, struct.pack(">HH", 32, 24))
    assert inspect(small).width == 32
    assert refused(small, max_video_pixels=32 * 24) in (Reason.CORRUPT, Reason.TOO_MANY_PIXELS)


@pytest.mark.parametrize("container", ["mp4", "matroska", "webm"])
def test_a_cut_file_is_never_clean(container: str) -> None:
    data = video(HIDDEN, "libvpx" if container == "webm" else "libx264", container)
    for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999):
        assert refused(data[: int(len(data) * share)]) in (Reason.TRUNCATED, Reason.CORRUPT)


def test_damage_in_the_frames_is_never_clean(hidden: bytes) -> None:
    begin = hidden.index(b"mdat") + 4
    for place in range(begin + 2_000, begin + 20_000, 3_000):
        assert refused(hidden[:place] + b"\xff" * 64 + hidden[place + 64 :]) in (Reason.CORRUPT, Reason.TRUNCATED)


def test_a_recording_that_does_not_say_where_its_clusters_end_is_read_whole_or_refused() -> None:
    """As browsers record: clusters without a length, which FFmpeg leaves when it meets what it does not know."""
    recording = bytearray(video(HIDDEN, "libvpx", "webm", cluster_time_limit="500"))
    places = [found.end() for found in re.finditer(rb"\x1f\x43\xb6\x75", recording)]
    assert len(places) >= 4
    for at in places:
        length = 9 - recording[at].bit_length()
        recording[at : at + length] = ((1 << 7 * length + 1) - 1).to_bytes(length)
    data = bytes(recording)
    assert (inspect(data).frames, ODD in numbers(data)) == (len(HIDDEN), True)
    # A block that a reader may take or leave: its track's number damaged.
    block = data.index(b"\xa3", data.rindex(b"\x1f\x43\xb6\x75"))
    assert refused(data[: block + 1] + b"\xff" + data[block + 2 :]) in (Reason.CORRUPT, Reason.TRUNCATED)


HOSTILE: dict[str, tuple[Callable[[], bytes], set[Reason]]] = {
    "another codec": (lambda: video(still(CAT, 3), "mpeg2video", "matroska"), {Reason.UNKNOWN_CODEC}),
    "sound alone": (videos.sound, {Reason.CORRUPT}),
    "an archive at its end": (
        lambda: video(still(CAT, 3)) + b"PK\5\6" + bytes(18),
        {Reason.POLYGLOT, Reason.CORRUPT, Reason.TRUNCATED},
    ),
    "two indexes": (lambda: (data := video(still(CAT, 3))) + data[data.index(b"moov") - 4 :], {Reason.CORRUPT}),
    "a playlist": (lambda: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", {Reason.UNKNOWN_TYPE}),
    "an AVI": (lambda: video(still(CAT, 3), "mpeg4", "avi"), {Reason.UNKNOWN_TYPE}),
    "EBML that is no video": (lambda: b"\x1a\x45\xdf\xa3\x84\x42\x82\x81x", {Reason.CORRUPT}),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_not_on_the_allow_list_is_refused(case: str) -> None:
    make, reasons = HOSTILE[case]
    assert refused(make()) in reasons


def test_the_declared_type_must_name_a_video(hidden: bytes) -> None:
    assert refused(hidden, "image/png") is Reason.TYPE_MISMATCH
    for declared in ("video/mp4", "VIDEO/quicktime", "application/octet-stream", ""):
        assert list(iterate_frames(hidden, "gray", declared=declared))


def test_headers_of_any_bytes_are_read_or_refused(hidden: bytes) -> None:
    random = np.random.default_rng(3)
    for data in (hidden, video(still(CAT, 3), "libvpx", "webm")):
        head = data.find(b"moov") if b"moov" in data else 0
        for _ in range(400):
            broken = bytearray(data)
            for _ in range(int(random.integers(1, 8))):
                broken[head + int(random.integers(0, min(600, len(data) - head)))] = int(random.integers(256))
            try:
                inspect(bytes(broken))
            except Unscannable:
                continue


def test_without_the_extra_a_video_is_unscannable_and_the_reason_names_it(
    hidden: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(Unscannable, match=r"seawall\[video\]") as caught:
        list(iterate_frames(hidden, "gray"))
    assert caught.value.reason == Reason.VIDEO_EXTRA_MISSING


# ---- in workers ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def isolated() -> Iterator[IsolatedDecoder]:
    decoder = IsolatedDecoder(DecodingSettings(cpu_seconds=1, max_bytes=64 * 1024 * 1024), 1)
    yield decoder
    decoder.close()


def test_a_worker_gives_what_this_process_gives(isolated: IsolatedDecoder, hidden: bytes) -> None:
    ours = given(hidden, "rgb", 100)
    theirs = [(frame.number, frame.pixels.copy()) for frame in isolated.frames(hidden, "rgb", 100)]
    assert [number for number, _ in theirs] == [frame.number for frame in ours]
    assert all(np.array_equal(frame.pixels, pixels) for frame, (_, pixels) in zip(ours, theirs, strict=True))


def test_a_video_that_costs_too_much_costs_its_worker_and_no_other_file(
    isolated: IsolatedDecoder, hidden: bytes
) -> None:
    large = videos.repeated(picture(CAT, (3840, 2160)), 1200)
    pids = isolated.pids
    with pytest.raises(Unscannable) as caught:
        list(isolated.frames(large, "gray", 512))
    assert caught.value.reason == Reason.TOO_SLOW
    assert isolated.pids != pids
    assert ODD in [frame.number for frame in isolated.frames(hidden, "gray", 512)]
