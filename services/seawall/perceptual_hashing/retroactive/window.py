"""What was measured lately, of one partition of signals.v1: hashes, when, and where the signal stands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from seawall.api.signal.v1 import signal_pb2
from seawall.perceptual_hashing.hamming import Words
from seawall.perceptual_hashing.hash_types import MIN_QUALITY
from seawall.perceptual_hashing.measured import SENT_TURNS, is_pdq, sent_turns
from seawall.perceptual_hashing.retroactive.columns import Columns

#: Words of a listed hash that are compared, by the type of the measured ones. Of a digest 16 bytes: what is found is
#: checked whole later.
WORDS: Final = {"pdq": 4, "pdq_512": 4, "md5": 2, "sha1": 2, "sha256": 2}
#: Words that are kept of a measured hash: of a PDQ those of four turns, which stand for eight; see `measured`.
KEPT_WORDS: Final = {kind: words * (4 if is_pdq(kind) else 1) for kind, words in WORDS.items()}


class HashWindow:
    """The rows of one partition, by hash type, in the order of the log."""

    def __init__(self) -> None:
        #: Offset of the signal, log time in milliseconds.
        self._tables = {
            kind: Columns({"value": (np.uint64, words), "offset": (np.int64, 0), "time": (np.int64, 0)})
            for kind, words in KEPT_WORDS.items()
        }

    def __len__(self) -> int:
        return sum(len(table) for table in self._tables.values())

    def table(self, hash_type: str) -> Columns:
        """The rows of one hash type: value, offset, time."""
        return self._tables[hash_type]

    def add(self, rows: Rows) -> None:
        """Append what was read."""
        for kind, values, offsets, times in rows.by_type():
            self._tables[kind].add(value=values, offset=offsets, time=times)

    def forget_before(self, time: int) -> None:
        """Drop rows older than a log time in milliseconds."""
        for table in self._tables.values():
            # Log times of a partition only grow, but for a broker's clock that was set back; then rows stay longer.
            table.forget(int(np.searchsorted(np.maximum.accumulate(table["time"]), time)))

    def forget_beyond(self, count: int) -> int:
        """Drop the oldest rows beyond ``count`` in all. Returns how many."""
        excess = len(self) - count
        if excess <= 0:
            return 0
        dropped = 0
        for table in self._tables.values():
            share = min(len(table), -(-excess * len(table) // max(1, len(self) + dropped)))
            table.forget(share)
            dropped += share
        return dropped


class Rows:
    """Hashes that were just read."""

    def __init__(self) -> None:
        self._values: dict[str, bytearray] = {kind: bytearray() for kind in WORDS}
        self._offsets: dict[str, list[int]] = {kind: [] for kind in WORDS}
        self._times: dict[str, list[int]] = {kind: [] for kind in WORDS}

    def add(self, signal: signal_pb2.Signal, offset: int, time: int) -> None:
        """Every hash of a signal that an entry can be compared with."""
        for item in signal.items:
            for measured in item.hashes:
                kind = measured.hash_type
                if comparable(measured):
                    self._values[kind] += _kept(measured)
                    self._offsets[kind].append(offset)
                    self._times[kind].append(time)

    def by_type(
        self,
    ) -> Iterator[tuple[str, Words, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Hash type, values, offsets and times, of each type that there is."""
        for kind, offsets in self._offsets.items():
            if offsets:
                values = np.frombuffer(bytes(self._values[kind]), np.uint64).reshape(-1, KEPT_WORDS[kind])
                yield kind, values, np.array(offsets, np.int64), np.array(self._times[kind], np.int64)


def comparable(measured: signal_pb2.ItemHash) -> bool:
    """Whether a hash is of a kind that is compared, whole, and says enough: a PDQ of low quality is near everything."""
    words = WORDS.get(measured.hash_type)
    if words is None or len(measured.value) < 8 * words:
        return False
    return not is_pdq(measured.hash_type) or measured.quality >= MIN_QUALITY


def _kept(measured: signal_pb2.ItemHash) -> bytes:
    if not is_pdq(measured.hash_type):
        return measured.value[: 8 * WORDS[measured.hash_type]]
    turns = sent_turns(measured)
    # Where nobody measured the turns, the upright one stands for them: it finds nothing more.
    return turns.tobytes() * (len(SENT_TURNS) // len(turns))
