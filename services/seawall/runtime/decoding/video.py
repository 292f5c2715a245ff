"""Videos, frame by frame, through PyAV: the extra `video`, never part of the default install (docs/adr/0033).

Every frame of every picture track is decoded, and each is compared with the last one given. Given are:

* the first;
* each that differs from the last one given: a cut, or movement that has added up, so that a single frame is found
  wherever it stands;
* one of every 30, at a place that follows from the file's own digest, however little has changed and whatever times the
  file claims.

So what is given is the same on every machine, and nothing lies between samples. A video that cannot be decoded whole,
or within the limits, is unscannable; the frames before the fault have been given by then.
"""

from __future__ import annotations

import hashlib
import importlib
import io
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from seawall.runtime.decoding import pixels as px
from seawall.runtime.decoding.image_info import ImageInfo
from seawall.runtime.decoding.inspection import too_long, too_many_frames
from seawall.runtime.decoding.limits import DecodingSettings
from seawall.runtime.decoding.unscannable import Reason, Unscannable, corrupt, truncated

#: FFmpeg's names of what reads each type.
_DEMUXERS: Final = {"mp4": "mov", "matroska": "matroska"}
#: Decoders that may run: what cameras, telephones and generators write, and at the end two for cover pictures. FFmpeg
#: has hundreds more, old and little tested.
_DECODERS: Final = ("h264", "hevc", "vp8", "vp9", "libdav1d", "av1", "mpeg4", "prores", "mjpeg", "png")
#: Side of the thumbnails that are compared, and from which difference on a frame is another one: of the mean over all
#: cells, or of a single one, in levels.
_THUMBNAIL: Final = 32
_MEAN_LEVELS: Final = 2.0
_CELL_LEVELS: Final = 32
#: Of so many frames one is given in any case: about a second.
_STRETCH: Final = 30


def prepare() -> None:
    """Import all that decoding would import on the way; nothing where the extra is not installed."""
    try:
        importlib.import_module("av")
        importlib.import_module("av.video.reformatter")
    except ImportError:
        return


def frames(
    data: bytes, info: ImageInfo, mode: px.Mode, min_side: int | None, limits: DecodingSettings
) -> Iterator[tuple[int, px.Pixels]]:
    """The frames that are given: their numbers, counted from 0 over all that are decoded, and pixels as `decode_gray`
    or `decode_rgb` give them. A large frame is scaled by a whole number as far as both sides keep ``min_side`` pixels.

    Raises Unscannable, also after some frames; MemoryError.
    """
    try:
        opened: Any = importlib.import_module("av").open
    except ImportError:
        raise Unscannable(
            Reason.VIDEO_EXTRA_MISSING, "videos need the extra `video`: pip install seawall[video], see its licences"
        ) from None
    options = {
        # Also those that only look at the file.
        "codec_whitelist": ",".join(_DECODERS),
        "max_pixels": str(limits.max_video_pixels),
        "err_detect": "explode",
        "threads": "1",
        # What an edit list leaves out, another player shows.
        "ignore_editlist": "1",
    }
    source = io.BytesIO(data)
    try:
        with opened(source, "r", format=_DEMUXERS[info.type], options=options, metadata_errors="replace") as container:
            yield from _given(container, data, info, mode, min_side, limits)
    except (Unscannable, MemoryError, GeneratorExit):
        raise
    except Exception as error:
        # FFmpeg's errors, and whatever its bindings make of an odd file; all of it means the same here. The message is
        # dropped: it may quote the file.
        raise corrupt(f"the video cannot be decoded ({type(error).__name__})") from None


def _given(
    container: Any,
    data: bytes,
    info: ImageInfo,
    mode: px.Mode,
    min_side: int | None,
    limits: DecodingSettings,
) -> Iterator[tuple[int, px.Pixels]]:
    choice = _Choice(hashlib.sha256(data).digest(), mode)
    shape = _Shape(mode, min_side)
    number = 0
    with closing(_decoded(container, info, limits)) as decoded:
        for frame in decoded:
            if number >= limits.max_video_frames:
                raise too_many_frames(limits)
            if choice.wants(frame, number):
                yield number, shape(frame)
            number += 1
    if not number:
        raise corrupt("the video has no frame")


def _decoded(container: Any, info: ImageInfo, limits: DecodingSettings) -> Generator[Any, None, None]:
    """Every frame of every picture track, as they lie in the file."""
    tracks = container.streams.video
    for track in tracks:
        codec = track.codec_context
        if codec is None or codec.codec.name not in _DECODERS:
            raise Unscannable(Reason.UNKNOWN_CODEC, f"decoded are {', '.join(_DECODERS)}: send it in one of these")
        codec.thread_count = 1
        codec.options = {"max_pixels": str(limits.max_video_pixels), "err_detect": "explode"}
    if not tracks:
        raise corrupt("the video has no picture track")
    packets = 0
    begin: float | None = None
    for packet in container.demux(*tracks):
        packets += packet.size > 0
        if packet.is_corrupt:
            raise truncated("the video's frames")
        for frame in packet.decode():
            if frame.is_corrupt:
                raise corrupt("a frame of the video is damaged")
            if frame.time is not None:
                # Some recordings begin at the hour they were made.
                begin = frame.time if begin is None else begin
                if frame.time - begin > limits.max_video_seconds:
                    raise too_long(limits)
            yield frame
    if packets < info.frames:
        # Where the container is broken, FFmpeg may pass over a part of it in silence.
        raise truncated("the video's frames")


class _Choice:
    """Which frames are given; see the module."""

    def __init__(self, digest: bytes, mode: px.Mode) -> None:
        self._digest = digest
        self._format = "gray" if mode == "gray" else "rgb24"
        self._scaler = _scaler()
        self._last: npt.NDArray[np.int16] | None = None

    def wants(self, frame: Any, number: int) -> bool:
        """Whether a frame is given."""
        small = self._scaler.reformat(frame, _THUMBNAIL, _THUMBNAIL, self._format, interpolation="AREA")
        thumbnail = small.to_ndarray().astype(np.int16)
        difference = np.abs(thumbnail - self._last) if self._last is not None else None
        wanted = (
            difference is None
            or self._is_due(number)
            or float(difference.mean()) > _MEAN_LEVELS
            or int(difference.max()) > _CELL_LEVELS
        )
        if wanted:
            self._last = thumbnail
        return wanted

    def _is_due(self, number: int) -> bool:
        stretch, place = divmod(number, _STRETCH)
        said = hashlib.sha256(self._digest + stretch.to_bytes(8, "big")).digest()
        return place == int.from_bytes(said[:8], "big") % _STRETCH


class _Shape:
    """Makes a frame's pixels what every picture's are: upright, 8 bits, luma or RGB, and no larger than is of use."""

    def __init__(self, mode: px.Mode, min_side: int | None) -> None:
        self._format = "gray" if mode == "gray" else "rgb24"
        self._min_side = min_side
        self._scaler = _scaler()

    def __call__(self, frame: Any) -> px.Pixels:
        by = max(1, min(frame.width, frame.height) // self._min_side) if self._min_side else 1
        size = frame.width // by, frame.height // by
        pixels: px.Pixels = self._scaler.reformat(frame, *size, self._format, interpolation="AREA").to_ndarray()
        turns = round(frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else np.ascontiguousarray(pixels)


def _scaler() -> Any:
    return importlib.import_module("av.video.reformatter").VideoReformatter()
