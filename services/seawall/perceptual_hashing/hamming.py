"""Exact search for 256-bit hashes within a Hamming radius: what every index does."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

#: Largest radius. Up to it the multi-index is exact by construction: 16 bands, 31 errors, so one band has at most one.
MAX_RADIUS: Final = 31
HASH_BYTES: Final = 32

Words = npt.NDArray[np.uint64]


class Hits(NamedTuple):
    """What a search found, three arrays of one length, ordered by query."""

    #: Row of the query.
    query: npt.NDArray[np.int64]
    #: Row of the listed hash.
    row: npt.NDArray[np.int64]
    #: Bits that differ.
    distance: npt.NDArray[np.int64]


class HammingIndex(Protocol):
    """Finds every listed hash within a radius; misses none."""

    def __len__(self) -> int: ...

    def search(self, queries: Words, radius: int) -> Hits:
        """Args:
        queries: uint64 (n, 4).
        radius: 0 to 31 bits, inclusive.
        """
        ...


def to_words(hashes: npt.NDArray[np.uint8]) -> Words:
    """uint8 (n, 32) to uint64 (n, 4). The same bits in whatever order: distances do not depend on it."""
    return np.ascontiguousarray(hashes).view(np.uint64)


def read_only(array: Any) -> Any:
    """A contiguous view that cannot be written to. Kernels are compiled once for what they get: mapped files cannot be
    written to, so nothing may be.
    """
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def check_radius(radius: int) -> None:
    """Raises ValueError unless the radius is one that every index searches exactly."""
    if not 0 <= radius <= MAX_RADIUS:
        raise ValueError(f"radius must be 0 to {MAX_RADIUS} bits: beyond it the search would no longer be exact")


class _Fill(Protocol):
    def __call__(self, hits: npt.NDArray[np.int64], /) -> int:
        """Fill rows of (query, row, distance); return how many there are, also when they do not fit."""
        ...


def collect(fill: _Fill, expected: int = 256) -> Hits:
    """Run a kernel with room for its hits, again with more when there were more than expected."""
    while True:
        hits = np.empty((expected, 3), np.int64)
        found = fill(hits)
        if found <= expected:
            return Hits(hits[:found, 0], hits[:found, 1], hits[:found, 2])
        expected = found
