from __future__ import annotations

import gc
import random
import struct
import threading
import tracemalloc
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from seawall.runtime import decoding
from seawall.runtime.decoding import DecodingSettings, Reason, Unscannable
from tests.support import images

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF")


def reason_of(data: bytes, **options: Any) -> Reason:
    """Every entry point must refuse the file, and for the same reason."""
    reasons = set()
    calls = (
        lambda: decoding.decode_gray(data, **options),
        lambda: decoding.decode_rgb(data, **options),
        lambda: decoding.decode_frames(data, "gray", **options),
        lambda: list(decoding.iterate_frames(data, "rgb", **options)),
    )
    for call in calls:
        with pytest.raises(Unscannable) as raised:
            call()
        reasons.add(raised.value.reason)
    assert len(reasons) == 1, reasons
    return Reason(reasons.pop())


def near(a: Any, b: Any, levels: float = 3.0) -> bool:
    """Mean difference in levels; coding is lossy."""
    return a.shape == b.shape and float(np.abs(a.astype(int) - b.astype(int)).mean()) <= levels


# ---- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_allowed_format_is_inspected_and_decoded(fmt: str) -> None:
    picture = images.photograph("coffee", (120, 80))
    data = images.encode(picture, fmt)
    info = decoding.inspect(data)
    assert (info.type, info.width, info.height, info.frames) == (fmt.lower(), 120, 80, 1)
    assert near(decoding.decode_rgb(data), np.asarray(picture), 8)
    assert near(decoding.decode_gray(data), np.asarray(picture.convert("L")), 8)
    (frame,) = decoding.decode_frames(data)
    assert (frame.number, frame.view, frame.pixels.shape) == (0, "white", (80, 120, 3))


def test_jpegs_are_scaled_while_they_are_decoded_but_never_below_the_side_asked_for() -> None:
    data = images.encode(images.photograph("astronaut", (2048, 1536)))
    assert decoding.decode_gray(data, min_side=512).shape == (576, 768)
    assert (
        decoding.decode_rgb(data, min_side=224).shape == (384, 512, 3)
        or min(decoding.decode_rgb(data, min_side=224).shape[:2]) >= 224
    )
    assert decoding.decode_gray(data, min_side=None).shape == (1536, 2048)
    # One short side keeps the whole picture.
    wide = images.encode(images.photograph("coffee", (2000, 300)))
    assert decoding.decode_gray(wide, min_side=512).shape == (300, 2000)


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright_by_their_exif(fmt: str, orientation: int) -> None:
    picture = images.photograph("chelsea", (90, 60))
    data = images.with_exif_orientation(picture, orientation, fmt, **({"lossless": True} if fmt == "WEBP" else {}))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.getexif()[0x0112] = orientation
    expected = ImageOps.exif_transpose(picture)
    del picture.getexif()[0x0112]
    assert near(decoding.decode_rgb(data), np.asarray(expected), 6)
    (frame,) = decoding.decode_frames(data)
    assert np.array_equal(frame.pixels, decoding.decode_rgb(data))


@pytest.mark.parametrize("broken", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff" + bytes(20)])
def test_a_broken_exif_block_leaves_the_picture_as_it_is(broken: bytes) -> None:
    data = images.encode(images.photograph("chelsea", (90, 60)))
    app1 = b"\xff\xe1" + struct.pack(">H", 8 + len(broken)) + b"Exif\0\0" + broken
    assert np.array_equal(decoding.decode_gray(data[:2] + app1 + data[2:]), decoding.decode_gray(data))


def test_sixteen_bits_become_their_high_byte() -> None:
    deep = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
    data = images.encode(Image.fromarray(deep), "PNG")
    assert np.array_equal(decoding.decode_gray(data), (deep >> 8).astype(np.uint8))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "PA"])
