"""Uniform borders: a frame around a listed picture moves every sample PDQ takes, so it is hashed without it as well."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from seawall.runtime.decoding import Pixels

#: Levels by which a border's pixels may differ: coding noise.
_TOLERANCE: Final = 12
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
    lows, highs = lines.min(axis=1).astype(np.int16), lines.max(axis=1).astype(np.int16)
    uniform = (np.maximum(highs, high) - np.minimum(lows, low)) <= _TOLERANCE
    return len(lines) if uniform.all() else int(uniform.argmin())
