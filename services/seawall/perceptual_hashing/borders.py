"""Uniform borders: a frame around a listed picture moves every sample PDQ takes, so it is hashed without it as well."""

from __future__ import annotations

from typing import Final

import numpy as np

from seawall.perceptual_hashing.kernels import kernel
from seawall.runtime.decoding import Pixels

#: Levels by which the outermost line's pixels may differ: coding noise.
_TOLERANCE: Final = 12
#: A line belongs to the border if this share of its pixels is within so many levels of it: where picture and border
#: meet, a coder's blocks ring, and a few lines left over would move the hash.
_SHARE: Final = 0.95
_RINGING: Final = 28
#: A narrower border (share of the side) hardly moves the hash.
_NARROWEST: Final = 1 / 64
#: What is left must have at least so many pixels on each side, or there is nothing to hash.
_LEAST: Final = 64


def strip(gray: Pixels) -> Pixels | None:
    """The picture inside its uniform borders, a view; None if it has none worth stripping.

    Args:
        gray: (h, w).
    """
    # One type for the compiler, whoever made the array.
    gray = np.ascontiguousarray(gray).view()
    gray.flags.writeable = False
    height, width = gray.shape
    top, bottom = _lines(gray, 0, height), _lines(gray, height - 1, height)
    if height - bottom - top < _LEAST:
        return None
    left, right = _columns(gray, 0, top, height - bottom), _columns(gray, width - 1, top, height - bottom)
    if width - right - left < _LEAST:
        return None
    if max((top + bottom) / height, (left + right) / width) < _NARROWEST:
        return None
    return gray[top : height - bottom, left : width - right]


@kernel()
def _lines(gray: Pixels, first: int, height: int) -> int:
    """How many lines from ``first`` (the uppermost or the lowest) inwards are of one colour, and the same one."""
    width = gray.shape[1]
    step = 1 if first == 0 else -1
    low = high = np.int64(gray[first, 0])
    for x in range(width):
        low, high = min(low, np.int64(gray[first, x])), max(high, np.int64(gray[first, x]))
        if high - low > _TOLERANCE:
            # The usual picture: known within a few pixels.
            return 0
    level = (low + high) // 2
    for line in range(height):
        y = first + step * line
        count = 0
        for x in range(width):
            count += 1 if abs(np.int64(gray[y, x]) - level) <= _RINGING else 0
        if count < _SHARE * width:
            return line
    return height


@kernel()
def _columns(gray: Pixels, first: int, top: int, end: int) -> int:
    """The same for columns, within the lines from ``top`` to before ``end``."""
    width = gray.shape[1]
    step = 1 if first == 0 else -1
    low = high = np.int64(gray[top, first])
    for y in range(top, end):
        low, high = min(low, np.int64(gray[y, first])), max(high, np.int64(gray[y, first]))
        if high - low > _TOLERANCE:
            return 0
    level = (low + high) // 2
    for line in range(width):
        x = first + step * line
        count = 0
        for y in range(top, end):
            count += 1 if abs(np.int64(gray[y, x]) - level) <= _RINGING else 0
        if count < _SHARE * (end - top):
            return line
    return int(width)
