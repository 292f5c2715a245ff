"""`inspect`: is this a picture or a video that may be decoded at all?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from seawall.runtime.decoding import container_headers, jpeg_header, video_headers
from seawall.runtime.decoding.image_info import VIDEOS, ImageInfo, ImageType
from seawall.runtime.decoding.limits import DEFAULT_LIMITS, DecodingSettings
from seawall.runtime.decoding.unscannable import Reason, Unscannable, corrupt

_READERS: Final[Mapping[ImageType, Callable[[bytes, DecodingSettings], ImageInfo]]] = {
    "jpeg": jpeg_header.read,
    "png": container_headers.png,
    "gif": container_headers.gif,
    "webp": container_headers.webp,
    "avif": container_headers.avif,
    "mp4": video_headers.mp4,
    "matroska": video_headers.matroska,
}
#: Archives and documents that are read from their end, or that tolerate bytes before their own beginning.
_FOREIGN: Final = (b"PK\x03\x04", b"Rar!\x1a\x07", b"7z\xbc\xaf\x27\x1c", b"%PDF-", b"\x1f\x8b\x08", b"\xfd7zXZ\0")
_JPEG: Final = b"\xff\xd8\xff"
_ANY_TYPE: Final = ("application/octet-stream", "binary/octet-stream")
_VIDEO_TYPES: Final = ("video/", "application/mp4", "application/x-matroska")
_PICTURES: Final = (b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")
#: A ZIP's end record: 22 bytes and a comment of at most 65,535.
_ZIP_END, _ZIP_END_BYTES = b"PK\x05\x06", 22
_ZIP_TAIL = _ZIP_END_BYTES + 65_535
#: Readers of PDF accept the signature within so many bytes.
_PDF_HEAD = 1_024
#: How far behind the picture a foreign signature is looked for.
_TRAILER = 4_096


def inspect(data: bytes, declared: str = "", limits: DecodingSettings = DEFAULT_LIMITS) -> ImageInfo:
    """What the header says; no pixel is decoded.

    Args:
        declared: the media type the sender gave; "" if none. Which *picture* type it names does not matter, as viewers
            go by the bytes too; one that names no picture at all is refused. The same for videos.

    Raises:
        Unscannable: with each of `Reason`.
    """
    if len(data) > limits.max_bytes:
        raise Unscannable(Reason.TOO_LARGE, f"the file has more than decoding.max_bytes ({limits.max_bytes}) bytes")
    kind = sniff(data)
    if kind is None:
        raise Unscannable(
            Reason.UNKNOWN_TYPE, "the bytes are no JPEG, PNG, WebP, GIF, AVIF, MP4, MOV, WebM or Matroska: send one"
        )
    what, prefixes = ("video", _VIDEO_TYPES) if kind in VIDEOS else ("picture", ("image/",))
    if declared and not declared.lower().startswith((*prefixes, *_ANY_TYPE)):
        raise Unscannable(Reason.TYPE_MISMATCH, f"content.media_type names no {what}, the bytes are one: correct it")
    info = _READERS[kind](data, limits)
    if info.width < 1 or info.height < 1:
        raise corrupt("the header gives no width or height")
    _check_pixels(info, limits)
    check_frames(info, limits)
    _refuse_polyglot(data, info)
    return info


def sniff(data: bytes) -> ImageType | None:
    """The format by its first bytes, None if it is not on the allow-list."""
    if data.startswith(_JPEG):
        return "jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp" and any(brand in data[8:40] for brand in (b"avif", b"avis")):
        return "avif"
    if video_headers.is_mp4(data):
        return "mp4"
    if video_headers.is_matroska(data):
        return "matroska"
    return None


def _check_pixels(info: ImageInfo, limits: DecodingSettings) -> None:
    if info.type in VIDEOS:
        _check_video(info, limits)
        return
    by_line = info.type == "jpeg" and not info.progressive
    name, most = ("max_jpeg_pixels", limits.max_jpeg_pixels) if by_line else ("max_pixels", limits.max_pixels)
    if info.width * info.height > most or max(info.width, info.height) > limits.max_side:
        raise Unscannable(
            Reason.TOO_MANY_PIXELS,
            f"the header claims {info.width}x{info.height}, above decoding.{name} ({most}) or decoding.max_side "
            f"({limits.max_side})",
        )


def _check_video(info: ImageInfo, limits: DecodingSettings) -> None:
    if info.width * info.height > limits.max_video_pixels or max(info.width, info.height) > limits.max_side:
        raise Unscannable(
            Reason.TOO_MANY_PIXELS,
            f"the video claims {info.width}x{info.height}, above decoding.max_video_pixels ({limits.max_video_pixels}) "
            f"or decoding.max_side ({limits.max_side})",
        )
    if info.seconds > limits.max_video_seconds:
        raise too_long(limits)


def check_frames(info: ImageInfo, limits: DecodingSettings) -> None:
    """Raises Unscannable(TOO_MANY_FRAMES)."""
    if info.type in VIDEOS:
        if info.frames > limits.max_video_frames:
            raise too_many_frames(limits)
        return
    if info.frames > 1 and (
        info.frames > limits.max_frames or info.frames * info.width * info.height > limits.max_total_pixels
    ):
        raise container_headers.too_many_frames(limits)


def too_long(limits: DecodingSettings) -> Unscannable:
    """A video is longer than is looked at."""
    return Unscannable(
        Reason.TOO_LONG, f"longer than decoding.max_video_seconds ({limits.max_video_seconds:g}): send it shorter"
    )


def too_many_frames(limits: DecodingSettings) -> Unscannable:
    """A video has more frames than are looked at."""
    return Unscannable(
        Reason.TOO_MANY_FRAMES,
        f"more than decoding.max_video_frames ({limits.max_video_frames}) frames: send a shorter video",
    )


def _refuse_polyglot(data: bytes, info: ImageInfo) -> None:
    """One file, one meaning: what a second program would find in the same bytes was not scanned."""
    tail = data.rfind(_ZIP_END, max(0, len(data) - _ZIP_TAIL))
    # Four bytes may occur by chance in coded pixels; with a comment that ends exactly where the file does, hardly.
    while tail >= 0:
        comment = int.from_bytes(data[tail + 20 : tail + 22], "little")
        if tail + _ZIP_END_BYTES + comment == len(data):
            raise _polyglot("an archive")
        tail = data.rfind(_ZIP_END, max(0, len(data) - _ZIP_TAIL), tail)
    if b"%PDF-" in data[:_PDF_HEAD]:
        raise _polyglot("a document")
    if info.end < len(data):
        trailer = data[info.end : info.end + _TRAILER]
        if any(signature in trailer for signature in _FOREIGN):
            raise _polyglot("an archive or document")
        if any(signature in trailer for signature in _PICTURES):
            raise _polyglot("a second picture")
        # Phones append previews and depth maps to a JPEG as JPEGs of their own; `iterate_frames` decodes those.
        if info.type != "jpeg" and _JPEG in trailer:
            raise _polyglot("a second picture")
        if b"ftyp" in trailer:
            raise _polyglot("a video")


def _polyglot(what: str) -> Unscannable:
    return Unscannable(Reason.POLYGLOT, f"{what} rides in the picture's file: send the picture alone")
