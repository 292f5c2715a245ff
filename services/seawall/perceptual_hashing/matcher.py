"""Hashes against all banks at once: exact, each bank within its own radius."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from seawall.perceptual_hashing.bank_card import BankCard, Pipeline
from seawall.perceptual_hashing.bank_entries import Names
from seawall.perceptual_hashing.banks import Bank
from seawall.perceptual_hashing.hamming import HammingIndex, to_words
from seawall.perceptual_hashing.multi_index import MultiIndex
from seawall.perceptual_hashing.scan_index import ScanIndex

#: Below so many hashes looking at all of them is quicker than the multi-index's 272 buckets, and needs no compiling.
_SCAN_BELOW: Final = 8_192


class Match(NamedTuple):
    """A listed entry within its bank's radius."""

    bank: BankCard
    entry_id: str
    #: Bits that differ; 0 for digests.
    distance: int
    #: "pdq", "sha256" or "md5".
    hash_type: str
    #: Row of the hash that was asked for; 0 for digests.
    query: int


class _Segment(NamedTuple):
    """A bank's rows in an index, which end before ``end``."""

    card: BankCard
    ids: Names
    begin: int
    end: int


class _Listed(NamedTuple):
    """The PDQ hashes of all banks of one pipeline."""

    hashes: HammingIndex
    segments: Sequence[_Segment]
    ends: npt.NDArray[np.int64]
    radius: int


class Matcher:
    """All banks of a service. Immutable; safe for threads."""

    def __init__(self, banks: Sequence[Bank]) -> None:
        self._banks = tuple(banks)
        self._listed: dict[Pipeline, _Listed] = {}
        pipelines: tuple[Pipeline, ...] = ("full", "512")
        for pipeline in pipelines:
            chosen = [bank for bank in banks if bank.card.pipeline == pipeline and len(bank.entries.pdq)]
            if chosen:
                self._listed[pipeline] = _listed(chosen)

    @property
    def pipelines(self) -> tuple[Pipeline, ...]:
        """Pipelines by which any bank lists hashes."""
        return tuple(self._listed)

    def __len__(self) -> int:
        """Hashes of all types in all banks."""
        return sum(len(bank.entries) for bank in self._banks)

    def match(self, hashes: npt.NDArray[np.uint8], pipeline: Pipeline) -> list[Match]:
        """Every entry within its bank's radius of any of the hashes.

        Args:
            hashes: uint8 (n, 32), of the given pipeline.
        """
        listed = self._listed.get(pipeline)
        if listed is None:
            return []
        hits = listed.hashes.search(to_words(hashes), listed.radius)
        found = []
        for query, row, distance in zip(hits.query.tolist(), hits.row.tolist(), hits.distance.tolist(), strict=True):
            segment = listed.segments[int(np.searchsorted(listed.ends, row, side="right"))]
            if distance <= segment.card.radius:
                found.append(Match(segment.card, segment.ids[row - segment.begin], distance, "pdq", query))
        return found

    def match_digest(self, hash_type: str, digest: bytes) -> list[Match]:
        """Every entry that lists exactly these bytes.

        Args:
            hash_type: "sha256" or "md5".
        """
        return [
            Match(bank.card, entry_id, 0, hash_type, 0)
            for bank in self._banks
            for entry_id in bank.entries.digests[hash_type].get(digest, ())
        ]


def make_index(hashes: npt.NDArray[np.uint8]) -> HammingIndex:
    """The index that suits the number of hashes, uint8 (n, 32)."""
    words = to_words(hashes)
    return ScanIndex(words) if len(words) < _SCAN_BELOW else MultiIndex(words, threads=os.cpu_count() or 1)


def _listed(banks: Sequence[Bank]) -> _Listed:
    segments, end = [], 0
    for bank in banks:
        begin, end = end, end + len(bank.entries.pdq)
        segments.append(_Segment(bank.card, bank.entries.pdq_ids, begin, end))
    return _Listed(
        make_index(np.concatenate([bank.entries.pdq for bank in banks])),
        tuple(segments),
        np.array([segment.end for segment in segments], np.int64),
        max(segment.card.radius for segment in segments),
    )
