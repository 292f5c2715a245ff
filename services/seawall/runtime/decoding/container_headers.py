"""The headers of PNG, GIF, WebP and AVIF: size, frames and end, by walking the container without decoding it."""

from __future__ import annotations

import struct

from seawall.runtime.decoding.image_info import ImageInfo
from seawall.runtime.decoding.limits import DecodingSettings
from seawall.runtime.decoding.unscannable import Reason, Unscannable, corrupt, truncated


def png(data: bytes, limits: DecodingSettings) -> ImageInfo:
    """PNG and APNG (W3C PNG, third edition): IHDR first, acTL's frames, up to IEND."""
    if data[8:16] != b"\0\0\0\rIHDR":
        raise truncated("the PNG's header") if len(data) < 33 else corrupt("the PNG does not begin with IHDR")
    if len(data) < 33:
        raise truncated("the PNG's header")
    width, height = struct.unpack_from(">II", data, 16)
    frames, offset = 1, 33
    # Each chunk takes 12 bytes or more, so the walk ends; limits.max_bytes bounds it.
    while offset + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, offset)
        kind = data[offset + 4 : offset + 8]
        if kind == b"IHDR":
            raise corrupt("the PNG gives its size twice")
        if kind == b"acTL" and length >= 8 and offset + 16 <= len(data):
            (frames,) = struct.unpack_from(">I", data, offset + 8)
        offset += 12 + length
        if kind == b"IEND":
            if offset > len(data):
                break
            return ImageInfo("png", width, height, max(1, frames), end=offset)
    raise truncated("the PNG's chunks")


def gif(data: bytes, limits: DecodingSettings) -> ImageInfo:
    """GIF 87a and 89a: every frame's rectangle, counted up to the limit of frames."""
    if len(data) < 13:
        raise truncated("the GIF's header")
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    offset = 13 + _colours(flags)
    frames = 0
    while offset < len(data):
        block = data[offset]
        if block == 0x3B:
            if not frames:
                raise corrupt("the GIF has no picture")
            return ImageInfo("gif", width, height, frames, end=offset + 1)
        if block == 0x21:
            offset = _sub_blocks(data, offset + 2)
        elif block == 0x2C:
            if offset + 10 > len(data):
                break
            left, top, w, h, flags = struct.unpack_from("<HHHHB", data, offset + 1)
            # Decoders grow the canvas to hold a frame that leaves it.
            width, height = max(width, left + w), max(height, top + h)
            frames += 1
            if frames > limits.max_frames:
                raise too_many_frames(limits)
            offset = _sub_blocks(data, offset + 10 + _colours(flags) + 1)
        else:
            raise corrupt("the GIF has an unknown block")
    raise truncated("the GIF's blocks")


def _colours(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _sub_blocks(data: bytes, offset: int) -> int:
    while offset < len(data):
        size = data[offset]
        offset += 1 + size
        if not size:
            return offset
    raise truncated("the GIF's blocks")


def webp(data: bytes, limits: DecodingSettings) -> ImageInfo:
    """WebP (RFC 9649): VP8, VP8L or VP8X with its frames."""
    if len(data) < 30:
        raise truncated("the WebP's header")
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise truncated("the WebP's chunks")
    kind, body = data[12:16], 20
    if kind == b"VP8X":
        width = 1 + int.from_bytes(data[body + 4 : body + 7], "little")
        height = 1 + int.from_bytes(data[body + 7 : body + 10], "little")
        frames = _webp_frames(data, end, limits) if data[body] & 0x02 else 1
        return ImageInfo("webp", width, height, frames, end=end)
    if kind == b"VP8L":
        bits = int.from_bytes(data[body + 1 : body + 5], "little")
        return ImageInfo("webp", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), 1, end=end)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, body + 6)
        return ImageInfo("webp", width & 0x3FFF, height & 0x3FFF, 1, end=end)
    raise corrupt("the WebP's first chunk is none of VP8, VP8L, VP8X")


def _webp_frames(data: bytes, end: int, limits: DecodingSettings) -> int:
    frames, offset = 0, 12
    while offset + 8 <= end:
        length = int.from_bytes(data[offset + 4 : offset + 8], "little")
        if data[offset : offset + 4] == b"ANMF":
            frames += 1
            if frames > limits.max_frames:
                raise too_many_frames(limits)
        offset += 8 + length + (length & 1)
    return max(1, frames)


def avif(data: bytes, limits: DecodingSettings) -> ImageInfo:
    """AVIF (ISO/IEC 23000-22): the largest size that any item property or track names."""
    width = height = 0
    offset, end = 0, len(data)
    while offset + 8 <= end:
        size, start = int.from_bytes(data[offset : offset + 4], "big"), 8
        kind = data[offset + 4 : offset + 8]
        if size == 1:
            size, start = int.from_bytes(data[offset + 8 : offset + 16], "big"), 16
        elif size == 0:
            size = end - offset
        if size < start:
            raise corrupt("an AVIF box has no length")
        if offset + size > end:
            raise truncated("the AVIF's boxes")
        if kind in (b"meta", b"moov"):
            box = data[offset : offset + size]
            found = box.find(b"ispe")
            while found >= 0 and found + 16 <= len(box):
                w, h = struct.unpack_from(">II", box, found + 8)
                width, height = max(width, w), max(height, h)
                found = box.find(b"ispe", found + 4)
        offset += size
    if not (width and height):
        raise corrupt("the AVIF names no size")
    return ImageInfo("avif", width, height, 1, end=offset)


def too_many_frames(limits: DecodingSettings) -> Unscannable:
    """More frames, or pixels in them, than are looked at."""
    return Unscannable(
        Reason.TOO_MANY_FRAMES,
        f"more than {limits.max_frames} frames or {limits.max_total_pixels} pixels in all: send a shorter animation",
    )
