"""Exact search for 256-bit hashes within a Hamming radius, by looking at every one."""

from __future__ import annotations

import numpy as np

from seawall.perceptual_hashing.hamming import Hits, Words, check_radius, collect
from seawall.perceptual_hashing.hamming_kernels import scan


class ScanIndex:
    """Compares every query with every hash: best for small lists, and the yardstick for the others."""

    def __init__(self, words: Words) -> None:
        self._words = np.ascontiguousarray(words)

    def __len__(self) -> int:
        return len(self._words)

    def search(self, queries: Words, radius: int) -> Hits:
        """See `HammingIndex`."""
        check_radius(radius)
        return collect(lambda hits: int(scan(self._words, queries, radius, hits)))
