"""Exact search for 256-bit hashes within a Hamming radius, by multi-index hashing.

The hash is cut into 16 bands of 16 bits. Two hashes at most 31 bits apart have a band in which they differ by at most
one bit (16 bands with two or more would make 32), so looking into 17 buckets a band finds every neighbour and misses
none. Each bucket entry carries 96 of the other bits beside the row: nearly every candidate is refused there, and the
full hash is fetched for the few that remain.

Bits are permuted first, by a fixed permutation: neighbouring PDQ bits of natural pictures go together, and buckets over
them would be few and long.

Source: Norouzi, Punjani, Fleet, "Fast exact search in Hamming space with multi-index hashing", 2014.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import numpy.typing as npt

from seawall.perceptual_hashing import multi_index_kernels as kernels
from seawall.perceptual_hashing.hamming import Hits, Words, check_radius, collect
from seawall.perceptual_hashing.multi_index_kernels import BANDS, BUCKETS, PADDING

#: The bit at place i of an indexed hash is bit _PERMUTATION[i] of the hash. Fixed, so that an index can be kept.
_PERMUTATION: Final = np.random.Generator(np.random.PCG64(20_140_301)).permutation(256)


class MultiIndex:
    """An immutable index; safe for threads."""

    def __init__(self, words: Words, threads: int = 1) -> None:
        """Args:
        words: uint64 (n, 4), n below 2**32.
        threads: how many build it.
        """
        if len(words) >= 2**32:
            raise ValueError("an index holds fewer than 2**32 hashes: split the list")
        self._words = permuted(words)
        count = len(words)
        #: First entry of every bucket, and behind them the end of the last; (16, 65537).
        self._starts = np.empty((BANDS, BUCKETS + 1), np.uint32)
        #: Two words an entry, grouped by bucket: 64 bits of the hash; 32 more and, in the upper half, the row.
        self._entries = np.zeros((BANDS, 2 * count + PADDING), np.uint64)

        def build(band: int) -> None:
            kernels.build_band(self._words, band, self._starts[band], self._entries[band])

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(build, range(BANDS)))

    def __len__(self) -> int:
        return len(self._words)

    @property
    def nbytes(self) -> int:
        """Bytes it holds."""
        return self._words.nbytes + self._starts.nbytes + self._entries.nbytes

    def search(self, queries: Words, radius: int) -> Hits:
        """See `hamming.HammingIndex`."""
        check_radius(radius)
        wanted = permuted(queries)
        return collect(lambda hits: int(kernels.search(self._words, self._starts, self._entries, wanted, radius, hits)))


def permuted(words: Words) -> Words:
    """The hashes with their bits in the index's order."""
    return np.concatenate([_permuted(part) for part in np.array_split(words, max(1, len(words) // 100_000))])


def _permuted(words: Words) -> Words:
    bits: npt.NDArray[np.uint8] = np.unpackbits(
        np.ascontiguousarray(words).view(np.uint8), axis=1, count=256, bitorder="little"
    )
    packed = np.packbits(bits[:, _PERMUTATION], axis=1, bitorder="little")
    return np.ascontiguousarray(packed).view(np.uint64)
