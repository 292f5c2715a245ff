"""A segment: listed entries and the indexes over their hashes, immutable, in memory or mapped from a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from seawall.perceptual_hashing import array_file
from seawall.perceptual_hashing.array_file import Damaged
from seawall.perceptual_hashing.bank_columns import Columns, Hashes
from seawall.perceptual_hashing.hamming import HammingIndex, Words, to_words
from seawall.perceptual_hashing.hash_types import DIGEST_BYTES, is_pdq
from seawall.perceptual_hashing.multi_index import MultiIndex
from seawall.perceptual_hashing.scan_index import ScanIndex

#: Below so many hashes looking at all of them is as quick as the multi-index, and takes no tables.
SCAN_BELOW: Final = 16_384
#: Of the file's content; another one is built again from the store.
FORMAT: Final = 1


class Near(NamedTuple):
    """A listed hash within the radius."""

    #: Row of the query.
    query: int
    #: Number of the entry in the segment.
    entry: int
    distance: int
    #: Number of the listed hash in the segment, among those of its kind: tells the frames of a video apart.
    row: int


class DigestIndex:
    """Exact look-up of one type of digest."""

    def __init__(self, hashes: Hashes, order: npt.NDArray[np.uint32] | None = None) -> None:
        self._hashes = hashes
        prefixes = np.ascontiguousarray(hashes.values[:, :8]).view("<u8").ravel()
        #: Rows by the digest's first eight bytes.
        self.order = np.argsort(prefixes, kind="stable").astype(np.uint32) if order is None else order
        self._prefixes = prefixes[self.order]

    def find(self, digest: bytes) -> Iterator[int]:
        """The entries that have it."""
        wanted = np.frombuffer(digest[:8], "<u8")[0]
        at = int(np.searchsorted(self._prefixes, wanted))
        while at < len(self._prefixes) and self._prefixes[at] == wanted:
            row = int(self.order[at])
            if self._hashes.values[row].tobytes() == digest:
                yield int(self._hashes.entry[row])
            at += 1


class Segment:
    """Entries and their indexes. Immutable; safe for threads."""

    def __init__(self, columns: Columns, indexes: dict[str, HammingIndex], digests: dict[str, DigestIndex]) -> None:
        self.columns = columns
        self._indexes = indexes
        self._digests = digests

    @classmethod
    def build(cls, columns: Columns, threads: int = 1) -> Segment:
        """Index the columns' hashes."""
        indexes: dict[str, HammingIndex] = {}
        digests: dict[str, DigestIndex] = {}
        for kind, hashes in columns.hashes.items():
            if kind in DIGEST_BYTES:
                digests[kind] = DigestIndex(hashes)
            elif not is_pdq(kind):
                continue  # a plug-in's: whoever has the plug-in indexes it
            elif len(hashes.values) < SCAN_BELOW:
                indexes[kind] = ScanIndex(to_words(hashes.values))
            else:
                indexes[kind] = MultiIndex.build(to_words(hashes.values), threads)
        return cls(columns, indexes, digests)

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self._arrays().values())

    def search(self, kind: str, queries: Words, radius: int) -> list[Near]:
        """Every hash of ``kind`` ("pdq.512") within the radius of a query; bits in the index's order."""
        index = self._indexes.get(kind)
        if index is None:
            return []
        hits = index.search(queries, radius)
        entry = self.columns.hashes[kind].entry
        return [
            Near(query, int(entry[row]), distance, row)
            for query, row, distance in zip(hits.query.tolist(), hits.row.tolist(), hits.distance.tolist(), strict=True)
        ]

    def listed(self, kind: str, entry: int) -> int:
        """How many hashes of a kind an entry has."""
        of = self.columns.hashes[kind].entry
        begin, end = np.searchsorted(of, np.array([entry, entry + 1], of.dtype))
        return int(end - begin)

    def find_digest(self, kind: str, digest: bytes) -> list[int]:
        """The entries that list exactly these bytes."""
        index = self._digests.get(kind)
        return list(index.find(digest)) if index is not None else []

    def write(self, path: Path) -> None:
        """Keep it in a file. Raises OSError."""
        columns = self.columns
        meta = {"format": FORMAT, "banks": columns.banks, "categories": columns.categories}
        array_file.write(path, self._arrays(), meta)

    @classmethod
    def open(cls, path: Path) -> Segment:
        """Map a file, after checking all of it. Raises Damaged, OSError."""
        meta, arrays = array_file.open_(path)
        try:
            if meta["format"] != FORMAT:
                raise Damaged("another version wrote it")
            kinds = [name.removesuffix(".entry") for name in arrays if name.endswith(".entry")]
            columns = Columns(
                banks=tuple(meta["banks"]),
                categories=tuple(meta["categories"]),
                hashes={kind: Hashes(arrays[f"{kind}.entry"], arrays[f"{kind}.values"]) for kind in kinds},
                **{name: arrays[name] for name in _COLUMNS},
            )
            indexes: dict[str, HammingIndex] = {}
            digests: dict[str, DigestIndex] = {}
            for kind in kinds:
                values = columns.hashes[kind].values
                if kind in DIGEST_BYTES:
                    digests[kind] = DigestIndex(columns.hashes[kind], arrays[f"{kind}.order"])
                elif f"{kind}.starts" in arrays:
                    indexes[kind] = MultiIndex(to_words(values), arrays[f"{kind}.starts"], arrays[f"{kind}.buckets"])
                elif is_pdq(kind):
                    indexes[kind] = ScanIndex(to_words(values))
        except (KeyError, TypeError, ValueError):
            raise Damaged("its arrays are not those of a segment") from None
        return cls(columns, indexes, digests)

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        arrays: dict[str, npt.NDArray[Any]] = {name: getattr(self.columns, name) for name in _COLUMNS}
        for kind, hashes in self.columns.hashes.items():
            arrays[f"{kind}.entry"], arrays[f"{kind}.values"] = hashes
            index = self._indexes.get(kind)
            if isinstance(index, MultiIndex):
                arrays[f"{kind}.starts"], arrays[f"{kind}.buckets"] = index.starts, index.entries
            if kind in self._digests:
                arrays[f"{kind}.order"] = self._digests[kind].order
        return arrays


#: Columns that are arrays, as they are named in the file.
_COLUMNS: Final = ("key", "bank", "name_ends", "names", "expires", "quarantined", "category")


def build_threads() -> int:
    """How many threads build a large index: it waits for memory, so more than a few are no quicker."""
    return min(4, os.cpu_count() or 1)