def test_every_mode_of_png_is_defined(mode: str) -> None:
    picture = images.photograph("coffee", (64, 48))
    source = picture.convert("P").convert("PA") if mode == "PA" else picture.convert(mode)
    if mode == "PA":
        source = picture.convert("P")
        source.info["transparency"] = 0
    data = images.encode(source, "PNG")
    assert decoding.decode_gray(data).shape == (48, 64)
    assert decoding.decode_rgb(data).shape == (48, 64, 3)


def test_cmyk_jpegs_look_as_they_did() -> None:
    picture = images.photograph("coffee", (160, 120))
    data = images.encode(picture.convert("CMYK"), quality=95)
    assert near(decoding.decode_rgb(data), np.asarray(picture), 6)
    assert near(decoding.decode_gray(data), np.asarray(picture.convert("L")), 6)


def test_alpha_lies_over_white_and_nothing_hides_below_it() -> None:
    # White strokes on a transparent ground: invisible over white, plain to see over black.
    hidden = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    hidden.paste((255, 255, 255, 255), (16, 16, 48, 48))
    data = images.encode(hidden, "PNG")
    assert (decoding.decode_rgb(data) == 255).all()
    found = {frame.view: frame.pixels for frame in decoding.decode_frames(data, "gray")}
    assert set(found) == {"white", "black"}
    assert found["black"][32, 32] == 255
    assert found["black"][0, 0] == 0
    # A picture below full transparency: only dropping the alpha shows it.
    below = images.photograph("chelsea", (64, 64)).convert("RGBA")
    below.putalpha(0)
    views = {frame.view: frame.pixels for frame in decoding.decode_frames(images.encode(below, "PNG"))}
    assert near(views["opaque"], np.asarray(images.photograph("chelsea", (64, 64))), 0)


# ---- animations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", ["GIF", "WEBP", "PNG", "AVIF"])
def test_the_frame_that_differs_is_found_wherever_it_stands(fmt: str) -> None:
    odd, common = images.photograph("chelsea", (64, 64)), images.plain(64, 64)
    data = b""
    for place in (1, 11, 23):
        # Each common frame a little different, or encoders would merge them.
        frames = [images.plain(64, 64, (90 + k, 120, 150)) for k in range(24)]
        frames[place] = odd
        data = images.animation(frames, fmt)
        chosen = decoding.decode_frames(data, max_frames=3)
        assert len(chosen) == 3
        assert min(np.abs(frame.pixels.astype(int) - np.asarray(odd)).mean() for frame in chosen) < 12
        assert not near(chosen[0].pixels, np.asarray(odd), 12)
    assert near(decoding.decode_rgb(data), np.asarray(common), 12)


def test_every_frame_is_seen_and_repeats_are_left_out() -> None:
    different = [images.noise(48, 48, seed) for seed in range(5)]
    data = images.animation([different[0], different[1], different[2], different[3], different[4]])
    assert [frame.number for frame in decoding.iterate_frames(data, "gray")] == [0, 1, 2, 3, 4]
    same = images.animation([different[0], different[0].copy(), different[1]], "WEBP")
    assert len(list(decoding.iterate_frames(same, "gray"))) == 2


def test_previews_behind_a_jpeg_are_frames_of_their_own() -> None:
    main, hidden = images.photograph("coffee", (200, 120)), images.photograph("chelsea", (90, 60))
    data = images.encode(main) + bytes(16) + images.encode(hidden)
    frames = decoding.decode_frames(data, "rgb")
    assert [frame.pixels.shape for frame in frames] == [(120, 200, 3), (60, 90, 3)]
    assert near(frames[1].pixels, np.asarray(hidden), 6)


def test_ten_thousand_frames_are_refused() -> None:
    assert reason_of(images.gif_of_frames(10_000)) is Reason.TOO_MANY_FRAMES
    assert decoding.inspect(images.gif_of_frames(3)).frames == 3


