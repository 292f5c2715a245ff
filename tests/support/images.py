"""Benign pictures (scikit-image's photographs, noise, shapes) and hostile files, all made here."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from skimage import data

Gray = npt.NDArray[np.uint8]

#: Photographs inside the scikit-image wheel: nothing is downloaded.
PHOTOGRAPHS = ("astronaut", "camera", "coffee", "chelsea", "rocket", "moon", "coins", "page", "brick", "gravel")


@cache
def photograph(name: str, size: tuple[int, int] | None = None) -> Image.Image:
    """A photograph in RGB, resized to (width, height). Shared: do not draw on it."""
    image = Image.fromarray(getattr(data, name)()).convert("RGB")
    return image.resize(size, Image.Resampling.LANCZOS) if size else image


def gray(name: str, size: tuple[int, int] | None = None) -> Gray:
    """A photograph's luma, (h, w)."""
    return np.asarray(photograph(name, size).convert("L"))


def noise(width: int, height: int, seed: int = 1) -> Image.Image:
    """Smooth random blotches: a picture with a PDQ quality of 100 that is like no other."""
    small = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def plain(width: int, height: int, colour: tuple[int, int, int] = (90, 120, 150)) -> Image.Image:
    """One colour."""
    return Image.new("RGB", (width, height), colour)


def encode(image: Image.Image, fmt: str = "JPEG", **options: Any) -> bytes:
    """The file's bytes, by Pillow."""
    out = io.BytesIO()
    if fmt == "JPEG":
        options.setdefault("quality", 90)
    image.save(out, fmt, **options)
    return out.getvalue()


def animation(frames: Sequence[Image.Image], fmt: str = "GIF") -> bytes:
    """An animation, lossless where the format can."""
    options: dict[str, Any] = {"lossless": True} if fmt == "WEBP" else {}
    return encode(frames[0], fmt, save_all=True, append_images=list(frames[1:]), duration=40, loop=0, **options)


# ---- hostile files ---------------------------------------------------------------------------------------------------


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes that claims any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(bytes(4096)))
        + png_chunk(b"IEND", b"")
    )


def jpeg_claiming(width: int, height: int) -> bytes:
    """A small JPEG whose header claims any size up to 65,535."""
    file = encode(plain(64, 64))
    at = file.index(b"\xff\xc0") + 5
    return file[:at] + struct.pack(">HH", height, width) + file[at + 4 :]


def gif_claiming(width: int, height: int) -> bytes:
    """A GIF whose screen is small and whose frame is not."""
    return (
        b"GIF89a"
        + struct.pack("<HH", 8, 8)
        + bytes(3)
        + b","
        + bytes(4)
        + struct.pack("<HH", width, height)
        + (b"\0\x02\x02\x4c\x01\0\x3b")
    )


def webp_claiming(width: int, height: int) -> bytes:
    """A WebP whose canvas claims any size up to 2**24."""
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4)
    body += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little") + bytes(16)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif_of_frames(count: int, side: int = 1) -> bytes:
    """A GIF of one-pixel frames on a square canvas: 10,000 of them fit 200 kB."""
    frame = b"\x2c" + bytes(4) + b"\x01\0\x01\0\0" + b"\x02\x02\x44\x01\0"
    canvas = struct.pack("<HH", side, side)
    return b"GIF89a" + canvas + b"\x80\0\0\0\0\0\xff\xff\xff" + frame * count + b"\x3b"


def jpeg_of_scans(count: int) -> bytes:
    """A progressive JPEG whose last pass is repeated."""
    file = encode(noise(64, 64), progressive=True)
    last = file.rindex(b"\xff\xda")
    return file[:last] + file[last:-2] * count + file[-2:]


def zip_of(name: str, content: bytes) -> bytes:
    """An archive of one file."""
    import zipfile

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, content)
    return out.getvalue()


def with_exif_orientation(image: Image.Image, orientation: int, fmt: str = "JPEG", **options: Any) -> bytes:
    """The file, its EXIF saying how it must be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, fmt, exif=exif.tobytes(), **options)
