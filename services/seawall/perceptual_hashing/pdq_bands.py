"""PDQ's filters as matrices.

PDQ blurs each axis twice with a box, takes 64 x 64 samples and their 16 x 16 lowest DCT frequencies. All of it is
linear: one axis of n pixels is a 64 x n matrix whose rows are short bands (a tent of about n/32 pixels around each
sample), so a hash needs only the pixels below the bands, and no blurred picture in between.

Source: ThreatExchange, hashing/pdq ("PDQ reference implementation", BSD), and its hashing.pdf.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

#: Side of the sample grid, and of the corner of its DCT that is hashed.
SAMPLES: Final = 64
FREQUENCIES: Final = 16
#: Smallest side that is hashed. The reference leaves smaller pictures without a hash too, with quality 0.
MIN_SIDE: Final = 8
#: Bands are padded with zero weights to a multiple of this, so that the kernel has one loop and no remainders.
BAND_STEP: Final = 8
#: The reference's box is n/128 pixels wide, rounded up.
_BOX_DIVISOR: Final = 128

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


class Bands(NamedTuple):
    """The bands of one axis."""

    #: First pixel of each of the 64 bands, (64,).
    start: Integers
    #: (64, width): sample s is the sum over k of weights[s, k] * pixel[start[s] + k].
    weights: Floats

    def mirrored(self, length: int) -> Bands:
        """The bands that sample the axis, ``length`` pixels long, read from its other end."""
        weights = np.ascontiguousarray(self.weights[:, ::-1])
        start = length - self.start - self.weights.shape[1]
        return Bands(start, weights)


@lru_cache(maxsize=256)
def bands(length: int) -> Bands:
    """The bands of an axis of ``length`` pixels, at least MIN_SIDE."""
    width, first, rows = 1, [], []
    for sample in range(SAMPLES):
        start, weights = _band(length, int((sample + 0.5) * length / SAMPLES))
        first.append(start)
        rows.append(weights)
        width = max(width, len(weights))
    width = min(length, -(-width // BAND_STEP) * BAND_STEP)
    width -= width % BAND_STEP
    starts = np.minimum(np.array(first, np.int64), length - width)
    full = np.zeros((SAMPLES, width), np.float32)
    for sample, weights in enumerate(rows):
        at = first[sample] - int(starts[sample])
        full[sample, at : at + len(weights)] = weights
    return Bands(starts, full)


@lru_cache(maxsize=256)
def mirrored_bands(length: int) -> Bands:
    """`bands`, from the axis's other end."""
    return bands(length).mirrored(length)


@lru_cache(maxsize=1)
def dct() -> Floats:
    """16 x 64: the DCT-II's rows 1 to 16, the constant one left out, scaled by sqrt(2/64)."""
    frequency = np.arange(1, FREQUENCIES + 1)[:, None]
    position = 2 * np.arange(SAMPLES)[None, :] + 1
    # Rounded where the reference rounds: its factors are single precision.
    factor = np.float32(math.sqrt(2.0 / SAMPLES))
    rows: Floats = (factor * np.cos((math.pi / 2 / SAMPLES) * frequency * position)).astype(np.float32)
    return rows


def _band(length: int, centre: int) -> tuple[int, npt.NDArray[np.float64]]:
    """The first pixel and the weights of the tent around ``centre``: a box of boxes, each cut at the picture's edge."""
    low, high = _box(length, centre)
    outer_low, outer_high = _box(length, low)[0], _box(length, high)[1]
    weights = np.zeros(outer_high - outer_low + 1)
    for pixel in range(low, high + 1):
        inner_low, inner_high = _box(length, pixel)
        share = 1.0 / ((high - low + 1) * (inner_high - inner_low + 1))
        weights[inner_low - outer_low : inner_high - outer_low + 1] += share
    return outer_low, weights


def _box(length: int, pixel: int) -> tuple[int, int]:
    """First and last pixel of the box filter around ``pixel``. Even boxes reach one pixel further to the right."""
    window = -(-length // _BOX_DIVISOR)
    half = (window + 2) // 2
    return max(pixel - (window - half), 0), min(pixel + half - 1, length - 1)