def test_frames_are_also_capped_by_their_pixels_together() -> None:
    data = images.animation([images.noise(64, 64, seed) for seed in range(6)])
    assert reason_of(data, limits=DecodingSettings(max_total_pixels=5 * 64 * 64)) is Reason.TOO_MANY_FRAMES
    assert len(decoding.decode_frames(data, limits=DecodingSettings(max_total_pixels=6 * 64 * 64))) == 6


# ---- hostile files ---------------------------------------------------------------------------------------------------

BOMBS = {
    "jpeg": images.jpeg_claiming(65_500, 65_500),
    "png": images.png_claiming(65_500, 65_500),
    "png of two billion a side": images.png_claiming(2**31 - 1, 2**31 - 1),
    "gif": images.gif_claiming(65_500, 65_500),
    "webp": images.webp_claiming(16_384, 16_384),
    "a long strip": images.png_claiming(2_000_000, 1),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_by_their_header_alone(name: str) -> None:
    gc.collect()
    tracemalloc.start()
    try:
        assert reason_of(BOMBS[name]) is Reason.TOO_MANY_PIXELS
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("fmt", FORMATS)
def test_truncated_files_are_never_clean(fmt: str) -> None:
    data = images.encode(images.photograph("coins", (200, 150)), fmt)
    for size in range(40, len(data) - 1, max(1, len(data) // 40)):
        assert reason_of(data[:size]) in (Reason.TRUNCATED, Reason.CORRUPT), size
    assert reason_of(data[: len(data) // 2]) is Reason.TRUNCATED


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"This is not a picture.",
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b"BM" + bytes(100),
        b"II*\0" + bytes(100),
        b"%!PS-Adobe-3.0 EPSF-3.0",
        b"RIFF\x10\0\0\0WAVEfmt ",
        b"\0\0\0\x18ftypheic" + bytes(40),
        random.Random(1).randbytes(4096),
    ],
)
def test_what_is_not_on_the_allow_list_is_unknown(data: bytes) -> None:
    assert reason_of(data) is Reason.UNKNOWN_TYPE


def test_a_declared_video_or_document_whose_bytes_are_a_picture_is_refused() -> None:
    data = images.encode(images.noise(64, 64), "PNG")
    assert reason_of(data, declared="video/mp4") is Reason.TYPE_MISMATCH
    # Which picture is said does not matter: viewers go by the bytes too.
    for declared in ("image/jpeg", "IMAGE/PNG", "application/octet-stream", ""):
        assert decoding.decode_gray(data, declared=declared).shape == (64, 64)


def test_too_many_bytes_are_refused_before_anything_else() -> None:
    data = images.encode(images.noise(64, 64), "PNG")
    assert reason_of(data, limits=DecodingSettings(max_bytes=len(data) - 1)) is Reason.TOO_LARGE
    assert decoding.decode_gray(data, limits=DecodingSettings(max_bytes=len(data))).shape == (64, 64)


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "GIF", "WEBP"])
def test_archives_and_documents_inside_a_picture_are_refused(fmt: str) -> None:
    data = images.encode(images.noise(64, 64), fmt)
    assert reason_of(data + images.zip_of("notes.txt", b"notes")) is Reason.POLYGLOT
    assert reason_of(data + b"%PDF-1.7\n") is Reason.POLYGLOT
    assert reason_of(data + bytes(24) + b"\0\0\0\x18ftypmp42") is Reason.POLYGLOT
    if fmt != "JPEG":
        assert reason_of(data + images.encode(images.noise(64, 64, 2))) is Reason.POLYGLOT
    # A few stray bytes hide nothing.
    assert decoding.decode_gray(data + bytes(100)).shape == (64, 64)


def test_an_archive_inside_a_comment_is_found_too() -> None:
    archive = images.zip_of("notes.txt", b"notes")
    data = images.encode(images.noise(64, 64))
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(archive)) + archive
    # The end record's comment length is made to reach the file's end, as an archive program would.
    whole = data[:2] + comment + data[2:]
    at = whole.rindex(b"PK\x05\x06") + 20
    length = len(whole) - at - 2
    whole = whole[:at] + struct.pack("<H", length) + whole[at + 2 :]
    assert reason_of(whole) is Reason.POLYGLOT


