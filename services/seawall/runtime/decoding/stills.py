"""The first picture of a file: the hot path."""

from __future__ import annotations

from seawall.runtime.decoding import pixels as px
from seawall.runtime.decoding.inspection import inspect
from seawall.runtime.decoding.limits import DEFAULT_LIMITS, DecodingSettings

#: The side PDQ's 512 pipeline needs; scaling further while decoding would change its hash.
PDQ_MIN_SIDE = 512


def decode_gray(
    data: bytes,
    min_side: int | None = PDQ_MIN_SIDE,
    declared: str = "",
    limits: DecodingSettings = DEFAULT_LIMITS,
) -> px.Pixels:
    """The first frame's luma, uint8 (h, w), upright. Contiguous; may be read-only.

    Args:
        min_side: a JPEG is scaled down while it is decoded, as far as both sides keep at least so many pixels; None
            decodes every pixel. Other formats are always decoded whole.
        declared: the media type the sender gave; see `inspect`.
        limits: caps on what is decoded.

    Raises:
        Unscannable: with each of `Reason`.
    """
    return _first(data, "gray", min_side, declared, limits)


def decode_rgb(
    data: bytes,
    min_side: int | None = None,
    declared: str = "",
    limits: DecodingSettings = DEFAULT_LIMITS,
) -> px.Pixels:
    """The first frame, uint8 (h, w, 3), upright. Arguments and errors as `decode_gray`."""
    return _first(data, "rgb", min_side, declared, limits)


def _first(data: bytes, mode: px.Mode, min_side: int | None, declared: str, limits: DecodingSettings) -> px.Pixels:
    info = inspect(data, declared, limits)
    with px.memory_slot(info, min_side):
        if info.type == "jpeg":
            return px.jpeg(data, info, mode, min_side)
        with px.opened(data, info, limits) as image:
            image.load()
            _, pixels = next(px.views(image, mode, px.orientation_of(image), every=False))
            return pixels
