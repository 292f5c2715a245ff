"""The header of a JPEG: markers up to the first scan, as libjpeg reads them, and where the picture ends.

ITU-T T.81, annex B; EXIF 2.32 for the orientation.
"""

from __future__ import annotations

import re
import struct

from seawall.runtime.decoding.image_info import ImageInfo
from seawall.runtime.decoding.limits import DecodingSettings
from seawall.runtime.decoding.unscannable import Reason, Unscannable, corrupt, truncated

_SOI, _EOI, _SOS, _APP1 = 0xD8, 0xD9, 0xDA, 0xE1
#: Start of frame: all of C0–CF but DHT, JPG and DAC.
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
#: Markers that stand alone: TEM and the restarts.
_BARE = frozenset({0x01, *range(0xD0, 0xD8)})
#: A marker inside entropy-coded data: FF that is not stuffed (00), a restart or a fill byte.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
#: No encoder writes as many; a walk over more would be the sender's choice of our time.
_MAX_SEGMENTS = 4_096


def read(data: bytes, limits: DecodingSettings) -> ImageInfo:
    """Raises Unscannable: TRUNCATED, CORRUPT or TOO_MANY_SCANS."""
    offset = 2
    width = height = 0
    orientation = 1
    progressive = False
    for _ in range(_MAX_SEGMENTS):
        marker, offset = _marker(data, offset)
        if marker in _BARE:
            continue
        if marker in (_SOI, _EOI):
            raise corrupt("the JPEG ends or begins again before its picture")
        length = _u16(data, offset)
        if length < 2:
            raise corrupt("a JPEG segment has no length")
        if marker == _SOS:
            if not width:
                raise corrupt("the JPEG's scan comes before its size")
            end = _end(data, offset, limits.max_scans if progressive else None)
            return ImageInfo("jpeg", width, height, 1, orientation, end, progressive)
        if marker in _SOF:
            if width:
                raise corrupt("the JPEG gives its size twice")
            height, width = _u16(data, offset + 3), _u16(data, offset + 5)
            if not (width and height):
                raise corrupt("the JPEG's header gives no width or height")
            progressive = marker in _PROGRESSIVE
        elif marker == _APP1 and data[offset + 2 : offset + 8] == b"Exif\0\0":
            orientation = exif_orientation(data[offset + 8 : offset + length])
        offset += length
    raise corrupt(f"the JPEG has more than {_MAX_SEGMENTS} segments before its picture")


def exif_orientation(tiff: bytes) -> int:
    """Tag 0x0112 of the first directory; 1 if there is none or the block is broken, as viewers take it."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return 1
    (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
    if directory + 2 > len(tiff):
        return 1
    (count,) = struct.unpack_from(f"{order}H", tiff, directory)
    for entry in range(directory + 2, min(directory + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
        if tag == 0x0112:
            return value if kind == 3 and 1 <= value <= 8 else 1
    return 1


def _marker(data: bytes, offset: int) -> tuple[int, int]:
    """The marker at ``offset``, fill bytes skipped, and the offset behind it."""
    if offset >= len(data):
        raise truncated("the JPEG's header")
    if data[offset] != 0xFF:
        raise corrupt("bytes stand between the JPEG's segments")
    while offset < len(data) and data[offset] == 0xFF:
        offset += 1
    if offset >= len(data):
        raise truncated("the JPEG's header")
    return data[offset], offset + 1


def _u16(data: bytes, offset: int) -> int:
    if offset + 2 > len(data):
        raise truncated("the JPEG's header")
    return data[offset] << 8 | data[offset + 1]


def _end(data: bytes, offset: int, max_scans: int | None) -> int:
    """The offset behind the EOI that closes the picture whose first scan's length field is at ``offset``."""
    scans = 1
    offset += _u16(data, offset)
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(data, offset)
        if found is None:
            raise truncated("the JPEG's picture")
        marker, offset = data[found.end() - 1], found.end()
        if marker == _EOI:
            return offset
        if marker == 0x01:
            continue
        if marker == _SOS:
            scans += 1
            if max_scans is not None and scans > max_scans:
                raise Unscannable(
                    Reason.TOO_MANY_SCANS, f"the JPEG has more than {max_scans} passes: save it as baseline"
                )
        offset += _u16(data, offset)
    raise corrupt(f"the JPEG has more than {_MAX_SEGMENTS} segments")
