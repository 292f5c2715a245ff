"""Exact search for 256-bit hashes within a Hamming radius, by multi-index hashing over a hierarchy of bands.

The hash is cut into four groups of 64 bits, each into two pairs of 32, each into two bands of 16. Two hashes at most 31
bits apart have a group in which they differ by at most 7 bits (four groups with 8 would make 32), in it a pair in which
they differ by at most 3, and in that a band in which they differ by at most 1. So looking into 17 buckets a band finds
every neighbour and misses none; and a bucket's entry carries, beside the row, the pair's other band and one band of
the other pair: a candidate that breaks the bounds of 3 and 7 there is refused before its hash is fetched. One in ten
thousand remains, at 8 bytes an entry and band.

Radii below 31 leave less to each level; from 15 down, only the 16 buckets of the hash's own bands.

Bits are permuted first, by a fixed permutation: neighbouring PDQ bits of natural pictures go together, and buckets over
them would be few and long.

Source: Norouzi, Punjani, Fleet, "Fast exact search in Hamming space with multi-index hashing", 2014; the bounds on pair
and group are the same argument, applied again.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import numpy.typing as npt

from seawall.perceptual_hashing import multi_index_kernels as kernels
from seawall.perceptual_hashing.hamming import Hits, Words, check_radius, collect, read_only
from seawall.perceptual_hashing.multi_index_kernels import BANDS, BUCKETS, PADDING

#: The bit at place i of an indexed hash is bit _PERMUTATION[i] of the hash. Fixed, so that an index can be kept.
_PERMUTATION: Final = np.random.Generator(np.random.PCG64(20_140_301)).permutation(256)


class MultiIndex:
    """An immutable index over hashes whose bits are in `permuted` order; safe for threads."""

    def __init__(self, words: Words, starts: npt.NDArray[np.uint32], entries: Words) -> None:
        """Args: as `build` makes them, or as they were kept in a file."""
        count = len(words)
        if starts.shape != (BANDS * (BUCKETS + 1),) or entries.shape != (BANDS * (count + PADDING),):
            raise ValueError("the index does not belong to these hashes: build it again")
        self.words = read_only(words)
        #: First entry of every bucket, and behind them the end of the last; band after band.
        self.starts = read_only(starts)
        #: Grouped by bucket: 32 more bits of the hash and, in the upper half, the row; band after band.
        self.entries = read_only(entries)

    @classmethod
    def build(cls, words: Words, threads: int = 1) -> MultiIndex:
        """Index hashes whose bits are in `permuted` order.

        Args:
            words: uint64 (n, 4), n below 2**32.
            threads: how many build it.
        """
        count = len(words)
        if count >= 2**32:
            raise ValueError("an index holds fewer than 2**32 hashes: split the list")
        words = read_only(words)
        starts = np.empty((BANDS, BUCKETS + 1), np.uint32)
        entries = np.empty((BANDS, count + PADDING), np.uint64)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda band: kernels.build_band(words, band, starts[band], entries[band]), range(BANDS)))
        return cls(words, starts.ravel(), entries.ravel())

    def __len__(self) -> int:
        return len(self.words)

    @property
    def nbytes(self) -> int:
        """Bytes it holds."""
        return int(self.words.nbytes + self.starts.nbytes + self.entries.nbytes)

    def search(self, queries: Words, radius: int) -> Hits:
        """See `hamming.HammingIndex`; the queries' bits are in `permuted` order too."""
        check_radius(radius)
        wanted = read_only(queries)
        return collect(lambda hits: int(kernels.search(self.words, self.starts, self.entries, wanted, radius, hits)))


def permuted(words: Words) -> Words:
    """The hashes with their bits in the index's order."""
    out = np.empty((len(words), 4), np.uint64)
    kernels.permute(read_only(words), _TABLE, out)
    return out


def _table() -> Words:
    """`kernels.permute`'s: for each byte of a hash and each value of it, the four words its bits become."""
    place = np.empty(256, np.int64)
    place[_PERMUTATION] = np.arange(256)
    values = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.uint64)
    table = np.zeros((32, 256, 4), np.uint64)
    for bit in range(256):
        to = int(place[bit])
        table[bit >> 3, :, to >> 6] |= values[:, bit & 7] << np.uint64(to & 63)
    return table


_TABLE: Final = _table()
