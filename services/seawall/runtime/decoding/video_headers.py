"""The headers of MP4, MOV, WebM and Matroska: the largest picture track, by walking the container, not decoding it."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

from seawall.runtime.decoding.image_info import ImageInfo
from seawall.runtime.decoding.limits import DecodingSettings
from seawall.runtime.decoding.unscannable import corrupt, truncated

#: Major brands of files that hold moving pictures (mp4ra.org); HEIF's are not among them.
_BRANDS: Final = (
    *(b"isom", b"iso2", b"iso3", b"iso4", b"iso5", b"iso6", b"iso7", b"iso8", b"iso9", b"mp41", b"mp42", b"mp71"),
    *(b"avc1", b"av01", b"hvc1", b"dash", b"cmfc", b"MSNV", b"M4V ", b"M4VH", b"M4VP", b"f4v ", b"F4V ", b"qt  "),
    *(b"3gp4", b"3gp5", b"3gp6", b"3gp7", b"3gp8", b"3gp9", b"3g2a", b"3g2b", b"3g2c", b"XAVC"),
)
_EBML: Final = b"\x1a\x45\xdf\xa3"
_DOCTYPE, _SEGMENT, _CLUSTER = 0x4282, 0x18538067, 0x1F43B675
_INFO, _TIMESTAMP_SCALE, _DURATION = 0x1549A966, 0x2AD7B1, 0x4489
_TRACKS, _ENTRY, _NUMBER, _VIDEO, _WIDTH, _HEIGHT = 0x1654AE6B, 0xAE, 0xD7, 0xE0, 0xB0, 0xBA
_SIMPLE_BLOCK, _BLOCK_GROUP, _BLOCK = 0xA3, 0xA0, 0xA1
#: Boxes or elements of one level that are looked at; a real file has far fewer of those that are not skipped.
_MAX_PARTS: Final = 100_000
#: Where a visual sample entry has its width (ISO/IEC 14496-12, 12.1.3).
_ENTRY_WIDTH: Final = 32


def is_mp4(data: bytes) -> bool:
    """MP4 or MOV by the first bytes."""
    return data[4:8] == b"ftyp" and data[8:12] in _BRANDS


def is_matroska(data: bytes) -> bool:
    """WebM or Matroska by the first bytes."""
    return data.startswith(_EBML)


class _Part(NamedTuple):
    """A box or an element: where its content lies."""

    kind: bytes | int
    begin: int
    end: int


def mp4(data: bytes, limits: DecodingSettings) -> ImageInfo:
    """ISO base media (ISO/IEC 14496-12) and QuickTime: the largest size that any picture track's sample entries name,
    and the samples of all of them. Those of fragments are not counted.
    """
    width = height = frames = 0
    seconds = 0.0
    index = False
    for box in _boxes(data, 0, len(data)):
        if box.kind != b"moov":
            continue
        if index:
            raise corrupt("the video has two indexes")
        index = True
        for part in _boxes(data, box.begin, box.end):
            if part.kind == b"mvhd":
                seconds = max(seconds, _seconds(data, part))
            if part.kind == b"trak" and _is_picture(data, part):
                tables = list(_below(data, part, (b"mdia", b"minf", b"stbl")))
                sizes = [size for table in tables if table.kind == b"stsd" for size in _sizes(data, table)]
                width = max([width, *(w for w, _ in sizes)])
                height = max([height, *(h for _, h in sizes)])
                frames += sum(_number(data, table.begin + 8) for table in tables if table.kind in (b"stsz", b"stz2"))
                headers = _below(data, part, (b"mdia",))
                seconds = max([seconds, *(_seconds(data, each) for each in headers if each.kind == b"mdhd")])
    if not index:
        raise truncated("the video's boxes: its index is missing")
    if not (width and height):
        raise corrupt("the video has no picture track")
    return ImageInfo("mp4", width, height, max(1, frames), end=len(data), seconds=seconds)


def _is_picture(data: bytes, track: _Part) -> bool:
    return any(
        part.kind == b"hdlr" and data[part.begin + 8 : part.begin + 12] == b"vide"
        for part in _below(data, track, (b"mdia",))
    )


def _boxes(data: bytes, begin: int, end: int) -> Iterator[_Part]:
    for _ in range(_MAX_PARTS):
        if begin + 8 > end:
            return
        size, start = _number(data, begin), 8
        if size == 1:
            if begin + 16 > end:
                raise truncated("the video's boxes")
            size, start = int.from_bytes(data[begin + 8 : begin + 16], "big"), 16
        elif size == 0:
            size = end - begin
        if size < start:
            raise corrupt("a box of the video has no length")
        if begin + size > end:
            raise truncated("the video's boxes")
        yield _Part(data[begin + 4 : begin + 8], begin + start, begin + size)
        begin += size
    raise corrupt("the video has more boxes than any has")


def _below(data: bytes, part: _Part, path: tuple[bytes, ...]) -> Iterator[_Part]:
    """The boxes at the end of a path of kinds."""
    for box in _boxes(data, part.begin, part.end):
        if not path:
            yield box
        elif box.kind == path[0]:
            yield from _below(data, box, path[1:])


def _sizes(data: bytes, table: _Part) -> Iterator[tuple[int, int]]:
    for entry in _boxes(data, table.begin + 8, table.end):
        at = entry.begin - 8 + _ENTRY_WIDTH
        if at + 4 <= entry.end:
            yield struct.unpack_from(">HH", data, at)


def _seconds(data: bytes, header: _Part) -> float:
    """The duration in a mvhd or mdhd."""
    long = data[header.begin : header.begin + 1] == b"\1"
    at, form = (header.begin + 20, ">IQ") if long else (header.begin + 12, ">II")
    if at + struct.calcsize(form) > header.end:
        raise corrupt("a header of the video is too short")
    scale, duration = struct.unpack_from(form, data, at)
    # All ones: unknown.
    unknown = 2**64 - 1 if long else 2**32 - 1
    return duration / scale if scale and duration != unknown else 0.0


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")


def matroska(data: bytes, limits: DecodingSettings) -> ImageInfo:
    """Matroska and WebM (RFC 9559): the largest size that any picture track names, and the blocks of all of them."""
    width = height = end = 0
    seconds = 0.0
    blocks: Counter[int] = Counter()
    pictures: set[int] = set()
    for top in _elements(data, 0, len(data)):
        if top.kind == int.from_bytes(_EBML, "big"):
            doctype = next((each for each in _elements(data, top.begin, top.end) if each.kind == _DOCTYPE), None)
            if doctype is None or data[doctype.begin : doctype.end].rstrip(b"\0") not in (b"webm", b"matroska"):
                raise corrupt("the file is neither WebM nor Matroska")
        if top.kind != _SEGMENT:
            continue
        end = top.end
        # Clusters are walked into: those of a live recording do not say where they end.
        for part in _elements(data, top.begin, top.end, into=_CLUSTER):
            if part.kind == _INFO:
                seconds = max(seconds, _duration(data, part))
            elif part.kind == _TRACKS:
                for number, w, h in _tracks(data, part):
                    pictures.add(number)
                    width, height = max(width, w), max(height, h)
            elif part.kind == _SIMPLE_BLOCK:
                blocks[_vint(data, part.begin, part.end, marked=False)[0]] += 1
            elif part.kind == _BLOCK_GROUP:
                for each in _elements(data, part.begin, part.end):
                    if each.kind == _BLOCK:
                        blocks[_vint(data, each.begin, each.end, marked=False)[0]] += 1
    if not (width and height):
        raise corrupt("the video has no picture track")
    frames = sum(blocks[number] for number in pictures)
    return ImageInfo("matroska", width, height, max(1, frames), end=end, seconds=seconds)


def _tracks(data: bytes, tracks: _Part) -> Iterator[tuple[int, int, int]]:
    """Number, width and height of each picture track."""
    for entry in _elements(data, tracks.begin, tracks.end):
        if entry.kind != _ENTRY:
            continue
        parts = list(_elements(data, entry.begin, entry.end))
        number = next((_value(data, each) for each in parts if each.kind == _NUMBER), 0)
        for video in parts:
            if video.kind == _VIDEO:
                sizes = {each.kind: _value(data, each) for each in _elements(data, video.begin, video.end)}
                yield number, sizes.get(_WIDTH, 0), sizes.get(_HEIGHT, 0)


def _value(data: bytes, part: _Part) -> int:
    return int.from_bytes(data[part.begin : min(part.end, part.begin + 8)], "big")


def _duration(data: bytes, info: _Part) -> float:
    scale, duration = 1_000_000, 0.0
    for part in _elements(data, info.begin, info.end):
        length = part.end - part.begin
        if part.kind == _TIMESTAMP_SCALE:
            scale = _value(data, part)
        if part.kind == _DURATION and length in (4, 8):
            (duration,) = struct.unpack_from(">f" if length == 4 else ">d", data, part.begin)
    return duration * scale / 1e9


def _elements(data: bytes, begin: int, end: int, into: int = 0) -> Iterator[_Part]:
    """The elements of one level, and in the place of those of kind ``into`` what is in them."""
    for _ in range(_MAX_PARTS):
        if begin >= end:
            return
        kind, begin = _vint(data, begin, end, marked=True)
        size, begin = _vint(data, begin, end, marked=False)
        if size < 0:
            # Unknown, as a live recording has it: to the end.
            size = end - begin
            if kind not in (_SEGMENT, _CLUSTER):
                raise corrupt("an element of the video has no length")
        if begin + size > end:
            raise truncated("the video's elements")
        if kind != into:
            yield _Part(kind, begin, begin + size)
            begin += size
    raise corrupt("the video has more elements than any has")


def _vint(data: bytes, at: int, end: int, *, marked: bool) -> tuple[int, int]:
    """A variable number (RFC 8794) and where it ends; -1 for an unknown size. ``marked``: an id, with its marker."""
    first = data[at] if at < end else 0
    length = 9 - first.bit_length()
    if not first or at + length > end:
        raise truncated("the video's elements") if at + length > end else corrupt("an element of the video is none")
    value = int.from_bytes(data[at : at + length], "big")
    if marked:
        return value, at + length
    value &= (1 << 7 * length) - 1
    return (-1 if value == (1 << 7 * length) - 1 else value), at + length
