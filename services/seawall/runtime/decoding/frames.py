"""Animations and videos, frame by frame, and the few frames that stand for all of them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import chain, islice
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from seawall.runtime.decoding import pixels as px
from seawall.runtime.decoding import video
from seawall.runtime.decoding.image_info import VIDEOS, ImageInfo
from seawall.runtime.decoding.inspection import check_frames, inspect
from seawall.runtime.decoding.limits import DEFAULT_LIMITS, DecodingSettings
from seawall.runtime.decoding.unscannable import truncated

#: Side of the thumbnails by which frames are told apart.
_THUMBNAIL: Final = 16
#: Frames of an animation that are held rather than decoded again (bytes).
_KEPT_BYTES: Final = 64 * 1024 * 1024
#: JPEGs behind a JPEG (preview, depth map, gain map) that are decoded; more are TOO_MANY_FRAMES.
_MAX_APPENDED: Final = 8


class Frame(NamedTuple):
    """One picture of a file."""

    #: 0 for a still.
    number: int
    #: How alpha was resolved: "white", "black" or "opaque".
    view: px.View
    #: uint8, (h, w) for gray and (h, w, 3) for rgb. Read-only.
    pixels: px.Pixels


def iterate_frames(
    data: bytes,
    mode: px.Mode,
    min_side: int | None = None,
    declared: str = "",
    limits: DecodingSettings = DEFAULT_LIMITS,
    into: px.Pixels | None = None,
) -> Generator[Frame, None, None]:
    """Every frame in order, in each view that shows something else, one at a time in memory; identical repeats of the
    frame before are left out, and of a video what hardly differs: see `video`.

    Arguments and errors as `decode_gray`; ``into``: memory that the first frame's pixels may be put in. Nothing is
    skipped: a file too long to be looked at whole is TOO_MANY_FRAMES.
    """
    info = inspect(data, declared, limits)
    with px.memory_slot(info, min_side):
        if info.type == "jpeg":
            yield from _jpegs(data, info, mode, min_side, limits, into)
        elif info.type in VIDEOS:
            yield from (
                Frame(number, "white", each) for number, each in video.frames(data, info, mode, min_side, limits)
            )
        else:
            yield from _frames(data, info, mode, limits)


def decode_frames(
    data: bytes,
    mode: px.Mode = "rgb",
    max_frames: int = 8,
    min_side: int | None = None,
    declared: str = "",
    limits: DecodingSettings = DEFAULT_LIMITS,
) -> list[Frame]:
    """`sample_frames`, all in memory."""
    return list(sample_frames(data, mode, max_frames, min_side, declared, limits))


def sample_frames(
    data: bytes,
    mode: px.Mode,
    max_frames: int,
    min_side: int | None = None,
    declared: str = "",
    limits: DecodingSettings = DEFAULT_LIMITS,
    into: px.Pixels | None = None,
) -> Generator[Frame, None, None]:
    """At most ``max_frames`` frames that differ most: the first, then each time the one farthest from all chosen, so
    that a single odd frame is chosen early wherever it stands. A still costs no more than `decode_rgb`.

    Arguments as `iterate_frames`; every error is raised before the first frame is given.
    """
    frames = iterate_frames(data, mode, min_side, declared, limits, into)
    first = list(islice(frames, 2))
    if len(first) < 2:
        # A still: nothing to choose between. Its thumbnail alone would take half as long as its decoding.
        yield from first
        return
    thumbnails: list[npt.NDArray[np.float32]] = []
    kept: list[Frame] = []
    kept_bytes = 0
    for frame in chain(first, frames):
        thumbnails.append(_thumbnail(frame.pixels))
        kept_bytes += frame.pixels.size
        if kept_bytes <= _KEPT_BYTES or len(thumbnails) == 1:
            kept.append(frame)
        else:
            kept.clear()
    wanted = set(range(len(thumbnails)))
    if len(thumbnails) > max_frames:
        wanted = set(_farthest(np.stack(thumbnails), max_frames))
    if len(kept) == len(thumbnails):
        yield from (frame for number, frame in enumerate(kept) if number in wanted)
        return
    # Decoded twice rather than held: an animation's frames together may be too large for memory.
    again = iterate_frames(data, mode, min_side, declared, limits)
    yield from (frame for number, frame in enumerate(again) if number in wanted)


def _jpegs(
    data: bytes,
    info: ImageInfo,
    mode: px.Mode,
    min_side: int | None,
    limits: DecodingSettings,
    into: px.Pixels | None,
) -> Iterator[Frame]:
    # libjpeg stops at the first picture's end; without the rest it cannot be misled by it.
    yield Frame(0, "white", px.jpeg(data, info, mode, min_side, into))
    start = data.find(b"\xff\xd8\xff", info.end) if info.end < len(data) else -1
    for index in range(1, _MAX_APPENDED + 1):
        if start < 0:
            return
        appended = data[start:]
        inner = inspect(appended, limits=limits)
        yield Frame(index, "white", px.jpeg(appended, inner, mode, min_side))
        start = data.find(b"\xff\xd8\xff", start + inner.end)
    if start >= 0:
        check_frames(info._replace(frames=limits.max_frames + 1), limits)


def _frames(data: bytes, info: ImageInfo, mode: px.Mode, limits: DecodingSettings) -> Iterator[Frame]:
    with px.opened(data, info, limits) as image:
        frames = getattr(image, "n_frames", 1)
        check_frames(info._replace(frames=frames, width=image.width, height=image.height), limits)
        if frames < info.frames:
            raise truncated("the animation")
        orientation = px.orientation_of(image)
        before: dict[px.View, px.Pixels] = {}
        for index in range(frames):
            image.seek(index)
            image.load()
            for view, pixels in px.views(image, mode, orientation, every=True):
                if view not in before or not np.array_equal(before[view], pixels):
                    before[view] = pixels
                    yield Frame(index, view, pixels)


def _thumbnail(pixels: px.Pixels) -> npt.NDArray[np.float32]:
    """Means over a grid of at most 16 by 16 cells, flat; sampled, so that it costs little beside the decoding."""
    rows = np.linspace(0, pixels.shape[0] - 1, _THUMBNAIL * 4).astype(np.intp)
    columns = np.linspace(0, pixels.shape[1] - 1, _THUMBNAIL * 4).astype(np.intp)
    sampled = pixels[np.ix_(rows, columns)].astype(np.float32)
    cells: npt.NDArray[np.float32] = sampled.reshape(_THUMBNAIL, 4, _THUMBNAIL, 4, -1).mean(axis=(1, 3)).reshape(-1)
    return cells


def _farthest(thumbnails: npt.NDArray[np.float32], count: int) -> list[int]:
    """Farthest-point sampling by mean absolute difference, from the first."""
    chosen = [0]
    distance = np.abs(thumbnails - thumbnails[0]).mean(axis=1)
    while len(chosen) < min(count, len(thumbnails)):
        farthest = int(distance.argmax())
        chosen.append(farthest)
        distance = np.minimum(distance, np.abs(thumbnails - thumbnails[farthest]).mean(axis=1))
    return chosen
