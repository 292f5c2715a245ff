"""PDQ hashes of pictures and of their eight turns and mirrorings."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from seawall.perceptual_hashing import pdq_kernels
from seawall.perceptual_hashing.pdq_bands import MIN_SIDE, Floats, Integers, bands, dct, mirrored_bands
from seawall.runtime.decoding import Pixels

HASH_BYTES: Final = 32
HASH_BITS: Final = 256

#: What turns ours into the picture that is hashed; as `pdq_kernels.hash_dihedral` numbers them.
_SLOTS: Final = (
    "original",  # as it is
    "transpose",
    "mirror",  # left and right exchanged
    "rot90",  # counter-clockwise
    "flip",  # top and bottom exchanged
    "rot270",
    "rot180",
    "transverse",
)
#: Names of the variants, in the order `hash_variants` gives them.
VARIANTS: Final = ("original", "mirror", "flip", "rot90", "rot180", "rot270", "transpose", "transverse")
_ORDER: Final = np.array([_SLOTS.index(name) for name in VARIANTS])


class PdqHash(NamedTuple):
    """A picture's hash."""

    #: 32 bytes, in the order in which the hash is written as hex.
    value: bytes
    #: 0 to 100.
    quality: int


class PdqVariants(NamedTuple):
    """The hashes of a picture's eight variants."""

    #: uint8 (8, 32), one row for each of VARIANTS; (1, 32) with the original alone.
    values: Pixels
    quality: int


def hash_gray(gray: Pixels) -> PdqHash:
    """The hash of a luma, (h, w). A side below 8 pixels: all zero, quality 0."""
    gray = _checked(gray)
    out = np.zeros(HASH_BYTES, np.uint8)
    if min(gray.shape) < MIN_SIDE:
        return PdqHash(out.tobytes(), 0)
    quality = pdq_kernels.hash_original(gray, *bands(gray.shape[0]), *_columns(gray.shape[1]), dct(), out)
    return PdqHash(out.tobytes(), int(quality))


def hash_variants(gray: Pixels) -> PdqVariants:
    """The hashes of all eight variants, each exactly that of the picture so turned; about four times `hash_gray`."""
    gray = _checked(gray)
    out = np.zeros((8, HASH_BYTES), np.uint8)
    if min(gray.shape) < MIN_SIDE:
        return PdqVariants(out, 0)
    quality = pdq_kernels.hash_dihedral(gray, *_both(gray.shape[0]), *_both(gray.shape[1]), dct(), out)
    return PdqVariants(out[_ORDER], int(quality))


def hash_original(gray: Pixels) -> PdqVariants:
    """`hash_gray` in the shape of `hash_variants`: the original alone."""
    value, quality = hash_gray(gray)
    return PdqVariants(np.frombuffer(value, np.uint8)[None], quality)


def _checked(gray: Pixels) -> Pixels:
    if gray.ndim != 2 or gray.dtype != np.uint8:
        raise ValueError("gray must be uint8 of shape (h, w)")
    # Some decoders give read-only arrays, which are another type to the compiler: made one, all compile once.
    gray = np.ascontiguousarray(gray).view()
    gray.flags.writeable = False
    return gray


@lru_cache(maxsize=256)
def _columns(length: int) -> tuple[Integers, Floats]:
    axis = bands(length)
    return axis.start[None], axis.weights[None]


@lru_cache(maxsize=256)
def _both(length: int) -> tuple[Integers, Floats]:
    plain, mirrored = bands(length), mirrored_bands(length)
    return np.stack([plain.start, mirrored.start]), np.stack([plain.weights, mirrored.weights])