def test_a_jpeg_of_a_thousand_passes_is_refused() -> None:
    assert reason_of(images.jpeg_of_scans(1000)) is Reason.TOO_MANY_SCANS
    assert decoding.decode_gray(images.encode(images.noise(64, 64), progressive=True)).shape == (64, 64)


def test_line_by_line_jpegs_may_be_larger_than_what_must_be_held_whole() -> None:
    limits = DecodingSettings(max_pixels=100 * 100, max_jpeg_pixels=200 * 200)
    picture = images.noise(200, 200)
    assert decoding.decode_gray(images.encode(picture), limits=limits).shape == (200, 200)
    assert reason_of(images.encode(picture, progressive=True), limits=limits) is Reason.TOO_MANY_PIXELS
    assert reason_of(images.encode(picture, "PNG"), limits=limits) is Reason.TOO_MANY_PIXELS
    assert reason_of(images.encode(images.noise(201, 200)), limits=limits) is Reason.TOO_MANY_PIXELS
    assert reason_of(images.encode(picture), limits=DecodingSettings(max_side=199)) is Reason.TOO_MANY_PIXELS


def test_files_that_contradict_themselves_are_corrupt() -> None:
    jpeg = images.encode(images.noise(200, 200))
    frame = jpeg[jpeg.index(b"\xff\xc0") : jpeg.index(b"\xff\xc0") + 19]
    assert reason_of(jpeg[:2] + frame + jpeg[2:]) is Reason.CORRUPT
    assert reason_of(jpeg[:20] + b"\0\0" + jpeg[20:]) is Reason.CORRUPT
    flipped = bytearray(jpeg)
    flipped[len(jpeg) // 2 : len(jpeg) // 2 + 60] = b"\xff\xd0" * 30
    assert reason_of(bytes(flipped)) is Reason.CORRUPT
    png = images.encode(images.noise(64, 64), "PNG")
    twice = png[:33] + images.png_chunk(b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)) + png[33:]
    assert reason_of(twice) is Reason.CORRUPT
    damaged = bytearray(png)
    damaged[60] ^= 0xFF
    assert reason_of(bytes(damaged)) in (Reason.CORRUPT, Reason.TRUNCATED)


def test_random_damage_is_refused_or_decoded_but_never_raises_anything_else() -> None:
    rng = random.Random(7)
    for fmt in FORMATS:
        data = images.encode(images.noise(48, 48), fmt)
        for _ in range(150):
            damaged = bytearray(data)
            for _ in range(rng.randint(1, 6)):
                damaged[rng.randrange(4, len(damaged))] = rng.randrange(256)
            try:
                for frame in decoding.iterate_frames(bytes(damaged), "gray", limits=DecodingSettings(max_pixels=10**6)):
                    assert frame.pixels.ndim == 2
            except Unscannable as error:
                assert error.reason in set(Reason)


def test_no_error_repeats_the_file() -> None:
    secret = b"a telling name"
    data = images.encode(images.noise(64, 64), "PNG")[:-30] + secret
    with pytest.raises(Unscannable) as raised:
        decoding.decode_gray(data)
    assert secret.decode() not in str(raised.value)
    assert raised.value.__cause__ is None


def test_threads_decode_large_and_small_pictures_together() -> None:
    large = images.encode(images.photograph("coffee", (2600, 1800)), "PNG", compress_level=1)
    small = images.encode(images.photograph("coffee", (260, 180)), "PNG")
    shapes: list[tuple[int, ...]] = []

    def work() -> None:
        for data in (large, small, large):
            shapes.append(decoding.decode_gray(data).shape)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(shapes) == sorted([(1800, 2600), (180, 260), (1800, 2600)] * 3)
