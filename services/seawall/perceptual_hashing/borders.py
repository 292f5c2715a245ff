"""Uniform borders: a frame around a listed picture moves every sample PDQ takes, so it is hashed without it as well."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

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
    top, bottom = _border(gray), _border(gray[::-1])
    inner = gray[top : gray.shape[0] - bottom]
    if len(inner) < _LEAST:
        return None
    left, right = _border(inner.T), _border(inner.T[::-1])
    inner = inner[:, left : gray.shape[1] - right]
    if inner.shape[1] < _LEAST:
        return None
    height, width = gray.shape
    return inner if max((top + bottom) / height, (left + right) / width) >= _NARROWEST else None


def _border(lines: npt.NDArray[np.uint8]) -> int:
    """How many of the first lines are of one colour, and the same one."""
    low, high = int(lines[0].min()), int(lines[0].max())
    if high - low > _TOLERANCE:
        return 0
    # The usual picture ends above; only now are all lines looked at.
    away = np.abs(lines.astype(np.int16) - (low + high) // 2)
    uniform = (away <= _RINGING).mean(axis=1) >= _SHARE
    return len(lines) if uniform.all() else int(uniform.argmin())
