"""Exact search for 256-bit hashes within a Hamming radius, by looking at every one."""

from __future__ import annotations

import numpy as np

from seawall.perceptual_hashing.hamming import Hits, Words, check_radius, collect, read_only
from seawall.perceptual_hashing.hamming_kernels import scan


class ScanIndex:
    """Compares every query with every hash: best for small lists, and the yardstick for the others."""

    def __init__(self, words: Words) -> None:
        self._count = len(words)
        # Word by word, so that eight hashes are compared at a time.
        planes = np.zeros((4, -(-self._count // 8) * 8), np.uint64)
        planes[:, : self._count] = words.T
        self._planes = read_only(planes.ravel())

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Bytes it holds."""
        return int(self._planes.nbytes)

    def search(self, queries: Words, radius: int) -> Hits:
        """See `HammingIndex`."""
        check_radius(radius)
        wanted = read_only(queries)
        return collect(lambda hits: int(scan(self._planes, self._count, wanted, radius, hits)))
