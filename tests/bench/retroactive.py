"""Retroactive matching: new entries against the hashes of recent pictures, and pictures against new entries.

The ceiling is one pass of the popcount scan over the same pairs in the same run; what must be feasible is 10,000 new
entries against 1,000,000 recent pictures, in all their turns.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from seawall.api.signal.v1 import signal_pb2
from seawall.perceptual_hashing.hamming import Words
from seawall.perceptual_hashing.measured import exchanged
from seawall.perceptual_hashing.retroactive import pairs
from seawall.perceptual_hashing.retroactive.columns import Columns
from seawall.perceptual_hashing.retroactive.window import HashWindow, Rows
from tests.bench.harness import Report

RECENT, ENTRIES, PLANTED = 1_000_000, 10_000, 500


async def run(report: Report) -> None:
    """Measure on one core's worth of work; building an index uses as many as there are."""
    random = np.random.default_rng(1)
    recent = random.integers(0, 2**63, (RECENT, 16), np.uint64)
    entries = random.integers(0, 2**63, (ENTRIES, 4), np.uint64)
    rows = random.choice(RECENT, PLANTED, replace=False)
    # In each of the eight turns: of the four that are kept, and of these with their axes exchanged.
    turns = np.arange(PLANTED) % 8
    planted_at = recent.reshape(RECENT, 4, 4)[rows, turns // 2]
    planted_at[turns % 2 == 1] = exchanged(planted_at[turns % 2 == 1].view(np.uint8)).view(np.uint64)
    entries[:PLANTED] = _flip(planted_at, np.arange(PLANTED) // 8 % 32, random)
    pairs.warm()

    seconds, found = _timed(lambda: pairs.near_turned(entries, recent))
    report.add("10k entries x 1M pictures in eight turns, seconds", seconds, 10.0, "<=")
    planted = set(zip(range(PLANTED), rows.tolist(), strict=True))
    hit = set(zip(found.left.tolist(), found.right.tolist(), strict=True))
    report.add("planted neighbours at 0-31 bits in eight turns found", len(planted & hit) / PLANTED, 1.0, ">=")

    scan_seconds, scanned = _timed(lambda: pairs.near_turned(entries[:120], recent))
    pairs_per_second = 8 * 120 * RECENT / scan_seconds
    report.add("scan of 120 entries x 1M pictures in eight turns, seconds", scan_seconds, 10.0, "<=")
    report.add("scan: billion pairs a second", pairs_per_second / 1e9)
    ratio = 8 * ENTRIES * RECENT / pairs_per_second / seconds
    report.add("index over scan for 10k x 1M, times faster", ratio, 1.0, ">=")
    same = set(zip(scanned.left.tolist(), scanned.right.tolist(), strict=True)) == {one for one in hit if one[0] < 120}
    report.add("scan and index find the same (1: yes)", float(same), 1.0, ">=")
    one, _ = _timed(lambda: pairs.near_turned(entries[:1], recent))
    report.add("1 entry x 1M pictures in eight turns, milliseconds", 1000 * one, 100.0, "<=")

    signal = _signal()
    start = time.perf_counter()
    window = HashWindow()
    for batch in range(20):
        read = Rows()
        for number in range(5_000):
            read.add(signal, batch * 5_000 + number, batch)
        window.add(read)
    report.add("pictures taken up a second", 100_000 / (time.perf_counter() - start))
    report.add("bytes a hash of the window", _bytes(window) / len(window), 70.0, "<=")


def _timed(work: Any) -> tuple[float, pairs.Pairs]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def _flip(words: Words, bits: Any, random: np.random.Generator) -> Words:
    """The hashes with so many bits of each turned."""
    flipped = words.copy()
    for row, count in enumerate(bits.tolist()):
        for bit in random.choice(256, count, replace=False).tolist():
            flipped[row, bit // 64] ^= np.uint64(1 << bit % 64)
    return flipped


def _signal() -> signal_pb2.Signal:
    signal = signal_pb2.Signal()
    item = signal.items.add()
    item.hashes.add(hash_type="pdq", value=bytes(32), quality=100, turned=bytes(96))
    item.hashes.add(hash_type="sha256", value=bytes(32), quality=100)
    item.hashes.add(hash_type="md5", value=bytes(16), quality=100)
    return signal


def _bytes(window: HashWindow) -> int:
    tables: list[Columns] = [window.table(kind) for kind in ("pdq", "sha256", "md5")]
    return sum(column.nbytes for table in tables for column in (table["value"], table["offset"], table["time"]))
