"""Which rows of two sets of hashes belong together: near each other, or equal. Exact, nothing missed."""

from __future__ import annotations

import os
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from seawall.perceptual_hashing.hamming import MAX_RADIUS, Words
from seawall.perceptual_hashing.measured import exchanged
from seawall.perceptual_hashing.multi_index import MultiIndex
from seawall.perceptual_hashing.scan_index import ScanIndex

#: Above so many comparisons the larger side is indexed first: see tests/bench/retroactive.py.
SCAN_PAIRS: Final = 1_000_000_000
#: Rows of the queries' side at a time, so that the hits of a moment stay few.
_QUERIES: Final = 200_000
#: Hashes whose axes are exchanged at a time.
_EXCHANGED: Final = 16_384

Indices = npt.NDArray[np.int64]


class Pairs(NamedTuple):
    """Rows that belong together, three arrays of one length."""

    left: Indices
    right: Indices
    #: Bits that differ.
    distance: Indices


def near(left: Words, right: Words) -> Pairs:
    """Every pair at most MAX_RADIUS bits apart.

    Args:
        left, right: uint64 (n, 4) and (m, 4).
    """
    if not len(left) or not len(right):
        return _NONE
    if len(left) > len(right):
        return _swapped(near(right, left))
    # The left side is the smaller now.
    if len(left) * len(right) <= SCAN_PAIRS:
        index = ScanIndex(np.ascontiguousarray(left))
        found = []
        for start in range(0, len(right), _QUERIES):
            hits = index.search(np.ascontiguousarray(right[start : start + _QUERIES]), MAX_RADIUS)
            found.append(Pairs(hits.row, hits.query + start, hits.distance))
        return _joined(found)
    large = MultiIndex.build(np.ascontiguousarray(right), threads=os.cpu_count() or 1)
    found = []
    for start in range(0, len(left), _QUERIES):
        hits = large.search(np.ascontiguousarray(left[start : start + _QUERIES]), MAX_RADIUS)
        found.append(Pairs(hits.query + start, hits.row, hits.distance))
    return _joined(found)


def near_turned(listed: Words, measured: Words) -> Pairs:
    """Every listed hash and picture at most MAX_RADIUS bits apart in any of the picture's turns, each pair once, at the
    nearest.

    Args:
        listed: uint64 (n, 4).
        measured: uint64 (m, 16), as `window` keeps them.
    """
    turns = measured.reshape(-1, 4)
    count = len(listed)
    # An exchange of axes is its own inverse, so either side may be exchanged: the shorter one.
    if count <= len(turns):
        found = near(np.concatenate([listed, _exchanged(listed)]), turns)
        left, right = found.left % max(1, count), found.right // 4
    else:
        found = near(listed, np.concatenate([turns, _exchanged(turns)]))
        left, right = found.left, found.right % max(1, len(turns)) // 4
    order = np.lexsort((found.distance, right, left))
    left, right, distance = left[order], right[order], found.distance[order]
    first = np.ones(len(order), np.bool_)
    first[1:] = (left[1:] != left[:-1]) | (right[1:] != right[:-1])
    return Pairs(left[first], right[first], distance[first])


def equal(left: Words, right: Words) -> Pairs:
    """Every pair of equal rows.

    Args:
        left, right: uint64 (n, k) and (m, k).
    """
    if not len(left) or not len(right):
        return _NONE
    if len(left) > len(right):
        return _swapped(equal(right, left))
    by_value: dict[bytes, list[int]] = {}
    for row, value in enumerate(left):
        by_value.setdefault(value.tobytes(), []).append(row)
    # A digest's first word tells nearly all of them apart; what is left is compared whole.
    candidates = np.flatnonzero(np.isin(right[:, 0], left[:, 0]))
    found = [(row, int(c)) for c in candidates for row in by_value.get(right[c].tobytes(), ())]
    if not found:
        return _NONE
    rows = np.array(found, np.int64)
    return Pairs(rows[:, 0], rows[:, 1], np.zeros(len(rows), np.int64))


def warm() -> None:
    """Compile, or load from the cache, what the first hit would otherwise wait for."""
    rows = np.arange(8, dtype=np.uint64).reshape(2, 4)
    ScanIndex(rows).search(rows, MAX_RADIUS)
    MultiIndex.build(rows).search(rows, MAX_RADIUS)


_EMPTY = np.zeros(0, np.int64)
_NONE: Final = Pairs(_EMPTY, _EMPTY, _EMPTY)


def _exchanged(words: Words) -> Words:
    out = np.empty_like(words)
    # Bits take eight times the room while they are exchanged.
    for start in range(0, len(words), _EXCHANGED):
        part = np.ascontiguousarray(words[start : start + _EXCHANGED])
        out[start : start + _EXCHANGED] = exchanged(part.view(np.uint8)).view(np.uint64)
    return out


def _swapped(pairs: Pairs) -> Pairs:
    return Pairs(pairs.right, pairs.left, pairs.distance)


def _joined(parts: list[Pairs]) -> Pairs:
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))
